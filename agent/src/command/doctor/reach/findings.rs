//! Findings of the survey: one per fault, however many peers have it.

use super::checksum::Layer;
use super::direction::Verdict;
use super::filter_manager::{Encapsulation, FilterManager};
use super::path::{Carrier, Path, Topology, Tunnel};
use crate::command::doctor::{Finding, Names, Severity};

pub(super) const PEER_UNREACHABLE: &str = "peer-unreachable";
pub(super) const BLOCKED_PORT: &str = "blocked-port";
pub(super) const ONE_WAY: &str = "one-way";
pub(super) const MTU_BLACK_HOLE: &str = "mtu-black-hole";
pub(super) const CHECKSUM_OFFLOAD: &str = "checksum-offload";

/// Flannel's default ports, for backends whose device does not show the port, if none was observed.
const WIREGUARD_PORT: u16 = 51820;
const UDP_PORT: u16 = 8285;

/// How many peers a finding names.
const NAMED: usize = 3;

/// The fault of the path to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Issue {
    /// It answers nowhere.
    Unreachable,
    /// Its underlay address answers, its overlay address does not; with the observed UDP port on the peer.
    Lost(Verdict, Option<u16>),
    /// Short packets pass, long ones do not: the longest that pass, in bytes, over the overlay, and on the underlay if
    /// that answers echoes.
    SizeLimit { over: usize, under: Option<usize> },
    /// This many packets arrived with a wrong checksum.
    Corrupt(Layer, u32),
}

impl Issue {
    /// Whether it is the same fault; such paths share a finding.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Corrupt(one, _), Self::Corrupt(another, _)) => one == another,
            (Self::Lost(one, _), Self::Lost(another, _)) => one == another,
            _ => self == other,
        }
    }
}

/// Paths with one fault.
struct Group<'a> {
    issue: Issue,
    paths: Vec<&'a Path>,
    topology: &'a Topology,
    manager: FilterManager,
    names: &'a Names,
}

/// Writes the findings: one for each fault of the paths, which are given by index. `manager` manages this host's packet
/// filter.
pub(super) fn write(
    topology: &Topology,
    issues: &[(usize, Issue)],
    manager: FilterManager,
    names: &Names,
) -> Vec<Finding> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (at, issue) in issues {
        let Some(path) = topology.paths.get(*at) else {
            continue;
        };
        let same = |group: &&mut Group<'_>| {
            // The text names the device and its encapsulation.
            let first = group.paths.first().and_then(|first| first.tunnel.as_ref());
            group.issue.is_like(issue) && first == path.tunnel.as_ref()
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.paths.push(path),
            None => groups.push(Group {
                issue: *issue,
                paths: vec![path],
                topology,
                manager,
                names,
            }),
        }
    }
    groups.iter().filter_map(Group::finding).collect()
}

