//! A machine and a release server. The server is the harness's, and has what `image/release` makes of the next version
//! of the image, signed with keys that `image/keys` makes for this run. All cases but the last three are of the first
//! boot; what they install they take off again.

mod automatic;
mod download;
mod guest;
mod killed;
mod refused;
mod site;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use self::{guest::Guest, site::Site};
use crate::{
    cli::Common,
    cluster::{self, Cluster, Options},
    description,
    host::Host,
    machine::Machine,
    progress::Progress,
    suite::{Names, Suite},
};

/// The cases here, in their order.
pub(super) const CASES: Names = &[
    "release::wrong_signature_is_refused",
    "release::replayed_index_is_refused",
    "release::versions_are_refused_with_words",
    "release::broken_download_goes_on",
    "release::damaged_file_is_refused",
    "release::closed_window_is_waited_for",
    "release::full_disk_is_told_and_freed",
    "release::proxy_authority_and_rate_limit_hold",
    "release::killed_update_goes_on",
    "release::automatic_update_runs_the_next_version",
    "release::automatic_update_without_etcd_is_not_condemned",
    "release::automatic_update_gives_the_lock_back",
];

/// All of them: each downloads or unpacks on a slow guest, and some wait for minutes.
pub(super) const EXTENDED: Names = CASES;

/// Boots the machine, and runs the wanted cases.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    if !suite.wants_any(CASES) {
        return;
    }
    let mut result = Ok(());
    match start(suite.progress, host, common, dir).await {
        Err(error) => result = Err(error),
        Ok((mut cluster, mut site, running)) => {
            if let Err(error) = boots(suite, &mut cluster, &mut site, &running).await {
                suite.boot_failed("release", &mut cluster, &error).await;
                result = Err(error);
            }
            cluster.discard();
            site.discard();
        }
    }
    suite.close(CASES, result.as_ref().err());
}

/// A member of etcd with agent and Docker, which trusts the server's key; the server; and the version that is
/// installed.
async fn start(
    progress: &Progress,
    host: &Host,
    common: &Common,
    dir: &Path,
) -> Result<(Cluster, Site, String)> {
    progress.step("release the next version");
    let next = common.target.join("image-next");
    let site = Site::new(Path::new("image"), &dir.join("release-server"), &next).await?;
    let path = common.image.join("update/files.json");
    let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    let built: Value = serde_json::from_slice(&text).context("not JSON")?;
    let running = built["version"].as_str().context("no version")?.to_owned();
    ensure!(running != site.version()?, "both images are of {running}");
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        node.ignition = with_key(&node.ignition, &site.key()?)?;
    }
    let options = Options {
        firmware: true,
        ..Options::default()
    };
    progress.step("first boot of a machine with a release server");
    let mut prepared = cluster::prepare(host, &dir.join("release"), &nodes, options).await?;
    for (spec, _) in &mut prepared {
        spec.served = Some(site.command()?);
    }
    let cluster = Cluster::start_prepared(host, nodes, prepared)?;
    Ok((cluster, site, running))
}

/// The configuration with the public key in its place, as an administrator puts it there.
fn with_key(ignition: &str, key: &str) -> Result<String> {
    let mut config: Value = serde_json::from_str(ignition).context("not JSON")?;
    let files = config["storage"]["files"]
        .as_array_mut()
        .context("the rendered configuration has no files")?;
    // Of the text, only line feeds and spaces are not what a URL may have.
    let source = format!("data:,{}", key.replace('\n', "%0A").replace(' ', "%20"));
    files.push(json!({
        "path": "/etc/selvage/update-keys.d/test.pem",
        "mode": 0o644,
        "contents": {"source": source},
    }));
    Ok(config.to_string())
}

fn one(cluster: &mut Cluster) -> Result<&mut Machine> {
    let [machine] = &mut cluster.machines[..] else {
        bail!("not one machine")
    };
    Ok(machine)
}

