//! One booted cluster, one kind of network after the other: each backend carries containers' packets, in the way that
//! it should and no other, for Docker on one host and a CNI runtime on the other.
//!
//! IPv4 networks connect a Docker container on the first machine with a CNI container on the second; Docker's bridge has
//! no IPv6 address, so where IPv6 is wanted both are CNI containers. A host has one of the two at a time: their bridges
//! would both have the subnet. All cases leave the machines as the next one expects them, whichever that is.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::try_join_all;

use self::table::{NETWORKS, Network};
use super::operator;
use crate::{
    cluster::Cluster,
    facts,
    machine::Machine,
    netns::Netns,
    overlay::{WEB, WEB_PORT},
    pod,
    suite::{Names, Suite},
    switch::capture::{self, Sight},
    wait,
};

mod table;

/// The cases here.
pub(super) const CASES: Names = &{
    let mut names = [""; NETWORKS.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = NETWORKS[index].case;
        index += 1;
    }
    names
};

/// Those that are too long for every change. Most take the same way through the kernel as another one, and the agent's tests
/// try all of them in network namespaces, those with WireGuard in the image's kernel ([`super::image_kernel`]).
pub(super) const EXTENDED: Names = &[
    "networks::vxlan_direct_routing",
    "networks::udp",
    "networks::wireguard_auto_with_psk",
    "networks::wireguard_ipv4_on_another_port",
    "networks::encrypt",
    "networks::host_gw_dual_stack",
    "networks::wireguard_dual_stack",
    "networks::wireguard_ipv6",
    "networks::vxlan_only_ipv6",
];

/// From a new network config to packets that cross as it says.
const PROGRAMMED: Duration = Duration::from_secs(60);

/// Gives the machines what the cases need beyond their boot, and runs them.
///
/// # Errors
/// When a machine cannot be prepared.
pub(super) async fn run(
    suite: &mut Suite<'_>,
    cluster: &mut Cluster,
    archive: &[u8],
    ctr: &Path,
) -> Result<()> {
    if !suite.wants_any(CASES) {
        return Ok(());
    }
    suite.progress.step("switch networks");
    let network = facts::subnet_file(&cluster.machines[0])
        .await?
        .remove("FLANNEL_NETWORK")
        .context("no FLANNEL_NETWORK")?;
    let ctr = fs::read(ctr).with_context(|| format!("failed to read {}", ctr.display()))?;
    prepare(cluster, archive, &ctr).await?;
    for kind in &NETWORKS {
        suite
            .case(kind.case, cluster, async |cluster| {
                kind_of_network(cluster, kind, &network).await
            })
            .await;
    }
    Ok(())
}

/// An IPv6 address on the underlay beside the IPv4 one, which is its end; and the CNI containers' root file system.
async fn prepare(cluster: &Cluster, archive: &[u8], ctr: &[u8]) -> Result<()> {
    let machines = cluster.nodes.iter().zip(&cluster.machines);
    try_join_all(machines.map(|(node, machine)| async move {
        let address = node.underlay.addr();
        machine
            .ssh
            .run(&format!(
                "set -- $(ip -o -4 addr show to {address}) && \
                 sudo ip -6 addr replace fd77::{address}/64 dev \"$2\" nodad"
            ))
            .await?;
        pod::load(machine, archive, ctr).await
    }))
    .await
    .map(drop)
}

