//! Messages about network devices: `ip link`.

use std::net::Ipv4Addr;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use super::message::{Message, Request, Verb};
use crate::net::{InterfaceName, MacAddr};
use crate::state::{Object, Vxlan};

/// A device as the kernel tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: InterfaceName,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) object: Object,
}

/// Asks for one device by its name.
pub(super) fn get_by_name(name: &InterfaceName) -> Request {
    get(0, Some(LinkAttribute::IfName(name.to_string())))
}

/// Asks for one device by its index.
pub(super) fn get_by_index(index: u32) -> Request {
    get(index, None)
}

fn get(index: u32, name: Option<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes = name.into_iter().chain([without_statistics]).collect();
    Request::new(Verb::Get, RouteNetlinkMessage::GetLink(message))
}

/// Creates a VXLAN device, down. The MAC address is part of it: one set later, or left to the kernel, invites
/// systemd-udevd to choose another.
pub(super) fn create(name: &InterfaceName, vxlan: &Vxlan) -> Request {
    let mut options = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Link(vxlan.underlay_index),
        InfoVxlan::Local(vxlan.local),
        InfoVxlan::Ttl(0),
        InfoVxlan::Tos(0),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::Proxy(false),
        InfoVxlan::Rsc(false),
        InfoVxlan::L2Miss(false),
        InfoVxlan::L3Miss(false),
        InfoVxlan::Port(vxlan.port),
        // RFC 7348 §5: the checksum SHOULD be zero. Linux would compute it, and a good many NICs get it wrong when the
        // inner packet was translated (flannel's issue 1279). It protects nothing that the inner packet does not.
        InfoVxlan::UDPCsum(false),
        InfoVxlan::UDPZeroCsumTX(false),
        InfoVxlan::UDPZeroCsumRX(false),
    ];
    if vxlan.gbp {
        options.push(InfoVxlan::Gbp);
    }
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::Address(vxlan.mac.0.to_vec()),
        LinkAttribute::Mtu(vxlan.mtu),
        LinkAttribute::TxQueueLen(0),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(options)),
        ]),
    ];
    Request::new(Verb::Add, RouteNetlinkMessage::NewLink(message))
}

/// Changes the VXLAN options that differ and can be changed; `None` if none does.
pub(super) fn change_options(index: u32, was: &Vxlan, want: &Vxlan) -> Option<Request> {
    let mut options = Vec::new();
    if was.local != want.local {
        options.push(InfoVxlan::Local(want.local));
    }
    if was.learning != want.learning {
        options.push(InfoVxlan::Learning(want.learning));
    }
    if options.is_empty() {
        return None;
    }
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(options)),
    ])];
    // Without NLM_F_CREATE this changes what exists; RTM_SETLINK would skip the options.
    let message = RouteNetlinkMessage::NewLink(message);
    Some(Request::new(Verb::Plain, message))
}

/// Changes MTU, MAC address and state where they differ. A message of its own, because the kernel refuses an MTU
/// together with options (`vxlan_nl2conf()`).
pub(super) fn change(index: u32, was: &Vxlan, want: &Vxlan) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if was.mac != want.mac {
        let mac = want.mac.0.to_vec();
        message.attributes.push(LinkAttribute::Address(mac));
    }
    if was.mtu != want.mtu {
        message.attributes.push(LinkAttribute::Mtu(want.mtu));
    }
    if was.up != want.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if want.up {
            LinkFlags::Up
        } else {
            LinkFlags::empty()
        };
    }
    Request::new(Verb::Plain, RouteNetlinkMessage::SetLink(message))
}

/// Brings a device up.
pub(super) fn set_up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = LinkFlags::Up;
    Request::new(Verb::Plain, RouteNetlinkMessage::SetLink(message))
}

/// Deletes a device.
pub(super) fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::new(Verb::Plain, RouteNetlinkMessage::DelLink(message))
}

/// Reads a device from an answer or a notification; `None` if it is nothing of the sort.
pub(super) fn read(message: &Message) -> Option<Link> {
    let Message::Route(RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)) =
        message
    else {
        return None;
    };
    let mut name = None;
    let mut mtu = 0;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    Some(Link {
        index: link.header.index,
        name: name?,
        mtu,
        up: link.header.flags.contains(LinkFlags::Up),
        object: vxlan(link).map_or(Object::OtherLink, Object::Vxlan),
    })
}

/// The device as a VXLAN device; `None` if it is none, or has an option that we never set.
fn vxlan(link: &LinkMessage) -> Option<Vxlan> {
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        underlay_index: 0,
        local: Ipv4Addr::UNSPECIFIED,
        mac: MacAddr([0; 6]),
        mtu: 0,
        learning: false,
        gbp: false,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    let mut options = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(octets) => {
                vxlan.mac = MacAddr(octets.as_slice().try_into().ok()?);
            }
            LinkAttribute::Mtu(mtu) => vxlan.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                options = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vxlan(options)) => Some(options),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    for option in options? {
        match option {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Link(index) => vxlan.underlay_index = *index,
            InfoVxlan::Local(local) => vxlan.local = *local,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::Group(group) if !group.is_unspecified() => return None,
            InfoVxlan::Group6(_) | InfoVxlan::Local6(_) | InfoVxlan::Gpe => return None,
            InfoVxlan::Proxy(true)
            | InfoVxlan::Rsc(true)
            | InfoVxlan::L2Miss(true)
            | InfoVxlan::L3Miss(true)
            | InfoVxlan::CollectMetadata(true) => return None,
            _ => {}
        }
    }
    Some(vxlan)
}
