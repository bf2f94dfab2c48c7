//! Which addresses of this host are its own, and which are those of overlay devices and of containers' gateways.

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::cluster::host_nets::{HostNet, HostNets, Whose};
use crate::host::netlink::host::{Address, Host};
use crate::plan::underlay::Underlay;

/// What the devices of every back end are called, before their number or kind.
const OVERLAY: &str = "flannel";

/// The bridges on which container runtimes put a node's subnet.
const BRIDGES: [&str; 3] = ["docker0", "cni0", "cbr0"];

/// Bridges of runtimes for networks of their own. A host's packets never leave by one.
const OTHER_BRIDGES: [&str; 3] = ["podman", "cni-podman", "docker_gwbridge"];

/// What overlay subnets must keep off on a host whose packets for peers leave by `underlay`.
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
                false if address.is_on_one_link() => return None,
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

/// Whether a device carries an overlay's packets, so that its address is no host's.
fn is_of_overlay(name: &InterfaceName) -> bool {
    name.as_str().starts_with(OVERLAY)
}

/// Whether an address is the gateway that the plugin `ptp` puts on every container's cable.
fn is_gateway(name: &InterfaceName, address: &Address) -> bool {
    let longest = if address.address.is_ipv4() { 32 } else { 128 };
    name.as_str().starts_with("veth") && address.prefix_len == longest
}

/// Whether nothing leaves the host by such an address of the overlay's network, so that no peer could send to it.
pub(super) fn is_no_underlay(name: &InterfaceName, address: &Address) -> bool {
    let text = name.as_str();
    // `br-` and the first twelve digits of the network's ID.
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
