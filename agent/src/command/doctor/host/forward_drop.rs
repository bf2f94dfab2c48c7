//! Packets between containers of different hosts that this host would not forward: by its packet filter, which is walked
//! through with such packets in mind, or by its switches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::filter::{Dropped, Filter, Packet, Program};
use super::{Own, finding, inventory, sysctl};
use crate::base::logging::chain;
use crate::base::net::Family as Ip;
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::netlink::inventory::{Inventory, way_to};
use crate::plan::backend::table;
use crate::telemetry::status::{Peer, PeerState};

pub(super) const NAME: &str = "forward-drop";

/// How many peers are looked at: rules are about networks and interfaces, of which few differ.
const MAX_PEERS: usize = 32;

const WHY: &str = "This host forwards the packets between its containers and those of other nodes. If it drops them, its containers are cut off, although the host itself reaches everything";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    let ways = ways(&own, &inventory).await?;
    let mut findings = switches(&own, &inventory);
    findings.extend(reverse_path(&own, &inventory, &ways));
    match Filter::read().await {
        Ok(filter) => findings.extend(rules(&own, &inventory, &ways, &filter)),
        Err(reason) if findings.is_empty() => return Err(reason),
        Err(_) => {}
    }
    Ok(findings)
}

/// How packets go to the containers of a peer.
struct Way {
    /// An address in the peer's subnet.
    peer: IpAddr,
    /// An address in this node's subnet that no container is likely to have.
    own: IpAddr,
    subnet: IpNet,
    /// By which interface the kernel would send.
    interface: Option<String>,
}

