//! A network as files for systemd-networkd (systemd.network(5)).

use std::fmt::Write as _;

use super::form::{Dhcp, Interface, Network, Route};
use crate::base::net::Family;

/// How the files' names begin: behind those of the kernel command line (`70-`, `71-`), so that these count more, and
/// before the image's last resort (`90-dhcp.network`).
pub(super) const START: &str = "72-platform-";

/// The files by their names; what is in them is from a document at `place`.
pub(super) fn files(network: &Network, place: &str) -> Vec<(String, String)> {
    let numbered = network.interfaces.iter().enumerate();
    numbered
        .map(|(number, interface)| {
            let name = format!("{START}{number:02}.network");
            (name, file(interface, place))
        })
        .collect()
}

/// A file in the making.
struct Text(String);

impl Text {
    fn section(&mut self, name: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "\n[{name}]\n");
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{key}={value}");
    }

    fn maybe(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.line(key, value);
        }
    }

    fn flag(&mut self, key: &str, value: Option<bool>) {
        self.maybe(key, value.map(|is| if is { "yes" } else { "no" }));
    }
}

fn file(interface: &Interface, place: &str) -> String {
    let place: String = place.chars().filter(|c| !c.is_control()).collect();
    let mut text = Text(format!("# From {place}.\n"));
    text.section("Match");
    let matched = &interface.matched;
    // A card that gets another address would not match any longer.
    let mac = match interface.new_mac {
        Some(_) => "PermanentMACAddress",
        None => "MACAddress",
    };
    text.maybe(mac, matched.mac);
    text.maybe("Name", matched.name.as_ref().map(|name| name.as_str()));
    let drivers: Vec<_> = matched.drivers.iter().map(|name| name.as_str()).collect();
    if !drivers.is_empty() {
        text.line("Driver", drivers.join(" "));
    }
    // A bridge or a VLAN that is made later has the address of its card.
    text.line("Type", "ether");
    text.line("Kind", "!*");
    text.section("Link");
    text.maybe("MACAddress", interface.new_mac);
    text.maybe("MTUBytes", interface.mtu);
    if interface.is_optional {
        text.line("RequiredForOnline", "no");
    }
    network(interface, &mut text);
    for route in &interface.routes {
        self::route(route, &mut text);
    }
    if let Some(dhcp) = &interface.dhcp4 {
        text.section("DHCPv4");
        // As 90-dhcp.network has it.
        let domains = dhcp.use_domains.or(Some(true));
        answers(dhcp, domains, &mut text);
        text.flag("UseRoutes", dhcp.use_routes);
        text.maybe("RouteMetric", dhcp.metric);
        if interface.mtu.is_some() {
            text.line("UseMTU", "no");
        }
    }
    if let Some(dhcp) = &interface.dhcp6 {
        text.section("DHCPv6");
        answers(dhcp, dhcp.use_domains, &mut text);
        // DHCPv6 has no routes; its metric is that of the routers' advertisements.
        text.section("IPv6AcceptRA");
        text.maybe("RouteMetric", dhcp.metric);
    }
    text.0
}

fn network(interface: &Interface, text: &mut Text) {
    text.section("Network");
    let dhcp = match (&interface.dhcp4, &interface.dhcp6) {
        (Some(_), Some(_)) => "yes",
        (Some(_), None) => "ipv4",
        (None, Some(_)) => "ipv6",
        (None, None) => "no",
    };
    text.line("DHCP", dhcp);
    text.flag("IPv6AcceptRA", interface.accept_ra);
    let link_local = interface.link_local.as_ref().map(|families| {
        match (
            families.contains(&Family::V4),
            families.contains(&Family::V6),
        ) {
            (true, true) => "yes",
            (true, false) => "ipv4",
            (false, true) => "ipv6",
            (false, false) => "no",
        }
    });
    text.maybe("LinkLocalAddressing", link_local);
    if dhcp != "no" || interface.accept_ra == Some(true) {
        // As 90-dhcp.network has it: containers would lose their connections while networkd restarts.
        text.line("KeepConfiguration", "dynamic");
    }
    for address in &interface.addresses {
        text.line("Address", address);
    }
    for server in &interface.nameservers {
        text.line("DNS", server);
    }
    let domains: Vec<_> = interface.search.iter().map(|name| name.as_str()).collect();
    if !domains.is_empty() {
        text.line("Domains", domains.join(" "));
    }
}

fn route(route: &Route, text: &mut Text) {
    text.section("Route");
    text.line("Destination", route.to);
    text.maybe("Gateway", route.via);
    text.maybe("Metric", route.metric);
    if route.on_link {
        text.line("GatewayOnLink", "yes");
    }
}

fn answers(dhcp: &Dhcp, domains: Option<bool>, text: &mut Text) {
    text.flag("UseDNS", dhcp.use_dns);
    text.flag("UseDomains", domains);
}