async fn kind_of_network(cluster: &mut Cluster, kind: &Network, network: &str) -> Result<()> {
    let [first, second] = &cluster.machines[..] else {
        bail!("not two machines")
    };
    for machine in [first, second] {
        pod::stop(machine).await?;
    }
    publish(cluster, kind, network).await?;
    wait::until("the network's subnet files", PROGRAMMED, || async {
        check_subnet_file(first, kind).await?;
        check_subnet_file(second, kind).await
    })
    .await?;
    without_docker(second).await?;
    let b = pod::start(second).await?;
    let a = if kind.v6 {
        without_docker(first).await?;
        pod::start(first).await?
    } else {
        docker_container(first).await?
    };
    check_interface(&b, kind)?;
    if kind.v6 {
        check_interface(&a, kind)?;
    }
    wait::until("packets cross as they should", PROGRAMMED, || {
        talk(cluster, kind, &a, &b)
    })
    .await?;
    // A Docker that was started on another network keeps its MTU until it is restarted, and the doctor says so.
    let told: &[&str] = if a.interface.mtu > kind.mtu {
        &["docker-subnet"]
    } else {
        &[]
    };
    wait::until(
        "the doctor to say what is so and no more",
        PROGRAMMED,
        || operator::doctor_says(first, told),
    )
    .await?;
    operator::doctor_says(second, &[]).await?;
    if kind.encrypted {
        operator::peers_are_counted(first).await?;
    }
    Ok(())
}

/// Puts a network config into etcd. Agents follow it by themselves while their subnets stay; another address family
/// means other subnets, and a restart.
async fn publish(cluster: &Cluster, kind: &Network, network: &str) -> Result<()> {
    let member = cluster.machines.first().context("no machine")?;
    let config = kind.config(network);
    let before = facts::subnet_file(member).await?;
    member
        .ssh
        .feed(
            "sudo selvage network set -",
            config.as_bytes(),
            Duration::from_secs(60),
        )
        .await
        .with_context(|| format!("network config {config}"))?;
    let same = subnet_keys(kind)
        .into_iter()
        .all(|(key, wanted)| before.contains_key(key) == wanted);
    if same {
        return Ok(());
    }
    let restart = "sudo systemctl restart selvage";
    try_join_all(
        cluster
            .machines
            .iter()
            .map(|machine| machine.ssh.run(restart)),
    )
    .await
    .map(drop)
}

/// The subnets that the subnet file must have, or not have.
fn subnet_keys(kind: &Network) -> [(&'static str, bool); 2] {
    [
        ("FLANNEL_SUBNET", kind.v4),
        ("FLANNEL_IPV6_SUBNET", kind.v6),
    ]
}

async fn check_subnet_file(machine: &Machine, kind: &Network) -> Result<()> {
    let file: HashMap<_, _> = facts::subnet_file(machine).await?;
    let mtu = file.get("FLANNEL_MTU").map_or("none", String::as_str);
    ensure!(
        mtu == kind.mtu.to_string(),
        "{}: FLANNEL_MTU is {mtu} instead of {}",
        machine.name(),
        kind.mtu
    );
    for (key, wanted) in subnet_keys(kind) {
        ensure!(
            file.contains_key(key) == wanted,
            "{}: {key} in {}: {file:?}",
            machine.name(),
            facts::SUBNET_FILE
        );
    }
    Ok(())
}

/// Stops Docker and takes its bridge away, as on a host that never had it.
async fn without_docker(machine: &Machine) -> Result<()> {
    machine
        .ssh
        .run(
            "sudo systemctl stop docker.socket docker.service && \
             { ! ip link show docker0 >/dev/null 2>&1 || sudo ip link delete docker0; }",
        )
        .await
        .map(drop)
}

/// The web server that Docker runs; where an earlier case made the host a CNI host, it is Docker's again.
async fn docker_container(machine: &Machine) -> Result<Netns<'_>> {
    let said = machine
        .ssh
        .run(&format!(
            "{{ systemctl is-active --quiet docker || ! ip link show cni0 >/dev/null 2>&1 || \
               sudo ip link delete cni0; }} && \
             sudo systemctl start docker.socket docker.service && docker start {WEB} >/dev/null && \
             docker inspect -f '{{{{.State.Pid}}}}' {WEB}"
        ))
        .await?;
    let process = said
        .parse()
        .with_context(|| format!("{}: process of {WEB}: {said:?}", machine.name()))?;
    Netns::of(machine, process).await
}

