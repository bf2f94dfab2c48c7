//! All routes of a host that overlap given networks, in any table and of any origin, and the kernel's routes to given
//! addresses: read-only, for finding conflicts with the overlay.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::host::{Forwarded, ResolvedRoute, resolve};
use super::message::Message;
use super::route::{self, PROTOCOL};
use super::socket::Socket;
use super::{FAMILIES, KernelError, Refused, address_family};
use crate::base::net::Family;

/// `RTPROT_KERNEL` of linux/rtnetlink.h: routes that the kernel adds with an address.
const KERNEL: u8 = 2;

/// A unicast route of any table, set by a user or another program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ForeignRoute {
    pub(crate) destination: IpNet,
    /// Its table's ID.
    pub(crate) table: u32,
    /// Its origin: `RTPROT_…`.
    pub(crate) protocol: u8,
    /// Index of its device, or of its first next hop's; `None` if it has none.
    pub(crate) link: Option<u32>,
    pub(crate) gateway: Option<IpAddr>,
}

impl ForeignRoute {
    /// Whether it is in the main table.
    pub(crate) fn is_main(&self) -> bool {
        self.table == u32::from(RouteHeader::RT_TABLE_MAIN)
    }
}

/// The unicast routes of all tables that overlap one of the networks, except those of agents and those that the kernel
/// adds with addresses.
///
/// # Errors
/// The netlink exchange with the kernel failed, or refuses to list its routes.
pub(crate) async fn foreign_routes(networks: &[IpNet]) -> Result<Vec<ForeignRoute>, KernelError> {
    let mut socket = Socket::open()?;
    let mut found = Vec::new();
    for family in FAMILIES {
        // Table 0 means all tables (`inet_dump_fib()`).
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let request = Message::GetRoute(message);
        let dump = route::dump(&mut socket, request, |message| {
            read(message).filter(|route| {
                let meets = |net: &IpNet| {
                    net.contains(&route.destination) || route.destination.contains(net)
                };
                networks.iter().any(meets)
            })
        });
        found.extend(dump.await?.items);
    }
    Ok(found)
}

/// The kernel's route to each address, for local or forwarded packets, or its refusal.
///
/// # Errors
/// The netlink exchange with the kernel failed.
pub(crate) async fn resolve_routes(
    addresses: impl IntoIterator<Item = (IpAddr, Option<Forwarded>)>,
) -> Result<Vec<Result<ResolvedRoute, Refused>>, KernelError> {
    let mut socket = Socket::open()?;
    let mut routes = Vec::new();
    for (address, forwarded) in addresses {
        routes.push(resolve(&mut socket, address, forwarded).await?);
    }
    Ok(routes)
}

/// A policy rule that selects a routing table: `ip rule`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PolicyRule {
    pub(crate) family: Family,
    /// Lower priorities are evaluated first.
    pub(crate) priority: u32,
    /// The table's ID.
    pub(crate) table: u32,
    /// Whether the match is inverted (`not`).
    inverted: bool,
    source: Option<IpNet>,
    destination: Option<IpNet>,
    /// The input interface: `lo` for local packets.
    iif: Option<String>,
    oif: Option<String>,
    /// The fwmark and its mask.
    mark: Option<(u32, u32)>,
}

impl PolicyRule {
    /// Whether it matches a packet without a mark: a local one whose source address is not chosen yet, or a forwarded
    /// one with its source and input interface.
    pub(crate) fn is_about(&self, destination: IpAddr, forwarded: Option<(IpAddr, &str)>) -> bool {
        let (source, iif) = forwarded.unzip();
        let fits = Family::of(destination) == self.family
            && self
                .destination
                .is_none_or(|net| net.contains(&destination))
            && self
                .source
                .is_none_or(|net| source.is_some_and(|source| net.contains(&source)))
            && self
                .iif
                .as_deref()
                .is_none_or(|name| name == iif.unwrap_or("lo"))
            && self.oif.is_none()
            && self.mark.is_none_or(|(mark, _)| mark == 0);
        fits != self.inverted
    }
}

impl fmt::Display for PolicyRule {
    /// As ip(8) prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.inverted {
            f.write_str("not ")?;
        }
        match self.source {
            Some(net) => write!(f, "from {net}")?,
            None => f.write_str("from all")?,
        }
        if let Some(net) = self.destination {
            write!(f, " to {net}")?;
        }
        if let Some(name) = &self.iif {
            write!(f, " iif {name}")?;
        }
        if let Some(name) = &self.oif {
            write!(f, " oif {name}")?;
        }
        match self.mark {
            Some((mark, u32::MAX)) => write!(f, " fwmark {mark:#x}")?,
            Some((mark, mask)) => write!(f, " fwmark {mark:#x}/{mask:#x}")?,
            None => (),
        }
        write!(f, " lookup {}", self.table)
    }
}

/// The rules that select tables, in the kernel's order.
///
/// # Errors
/// The netlink exchange with the kernel failed, or refuses to list them.
pub(crate) async fn policy_rules() -> Result<Vec<PolicyRule>, KernelError> {
    let mut socket = Socket::open()?;
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let mut message = RuleMessage::default();
        message.header.family = address_family(family);
        let request = Message::GetRule(message);
        let dump = socket.dump("rules", request, |message| match message {
            Message::NewRule(message) => read_rule(&message, family),
            _ => None,
        });
        rules.extend(dump.await?.items);
    }
    Ok(rules)
}

fn read_rule(message: &RuleMessage, family: Family) -> Option<PolicyRule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable {
        return None;
    }
    let mut rule = PolicyRule {
        family,
        priority: 0,
        table: header.table.into(),
        inverted: header.flags.contains(RuleFlags::Invert),
        source: None,
        destination: None,
        iif: None,
        oif: None,
        mark: None,
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::Source(net) => rule.source = IpNet::new(*net, header.src_len).ok(),
            RuleAttribute::Destination(net) => {
                rule.destination = IpNet::new(*net, header.dst_len).ok();
            }
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::FwMask(number) => mask = *number,
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    Some(rule)
}

fn read(message: &RouteMessage) -> Option<ForeignRoute> {
    let header = &message.header;
    let protocol = u8::from(header.protocol);
    // Blackholes and the like drop on purpose, for example under an aggregated prefix.
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
            RouteAttribute::Destination(address) => destination = route::ip(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = route::ip(address),
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
