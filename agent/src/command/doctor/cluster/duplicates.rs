//! Two nodes that share an address, MAC address, key or machine ID.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::nat;
use super::{Check, Context, cap, deletion, name, observe_host};
use crate::cluster::refusal::RefusalCode;
use crate::command::doctor::{Finding, Names, Outcome, Severity};
use crate::telemetry::status::{Peer, Refusal, Status};

const NAME: &str = "duplicate-address";

/// The command for a new machine ID. Many hosts have a D-Bus copy, from which systemd-machine-id-setup(1) would restore
/// the old one.
const NEW_ID: &str = "rm -f /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup";

/// Identities used by two nodes.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "nodes that share a public IP, MAC address, key or machine ID",
    run: |context| Box::pin(check(context)),
};

async fn check(context: &Context<'_>) -> Outcome {
    let status = context.status()?;
    let host = observe_host().await?;
    let nodes = nodes(status);
    let names = &context.names;
    let own_is_reported = nat::shared_address(status, &host, names).is_some();
    let mut findings = addresses(&nodes, own_is_reported, names);
    findings.extend(identities(status, names));
    findings.extend(machines(&nodes, names));
    Ok(cap(findings))
}

/// Whether a lease is refused because its node shares an identity with another.
pub(super) fn is_duplicate(refusal: &Refusal) -> bool {
    refusal.code == RefusalCode::OurPublicIp || Identity::of(refusal).is_some()
}

/// Whether a lease is this node's own: an earlier one, or an unused reservation.
pub(super) fn is_ours(peer: &Peer, status: &Status) -> bool {
    let own = status.lease.as_ref();
    let at_ours = own.is_some_and(|own| {
        peer.public_ip.is_some() && peer.public_ip == own.public_ip
            || peer.public_ipv6.is_some() && peer.public_ipv6 == own.public_ipv6
    });
    let owner = peer.owner.as_deref();
    at_ours && owner.is_none_or(|owner| owner == status.agent.node_id)
}

/// The parts of a lease that identify its node.
struct Node<'a> {
    name: String,
    addresses: Vec<IpAddr>,
    /// `None` for flannel and for an unused reservation.
    owner: Option<&'a str>,
    is_own: bool,
    /// The command that deletes its lease; `None` for the own one.
    deletion: Option<String>,
}

fn nodes(status: &Status) -> Vec<Node<'_>> {
    let own = status.lease.as_ref().map(|lease| Node {
        name: "this node".to_owned(),
        addresses: lease.addresses().collect(),
        owner: Some(&status.agent.node_id),
        is_own: true,
        deletion: None,
    });
    let peers = status.peers.iter().map(|peer| Node {
        name: name(peer),
        addresses: peer.addresses().collect(),
        owner: peer.owner.as_deref(),
        is_own: false,
        deletion: Some(deletion(peer, status)),
    });
    own.into_iter().chain(peers).collect()
}

/// Addresses that two nodes publish. `own_is_reported`: another check reports this node's own.
fn addresses(nodes: &[Node<'_>], own_is_reported: bool, names: &Names) -> Vec<Finding> {
    let mut by_address: BTreeMap<IpAddr, Vec<&Node<'_>>> = BTreeMap::new();
    for node in nodes {
        for address in &node.addresses {
            by_address.entry(*address).or_default().push(node);
        }
    }
    let mut findings = Vec::new();
    for (address, nodes) in by_address {
        let owners: BTreeSet<_> = nodes.iter().filter_map(|node| node.owner).collect();
        // Two leases with one owner, or one of flannel that Selvage took over, are one node.
        if owners.len() < 2 || own_is_reported && nodes.iter().any(|node| node.is_own) {
            continue;
        }
        let deletions = nodes.iter().filter_map(|node| node.deletion.as_deref());
        let deletions: Vec<_> = deletions.take(2).collect();
        findings.push(Finding {
            check: NAME.to_owned(),
            severity: Severity::Error,
            subject: Some(address.to_string()),
            peers: Vec::new(),
            what: format!("{} publish the same public IP, {address}", list(&nodes)),
            why: "packets for all their subnets go to whichever host has the address, so the other's containers are cut off; or one host was reinstalled, and its previous lease has not expired yet".to_owned(),
            remedy: vec![
                format!(
                    "identify the hosts by machine ID: {} --json; compare node_id of {} --json there",
                    names.selvage("network leases"),
                    names.selvage("status")
                ),
                "two hosts: give one of them another address; behind NAT, let each publish an address that peers reach: underlay.interfaces or underlay.public-ip".to_owned(),
                format!("one reinstalled host: wait until the previous lease expires, or delete it: {}", deletions.join(" or ")),
            ],
        });
    }
    findings
}

/// The unique identity that a backend publishes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Identity {
    Mac,
    Key,
}

