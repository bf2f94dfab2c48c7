//! Version 2 of cloud-init's network config, which is netplan's form: `ethernets:` with names of their own.
//!
//! Sources: cloud-init's "Networking config Version 2", netplan's "YAML configuration".

use std::net::IpAddr;

use super::form::{self, Dhcp, Draft, Interface, MOST, MOST_ROUTES, Match, Network, Route};
use super::node::Node;
use super::{Problem, Unsupported, values};
use crate::base::net::Family;

/// What is built upon cards, by the key that it stands below.
const BUILT: [(&str, Unsupported); 11] = [
    ("bonds", Unsupported::Bond),
    ("bridges", Unsupported::Bridge),
    ("dummy-devices", Unsupported::Device),
    ("modems", Unsupported::Modem),
    ("nm-devices", Unsupported::Device),
    ("openvswitch", Unsupported::Bridge),
    ("tunnels", Unsupported::Tunnel),
    ("virtual-ethernets", Unsupported::Device),
    ("vlans", Unsupported::Vlan),
    ("vrfs", Unsupported::Vrf),
    ("wifis", Unsupported::Wifi),
];

/// Keys of a card that change nothing about whom it reaches. Names stay as udev gives them (`set-name`).
const QUIET: [&str; 17] = [
    "critical",
    "dhcp-identifier",
    "emit-lldp",
    "generic-receive-offload",
    "generic-segmentation-offload",
    "ipv6-privacy",
    "large-receive-offload",
    "networkmanager",
    "optional-addresses",
    "receive-checksum-offload",
    "renderer",
    "set-name",
    "tcp-segmentation-offload",
    "tcp6-segmentation-offload",
    "transmit-checksum-offload",
    "wakeonlan",
    "wakeonwlan",
];

/// Keys of a route that decide whether it is one that can be set here.
const ROUTING_POLICY: [&str; 3] = ["from", "table", "type"];

pub(super) fn read(root: &Node<'_>) -> Result<Network, Problem> {
    let mut draft = Draft::default();
    for (key, node) in root.entries(MOST)? {
        match BUILT.iter().find(|(built, _)| *built == key) {
            Some((_, what)) => refuse(&node, *what)?,
            None if matches!(key, "ethernets" | "renderer" | "version") => (),
            None => draft
                .left_out
                .push(Problem::Ignored(node.path().to_owned())),
        }
    }
    if let Some(ethernets) = root.get("ethernets") {
        for (id, node) in ethernets.entries(MOST)? {
            // The device type's own renderer.
            if id != "renderer" {
                let interface = interface(id, &node, &mut draft.left_out)?;
                draft.interfaces.push(interface);
            }
        }
    }
    draft.finish()
}

/// An empty mapping asks for nothing.
fn refuse(node: &Node<'_>, what: Unsupported) -> Result<(), Problem> {
    let entries = node.entries(MOST).unwrap_or_default();
    match entries.first() {
        Some((_, first)) => Err(Problem::Unsupported {
            path: first.path().to_owned(),
            what,
        }),
        None => Ok(()),
    }
}

fn interface(id: &str, node: &Node<'_>, left_out: &mut Vec<Problem>) -> Result<Interface, Problem> {
    let mut new = Interface {
        path: node.path().to_owned(),
        matched: matched(id, node)?,
        ..Interface::default()
    };
    for (key, value) in node.entries(MOST)? {
        match key {
            // Read together with others.
            "match" | "dhcp4-overrides" | "dhcp6-overrides" => (),
            "dhcp4" => new.dhcp4 = dhcp(&value, node.get("dhcp4-overrides"))?,
            "dhcp6" => new.dhcp6 = dhcp(&value, node.get("dhcp6-overrides"))?,
            "accept-ra" => new.accept_ra = Some(value.flag()?),
            "addresses" => new.addresses = addresses(&value)?,
            "gateway4" | "gateway6" => {
                let router = values::gateway(&value)?;
                if router.is_ipv4() != (key == "gateway4") {
                    return Err(value.wrong("a router of the family that the key says"));
                }
                new.add_route(form::default_route(router, None));
            }
            "link-local" => new.link_local = Some(families(node)?),
            "macaddress" => new.new_mac = Some(values::new_mac(&value)?),
            "mtu" => new.mtu = Some(values::mtu(&value)?),
            "nameservers" => {
                new.nameservers = values::nameservers(&value, "addresses")?;
                new.search = values::domains(&value, "search")?;
            }
            "optional" => new.is_optional = value.flag()?,
            "routes" => {
                for node in value.elements(MOST_ROUTES)? {
                    match route(&node)? {
                        Some(route) => new.add_route(route),
                        None => left_out.push(Problem::Ignored(node.path().to_owned())),
                    }
                }
            }
            key if QUIET.contains(&key) => (),
            _ => left_out.push(Problem::Ignored(value.path().to_owned())),
        }
    }
    Ok(new)
}

