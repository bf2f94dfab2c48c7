//! Messages about device addresses: `ip address`.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::family;
use super::message::{Message, Request, Verb};

/// Requests all addresses of a device, IPv4 and IPv6.
pub(super) fn list(index: u32) -> Message {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Unspec;
    message.header.index = index;
    Message::GetAddress(message)
}

/// Adds an address.
pub(super) fn set(index: u32, address: IpNet) -> Request {
    let message = Message::NewAddress(describe(index, address));
    Request::new(Verb::Replace, message)
}

/// Removes an address.
pub(super) fn delete(index: u32, address: IpNet) -> Request {
    let message = Message::DelAddress(describe(index, address));
    Request::new(Verb::Plain, message)
}

fn describe(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    // IFA_LOCAL is the device's own address, IFA_ADDRESS the remote end's; they differ only on point-to-point links.
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
    ];
    if address.addr().is_ipv6() {
        // No other node can have the address, and duplicate address detection would keep it tentative for a second.
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        message.attributes.push(flags);
    }
    message
}

/// Reads the device's index and the address from a reply or a notification.
pub(super) fn read(message: &Message) -> Option<(u32, IpNet)> {
    let (Message::NewAddress(message) | Message::DelAddress(message)) = message else {
        return None;
    };
    let find =
        |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let address = IpNet::new(address, message.header.prefix_len).ok()?;
    Some((message.header.index, address))
}
