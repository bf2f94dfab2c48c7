//! A configuration that merges another one by HTTPS, from a server whose certificate only an authority of its own vouches
//! for: with that authority and the right hashes it is merged, without it the console says what is wrong.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use ring::digest::{SHA512, digest};
use serde_json::{Value, json};

use super::{Ask, access, ask, look_at, table, told};
use crate::{
    cli::Common,
    cluster::{self, Cluster, Node, Options},
    console::Console,
    description,
    host::Host,
    machine::Machine,
    serve::{self, Notes, tls},
    suite::Suite,
    wait,
};

/// Its cases, each with a machine.
pub(super) const MERGED: &str = "configs::remote_merge_by_https";
pub(super) const UNKNOWN: &str = "configs::unknown_authority_is_told";

/// The server's one port speaks HTTPS as well.
const SERVER: &str = "https://10.0.2.4:80";

/// A file that is fetched by a later stage, which has the authority from the first one's cache.
const FILE: (&str, &str) = ("by-https", "by https\n");

/// From QEMU's start to the report that the config is not there yet; this machine shares the host with another one.
const DEADLINE: Duration = Duration::from_secs(240);

const ASKS: &[Ask] = &[
    ask(
        "a file of the merged configuration, and its unit",
        "cat /etc/fetched-by-http; systemctl is-active fetched.service",
        "fetched\nactive",
    ),
    ask("a file by HTTPS", "cat /etc/by-https", "by https"),
    // It is for Ignition's requests alone.
    ask(
        "no trust in the authority later",
        "curl -sS https://10.0.2.4:80/by-https >/dev/null 2>&1; echo $?",
        // CURLE_PEER_FAILED_VERIFICATION of libcurl-errors(3).
        "60",
    ),
];

/// Boots both machines, side by side, and runs the wanted cases.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<()> {
    if !suite.wants_any(&[MERGED, UNKNOWN]) {
        return Ok(());
    }
    suite
        .progress
        .step("boot machines whose configuration is at a server with a certificate of its own");
    let progress = suite.progress;
    let mut cluster = start(host, common, &dir.join("secure")).await?;
    suite
        .case(MERGED, &mut cluster, async |cluster| {
            let [machine, _] = &mut cluster.machines[..] else {
                bail!("not two machines")
            };
            machine.wait_for_ssh(progress).await?;
            machine.settle(progress).await?;
            told::reported(machine).await?;
            look_at(machine, table::WELL).await?;
            look_at(machine, ASKS).await?;
            all_by_tls(machine)
        })
        .await;
    suite
        .case(UNKNOWN, &mut cluster, async |cluster| {
            let [_, machine] = &mut cluster.machines[..] else {
                bail!("not two machines")
            };
            is_told(machine).await
        })
        .await;
    cluster.discard();
    Ok(())
}

async fn start(host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let made = tempfile::tempdir().context("failed to create a directory")?;
    tls::certify(made.path())?;
    let authority = fs::read_to_string(made.path().join(tls::AUTHORITY))
        .context("failed to read the authority's certificate")?;
    let Some(node) = description::nodes(&common.cluster, 1, &host.public_key)?.pop() else {
        bail!("the description has no node")
    };
    let nodes: Vec<_> = [("https", Some(&*authority)), ("unknown-authority", None)]
        .into_iter()
        .map(|(name, authority)| Node {
            name: name.to_owned(),
            ignition: config(&host.public_key, authority).to_string(),
            served: vec![
                ("remote.ign".into(), access::REMOTE.into()),
                (FILE.0.into(), FILE.1.into()),
            ],
            ..node.clone()
        })
        .collect();
    let options = Options {
        alone: true,
        exit_on_reset: true,
        ..Options::default()
    };
    let prepared = cluster::prepare(host, dir, &nodes, options).await?;
    for node in &nodes {
        let notes = serve::notes_of(&dir.join(&node.name).join("served"));
        fs::copy(made.path().join(tls::IDENTITY), notes.join(tls::IDENTITY))
            .context("failed to give the server its certificate")?;
    }
    Cluster::start_prepared(host, nodes, prepared)
}

fn config(public_key: &str, authority: Option<&str>) -> Value {
    let resource = |source: String, bytes: &[u8]| json!({"source": source, "verification": {"hash": sha512(bytes)}});
    let authorities: Vec<_> = (authority.into_iter())
        .map(|text| resource(description::data_url(text), text.as_bytes()))
        .collect();
    json!({
        "ignition": {
            "version": "3.3.0",
            "security": {"tls": {"certificateAuthorities": authorities}},
            "config": {"merge": [resource(format!("{SERVER}/remote.ign"), access::REMOTE)]},
        },
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [public_key]}]},
        "storage": {"files": [{
            "path": "/etc/by-https",
            "mode": 0o644,
            "contents": resource(format!("{SERVER}/{}", FILE.0), FILE.1.as_bytes()),
        }]},
    })
}

/// As configs have it: `sha512-` and digits.
fn sha512(bytes: &[u8]) -> String {
    let digest = digest(&SHA512, bytes);
    let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha512-{}", digits.collect::<String>())
}

/// Looks that both were fetched, and nothing in the clear.
fn all_by_tls(machine: &Machine) -> Result<()> {
    let dir = machine.spec.disk.parent().context("no directory")?;
    let asked = Notes::new(&serve::notes_of(&dir.join("served"))).asked()?;
    for target in ["/remote.ign", "/by-https"] {
        let mut fetched = asked.iter().filter(|asked| asked.target == target);
        ensure!(
            fetched.any(|asked| asked.tls && asked.status == 200),
            "{target} was not fetched by TLS: {asked:?}"
        );
    }
    ensure!(
        asked.iter().all(|asked| asked.tls),
        "not all by TLS: {asked:?}"
    );
    Ok(())
}

/// Looks that the console names the server and what is wrong with it, and that the machine waits.
async fn is_told(machine: &mut Machine) -> Result<()> {
    let console = machine.console.path().to_owned();
    wait::until("a report on the console", DEADLINE, || async {
        let text = Console::new(console.clone()).text();
        let (_, report) = text
            .split_once("Ignition is still waiting for its config after ")
            .context("there is no report on the console")?;
        for part in [
            "source: https://10.0.2.4:80/remote.ign",
            "certificate signed by unknown authority",
        ] {
            ensure!(
                report.contains(part),
                "{part:?} is not in the report: {report}"
            );
        }
        Ok(())
    })
    .await?;
    ensure!(
        machine.is_running() && machine.ssh.greets().await.is_err(),
        "{}: the machine did not wait for its config, but reset itself or came up",
        machine.name()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha512sum() {
        // FIPS 180-2, appendix C.1.
        assert!(sha512(b"abc").starts_with("sha512-ddaf35a193617abacc417349ae204131"));
        assert_eq!(sha512(b"").len(), "sha512-".len() + 128);
    }

    #[test]
    fn only_one_machine_knows_the_authority() {
        let authorities = |authority| {
            let config = config("key", authority);
            let tls = &config["ignition"]["security"]["tls"];
            tls["certificateAuthorities"].as_array().unwrap().len()
        };
        assert_eq!((authorities(Some("pem")), authorities(None)), (1, 0));
        assert!(SERVER.contains(serve::ADDRESS));
    }
}
