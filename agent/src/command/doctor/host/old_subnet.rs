//! Containers that were started on a subnet that this node had before. Their packets still leave, but the replies go to
//! the node that has that subnet now.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::docker::Docker;
use super::{Own, cni, finding, inventory};
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::netlink::inventory::{Inventory, live_neighbors};

pub(super) const NAME: &str = "old-subnet";

/// The bridges that runtimes make for the overlay.
const BRIDGES: [&str; 2] = ["docker0", "cni0"];

const WHY: &str = "Peers send packets for that address to the node that has its subnet now, or drop them: the container gets no replies from other nodes until it is restarted";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    // What one runtime does not tell must not hide what the others have.
    let docker = Docker::ask().await;
    let mut findings = Vec::new();
    let mut told = BTreeSet::new();
    let here = docker.as_ref().ok().and_then(Option::as_ref);
    for container in here.iter().flat_map(|docker| &docker.containers) {
        for address in container.addresses().filter(|a| own.is_strayed(*a)) {
            told.insert(address);
            let name = container.name();
            findings.push(left(&own, name, address, restart_docker(name)));
        }
    }
    for attachment in cni::attachments() {
        // A container without a bridge port is gone.
        let lives = |name: &String| {
            inventory
                .named(name)
                .is_some_and(|port| port.kind.as_deref() == Some("veth"))
        };
        if !attachment.interfaces.iter().any(lives) {
            continue;
        }
        for address in &attachment.addresses {
            // What flannel's plugin attached is the overlay's, even if the whole overlay had other addresses then.
            let family = |net: &ipnet::IpNet| net.addr().is_ipv4() == address.is_ipv4();
            let foreign = attachment.by_flannel
                && own.subnets().any(|net| family(&net))
                && !of_any_network(&own, *address);
            if (own.is_strayed(*address) || foreign) && told.insert(*address) {
                let id = &attachment.container;
                let name = format!("{id} (CNI network {})", attachment.network);
                findings.push(left(&own, &name, *address, restart_cni(id)));
            }
        }
    }
    for bridge in inventory
        .interfaces
        .iter()
        .filter(|i| is_bridge(i.kind.as_deref()))
    {
        let old = inventory.addresses_of(bridge.index);
        let old: Vec<_> = old.filter(|net| own.is_strayed(net.addr())).collect();
        let is_dockers = here
            .and_then(Docker::default_bridge)
            .is_some_and(|network| network.device() == Some(&bridge.name));
        // Docker's own bridge is another check's, and so are those whose network overlaps the overlay's on purpose.
        let is_old = !is_dockers && BRIDGES.contains(&bridge.name.as_str());
        for net in old.iter().filter(|_| is_old) {
            findings.push(old_bridge(&own, &bridge.name, *net));
        }
        findings.extend(neighbors(&own, &inventory, bridge.index, &mut told).await?);
    }
    match docker {
        Err(reason) if findings.is_empty() => Err(reason),
        _ => Ok(findings),
    }
}

fn is_bridge(kind: Option<&str>) -> bool {
    kind == Some("bridge")
}

/// Whether an address is in a subnet of this node's.
fn of_any_network(own: &Own<'_>, address: IpAddr) -> bool {
    own.subnets().any(|net| net.contains(&address))
}

/// Who answered lately behind a bridge, and was named by no runtime.
async fn neighbors(
    own: &Own<'_>,
    inventory: &Inventory,
    index: u32,
    told: &mut BTreeSet<IpAddr>,
) -> Result<Vec<Finding>, NotChecked> {
    let live = live_neighbors(index).await;
    let live = live.map_err(|error| NotChecked(crate::base::logging::chain(&error)))?;
    let bridge = inventory
        .with_index(index)
        .map_or("", |bridge| &bridge.name);
    let strayed = live.into_iter().filter(|address| own.is_strayed(*address));
    let new: Vec<IpAddr> = strayed.filter(|address| told.insert(*address)).collect();
    let tell = |address| {
        let remedy = vec![format!(
            "restart the container with this address; its MAC address and port: ip neighbor show dev {bridge} {address}; bridge fdb show br {bridge}"
        )];
        left(own, &format!("{address} behind {bridge}"), address, remedy)
    };
    Ok(new.into_iter().map(tell).collect())
}

fn left(own: &Own<'_>, container: &str, address: IpAddr, remedy: Vec<String>) -> Finding {
    let present = super::listed(own.subnets());
    let what = format!(
        "the container {container} has the address {address}, outside this node's subnet {present}"
    );
    finding(NAME, Severity::Error, container, what, WHY, remedy)
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
    finding(
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
