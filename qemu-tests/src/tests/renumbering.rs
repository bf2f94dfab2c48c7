//! A host whose subnet somebody else has taken: the agent leases another one, and Docker moves there with its containers,
//! or says why it does not.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::Ipv4Net;

use crate::{
    cluster::Cluster,
    container,
    facts::{self, Facts},
    machine::Machine,
    netns::Netns,
    overlay::{WEB, WEB_PORT},
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "renumbering::docker_moves_to_the_new_subnet",
    "renumbering::docker_that_live_restore_keeps_is_told",
];

/// Those that are too long for every change.
pub(super) const EXTENDED: Names = &["renumbering::docker_that_live_restore_keeps_is_told"];

/// A container that Docker starts again by itself.
const STAYS: &str = "stays";
/// From the loss of the subnet to a container in the new one: Docker stops and starts in between.
const MOVED: Duration = Duration::from_secs(180);
/// What moves Docker, and looks whether that moved its bridge.
const SERVICE: &str = "selvage-docker.service";

/// Runs them.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, docker_moves).await;
    suite.case(CASES[1], cluster, live_restore_keeps).await;
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

    let key = take(member, before.subnet).await?;
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

/// Gives a subnet to a host that does not exist. The key of its lease.
async fn take(member: &Machine, subnet: Ipv4Net) -> Result<String> {
    let name = subnet.to_string().replace('/', "-");
    let key = format!("/coreos.com/network/subnets/{name}");
    // An address of the underlay that no machine has.
    let lease = r#"{"PublicIP": "10.77.0.200", "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "0a:00:00:00:00:c8"}}"#;
    let put = format!("etcdctl put {key}");
    let deadline = Duration::from_secs(60);
    member.ssh.feed(&put, lease.as_bytes(), deadline).await?;
    Ok(key)
}

async fn live_restore_keeps(cluster: &mut Cluster) -> Result<()> {
    const CONFIG: &str = "/etc/docker/daemon.json";
    let [member, machine] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    // As an administrator does it whose containers are not to stop for this.
    machine
        .ssh
        .run(&format!(
            "sudo mkdir -p /etc/docker && echo '{{\"live-restore\": true}}' | sudo tee {CONFIG} && \
             sudo systemctl reload docker.service"
        ))
        .await?;
    container::start_web(machine, STAYS, None, WEB_PORT).await?;
    let before = facts::ask(machine).await?;
    let key = take(member, before.subnet).await?;
    let kept = kept(machine, &before).await;
    let moved = match &kept {
        Ok(()) => released(machine).await,
        Err(_) => Ok(()),
    };
    member.ssh.run(&format!("etcdctl del {key}")).await?;
    machine
        .ssh
        .run(&format!(
            "docker rm -f {STAYS} && sudo rm {CONFIG} && sudo systemctl reload docker.service && docker start {WEB}"
        ))
        .await?;
    kept.and(moved)
}

/// Docker was restarted and changed nothing; everyone whom an administrator asks says so.
async fn kept(machine: &Machine, before: &Facts) -> Result<()> {
    let name = machine.name();
    wait::until("the service to fail", MOVED, || async {
        let state = state(machine).await?;
        ensure!(state == "failed", "{name}: {SERVICE} is {state}");
        Ok(())
    })
    .await?;
    let now = facts::ask(machine).await?;
    ensure!(
        now.subnet != before.subnet && now.docker_bridge == before.docker_bridge,
        "{name}: in {} with Docker on {}, after {} and {}",
        now.subnet,
        now.docker_bridge,
        before.subnet,
        before.docker_bridge
    );
    let address = stays(machine).await?.interface.v4;
    ensure!(
        address.is_some_and(|net| before.subnet.contains(&net.addr())),
        "{name}: the container is at {address:?}"
    );
    for (question, words) in [
        (
            format!("sudo journalctl -b -o cat -u {SERVICE}"),
            &[STAYS, "live-restore", "docker stop $running"][..],
        ),
        (
            "selvage status || test $? = 1".to_owned(),
            &["degraded", "live-restore"],
        ),
        (
            "sudo selvage doctor --no-probes || test $? = 1".to_owned(),
            &[STAYS, "live-restore", "docker stop $running"],
        ),
    ] {
        let said = machine.ssh.run(&question).await?;
        for word in words {
            ensure!(
                said.contains(word),
                "{name}: `{question}` lacks {word:?}:\n{said}"
            );
        }
    }
    Ok(())
}

async fn state(machine: &Machine) -> Result<String> {
    let ask = format!("systemctl show --property=ActiveState --value {SERVICE}");
    machine.ssh.run(&ask).await
}

/// What they all say helps, and the service is not failed any more.
async fn released(machine: &Machine) -> Result<()> {
    let name = machine.name();
    machine
        .ssh
        .run(
            "running=$(docker ps -q); docker stop $running; sudo systemctl restart docker.service; docker start $running",
        )
        .await?;
    wait::until("Docker in the new subnet", MOVED, || async {
        let now = facts::ask(machine).await?;
        ensure!(
            now.docker_bridge.trunc() == now.subnet,
            "{name}: Docker is on {} and not in {}",
            now.docker_bridge,
            now.subnet
        );
        let address = stays(machine).await?.interface.v4;
        ensure!(
            address.is_some_and(|net| now.subnet.contains(&net.addr())),
            "{name}: the container is at {address:?} and not in {}",
            now.subnet
        );
        let state = state(machine).await?;
        ensure!(state == "inactive", "{name}: {SERVICE} is {state}");
        machine.ssh.run("selvage status").await.map(drop)
    })
    .await
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
