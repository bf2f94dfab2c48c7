//! A configuration that asks for what is not there: the machine boots, and says so.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Ask, ask, look_at};
use crate::{cluster::Cluster, machine::Machine, wait};

/// Its case.
pub(super) const CASE: &str = "configs::what_is_not_there_is_told";
/// Modelled on flatcar/flatcar-docs docs/setup/customization/configuring-date-and-timezone.md (ntpd),
/// docs/setup/systemd/drop-in-units.md (locksmithd), docs/setup/releases/update-strategies.md (update-engine),
/// docs/setup/systemd/environment-variables.md (what needs another unit), CoreOS's fleet; coreos/fedora-coreos-docs
/// modules/ROOT/pages/sysconfig-network-configuration.adoc (the keyfile).
pub(super) const CONFIG: &str = include_str!("../../../configs/told.ign");

/// The unit that tells.
const REPORT: &str = "selvage-ignition-report.service";
/// It waits for the end of the boot itself, and comes last then.
const REPORTED: Duration = Duration::from_secs(240);
/// What it has printed passes journald and the serial line.
const WRITTEN: Duration = Duration::from_secs(60);
/// What it has to name: a unit to be enabled, one with a drop-in as well, a drop-in alone, and what a unit requires.
pub(super) const NAMED: [&str; 4] = [
    "ntpd.service",
    "locksmithd.service",
    "update-engine.service",
    "fleet.service",
];
/// What `check` alone has to name beside: a file that nothing reads.
pub(super) const UNREAD: &str = "NetworkManager";

const ASKS: &[Ask] = &[
    ask(
        "the boot's outcome",
        "systemctl is-system-running",
        "degraded",
    ),
    ask(
        "the report among the failed units",
        "systemctl is-failed selvage-ignition-report.service",
        "failed",
    ),
    ask(
        "no other failed unit",
        "systemctl list-units --failed --plain --no-legend --no-pager | grep -v selvage-ignition-report.service",
        "",
    ),
    ask(
        "what is there, as asked for",
        "systemctl is-enabled systemd-timesyncd.service; systemctl is-active docker.service",
        "masked\nactive",
    ),
];

/// Waits until the report on this boot is there, good or bad.
///
/// # Errors
/// When it is not there in time.
pub(super) async fn reported(machine: &Machine) -> Result<()> {
    wait::until("the report on the configuration", REPORTED, || async {
        let state = machine
            .ssh
            .run(&format!("systemctl show -P ActiveState {REPORT}"))
            .await?;
        ensure!(
            matches!(&*state, "inactive" | "failed"),
            "{REPORT} is {state}"
        );
        Ok(())
    })
    .await
}

/// Whether the journal and the console name everything. They have it a moment after the unit has ended: journald writes
/// to both.
async fn names_all(machine: &Machine) -> Result<()> {
    let journal = machine
        .ssh
        .run(&format!("sudo journalctl -b -q -o cat -u {REPORT}"))
        .await?;
    let console = machine.console.text();
    for (place, text) in [("report's journal", journal), ("console", console)] {
        let missing: Vec<_> = NAMED.iter().filter(|name| !text.contains(**name)).collect();
        ensure!(missing.is_empty(), "the {place} does not name {missing:?}");
    }
    Ok(())
}

/// Looks at a machine that has booted with [`CONFIG`].
pub(super) async fn is_told(cluster: &mut Cluster) -> Result<()> {
    let machine = cluster.machines.first_mut().context("no machine")?;
    reported(machine).await?;
    let mut wrong = Vec::new();
    if let Err(error) = look_at(machine, ASKS).await {
        wrong.push(format!("{error:#}"));
    }
    if let Err(error) = wait::until("the report's words", WRITTEN, || names_all(machine)).await {
        wrong.push(format!("{error:#}"));
    }
    // The report's failure is wanted, and told on the console as any other; nothing else is.
    for hit in machine.console.check()? {
        if !hit.line.contains(REPORT) && !NAMED.iter().any(|name| hit.line.contains(name)) {
            wrong.push(format!("- on the console: {}: {}", hit.meaning, hit.line));
        }
    }
    ensure!(wrong.is_empty(), "{}: {}", machine.name(), wrong.join("\n"));
    Ok(())
}
