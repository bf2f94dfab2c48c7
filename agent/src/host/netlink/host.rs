//! Interfaces, addresses, default routes and route lookups of a host, from which the underlay is chosen.
//!
//! A router may have a million routes, and the kernel cannot list only those with prefix length zero. So the kernel is
//! asked for its route to an address that no host has.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};

use super::message::{Message, Request, Verb};
use super::neighbor::Entry;
use super::socket::{Dump, Socket};
use super::{FAMILIES, KernelError, Refused, address, address_family, family, neighbor, route};
use crate::base::net::{Family, InterfaceName, MacAddr};
use crate::plan::state::{Key, Object};

/// An interface, as reported by the kernel.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: InterfaceName,
    /// In bytes.
    pub(crate) mtu: u32,
    /// Whether it resolves each neighbor's link-layer address. A tunnel such as a VPN's picks the receiver by its own
    /// rules, so "on-link" does not say which host gets a packet.
    pub(crate) has_neighbors: bool,
}

/// An address, as reported by the kernel.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) link_index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
    /// Whether its preferred lifetime has expired.
    pub(crate) deprecated: bool,
    /// Whether it has no lifetime, so that it came from neither DHCP nor a router advertisement.
    pub(crate) permanent: bool,
    /// Whether it is a temporary IPv6 address, which changes daily (RFC 8981).
    pub(crate) temporary: bool,
    /// Whether it is tentative or a duplicate (RFC 4862 §5.4), so that no socket can be bound to it.
    pub(crate) tentative: bool,
}

impl Address {
    /// Whether it is valid only on its link or this host: no interface is chosen for it.
    pub(crate) fn is_link_scoped(&self) -> bool {
        match self.address {
            IpAddr::V4(v4) => v4.is_loopback(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        }
    }
}

/// A next hop of a default route of the main table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DefaultRoute {
    pub(crate) family: Family,
    pub(crate) link_index: u32,
    pub(crate) metric: u32,
}

/// The kernel's route to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ResolvedRoute {
    pub(crate) link_index: u32,
    /// The source address that it selects.
    pub(crate) source: Option<IpAddr>,
    /// Whether the address is this host's own.
    pub(crate) local: bool,
    /// The next hop; `None` if the address is on-link.
    pub(crate) gateway: Option<IpAddr>,
    /// The ID of the route's table.
    pub(crate) table: u32,
}

/// The packets to look up a route for: forwarded ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Forwarded {
    /// The source address.
    pub(crate) source: IpAddr,
    /// The index of their input interface.
    pub(crate) link_index: u32,
}

/// Interfaces and addresses, each in the kernel's order.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// The relevant default routes, if requested.
    pub(crate) default_routes: Vec<DefaultRoute>,
    /// The route to the requested address, or the kernel's refusal.
    pub(crate) resolved: Option<Result<ResolvedRoute, Refused>>,
    /// Whether nothing is missing.
    pub(crate) complete: bool,
}

/// What else to query.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Query<'a> {
    /// The families to get default routes for.
    pub(crate) default_routes: &'a [Family],
    /// Whether to list all default routes, which may take long. Otherwise, in each family, only the one with the lowest
    /// metric, or none if it cannot be found quickly.
    pub(crate) thorough: bool,
    /// The interface whose default route is wanted, if not thorough.
    pub(crate) over: Option<u32>,
    /// The address to look up a route to.
    pub(crate) reach: Option<IpAddr>,
}

impl Host {
    /// Queries the kernel over its own socket.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed, or refuses to list something.
    pub(crate) async fn observe(query: Query<'_>) -> Result<Self, KernelError> {
        let mut socket = Socket::open()?;
        let mut host = Self {
            complete: true,
            ..Self::default()
        };
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let request = Message::GetLink(message);
        let links = socket.dump("interfaces", request, |message| match message {
            Message::NewLink(message) => read_link(&message),
            _ => None,
        });
        host.links = host.note(links.await?);
        let addresses = socket.dump("addresses", address::list(0), |message| match message {
            Message::NewAddress(message) => read_address(&message),
            _ => None,
        });
        host.addresses = host.note(addresses.await?);
        for &family in query.default_routes {
            let routes = if query.thorough {
                let dump = default_routes(&mut socket, family).await?;
                host.note(dump).into_iter().flatten().collect()
            } else {
                host.probe(&mut socket, family, query.over).await?
            };
            host.default_routes.extend(routes);
        }
        if let Some(address) = query.reach {
            host.resolved = Some(resolve(&mut socket, address, None).await?);
        }
        Ok(host)
    }

