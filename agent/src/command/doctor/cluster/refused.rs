//! Refused leases of other nodes.

use std::collections::BTreeMap;

use super::advice::Advice;
use super::{Check, deletion, duplicates, name, of_status, sample};
use crate::cluster::refusal::RefusalCode;
use crate::command::doctor::{Finding, Names, Severity};
use crate::telemetry::status::{Peer, PeerState, Status};

const NAME: &str = "refused-peers";

/// Refused leases, or leases whose latest data is not used.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "refused leases of other nodes",
    run: |context| of_status(context, |status| find(status, &context.names)),
};

fn find(status: &Status, names: &Names) -> Vec<Finding> {
    let mut by_fault: BTreeMap<(Severity, Fault), Vec<&Peer>> = BTreeMap::new();
    for peer in &status.peers {
        if peer.reason.is_none() {
            continue;
        }
        // Skip what another check reports, our own leases, and unused reservations.
        let refusal = peer.refusal.as_ref();
        if refusal.is_some_and(duplicates::is_duplicate)
            || duplicates::is_ours(peer, status)
            || peer.owner.is_none() && peer.backend.is_empty()
        {
            continue;
        }
        let severity = match peer.state {
            PeerState::Refused => Severity::Error,
            PeerState::Programmed => Severity::Warning,
            // Another check reports the kernel's refusals.
            PeerState::Failed => continue,
        };
        let code = refusal.map_or(RefusalCode::Unknown, |refusal| refusal.code);
        let fault = (severity, Fault::of(code));
        by_fault.entry(fault).or_default().push(peer);
    }
    let finding = |((severity, fault), peers): ((Severity, Fault), Vec<&Peer>)| {
        let first = peers.first();
        let deletion = first.map(|peer| deletion(peer, status));
        let advice = fault.explain(&deletion.unwrap_or_default(), names);
        let reason = first.and_then(|peer| peer.reason.as_deref());
        let used = match severity {
            Severity::Error => "is refused",
            Severity::Warning => "is used with its previous data, not the latest",
        };
        Finding {
            check: NAME.to_owned(),
            severity,
            subject: first.map(|peer| name(peer)),
            peers: Vec::new(),
            what: format!(
                "the lease of {} {used}: {}",
                sample(&peers),
                reason.unwrap_or_default()
            ),
            why: advice.why,
            remedy: advice.remedy,
        }
    };
    by_fault.into_iter().map(finding).collect()
}

/// Why a lease is refused, by remedy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Network,
    Overlap,
    Hosts,
    Address,
    Backend,
    OffLink,
    Data,
    Unknown,
}

impl Fault {
    fn of(code: RefusalCode) -> Self {
        match code {
            RefusalCode::OutsideNetwork | RefusalCode::OtherFamily => Self::Network,
            RefusalCode::OverlapsOwn | RefusalCode::OverlapsOlder => Self::Overlap,
            RefusalCode::HoldsHost | RefusalCode::MeetsOlder | RefusalCode::MovesInto => {
                Self::Hosts
            }
            RefusalCode::PublicIp
            | RefusalCode::OurPublicIp
            | RefusalCode::NoAddress
            | RefusalCode::Looping => Self::Address,
            RefusalCode::OtherBackend => Self::Backend,
            RefusalCode::OffLink => Self::OffLink,
            RefusalCode::NoBackendData
            | RefusalCode::BackendData
            | RefusalCode::NotUnicast
            | RefusalCode::OwnMac
            | RefusalCode::OwnKey
            | RefusalCode::TakenMac
            | RefusalCode::TakenKey
            | RefusalCode::CopiesMac
            | RefusalCode::CopiesKey
            | RefusalCode::Taken => Self::Data,
            RefusalCode::Unknown => Self::Unknown,
        }
    }

