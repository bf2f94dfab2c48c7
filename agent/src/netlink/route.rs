//! Messages about routes: `ip route`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::family;
use super::message::{Message, Request, Verb};

/// The number that marks our routes and next hops (`ip route show proto 83`): 0x53, an "S".
///
/// linux/rtnetlink.h and iproute2's rt_protos have 0-4, 8-18, 42, 84 (OVN), 99 and 186-192; Calico uses 80.
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

/// [`OURS`] as a number.
pub(super) const PROTOCOL: u8 = 83;

/// How a route leads to its destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// By a next-hop object, by number.
    NextHop(u32),
    /// By a device and a gateway of its own.
    Inline {
        /// Index of the device.
        link: u32,
        /// The gateway.
        gateway: IpAddr,
        /// Whether the gateway is taken to be on the link.
        onlink: bool,
    },
}

/// A unicast route of the main table with metric 0, as the kernel tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelRoute {
    pub(super) destination: IpNet,
    pub(super) protocol: u8,
    /// Index of the device; also where a next-hop object says so.
    pub(super) link: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) onlink: bool,
    pub(super) next_hop: Option<u32>,
    /// Whether it is a plain unicast route without anything that we never set.
    pub(super) plain: bool,
}

/// Without the device, of which only the index is known here.
impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " proto {}", self.protocol)
    }
}

/// Asks for the IPv4 routes of the main table, of one protocol, over one device.
pub(super) fn list(protocol: Option<RouteProtocol>, link: Option<u32>) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol.unwrap_or_default();
    message.attributes = link.map(RouteAttribute::Oif).into_iter().collect();
    RouteNetlinkMessage::GetRoute(message)
}

/// Sets a route of ours.
pub(super) fn set(verb: Verb, destination: IpNet, path: Path) -> Request {
    let mut message = describe(destination, u8::from(OURS));
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    match path {
        Path::NextHop(id) => message.attributes.push(RouteAttribute::NhId(id)),
        Path::Inline {
            link,
            gateway,
            onlink,
        } => {
            if onlink {
                message.header.flags = RouteFlags::Onlink;
            }
            message.attributes.extend([
                RouteAttribute::Oif(link),
                RouteAttribute::Gateway(gateway.into()),
            ]);
        }
    }
    Request::new(verb, RouteNetlinkMessage::NewRoute(message))
}

/// Removes a route that somebody of the given protocol made. The kernel takes the device into account only for a route
/// that has no next-hop object (`fib_nh_match()`).
pub(super) fn delete(destination: IpNet, protocol: u8, link: Option<u32>) -> Request {
    let mut message = describe(destination, protocol);
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(link.map(RouteAttribute::Oif));
    Request::new(Verb::Plain, RouteNetlinkMessage::DelRoute(message))
}

fn describe(destination: IpNet, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol.into();
    message.attributes = vec![RouteAttribute::Destination(destination.network().into())];
    message
}

/// Reads a route of the main table with metric 0 from an answer or a notification; `None` for any other.
pub(super) fn read(message: &Message) -> Option<KernelRoute> {
    let Message::Route(
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message),
    ) = message
    else {
        return None;
    };
    let header = &message.header;
    let any: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    if header.table != RouteHeader::RT_TABLE_MAIN || header.tos != 0 {
        return None;
    }
    let mut destination = any;
    let mut route = KernelRoute {
        destination: IpNet::from(any),
        protocol: header.protocol.into(),
        link: None,
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        next_hop: None,
        plain: header.kind == RouteType::Unicast && header.scope == RouteScope::Universe,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::NhId(id) => route.next_hop = Some(*id),
            RouteAttribute::Priority(metric) if *metric != 0 => return None,
            RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::Metrics(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Via(_) => route.plain = false,
            _ => {}
        }
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
