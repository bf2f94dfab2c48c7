//! The kernel objects that the agent wants or sees, as data, and the difference between two such sets.
//!
//! Every object has a [`Key`] that says *which* it is, and an [`Object`] that says *how* it is. Keys are ordered so that
//! walking a state forwards creates what others need first (a link before the routes over it), and walking it backwards
//! removes in the right order.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::net::{InterfaceName, MacAddr};

/// Which kernel object: the part that the kernel itself uses to tell objects apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A network device, by name.
    Link(InterfaceName),
    /// An address on a device.
    Address(InterfaceName, IpNet),
    /// A permanent neighbour (ARP or ND) entry on a device.
    Neighbor(InterfaceName, IpAddr),
    /// A forwarding entry of a VXLAN device: `bridge fdb … self`.
    Fdb(InterfaceName, MacAddr),
    /// A route of the main table, by destination.
    Route(IpNet),
}

/// How a kernel object is, apart from its [`Key`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// An address; its key says all.
    Address,
    /// The link-layer address of a neighbour.
    Neighbor(MacAddr),
    /// The underlay address to which frames for the entry's MAC are sent.
    Fdb(IpAddr),
    /// How a destination is reached.
    Route(Route),
}

/// The attributes of a VXLAN device that matter to the agent (`ip -d link show type vxlan`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vxlan {
    /// VXLAN network identifier, 0 to 16,777,215.
    pub vni: u32,
    /// UDP destination port; 8472 is Linux's default (IANA's is 4789).
    pub port: u16,
    /// Index of the underlay device.
    pub underlay_index: u32,
    /// Outer source address.
    pub local: Ipv4Addr,
    /// The device's own address.
    pub mac: MacAddr,
    /// Device MTU in bytes.
    pub mtu: u32,
    /// Whether the kernel learns forwarding entries from received frames.
    pub learning: bool,
    /// Group policy extension.
    pub gbp: bool,
}

/// How a destination is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The device packets leave by.
    pub link: InterfaceName,
    /// The next hop's address.
    pub gateway: IpAddr,
    /// Whether the gateway is taken to be on the link without a route to it.
    pub onlink: bool,
}

/// A set of kernel objects.
pub type State = BTreeMap<Key, Object>;
