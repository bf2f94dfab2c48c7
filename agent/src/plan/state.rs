//! The kernel objects that the agent wants or sees, as data, and the difference between two such sets.
//!
//! Every object has a [`Key`], its identity, and an [`Object`], its attributes. Keys are ordered so that walking a
//! state forwards creates dependencies first (a link before the routes over it), and walking it backwards removes in
//! the right order. Everything here is pure; `host::executor` makes the changes.

mod diff;
mod ipsec;
#[cfg(test)]
mod tests;
mod wireguard;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

pub use self::diff::{Change, LinkChange, diff, diff_keys};
pub use self::ipsec::{Connection, Direction, Policy};
pub use self::wireguard::{Wireguard, WireguardPeer};
use crate::base::net::{InterfaceName, MacAddr};
use crate::cluster::lease::SubnetKey;
use crate::plan::wireguard_key::PublicKey;

/// The identity of a kernel object, by the attributes that the kernel uses to tell objects apart.
///
/// The order of the variants is the order of creation. An FDB entry comes before the neighbor entry that sends frames
/// to its MAC address, and both before the route that uses them, so that changing a peer drops no packets. Policies come
/// before the route, too, so that no packet takes it unencrypted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A network device, by name.
    Link(InterfaceName),
    /// An address on a device.
    Address(InterfaceName, IpNet),
    /// An FDB entry of a VXLAN device: `bridge fdb … self`.
    Fdb(InterfaceName, MacAddr),
    /// A permanent neighbor (ARP or ND) entry on a device.
    Neighbor(InterfaceName, IpAddr),
    /// A peer of a WireGuard device. Boxed, so that all keys stay small.
    WireguardPeer(InterfaceName, Box<PublicKey>),
    /// A next-hop object, by device and gateway; the executor assigns its ID.
    NextHop(InterfaceName, IpAddr),
    /// Not the kernel's: a subnet in the table of our own data plane behind a TUN device.
    Forward(InterfaceName, Ipv4Net),
    /// A policy of IPsec, by direction, source and destination (`ip xfrm policy`).
    Policy(Direction, Ipv4Net, Ipv4Net),
    /// Not the kernel's: a connection of the IKE daemon, by the peer's public address.
    Connection(Ipv4Addr),
    /// A unicast route of the main table with the default metric, by destination.
    Route(IpNet),
    /// A blackhole route of the main table with the worst metric, by destination.
    Blackhole(IpNet),
    /// Not the kernel's: the administrator's commands for a lease.
    Hook(SubnetKey),
}

impl Key {
    /// The device whose removal also removes this object; `None` for links, and for routes, whose device is part of the
    /// [`Object`].
    pub fn link(&self) -> Option<&InterfaceName> {
        match self {
            Self::Address(link, _)
            | Self::Fdb(link, _)
            | Self::Neighbor(link, _)
            | Self::WireguardPeer(link, _)
            | Self::NextHop(link, _)
            | Self::Forward(link, _) => Some(link),
            Self::Link(_)
            | Self::Policy(..)
            | Self::Connection(_)
            | Self::Route(_)
            | Self::Blackhole(_)
            | Self::Hook(_) => None,
        }
    }
}

/// The attributes of a kernel object, apart from its [`Key`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A device. Boxed to keep the other variants small, of which there are tens of thousands.
    Link(Box<Link>),
    /// A device of a different kind than its name suggests, or with an option that we never set. Only observed.
    OtherLink,
    /// An address; its key has all attributes.
    Address,
    /// The underlay address to which frames for the entry's MAC are sent.
    Fdb(IpAddr),
    /// The link-layer address of a neighbor.
    Neighbor(MacAddr),
    /// Endpoint, allowed IPs and other attributes of a WireGuard peer. Boxed for the same reason.
    WireguardPeer(Box<WireguardPeer>),
    /// A next hop.
    NextHop {
        /// Whether the gateway is treated as on-link without a route to it.
        onlink: bool,
    },
    /// The address of the peer's data plane.
    Forward(SocketAddrV4),
    /// What a policy of IPsec does.
    Policy(Policy),
    /// A connection of the IKE daemon.
    Connection(Box<Connection>),
    /// The path to a destination.
    Route(Route),
    /// A blackhole drops packets silently; its key has all attributes.
    Blackhole,
    /// The commands of a hook.
    Hook(Box<Hook>),
    /// A neighbor or FDB entry or a policy of a form that we never make, or a hook of an earlier run of the agent. Only
    /// observed, never equal to a wanted object.
    Odd,
    /// A route of ours made by another implementation or version. Only observed.
    OddRoute {
        /// Its route protocol number.
        protocol: u8,
        /// Index of its device, unless that comes from a next-hop object.
        link_index: Option<u32>,
    },
}

