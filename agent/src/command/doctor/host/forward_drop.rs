//! Packets between containers of different hosts that this host would not forward, because of its packet filter, whose
//! rules are evaluated for such packets, or of its sysctls.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::filter::{Dropped, Filter, Packet, Program};
use super::{Own, inventory, sysctl};
use crate::base::logging::chain;
use crate::base::net::Family as Ip;
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::netlink::inventory::{Inventory, link_towards};
use crate::plan::backend::table;
use crate::telemetry::status::{Peer, PeerState};

pub(super) const NAME: &str = "forward-drop";

/// Maximum number of peers examined: rules are about networks and interfaces, of which few differ.
const MAX_PEERS: usize = 32;

const WHY: &str = "This host forwards the packets between its containers and those of other nodes. If it drops them, its containers are cut off, although the host itself reaches everything";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    let paths = paths(&own, &inventory).await?;
    let mut findings = forwarding_sysctls(&own, &inventory);
    findings.extend(reverse_path(&own, &inventory, &paths));
    match Filter::read().await {
        Ok(filter) => findings.extend(rules(&own, &inventory, &paths, &filter)),
        Err(reason) if findings.is_empty() => return Err(reason),
        Err(_) => {}
    }
    Ok(findings)
}

/// The path of packets between a container here and one of a peer.
struct ContainerPath {
    /// An address in the peer's subnet.
    peer: IpAddr,
    /// An address in this node's subnet that no container is likely to have.
    own: IpAddr,
    subnet: IpNet,
    /// The interface that the kernel would send by.
    interface: Option<String>,
}

/// The paths to some peers; if there are no peers yet, to where the first would be.
async fn paths(own: &Own<'_>, inventory: &Inventory) -> Result<Vec<ContainerPath>, NotChecked> {
    let mut paths = Vec::new();
    for subnet in own.subnets() {
        let is_same = |net: &IpNet| net.addr().is_ipv4() == subnet.addr().is_ipv4();
        let programmed = |peer: &&Peer| peer.state == PeerState::Programmed;
        let peers = own.status.peers.iter().filter(programmed);
        let peers = peers.flat_map(|peer| peer.nets());
        let peers: Vec<_> = peers.filter(is_same).take(MAX_PEERS).map(last).collect();
        for peer in &peers {
            let index = link_towards(*peer).await;
            let index = index.map_err(|error| NotChecked(chain(&error)))?;
            let interface = index.and_then(|index| inventory.with_index(index));
            paths.push(ContainerPath {
                peer: *peer,
                own: last(subnet),
                subnet,
                interface: interface.map(|interface| interface.name.clone()),
            });
        }
        if peers.is_empty()
            && let Some(network) = own.networks().find(is_same)
            && let Some(next) = subnets_of(network, subnet.prefix_len()).find(|net| *net != subnet)
        {
            paths.push(ContainerPath {
                peer: last(next),
                own: last(subnet),
                subnet,
                interface: overlay_interface(own),
            });
        }
    }
    Ok(paths)
}

/// The first parts of a network of that length.
fn subnets_of(network: IpNet, length: u8) -> impl Iterator<Item = IpNet> {
    network.subnets(length).into_iter().flatten().take(2)
}

/// The last address but one: runtimes count from the first.
fn last(net: IpNet) -> IpAddr {
    match net.broadcast() {
        IpAddr::V4(address) => {
            std::net::Ipv4Addr::from_bits(address.to_bits().saturating_sub(1)).into()
        }
        IpAddr::V6(address) => {
            std::net::Ipv6Addr::from_bits(address.to_bits().saturating_sub(1)).into()
        }
    }
}

/// The interface of overlay packets in both directions, if known.
fn overlay_interface(own: &Own<'_>) -> Option<String> {
    let device = own.status.devices.first().map(|device| device.name.clone());
    device.or_else(|| Some(own.status.underlay.as_ref()?.interface.clone()))
}