    /// The default route that the kernel uses, with equal ones of other interfaces: of several with the same metric the
    /// kernel returns the one that came up first.
    async fn probe(
        &self,
        socket: &mut Socket,
        family: Family,
        over: Option<u32>,
    ) -> Result<Vec<DefaultRoute>, KernelError> {
        let mut routes = probe(socket, family, over).await?;
        if over.is_some() || routes.is_empty() {
            return Ok(routes);
        }
        let links: BTreeSet<u32> = self
            .addresses
            .iter()
            .filter(|address| Family::of(address.address) == family && !address.is_link_scoped())
            .map(|address| address.link_index)
            .filter(|index| routes.iter().all(|route| route.link_index != *index))
            .collect();
        for link in links {
            routes.extend(probe(socket, family, Some(link)).await?);
        }
        Ok(routes)
    }

    /// Returns the items of a dump and records whether it was complete.
    fn note<T>(&mut self, dump: Dump<T>) -> Vec<T> {
        self.complete &= dump.complete;
        dump.items
    }
}

/// All default routes, by listing all routes.
async fn default_routes(
    socket: &mut Socket,
    family: Family,
) -> Result<Dump<Vec<DefaultRoute>>, KernelError> {
    let request = route::list(address_family(family), None, None);
    let pick = |message: &_| Some(read_default_routes(message)).filter(|routes| !routes.is_empty());
    route::dump(socket, request, pick).await
}

/// The default route that the kernel uses for an unassigned address, over the interface `over` if given; none if it
/// uses no default route of the main table, for whatever reason.
async fn probe(
    socket: &mut Socket,
    family: Family,
    over: Option<u32>,
) -> Result<Vec<DefaultRoute>, KernelError> {
    let nobody = match family {
        // Class E, reserved since 1989 (RFC 1112 §4).
        Family::V4 => IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
        // Outside 2000::/3, the only block from which global addresses are assigned (RFC 4291 §2.4).
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x4000, 0, 0, 0, 0, 0, 0, 1)),
    };
    // Return the FIB entry itself, and its table. Kernels before 4.13 ignore the flag and return a host route.
    let flags = RouteFlags::FibMatch | with_table(nobody);
    let answer = socket.get(get(nobody, over, flags)).await?;
    let Ok(Some(Message::NewRoute(message))) = answer else {
        return Ok(Vec::new());
    };
    let mut routes = read_default_routes(&message);
    routes.retain(|route| over.is_none_or(|over| route.link_index == over));
    Ok(routes)
}

/// The neighbor entries of a device with a known link-layer address, IPv4 and IPv6.
///
/// # Errors
///
/// The netlink exchange with the kernel failed, or refuses to list them.
pub(crate) async fn neighbors(
    index: u32,
    name: &InterfaceName,
) -> Result<BTreeMap<IpAddr, MacAddr>, KernelError> {
    let mut socket = Socket::open()?;
    let mut neighbors = BTreeMap::new();
    for family in FAMILIES {
        let entries = socket.dump(
            "neighbor entries",
            neighbor::list(family, index),
            |message| match neighbor::read(&message, index, name)? {
                Entry {
                    key: Key::Neighbor(_, address),
                    object: Object::Neighbor(mac),
                    ..
                } => Some((address, mac)),
                _ => None,
            },
        );
        neighbors.extend(entries.await?.items);
    }
    Ok(neighbors)
}