impl Identity {
    /// The lease with the same identity, and which one that is.
    fn of(refusal: &Refusal) -> Option<(String, Self)> {
        let ours = || "this node".to_owned();
        let theirs = || refusal.object.clone().unwrap_or_default();
        Some(match refusal.code {
            RefusalCode::OwnMac => (ours(), Self::Mac),
            RefusalCode::OwnKey => (ours(), Self::Key),
            RefusalCode::TakenMac | RefusalCode::CopiesMac => (theirs(), Self::Mac),
            RefusalCode::TakenKey | RefusalCode::CopiesKey => (theirs(), Self::Key),
            _ => return None,
        })
    }
}

/// MAC addresses and keys of two nodes: agents refuse the younger lease.
fn identities(status: &Status, names: &Names) -> Vec<Finding> {
    let found = status.peers.iter().filter_map(|peer| {
        let (holder, identity) = Identity::of(peer.refusal.as_ref()?)?;
        Some((peer, peer.reason.as_deref()?, holder, identity))
    });
    found
        .map(|(peer, reason, holder, identity)| {
            let (what, file) = match identity {
                Identity::Mac => ("MAC address", "flannel.*.mac"),
                Identity::Key => ("key", "wireguard.key"),
            };
            Finding {
                check: NAME.to_owned(),
                severity: Severity::Error,
                subject: Some(name(peer)),
                peers: Vec::new(),
                what: format!("{} and {holder} have the same {what}: {reason}", name(peer)),
                why: "the kernel cannot tell their packets apart, so only one of them is reachable; the usual cause is a disk that was cloned after its first boot, with the agent's state on it".to_owned(),
                remedy: vec![
                    format!(
                        "on the clone: {}; rm -f {} {}; ip link del OVERLAY_DEVICE; {}",
                        names.systemctl("stop"),
                        names.state_file(file),
                        names.state_file("machine-id"),
                        names.systemctl("start")
                    ),
                    format!("give the clone its own machine ID as well: {NEW_ID}; clone images, not hosts that have run"),
                ],
            }
        })
        .collect()
}