impl Object {
    /// Whether an observed object can stay as it is.
    pub fn satisfies(&self, want: &Self) -> bool {
        match (self, want) {
            (Self::WireguardPeer(was), Self::WireguardPeer(want)) => was.satisfies(want),
            _ => self == want,
        }
    }
}

/// The attributes of a device that matter to the agent (`ip -d link show`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its kind, with options.
    pub kind: LinkKind,
}

impl Link {
    /// Whether a device may equal this one as far as rtnetlink reports it, which has no options of WireGuard devices.
    pub fn looks_like(&self, seen: &Self) -> bool {
        match (&self.kind, &seen.kind) {
            (LinkKind::Wireguard(_), LinkKind::Wireguard(_)) => {
                (self.mtu, self.up) == (seen.mtu, seen.up)
            }
            _ => self == seen,
        }
    }
}

/// The kinds of devices that backends use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkKind {
    /// `type vxlan`.
    Vxlan(Vxlan),
    /// `type ipip`.
    Ipip(Ipip),
    /// `type wireguard`.
    Wireguard(Wireguard),
    /// A TUN device with our own data plane behind it; both exist only while this process runs.
    Tun(Tun),
}

impl LinkKind {
    /// The device's own link-layer address, if its kind has one.
    pub fn mac(&self) -> Option<MacAddr> {
        match self {
            Self::Vxlan(vxlan) => Some(vxlan.mac),
            Self::Ipip(_) | Self::Wireguard(_) | Self::Tun(_) => None,
        }
    }
}

/// The options of a VXLAN device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vxlan {
    /// VXLAN network identifier, 0 to 16,777,215.
    pub vni: u32,
    /// UDP destination port; 8472 is Linux's default (IANA's is 4789).
    pub port: u16,
    /// Index of the underlay device.
    pub underlay_index: u32,
    /// Outer source address, which also says whether the outer packets are IPv4 or IPv6.
    pub local: IpAddr,
    /// The device's own address.
    pub mac: MacAddr,
    /// Whether the kernel learns FDB entries from received frames.
    pub learning: bool,
    /// Group policy extension.
    pub gbp: bool,
    /// Whether outer UDP packets over IPv4 carry a checksum; over IPv6 they always do.
    pub checksum: bool,
}

/// The options of an IP-in-IP device (RFC 2003) without a fixed remote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ipip {
    /// Outer source address.
    pub local: Ipv4Addr,
}

/// The options of a TUN device with our own data plane behind it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tun {
    /// The device's own address, from which the data plane sends ICMP errors.
    pub address: Ipv4Addr,
    /// The data plane's UDP address, for receiving and sending.
    pub bind: SocketAddrV4,
}

/// The path to a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The output device.
    pub link: InterfaceName,
    /// The next hop's address; `None` if the device needs none.
    pub gateway: Option<IpAddr>,
    /// Whether the gateway is treated as on-link without a route to it.
    pub onlink: bool,
    /// Whether the gateway is inline even if the kernel has next-hop objects.
    pub inline: bool,
}

/// The administrator's shell commands for a lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hook {
    /// The command that sets it up.
    pub set: Option<String>,
    /// The command that undoes it.
    pub unset: Option<String>,
    /// Environment variables for both.
    pub environment: Vec<(String, String)>,
    /// Standard input for both.
    pub input: Option<String>,
    /// Whether the command must succeed. If so, a failure leaves the host incomplete and the command is retried; if
    /// not, the failure is only reported and the command counts as run.
    #[serde(default)]
    pub required: bool,
}

/// A set of kernel objects.
pub type State = BTreeMap<Key, Object>;

/// What changed in a wanted state: the new object of a key, or `None` if it is no longer wanted.
///
/// Later changes override earlier ones, so several are merged by `extend()` in chronological order.
pub type Delta = BTreeMap<Key, Option<Object>>;

