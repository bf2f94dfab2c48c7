//! Leases of other nodes that this one does not use.

use std::collections::BTreeMap;
use std::future::ready;

use super::advice::Advice;
use super::{Check, deletion, duplicates, name, sample};
use crate::command::doctor::{Finding, Severity};
use crate::telemetry::status::{Peer, PeerState, Status};

const NAME: &str = "refused-peers";

/// Leases that are not used, or not with what they say last.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "leases of other nodes that cannot be used",
    run: |context| Box::pin(ready(context.status().map(find))),
};

fn find(status: &Status) -> Vec<Finding> {
    let mut by_fault: BTreeMap<(Severity, Fault), Vec<&Peer>> = BTreeMap::new();
    for peer in &status.peers {
        let Some(reason) = &peer.reason else { continue };
        // Told by another check, one and the same node, or a reservation that waits for its node.
        if duplicates::is_duplicate(reason)
            || duplicates::is_ours(peer, status)
            || peer.owner.is_none() && peer.backend.is_empty()
        {
            continue;
        }
        let severity = match peer.state {
            PeerState::Refused => Severity::Error,
            PeerState::Programmed => Severity::Warning,
            // The kernel's word, which is told with all that it refuses.
            PeerState::Failed => continue,
        };
        let fault = (severity, Fault::of(reason));
        by_fault.entry(fault).or_default().push(peer);
    }
    let finding = |((severity, fault), peers): ((Severity, Fault), Vec<&Peer>)| {
        let first = peers.first();
        let deletion = first.map(|peer| deletion(peer, status));
        let advice = fault.explain(&deletion.unwrap_or_default());
        let reason = first.and_then(|peer| peer.reason.as_deref());
        let used = match severity {
            Severity::Error => "is not used",
            Severity::Warning => "is used as it was, not as it was published last",
        };
        Finding {
            check: NAME.to_owned(),
            severity,
            subject: first.map(|peer| name(peer)),
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

/// Why a lease is refused, as far as the remedy goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    Network,
    Overlap,
    Hosts,
    Address,
    Backend,
    OffLink,
    Data,
}

impl Fault {
    fn of(reason: &str) -> Self {
        let has = |words: &str| reason.contains(words);
        if has("outside the network") || has("a family that the network has") {
            Self::Network
        } else if has("its subnet overlaps") {
            Self::Overlap
        } else if has("its subnet holds")
            || has("its subnet or its public IP")
            || has("its new public IP")
        {
            Self::Hosts
        } else if has("on the underlay's link") {
            Self::OffLink
        } else if has("back end, ") || has("the back end ") {
            Self::Backend
        } else if has("its public IP") || has("its lease has no Public") {
            Self::Address
        } else {
            Self::Data
        }
    }

    /// `deletion`: how its lease is ended.
    fn explain(self, deletion: &str) -> Advice {
        let remove = format!("if the node is gone for good, delete its lease: {deletion}");
        match self {
            Self::Network => Advice::new(
                "it is not in the overlay network of this node; the network config may have changed since, and that node has not followed",
                [
                    "compare: selvage network get, and selvage status on that node",
                    "restart the agent there, which gives it a subnet in the network: systemctl restart selvage",
                    &remove,
                ],
            ),
            Self::Overlap => Advice::new(
                "two leases claim the same addresses, and the older one counts; agents never write such leases, so one of them was made by hand, or under a network config with another SubnetLen",
                [
                    "see both: selvage network leases",
                    "give the younger one's node another subnet: selvage leave there, then systemctl start selvage",
                    &remove,
                ],
            ),
            Self::Hosts => Advice::new(
                "packets for a host whose address is in a node's subnet would go to that node's containers; the overlay's network is one that hosts have addresses in, and that node did not know of this one",
                [
                    "keep subnets off the hosts: SubnetMin and SubnetMax in the network config (selvage network set)",
                    "then give that node another subnet: selvage leave there, then systemctl start selvage",
                    &remove,
                ],
            ),
            Self::Address => Advice::new(
                "packets to it cannot be sent to the address that it publishes",
                [
                    "on that node, say which interface or address to use: underlay.interfaces or underlay.public-ip in /etc/selvage/agent.toml (--iface, --public-ip)",
                    &remove,
                ],
            ),
            Self::Backend => Advice::new(
                "all nodes must run the same back end; this one has not followed the network config, which flanneld does at a restart only",
                [
                    "on that node: systemctl restart selvage (or flanneld), then look at its log",
                    "selvage network get shows the back end that all should have",
                    &remove,
                ],
            ),
            Self::OffLink => Advice::new(
                "host-gw sends packets to the peer itself, which works only between hosts on one link; routers between them know no way to the overlay",
                [
                    "let that node publish an address on this link: underlay.interfaces there",
                    "or use vxlan, with DirectRouting for nodes that share a link: selvage network set",
                ],
            ),
            Self::Data => Advice::new(
                "what it published for the back end cannot be used, so that nothing can be sent to it",
                [
                    "look at the agent there: selvage status, journalctl -u selvage; a restart publishes it anew",
                    &remove,
                ],
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;
    use crate::cluster::lease::SubnetKey;
    use crate::cluster::peers::Refusal;
    use crate::plan::backend;

    #[test]
    fn every_refusal_has_its_remedy() {
        let key = SubnetKey::parse_argument("10.5.1.0/24").unwrap();
        let net: IpNet = "10.5.1.0/24".parse().unwrap();
        let address = "10.0.0.1".parse().unwrap();
        let text = |refusal: &dyn ToString| refusal.to_string();
        for (reason, fault) in [
            (text(&Refusal::OutsideNetwork), Fault::Network),
            (text(&Refusal::OtherFamily), Fault::Network),
            (text(&Refusal::OverlapsOwn(key)), Fault::Overlap),
            (text(&Refusal::OverlapsOlder(key)), Fault::Overlap),
            (text(&Refusal::HoldsHost(address)), Fault::Hosts),
            (text(&Refusal::MeetsOlder(key)), Fault::Hosts),
            (text(&Refusal::MovesInto(key)), Fault::Hosts),
            (
                text(&Refusal::PublicIp {
                    address: "224.0.0.1".to_owned(),
                    what: "a multicast address",
                }),
                Fault::Address,
            ),
            (
                text(&Refusal::OtherBackend {
                    theirs: "host-gw".to_owned(),
                }),
                Fault::Backend,
            ),
            (text(&Refusal::BackendData("x".to_owned())), Fault::Data),
            (text(&backend::Refusal::NoData(net)), Fault::Data),
            (text(&backend::Refusal::NoAddress(net)), Fault::Address),
            (
                text(&backend::Refusal::NoEndpoint("PublicIP")),
                Fault::Address,
            ),
            (
                text(&backend::Refusal::Kind("udp".to_owned(), "vxlan")),
                Fault::Backend,
            ),
            (
                text(&backend::Refusal::NotOnLink {
                    public: address,
                    on_link: net,
                }),
                Fault::OffLink,
            ),
        ] {
            assert_eq!(Fault::of(&reason), fault, "{reason}");
            assert!(!duplicates::is_duplicate(&reason), "{reason}");
        }
    }
}