    /// `deletion`: the command that deletes the lease.
    fn explain(self, deletion: &str, names: &Names) -> Advice {
        let remove = format!("if the node is decommissioned, delete its lease: {deletion}");
        let other_subnet = format!(
            "{} there, then {}",
            names.selvage_with_state("leave"),
            names.systemctl("start")
        );
        match self {
            Self::Network => Advice::new(
                "its subnet is outside the network of this node; the network config may have changed, and that node has not applied it",
                [
                    format!(
                        "compare: {}, and {} on that node",
                        names.selvage("network get"),
                        names.selvage("status")
                    ),
                    format!(
                        "restart the agent there, so that it takes a subnet inside the network: {}",
                        names.systemctl("restart")
                    ),
                    remove,
                ],
            ),
            Self::Overlap => Advice::new(
                "two leases claim the same addresses, and the older one wins; agents never write such leases, so one of them was written by hand, or under a network config with another SubnetLen",
                [
                    format!("see both: {}", names.selvage("network leases")),
                    format!("give the node of the newer one another subnet: {other_subnet}"),
                    remove,
                ],
            ),
            Self::Hosts => Advice::new(
                "its subnet contains the address of a host, whose packets would go to that node's containers; that node did not know of the host",
                [
                    format!(
                        "exclude the hosts' addresses: SubnetMin and SubnetMax in the network config ({})",
                        names.selvage("network set")
                    ),
                    format!("then give that node another subnet: {other_subnet}"),
                    remove,
                ],
            ),
            Self::Address => Advice::new(
                "this node cannot send packets to the address that it publishes",
                [
                    format!(
                        "on that node, set the interface or address to use: underlay.interfaces or underlay.public-ip in {} (--iface, --public-ip)",
                        names.settings_file
                    ),
                    remove,
                ],
            ),
            Self::Backend => Advice::new(
                "all nodes must run the same backend; that node has not applied the network config, which flanneld reads only when it starts",
                [
                    format!(
                        "on that node: {} (or flanneld), then read its log",
                        names.systemctl("restart")
                    ),
                    format!(
                        "see the configured backend: {}",
                        names.selvage("network get")
                    ),
                    remove,
                ],
            ),
            Self::OffLink => Advice::new(
                "host-gw uses the peer itself as next hop, which works only between hosts on one link; routers between them have no routes to the overlay",
                [
                    "let that node publish an address on this link: underlay.interfaces there"
                        .into(),
                    format!(
                        "or use vxlan, with DirectRouting for nodes that share a link: {}",
                        names.selvage("network set")
                    ),
                ],
            ),
            Self::Data => Advice::new(
                "its backend data is unusable, so this node cannot send packets to it",
                [
                    format!(
                        "check the agent there: {}, {}; a restart publishes its data again",
                        names.selvage("status"),
                        names.journal()
                    ),
                    remove,
                ],
            ),
            Self::Unknown => Advice::new(
                "this node cannot send packets to it; the running agent is of another version and gives no code for the reason",
                [
                    format!(
                        "check the agent there: {}, {}",
                        names.selvage("status"),
                        names.journal()
                    ),
                    remove,
                ],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::refusal::tests::one_of_each;
    use crate::command::doctor::names::tests::settings;
    use crate::telemetry::status::{Agent, Refusal};

    #[test]
    fn every_refusal_has_its_remedy() {
        for refusal in one_of_each() {
            let found = Refusal::of(&refusal);
            let expected = match found.code.class() {
                "outside-network" | "other-family" => Fault::Network,
                "overlaps-own" | "overlaps-older" => match found.code {
                    RefusalCode::HoldsHost | RefusalCode::MeetsOlder | RefusalCode::MovesInto => {
                        Fault::Hosts
                    }
                    RefusalCode::CopiesMac | RefusalCode::CopiesKey => Fault::Data,
                    _ => Fault::Overlap,
                },
                "public-ip" | "our-public-ip" => Fault::Address,
                "other-backend" => Fault::Backend,
                _ => match found.code {
                    RefusalCode::NoAddress | RefusalCode::Looping => Fault::Address,
                    RefusalCode::OffLink => Fault::OffLink,
                    _ => Fault::Data,
                },
            };
            assert_eq!(Fault::of(found.code), expected, "{refusal}");
        }
    }

    #[test]
    fn remedies_name_this_network_alone() {
        let names = Names::of(&settings(&["--network", "blue"]));
        for code in RefusalCode::ALL.iter().chain([&RefusalCode::Unknown]) {
            let advice = Fault::of(*code).explain("etcdctl del KEY", &names);
            super::super::tests::assert_about_blue(&advice.remedy);
        }
    }

    #[test]
    fn a_refusal_of_an_agent_without_codes_is_told_all_the_same() {
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        status.peers = super::super::tests::peers(1);
        status.peers[0].state = PeerState::Refused;
        status.peers[0].reason = Some("its subnet is outside the network".to_owned());
        let [found] = &find(&status, &Names::of(&settings(&[])))[..] else {
            panic!("not one finding")
        };
        assert_eq!(found.severity, Severity::Error);
        assert!(found.what.contains("outside the network"), "{found:?}");
        assert!(found.remedy[0].contains("selvage status"), "{found:?}");
    }
}
