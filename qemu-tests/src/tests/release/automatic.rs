//! The update that nobody touches: the timer checks, downloads, installs, takes the fleet's lock, drains and reboots.
//! And etcd does not come up with the new version, until somebody starts it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    guest::{Guest, blessed},
    refused,
    site::Site,
};
use crate::wait;

/// From the timer's start to the reboot, on a guest that computes slowly.
pub(super) const UPDATE: Duration = Duration::from_secs(900);
/// An undecided check takes two minutes after the last change, and is repeated two minutes later.
const JUDGEMENT: Duration = Duration::from_secs(900);

/// Soon and often.
const TIMER: &str =
    "[Timer]\nOnBootSec=\nOnActiveSec=1s\nOnUnitInactiveSec=20s\nRandomizedDelaySec=0\n";
/// Runs under the lock, before the reboot. Without etcd, what publishes the network config there would fail and start
/// for ever, and the boot check would not say before its end that nothing changes any more.
const DRAIN: &str = "#!/bin/sh\necho \"$SELVAGE_VERSION\" >/var/lib/drained\n\
    exec systemctl disable etcd.service selvage-network.service\n";

/// Lets the timer do it: outside of its window, as the version is critical.
pub(super) async fn begin(guest: Guest<'_>, site: &mut Site) -> Result<()> {
    guest.forget().await?;
    site.publish(|release| release["severity"] = "critical".into())
        .await?;
    refused::closed_window(guest).await?;
    let hook = "/etc/selvage/drain.d/50-etcd";
    guest.write(hook, DRAIN.as_bytes()).await?;
    let timer = "/etc/systemd/system/selvage-update.timer.d/50-often.conf";
    guest.write(timer, TIMER.as_bytes()).await?;
    site.asked()?;
    guest
        .root("systemctl daemon-reload; systemctl restart selvage-update.timer")
        .await
        .map(drop)
}

/// The new version runs, and the way there was the documented one.
pub(super) async fn updated(guest: Guest<'_>, site: &mut Site, former: &str) -> Result<()> {
    let next = site.version()?.to_owned();
    let running = guest
        .root(". /usr/lib/os-release; echo $IMAGE_VERSION")
        .await?;
    ensure!(running == next, "{running} runs, not {next}");
    let tried = format!("selvage_{next}+2-1.efi");
    guest.expect_entries(&[blessed(former), tried]).await?;
    ensure!(site.downloads()? == 3, "not three files were asked for");
    let drained = guest.root("cat /var/lib/drained").await?;
    ensure!(drained == next, "drained for {drained:?}");
    let before = guest
        .root("journalctl -q -o cat -b -1 -u selvage-update.service")
        .await?;
    let said = format!("rebooting into version {next}");
    ensure!(
        before.contains(&said),
        "no {said:?} in the journal: {before}"
    );
    Ok(())
}

/// Without etcd the version is not condemned; with it, it is blessed.
pub(super) async fn undecided(guest: Guest<'_>, site: &Site, former: &str) -> Result<()> {
    let next = site.version()?.to_owned();
    let boot = guest.root("cat /proc/sys/kernel/random/boot_id").await?;
    wait::until("the boot check's finding", JUDGEMENT, || async {
        let status = guest.status().await?;
        let finding = &status["pending"]["finding"];
        ensure!(!finding.is_null(), "pending: {}", status["pending"]);
        ensure!(
            finding["bad"] == false && finding["code"] == "agent",
            "the finding is {finding}"
        );
        Ok(())
    })
    .await?;
    let tried = format!("selvage_{next}+2-1.efi");
    guest.expect_entries(&[blessed(former), tried]).await?;
    let holders = "etcdctl get --keys-only --prefix /selvage/fleet/default/holders/";
    guest.root("systemctl enable --now etcd.service").await?;
    let held = guest.root(holders).await?;
    ensure!(
        !held.is_empty(),
        "the lock was given back before the version was blessed"
    );
    wait::until("the version is blessed", JUDGEMENT, || async {
        guest
            .expect_entries(&[blessed(former), blessed(&next)])
            .await
    })
    .await?;
    let now = guest.root("cat /proc/sys/kernel/random/boot_id").await?;
    ensure!(boot == now, "the machine rebooted meanwhile");
    let status = guest.status().await?;
    let failed = status["failed"].as_array().map(Vec::len);
    ensure!(status["blessed"] == true && failed == Some(0), "{status}");
    Ok(())
}

/// The lock was taken once and given back once. Its history is read afterwards: nothing is missed between two looks.
pub(super) async fn lock_is_free(guest: Guest<'_>, site: &Site) -> Result<()> {
    let holders = "/selvage/fleet/default/holders/";
    wait::until("the lock is free", Duration::from_secs(180), || async {
        let held = guest
            .root(&format!("etcdctl get --prefix {holders}"))
            .await?;
        ensure!(held.is_empty(), "{held}");
        Ok(())
    })
    .await?;
    let history = guest
        .root(&format!(
            "timeout 10 etcdctl watch --rev 1 --prefix {holders} || true"
        ))
        .await?;
    let events: Vec<_> = history
        .lines()
        .filter(|line| matches!(*line, "PUT" | "DELETE"))
        .collect();
    let is_once = matches!(events[..], [.., "DELETE"])
        && events.iter().filter(|event| **event == "DELETE").count() == 1
        && events.len() > 1;
    ensure!(is_once, "the history of the lock is {history}");
    let version = format!("\"version\":\"{}\"", site.version()?);
    ensure!(history.contains(&version), "no {version} in {history}");
    Ok(())
}