/// The kernel objects that belong to the agent, apart from those with its route protocol number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    /// The overlay devices. They are the agent's, with all their FDB entries and permanent neighbor entries.
    pub links: Vec<InterfaceName>,
    /// The overlay networks. Addresses on the overlay devices are the agent's when inside, and so are routes over them
    /// that another flannel implementation left.
    pub networks: Vec<IpNet>,
    /// The underlay device, if peers are reached over it without encapsulation. It is not the agent's, but a route over
    /// it into an overlay network, left by another flannel implementation, may be replaced by ours.
    pub shared: Option<InterfaceName>,
    /// The file that records hooks, if the backend has any.
    pub hooks: Option<PathBuf>,
    /// Whether the agent has policies of IPsec, and connections of an IKE daemon. They are the agent's if their subnets
    /// are inside the overlay networks.
    pub ipsec: bool,
}

/// An object with its key, in the syntax of ip(8) and bridge(8).
pub fn describe(key: &Key, object: &Object) -> String {
    Described(key, object).to_string()
}

/// The formatter of [`describe`].
struct Described<'a>(&'a Key, &'a Object);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        match self.1 {
            Object::Link(link) => {
                match &link.kind {
                    LinkKind::Vxlan(vxlan) => write!(
                        f,
                        " type vxlan id {} dstport {} local {} dev #{} address {}",
                        vxlan.vni, vxlan.port, vxlan.local, vxlan.underlay_index, vxlan.mac
                    )?,
                    LinkKind::Ipip(ipip) => write!(f, " type ipip local {}", ipip.local)?,
                    LinkKind::Wireguard(wireguard) => {
                        write!(f, " type wireguard listen-port {}", wireguard.listen_port)?;
                    }
                    LinkKind::Tun(tun) => write!(f, " type tun with UDP {}", tun.bind)?,
                }
                write!(f, " mtu {}", link.mtu)
            }
            Object::Fdb(remote) => write!(f, " dst {remote}"),
            Object::Neighbor(mac) => write!(f, " lladdr {mac}"),
            Object::WireguardPeer(peer) => {
                if let Some(endpoint) = peer.endpoint {
                    write!(f, " endpoint {endpoint}")?;
                }
                let allowed: Vec<_> = peer.allowed.iter().map(ToString::to_string).collect();
                write!(f, " allowed-ips {}", allowed.join(","))
            }
            Object::NextHop { onlink: true } => f.write_str(" onlink"),
            Object::Forward(peer) => write!(f, " to {peer}"),
            Object::Policy(policy) => write!(f, " {policy}"),
            Object::Connection(connection) => write!(
                f,
                " from {} for {} to {}",
                connection.local, connection.subnet, connection.peer_subnet
            ),
            Object::Route(route) => {
                if let Some(gateway) = route.gateway {
                    write!(f, " via {gateway}")?;
                }
                write!(f, " dev {}", route.link)?;
                f.write_str(if route.onlink { " onlink" } else { "" })
            }
            Object::OddRoute { protocol, .. } => write!(f, " proto {protocol}"),
            Object::OtherLink
            | Object::Address
            | Object::NextHop { .. }
            | Object::Blackhole
            | Object::Hook(_)
            | Object::Odd => Ok(()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(link) => write!(f, "link {link}"),
            Self::Address(link, address) => write!(f, "address {address} dev {link}"),
            Self::Fdb(link, mac) => write!(f, "fdb {mac} dev {link}"),
            Self::Neighbor(link, address) => write!(f, "neighbor {address} dev {link}"),
            Self::WireguardPeer(link, key) => write!(f, "wireguard peer {key} dev {link}"),
            Self::NextHop(link, gateway) => write!(f, "nexthop via {gateway} dev {link}"),
            Self::Forward(link, subnet) => write!(f, "forwarding of {subnet} from {link}"),
            Self::Policy(direction, source, destination) => {
                write!(
                    f,
                    "xfrm policy dir {direction} src {source} dst {destination}"
                )
            }
            Self::Connection(peer) => write!(f, "IKE connection with {peer}"),
            Self::Route(destination) => write!(f, "route {destination}"),
            Self::Blackhole(destination) => write!(f, "route blackhole {destination}"),
            Self::Hook(subnet) => write!(f, "hook for {subnet}"),
        }
    }
}