/// Sysctls that must be 1 for forwarding. Runtimes set them when they create their first bridge.
fn forwarding_sysctls(own: &Own<'_>, inventory: &Inventory) -> Vec<Finding> {
    let Some(bridge) = own.bridge(inventory) else {
        return Vec::new();
    };
    let mut interfaces: Vec<&str> = vec![&bridge.name];
    interfaces.extend(own.status.devices.iter().map(|device| device.name.as_str()));
    let mut wrong = Vec::new();
    if own.lease.subnet.is_some() {
        if sysctl("net/ipv4/ip_forward").as_deref() == Some("0") {
            wrong.push("net.ipv4.ip_forward".to_owned());
        } else {
            let is_off = |name: &&&str| {
                sysctl(&format!("net/ipv4/conf/{name}/forwarding")).as_deref() == Some("0")
            };
            let off = interfaces.iter().filter(is_off);
            wrong.extend(off.map(|name| key("ipv4", name, "forwarding")));
        }
    }
    if own.lease.subnet_v6.is_some()
        && sysctl("net/ipv6/conf/all/forwarding").as_deref() == Some("0")
    {
        wrong.push("net.ipv6.conf.all.forwarding".to_owned());
    }
    let off = |key: String| {
        let what = format!(
            "{key} is 0: this host does not forward between its containers and the overlay"
        );
        let remedy = vec![
            format!("sysctl -w {key}=1"),
            format!(
                "echo '{key} = 1' > /etc/sysctl.d/90-forwarding.conf, and find the other file there that sets it to 0"
            ),
        ];
        Finding::new(NAME, Severity::Error, key, what, WHY, remedy)
    };
    wrong.into_iter().map(off).collect()
}

/// A sysctl of an interface, as sysctl(8) takes it: a dot in the interface's name is written as a slash.
fn key(family: &str, interface: &str, name: &str) -> String {
    format!("net.{family}.conf.{}.{name}", interface.replace('.', "/"))
}

/// A strict reverse-path filter drops packets that arrive on another interface than their replies would leave by.
fn reverse_path(own: &Own<'_>, inventory: &Inventory, paths: &[ContainerPath]) -> Vec<Finding> {
    // Other programs make these backends' routes.
    let network = own.status.network.as_ref();
    let backend = network.and_then(|network| table::find(&network.backend));
    if backend.is_some_and(|backend| backend.leaves_routes) {
        return Vec::new();
    }
    let underlay = own.status.underlay.as_ref();
    let underlay = underlay.map(|underlay| underlay.interface.as_str());
    let device = own.status.devices.first();
    let entry = device.map(|device| device.name.as_str()).or(underlay);
    let Some(entry) = entry.filter(|name| inventory.named(name).is_some()) else {
        return Vec::new();
    };
    if !is_strict(entry) {
        return Vec::new();
    }
    let paths = paths.iter().filter(|path| path.peer.is_ipv4());
    let mut elsewhere = paths.filter_map(|path| Some((path, path.interface.as_deref()?)));
    let Some((path, other)) = elsewhere.find(|(_, name)| *name != entry && Some(*name) != underlay)
    else {
        return Vec::new();
    };
    let switch = key("ipv4", entry, "rp_filter");
    vec![Finding::new(
        NAME,
        Severity::Error,
        entry,
        format!(
            "the reverse-path filter of {entry} is strict, but replies to {} would leave by {other}",
            path.peer
        ),
        "The kernel drops packets that come in by another interface than their replies would leave by: all packets of that peer. Another route, or a VPN's rule, leads its subnet away from the overlay",
        vec![
            format!(
                "see what leads there, and exclude the overlay from it: ip route get {}; ip rule show",
                path.peer
            ),
            format!(
                "sysctl -w {switch}=2 net.ipv4.conf.all.rp_filter=2, which makes the filter loose"
            ),
        ],
    )]
}

/// Whether an interface's reverse-path filter is strict. Only IPv4 has one, and the greater of two values counts
/// (Documentation/networking/ip-sysctl.rst).
fn is_strict(interface: &str) -> bool {
    let value = |name: &str| {
        let text = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
        text.and_then(|text| text.parse::<u8>().ok())
    };
    value(interface).max(value("all")) == Some(1)
}

/// A rule or policy that drops packets.
struct DropPoint<'a> {
    dropped: Dropped<'a>,
    /// One of the packets.
    example: String,
    /// The overlay networks of all of them.
    nets: BTreeSet<IpNet>,
}