async fn boots(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    site: &mut Site,
    running: &str,
) -> Result<()> {
    let progress = suite.progress;
    cluster.wait_for_ssh(progress).await?;
    let state = cluster.settle(progress).await?.concat();
    ensure!(state == "running", "the machine is {state}");
    let guest = Guest(one(cluster)?);
    // Nothing by itself yet.
    guest.root("systemctl stop selvage-update.timer").await?;
    guest.configure("").await?;
    first_boot(suite, cluster, site, running).await;
    if !CASES[9..].iter().any(|name| suite.wants(name)) {
        return Ok(());
    }
    progress.step("update by the timer");
    let machine = one(cluster)?;
    automatic::begin(Guest(machine), site).await?;
    machine.wait_for_reboot(automatic::UPDATE).await?;
    machine.wait_for_ssh(progress).await?;
    second_boot(suite, cluster, site, running).await;
    Ok(())
}

/// What fails in a boot without etcd, and is started again until it is there; the console has the middle of names cut
/// out.
const WITHOUT_ETCD: &str = "selvage-boot-ch";

/// Runs one case on the machine.
async fn case(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    number: usize,
    body: impl AsyncFnOnce(Guest<'_>) -> Result<()>,
) {
    suite
        .case(CASES[number], cluster, async |cluster| {
            body(Guest(one(cluster)?)).await
        })
        .await;
}

/// As [`case`], where etcd is away: the console may say that the check is not done.
async fn case_without_etcd(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    number: usize,
    body: impl AsyncFnOnce(Guest<'_>) -> Result<()>,
) {
    suite
        .case(CASES[number], cluster, async |cluster| {
            body(Guest(one(cluster)?)).await?;
            let hits = one(cluster)?.console.check()?;
            let unexpected = hits.iter().find(|hit| !hit.line.contains(WITHOUT_ETCD));
            ensure!(unexpected.is_none(), "on the console: {unexpected:?}");
            Ok(())
        })
        .await;
}

async fn first_boot(all: &mut Suite<'_>, one: &mut Cluster, site: &mut Site, running: &str) {
    case(all, one, 0, async |guest| {
        refused::signature(guest, site).await
    })
    .await;
    case(all, one, 1, async |guest| {
        refused::replay(guest, site).await
    })
    .await;
    case(all, one, 2, async |guest| {
        refused::versions(guest, site, running).await
    })
    .await;
    case(all, one, 3, async |guest| {
        download::resumed(guest, site).await
    })
    .await;
    case(all, one, 4, async |guest| {
        download::damaged(guest, site).await
    })
    .await;
    case(all, one, 5, async |guest| {
        refused::window(guest, site).await
    })
    .await;
    case(all, one, 6, async |guest| {
        download::disk_full(guest, site).await
    })
    .await;
    case(all, one, 7, async |guest| download::ways(guest, site).await).await;
    case(all, one, 8, async |guest| {
        killed::apply(guest, site, running).await
    })
    .await;
}

async fn second_boot(all: &mut Suite<'_>, one: &mut Cluster, site: &mut Site, running: &str) {
    case_without_etcd(all, one, 9, async |guest| {
        automatic::updated(guest, site, running).await
    })
    .await;
    case_without_etcd(all, one, 10, async |guest| {
        automatic::undecided(guest, site, running).await
    })
    .await;
    case(all, one, 11, async |guest| {
        automatic::lock_is_free(guest, site).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_part_of_a_configuration_that_the_image_takes() {
        let key = "-----BEGIN PUBLIC KEY-----\nMCow+/=\n-----END PUBLIC KEY-----\n";
        let plain = r#"{"ignition": {"version": "3.3.0"}, "storage": {"files": []}}"#;
        let config = with_key(plain, key).unwrap();
        assert!(
            config.contains("data:,-----BEGIN%20PUBLIC%20KEY-----%0AMCow+/=%0A"),
            "{config}"
        );
        let report = selvage::appliance::ignition::check(&config);
        assert_eq!(report.errors(), 0, "{report:?}");
    }
}
