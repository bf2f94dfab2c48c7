//! Machines of clouds: SMBIOS says which one, and its metadata service is where it is there. Nothing else tells the image
//! what it runs on. The services demand of a request what the providers' documentation says they do.
//!
//! Each provider's machines, and what they find, are in a file below this one.

mod azure;
mod drives;
mod services;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::json;

use super::broken_ignition::stops_and_stays;
use crate::{
    cli::Common,
    cluster::{Cluster, Options},
    description,
    drive::Drive,
    host::Host,
    machine::Machine,
    progress::Progress,
    serve::{self, Notes, demands::Demands},
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names = &[
    "platforms::ec2_with_tokens_only",
    "platforms::gce_with_its_header",
    "platforms::digitalocean_by_http",
    "platforms::digitalocean_cloud_config_is_refused_with_words",
    "platforms::hetzner_by_the_bridge",
    "platforms::credential_counts_more_than_the_platform",
    "platforms::cloud_config_is_refused_with_words",
    "platforms::azure_by_imds",
    "platforms::azure_by_the_cd",
    "platforms::openstack_by_http",
    "platforms::openstack_by_drive",
    "platforms::openstack_by_both_at_once",
    "platforms::proxmox_by_its_drive",
    "platforms::proxmox_beside_its_own_cloud_config",
    "platforms::config_on_a_labelled_cd",
];

/// The machines of all providers, in the order of their cases.
const PROVIDERS: &[&[Cloud]] = &[services::CLOUDS, azure::CLOUDS, drives::CLOUDS];

/// The address that the machine gets, which its platform tells as well.
const ADDRESS: &str = "172.16.0.15";

/// Paths and contents.
type Files = Vec<(String, Vec<u8>)>;

/// A machine.
struct Cloud {
    case: &'static str,
    name: &'static str,
    smbios: &'static [&'static str],
    /// By the public key of whoever logs in.
    given: fn(&str) -> Result<Given>,
    /// Whether its disk is a SATA one.
    sata: bool,
    ends: End,
}

/// What a machine finds.
#[derive(Default)]
struct Given {
    /// At the address of metadata services.
    served: Files,
    /// At Azure's host.
    azure_host: Files,
    drive: Option<Drive>,
}

/// What its first boot comes to.
enum End {
    /// It stops, and the console says why: all of these.
    Stops(&'static [&'static str]),
    Up(Up),
}

/// A machine that is up.
struct Up {
    /// Lines of `selvage metadata show`.
    shows: &'static [&'static str],
    /// Commands, run by `core`, and what they print.
    prints: &'static [(&'static str, &'static str)],
    /// What it has reported to Azure's host: parts of one report. Empty: nothing.
    reports: &'static [&'static str],
}

/// Where the metadata are from, for [`Up::shows`].
const BY_HTTP: &str = "source: http://169.254.169.254";

fn files(files: &[(&str, String)]) -> Files {
    let files = files.iter();
    files
        .map(|(name, text)| ((*name).to_owned(), text.clone().into_bytes()))
        .collect()
}

/// These files at the address of metadata services, and what is demanded of who asks for them.
fn served(demands: &Demands, contents: &[(&str, String)]) -> Result<Given> {
    let mut served = files(contents);
    served.push(demands.file()?);
    Ok(Given {
        served,
        ..Given::default()
    })
}

/// A config without a key: whoever logs in shows that the platform's is there.
fn config(path: &str) -> String {
    json!({
        "ignition": {"version": "3.3.0"},
        "storage": {"files": [{"path": path}]},
    })
    .to_string()
}

fn with_key(public_key: &str, path: &str) -> String {
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [public_key]}]},
        "storage": {"files": [{"path": path}]},
    })
    .to_string()
}

/// Boots what the wanted cases need, two at a time, and runs them.
pub(super) async fn run(suite: &mut Suite<'_>, host: &Host, common: &Common, dir: &Path) {
    let wanted: Vec<&Cloud> = (PROVIDERS.iter().copied().flatten())
        .filter(|cloud| suite.wants(cloud.case))
        .collect();
    let mut result = Ok(());
    for pair in wanted.chunks(2) {
        let names: Vec<_> = pair.iter().map(|cloud| cloud.name).collect();
        let step = format!("boot machines of clouds ({})", names.join(", "));
        suite.progress.step(step);
        let starting = pair.iter().map(|cloud| start(cloud, host, common, dir));
        match try_join_all(starting).await {
            Err(error) => result = Err(error),
            Ok(started) => {
                for (cloud, mut cluster) in pair.iter().zip(started) {
                    let progress = suite.progress;
                    suite
                        .case(cloud.case, &mut cluster, async |cluster| {
                            let [machine] = &mut cluster.machines[..] else {
                                bail!("not one machine")
                            };
                            judge(cloud, machine, progress).await
                        })
                        .await;
                    cluster.discard();
                }
            }
        }
    }
    suite.close(CASES, result.as_ref().err());
}

