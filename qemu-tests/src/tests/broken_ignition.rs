//! A machine whose Ignition configuration is wrong: it says why where somebody looks, and does not boot in circles.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::{
    cluster::Cluster,
    machine::Machine,
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &["broken_ignition::cause_is_on_the_console_and_the_machine_stays"];

/// A file must be named from the root; Ignition checks that before it writes anything.
pub(super) const CONFIG: &str =
    r#"{"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"etc/motd"}]}}"#;
/// What the report on the console begins with.
const REPORT: &str = "Ignition failed:";
/// What Ignition calls this mistake (config/shared/errors, ErrPathRelative).
const CAUSE: &str = "path not absolute";
/// From QEMU's start; this machine shares the host with another one that boots.
const DEADLINE: Duration = Duration::from_secs(300);
/// A machine that reboots on failure would do so well within this time.
const STAYS: Duration = Duration::from_secs(20);

/// Runs them on a machine that ends when it resets.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, cause_is_shown).await;
}

async fn cause_is_shown(cluster: &mut Cluster) -> Result<()> {
    let Some(machine) = cluster.machines.first_mut() else {
        bail!("no machine")
    };
    stops_and_stays(machine, &[CAUSE]).await
}

/// Waits until the machine says why it stops, and looks that it stays there.
///
/// # Errors
/// When it does not say all of `causes`, resets itself, or comes up.
pub(super) async fn stops_and_stays(machine: &mut Machine, causes: &[&str]) -> Result<()> {
    let name = machine.name().to_owned();
    let console = machine.console.path().to_owned();
    wait::until("the cause on the console", DEADLINE, || async {
        let text = crate::console::Console::new(console.clone()).text();
        // What the stages say is on the console beforehand; the report is what somebody reads who comes later.
        let (_, report) = text.split_once(REPORT).unwrap_or_default();
        for cause in causes {
            ensure!(
                report.contains(cause),
                "{name}: the console does not say {cause:?} after {REPORT:?}"
            );
        }
        Ok(())
    })
    .await?;
    let shown = Instant::now();
    while shown.elapsed() < STAYS {
        ensure!(
            machine.is_running(),
            "{name}: the machine reset itself after the failure"
        );
        ensure!(
            machine.ssh.greets().await.is_err(),
            "{name}: the machine came up half provisioned"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // The rules must know this failure when they see it; having seen it, the console is as it should be.
    let hits = machine.console.check()?;
    ensure!(
        hits.iter().any(|hit| hit.fatal),
        "{name}: no console rule finds a failed Ignition: {hits:?}"
    );
    Ok(())
}
