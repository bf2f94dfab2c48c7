//! A machine that boots while etcd is away: it waits, says for what, and goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{overlay, second_boot};
use crate::{
    cluster::Cluster,
    facts::Facts,
    machine::Machine,
    overlay::WEB,
    suite::{Names, Suite},
    timeline, wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "etcd_absent::docker_waits_and_status_says_why",
    "etcd_absent::all_comes_up_when_etcd_appears",
];

/// Stops etcd on the first machine, boots the second one again, and runs the cases.
///
/// # Errors
/// When the machine does not come back, or etcd cannot be stopped.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    before: &[Facts],
) -> Result<()> {
    suite
        .progress
        .step("boot of the second machine without etcd");
    let [member, machine] = &mut cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    member.ssh.run("sudo systemctl stop etcd").await?;
    machine.reboot().await?;
    machine.wait_for_ssh(suite.progress).await?;
    suite.case(CASES[0], cluster, waits).await;
    let progress = suite.progress;
    suite
        .case(CASES[1], cluster, async |cluster| {
            let [member, machine] = &cluster.machines[..] else {
                anyhow::bail!("not two machines")
            };
            member.ssh.run("sudo systemctl start etcd").await?;
            let state = machine.settle(progress).await?;
            ensure!(state == "running", "{}: {state}", machine.name());
            comes_up(cluster, before).await
        })
        .await;
    Ok(())
}

/// A unit property.
async fn property(machine: &Machine, unit: &str, name: &str) -> Result<String> {
    machine
        .ssh
        .run(&format!("systemctl show --value -p {name} {unit}"))
        .await
}

async fn waits(cluster: &mut Cluster) -> Result<()> {
    let [_, machine] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let [member, _] = &cluster.nodes[..] else {
        anyhow::bail!("not two nodes")
    };
    let endpoint = format!("http://{}:2379", member.underlay.addr());
    let name = machine.name();
    wait::until(
        "a status that says what is waited for",
        Duration::from_secs(180),
        || async {
            let status = property(machine, "selvage.service", "StatusText").await?;
            ensure!(
                status.starts_with("waiting for etcd"),
                "{name}: STATUS is {status:?}"
            );
            ensure!(
                status.contains(&endpoint),
                "{name}: no {endpoint} in STATUS {status:?}"
            );
            let reason = status
                .split(&endpoint)
                .nth(1)
                .unwrap_or_default()
                .trim_matches([':', ' ']);
            ensure!(!reason.is_empty(), "{name}: no reason in STATUS {status:?}");
            Ok(())
        },
    )
    .await?;
    let docker = property(machine, "docker.service", "ActiveState").await?;
    ensure!(
        docker == "inactive",
        "{name}: Docker is {docker} without a subnet"
    );
    let jobs = machine
        .ssh
        .run("systemctl list-jobs --plain --no-legend --no-pager")
        .await?;
    ensure!(
        jobs.lines().any(|job| job.contains("docker.service")),
        "{name}: Docker does not wait; jobs:\n{jobs}"
    );
    Ok(())
}

async fn comes_up(cluster: &Cluster, before: &[Facts]) -> Result<()> {
    let [_, machine] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    timeline::ask(machine)
        .await?
        .check_order()
        .with_context(|| format!("{}: wrong order", machine.name()))?;
    for unit in ["selvage.service", "docker.service"] {
        let restarts = property(machine, unit, "NRestarts").await?;
        ensure!(
            restarts == "0",
            "{}: {unit} was restarted {restarts} times",
            machine.name()
        );
    }
    second_boot::keeps_identity(cluster, before).await?;
    machine.ssh.run(&format!("docker start {WEB}")).await?;
    overlay::talk(cluster).await
}
