//! Checks of the cluster: the agent and its own lease, the other nodes' leases, the store, and conflicting networks.

use std::future::ready;
use std::pin::Pin;

use ipnet::IpNet;

use super::{Check, Context, Finding, NotChecked, Outcome};
use crate::base::logging::chain;
use crate::cluster::lease::SubnetKey;
use crate::host::netlink::host::{Host, Query};
use crate::plan::state::Key;
use crate::telemetry::status::{Lease, Network, Peer, Status};

mod advice;
mod agent;
mod certificates;
mod clock;
mod cloud_routes;
mod duplicates;
mod ipsec;
mod kernel;
mod lease;
mod nat;
mod network;
mod overlap;
mod refused;

/// The checks, in the order of the report.
pub(super) fn checks() -> Vec<Check> {
    vec![
        agent::CHECK,
        kernel::CHECK,
        lease::LOST,
        lease::EXPIRY,
        certificates::CHECK,
        clock::CHECK,
        cloud_routes::CHECK,
        nat::CHECK,
        duplicates::CHECK,
        ipsec::CHECK,
        overlap::CHECK,
        network::CONFIG,
        network::SUBNETS,
        refused::CHECK,
    ]
}

/// Maximum number of findings of one kind; a large cluster may have thousands.
const MAX_FINDINGS: usize = 10;

/// A peer's name: its subnet.
fn name(peer: &Peer) -> String {
    let net = peer.nets().next();
    net.map_or_else(|| "an unknown subnet".to_owned(), |net| net.to_string())
}

/// The command that deletes a peer's lease.
fn deletion(peer: &Peer, status: &Status) -> String {
    let key = SubnetKey::new(peer.subnet, peer.subnet_v6).name();
    format!("etcdctl del '{}/subnets/{key}'", status.store.prefix)
}

/// A check of the agent's status.
fn of_status<'a>(
    context: &'a Context<'a>,
    find: impl FnOnce(&'a Status) -> Vec<Finding>,
) -> Pin<Box<dyn Future<Output = Outcome> + 'a>> {
    Box::pin(ready(context.status().map(find)))
}

/// A short list of several peers.
fn sample(peers: &[&Peer]) -> String {
    match peers {
        [] => String::new(),
        [one] => name(one),
        [one, two] => format!("{} and {}", name(one), name(two)),
        [one, rest @ ..] => format!("{} and {} others", name(one), rest.len()),
    }
}

/// The first findings, the last of which gives the number of the others.
fn cap(mut findings: Vec<Finding>) -> Vec<Finding> {
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    if let Some(last) = findings.last_mut().filter(|_| more > 0) {
        last.what
            .push_str(&format!(" (and {more} more findings like it)"));
    }
    findings
}

/// The overlay networks.
pub(super) fn networks(status: &Status) -> impl Iterator<Item = IpNet> {
    status.network.iter().flat_map(Network::nets)
}

/// This node's subnets.
pub(super) fn own_subnets(status: &Status) -> impl Iterator<Item = IpNet> {
    status.lease.iter().flat_map(Lease::nets)
}

/// Whether the kernel refused the overlay's route to a network.
pub(super) fn is_refused(status: &Status, net: IpNet) -> bool {
    let key = Key::Route(net).to_string();
    let mut causes = status.kernel.causes.iter();
    causes.any(|cause| cause.object.as_ref() == Some(&key))
}

/// The state of this host's interfaces.
async fn observe_host() -> Result<Host, NotChecked> {
    let host = Host::observe(Query::default()).await;
    host.map_err(|error| NotChecked(chain(&error)))
}

/// Whether two networks overlap.
fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use ipnet::Ipv4Net;

    use super::*;
    use crate::command::doctor::Severity;
    use crate::telemetry::status::PeerState;

    /// This many healthy peers.
    pub(super) fn peers(count: u32) -> Vec<Peer> {
        let peer = |number: u32| {
            let subnet = Ipv4Addr::from(0x0a05_0000 + (number << 8));
            Peer {
                subnet: Ipv4Net::new(subnet, 24).ok(),
                subnet_v6: None,
                public_ip: Some(Ipv4Addr::from(0x0a4d_0000 + number)),
                public_ipv6: None,
                backend: "vxlan".to_owned(),
                owner: Some(format!("{number:032x}")),
                state: PeerState::Programmed,
                reason: None,
                refusal: None,
                since_time: 0,
                changed_time: None,
                traffic: None,
                handshake_time: None,
            }
        };
        (1..=count).map(peer).collect()
    }

    /// A healthy own lease.
    pub(super) fn lease() -> Lease {
        Lease {
            subnet: "10.5.250.0/24".parse().ok(),
            subnet_v6: None,
            public_ip: Some([10, 77, 1, 1].into()),
            public_ipv6: None,
            since_time: 0,
            held: true,
            reservation: false,
            ttl_seconds: Some(86400),
            left_seconds: Some(86000),
            trouble: None,
        }
    }

    /// Asserts that the commands name the network blue and affect no other.
    pub(super) fn assert_about_blue(remedies: &[String]) {
        const COMMANDS: [&str; 7] = [
            "status", "peers", "network", "options", "doctor", "leave", "cleanup",
        ];
        for remedy in remedies {
            let words: Vec<&str> = remedy
                .split([' ', ';', ',', ':', '(', ')'])
                .filter(|word| !word.is_empty())
                .collect();
            for (at, word) in words.iter().enumerate() {
                let next = words.get(at + 1).copied().unwrap_or_default();
                assert!(
                    !["-u", "selvage.service"].contains(word)
                        || next == "selvage@blue"
                        || next == "systemd-networkd",
                    "{remedy}"
                );
                if *word == "systemctl" {
                    let unit = words.get(at + 2).copied().unwrap_or_default();
                    assert_ne!(unit, "selvage", "{remedy}");
                }
                if *word == "selvage" && COMMANDS.contains(&next) {
                    let rest = &words[at..words.len().min(at + 5)];
                    let is_blue = rest.windows(2).any(|pair| pair == ["--network", "blue"]);
                    assert!(is_blue, "{remedy}");
                }
            }
            assert!(!remedy.contains("/etc/selvage/agent.toml"), "{remedy}");
            for (at, _) in remedy.match_indices("/var/lib/selvage/") {
                assert!(
                    remedy[at..].starts_with("/var/lib/selvage/networks/blue/"),
                    "{remedy}"
                );
            }
        }
    }

    #[test]
    fn of_many_findings_few_are_reported_and_the_rest_counted() {
        let finding = |number: usize| Finding {
            check: "x".to_owned(),
            severity: Severity::Error,
            subject: None,
            peers: Vec::new(),
            what: number.to_string(),
            why: String::new(),
            remedy: Vec::new(),
        };
        let capped = cap((0..MAX_FINDINGS + 3).map(finding).collect());
        assert_eq!(capped.len(), MAX_FINDINGS);
        assert_eq!(
            capped[MAX_FINDINGS - 1].what,
            "9 (and 3 more findings like it)"
        );
        assert_eq!(
            cap((0..MAX_FINDINGS).map(finding).collect())
                .last()
                .unwrap()
                .what,
            "9"
        );
    }
}
