//! Messages about network devices: `ip link`.

use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::link::{
    InfoData, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags,
    LinkInfo, LinkMessage,
};

use super::message::{Message, Request, Verb};
use crate::base::net::{InterfaceName, MacAddr};
use crate::plan::state::{Ipip, Link, LinkKind, Object, Vxlan, Wireguard};

/// A device, as reported by the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KernelLink {
    pub(super) index: u32,
    pub(super) name: InterfaceName,
    pub(super) mtu: u32,
    pub(super) up: bool,
    /// Whether it has a carrier; meaningful only if it is up.
    pub(super) carrier: bool,
    /// Its alias (`ip link set DEVICE alias TEXT`).
    pub(super) alias: Option<String>,
    pub(super) object: Object,
}

/// Requests one device by name.
pub(super) fn get_by_name(name: &InterfaceName) -> Request {
    get(0, Some(LinkAttribute::IfName(name.to_string())))
}

/// Requests one device by index.
pub(super) fn get_by_index(index: u32) -> Request {
    get(index, None)
}

fn get(index: u32, name: Option<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    let without_statistics = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
    message.attributes = name.into_iter().chain([without_statistics]).collect();
    Request::new(Verb::Get, Message::GetLink(message))
}

/// Creates a device, down. The request includes its MAC address, if it has one: if it were set later, or left to the
/// kernel, systemd-udevd would choose another. `None` for a TUN device, which its data plane creates.
pub(super) fn create(name: &InterfaceName, want: &Link) -> Option<Request> {
    let (kind, data) = match &want.kind {
        LinkKind::Vxlan(vxlan) => {
            let options = vxlan_options(vxlan);
            (InfoKind::Vxlan, Some(InfoData::Vxlan(options)))
        }
        LinkKind::Ipip(ipip) => {
            let options = ipip_options(ipip);
            (InfoKind::IpIp, Some(InfoData::IpTunnel(options)))
        }
        // Its options are set over generic netlink.
        LinkKind::Wireguard(_) => (InfoKind::Wireguard, None),
        LinkKind::Tun(_) => return None,
    };
    let infos = [Some(LinkInfo::Kind(kind)), data.map(LinkInfo::Data)];
    let mut message = LinkMessage::default();
    let mac = want.kind.mac();
    message.attributes = [
        Some(LinkAttribute::IfName(name.to_string())),
        mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())),
        Some(LinkAttribute::Mtu(want.mtu)),
        Some(LinkAttribute::TxQueueLen(0)),
        Some(LinkAttribute::LinkInfo(
            infos.into_iter().flatten().collect(),
        )),
    ]
    .into_iter()
    .flatten()
    .collect();
    let message = Message::NewLink(message);
    Some(Request::new(Verb::Add, message))
}

fn vxlan_options(vxlan: &Vxlan) -> Vec<InfoVxlan> {
    let mut options = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Link(vxlan.underlay_index),
        vxlan_local(vxlan.local),
        InfoVxlan::Ttl(0),
        InfoVxlan::Tos(0),
        InfoVxlan::Learning(vxlan.learning),
        InfoVxlan::Proxy(false),
        InfoVxlan::Rsc(false),
        InfoVxlan::L2Miss(false),
        InfoVxlan::L3Miss(false),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::UDPCsum(vxlan.checksum),
        // Over IPv6 a zero UDP checksum is an exception that both ends must allow (RFC 6935 §5); flannel does not, and
        // would drop our packets.
        InfoVxlan::UDPZeroCsumTX(false),
        InfoVxlan::UDPZeroCsumRX(false),
    ];
    if vxlan.gbp {
        options.push(InfoVxlan::Gbp);
    }
    options
}

fn vxlan_local(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }
}

/// Outer TTL 0 copies the inner one. Path MTU discovery is off, which the kernel refuses with any other TTL
/// (`ipip_netlink_parms()`).
fn ipip_options(ipip: &Ipip) -> Vec<InfoIpTunnel> {
    vec![
        InfoIpTunnel::Local(ipip.local.into()),
        InfoIpTunnel::Ttl(0),
        InfoIpTunnel::Tos(0),
        InfoIpTunnel::PMtuDisc(false),
    ]
}

