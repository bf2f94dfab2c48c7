//! The second boot of the same machines.

use anyhow::{Context as _, Result, ensure};

use super::{first_boot, overlay};
use crate::{
    cluster::Cluster,
    facts::{self, Facts},
    overlay::WEB,
    suite::{Names, Suite},
    timeline,
};

/// The cases here.
pub(super) const CASES: Names = &[
    // First, for whatever stands on the console by now is the boot's.
    "second_boot::leaves_no_failed_unit_and_a_clean_console",
    "second_boot::does_not_provision_again",
    "second_boot::keeps_subnet_mac_and_machine_id",
    "second_boot::starts_units_in_order",
    "second_boot::containers_talk_again",
];

/// A line by an administrator's hand in a file that Ignition wrote: provisioning again would undo it.
const MARK: &str = "# changed by hand after the first boot";

/// What stood on a machine before the reboot.
#[derive(Debug)]
pub(super) struct Mark {
    boot_id: String,
    /// Checksum of the file in which Ignition says when it provisioned.
    result: String,
}

const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";
const RESULT: &str = "sudo sha256sum /etc/.ignition-result.json";

/// Changes what provisioning again would change back. Call before the reboot.
///
/// # Errors
/// When a machine does not answer.
pub(super) async fn leave_marks(cluster: &Cluster) -> Result<Vec<Mark>> {
    let mut marks = Vec::new();
    for machine in &cluster.machines {
        machine
            .ssh
            .run(&format!(
                "echo '{MARK}' | sudo tee -a /etc/selvage/agent.toml"
            ))
            .await?;
        marks.push(Mark {
            boot_id: machine.ssh.run(BOOT_ID).await?,
            result: machine.ssh.run(RESULT).await?,
        });
    }
    Ok(marks)
}

/// Runs the cases against what was before the reboot.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    states: &[String],
    before: &[Facts],
    marks: &[Mark],
) {
    suite
        .case(CASES[0], cluster, async |cluster| {
            first_boot::no_failed_unit(cluster, states).await
        })
        .await;
    suite
        .case(CASES[1], cluster, async |cluster| {
            does_not_provision(cluster, marks).await
        })
        .await;
    suite
        .case(CASES[2], cluster, async |cluster| {
            keeps_identity(cluster, before).await
        })
        .await;
    suite
        .case(CASES[3], cluster, first_boot::units_in_order)
        .await;
    suite.case(CASES[4], cluster, containers_talk_again).await;
}

async fn does_not_provision(cluster: &Cluster, marks: &[Mark]) -> Result<()> {
    for (machine, mark) in cluster.machines.iter().zip(marks) {
        let name = machine.name();
        ensure!(
            machine.ssh.run(BOOT_ID).await? != mark.boot_id,
            "{name}: this is still the first boot"
        );
        machine
            .ssh
            .run(&format!("grep -qx '{MARK}' /etc/selvage/agent.toml"))
            .await
            .with_context(|| format!("{name}: a change by hand was undone"))?;
        ensure!(
            machine.ssh.run(RESULT).await? == mark.result,
            "{name}: Ignition's result was written again"
        );
        let ran = timeline::ask(machine).await?.ignition;
        ensure!(ran.is_none(), "{name}: an Ignition stage ran at {ran:?}");
    }
    Ok(())
}

/// Fails unless subnet, MAC and machine id are the ones from before.
///
/// # Errors
/// Names the machine and what changed.
pub(super) async fn keeps_identity(cluster: &Cluster, before: &[Facts]) -> Result<()> {
    for (machine, before) in cluster.machines.iter().zip(before) {
        let (name, now) = (machine.name(), facts::ask(machine).await?);
        ensure!(
            now.subnet == before.subnet,
            "{name}: subnet {} became {}",
            before.subnet,
            now.subnet
        );
        ensure!(
            now.overlay_mac == before.overlay_mac,
            "{name}: MAC {} became {}",
            before.overlay_mac,
            now.overlay_mac
        );
        ensure!(
            now.machine_id == before.machine_id,
            "{name}: machine id {} became {}",
            before.machine_id,
            now.machine_id
        );
    }
    Ok(())
}

async fn containers_talk_again(cluster: &mut Cluster) -> Result<()> {
    for machine in &cluster.machines {
        machine.ssh.run(&format!("docker start {WEB}")).await?;
    }
    overlay::talk(cluster).await
}