/// Machine IDs in the leases of two hosts.
fn machines(nodes: &[Node<'_>], names: &Names) -> Vec<Finding> {
    let mut by_owner: BTreeMap<&str, Vec<&Node<'_>>> = BTreeMap::new();
    for node in nodes {
        if let Some(owner) = node.owner {
            by_owner.entry(owner).or_default().push(node);
        }
    }
    let mut findings = Vec::new();
    for (owner, nodes) in by_owner {
        let addresses: BTreeSet<_> = nodes
            .iter()
            .filter_map(|node| node.addresses.first())
            .collect();
        if addresses.len() < 2 {
            continue;
        }
        findings.push(Finding {
            check: NAME.to_owned(),
            severity: Severity::Warning,
            subject: Some(owner.to_owned()),
            peers: Vec::new(),
            what: format!("{} have the same machine ID, {owner}, at different addresses", list(&nodes)),
            why: "a machine ID identifies a node's lease, so clones may take each other's; or one host's address changed while its agent was stopped, and its previous lease has not expired yet".to_owned(),
            remedy: vec![
                format!(
                    "a clone: {NEW_ID}; rm -f {}; {}",
                    names.state_file("machine-id"),
                    names.systemctl("restart")
                ),
                format!(
                    "one host: nothing; its previous lease expires by itself ({} shows when)",
                    names.selvage("network leases")
                ),
            ],
        });
    }
    findings
}

/// The names and addresses of the first few nodes.
fn list(nodes: &[&Node<'_>]) -> String {
    const MAX_NODES: usize = 5;
    let mut names: Vec<String> = nodes
        .iter()
        .take(MAX_NODES)
        .map(|node| match node.addresses.first() {
            Some(address) => format!("{} (at {address})", node.name),
            None => node.name.clone(),
        })
        .collect();
    if nodes.len() > MAX_NODES {
        names.push(format!("{} more", nodes.len() - MAX_NODES));
    }
    let last = names.pop().unwrap_or_default();
    format!("{} and {last}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::refusal::tests::one_of_each;
    use crate::command::doctor::names::tests::settings;

    #[test]
    fn refusals_of_duplicates_are_recognised() {
        for refusal in one_of_each() {
            let found = Refusal::of(&refusal);
            let expected = match found.code {
                RefusalCode::OwnMac => Some(("this node", Identity::Mac)),
                RefusalCode::OwnKey => Some(("this node", Identity::Key)),
                RefusalCode::TakenMac | RefusalCode::CopiesMac => {
                    Some(("10.5.1.0/24", Identity::Mac))
                }
                RefusalCode::TakenKey | RefusalCode::CopiesKey => {
                    Some(("10.5.1.0/24", Identity::Key))
                }
                _ => None,
            };
            let identity = Identity::of(&found);
            let identity = identity
                .as_ref()
                .map(|(holder, what)| (holder.as_str(), *what));
            assert_eq!(identity, expected, "{refusal}");
            let is_duplicate = expected.is_some() || found.code == RefusalCode::OurPublicIp;
            assert_eq!(super::is_duplicate(&found), is_duplicate, "{refusal}");
        }
    }

    #[test]
    fn the_clone_of_a_named_network_keeps_its_hands_off_the_others() {
        let names = Names::of(&settings(&["--network", "blue"]));
        let mut status = Status::joining(
            crate::telemetry::status::Agent::of_process("x", 0),
            Vec::new(),
        );
        status.peers = super::super::tests::peers(1);
        status.peers[0].refusal = Some(Refusal {
            code: RefusalCode::OwnKey,
            object: None,
        });
        status.peers[0].reason = Some("x".to_owned());
        let [found] = &identities(&status, &names)[..] else {
            panic!("not one finding")
        };
        super::super::tests::assert_about_blue(&found.remedy);
        let clone = "systemctl stop selvage@blue; rm -f /var/lib/selvage/networks/blue/wireguard.key /var/lib/selvage/networks/blue/machine-id;";
        assert!(found.remedy[0].contains(clone), "{found:?}");
        assert!(found.remedy[0].ends_with("systemctl start selvage@blue"));

        let names = Names::of(&settings(&["--state-dir", "/srv/selvage"]));
        let found = &identities(&status, &names)[0];
        let clone = "rm -f /srv/selvage/wireguard.key /srv/selvage/machine-id;";
        assert!(found.remedy[0].contains(clone), "{found:?}");
    }

    #[test]
    fn one_machine_with_two_leases_is_no_duplicate() {
        let names = Names::of(&settings(&[]));
        let node = |name: &str, address: [u8; 4], owner| Node {
            name: name.to_owned(),
            addresses: vec![address.into()],
            owner,
            is_own: name == "own",
            deletion: None,
        };
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        for (nodes, same_address, same_machine) in [
            (
                vec![node("own", one, Some("a")), node("b", two, Some("b"))],
                0,
                0,
            ),
            (
                vec![node("own", one, Some("a")), node("b", one, Some("a"))],
                0,
                0,
            ),
            // This node's own reservation, or a flannel lease that it took over.
            (
                vec![node("own", one, Some("a")), node("b", one, None)],
                0,
                0,
            ),
            (
                vec![node("own", one, Some("a")), node("b", one, Some("b"))],
                1,
                0,
            ),
            (
                vec![node("own", one, Some("a")), node("b", two, Some("a"))],
                0,
                1,
            ),
        ] {
            assert_eq!(addresses(&nodes, false, &names).len(), same_address);
            assert_eq!(machines(&nodes, &names).len(), same_machine);
        }
    }
}
