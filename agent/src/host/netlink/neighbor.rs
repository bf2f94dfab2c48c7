//! Messages about neighbor and FDB entries, which share one format: `ip neighbor` and `bridge fdb`.

use std::net::IpAddr;

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteType;

use super::family;
use super::message::{Message, Request, Verb};
use crate::base::net::{InterfaceName, MacAddr};
use crate::plan::state::{Key, Object};

/// `NDA_NH_ID` of linux/neighbour.h.
const NDA_NH_ID: u16 = 13;

/// `NUD_PERMANENT` and `NUD_NOARP`; the crate's enum allows one state bit, but several can be set.
const PERMANENT: u16 = 0x80;
const NOARP: u16 = 0x40;

/// Requests the neighbor entries of a device in one family.
pub(super) fn list(family: AddressFamily, index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.attributes = vec![NeighbourAttribute::IfIndex(index)];
    Message::GetNeighbour(message)
}

/// Requests the FDB entries of a device. The kernel wants the device in the header for FDB dumps
/// (`valid_fdb_dump_strict()`), in an attribute for neighbor dumps (`neigh_valid_dump_req()`).
pub(super) fn list_fdb(index: u32) -> Message {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    Message::GetNeighbour(message)
}

/// Sets a permanent neighbor entry.
pub(super) fn set(index: u32, address: IpAddr, mac: MacAddr) -> Request {
    let mut message = describe(index, address);
    message.header.state = NeighbourState::Permanent;
    let mac = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
    message.attributes.push(mac);
    Request::new(Verb::Replace, Message::NewNeighbour(message))
}

/// Removes a neighbor entry.
pub(super) fn delete(index: u32, address: IpAddr) -> Request {
    let message = describe(index, address);
    Request::new(Verb::Plain, Message::DelNeighbour(message))
}

fn describe(index: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

/// Sets a permanent FDB entry.
pub(super) fn set_fdb(index: u32, mac: MacAddr, remote: IpAddr) -> Request {
    let mut message = describe_fdb(index, mac);
    message.header.state = NeighbourState::Permanent;
    let remote = NeighbourAttribute::Destination(remote.into());
    message.attributes.push(remote);
    Request::new(Verb::Replace, Message::NewNeighbour(message))
}

/// Removes an FDB entry with all its destinations.
pub(super) fn delete_fdb(index: u32, mac: MacAddr) -> Request {
    let message = describe_fdb(index, mac);
    Request::new(Verb::Plain, Message::DelNeighbour(message))
}

fn describe_fdb(index: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

/// A neighbor or FDB entry, as reported by the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) object: Object,
    /// Whether it was configured. Entries that the kernel learned or is resolving are not ours.
    pub(super) permanent: bool,
}

/// The index of the device of a neighbor or FDB entry.
pub(super) fn link_index(message: &Message) -> Option<u32> {
    match message {
        Message::NewNeighbour(message) | Message::DelNeighbour(message) => {
            Some(message.header.ifindex)
        }
        _ => None,
    }
}

/// Reads a neighbor or FDB entry of a device from a reply or a notification.
pub(super) fn read(message: &Message, index: u32, link: &InterfaceName) -> Option<Entry> {
    let (Message::NewNeighbour(message) | Message::DelNeighbour(message)) = message else {
        return None;
    };
    let header = &message.header;
    if header.ifindex != index {
        return None;
    }
    let mut mac = None;
    let mut destination = None;
    let mut odd = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => {
                mac = octets.as_slice().try_into().ok().map(MacAddr);
            }
            NeighbourAttribute::Destination(address) => destination = ip(address),
            // A port, VNI or device other than the VXLAN device's own, or a next-hop group.
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::IfIndex(_) => odd = true,
            NeighbourAttribute::Other(other) => odd |= other.kind() == NDA_NH_ID,
            _ => {}
        }
    }
    let state = u16::from(header.state);
    let (key, object, configured) = match header.family {
        AddressFamily::Bridge if header.flags.contains(NeighbourFlags::Own) => {
            let remote = destination.filter(|_| !odd);
            let object = remote.map_or(Object::Odd, Object::Fdb);
            // bridge(8) sets both; either keeps an entry from ageing (`vxlan_cleanup()`).
            (Key::Fdb(link.clone(), mac?), object, PERMANENT | NOARP)
        }
        AddressFamily::Inet | AddressFamily::Inet6 => {
            let object = mac.map_or(Object::Odd, Object::Neighbor);
            (Key::Neighbor(link.clone(), destination?), object, PERMANENT)
        }
        _ => return None,
    };
    Some(Entry {
        key,
        object,
        permanent: state & configured != 0,
    })
}

/// The crate decodes addresses by the message's family, which for FDB entries is AF_BRIDGE.
pub(super) fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        NeighbourAddress::Other(octets) => <[u8; 4]>::try_from(octets.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(octets.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    }
}
