//! The routes of a host that touch certain networks, whoever made them and whatever table they are in; and the way that
//! the kernel would take to addresses. For finding what gets in the overlay's way; nothing here is changed.

use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::host::{Way, way};
use super::message::Message;
use super::route::PROTOCOL;
use super::socket::Socket;
use super::{KernelError, Refused};

/// `RTPROT_KERNEL` of linux/rtnetlink.h: routes that come with an address.
const KERNEL: u8 = 2;

/// A unicast route of any table that somebody set on purpose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ForeignRoute {
    pub(crate) destination: IpNet,
    /// The number of its table.
    pub(crate) table: u32,
    /// `RTPROT_…`: who made it.
    pub(crate) protocol: u8,
    /// Index of its device, or of its first next hop's; `None` if the kernel names none.
    pub(crate) link: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
}

impl ForeignRoute {
    /// Whether it is in the main table.
    pub(crate) fn is_main(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

/// The unicast routes of all tables that have an address in common with one of the networks: neither an agent's own nor
/// those that the kernel makes of addresses.
///
/// # Errors
/// The kernel cannot be talked to, or refuses to list its routes.
pub(crate) async fn foreign_routes(networks: &[IpNet]) -> Result<Vec<ForeignRoute>, KernelError> {
    let mut socket = Socket::open()?;
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        // Table 0 stands for all (`inet_dump_fib()`).
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let request = RouteNetlinkMessage::GetRoute(message);
        let dump = socket.dump("routes", request, |message| {
            let Message::Route(RouteNetlinkMessage::NewRoute(message)) = message else {
                return None;
            };
            read(&message).filter(|route| {
                let meets = |net: &IpNet| {
                    net.contains(&route.destination) || route.destination.contains(net)
                };
                networks.iter().any(meets)
            })
        });
        match dump.await {
            Ok(dump) => found.extend(dump.items),
            // The table is made with its first route.
            Err(KernelError::Dump { source, .. }) if source.errno == Errno::ENOENT => (),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// How the kernel would send to each of the addresses, or why it would not.
///
/// # Errors
/// The kernel cannot be talked to.
pub(crate) async fn ways(
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<Vec<Result<Way, Refused>>, KernelError> {
    let mut socket = Socket::open()?;
    let mut ways = Vec::new();
    for address in addresses {
        ways.push(way(&mut socket, address).await?);
    }
    Ok(ways)
}

fn read(message: &RouteMessage) -> Option<ForeignRoute> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    // Blackholes and the like lead nowhere on purpose, as where a network is summed up.
    if header.kind != RouteType::Unicast || [PROTOCOL, KERNEL].contains(&protocol) {
        return None;
    }
    let mut destination: IpAddr = match header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let mut table = u32::from(header.table);
    let (mut link, mut gateway) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::MultiPath(hops) => {
                link = hops.first().map(|hop| hop.interface_index);
            }
            _ => {}
        }
    }
    Some(ForeignRoute {
        destination: IpNet::new(destination, header.destination_prefix_length).ok()?,
        table,
        protocol,
        link,
        gateway,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
