//! A machine where the agent is not enabled: Docker is as its makers left it.

use anyhow::{Result, ensure};

use crate::{
    cluster::Cluster,
    suite::{Names, Suite},
};

/// The cases here.
pub(super) const CASES: Names =
    &["plain_docker::starts_on_its_own_bridge_where_the_agent_is_not_enabled"];

/// Runs them; `state` is systemd's word on the boot.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster, state: &str) {
    suite
        .case(CASES[0], cluster, async |cluster| {
            own_bridge(cluster, state).await
        })
        .await;
}

async fn own_bridge(cluster: &mut Cluster, state: &str) -> Result<()> {
    let machine = &cluster.machines[0];
    ensure!(state == "running", "{}: {state}", machine.name());
    let docker = machine
        .ssh
        .run("systemctl is-active docker.service")
        .await?;
    ensure!(docker == "active", "Docker is {docker}");
    let agent = machine
        .ssh
        .run("systemctl show --value -p ActiveState selvage.service")
        .await?;
    ensure!(agent == "inactive", "the agent is {agent}");
    // Docker's own default, daemon/libnetwork ipamutils: the first of its predefined networks.
    let bridge = machine.ssh.run("ip -4 -o addr show dev docker0").await?;
    ensure!(
        bridge.contains("172.17.0.1/16"),
        "Docker's bridge is not its own: {bridge}"
    );
    let devices = machine.ssh.run("ip -o link").await?;
    ensure!(
        !devices.contains("flannel"),
        "there is an overlay device:\n{devices}"
    );
    Ok(())
}