/// Without `match`, the id is the name of a card.
fn matched(id: &str, node: &Node<'_>) -> Result<Match, Problem> {
    let expected = "the name of a card, or a pattern for such";
    let Some(rules) = node.get("match") else {
        let name = id.parse().map_err(|_| Problem::Name {
            path: node.path().to_owned(),
        })?;
        return Ok(Match::of_name(name));
    };
    let mut matched = Match::default();
    for (key, value) in rules.entries(MOST)? {
        match key {
            "macaddress" => matched.mac = Some(values::mac(&value)?),
            "name" => matched.name = Some(value.parsed(expected)?),
            "driver" => matched.drivers = rules.parsed_list(key, MOST, "the name of a driver")?,
            // A rule that is not known would let cards in that it is there to keep out.
            _ => return Err(value.wrong("only macaddress, name and driver in match")),
        }
    }
    Ok(matched)
}

fn dhcp(node: &Node<'_>, overrides: Option<Node<'_>>) -> Result<Option<Dhcp>, Problem> {
    if !node.flag()? {
        return Ok(None);
    }
    let Some(overrides) = overrides else {
        return Ok(Some(Dhcp::default()));
    };
    let flag = |key: &str| overrides.get(key).map(|node| node.flag()).transpose();
    // `use-domains: route` is netplan's, and networkd's.
    let domains = match overrides.get("use-domains") {
        Some(node) if node.text("").is_ok_and(|text| text == "route") => None,
        _ => flag("use-domains")?,
    };
    let metric = overrides.get("route-metric");
    Ok(Some(Dhcp {
        use_dns: flag("use-dns")?,
        use_domains: domains,
        use_routes: flag("use-routes")?,
        metric: metric.map(|node| values::metric(&node)).transpose()?,
    }))
}

/// The families under `link-local`.
fn families(node: &Node<'_>) -> Result<Vec<Family>, Problem> {
    let elements = node.list("link-local", 2)?.into_iter();
    let family = |node: Node<'_>| {
        let expected = "ipv4 or ipv6";
        match node.text(expected)?.as_str() {
            "ipv4" => Ok(Family::V4),
            "ipv6" => Ok(Family::V6),
            _ => Err(node.wrong(expected)),
        }
    };
    elements.map(family).collect()
}

/// Each is an address with its prefix, or a mapping that has this for its only key, with options below it.
fn addresses(node: &Node<'_>) -> Result<Vec<ipnet::IpNet>, Problem> {
    let mut addresses = Vec::new();
    for element in node.elements(MOST)? {
        let expected = "an IP address with a prefix length";
        let net = match element.entries(1) {
            Ok(entries) => {
                let parsed = entries.first().and_then(|(key, _)| key.parse().ok());
                parsed.ok_or_else(|| element.wrong(expected))?
            }
            Err(_) => values::host(&element, None)?,
        };
        form::add(&mut addresses, [net]);
    }
    Ok(addresses)
}

/// `None`: one of a kind that is not set here.
fn route(node: &Node<'_>) -> Result<Option<Route>, Problem> {
    if ROUTING_POLICY.iter().any(|key| node.get(key).is_some()) {
        return Ok(None);
    }
    let via = node
        .get("via")
        .map(|node| values::gateway(&node))
        .transpose()?;
    let to = node.needed("to")?;
    let to = match (to.text("a network, or default")?.as_str(), via) {
        ("default", Some(via)) => form::everywhere(via),
        _ => values::destination(&to, None)?,
    };
    let is_other = |via: IpAddr| via.is_ipv4() != to.addr().is_ipv4();
    if via.is_some_and(is_other) {
        let via = node.needed("via")?;
        return Err(via.wrong("a router of the destination's family"));
    }
    let metric = node.get("metric");
    let on_link = node.get("on-link");
    Ok(Some(Route {
        to,
        via,
        metric: metric.map(|node| values::metric(&node)).transpose()?,
        on_link: on_link.map_or(Ok(false), |node| node.flag())?,
    }))
}
