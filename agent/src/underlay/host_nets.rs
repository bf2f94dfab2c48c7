//! What overlay subnets must keep off: the host's own addresses, and what is on its links.
//!
//! An overlay network may be as wide as the site that it is in, 10.0.0.0/8 for one, with the hosts' own addresses inside.
//! That does no harm until a node's subnet holds a host's address: then packets for the host go to that node's containers.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Underlay;
use crate::lease::allocate::Avoid;
use crate::net::InterfaceName;
use crate::netlink::host::{Address, Host};

/// What the devices of every back end are called, before their number or kind.
const OVERLAY: &str = "flannel";

/// The bridges on which container runtimes put a node's subnet.
const BRIDGES: [&str; 3] = ["docker0", "cni0", "cbr0"];

/// Bridges of runtimes for networks of their own. A host's packets never leave by one.
const OTHER_BRIDGES: [&str; 3] = ["podman", "cni-podman", "docker_gwbridge"];

/// Whose an address of this host is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Whose {
    /// The underlay interface's.
    Underlay,
    /// Another interface's.
    Host,
    /// A bridge's that has the node's own subnet, or a former one.
    Containers,
}

/// An address of this host and what is on its link.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct HostNet {
    address: IpAddr,
    /// Without host bits.
    on_link: IpNet,
    whose: Whose,
}

/// The addresses of this host, but for those of the overlay's own devices, with what is on their links.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNets(Vec<HostNet>);

impl HostNets {
    /// What there is on a host whose packets for peers leave by `underlay`.
    pub(super) fn of(host: &Host, underlay: &Underlay) -> Self {
        let mut nets: Vec<_> = host
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
        nets.sort_unstable();
        nets.dedup();
        Self(nets)
    }

    /// An address of this host in a subnet that another node holds or wants. What a runtime's bridge has there is a
    /// remnant of a subnet that this node had before.
    pub fn in_subnet(&self, subnet: &IpNet) -> Option<IpAddr> {
        let mut nets = self.0.iter().filter(|net| net.whose != Whose::Containers);
        nets.find(|net| subnet.contains(&net.address))
            .map(|net| net.address)
    }

    /// A host with one address that is not the underlay's.
    #[cfg(test)]
    pub(crate) fn of_one(address: IpNet) -> Self {
        Self(vec![HostNet {
            address: address.addr(),
            on_link: address.trunc(),
            whose: Whose::Host,
        }])
    }

    /// What no subnet of ours is to hold.
    pub fn avoid(&self) -> Avoid {
        let of_underlay = self.0.iter().filter(|net| net.whose == Whose::Underlay);
        Avoid {
            underlay: of_underlay.map(|net| net.address).collect(),
            addresses: self.0.iter().map(|net| net.address).collect(),
            on_link: self.0.iter().map(|net| net.on_link).collect(),
        }
    }

    /// What lies inside an overlay network and is outside the overlay all the same, for masquerading: the links on which
    /// no node has its subnet, as `is_leased` says; of the others the host's own address.
    pub(crate) fn outside(
        &self,
        network: IpNet,
        own: IpNet,
        is_leased: impl Fn(&IpNet) -> bool,
    ) -> Vec<IpNet> {
        let of_host = self.0.iter().filter(|net| net.whose != Whose::Containers);
        let mut outside: Vec<IpNet> = of_host
            .filter(|net| network.contains(&net.address) && !own.contains(&net.address))
            .map(|net| {
                let is_apart = network.contains(&net.on_link) && !net.on_link.contains(&own);
                match is_apart && !is_leased(&net.on_link) {
                    true => net.on_link,
                    false => net.address.into(),
                }
            })
            .collect();
        outside.sort_unstable();
        outside.dedup();
        outside
    }
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