impl Group<'_> {
    fn finding(&self) -> Option<Finding> {
        let finding = match self.issue {
            Issue::Unreachable => self.unreachable(),
            Issue::Lost(Verdict::Works, _) => return None,
            Issue::Lost(verdict, port) => self.lost(verdict, port),
            Issue::SizeLimit { over, under } => self.size_limit(over, under),
            Issue::Corrupt(layer, packets) => self.corrupt(layer, packets),
        };
        Some(finding)
    }

    fn write(
        &self,
        check: &str,
        severity: Severity,
        what: String,
        why: String,
        remedy: Vec<String>,
    ) -> Finding {
        let subject = match self.paths.as_slice() {
            [path] => Some(path.subnet.to_string()),
            _ => None,
        };
        Finding {
            check: check.to_owned(),
            severity,
            subject,
            peers: self.paths.iter().map(|path| path.subnet).collect(),
            what,
            why,
            remedy,
        }
    }

    /// The peers, a few of them by name.
    fn peers(&self) -> String {
        let name = |path: &&Path| format!("{} at {}", path.subnet, path.under);
        let names: Vec<String> = self.paths.iter().take(NAMED).map(name).collect();
        let names = names.join(", ");
        let count = self.paths.len();
        if count == 1 {
            return names;
        }
        let all = self.topology.paths.len();
        let sample = self.topology.sampled_from.map_or(String::new(), |peers| {
            format!(" of a random sample from {peers} peers")
        });
        let more = match count.saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{count} of {all} subnets{sample} ({names}{more})")
    }

    fn tunnel(&self) -> Option<&Tunnel> {
        self.paths.first()?.tunnel.as_ref()
    }

    /// The encapsulated packets, for a sentence.
    fn carried(&self, seen: Option<u16>) -> String {
        match (self.tunnel().map(|tunnel| tunnel.carrier), seen) {
            (None, _) => "traffic".to_owned(),
            (Some(Carrier::Ipip), _) => "IP protocol 4 (IP in IP)".to_owned(),
            (Some(Carrier::Vxlan { port, .. }), _)
            | (Some(Carrier::Wireguard | Carrier::Udp), Some(port)) => format!("UDP port {port}"),
            (Some(Carrier::Wireguard), None) => format!(
                "UDP port {WIREGUARD_PORT} (or \"ListenPort\" in \"Backend\" of the network config)"
            ),
            (Some(Carrier::Udp), None) => {
                format!("UDP port {UDP_PORT} (or \"Port\" in \"Backend\" of the network config)")
            }
        }
    }

    /// The encapsulated packets, for packet filters.
    fn encapsulation(&self, seen: Option<u16>) -> Encapsulation {
        match self.tunnel().map(|tunnel| tunnel.carrier) {
            Some(Carrier::Vxlan { port, .. }) => Encapsulation::Udp(port),
            Some(Carrier::Ipip) | None => Encapsulation::Ipip,
            Some(Carrier::Wireguard) => Encapsulation::Udp(seen.unwrap_or(WIREGUARD_PORT)),
            Some(Carrier::Udp) => Encapsulation::Udp(seen.unwrap_or(UDP_PORT)),
        }
    }

    fn device(&self) -> String {
        self.tunnel().map_or_else(
            || self.topology.underlay.interface.clone(),
            |tunnel| tunnel.name.to_string(),
        )
    }

    fn unreachable(&self) -> Finding {
        let all = self.topology.paths.len();
        let interface = &self.topology.underlay.interface;
        let what = format!(
            "no answer from {}, neither over the overlay nor on the underlay",
            self.peers()
        );
        if self.paths.len() == all && all > 1 {
            return self.write(
                PEER_UNREACHABLE,
                Severity::Error,
                what,
                format!(
                    "No peer answers, so this host is cut off: {interface} has no link to the others, or its packet filter drops everything."
                ),
                vec![
                    format!("check the link of {interface}: ip -statistics link show {interface}"),
                    "see what drops packets: nft list ruleset".to_owned(),
                ],
            );
        }
        let under = self.paths.first().map(|path| path.under.to_string());
        let under = under.unwrap_or_default();
        self.write(
            PEER_UNREACHABLE,
            Severity::Warning,
            what,
            format!(
                "The host is down, gone, or cut off from this one, and its containers are unreachable from here; or it {}. Its lease stays until it expires.",
                match self.topology.deep {
                    true => "drops both echoes and TCP connections",
                    false => "only drops echoes, and all is well",
                }
            ),
            [
                format!(
                    "check whether it is on the network: ip route get {under}; ip neighbor show {under}"
                ),
                format!(
                    "if it is decommissioned, delete its lease: {} lists all; etcdctl del KEY",
                    self.names.selvage("network leases")
                ),
            ]
            .into_iter()
            .chain(self.deep_hint("whether it only drops echoes"))
            .collect(),
        )
    }

    fn lost(&self, verdict: Verdict, port: Option<u16>) -> Finding {
        let peers = self.peers();
        let carried = self.carried(port);
        let encapsulation = self.encapsulation(port);
        let device = self.device();
        let interface = &self.topology.underlay.interface;
        let accept =
            |whose: &str, by: String| format!("accept {carried} from all nodes {whose}: {by}");
        let hidden = match self.tunnel().map(|tunnel| tunnel.carrier) {
            Some(Carrier::Wireguard) => "encrypted packets do not show it",
            _ if !self.topology.deep => "the probes that would show it were not sent",
            _ => {
                "the peer or the network may drop the probes that would show it (rp_filter=1, protection against forged addresses)"
            }
        };
        let between = format!(
            "allow {carried} between all nodes: security groups, cloud firewalls, switches"
        );
        let (check, what, why, mut remedy) = match verdict {
            Verdict::NothingLeaves => (
                BLOCKED_PORT,
                format!("no encapsulated packet leaves {interface} for {peers}"),
                format!("The packet filter of this host drops outgoing {carried}."),
                vec![format!(
                    "allow outgoing {carried} on this host, for example: nft insert rule inet filter output {} accept; see what drops it: nft list ruleset",
                    encapsulation.nft_match()
                )],
            ),
            Verdict::DroppedHere => (
                BLOCKED_PORT,
                format!(
                    "packets from {peers} reach {interface}, but are dropped on this host before {device}"
                ),
                format!(
                    "Most likely the packet filter of this host drops incoming {carried}. Otherwise the packets are damaged, or belong to another overlay: another VNI or key."
                ),
                vec![accept(
                    "on this host",
                    encapsulation.accept_command(self.manager),
                )],
            ),
            Verdict::LostToPeer => (
                ONE_WAY,
                format!("packets over the overlay to {peers} are lost; those from there arrive"),
                format!(
                    "{carried} does not reach the peer, or the peer's packet filter drops it. TCP needs both \
                     directions, so no connection works."
                ),
                vec![
                    accept("on the peer", encapsulation.accept_commands()),
                    between,
                ],
            ),
            Verdict::LostFromPeer | Verdict::Works => (
                ONE_WAY,
                format!(
                    "packets over the overlay from {peers} do not reach {interface}; those to there arrive"
                ),
                format!(
                    "{carried} is dropped where it leaves the peer, or between the peer and this host. TCP needs both \
                     directions, so no connection works."
                ),
                vec![
                    format!(
                        "allow outgoing {carried} on the peer; see what drops it there: nft list ruleset"
                    ),
                    between,
                ],
            ),
            Verdict::Blocked => (
                BLOCKED_PORT,
                format!("no overlay packet gets to or from {peers}, although the underlay works"),
                format!(
                    "{carried} is blocked between the hosts or by the peer's packet filter; or the peer has just started, and its agent has not set up the overlay yet. The direction is unknown: {hidden}."
                ),
                vec![
                    accept(
                        "on the peer, and on this host",
                        encapsulation.accept_commands(),
                    ),
                    between,
                ],
            ),
        };
        remedy.push(format!(
            "run {} on the peer as well: it sees the other side",
            self.names.selvage("doctor")
        ));
        remedy.extend(
            self.deep_hint("in which direction packets are lost, and whether only echoes are"),
        );
        remedy.extend(self.without_checksum());
        self.write(check, Severity::Error, what, why, remedy)
    }

    /// A hint at the probes that were not sent.
    fn deep_hint(&self, what: &str) -> Option<String> {
        (!self.topology.deep).then(|| {
            format!(
                "to see {what}: {} --deep, which sends packets that look like an attack to others on the network",
                self.names.selvage("doctor")
            )
        })
    }

    /// What to try if outer packets have checksums, which some devices compute wrongly.
    fn without_checksum(&self) -> Option<String> {
        match self.tunnel()?.carrier {
            Carrier::Vxlan { checksum: true, .. } => Some(format!(
                "if no rule drops them: outer packets carry a UDP checksum, which some devices compute wrongly: set \"Checksum\": false in \"Backend\" of the network config, or try ethtool -K {} \
                 tx-checksum-ip-generic off",
                self.topology.underlay.interface
            )),
            _ => None,
        }
    }

    fn size_limit(&self, over: usize, under: Option<usize>) -> Finding {
        let underlay = &self.topology.underlay;
        let interface = &underlay.interface;
        let whole = usize::try_from(underlay.mtu).unwrap_or_default();
        let tunnel = self.tunnel();
        let mtu = tunnel.map_or(self.topology.mtu, |tunnel| tunnel.mtu);
        let overhead = tunnel.map_or(0, |tunnel| whole.saturating_sub(tunnel.mtu));
        // What the underlay carries, or the overlay's own limit if the underlay does not answer.
        let carried = under.map_or(over + overhead, |under| under.min(over + overhead));
        let what = match tunnel {
            Some(tunnel) => format!(
                "packets of more than {over} bytes are lost on the overlay to {}; {} has an MTU of {mtu}",
                self.peers(),
                tunnel.name
            ),
            None => format!(
                "packets of more than {over} bytes are lost on the way to {}; containers send up to {mtu}",
                self.peers()
            ),
        };
        let place = match under {
            Some(under) if under < whole => format!(
                "The underlay drops them: it passes {under} bytes, but {interface} has an MTU of {whole}. A switch, a router, a VPN or the peer's interface has a smaller MTU and reports nothing."
            ),
            Some(_) => format!(
                "The underlay passes {whole} bytes, so only large encapsulated packets are lost: a packet filter or the peer drops them."
            ),
            None => "Whether the underlay drops them is unknown: it answers no echoes.".to_owned(),
        };
        let why = format!("{place} Connections open, then hang at the first large packet.");
        let lower = if let Some(Carrier::Vxlan { .. } | Carrier::Wireguard) =
            tunnel.map(|tunnel| tunnel.carrier)
        {
            format!(
                "set \"MTU\": {carried} in \"Backend\" of the network config, by {}: the MTU of the underlay, for all nodes",
                self.names.selvage("network set")
            )
        } else {
            format!(
                "ip link set {interface} mtu {carried} on all nodes, and the same in their boot configuration; agents follow"
            )
        };
        self.write(
            MTU_BLACK_HOLE,
            Severity::Error,
            what,
            why,
            vec![
                lower,
                format!("or raise the MTU of everything between the nodes to {whole}"),
                "restart containers afterwards: they keep the MTU that they were started with"
                    .to_owned(),
            ],
        )
    }

    fn corrupt(&self, layer: Layer, packets: u32) -> Finding {
        let (header, device) = match layer {
            Layer::Outer => (
                "in the outer UDP header",
                "its underlay interface".to_owned(),
            ),
            Layer::Inner => ("in the inner TCP or UDP header", self.device()),
        };
        let mut remedy = vec![format!(
            "on the peer: ethtool -K {device} tx-checksum-ip-generic off, and the same in its boot configuration"
        )];
        if layer == Layer::Outer {
            remedy.push(
                "or set \"Checksum\": false in \"Backend\" of the network config: VXLAN needs none"
                    .to_owned(),
            );
        }
        self.write(
            CHECKSUM_OFFLOAD,
            Severity::Error,
            format!(
                "packets from {} arrive with a wrong checksum {header} ({packets} in 1.5 s)",
                self.peers()
            ),
            "This host drops them. On the peer, a network device or its driver computes checksums of encapsulated packets wrongly (flannel's issue 1279), or a device in between changes packets without updating the checksum."
                .to_owned(),
            remedy,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::Underlay;

    fn topology(carrier: Option<Carrier>, peers: u8) -> Topology {
        let tunnel = carrier.map(|carrier| Tunnel {
            index: 3,
            name: "flannel.1".parse().unwrap(),
            mtu: 1450,
            carrier,
        });
        let path = |peer: u8| Path {
            subnet: format!("10.5.{peer}.0/24").parse().unwrap(),
            over: [10, 5, peer, 0].into(),
            under: [10, 77, 0, peer].into(),
            own_over: [10, 5, 0, 0].into(),
            own_under: [10, 77, 0, 200].into(),
            tunnel: tunnel.clone(),
        };
        Topology {
            underlay: Underlay {
                interface: "eth0".to_owned(),
                index: 2,
                mtu: 1500,
                ipv4: None,
                ipv6: None,
            },
            mtu: 1450,
            paths: (1..=peers).map(path).collect(),
            sampled_from: None,
            deep: true,
        }
    }

    fn names() -> Names {
        Names::of(&crate::command::doctor::names::tests::settings(&[]))
    }

    const VXLAN: Carrier = Carrier::Vxlan {
        port: 8472,
        checksum: false,
    };

    #[test]
    fn one_fault_of_many_peers_is_one_finding() {
        let topology = topology(Some(VXLAN), 6);
        let mut issues: Vec<_> = (0..5).map(|at| (at, Issue::Unreachable)).collect();
        issues.push((5, Issue::Lost(Verdict::Blocked, Some(8472))));
        let findings = write(&topology, &issues, FilterManager::Rules, &names());
        let [unreachable, blocked] = findings.as_slice() else {
            panic!("{findings:#?}")
        };
        assert_eq!(
            unreachable.what,
            "no answer from 5 of 6 subnets (10.5.1.0/24 at 10.77.0.1, 10.5.2.0/24 at 10.77.0.2, \
             10.5.3.0/24 at 10.77.0.3 and 2 more), neither over the overlay nor on the underlay"
        );
        assert_eq!(
            (unreachable.severity, &unreachable.subject),
            (Severity::Warning, &None)
        );
        assert_eq!(blocked.subject.as_deref(), Some("10.5.6.0/24"));
        let sample = Topology {
            sampled_from: Some(3000),
            ..topology
        };
        let [first, _] = &write(&sample, &issues, FilterManager::Rules, &names())[..] else {
            panic!("not two findings")
        };
        assert!(first.what.contains("of a random sample from 3000 peers"));
    }

    #[test]
    fn the_mtu_to_set_is_what_the_underlay_carries() {
        let set = |carrier, over, under| {
            let issue = Issue::SizeLimit { over, under };
            let findings = write(
                &topology(carrier, 1),
                &[(0, issue)],
                FilterManager::Rules,
                &names(),
            );
            findings[0].remedy[0].clone()
        };
        for (carrier, over, under, expected) in [
            (Some(VXLAN), 1350, Some(1400), "\"MTU\": 1400 in "),
            // Only encapsulated packets are lost, or the underlay does not answer.
            (Some(VXLAN), 1350, Some(1500), "\"MTU\": 1400 in "),
            (Some(VXLAN), 1350, None, "\"MTU\": 1400 in "),
            (Some(Carrier::Wireguard), 1350, None, "\"MTU\": 1400 in "),
            (
                Some(Carrier::Ipip),
                1350,
                None,
                "ip link set eth0 mtu 1400 ",
            ),
            (None, 1400, Some(1400), "ip link set eth0 mtu 1400 "),
        ] {
            let remedy = set(carrier, over, under);
            assert!(remedy.contains(expected), "{carrier:?}: {remedy}");
        }
    }

    #[test]
    fn every_backend_has_its_own_rule() {
        let rule = |carrier, port| {
            let issue = Issue::Lost(Verdict::DroppedHere, port);
            let findings = write(
                &topology(Some(carrier), 1),
                &[(0, issue)],
                FilterManager::Rules,
                &names(),
            );
            findings[0].remedy[0].clone()
        };
        for (carrier, port, expected) in [
            (VXLAN, None, "udp dport 8472 accept"),
            (Carrier::Wireguard, None, "udp dport 51820 accept"),
            (Carrier::Wireguard, Some(4000), "udp dport 4000 accept"),
            (Carrier::Udp, None, "udp dport 8285 accept"),
            (Carrier::Ipip, None, "meta l4proto 4 accept"),
        ] {
            let remedy = rule(carrier, port);
            assert!(remedy.contains(expected), "{carrier:?}: {remedy}");
        }
    }

    #[test]
    fn outer_checksums_are_suspected_where_they_are_in_use() {
        for checksum in [true, false] {
            let carrier = Carrier::Vxlan {
                port: 8472,
                checksum,
            };
            let issue = Issue::Lost(Verdict::LostToPeer, None);
            let findings = write(
                &topology(Some(carrier), 1),
                &[(0, issue)],
                FilterManager::Rules,
                &names(),
            );
            let named = findings[0]
                .remedy
                .iter()
                .any(|remedy| remedy.contains("\"Checksum\": false"));
            assert_eq!(named, checksum);
        }
    }
}
