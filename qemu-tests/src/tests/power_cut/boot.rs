//! Boots machines from the disks that power cuts leave: each must come up and work.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    Judged, first_disk,
    judge::{Finding, Kind},
    name,
    record::{self, APPLY_DEADLINE, OPTIONS, Recording, one},
    slot::Hash,
};
use crate::{
    cluster::{self, Cluster},
    diagnose, disk,
    host::Host,
    machine::Machine,
    progress::{Progress, clock},
    write_log::WriteLog,
};

/// Boots the disks after `cuts`, which are in the order of the log.
///
/// # Errors
/// Names each cut after which no working machine came up, and why.
pub(super) async fn all(
    host: &Host,
    dir: &Path,
    recording: &Recording,
    log: &WriteLog,
    cuts: &[&Judged],
    progress: &Progress,
) -> Result<()> {
    let mut replay = first_disk(host, dir, log)?;
    let mut bad = Vec::new();
    for (index, judged) in cuts.iter().enumerate() {
        let name = name(judged, log.entries.len());
        progress.step(format!("boot {} of {}: {name}", index + 1, cuts.len()));
        replay.cut(&judged.cut)?;
        let started = Instant::now();
        let dir = dir.join(format!("cut-{}", judged.cut.seed));
        let is_damaged = |finding: &Finding| finding.kind == Kind::BootEntry;
        let updates = judged.findings.iter().any(is_damaged);
        match one_boot(host, &dir, recording, updates, progress).await {
            Ok(version) => progress.line(&format!(
                "    {version} runs, {}",
                clock(started.elapsed()).trim()
            )),
            Err(error) => {
                progress.line(&format!("    {error:#}"));
                bad.push(format!("{name}: {error:#}"));
            }
        }
    }
    let _ = fs::remove_file(dir.join("disk.raw"));
    ensure!(
        bad.is_empty(),
        "{} of {} machines did not come up as they should:\n{}",
        bad.len(),
        cuts.len(),
        bad.join("\n")
    );
    Ok(())
}

/// Boots the disk that was replayed, and gives the version that runs then. A machine that `updates` finds its release
/// server.
async fn one_boot(
    host: &Host,
    dir: &Path,
    recording: &Recording,
    updates: bool,
    progress: &Progress,
) -> Result<String> {
    let nodes = vec![record::node(recording, updates)?];
    let mut prepared = cluster::prepare(host, dir, &nodes, OPTIONS).await?;
    for (spec, ssh) in &mut prepared {
        ssh.key.clone_from(&recording.key);
        // What the machine writes goes to a file of its own: the next cut goes on from this disk.
        let disk = dir.parent().context("no directory")?.join("disk.raw");
        disk::create(Some(&fs::canonicalize(disk)?), &spec.disk).await?;
    }
    let mut cluster = Cluster::start_prepared(host, nodes, prepared)?;
    let mut result = works(one(&mut cluster)?, recording, progress).await;
    if result.is_ok()
        && let Err(error) = entries_are_whole(one(&mut cluster)?, recording, updates).await
    {
        result = Err(error);
    }
    if let Err(error) = &result {
        let reason = format!("{error:#}");
        for line in diagnose::keep(&mut cluster.machines, &dir.join("kept"), &reason).await {
            progress.line(&format!("    {line}"));
        }
    }
    cluster.discard();
    result
}

/// Whether the machine takes commands, finished its boot, runs Docker and knows what it is.
async fn works(
    machine: &mut Machine,
    recording: &Recording,
    progress: &Progress,
) -> Result<String> {
    machine.wait_for_ssh(progress).await?;
    let state = machine.settle(progress).await?;
    if state != "running" {
        let failed = machine
            .ssh
            .run("systemctl --failed --no-legend --plain")
            .await;
        anyhow::bail!("the boot ended {state}: {}", failed.unwrap_or_default());
    }
    let docker = machine
        .ssh
        .run("sudo docker info --format '{{.ServerVersion}}'")
        .await?;
    ensure!(!docker.is_empty(), "Docker does not say its version");
    // 1 and 2 are states that a machine may be in.
    let status = machine
        .ssh
        .run("sudo selvage update status --json; [ $? -le 2 ]")
        .await?;
    let status: Value = serde_json::from_str(&status)
        .with_context(|| format!("the state of updates is no JSON: {status}"))?;
    let running = status["running"].as_str().unwrap_or_default().to_owned();
    ensure!(
        recording.versions.contains(&running),
        "version {running:?} runs"
    );
    let entries = status["boot_entries"].as_array().map_or(0, Vec::len);
    ensure!(
        (1..=2).contains(&entries),
        "{entries} boot entries: {status}"
    );
    let hits = machine.console.check()?;
    let said: Vec<_> = hits
        .iter()
        .map(|hit| format!("{}: {}", hit.meaning, hit.line))
        .collect();
    ensure!(
        said.is_empty(),
        "bad messages on the console: {}",
        said.join("; ")
    );
    Ok(running)
}

/// Whether no boot entry is left that cannot be started, after an update where the power cut has left one.
async fn entries_are_whole(machine: &Machine, recording: &Recording, updates: bool) -> Result<()> {
    if updates {
        machine
            .ssh
            .feed("sudo selvage update apply", &[], APPLY_DEADLINE)
            .await?;
    }
    let sums = machine
        .ssh
        .run("sudo sh -c 'sha256sum /efi/EFI/Linux/*.efi'")
        .await?;
    let is_known = |line: &str| {
        let known = recording.known.keys().map(hex);
        known.into_iter().any(|hash| line.starts_with(&hash))
    };
    let bad: Vec<_> = sums.lines().filter(|line| !is_known(line)).collect();
    ensure!(
        bad.is_empty(),
        "boot entries that are not whole stay: {}",
        bad.join("; ")
    );
    if updates {
        let next = recording.versions.last().cloned().unwrap_or_default();
        ensure!(
            sums.contains(&next),
            "after an update there is no entry of {next}: {sums}"
        );
    }
    Ok(())
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
