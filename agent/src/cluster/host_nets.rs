//! What overlay subnets must keep off: the host's own addresses, and what is on its links.
//!
//! An overlay network may be as wide as the site that it is in, 10.0.0.0/8 for one, with the hosts' own addresses inside.
//! That does no harm until a node's subnet holds a host's address: then packets for the host go to that node's containers.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::lease::allocate::Avoid;

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
pub(crate) struct HostNet {
    pub(crate) address: IpAddr,
    /// Without host bits.
    pub(crate) on_link: IpNet,
    pub(crate) whose: Whose,
}

/// The addresses of this host, but for those of the overlay's own devices, with what is on their links.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostNets(Vec<HostNet>);

impl HostNets {
    /// Of these addresses, in any order.
    pub(crate) fn new(mut nets: Vec<HostNet>) -> Self {
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