/// The kernel's route to an address for local or forwarded packets, or its refusal.
pub(super) async fn resolve(
    socket: &mut Socket,
    address: IpAddr,
    forwarded: Option<Forwarded>,
) -> Result<Result<ResolvedRoute, Refused>, KernelError> {
    let mut message = question(address, with_table(address));
    if let Some(forwarded) = forwarded {
        message.header.source_prefix_length = message.header.destination_prefix_length;
        message.attributes.extend([
            RouteAttribute::Source(forwarded.source.into()),
            RouteAttribute::Iif(forwarded.link_index),
        ]);
    }
    let request = Request::new(Verb::Get, Message::GetRoute(message));
    let answer = match socket.get(request).await? {
        Ok(answer) => answer,
        Err(refused) => return Ok(Err(refused)),
    };
    let route = match &answer {
        Some(Message::NewRoute(message)) => read_resolved(message),
        _ => None,
    };
    // A reply without a device is no usable route.
    Ok(route.ok_or(Refused {
        errno: Errno::ENETUNREACH,
        hint: None,
    }))
}

/// The flag that makes the kernel return a route's table. IPv6 always returns it and refuses the flag.
fn with_table(address: IpAddr) -> RouteFlags {
    match address {
        IpAddr::V4(_) => RouteFlags::LookupTable,
        IpAddr::V6(_) => RouteFlags::empty(),
    }
}

/// `ip route get ADDRESS`.
fn get(address: IpAddr, over: Option<u32>, flags: RouteFlags) -> Request {
    let mut message = question(address, flags);
    message.attributes.extend(over.map(RouteAttribute::Oif));
    Request::new(Verb::Get, Message::GetRoute(message))
}

fn question(address: IpAddr, flags: RouteFlags) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    message.header.flags = flags;
    message.attributes = vec![RouteAttribute::Destination(address.into())];
    message
}

fn read_link(message: &LinkMessage) -> Option<Link> {
    let mut name = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Mtu(bytes) => mtu = Some(*bytes),
            _ => {}
        }
    }
    Some(Link {
        index: message.header.index,
        name: name?,
        mtu: mtu?,
        has_neighbors: !message
            .header
            .flags
            .intersects(LinkFlags::Noarp | LinkFlags::Pointopoint),
    })
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    // IFA_FLAGS carries all flags; the header's byte, the only source before Linux 3.14, has those used here as well.
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    // On a point-to-point link IFA_ADDRESS is the peer's address and IFA_LOCAL ours (linux/if_addr.h).
    let (mut local, mut any) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => any = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(any)?;
    let untested =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    Some(Address {
        link_index: message.header.index,
        address,
        prefix_len: message.header.prefix_len,
        deprecated: flags.contains(AddressFlags::Deprecated),
        permanent: flags.contains(AddressFlags::Permanent),
        // In IPv4 the same bit marks a secondary address.
        temporary: address.is_ipv6() && flags.contains(AddressFlags::Secondary),
        tentative: untested || flags.contains(AddressFlags::Dadfailed),
    })
}

/// Whether a notification is about a default route of the main table, with any metric.
pub(super) fn is_default_route(message: &Message) -> bool {
    let (Message::NewRoute(message) | Message::DelRoute(message)) = message else {
        return false;
    };
    message.header.destination_prefix_length == 0
        && message.header.table == RouteHeader::RT_TABLE_MAIN
}

/// One entry per live next hop of the route: any of them reaches the peers.
fn read_default_routes(message: &RouteMessage) -> Vec<DefaultRoute> {
    let header = &message.header;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return Vec::new(),
    };
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut table = u32::from(header.table);
    let mut metric = 0;
    let mut links = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Oif(index) if !header.flags.contains(RouteFlags::Dead) => {
                links.push(*index);
            }
            RouteAttribute::MultiPath(hops) => {
                let hops = hops.iter();
                let alive = hops.filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
                links.extend(alive.map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return Vec::new();
    }
    let route = |link_index| DefaultRoute {
        family,
        link_index,
        metric,
    };
    links.into_iter().map(route).collect()
}

fn read_resolved(message: &RouteMessage) -> Option<ResolvedRoute> {
    let (mut link_index, mut source, mut gateway) = (None, None, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => link_index = Some(*index),
            RouteAttribute::PrefSource(address) => source = route::ip(address),
            RouteAttribute::Gateway(address) => gateway = route::ip(address),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(ResolvedRoute {
        link_index: link_index?,
        source,
        local: message.header.kind == RouteType::Local,
        gateway,
        table,
    })
}
