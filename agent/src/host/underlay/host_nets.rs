//! Tells apart this host's own addresses and those of overlay devices and container gateways.

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::cluster::host_nets::{HostNet, HostNets, Whose};
use crate::host::netlink::host::{Address, Host};
use crate::plan::underlay::Underlay;

/// Prefixes of the device names of all backends.
const OVERLAY: &str = "flannel";

/// The bridges that container runtimes put on the node's subnet.
const BRIDGES: [&str; 3] = ["docker0", "cni0", "cbr0"];

/// Bridges of runtimes for networks of their own. The host never sends packets to peers over one.
const OTHER_BRIDGES: [&str; 3] = ["podman", "cni-podman", "docker_gwbridge"];

/// The addresses and networks that overlay subnets must avoid on a host that reaches its peers over `underlay`.
pub(super) fn host_nets(host: &Host, underlay: &Underlay) -> HostNets {
    let nets = host
        .addresses
        .iter()
        .filter_map(|address| {
            let link = host.links.iter().find(|l| l.index == address.link_index)?;
            let on_link = IpNet::new(address.address, address.prefix_len).ok()?;
            let whose = match link.index == underlay.index {
                true => Whose::Underlay,
                false if is_of_overlay(&link.name) || is_gateway(&link.name, address) => {
                    return None;
                }
                false if address.is_link_scoped() => return None,
                false if BRIDGES.contains(&link.name.as_str()) => Whose::Containers,
                false => Whose::Host,
            };
            Some(HostNet {
                address: address.address,
                on_link: on_link.trunc(),
                whose,
            })
        })
        .collect();
    HostNets::new(nets)
}

/// Whether a device carries overlay packets, so that its address is not the host's own.
fn is_of_overlay(name: &InterfaceName) -> bool {
    name.as_str().starts_with(OVERLAY)
}

/// Whether an address is the gateway that the plugin `ptp` puts on each container's veth.
fn is_gateway(name: &InterfaceName, address: &Address) -> bool {
    let longest = if address.address.is_ipv4() { 32 } else { 128 };
    name.as_str().starts_with("veth") && address.prefix_len == longest
}

/// Whether packets to peers never leave by such an address, so that no peer could send to it.
pub(super) fn is_overlay_or_bridge(name: &InterfaceName, address: &Address) -> bool {
    let text = name.as_str();
    // Docker names bridges `br-` and the first twelve hex digits of the network's ID.
    let is_dockers = text.strip_prefix("br-").is_some_and(|id| {
        id.len() == 12 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    is_of_overlay(name)
        || is_gateway(name, address)
        || BRIDGES.contains(&text)
        || is_dockers
        || OTHER_BRIDGES.iter().any(|bridge| text.starts_with(bridge))
}

#[cfg(test)]
mod tests;
