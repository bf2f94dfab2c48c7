//! The values of documents: addresses, names and numbers, each with what it may be.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, ip_mask_to_prefix};

use super::Problem;
use super::form::MOST;
use super::node::Node;
use crate::base::net::MacAddr;

/// A name of an interface or a driver, or a pattern for such, that networkd takes as one word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(String);

/// A domain name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain(String);

/// A text that is not what it should be; who parsed it knows the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unusable;

impl FromStr for Pattern {
    type Err = Unusable;

    fn from_str(text: &str) -> Result<Self, Unusable> {
        let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.@*?[]".contains(c);
        match (1..=64).contains(&text.len()) && text.chars().all(is_good) {
            true => Ok(Self(text.to_owned())),
            false => Err(Unusable),
        }
    }
}

impl FromStr for Domain {
    type Err = Unusable;

    /// Letters, digits, hyphens and underscores between dots, at most 253 bytes (RFC 1035 §2.3.4).
    fn from_str(text: &str) -> Result<Self, Unusable> {
        let is_label = |label: &str| {
            let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(is_good)
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        match name.len() <= 253 && name.split('.').all(is_label) {
            true => Ok(Self(name.to_owned())),
            false => Err(Unusable),
        }
    }
}

impl Pattern {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Domain {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A host's address; its prefix may stand behind it, or is in `netmask`, as a mask or a length. Without both it is
/// 24 or 64, as with cloud-init (`_normalize_net_keys`).
pub(super) fn host(address: &Node<'_>, netmask: Option<Node<'_>>) -> Result<IpNet, Problem> {
    let net = net(address, netmask, |ip| if ip.is_ipv4() { 24 } else { 64 })?;
    let ip = net.addr();
    match ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        true => Err(address.wrong("an address that a machine can have")),
        false => Ok(net),
    }
}

/// A route's destination, likewise; without a prefix it is one host, or everywhere.
pub(super) fn destination(address: &Node<'_>, netmask: Option<Node<'_>>) -> Result<IpNet, Problem> {
    let alone = |ip: IpAddr| match ip {
        _ if ip.is_unspecified() => 0,
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    net(address, netmask, alone).map(|net| net.trunc())
}

fn net(
    address: &Node<'_>,
    netmask: Option<Node<'_>>,
    otherwise: impl Fn(IpAddr) -> u8,
) -> Result<IpNet, Problem> {
    let expected = "an IP address, perhaps with a prefix length";
    let text = address.text(expected)?;
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net);
    }
    let ip: IpAddr = text.parse().map_err(|_| address.wrong(expected))?;
    let length = match &netmask {
        None => otherwise(ip),
        Some(node) => prefix(node, ip)?,
    };
    IpNet::new(ip, length).map_err(|_| address.wrong(expected))
}

/// A mask (`255.255.255.0`, `ffff:ffff::`) or a length, for an address of the family of `ip`.
fn prefix(node: &Node<'_>, ip: IpAddr) -> Result<u8, Problem> {
    let expected = "a network mask of the address's family, or a prefix length";
    let text = node.text(expected)?;
    let text = text.trim_start_matches('/');
    let length = match (text.parse::<IpAddr>(), text.parse::<u8>()) {
        (Ok(mask), _) if mask.is_ipv4() == ip.is_ipv4() => ip_mask_to_prefix(mask).ok(),
        (Err(_), Ok(length)) => IpNet::new(ip, length).ok().map(|net| net.prefix_len()),
        _ => None,
    };
    length.ok_or_else(|| node.wrong(expected))
}

/// A router's address.
pub(super) fn gateway(node: &Node<'_>) -> Result<IpAddr, Problem> {
    let expected = "the address of a router";
    let ip: IpAddr = node.parsed(expected)?;
    match ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        true => Err(node.wrong(expected)),
        false => Ok(ip),
    }
}

/// An MTU: IPv4 needs 68 bytes (RFC 791 §3.2), and the kernel's number has 16 bits for most cards.
pub(super) fn mtu(node: &Node<'_>) -> Result<u32, Problem> {
    let expected = "a number of bytes from 68 to 65535";
    let mtu: u32 = node.parsed(expected)?;
    match (68..=65535).contains(&mtu) {
        true => Ok(mtu),
        false => Err(node.wrong(expected)),
    }
}

/// The Ethernet address that a card is known by. No card has a group's, as some examples do.
pub(super) fn mac(node: &Node<'_>) -> Result<MacAddr, Problem> {
    node.parsed("an Ethernet address such as 52:54:00:12:34:56")
}

/// The Ethernet address that a card is to have.
pub(super) fn new_mac(node: &Node<'_>) -> Result<MacAddr, Problem> {
    let mac = mac(node)?;
    match mac.is_unicast() {
        true => Ok(mac),
        false => Err(node.wrong("the Ethernet address of one card")),
    }
}

pub(super) fn metric(node: &Node<'_>) -> Result<u32, Problem> {
    node.parsed("a number")
}

/// Name servers under a key.
pub(super) fn nameservers(node: &Node<'_>, key: &str) -> Result<Vec<IpAddr>, Problem> {
    node.parsed_list(key, MOST, "the IP address of a name server")
}

/// Domains under a key.
pub(super) fn domains(node: &Node<'_>, key: &str) -> Result<Vec<Domain>, Problem> {
    node.parsed_list(key, MOST, "a domain name")
}
