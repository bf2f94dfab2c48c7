//! The host's own addresses and on-link prefixes, which overlay subnets must avoid.
//!
//! An overlay network may be as wide as the site that it is in, for example 10.0.0.0/8, and contain the hosts' own
//! addresses. That does no harm until a node's subnet covers a host's address: then packets for the host go to that
//! node's containers.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::lease::allocate::Avoid;

/// What kind of interface has an address of this host.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Whose {
    /// The underlay interface.
    Underlay,
    /// Another interface.
    Host,
    /// A bridge with the node's own subnet, or a former one.
    Containers,
}

/// An address of this host and its on-link prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct HostNet {
    pub(crate) address: IpAddr,
    /// Without host bits.
    pub(crate) on_link: IpNet,
    pub(crate) whose: Whose,
}

/// The addresses of this host with their on-link prefixes, except those of the overlay's own devices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNets(Vec<HostNet>);

impl HostNets {
    /// From these addresses, in any order.
    pub(crate) fn new(mut nets: Vec<HostNet>) -> Self {
        nets.sort_unstable();
        nets.dedup();
        Self(nets)
    }

    /// An address of this host in a subnet that another node holds or wants. A container runtime's bridge does not
    /// count: it is left over from a subnet that this node had before.
    pub fn in_subnet(&self, subnet: &IpNet) -> Option<IpAddr> {
        let mut nets = self.0.iter().filter(|net| net.whose != Whose::Containers);
        nets.find(|net| subnet.contains(&net.address))
            .map(|net| net.address)
    }

    /// A host with one address, not on the underlay interface.
    #[cfg(test)]
    pub(crate) fn of_one(address: IpNet) -> Self {
        Self(vec![HostNet {
            address: address.addr(),
            on_link: address.trunc(),
            whose: Whose::Host,
        }])
    }

    /// What this node's subnet must not cover.
    pub fn avoid(&self) -> Avoid {
        let of_underlay = self.0.iter().filter(|net| net.whose == Whose::Underlay);
        Avoid {
            underlay: of_underlay.map(|net| net.address).collect(),
            addresses: self.0.iter().map(|net| net.address).collect(),
            on_link: self.0.iter().map(|net| net.on_link).collect(),
        }
    }

    /// What lies inside an overlay network but is not part of the overlay, for masquerading: on-link prefixes in which
    /// no node has its subnet (`is_leased`); of the others only the host's own address.
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