/// The ways to some peers; where there is none yet, to where the first would be.
async fn ways(own: &Own<'_>, inventory: &Inventory) -> Result<Vec<Way>, NotChecked> {
    let mut ways = Vec::new();
    for subnet in own.subnets() {
        let is_same = |net: &IpNet| net.addr().is_ipv4() == subnet.addr().is_ipv4();
        let programmed = |peer: &&Peer| peer.state == PeerState::Programmed;
        let peers = own.status.peers.iter().filter(programmed);
        let peers = peers.flat_map(|peer| peer.nets());
        let peers: Vec<_> = peers.filter(is_same).take(MAX_PEERS).map(last).collect();
        for peer in &peers {
            let index = way_to(*peer).await;
            let index = index.map_err(|error| NotChecked(chain(&error)))?;
            let interface = index.and_then(|index| inventory.with_index(index));
            ways.push(Way {
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
            ways.push(Way {
                peer: last(next),
                own: last(subnet),
                subnet,
                interface: overlay_interface(own),
            });
        }
    }
    Ok(ways)
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

/// What the kernel must be told before it forwards anything. Runtimes switch it on when they make their first bridge.
fn switches(own: &Own<'_>, inventory: &Inventory) -> Vec<Finding> {
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
    let tell = |key: String| {
        let what = format!(
            "{key} is 0: this host does not forward between its containers and the overlay"
        );
        let remedy = vec![
            format!("sysctl -w {key}=1"),
            format!(
                "echo '{key} = 1' > /etc/sysctl.d/90-forwarding.conf, and find the other file there that sets it to 0"
            ),
        ];
        finding(NAME, Severity::Error, key, what, WHY, remedy)
    };
    wrong.into_iter().map(tell).collect()
}

/// A sysctl of an interface, as sysctl(8) takes it: a dot in the interface's name is written as a slash.
fn key(family: &str, interface: &str, name: &str) -> String {
    format!("net.{family}.conf.{}.{name}", interface.replace('.', "/"))
}

/// A strict reverse-path filter drops what comes by another interface than answers would go by.
fn reverse_path(own: &Own<'_>, inventory: &Inventory, ways: &[Way]) -> Vec<Finding> {
    // Other programs make these backends' routes.
    let network = own.status.network.as_ref();
    let backend = network.and_then(|network| table::find(&network.backend));
    if backend.is_some_and(|backend| backend.leaves_routes) {
        return Vec::new();
    }
    // The filter is IPv4's alone, and counts where the packets come in.
    let entry = own
        .status
        .devices
        .first()
        .map(|device| device.name.as_str());
    let underlay = own
        .status
        .underlay
        .as_ref()
        .map(|underlay| underlay.interface.as_str());
    let Some(entry) = entry
        .or(underlay)
        .filter(|name| inventory.named(name).is_some())
    else {
        return Vec::new();
    };
    let value = |name: &str| {
        let text = sysctl(&format!("net/ipv4/conf/{name}/rp_filter"));
        text.and_then(|text| text.parse::<u8>().ok())
            .unwrap_or_default()
    };
    // The greater of the two counts (Documentation/networking/ip-sysctl.rst).
    if value(entry).max(value("all")) != 1 {
        return Vec::new();
    }
    let ways = ways.iter().filter(|way| way.peer.is_ipv4());
    let mut elsewhere = ways.filter_map(|way| Some((way, way.interface.as_deref()?)));
    let Some((way, other)) = elsewhere.find(|(_, name)| *name != entry && Some(*name) != underlay)
    else {
        return Vec::new();
    };
    let switch = key("ipv4", entry, "rp_filter");
    vec![finding(
        NAME,
        Severity::Error,
        entry,
        format!(
            "the reverse-path filter of {entry} is strict, but replies to {} would leave by {other}",
            way.peer
        ),
        "The kernel drops packets that come in by another interface than their replies would leave by: all packets of that peer. Another route, or a VPN's rule, leads its subnet away from the overlay",
        vec![
            format!(
                "see what leads there, and exclude the overlay from it: ip route get {}; ip rule show",
                way.peer
            ),
            format!(
                "sysctl -w {switch}=2 net.ipv4.conf.all.rp_filter=2, which makes the filter loose"
            ),
        ],
    )]
}

/// A place that drops, which may drop many packets.
#[derive(Default)]
struct Trap {
    examples: Vec<String>,
    nets: BTreeSet<IpNet>,
}

/// Sends packets through the rules, both ways.
fn rules(own: &Own<'_>, inventory: &Inventory, ways: &[Way], filter: &Filter) -> Vec<Finding> {
    let bridge = own.bridge(inventory).map(|bridge| bridge.name.clone());
    let mut traps: BTreeMap<(usize, &str, Option<&str>), (Dropped<'_>, Trap)> = BTreeMap::new();
    let underlay = own.status.underlay.as_ref();
    for way in ways {
        // What is led astray does not come from there.
        let carries = |name: &&str| {
            own.has_device(name) || underlay.is_some_and(|underlay| underlay.interface == *name)
        };
        let interface = way.interface.as_deref().filter(carries);
        let interface =
            interface.map_or_else(|| overlay_interface(own), |name| Some(name.to_owned()));
        let outward = Packet {
            source: way.own,
            destination: way.peer,
            from: bridge.clone(),
            to: interface.clone(),
        };
        let mut packets = vec![(outward, "from a local container to a peer's")];
        let singled_out = filter.singled_out(way.subnet);
        for own in std::iter::once(way.own).chain(singled_out) {
            let inward = Packet {
                source: way.peer,
                destination: own,
                from: interface.clone(),
                to: bridge.clone(),
            };
            packets.push((inward, "from a peer's container to a local one"));
        }
        for (packet, direction) in packets {
            let Some(dropped) = filter.dropped(&packet) else {
                continue;
            };
            let table = std::ptr::from_ref(dropped.table).addr();
            let place = (table, dropped.chain, dropped.rule);
            let (_, trap) = traps
                .entry(place)
                .or_insert_with(|| (dropped, Trap::default()));
            let example = format!("{direction} ({} to {})", packet.source, packet.destination);
            trap.examples.push(example);
            let same = |net: &IpNet| net.addr().is_ipv4() == packet.source.is_ipv4();
            trap.nets.extend(own.networks().filter(same));
        }
    }
    let found = traps.into_values();
    found
        .map(|(dropped, trap)| tell(own, &dropped, &trap))
        .collect()
}

fn tell(own: &Own<'_>, dropped: &Dropped<'_>, trap: &Trap) -> Finding {
    let Dropped { table, chain, rule } = dropped;
    let by = match rule {
        Some(rule) => format!("the rule \"{rule}\""),
        None => "the policy".to_owned(),
    };
    let (program, nets) = match &table.program {
        Program::Iptables(command, _) => (command.clone(), trap.nets.iter()),
        Program::Nft(family) => (format!("nftables {family}"), trap.nets.iter()),
    };
    let example = trap.examples.first().map_or("", String::as_str);
    let what = format!(
        "{by} of the chain {chain} ({program}, table {}) drops packets {example}",
        table.name
    );
    let mut remedy = Vec::new();
    let forward = own
        .status
        .firewall
        .as_ref()
        .is_some_and(|firewall| firewall.forward);
    if !forward {
        remedy.push(format!(
            "firewall.forward = true in {}, then {}: the agent then accepts the overlay's packets",
            own.names.settings_file,
            own.names.systemctl("restart")
        ));
    }
    match &table.program {
        Program::Nft(family) if table.name == "firewalld" && family == "inet" => {
            let sources = nets
                .map(|net| format!(" --add-source={net}"))
                .collect::<String>();
            remedy.push(format!(
                "firewall-cmd --permanent --zone=trusted{sources} && firewall-cmd --reload"
            ));
        }
        Program::Nft(family) if table.has("raw-PREROUTING") || table.name == "docker-bridges" => {
            remedy.push(format!(
                "start dockerd with the options of {}: --allow-direct-routing and --bridge-accept-fwmark; until then: nft \
                 insert rule {family} {} {chain} accept",
                own.names.selvage("options docker"),
                table.name
            ));
        }
        Program::Nft(family) => {
            for net in nets {
                let protocol = if net.addr().is_ipv4() { "ip" } else { "ip6" };
                for side in ["saddr", "daddr"] {
                    remedy.push(format!(
                        "nft insert rule {family} {} {chain} {protocol} {side} {net} accept",
                        table.name
                    ));
                }
            }
            if let Some(handle) = rule {
                remedy.push(format!(
                    "or nft delete rule {family} {} {chain} {handle}",
                    table.name
                ));
            }
        }
        Program::Iptables(command, ip) => {
            for net in nets.filter(|net| net.addr().is_ipv4() == (*ip == Ip::V4)) {
                for side in ["-s", "-d"] {
                    remedy.push(format!(
                        "{command} -t {} -I {chain} {side} {net} -j ACCEPT",
                        table.name
                    ));
                }
            }
            if let Some(rule) = rule {
                remedy.push(format!("or {command} -t {} -D {chain} {rule}", table.name));
            }
        }
    }
    finding(
        NAME,
        Severity::Error,
        format!("{} {chain}", table.name),
        what,
        WHY,
        remedy,
    )
}
