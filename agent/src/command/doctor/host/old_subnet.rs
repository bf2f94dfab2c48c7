//! Containers that were started on a previous subnet of this node. Their packets still leave, but the replies go to the
//! node that has that subnet now.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::docker::{Docker, Network};
use super::{Own, cni, inventory};
use crate::base::logging::chain;
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::netlink::inventory::{Interface, Inventory, live_neighbors};

pub(super) const NAME: &str = "old-subnet";

/// The bridges that runtimes create for the overlay.
const BRIDGES: [&str; 2] = ["docker0", "cni0"];

const WHY: &str = "Peers send packets for that address to the node that has its subnet now, or drop them: the container gets no replies from other nodes until it is restarted";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    // A runtime that does not answer must not hide what the others have.
    let docker = Docker::ask().await;
    let running = docker.as_ref().ok().and_then(Option::as_ref);
    let mut reported = BTreeSet::new();
    let mut findings = Vec::new();
    for container in running.iter().flat_map(|docker| &docker.containers) {
        let old = container.addresses();
        for address in old.filter(|address| own.is_outside_own_subnets(*address)) {
            reported.insert(address);
            let name = container.name();
            findings.push(on_old_subnet(&own, name, address, restart_docker(name)));
        }
    }
    findings.extend(cni_containers(&own, &inventory, &mut reported));
    let default_bridge = running.and_then(Docker::default_bridge);
    let default_bridge = default_bridge.and_then(Network::device);
    let bridges = inventory.interfaces.iter();
    for bridge in bridges.filter(|interface| interface.kind.as_deref() == Some("bridge")) {
        let name = bridge.name.as_str();
        // Another check reports Docker's own bridge. Others may overlap the overlay's network on purpose.
        if BRIDGES.contains(&name) && default_bridge != Some(name) {
            let old = inventory.addresses_of(bridge.index);
            let old = old.filter(|net| own.is_outside_own_subnets(net.addr()));
            findings.extend(old.map(|net| old_bridge(&own, name, net)));
        }
        findings.extend(neighbors(&own, bridge, &mut reported).await?);
    }
    match docker {
        Err(reason) if findings.is_empty() => Err(reason),
        _ => Ok(findings),
    }
}

/// Running containers of CNI runtimes.
fn cni_containers(
    own: &Own<'_>,
    inventory: &Inventory,
    reported: &mut BTreeSet<IpAddr>,
) -> Vec<Finding> {
    // A container without a bridge port is gone.
    let is_port = |name: &String| {
        inventory
            .named(name)
            .is_some_and(|port| port.kind.as_deref() == Some("veth"))
    };
    let mut findings = Vec::new();
    for attachment in cni::attachments() {
        if !attachment.interfaces.iter().any(is_port) {
            continue;
        }
        for address in &attachment.addresses {
            // Flannel's plugin attaches to the overlay only, even if the overlay's network was another one then.
            let subnets = || own.subnets();
            let foreign = attachment.by_flannel
                && subnets().any(|net| net.addr().is_ipv4() == address.is_ipv4())
                && !subnets().any(|net| net.contains(address));
            if (own.is_outside_own_subnets(*address) || foreign) && reported.insert(*address) {
                let id = &attachment.container;
                let name = format!("{id} (CNI network {})", attachment.network);
                findings.push(on_old_subnet(own, &name, *address, restart_cni(id)));
            }
        }
    }
    findings
}

/// Recently active neighbors behind a bridge that no runtime named.
async fn neighbors(
    own: &Own<'_>,
    bridge: &Interface,
    reported: &mut BTreeSet<IpAddr>,
) -> Result<Vec<Finding>, NotChecked> {
    let live = live_neighbors(bridge.index).await;
    let live = live.map_err(|error| NotChecked(chain(&error)))?;
    let bridge = &bridge.name;
    let outside = live.into_iter();
    let outside = outside.filter(|address| own.is_outside_own_subnets(*address));
    let new = outside.filter(|address| reported.insert(*address));
    Ok(new
        .map(|address| {
            let remedy = vec![format!(
                "restart the container with this address; its MAC address and port: ip neighbor show dev {bridge} {address}; bridge fdb show br {bridge}"
            )];
            on_old_subnet(own, &format!("{address} behind {bridge}"), address, remedy)
        })
        .collect())
}

fn on_old_subnet(own: &Own<'_>, container: &str, address: IpAddr, remedy: Vec<String>) -> Finding {
    let present = super::listed(own.subnets());
    let what = format!(
        "the container {container} has the address {address}, outside this node's subnet {present}"
    );
    Finding::new(NAME, Severity::Error, container, what, WHY, remedy)
}

fn restart_docker(name: &str) -> Vec<String> {
    vec![
        format!("docker restart {name}"),
        "if Docker itself is on the old subnet, follow docker-subnet first".to_owned(),
    ]
}

fn restart_cni(id: &str) -> Vec<String> {
    vec![
        format!("nerdctl restart {id}, or podman restart {id}"),
        format!(
            "in Kubernetes: find the pod with crictl ps -a | grep {id}; after kubectl delete pod, its controller starts a new one"
        ),
    ]
}

fn old_bridge(own: &Own<'_>, bridge: &str, net: ipnet::IpNet) -> Finding {
    let present = super::listed(own.subnets());
    Finding::new(
        NAME,
        Severity::Error,
        bridge,
        format!("the bridge {bridge} has the address {net}, outside this node's subnet {present}"),
        "It was created for a previous subnet of this node. CNI's bridge plugin refuses to attach containers to it, and packets from here to the node that has the subnet now do not leave this host",
        vec![
            format!("ip address del {net} dev {bridge}"),
            format!(
                "or, once no container is on it: ip link delete {bridge}; the runtime creates it again"
            ),
        ],
    )
}
