//! What another agent left behind: devices, routes into the overlay and packet filter rules; and a running flanneld.
//!
//! Selvage agents of other networks on this host are not reported: abstract sockets show which devices are theirs.

use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rtnetlink::packet_route::route::RouteType;

use super::filter::{Filter, Program, Table};
use super::{Own, inventory};
use crate::command::doctor::cluster::is_refused;
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::claim::Claims;
use crate::host::netlink::MARK;
use crate::host::netlink::inventory::{Inventory, Route};

pub(super) const NAME: &str = "stale-objects";

/// `RTPROT_BOOT` and `RTPROT_STATIC` (linux/rtnetlink.h): routes of flannel and of administrators. Others belong to the
/// kernel or to routing daemons, which keep them up to date.
const BY_HAND: [u8; 2] = [3, 4];

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    let flannelds = running_flannelds(&own);
    let mut findings: Vec<Finding> = flannelds.iter().map(flanneld_running).collect();
    // The objects of a running flanneld are not stale.
    if flannelds.is_empty() {
        findings.extend(devices(&own, &inventory));
    }
    findings.extend(routes(&own, &inventory));
    let several = Claims::default().of_others("network/").len() > 1;
    if flannelds.is_empty() && !several {
        match Filter::read().await {
            Ok(filter) => findings.extend(rules(&own, &filter)),
            Err(NotChecked(reason)) if findings.is_empty() => return Err(NotChecked(reason)),
            Err(_) => {}
        }
    }
    Ok(findings)
}

/// A flanneld process.
struct Flanneld {
    id: u32,
    program: PathBuf,
}

/// The processes called flanneld in this network namespace that are not our agent under that name.
fn running_flannelds(own: &Own<'_>) -> Vec<Flanneld> {
    let here = fs::read_link("/proc/thread-self/ns/net").ok();
    let ours = fs::read_link(format!("/proc/{}/exe", own.status.agent.pid)).ok();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_flanneld = |id: u32| {
        let process = PathBuf::from(format!("/proc/{id}"));
        let name = fs::read_to_string(process.join("comm")).ok()?;
        let program = fs::read_link(process.join("exe")).ok()?;
        let same_network = fs::read_link(process.join("ns/net")).ok() == here;
        let is_ours = ours.as_deref() == Some(program.as_path()) || is_selvage(&program);
        (name.trim() == "flanneld" && same_network && !is_ours).then_some(Flanneld { id, program })
    };
    ids.filter_map(is_flanneld).collect()
}

/// Whether a program is Selvage, of any version.
fn is_selvage(program: &Path) -> bool {
    let name = program.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("selvage"))
}

fn flanneld_running(flanneld: &Flanneld) -> Finding {
    let Flanneld { id, program } = flanneld;
    Finding::new(
        NAME,
        Severity::Error,
        format!("process {id}"),
        format!(
            "flanneld runs beside the agent: process {id}, {}",
            program.display()
        ),
        "Both use the same names for devices and chains, and each undoes the changes of the other",
        vec![
            "systemctl disable --now flanneld.service".to_owned(),
            "in Kubernetes: kubectl -n kube-flannel delete daemonset kube-flannel-ds".to_owned(),
            format!("or kill {id}"),
        ],
    )
}

/// Whether flannel and Selvage name devices like this.
fn is_overlay_name(name: &str) -> bool {
    let starts = ["flannel.", "flannel-v6.", "flannel-wg"];
    starts.iter().any(|start| name.starts_with(start)) || name == "flannel0"
}

fn devices(own: &Own<'_>, inventory: &Inventory) -> Vec<Finding> {
    let claimed = Claims::default().of_others("device/");
    // The device of a named network whose agent is stopped still carries packets; its alias names the network. A device
    // without an alias may belong to the default network, whose agent alone knows its device.
    let is_of_other_agent = |alias: &Option<String>| match alias {
        Some(alias) => alias.starts_with(MARK),
        None => own.status.agent.network.is_some(),
    };
    let stale = inventory.interfaces.iter().filter(|device| {
        is_overlay_name(&device.name)
            && !own.has_device(&device.name)
            && !claimed.iter().any(|(name, _)| *name == device.name)
            && !is_of_other_agent(&device.alias)
    });
    let tell = |name: &str| {
        Finding::new(
            NAME,
            Severity::Warning,
            name,
            format!("overlay device {name} belongs to no running agent"),
            "Another agent or an earlier configuration left it behind. Its routes and addresses may misdirect packets, and a VXLAN device blocks its port and VNI",
            vec![format!("ip link delete {name}")],
        )
    };
    stale.map(|device| tell(&device.name)).collect()
}