/// Evaluates the rules for packets in both directions.
fn rules(
    own: &Own<'_>,
    inventory: &Inventory,
    paths: &[ContainerPath],
    filter: &Filter,
) -> Vec<Finding> {
    let bridge = own.bridge(inventory).map(|bridge| bridge.name.clone());
    let mut drop_points: BTreeMap<(usize, &str, Option<&str>), DropPoint<'_>> = BTreeMap::new();
    let underlay = own.status.underlay.as_ref();
    for path in paths {
        // A route that leads elsewhere says nothing about where packets come from.
        let carries = |name: &&str| {
            own.has_device(name) || underlay.is_some_and(|underlay| underlay.interface == *name)
        };
        let interface = path.interface.as_deref().filter(carries);
        let interface =
            interface.map_or_else(|| overlay_interface(own), |name| Some(name.to_owned()));
        let outgoing = Packet {
            source: path.own,
            destination: path.peer,
            from: bridge.clone(),
            to: interface.clone(),
        };
        let mut packets = vec![(outgoing, "from a local container to a peer's")];
        let single_destinations = filter.single_destinations(path.subnet);
        for own in std::iter::once(path.own).chain(single_destinations) {
            let incoming = Packet {
                source: path.peer,
                destination: own,
                from: interface.clone(),
                to: bridge.clone(),
            };
            packets.push((incoming, "from a peer's container to a local one"));
        }
        for (packet, direction) in packets {
            let Some(dropped) = filter.dropped(&packet) else {
                continue;
            };
            let table = std::ptr::from_ref(dropped.table).addr();
            let place = (table, dropped.chain, dropped.rule);
            let point = drop_points.entry(place).or_insert_with(|| DropPoint {
                dropped,
                example: format!("{direction} ({} to {})", packet.source, packet.destination),
                nets: BTreeSet::new(),
            });
            let same = |net: &IpNet| net.addr().is_ipv4() == packet.source.is_ipv4();
            point.nets.extend(own.networks().filter(same));
        }
    }
    let points = drop_points.values();
    points.map(|point| drop_finding(own, point)).collect()
}

fn drop_finding(own: &Own<'_>, point: &DropPoint<'_>) -> Finding {
    let Dropped { table, chain, rule } = point.dropped;
    let by = match rule {
        Some(rule) => format!("the rule \"{rule}\""),
        None => "the policy".to_owned(),
    };
    let program = match &table.program {
        Program::Iptables(command, _) => command.clone(),
        Program::Nft(family) => format!("nftables {family}"),
    };
    let what = format!(
        "{by} of the chain {chain} ({program}, table {}) drops packets {}",
        table.name, point.example
    );
    let firewall = own.status.firewall.as_ref();
    let remedy = match firewall.is_some_and(|firewall| firewall.forward) {
        true => None,
        false => Some(format!(
            "firewall.forward = true in {}, then {}: the agent then accepts the overlay's packets",
            own.names.settings_file,
            own.names.systemctl("restart")
        )),
    };
    let commands = match &table.program {
        Program::Iptables(command, ip) => iptables_commands(point, command, *ip),
        Program::Nft(family) => nft_commands(own, point, family),
    };
    Finding::new(
        NAME,
        Severity::Error,
        format!("{} {chain}", table.name),
        what,
        WHY,
        remedy.into_iter().chain(commands).collect(),
    )
}

/// The commands that let the packets pass a table of nftables.
fn nft_commands(own: &Own<'_>, point: &DropPoint<'_>, family: &str) -> Vec<String> {
    let Dropped { table, chain, rule } = point.dropped;
    let name = &table.name;
    if name == "firewalld" && family == "inet" {
        let sources = point.nets.iter().map(|net| format!(" --add-source={net}"));
        let sources: String = sources.collect();
        return vec![format!(
            "firewall-cmd --permanent --zone=trusted{sources} && firewall-cmd --reload"
        )];
    }
    if table.has("raw-PREROUTING") || name == "docker-bridges" {
        return vec![format!(
            "start dockerd with the options of {}: --allow-direct-routing and --bridge-accept-fwmark; until then: nft \
             insert rule {family} {name} {chain} accept",
            own.names.selvage("options docker"),
        )];
    }
    let accept = |net: &IpNet| {
        let protocol = if net.addr().is_ipv4() { "ip" } else { "ip6" };
        ["saddr", "daddr"].map(|side| {
            format!("nft insert rule {family} {name} {chain} {protocol} {side} {net} accept")
        })
    };
    let delete = rule.map(|handle| format!("or nft delete rule {family} {name} {chain} {handle}"));
    point.nets.iter().flat_map(accept).chain(delete).collect()
}

/// The same for a table of iptables, which is for one family.
fn iptables_commands(point: &DropPoint<'_>, command: &str, ip: Ip) -> Vec<String> {
    let Dropped { table, chain, rule } = point.dropped;
    let name = &table.name;
    let accept = |net: &IpNet| {
        ["-s", "-d"].map(|side| format!("{command} -t {name} -I {chain} {side} {net} -j ACCEPT"))
    };
    let delete = rule.map(|rule| format!("or {command} -t {name} -D {chain} {rule}"));
    let nets = point.nets.iter();
    let nets = nets.filter(|net| Ip::of(net.addr()) == ip);
    nets.flat_map(accept).chain(delete).collect()
}
