//! The underlay: the interface and the addresses that carry the overlay's packets between hosts.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use thiserror::Error;

use crate::net::InterfaceName;
use crate::settings;
use crate::settings::Interface;

mod host;

use host::{Address, DefaultRoute, Host, Link};

/// How long the kernel may take to list links, addresses and routes. It takes milliseconds; a lost answer would
/// otherwise hang for ever.
const DEADLINE: Duration = Duration::from_secs(5);

/// What carries the overlay on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Underlay {
    /// The interface's index.
    pub index: u32,
    /// The interface's name.
    pub name: InterfaceName,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// IPv4 on it; `Some` exactly if the overlay has IPv4.
    pub v4: Option<Attachment<Ipv4Addr>>,
    /// IPv6 on it; `Some` exactly if the overlay has IPv6.
    pub v6: Option<Attachment<Ipv6Addr>>,
}

/// How the underlay is attached to its network, in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attachment<A> {
    /// The address from which we send; tunnels are bound to it.
    pub address: A,
    /// The length of that address's network.
    pub prefix_len: u8,
    /// Where peers send to: [`Self::address`], unless the settings name another (behind NAT).
    pub public: A,
}

/// An [`Attachment`] of either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Face {
    /// The address from which we send.
    pub address: IpAddr,
    /// What is reached without a gateway.
    pub on_link: IpNet,
    /// Where peers send to.
    pub public: IpAddr,
}

impl Underlay {
    /// The underlay in the family of `network`.
    pub fn face(&self, network: IpNet) -> Option<Face> {
        fn face<A: Into<IpAddr>>(attachment: Attachment<A>) -> Option<Face> {
            let address = attachment.address.into();
            Some(Face {
                address,
                on_link: IpNet::new(address, attachment.prefix_len).ok()?,
                public: attachment.public.into(),
            })
        }
        match network {
            IpNet::V4(_) => face(self.v4?),
            IpNet::V6(_) => face(self.v6?),
        }
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

/// There is no underlay (yet).
#[derive(Debug, Error)]
pub enum Error {
    /// No netlink socket.
    #[error("failed to open a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused to list something.
    #[error("failed to list the interfaces, addresses and routes")]
    List(#[source] rtnetlink::Error),
    /// The kernel did not answer.
    #[error("failed to list the interfaces, addresses and routes within {} s", DEADLINE.as_secs())]
    Timeout,
    /// No interface has the wanted name.
    #[error("no interface is called {wanted:?}; there are {found}")]
    NoInterface {
        /// The name looked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// No interface has the wanted address.
    #[error("no interface has the address {wanted}; there are {found}")]
    NoSuchAddress {
        /// The address looked for.
        wanted: IpAddr,
        /// What there is.
        found: String,
    },
    /// Nothing was asked for, and there is no default route to go by.
    #[error(
        "there is no IPv4 default route to choose the underlay by, and underlay.interfaces is not set; there are {found}"
    )]
    NoDefaultRoute {
        /// What there is.
        found: String,
    },
    /// The interface has no usable IPv4 address.
    #[error("the interface {interface} has no usable IPv4 address; there are {found}")]
    NoAddress {
        /// The interface's name.
        interface: String,
        /// What there is.
        found: String,
    },
    /// The interface cannot carry packets.
    #[error("the interface {interface} has an MTU of {mtu}: expected at least 68 bytes (RFC 791)")]
    BadMtu {
        /// The interface's name.
        interface: String,
        /// Its MTU.
        mtu: u32,
    },
}

impl Error {
    /// Whether waiting may help: at boot the agent may be faster than the interface or its address.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Open(_))
    }
}

/// Finds the underlay that `wanted` asks for: the named interface, the one with the given address, or else the one of
/// the default route (`ip route show default`, lowest metric).
///
/// `current` is what a running overlay uses. Its interface and address stay the choice for as long as they would do,
/// even when by now there is a better one: the peers would have to learn another address, for nothing. A second default
/// route, or a service address that keepalived adds beside one from DHCP, is no reason to move. What is read anew is the
/// MTU, the prefix length and the public address.
///
/// # Errors
/// An [`Error`] that lists what interfaces and addresses there are. Dropping the future leaves nothing behind.
pub async fn discover(
    wanted: &settings::Underlay,
    current: Option<&Underlay>,
) -> Result<Underlay, Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
    let connection = tokio::spawn(connection);
    let host = tokio::time::timeout(DEADLINE, observe(&handle, wanted.interfaces.is_empty())).await;
    connection.abort();
    host.map_err(|_| Error::Timeout)?
        .map_err(Error::List)?
        .choose(wanted, current)
}

/// Lists links and IPv4 addresses, and the default routes when `with_routes` says so.
async fn observe(handle: &Handle, with_routes: bool) -> Result<Host, rtnetlink::Error> {
    let mut host = Host::default();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await? {
        host.links.extend(link(&message));
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        host.addresses.extend(address(&message));
    }
    if with_routes {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let mut routes = handle.route().get(request).execute();
        while let Some(message) = routes.try_next().await? {
            host.default_routes.extend(default_routes(&message));
        }
    }
    Ok(host)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let name = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => name.parse().ok(),
            _ => None,
        })?;
    let mtu = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })?;
    Some(Link {
        index: message.header.index,
        name,
        mtu,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    // On a point-to-point link IFA_ADDRESS is the peer's address and IFA_LOCAL ours (linux/if_addr.h).
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
    let any = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Address(IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
    // IFA_FLAGS carries all flags; the header's byte, the only source before Linux 3.14, has those used here as well.
    let flags = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Flags(flags) => Some(*flags),
            _ => None,
        })
        .unwrap_or(AddressFlags::from_bits_retain(u32::from(
            message.header.flags.bits(),
        )));
    Some(Address {
        link_index: message.header.index,
        address: local.or(any)?,
        prefix_len: message.header.prefix_len,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
    })
}

/// One entry for each of the route's next hops: any of them reaches the peers.
fn default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    let mut table = u32::from(message.header.table);
    let mut metric = 0;
    let mut links = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => {
                links.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN)
        || message.header.destination_prefix_length != 0
        || message.header.kind != RouteType::Unicast
    {
        return Vec::new();
    }
    let route = |link_index| DefaultRoute { link_index, metric };
    links.into_iter().map(route).collect()
}