/// Changes the options that differ and can be changed; `None` if there are none.
pub(super) fn change_options(index: u32, was: &Link, want: &Link) -> Option<Request> {
    let (kind, data) = match (&was.kind, &want.kind) {
        (LinkKind::Vxlan(was), LinkKind::Vxlan(want)) => {
            let mut options = Vec::new();
            if was.local != want.local {
                options.push(vxlan_local(want.local));
            }
            if was.learning != want.learning {
                options.push(InfoVxlan::Learning(want.learning));
            }
            if options.is_empty() {
                return None;
            }
            (InfoKind::Vxlan, InfoData::Vxlan(options))
        }
        // For ipip the kernel sets missing options to zero, so send all.
        (LinkKind::Ipip(was), LinkKind::Ipip(want)) if was != want => {
            (InfoKind::IpIp, InfoData::IpTunnel(ipip_options(want)))
        }
        _ => return None,
    };
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(kind),
        LinkInfo::Data(data),
    ])];
    // Without NLM_F_CREATE this changes what exists; RTM_SETLINK would skip the options.
    let message = Message::NewLink(message);
    Some(Request::new(Verb::Plain, message))
}

/// Changes MTU, MAC address and state where they differ. A separate message, because the kernel refuses an MTU together
/// with options (`vxlan_nl2conf()`).
pub(super) fn change(index: u32, was: &Link, want: &Link) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(mac) = want.kind.mac().filter(|mac| was.kind.mac() != Some(*mac)) {
        let mac = mac.0.to_vec();
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
    Request::new(Verb::Plain, Message::SetLink(message))
}

/// Sets a device's alias. The kernel ignores an alias in the request that creates a device (`rtnl_create_link()`).
pub(super) fn set_alias(index: u32, text: String) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::IfAlias(text)];
    Request::new(Verb::Plain, Message::SetLink(message))
}

/// Deletes a device.
pub(super) fn delete(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Request::new(Verb::Plain, Message::DelLink(message))
}

/// Reads a device from a reply or a notification; `None` for any other message.
pub(super) fn read(message: &Message) -> Option<KernelLink> {
    let (Message::NewLink(link) | Message::DelLink(link)) = message else {
        return None;
    };
    let mut name = None;
    let mut mtu = 0;
    let mut alias = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = text.parse().ok(),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::IfAlias(text) if !text.is_empty() => alias = Some(text.clone()),
            _ => {}
        }
    }
    let up = link.header.flags.contains(LinkFlags::Up);
    Some(KernelLink {
        index: link.header.index,
        name: name?,
        mtu,
        up,
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
        alias,
        object: kind(link).map_or(Object::OtherLink, |kind| {
            Object::Link(Box::new(Link { mtu, up, kind }))
        }),
    })
}

/// Its kind; `None` if it is no kind of ours, or has an option that we never set.
fn kind(link: &LinkMessage) -> Option<LinkKind> {
    let infos = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        })?;
    if infos.contains(&LinkInfo::Kind(InfoKind::Wireguard)) {
        return Some(LinkKind::Wireguard(Wireguard::default()));
    }
    let is_ipip = infos.contains(&LinkInfo::Kind(InfoKind::IpIp));
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(options)) => vxlan(link, options).map(LinkKind::Vxlan),
        LinkInfo::Data(InfoData::IpTunnel(options)) if is_ipip => ipip(options).map(LinkKind::Ipip),
        _ => None,
    })
}

fn vxlan(link: &LinkMessage, options: &[InfoVxlan]) -> Option<Vxlan> {
    let mac = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(octets) => octets.as_slice().try_into().ok(),
            _ => None,
        })?;
    let mut vxlan = Vxlan {
        vni: 0,
        port: 0,
        underlay_index: 0,
        local: Ipv4Addr::UNSPECIFIED.into(),
        mac: MacAddr(mac),
        learning: false,
        gbp: false,
        checksum: false,
    };
    for option in options {
        match option {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Link(index) => vxlan.underlay_index = *index,
            InfoVxlan::Local(local) => vxlan.local = IpAddr::V4(*local),
            InfoVxlan::Local6(local) => vxlan.local = IpAddr::V6(*local),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Gbp => vxlan.gbp = true,
            InfoVxlan::UDPCsum(checksum) => vxlan.checksum = *checksum,
            InfoVxlan::Group(group) if !group.is_unspecified() => return None,
            InfoVxlan::Group6(group) if !group.is_unspecified() => return None,
            InfoVxlan::Gpe => return None,
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

fn ipip(options: &[InfoIpTunnel]) -> Option<Ipip> {
    let mut local = Ipv4Addr::UNSPECIFIED;
    for option in options {
        match option {
            InfoIpTunnel::Local(IpAddr::V4(address)) => local = *address,
            InfoIpTunnel::Remote(address) if !address.is_unspecified() => return None,
            InfoIpTunnel::Link(index) if *index != 0 => return None,
            InfoIpTunnel::Ttl(1..) | InfoIpTunnel::PMtuDisc(true) => return None,
            InfoIpTunnel::CollectMetadata => return None,
            _ => {}
        }
    }
    Some(Ipip { local })
}
