//! Containers on two hosts, across the overlay.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cluster::Cluster,
    container,
    overlay::{WEB, addresses, cross},
    suite::{Names, Suite},
    wait,
};

/// The cases here.
pub(super) const CASES: Names = &[
    "overlay::containers_ping_each_other",
    "overlay::http_server_sees_the_clients_own_address",
    "overlay::outside_sees_the_hosts_address",
    "overlay::full_size_packets_cross_and_larger_ones_do_not",
    "overlay::follows_a_slow_lossy_and_cut_underlay",
    "overlay::docker_outlives_the_agent",
];
/// Port of the web server in a host's own network.
const HOST_PORT: u16 = 8080;

/// Runs them.
pub(super) async fn run(suite: &mut Suite<'_>, cluster: &mut Cluster) {
    suite.case(CASES[0], cluster, ping).await;
    suite.case(CASES[1], cluster, own_address).await;
    suite.case(CASES[2], cluster, masquerade_to_outside).await;
    suite.case(CASES[3], cluster, full_size_packets).await;
    suite.case(CASES[4], cluster, bad_underlay).await;
    suite
        .case(CASES[5], cluster, docker_outlives_the_agent)
        .await;
}

/// Fails unless containers reach each other in both directions, without masquerading.
///
/// # Errors
/// Names the direction.
pub(super) async fn talk(cluster: &Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    for (from, to) in [(a, b), (b, a)] {
        let crossing = cross(from, to).await?;
        ensure!(
            crossing.is_good(),
            "{} to {}: {crossing:?}",
            from.name(),
            to.name()
        );
    }
    Ok(())
}

async fn ping(cluster: &mut Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    for (from, to) in [(a, b), (b, a)] {
        let (_, target) = addresses(from, to).await?;
        let ping = container::ping(from, WEB, target, 10).await?;
        ensure!(
            ping.loss_percent == 0.0,
            "{} to {} at {target}: {ping:?}",
            from.name(),
            to.name()
        );
    }
    Ok(())
}

async fn own_address(cluster: &mut Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    for (from, to) in [(a, b), (b, a)] {
        let crossing = cross(from, to).await?;
        let (seen, own) = (crossing.seen, crossing.client);
        ensure!(
            seen == own.to_string(),
            "{}: server saw {seen} instead of {own}",
            to.name()
        );
    }
    Ok(())
}

/// A server in the other host's own network is outside the overlay: it must see the first host, not the container.
async fn masquerade_to_outside(cluster: &mut Cluster) -> Result<()> {
    let [inside, outside] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let [client, server] = &cluster.nodes[..] else {
        anyhow::bail!("not two nodes")
    };
    container::start_web(outside, "outside", Some("host"), HOST_PORT).await?;
    let address = SocketAddrV4::new(server.underlay.addr(), HOST_PORT);
    let seen = wait::until(
        "the web server in the host's network",
        Duration::from_secs(60),
        || container::client_seen_by(inside, WEB, address),
    )
    .await;
    outside.ssh.run("docker rm -f outside").await?;
    let (seen, host) = (seen?, client.underlay.addr().to_string());
    ensure!(
        seen == host,
        "{}: server outside saw {seen} instead of {host}",
        inside.name()
    );
    Ok(())
}

/// The largest packet that fits into the device's MTU crosses whole: 28 bytes are IPv4 and ICMP headers (RFC 792).
async fn full_size_packets(cluster: &mut Cluster) -> Result<()> {
    let [a, b] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let (_, target) = addresses(a, b).await?;
    let mtu = crate::facts::ask(a).await?.mtu;
    let ping = |size: u32| format!("sudo ping -q -M do -c 3 -i 0.2 -W 10 -s {size} {target}");
    a.ssh
        .run(&ping(mtu - 28))
        .await
        .with_context(|| format!("{}: {mtu} bytes do not cross", a.name()))?;
    ensure!(
        a.ssh.run(&ping(mtu - 27)).await.is_err(),
        "{}: {} bytes cross whole",
        a.name(),
        mtu + 1
    );
    Ok(())
}

/// Cuts, slows and thins the underlay, and sees each of them on the overlay, so that it is really the underlay that
/// carries it; then all is as before.
async fn bad_underlay(cluster: &mut Cluster) -> Result<()> {
    let switch = cluster
        .switch
        .as_ref()
        .context("this cluster's underlay is not ours")?;
    let [a, b] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let (_, target) = addresses(a, b).await?;

    switch.set_delay(Duration::from_millis(300));
    let slow = container::ping(a, WEB, target, 4).await;
    switch.set_delay(Duration::ZERO);
    let slow = slow?;
    ensure!(
        slow.rtt_ms.is_some_and(|rtt| rtt >= 600.0),
        "{}: twice 300 ms of delay: {slow:?}",
        a.name()
    );

    switch.set_loss(0.3, 1);
    let thin = container::ping(a, WEB, target, 20).await;
    switch.set_loss(0.0, 0);
    let thin = thin?;
    ensure!(
        (5.0..100.0).contains(&thin.loss_percent),
        "{}: a third of the frames lost each way: {thin:?}",
        a.name()
    );

    let cut_before: u64 = switch.counters().iter().map(|port| port.cut).sum();
    switch.partition(&[0, 1]);
    let cut = a
        .ssh
        .run(&format!("docker exec {WEB} ping -c 2 -W 2 {target}"))
        .await;
    switch.partition(&[]);
    ensure!(
        cut.is_err(),
        "{}: packets cross an underlay that is cut",
        a.name()
    );
    let cut_now: u64 = switch.counters().iter().map(|port| port.cut).sum();
    ensure!(
        cut_now > cut_before,
        "the switch counted no frame that it cut"
    );

    wait::until(
        "the overlay after the underlay is whole again",
        Duration::from_secs(60),
        || async {
            let healed = container::ping(a, WEB, target, 3).await?;
            ensure!(healed.loss_percent == 0.0, "{}: {healed:?}", a.name());
            Ok(())
        },
    )
    .await
}

/// Whether the agent is killed, restarted or stopped is none of the containers' business.
async fn docker_outlives_the_agent(cluster: &mut Cluster) -> Result<()> {
    let [machine, _] = &cluster.machines[..] else {
        anyhow::bail!("not two machines")
    };
    let lives = format!(
        "systemctl show -P MainPID docker && docker inspect -f '{{{{.State.StartedAt}}}}' {WEB}"
    );
    let agent = "systemctl is-active --quiet selvage && systemctl show -P MainPID selvage";
    let before = machine.ssh.run(&lives).await?;
    for end in [
        "sudo systemctl kill --signal=KILL selvage",
        "sudo systemctl restart selvage",
        "sudo systemctl stop selvage && sudo systemctl start selvage",
    ] {
        let old = machine.ssh.run(agent).await?;
        machine.ssh.run(end).await?;
        wait::until("another agent", Duration::from_secs(60), || async {
            let new = machine.ssh.run(agent).await?;
            ensure!(new != old, "the agent still has process id {}", old.trim());
            Ok(())
        })
        .await?;
        let after = machine.ssh.run(&lives).await?;
        ensure!(
            after == before,
            "{}: after `{end}` Docker and its container are {after:?}, before {before:?}",
            machine.name()
        );
    }
    talk(cluster).await
}
