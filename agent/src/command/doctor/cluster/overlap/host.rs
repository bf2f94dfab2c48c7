//! Addresses and routes of this host that overlap the overlay's networks.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{exclude, finding, overlap, own_subnets, renumber};
use crate::base::net::Family;
use crate::command::doctor::cluster::{is_refused, name};
use crate::command::doctor::{Finding, Names, Severity};
use crate::host::netlink::Refused;
use crate::host::netlink::host::{Forwarded, Host, ResolvedRoute};
use crate::host::netlink::survey::{ForeignRoute, PolicyRule};
use crate::telemetry::status::{PeerState, Status};

/// Maximum number of peers to look up routes for.
const PEERS: usize = 64;

/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` of linux/rtnetlink.h, the tables of the default rules.
const MAIN_OR_LOCAL: [u32; 2] = [254, 255];

/// Bridges of container runtimes that may have an old subnet, which another check reports.
const RUNTIMES: [&str; 2] = ["docker0", "cni0"];

/// The state of the host.
pub(super) struct HostState<'a> {
    pub(super) names: &'a Names,
    pub(super) status: &'a Status,
    pub(super) networks: &'a [IpNet],
    pub(super) host: &'a Host,
    /// Other programs' routes into the overlay's networks.
    pub(super) routes: &'a [ForeignRoute],
    /// The policy rules.
    pub(super) rules: &'a [PolicyRule],
}

/// A route lookup for a peer.
pub(super) struct Lookup {
    name: String,
    /// A possible container address of the peer.
    pub(super) address: IpAddr,
    /// The peer's public IP, for packets without encapsulation.
    public: Option<IpAddr>,
    /// Set for packets of local containers; `None` for the host's own.
    pub(super) forwarded: Option<Forwarded>,
}

impl HostState<'_> {
    /// The route lookups for some fully programmed peers: for the host's own packets and, if there is a container
    /// bridge, for those of containers.
    pub(super) fn sample(&self) -> Vec<Lookup> {
        let peers = self.status.peers.iter();
        let programmed = peers.filter(|peer| peer.state == PeerState::Programmed);
        let bridges: Vec<Forwarded> = own_subnets(self.status)
            .filter_map(|own| self.bridge(own))
            .collect();
        programmed
            .take(PEERS)
            .flat_map(|peer| peer.nets().map(move |net| (peer, net)))
            .flat_map(|(peer, net)| {
                let of_family = |one: IpAddr| one.is_ipv4() == net.addr().is_ipv4();
                let public = peer.addresses().find(|public| of_family(*public));
                let bridges = bridges
                    .iter()
                    .filter(move |bridge| of_family(bridge.source));
                let forwarded: Vec<_> = bridges.copied().map(Some).collect();
                let address = net.hosts().nth(1);
                std::iter::once(None)
                    .chain(forwarded)
                    .filter_map(move |forwarded| {
                        Some(Lookup {
                            name: name(peer),
                            address: address?,
                            public,
                            forwarded,
                        })
                    })
            })
            .collect()
    }

    /// The container bridge with an address of the node's own subnet, as input interface of containers' packets.
    fn bridge(&self, own: IpNet) -> Option<Forwarded> {
        let mut addresses = self.host.addresses.iter();
        let bridge = addresses.find(|address| {
            own.contains(&address.address) && !self.is_overlay(self.interface(address.link_index))
        })?;
        let source = own.hosts().skip(1).take(PEERS).last()?;
        Some(Forwarded {
            source,
            link_index: bridge.link_index,
        })
    }

    fn interface(&self, index: u32) -> &str {
        let mut links = self.host.links.iter();
        links
            .find(|link| link.index == index)
            .map_or("an unknown interface", |link| link.name.as_str())
    }

    /// Whether an interface is one of ours: an overlay device, or one of another network's.
    fn is_overlay(&self, interface: &str) -> bool {
        let mut devices = self.status.devices.iter();
        devices.any(|device| device.name == interface)
    }

    fn overlapping(&self, net: &IpNet) -> Option<&IpNet> {
        self.networks.iter().find(|network| overlap(network, net))
    }

    fn is_own(&self, net: &IpNet) -> bool {
        own_subnets(self.status).any(|own| own.contains(net))
    }

    /// The underlay's own network.
    pub(super) fn underlay(&self) -> Vec<Finding> {
        let Some(underlay) = &self.status.underlay else {
            return Vec::new();
        };
        let nets = underlay.nets().map(|net| net.trunc());
        nets.filter_map(|net| {
            let network = self.overlapping(&net)?;
            Some(finding(
                Severity::Warning,
                underlay.interface.clone(),
                format!(
                    "the overlay's network {network} overlaps the underlay's network {net} on {}",
                    underlay.interface
                ),
                "no node takes a subnet that contains this host's address, but one may take a subnet that contains the address of a host outside the cluster: packets for that host then go to the node's containers",
                vec![
                    format!("exclude the hosts' addresses: {}", exclude(self.names)),
                    renumber(self.names),
                ],
            ))
        })
        .collect()
    }

    /// Networks of other interfaces.
    pub(super) fn addresses(&self) -> Vec<Finding> {
        let underlay = self.status.underlay.as_ref().map(|underlay| underlay.index);
        let mut findings = Vec::new();
        for address in &self.host.addresses {
            let Ok(net) = IpNet::new(address.address, address.prefix_len) else {
                continue;
            };
            let (net, interface) = (net.trunc(), self.interface(address.link_index));
            let Some(network) = self.overlapping(&net) else {
                continue;
            };
            let is_ours = self.is_own(&net)
                || self.is_overlay(interface)
                || RUNTIMES.contains(&interface)
                || Some(address.link_index) == underlay;
            if is_ours {
                continue;
            }
            let remedy = match interface {
                bridge if bridge.starts_with("br-") => vec![
                    format!("find the Docker network: docker network inspect {}", bridge.trim_start_matches("br-")),
                    "recreate it with other addresses (docker network rm, then create --subnet), and keep Docker off the overlay: \"default-address-pools\" in /etc/docker/daemon.json".to_owned(),
                    renumber(self.names),
                ],
                interface => vec![
                    format!("give {interface} another network, or remove the address: ip address del {}/{} dev {interface}", address.address, address.prefix_len),
                    renumber(self.names),
                ],
            };
            findings.push(finding(
                Severity::Error,
                interface.to_owned(),
                format!("the network {net} of {interface} overlaps the overlay's network {network}"),
                "this host reaches either the containers of nodes with subnets in it or the hosts behind the interface, whichever has the longer route",
                remedy,
            ));
        }
        findings
    }

    /// Peers whose packets bypass the overlay.
    pub(super) fn bypassing_peers(
        &self,
        peers: &[Lookup],
        resolved_routes: &[Result<ResolvedRoute, Refused>],
    ) -> Vec<Finding> {
        let mut by_route: Vec<(ResolvedRoute, Vec<&Lookup>)> = Vec::new();
        for (lookup, resolved) in peers.iter().zip(resolved_routes) {
            let Ok(resolved) = resolved else { continue };
            if self.is_right_route(lookup, resolved) {
                continue;
            }
            let same = |other: &ResolvedRoute| {
                (other.link_index, other.gateway, other.table)
                    == (resolved.link_index, resolved.gateway, resolved.table)
            };
            match by_route.iter_mut().find(|(other, _)| same(other)) {
                Some((_, peers)) => peers.push(lookup),
                None => by_route.push((*resolved, vec![lookup])),
            }
        }
        let wrong = by_route.iter();
        wrong
            .map(|(resolved, peers)| self.bypass(resolved, peers))
            .collect()
    }

    /// Whether a route is right for overlay packets: into the overlay device or, with host-gw and direct routing, over
    /// the underlay to the peer itself.
    fn is_right_route(&self, lookup: &Lookup, resolved: &ResolvedRoute) -> bool {
        let underlay = self.status.underlay.as_ref().map(|underlay| underlay.index);
        let is_direct = Some(resolved.link_index) == underlay
            && resolved.gateway.is_some()
            && resolved.gateway == lookup.public;
        is_direct
            || resolved.local
            || self.is_overlay(self.interface(resolved.link_index))
            || self.has_own(resolved.link_index)
    }

    fn bypass(&self, resolved: &ResolvedRoute, peers: &[&Lookup]) -> Finding {
        let interface = self.interface(resolved.link_index);
        let cause = self.routes.iter().find(|route| {
            let over = route.link.map(|index| self.interface(index));
            let takes = |lookup: &&Lookup| route.destination.contains(&lookup.address);
            over == Some(interface) && route.table == resolved.table && peers.iter().any(takes)
        });
        let mut names: Vec<_> = peers.iter().map(|lookup| lookup.name.as_str()).collect();
        names.dedup();
        let count = names.len();
        names.truncate(3);
        let more = if count > names.len() { ", …" } else { "" };
        let first = peers.first();
        let look = first.map(|lookup| self.lookup_command(lookup));
        let whose = match peers.iter().all(|lookup| lookup.forwarded.is_some()) {
            true => "packets from local containers",
            false => "packets",
        };
        let gateway = resolved
            .gateway
            .map_or_else(String::new, |gateway| format!(" via {gateway}"));
        let what = format!(
            "{whose} for {count} of {} peers ({}{more}) leave by {interface}{gateway} instead of the overlay",
            self.status.peers.len(),
            names.join(", ")
        );
        let rule = first.and_then(|lookup| self.rule_to(resolved.table, lookup));
        let (why, remedy) = match rule {
            Some(rule) => (
                format!(
                    "the rule {}: {rule} comes before the main table, which has the overlay's routes",
                    rule.priority
                ),
                self.exempt(rule),
            ),
            None => (
                "another program's route or rule takes precedence over the overlay's, as a VPN that captures all traffic does".to_owned(),
                Vec::new(),
            ),
        };
        let removal = cause.filter(|_| rule.is_none()).map(|route| {
            format!("remove the route, or exclude the overlay's network in the VPN's configuration: ip route del {}", self.describe(route))
        });
        let remedy = remedy.into_iter().chain(removal).chain(look).collect();
        finding(Severity::Error, interface.to_owned(), what, &why, remedy)
    }

    /// The same lookup, for the administrator.
    fn lookup_command(&self, lookup: &Lookup) -> String {
        let forwarded = lookup.forwarded.map_or_else(String::new, |forwarded| {
            let interface = self.interface(forwarded.link_index);
            format!(" from {} iif {interface}", forwarded.source)
        });
        let address = lookup.address;
        format!("see the route: ip route get {address}{forwarded}; ip rule")
    }

    /// The rule that sends a peer's packets to a table before the main one.
    fn rule_to(&self, table: u32, lookup: &Lookup) -> Option<&PolicyRule> {
        let forwarded = lookup.forwarded;
        let forwarded = forwarded.map(|from| (from.source, self.interface(from.link_index)));
        let mut rules = self.rules.iter();
        rules.find(|rule| {
            !MAIN_OR_LOCAL.contains(&table)
                && rule.table == table
                && rule.is_about(lookup.address, forwarded)
        })
    }

    /// How to exempt the overlay's packets from a rule.
    fn exempt(&self, rule: &PolicyRule) -> Vec<String> {
        let option = match rule.family {
            Family::V4 => "",
            Family::V6 => "-6 ",
        };
        let before = rule.priority.saturating_sub(1);
        let networks = self.networks.iter();
        let of_family = networks.filter(|net| Family::of(net.addr()) == rule.family);
        of_family
            .map(|net| format!("exempt the overlay's packets from it: ip {option}rule add pref {before} to {net} lookup main"))
            .chain([format!(
                "or disable the program that adds it, such as NetworkManager's nm-cloud-setup or a VPN; by hand: ip {option}rule del pref {}",
                rule.priority
            )])
            .collect()
    }

    /// Whether an interface has an address of this node's own subnet: a bridge of its containers.
    fn has_own(&self, index: u32) -> bool {
        let mut addresses = self.host.addresses.iter();
        addresses.any(|address| {
            address.link_index == index && self.is_own(&IpNet::from(address.address))
        })
    }

    /// Other programs' routes into the overlay's networks, except those already in `reported`.
    pub(super) fn routes(&self, reported: &[Finding]) -> Vec<Finding> {
        let is_reported = |interface: &str| {
            reported
                .iter()
                .any(|finding| finding.subject.as_deref() == Some(interface))
        };
        self.routes
            .iter()
            .filter_map(|route| {
                let network = self.overlapping(&route.destination)?;
                let interface = route.link.map_or("", |index| self.interface(index));
                if self.is_harmless(route, interface, network) || is_reported(interface) {
                    return None;
                }
                let (severity, what, why) = if network.contains(&route.destination) && route.destination != *network {
                    (
                        if route.is_main() { Severity::Error } else { Severity::Warning },
                        format!("another program's route leads into the overlay's network {network}: {}", self.describe(route)),
                        "packets for its destination bypass the overlay as soon as a node has a subnet there",
                    )
                } else {
                    (
                        Severity::Warning,
                        format!("the overlay's network {network} is part of another network that this host has a route to: {}", self.describe(route)),
                        "hosts of that network with an address in a node's subnet are unreachable: packets for them go to that node's containers",
                    )
                };
                Some(finding(
                    severity,
                    route.destination.to_string(),
                    what,
                    why,
                    vec![
                        format!("exclude the overlay's network in the program that adds it (see its proto); by hand: ip route del {}", self.describe(route)),
                        renumber(self.names),
                    ],
                ))
            })
            .collect()
    }

    /// Whether neither the route takes traffic from the overlay nor the reverse.
    fn is_harmless(&self, route: &ForeignRoute, interface: &str, network: &IpNet) -> bool {
        let covers = route.destination.contains(network);
        // Default routes, and the two /1 routes that VPNs use instead.
        let is_default = route.destination.prefix_len() <= 1;
        // Other tables are internal to many tools. If they take traffic from the overlay, the route lookups show it.
        let is_aside = covers && !route.is_main();
        is_default
            || is_aside
            || self.is_own(&route.destination)
            || self.is_overlay(interface)
            || route.link.is_some_and(|index| self.has_own(index))
            || self.is_refused(route)
    }

    /// Whether the kernel refused our route because of it, which another check reports.
    fn is_refused(&self, route: &ForeignRoute) -> bool {
        is_refused(self.status, route.destination)
    }

    /// As ip(8) prints it.
    fn describe(&self, route: &ForeignRoute) -> String {
        let mut text = route.destination.to_string();
        if let Some(gateway) = route.gateway {
            text.push_str(&format!(" via {gateway}"));
        }
        if let Some(index) = route.link {
            text.push_str(&format!(" dev {}", self.interface(index)));
        }
        text.push_str(&format!(" proto {}", route.protocol));
        if !route.is_main() {
            text.push_str(&format!(" table {}", route.table));
        }
        text
    }
}