/// Routes over overlay devices, and routes that drop packets. The overlap check reports those over other interfaces,
/// unless the kernel refused the agent's route because of them.
fn routes(own: &Own<'_>, inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    for route in &inventory.routes {
        let inside = own.networks().any(|net| net.contains(&route.destination));
        if !inside || !BY_HAND.contains(&route.protocol) {
            continue;
        }
        let is_here = own.subnets().any(|net| net.contains(&route.destination));
        let device = route.link.and_then(|index| inventory.with_index(index));
        let over_overlay = device.is_some_and(|device| own.has_device(&device.name));
        let refused = is_refused(own.status, route.destination);
        let counts = match route.kind {
            // CNI's ptp plugin adds a route for each container.
            RouteType::Unicast if is_here => route.dead,
            RouteType::Unicast => over_overlay || refused,
            _ => true,
        };
        if !counts {
            continue;
        }
        findings.push(stale_route(own, inventory, route));
    }
    findings
}

fn stale_route(own: &Own<'_>, inventory: &Inventory, route: &Route) -> Finding {
    let net = route.destination;
    let overlaps = |other: IpNet| other.contains(&net) || net.contains(&other);
    let mut used = own
        .subnets()
        .chain(own.status.peers.iter().flat_map(|peer| peer.nets()));
    let severity = match used.any(overlaps) {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let mut text = match route.kind {
        RouteType::Unicast => net.to_string(),
        RouteType::BlackHole => format!("blackhole {net}"),
        RouteType::Unreachable => format!("unreachable {net}"),
        RouteType::Prohibit => format!("prohibit {net}"),
        _ => net.to_string(),
    };
    if let Some(gateway) = route.gateway {
        text.push_str(&format!(" via {gateway}"));
    }
    if let Some(device) = route.link.and_then(|index| inventory.with_index(index)) {
        text.push_str(&format!(" dev {}", device.name));
    }
    let protocol = if route.protocol == 3 {
        "boot"
    } else {
        "static"
    };
    text.push_str(&format!(" proto {protocol}"));
    if let Some(metric) = route.metric {
        text.push_str(&format!(" metric {metric}"));
    }
    let ip = if net.addr().is_ipv4() { "ip" } else { "ip -6" };
    let dead = if route.dead {
        ", over a dead interface"
    } else {
        ""
    };
    Finding::new(
        NAME,
        severity,
        net.to_string(),
        format!("the route {text} leads into the overlay and is not the agent's{dead}"),
        "Another agent or an administrator added it. While it exists, it decides where packets to those containers go, and nothing keeps it up to date",
        vec![format!("{ip} route del {text}")],
    )
}

/// Rules of flannel, and the agent's rules of the other mode. A running agent removes them at its next check of the
/// rules, if it can.
fn rules(own: &Own<'_>, filter: &Filter) -> Vec<Finding> {
    let mode = own
        .status
        .firewall
        .as_ref()
        .and_then(|firewall| firewall.mode.as_deref());
    filter
        .tables
        .iter()
        .filter_map(|table| stale_table(own, table, mode))
        .collect()
}

fn stale_table(own: &Own<'_>, table: &Table, mode: Option<&str>) -> Option<Finding> {
    let name = &table.name;
    let (what, remedy) = match (&table.program, mode) {
        (Program::Nft(family), _) if name == "flannel-ipv4" || name == "flannel-ipv6" => (
            format!("the nftables table {family} {name} is flannel's"),
            format!("nft delete table {family} {name}"),
        ),
        (Program::Nft(family), Some("iptables")) if name == "selvage" => (
            format!(
                "the nftables table {family} {name} belongs to the firewall mode that is not in use"
            ),
            format!("nft delete table {family} {name}"),
        ),
        (Program::Iptables(command, _), Some("nftables"))
            if name == "nat" && table.has("FLANNEL-POSTRTG") =>
        {
            (
                format!(
                    "the chain FLANNEL-POSTRTG ({command}, table nat) belongs to the firewall mode that is not in use"
                ),
                format!(
                    "{command} -t nat -D POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG; {command} -t \
                 nat -F FLANNEL-POSTRTG; {command} -t nat -X FLANNEL-POSTRTG"
                ),
            )
        }
        _ => return None,
    };
    Some(Finding::new(
        NAME,
        Severity::Warning,
        name,
        what,
        "Its rules apply beside the agent's, and masquerade for a network that may be outdated. The agent removes such rules; either that failed, or another program adds them again",
        vec![
            remedy,
            format!(
                "see why the agent does not remove it: {} -g firewall",
                own.names.journal()
            ),
        ],
    ))
}
