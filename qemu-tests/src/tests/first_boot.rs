//! The first boot of two machines from their Ignition configurations.

use anyhow::{Result, ensure};

use crate::{
    cluster::Cluster,
    facts,
    machine::Machine,
    suite::{Names, Suite},
    timeline,
};

/// The cases here.
pub(super) const CASES: Names = &[
    // First, for whatever stands on the console by now is the boot's.
    "first_boot::leaves_no_failed_unit_and_a_clean_console",
    "first_boot::provisions",
    "first_boot::starts_units_in_order",
    "first_boot::docker_bridge_lies_in_the_leased_subnet",
    "first_boot::nodes_know_each_other",
];

/// Runs them; `states` is systemd's word on each boot.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster, states: &[String]) {
    suite
        .case(CASES[0], cluster, async |cluster| {
            no_failed_unit(cluster, states).await
        })
        .await;
    suite.case(CASES[1], cluster, provisions).await;
    suite.case(CASES[2], cluster, units_in_order).await;
    suite.case(CASES[3], cluster, bridge_in_subnet).await;
    suite.case(CASES[4], cluster, nodes_know_each_other).await;
}

async fn provisions(cluster: &mut Cluster) -> Result<()> {
    for (node, machine) in cluster.nodes.iter().zip(&cluster.machines) {
        let name = machine.ssh.run("cat /proc/sys/kernel/hostname").await?;
        ensure!(name == node.name, "{}: host name is {name:?}", node.name);
        // Written by Ignition, and by nothing else.
        machine
            .ssh
            .run("test -s /etc/selvage/agent.toml && sudo test -s /etc/.ignition-result.json")
            .await?;
        let addresses = machine.ssh.run("ip -4 -o addr show").await?;
        ensure!(
            addresses.contains(&node.underlay.to_string()),
            "{}: no {}:\n{addresses}",
            node.name,
            node.underlay
        );
        ensure!(
            timeline::ask(machine).await?.ignition.is_some(),
            "{}: Ignition left no trace in the journal",
            node.name
        );
    }
    Ok(())
}

/// Fails when systemd calls a boot anything but `running`.
///
/// # Errors
/// Names the failed units.
pub(super) async fn no_failed_unit(cluster: &Cluster, states: &[String]) -> Result<()> {
    for (machine, state) in cluster.machines.iter().zip(states) {
        ended_well(machine, state).await?;
    }
    Ok(())
}

/// The same for one machine.
///
/// # Errors
/// Names the failed units.
pub(super) async fn ended_well(machine: &Machine, state: &str) -> Result<()> {
    let failed = machine
        .ssh
        .run("systemctl list-units --failed --plain --no-legend --no-pager")
        .await?;
    ensure!(
        state == "running" && failed.is_empty(),
        "{}: {state}; failed units: {failed}",
        machine.name()
    );
    Ok(())
}

/// Fails unless each step from the lease to Docker came after the one before it, on every machine.
///
/// # Errors
/// Names the machine and the two steps.
pub(super) async fn units_in_order(cluster: &mut Cluster) -> Result<()> {
    for machine in &cluster.machines {
        let timeline = timeline::ask(machine).await?;
        timeline
            .check_order()
            .map_err(|error| error.context(format!("{}: wrong order", machine.name())))?;
    }
    Ok(())
}

async fn bridge_in_subnet(cluster: &mut Cluster) -> Result<()> {
    let mut subnets = Vec::new();
    for machine in &cluster.machines {
        let facts = facts::ask(machine).await?;
        let (bridge, subnet) = (facts.docker_bridge, facts.subnet);
        ensure!(
            bridge.trunc() == subnet,
            "{}: {bridge} is not {subnet}",
            machine.name()
        );
        ensure!(
            facts.network.contains(&subnet),
            "{}: {subnet} is outside {}",
            machine.name(),
            facts.network
        );
        ensure!(
            facts.docker_mtu == facts.mtu,
            "{}: MTU {} instead of {}",
            machine.name(),
            facts.docker_mtu,
            facts.mtu
        );
        ensure!(!subnets.contains(&subnet), "two nodes have {subnet}");
        subnets.push(subnet);
    }
    Ok(())
}

async fn nodes_know_each_other(cluster: &mut Cluster) -> Result<()> {
    for (index, machine) in cluster.machines.iter().enumerate() {
        let mut others: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| node.underlay.addr())
            .collect();
        others.remove(index);
        let peers = facts::ask(machine).await?.peers;
        ensure!(
            peers == others,
            "{}: peers are {peers:?} instead of {others:?}",
            machine.name()
        );
    }
    Ok(())
}
