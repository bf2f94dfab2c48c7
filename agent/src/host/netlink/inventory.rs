//! All interfaces of this network namespace with their kinds and addresses, the routes of the main table and an
//! interface's neighbor entries, whichever program made them: for checks that look for conflicts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};

use super::message::Message;
use super::socket::Socket;
use super::{FAMILIES, KernelError, address, neighbor, route};
use crate::base::net::MacAddr;

/// `RTNH_F_DEAD` and `RTNH_F_LINKDOWN` (linux/rtnetlink.h): the interface of the route is down or has no carrier.
const DEAD_OR_LINKDOWN: u32 = 0x11;

/// Interfaces, addresses and routes, each in the kernel's order.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) interfaces: Vec<Interface>,
    /// With the index of the interface.
    pub(crate) addresses: Vec<(u32, IpNet)>,
    /// Those of the main table.
    pub(crate) routes: Vec<Route>,
}

/// An interface.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// In bytes.
    pub(crate) mtu: u32,
    /// Its kind, as in `ip link`: `bridge`, `vxlan`, `veth`; `None` for hardware.
    pub(crate) kind: Option<String>,
    pub(crate) mac: Option<MacAddr>,
    /// Index of its bridge.
    pub(crate) master: Option<u32>,
    /// Its alias (`ip link set alias`).
    pub(crate) alias: Option<String>,
}

/// A route of the main table.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    /// Its origin: `RTPROT_…`.
    pub(crate) protocol: u8,
    pub(crate) kind: RouteType,
    pub(crate) gateway: Option<IpAddr>,
    /// Index of the interface; of the first next hop if there are several.
    pub(crate) link: Option<u32>,
    pub(crate) metric: Option<u32>,
    /// Whether the interface has no carrier or is down.
    pub(crate) dead: bool,
}

impl Inventory {
    /// Queries the kernel over its own socket.
    ///
    /// # Errors
    /// The netlink exchange with the kernel failed, or refuses to list something.
    pub(crate) async fn take() -> Result<Self, KernelError> {
        let mut socket = Socket::open()?;
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let request = Message::GetLink(message);
        let interfaces = socket.dump("interfaces", request, |message| match message {
            Message::NewLink(link) => interface(&link),
            _ => None,
        });
        let interfaces = interfaces.await?.items;
        let addresses = socket.dump("addresses", address::list(0), |message| {
            address::read(&message)
        });
        let addresses = addresses.await?.items;
        let mut routes = Vec::new();
        for family in FAMILIES {
            let request = route::list(family, None, None);
            let dump = route::dump(&mut socket, request, read_route).await?;
            routes.extend(dump.items);
        }
        Ok(Self {
            interfaces,
            addresses,
            routes,
        })
    }

    /// The interface with that name.
    pub(crate) fn named(&self, name: &str) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.name == name)
    }

    /// The interface with that index.
    pub(crate) fn with_index(&self, index: u32) -> Option<&Interface> {
        self.interfaces
            .iter()
            .find(|interface| interface.index == index)
    }

    /// The addresses of an interface.
    pub(crate) fn addresses_of(&self, index: u32) -> impl Iterator<Item = IpNet> {
        let of = move |(owner, net): &(u32, IpNet)| (*owner == index).then_some(*net);
        self.addresses.iter().filter_map(of)
    }
}

/// The addresses of the interface with that name, except IPv6 link-local ones; `None` if there is no such interface.
///
/// # Errors
/// As [`Inventory::take`].
pub(crate) async fn addresses_of(name: &str) -> Result<Option<Vec<IpNet>>, KernelError> {
    let Ok(index) = nix::net::if_::if_nametoindex(name) else {
        return Ok(None);
    };
    let mut socket = Socket::open()?;
    let dump = socket.dump("addresses", address::list(index), |message| {
        let (owner, net) = address::read(&message)?;
        let local = matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        (owner == index && !local).then_some(net)
    });
    Ok(Some(dump.await?.items))
}

/// The neighbor addresses recently confirmed on an interface.
///
/// # Errors
/// As [`Inventory::take`].
pub(crate) async fn live_neighbors(index: u32) -> Result<Vec<IpAddr>, KernelError> {
    let mut socket = Socket::open()?;
    let mut found = Vec::new();
    for family in FAMILIES {
        let request = neighbor::list(family, index);
        let dump = socket.dump("neighbor entries", request, |message| {
            let Message::NewNeighbour(entry) = message else {
                return None;
            };
            let live = matches!(
                entry.header.state,
                NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe
            );
            let mut attributes = entry.attributes.iter();
            let address = attributes.find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(address) => neighbor::ip(address),
                _ => None,
            });
            address.filter(|_| live && entry.header.ifindex == index)
        });
        found.extend(dump.await?.items);
    }
    Ok(found)
}

/// The index of the interface over which the kernel sends to an address, by all its rules and tables; `None` if it has
/// no route.
///
/// # Errors
/// As [`Inventory::take`].
pub(crate) async fn link_towards(address: IpAddr) -> Result<Option<u32>, KernelError> {
    let query = super::host::Query {
        reach: Some(address),
        ..Default::default()
    };
    let host = super::host::Host::observe(query).await?;
    let route = host.resolved.and_then(Result::ok);
    Ok(route
        .filter(|route| !route.local)
        .map(|route| route.link_index))
}

fn interface(message: &LinkMessage) -> Option<Interface> {
    let mut found = Interface {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        kind: None,
        mac: None,
        master: None,
        alias: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Mtu(bytes) => found.mtu = *bytes,
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias.clone()),
            LinkAttribute::Controller(index) => found.master = Some(*index),
            LinkAttribute::Address(octets) => {
                found.mac = octets.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::LinkInfo(infos) => {
                found.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some(found)
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    // A default route has no destination attribute.
    let mut destination: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut gateway, mut link, mut metric) = (None, None, None);
    let mut dead = header.flags.bits() & DEAD_OR_LINKDOWN != 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = route::ip(address)?,
            RouteAttribute::Gateway(address) => gateway = route::ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(number) => metric = Some(*number),
            RouteAttribute::MultiPath(hops) => {
                link = hops.first().map(|hop| hop.interface_index);
                dead |= hops
                    .iter()
                    .all(|hop| hop.flags.intersects(RouteNextHopFlags::Dead));
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    Some(Route {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        protocol: u8::from(header.protocol),
        kind: header.kind,
        gateway,
        link,
        metric,
        dead,
    })
}
