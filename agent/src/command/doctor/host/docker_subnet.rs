//! Docker beside the overlay: if it was started before or without its options, it picks its own subnet; with an MTU
//! above the overlay's, its containers' connections stall.
//!
//! Docker may serve another purpose (builds on a node whose pods use CNI). So it is skipped if another interface has an
//! address of this node's subnet, or if it serves another overlay network of this host.

use ipnet::IpNet;

use super::docker::{Container, Docker, Network};
use super::{Own, inventory};
use crate::command::doctor::{Context, Finding, Outcome, Severity};
use crate::host::claim::Claims;
use crate::host::netlink::inventory::Inventory;

pub(super) const NAME: &str = "docker-subnet";

/// Restarts Docker when this host's subnet has changed.
const SERVICE: &str = "selvage-docker.service";

/// The command that moves networks kept by live-restore.
const STOP_FIRST: &str = "running=$(docker ps -q); docker stop $running; systemctl restart docker.service; docker start $running";

/// Maximum number of containers named.
const MAX_NAMED: usize = 10;

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let Some(docker) = Docker::ask().await? else {
        return Ok(Vec::new());
    };
    let Some(bridge) = docker.default_bridge() else {
        return Ok(Vec::new());
    };
    let inventory = inventory().await?;
    // A rootless Docker has its bridge in its own network namespace, outside the overlay.
    if bridge
        .device()
        .is_some_and(|name| inventory.named(name).is_none())
    {
        return Ok(Vec::new());
    }
    let mut findings = Vec::new();
    for subnet in own.subnets() {
        let is_v4 = subnet.addr().is_ipv4();
        let of_bridge = bridge.subnets().find(|net| net.addr().is_ipv4() == is_v4);
        let Some(of_bridge) = of_bridge else {
            continue;
        };
        if serves(&docker, subnet) {
            findings.extend(too_large(&own, bridge));
        } else if !serves_another_overlay(&own, of_bridge)
            && !is_taken(&own, &inventory, bridge, subnet)
        {
            findings.push(outside_subnet(&own, bridge, of_bridge, subnet));
        }
    }
    // Both families share the MTU.
    findings.dedup();
    if findings.is_empty() {
        return Ok(findings);
    }
    // Keep the finding even if the remedy cannot be refined.
    let held_by = docker.held_by().await.unwrap_or_default();
    if !held_by.is_empty() {
        findings
            .iter_mut()
            .for_each(|finding| stop_first(finding, held_by));
    }
    Ok(findings)
}

/// Replaces the remedy if live-restore keeps the networks for these containers.
fn stop_first(finding: &mut Finding, held_by: &[Container]) {
    let names = held_by.iter().take(MAX_NAMED).map(Container::name);
    let names: Vec<&str> = names.collect();
    let more = match held_by.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    finding.why.push_str(&format!(
        ". With live-restore, Docker does not change its networks while containers run, even when it restarts: {}{more}",
        names.join(", ")
    ));
    // The service restarts Docker as well, and no more than that.
    finding.remedy.retain(|line| *line != start());
    finding.remedy.insert(0, STOP_FIRST.to_owned());
}

/// The command that restarts Docker with the current options and restores its containers.
fn start() -> String {
    format!("systemctl start {SERVICE}")
}

/// Whether any of Docker's networks is on the subnet.
fn serves(docker: &Docker, subnet: IpNet) -> bool {
    let mut nets = docker.bridges().flat_map(Network::subnets);
    nets.any(|net| subnet.contains(&net.trunc()))
}

/// Whether Docker's bridge is in a network of another agent of this host. Docker can be in one only.
fn serves_another_overlay(own: &Own<'_>, of_bridge: IpNet) -> bool {
    // Of other processes, that is: those of this node's own agent are among them.
    let claimed = Claims::default().of_others("overlay/");
    let networks = claimed
        .iter()
        .filter_map(|(text, _)| text.parse::<IpNet>().ok());
    let mut others = networks.filter(|network| !own.networks().any(|own| own == *network));
    others.any(|network| network.contains(&of_bridge.trunc()))
}

/// Whether another program's interface has an address of the subnet, so that its containers are not Docker's.
fn is_taken(own: &Own<'_>, inventory: &Inventory, bridge: &Network, subnet: IpNet) -> bool {
    let others = inventory.interfaces.iter().filter(|interface| {
        !own.has_device(&interface.name) && Some(interface.name.as_str()) != bridge.device()
    });
    others
        .flat_map(|interface| inventory.addresses_of(interface.index))
        .any(|net| subnet.contains(&net.addr()))
}

fn outside_subnet(own: &Own<'_>, bridge: &Network, on: IpNet, subnet: IpNet) -> Finding {
    let name = bridge.device().unwrap_or(&bridge.name);
    let file = &own.status.files.subnet_file;
    // The overlay network may have been different then.
    let docker = own.status.docker.as_ref();
    let moved = own.is_outside_own_subnets(on.addr())
        || docker.is_some_and(|docker| docker.trouble.is_some());
    let why = match moved {
        true => {
            "This node got another subnet while Docker ran. Peers send packets for the old one elsewhere, so its containers cannot reach other nodes, nor be reached"
        }
        false => {
            "Docker was started before the overlay, or without its options. No other node has a route to the containers, \
             and they reach others only with this host's address, if at all"
        }
    };
    let first = subnet.hosts().next().unwrap_or(subnet.addr());
    let mtu = own.network.mtu;
    let options = match subnet {
        IpNet::V4(_) => format!("\"bip\": \"{first}/{}\"", subnet.prefix_len()),
        IpNet::V6(_) => format!("\"ipv6\": true, \"fixed-cidr-v6\": \"{subnet}\""),
    };
    let mut remedy = vec![];
    if moved {
        remedy.push(start());
    }
    remedy.extend([
        format!(
            "systemctl restart docker.service, if its unit reads {file} and starts after {}.service; if not: \
             systemctl edit docker.service, with [Unit] AssertPathExists={file} [Service] EnvironmentFile={file}, and $DOCKER_OPT_BIP $DOCKER_OPT_IPMASQ $DOCKER_OPT_MTU at the end of ExecStart=",
            own.names.unit
        ),
        format!(
            "or /etc/docker/daemon.json with {{{options}, \"mtu\": {mtu}, \"ip-masq\": {}}}, which does not follow the lease",
            !own.status.firewall.as_ref().is_some_and(|firewall| firewall.masquerade)
        ),
    ]);
    Finding::new(
        NAME,
        Severity::Error,
        name,
        format!("Docker's bridge {name} is on {on}, not on this node's subnet {subnet}"),
        why,
        remedy,
    )
}

/// A smaller MTU is harmless and may be intended.
fn too_large(own: &Own<'_>, bridge: &Network) -> Option<Finding> {
    let (mtu, limit) = (bridge.mtu()?, own.network.mtu);
    let name = bridge.device().unwrap_or(&bridge.name);
    (mtu > limit).then(|| {
        Finding::new(NAME,
            Severity::Warning,
            name,
            format!("Docker gives containers on {name} an MTU of {mtu}, but the overlay carries {limit} bytes"),
            "Containers send packets that do not fit. Those that must not be fragmented are dropped, and the sender learns why only if every filter on the path passes ICMP",
            vec![
                format!("start dockerd with --mtu={limit}, which is DOCKER_OPT_MTU in {}: systemctl restart docker.service", own.status.files.subnet_file),
                format!("or \"mtu\": {limit} in /etc/docker/daemon.json, then systemctl restart docker.service"),
            ],
        )
    })
}
