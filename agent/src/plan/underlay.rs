//! The underlay: the interface and the addresses that carry the overlay's packets between hosts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::base::net::InterfaceName;

/// This host's underlay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Underlay {
    /// The interface's index.
    pub index: u32,
    /// The interface's name.
    pub name: InterfaceName,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Whether it resolves each neighbor's link-layer address, as Ethernet does. A VPN's tunnel has an on-link prefix,
    /// but picks the receiver of a packet by its own routes.
    pub has_neighbors: bool,
    /// IPv4 on it; `Some` exactly if the overlay has IPv4.
    pub v4: Option<Attachment<Ipv4Addr>>,
    /// IPv6 on it; `Some` exactly if the overlay has IPv6.
    pub v6: Option<Attachment<Ipv6Addr>>,
}

/// How the underlay is attached to its network, in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attachment<A> {
    /// The source address; tunnels are bound to it.
    pub address: A,
    /// The prefix length of that address.
    pub prefix_len: u8,
    /// Where peers send to: [`Self::address`], unless the settings name another (behind NAT).
    pub public: A,
}

/// An [`Attachment`] of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Face {
    /// The source address.
    pub address: IpAddr,
    /// The on-link prefix.
    pub on_link: IpNet,
    /// Where peers send to.
    pub public: IpAddr,
    /// As [`Underlay::has_neighbors`].
    pub has_neighbors: bool,
}

impl Face {
    /// Whether an address is this host's own.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        [self.address, self.public].contains(&address)
    }

    /// Whether a host with this address can be reached on the link without encapsulation.
    pub fn is_neighbor(&self, address: IpAddr) -> bool {
        self.has_neighbors && self.is_on_link(address)
    }

    /// Whether a host can have this address on the underlay's link: not the network's own nor its broadcast address
    /// (RFC 1122 §3.2.1.3), which the kernel refuses as gateways.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        let has_broadcast = matches!(self.on_link, IpNet::V4(net) if net.prefix_len() < 31);
        let ends = [self.on_link.network(), self.on_link.broadcast()];
        self.on_link.contains(&address) && !(has_broadcast && ends.contains(&address))
    }
}

impl Underlay {
    /// Whether peers send to the interface's own addresses, rather than to those of a NAT.
    pub fn has_own_address(&self) -> bool {
        self.v4.is_none_or(|v4| v4.address == v4.public)
            && self.v6.is_none_or(|v6| v6.address == v6.public)
    }

    /// The underlay in the family of `network`.
    pub fn face(&self, network: IpNet) -> Option<Face> {
        fn face<A: Into<IpAddr>>(attachment: Attachment<A>, has_neighbors: bool) -> Option<Face> {
            let address = attachment.address.into();
            Some(Face {
                address,
                on_link: IpNet::new(address, attachment.prefix_len).ok()?,
                public: attachment.public.into(),
                has_neighbors,
            })
        }
        match network {
            IpNet::V4(_) => face(self.v4?, self.has_neighbors),
            IpNet::V6(_) => face(self.v6?, self.has_neighbors),
        }
    }

    /// Whether the underlay's prefix is inside an overlay network, so that a route to the whole overlay would capture
    /// traffic to underlay hosts.
    pub(crate) fn is_inside(&self, network: IpNet) -> bool {
        self.face(network)
            .is_some_and(|face| network.contains(&face.address) || network.contains(&face.public))
    }

    /// Whether the interface and the addresses on it are the same.
    pub(crate) fn is_where(&self, other: &Self) -> bool {
        let place = |underlay: &Self| {
            let v4 = underlay.v4.map(|v4| v4.address);
            let v6 = underlay.v6.map(|v6| v6.address);
            (underlay.index, v4, v6)
        };
        place(self) == place(other)
    }
}

/// The public addresses, for logs and the status.
impl fmt::Display for Underlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{} and {}", v4.public, v6.public),
            (Some(v4), None) => v4.public.fmt(f),
            (None, Some(v6)) => v6.public.fmt(f),
            (None, None) => f.write_str("no address"),
        }
    }
}