fn check_interface(container: &Netns<'_>, kind: &Network) -> Result<()> {
    let interface = container.interface;
    ensure!(
        interface.mtu == kind.mtu
            && interface.v4.is_some() == kind.v4
            && interface.v6.is_some() == kind.v6,
        "{}: container has {interface:?}",
        container.host()
    );
    Ok(())
}

/// Both directions and all families: whole packets of full size cross, the server sees the client's own address, and
/// nothing else than what the network promises is seen on the underlay.
async fn talk(cluster: &Cluster, kind: &Network, a: &Netns<'_>, b: &Netns<'_>) -> Result<()> {
    let switch = cluster
        .switch
        .as_ref()
        .context("this cluster's underlay is not ours")?;
    let bytes = a.interface.mtu.min(b.interface.mtu);
    let mut ways = Vec::new();
    for (from, to) in [(a, b), (b, a)] {
        let (own, other) = (from.interface, to.interface);
        if let (true, Some(own), Some(other)) = (kind.v4, own.v4, other.v4) {
            ways.push((from, IpAddr::from(own.addr()), IpAddr::from(other.addr())));
        }
        if let (true, Some(own), Some(other)) = (kind.v6, own.v6, other.v6) {
            ways.push((from, own.addr().into(), other.addr().into()));
        }
    }
    switch.start_capture();
    let crossed = async {
        for (from, own, target) in &ways {
            from.ping(*target, bytes).await?;
            let seen = from.seen_by(SocketAddr::new(*target, WEB_PORT)).await?;
            ensure!(
                seen == *own,
                "{}: the server at {target} saw {seen} instead of {own}",
                from.host()
            );
        }
        Ok(())
    }
    .await;
    let frames = switch.end_capture();
    crossed?;
    check_carriers(kind, &capture::sights(&frames))
}

/// Fails unless each of the network's carriers was seen, and none but these.
fn check_carriers(kind: &Network, sights: &[Sight]) -> Result<()> {
    let told: Vec<_> = sights
        .iter()
        .filter(|sight| sight.marked || kind.encrypted)
        .collect();
    if kind.encrypted && told.iter().any(|sight| sight.marked) {
        bail!("a ping can be read on the underlay");
    }
    let seen: BTreeSet<_> = told.iter().map(|sight| sight.carrier).collect();
    let wanted: BTreeSet<_> = kind.carriers.iter().copied().map(Some).collect();
    ensure!(
        seen == wanted,
        "packets crossed in {seen:?} instead of {wanted:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::capture::{Carrier, Family};

    const WIREGUARD: Carrier = Carrier::Udp(Family::V4, 51820);
    const PLAIN: Carrier = Carrier::Plain(Family::V4);

    fn network(encrypted: bool, carriers: &'static [Carrier]) -> Network {
        let mut kind = NETWORKS[0];
        (kind.encrypted, kind.carriers) = (encrypted, carriers);
        kind
    }

    fn sight(carrier: Carrier, marked: bool) -> Sight {
        Sight {
            carrier: Some(carrier),
            marked,
        }
    }

    #[test]
    fn an_encrypted_network_shows_nothing() {
        let kind = network(true, &[WIREGUARD]);
        assert!(check_carriers(&kind, &[sight(WIREGUARD, false)]).is_ok());
        assert!(check_carriers(&kind, &[sight(WIREGUARD, true)]).is_err());
        let beside = [sight(WIREGUARD, false), sight(PLAIN, false)];
        assert!(check_carriers(&kind, &beside).is_err());
        assert!(check_carriers(&kind, &[]).is_err());
    }

    #[test]
    fn a_clear_network_carries_pings_in_its_own_way() {
        let kind = network(false, &[PLAIN]);
        assert!(check_carriers(&kind, &[sight(PLAIN, true), sight(WIREGUARD, false)]).is_ok());
        assert!(check_carriers(&kind, &[sight(PLAIN, true), sight(WIREGUARD, true)]).is_err());
        assert!(check_carriers(&kind, &[sight(PLAIN, false)]).is_err());
    }
}
