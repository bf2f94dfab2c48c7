//! Messages about routes: `ip route`.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};

use super::message::{Message, Request, Verb};
use super::socket::{Dump, Socket};
use super::{KernelError, family};

/// The route protocol number of our routes and next hops (`ip route show proto 83`): 0x53, an "S".
///
/// linux/rtnetlink.h and iproute2's rt_protos have 0-4, 8-18, 42, 84 (OVN), 99 and 186-192; Calico uses 80.
pub(super) const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

/// [`OURS`] as a number.
pub(super) const PROTOCOL: u8 = 83;

/// The kernel's default metric of IPv6 routes: `IP6_RT_PRIO_USER` of linux/ipv6_route.h.
const DEFAULT_V6: u32 = 1024;

/// The metric of a route used only if there is no other.
const WORST: u32 = u32::MAX;

/// How a route leads to its destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// By a next-hop object, by its ID.
    NextHop(u32),
    /// By a device and an inline gateway.
    Inline {
        /// Index of the device.
        link: u32,
        /// The gateway, unless the device needs none.
        gateway: Option<IpAddr>,
        /// Whether the gateway is taken as on-link.
        onlink: bool,
    },
}

/// A route of the main table with the default metric, or a blackhole with the worst one, as reported by the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelRoute {
    pub(super) destination: IpNet,
    pub(super) protocol: u8,
    /// Index of the device; also set if it comes from a next-hop object.
    pub(super) link: Option<u32>,
    pub(super) gateway: Option<IpAddr>,
    pub(super) onlink: bool,
    pub(super) next_hop: Option<u32>,
    pub(super) kind: Kind,
}

/// A route's form, compared with those that we make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// A unicast route with only attributes that we set.
    Plain,
    /// A blackhole with the worst metric.
    Blackhole,
    /// A blackhole with the default metric, as flannel makes them.
    PlainBlackhole,
    /// Any other route.
    Other,
}

/// Without the device: only its index is known here.
impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " proto {}", self.protocol)
    }
}

/// Requests the routes of the main table, by family, protocol and device.
pub(super) fn list(
    family: AddressFamily,
    protocol: Option<RouteProtocol>,
    link: Option<u32>,
) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = protocol.unwrap_or_default();
    message.attributes = link.map(RouteAttribute::Oif).into_iter().collect();
    Message::GetRoute(message)
}

/// Sets a route of ours.
pub(super) fn set(verb: Verb, destination: IpNet, path: Path) -> Request {
    let mut message = describe(destination, u8::from(OURS));
    message.header.scope = match path {
        Path::Inline { gateway: None, .. } => RouteScope::Link,
        _ => RouteScope::Universe,
    };
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
            message.attributes.push(RouteAttribute::Oif(link));
            let gateway = gateway.map(|gateway| RouteAttribute::Gateway(gateway.into()));
            message.attributes.extend(gateway);
        }
    }
    Request::new(verb, Message::NewRoute(message))
}

/// Removes a route with the given protocol number. The kernel compares the device only for a route without a next-hop
/// object (`fib_nh_match()`).
pub(super) fn delete(destination: IpNet, protocol: u8, link: Option<u32>) -> Request {
    let mut message = describe(destination, protocol);
    message.header.scope = RouteScope::NoWhere;
    message.attributes.extend(link.map(RouteAttribute::Oif));
    Request::new(Verb::Plain, Message::DelRoute(message))
}

/// Sets a blackhole route of ours. It has the worst metric, so that it applies only where there is no other route, such
/// as a container bridge's.
pub(super) fn set_blackhole(verb: Verb, destination: IpNet) -> Request {
    let mut message = describe(destination, PROTOCOL);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::BlackHole;
    message.attributes.push(RouteAttribute::Priority(WORST));
    Request::new(verb, Message::NewRoute(message))
}

/// Removes a blackhole route of ours.
pub(super) fn delete_blackhole(destination: IpNet) -> Request {
    let mut message = describe(destination, PROTOCOL);
    message.header.scope = RouteScope::NoWhere;
    message.header.kind = RouteType::BlackHole;
    message.attributes.push(RouteAttribute::Priority(WORST));
    Request::new(Verb::Plain, Message::DelRoute(message))
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

/// Reads a route of the main table from a reply or a notification, if it has the default metric or is a blackhole with
/// the worst; `None` for any other.
pub(super) fn read(message: &Message) -> Option<KernelRoute> {
    let (Message::NewRoute(message) | Message::DelRoute(message)) = message else {
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
        kind: match (header.kind, header.scope) {
            (RouteType::Unicast, RouteScope::Universe | RouteScope::Link) => Kind::Plain,
            (RouteType::BlackHole, _) => Kind::PlainBlackhole,
            _ => Kind::Other,
        },
    };
    let default_metric = if any.is_ipv6() { DEFAULT_V6 } else { 0 };
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::NhId(id) => route.next_hop = Some(*id),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::Metrics(_)
            | RouteAttribute::PrefSource(_)
            | RouteAttribute::Via(_) => route.kind = Kind::Other,
            _ => {}
        }
    }
    if header.kind == RouteType::BlackHole && metric == WORST {
        route.kind = Kind::Blackhole;
    } else if metric != default_metric {
        return None;
    }
    route.destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

/// Lists routes that `pick` selects. A table that does not exist has none: the kernel creates it with its first route.
pub(super) async fn dump<T: Send>(
    socket: &mut Socket,
    request: Message,
    mut pick: impl FnMut(&RouteMessage) -> Option<T> + Send,
) -> Result<Dump<T>, KernelError> {
    let dump = socket.dump("routes", request, |message| match message {
        Message::NewRoute(message) => pick(&message),
        _ => None,
    });
    match dump.await {
        Err(KernelError::Dump { source, .. }) if source.errno == Errno::ENOENT => Ok(Dump {
            items: Vec::new(),
            complete: true,
        }),
        result => result,
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