async fn start(cloud: &Cloud, host: &Host, common: &Common, dir: &Path) -> Result<Cluster> {
    let mut nodes = description::nodes(&common.cluster, 1, &host.public_key)?;
    for node in &mut nodes {
        let given = (cloud.given)(&host.public_key)?;
        node.name = cloud.name.into();
        node.served = given.served;
        node.azure_host = given.azure_host;
        node.drive = given.drive;
    }
    let options = Options {
        alone: true,
        exit_on_reset: matches!(cloud.ends, End::Stops(_)),
        sata: cloud.sata,
        cloud: Some(cloud.smbios),
        ..Options::default()
    };
    Cluster::start(host, &dir.join(cloud.name), nodes, options).await
}

async fn judge(cloud: &Cloud, machine: &mut Machine, progress: &Progress) -> Result<()> {
    let up = match &cloud.ends {
        End::Stops(causes) => return stops_and_stays(machine, causes).await,
        End::Up(up) => up,
    };
    machine.wait_for_ssh(progress).await?;
    let state = machine.settle(progress).await?;
    let failed = "systemctl list-units --failed --plain --no-legend --no-pager";
    let failed = machine.ssh.run(failed).await?;
    ensure!(state == "running", "the boot is {state:?}: {failed}");
    let mut wrong = looked_at(up, machine).await?;
    wrong.extend(refused(machine)?);
    wrong.extend(not_reported(up, machine)?);
    ensure!(
        wrong.is_empty(),
        "{}: not as it should be:\n{}",
        machine.name(),
        wrong.join("\n")
    );
    Ok(())
}

/// What is not as it should be in the machine.
async fn looked_at(up: &Up, machine: &Machine) -> Result<Vec<String>> {
    let shown = machine.ssh.run("sudo selvage metadata show").await?;
    let has = |line: &&&str| shown.lines().any(|shown| shown.trim() == **line);
    let missing: Vec<_> = up.shows.iter().filter(|line| !has(line)).collect();
    let mut wrong = Vec::new();
    if !missing.is_empty() {
        wrong.push(format!(
            "- `selvage metadata show` has no {missing:?}: {shown}"
        ));
    }
    for (command, expected) in up.prints {
        // With what it complains about; that something is not there is an answer, too.
        let asked = format!("( {command}\n) 2>&1 || true");
        let seen = machine.ssh.run(&asked).await;
        let seen = seen.unwrap_or_else(|error| format!("{error:#}"));
        if seen.trim() != *expected {
            wrong.push(format!("- {command}: {seen:?} instead of {expected:?}"));
        }
    }
    Ok(wrong)
}

/// What was asked in the directory of the machine.
fn asked(machine: &Machine, served: &str) -> Result<Vec<serve::Asked>> {
    let dir = machine.spec.disk.parent().context("no directory")?;
    Notes::new(&serve::notes_of(&dir.join(served))).asked()
}

/// Requests that were not made as the provider demands it.
fn refused(machine: &Machine) -> Result<Vec<String>> {
    let mut refused = asked(machine, "served")?;
    refused.extend(asked(machine, "azure-host")?);
    refused.retain(|asked| matches!(asked.status, 400 | 401 | 403));
    let lines = refused.iter().map(|asked| {
        let serve::Asked { method, target, .. } = asked;
        format!("- the service refused {method} {target}: {}", asked.status)
    });
    Ok(lines.collect())
}

/// What is missing of the report to Azure's host.
fn not_reported(up: &Up, machine: &Machine) -> Result<Option<String>> {
    if up.reports.is_empty() {
        return Ok(None);
    }
    let mut asked = asked(machine, "azure-host")?;
    let is_report = |asked: &serve::Asked| {
        asked.method == "POST" && up.reports.iter().all(|part| asked.body.contains(part))
    };
    if asked.iter().filter(|asked| is_report(asked)).count() == 1 {
        return Ok(None);
    }
    asked.retain(|asked| asked.status != 404);
    let reports = up.reports;
    Ok(Some(format!(
        "- not one report with {reports:?} to Azure's host, which was asked: {asked:?}"
    )))
}

#[cfg(test)]
mod tests;
