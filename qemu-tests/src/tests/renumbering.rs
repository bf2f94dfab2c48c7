//! A host whose subnet somebody else has taken: the agent leases another one, and Docker moves there with its containers.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cluster::Cluster,
    container, facts,
    machine::Machine,
    netns::Netns,
    overlay::{WEB, WEB_PORT},
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &["renumbering::docker_moves_to_the_new_subnet"];

/// A container that Docker starts again by itself.
const STAYS: &str = "stays";
/// From the loss of the subnet to a container in the new one: Docker stops and starts in between.
const MOVED: Duration = Duration::from_secs(180);

/// Runs them.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, docker_moves).await;
}

async fn docker_moves(cluster: &mut Cluster) -> Result<()> {
    let [member, machine] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    container::start_web(machine, STAYS, None, WEB_PORT).await?;
    machine
        .ssh
        .run(&format!("docker update --restart always {STAYS}"))
        .await?;
    let before = facts::ask(machine).await?;

    let taken = before.subnet.to_string().replace('/', "-");
    let key = format!("/coreos.com/network/subnets/{taken}");
    // An address of the underlay that no machine has.
    let lease = r#"{"PublicIP": "10.77.0.200", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "0a:00:00:00:00:c8"}}"#;
    member
        .ssh
        .feed(
            &format!("etcdctl put {key}"),
            lease.as_bytes(),
            Duration::from_secs(60),
        )
        .await?;
    let moved = wait::until("Docker in another subnet", MOVED, || async {
        let now = facts::ask(machine).await?;
        ensure!(
            now.subnet != before.subnet,
            "{}: the subnet is still {}",
            machine.name(),
            now.subnet
        );
        ensure!(
            now.docker_bridge.trunc() == now.subnet,
            "{}: Docker is on {} and not in {}",
            machine.name(),
            now.docker_bridge,
            now.subnet
        );
        let container = stays(machine).await?;
        let address = container.interface.v4.context("no IPv4 address")?;
        ensure!(
            now.subnet.contains(&address.addr()),
            "{}: the container is at {address} and not in {}",
            machine.name(),
            now.subnet
        );
        Ok(container)
    })
    .await;
    let talked = match &moved {
        Ok(container) => talk(member, container).await,
        Err(_) => Ok(()),
    };
    // Whatever came of it, the next case finds an etcd and a Docker without our guests.
    member.ssh.run(&format!("etcdctl del {key}")).await?;
    machine
        .ssh
        .run(&format!("docker rm -f {STAYS} && docker start {WEB}"))
        .await?;
    moved.and(talked)
}

async fn stays(machine: &Machine) -> Result<Netns<'_>> {
    let said = machine
        .ssh
        .run(&format!("docker inspect -f '{{{{.State.Pid}}}}' {STAYS}"))
        .await?;
    let process = said
        .parse()
        .ok()
        .filter(|process| *process != 0)
        .with_context(|| format!("{}: {STAYS} does not run", machine.name()))?;
    Netns::of(machine, process).await
}

/// The container in the new subnet reaches the other host's, which sees its new address.
async fn talk(member: &Machine, container: &Netns<'_>) -> Result<()> {
    let server = container::address(member, WEB).await?;
    let own = container.interface.v4.map(|net| IpAddr::from(net.addr()));
    wait::until("the peer", Duration::from_secs(60), || async {
        let seen = container
            .seen_by(SocketAddr::new(server.into(), WEB_PORT))
            .await?;
        ensure!(Some(seen) == own, "the peer saw {seen} instead of {own:?}");
        Ok(())
    })
    .await
}
