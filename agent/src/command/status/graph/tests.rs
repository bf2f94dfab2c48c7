use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::*;
use crate::command::doctor::Severity;
use crate::telemetry::status::{
    Agent, Cause, Code, Device, Health, Lease, Network, Peer, PeerState, Traffic, Underlay,
};

/// The subnet and the underlay address of a numbered node.
fn addresses(number: u32) -> (Ipv4Net, Ipv4Addr) {
    let subnet = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8));
    let underlay = Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 168, 0, 0)) + number);
    (Ipv4Net::new(subnet, 24).unwrap(), underlay)
}

fn peer(number: u32) -> Peer {
    let (subnet, underlay) = addresses(number);
    Peer {
        subnet: Some(subnet),
        subnet_v6: None,
        public_ip: Some(underlay),
        public_ipv6: None,
        backend: "vxlan".to_owned(),
        owner: Some(format!("node-{number}")),
        state: PeerState::Programmed,
        reason: None,
        refusal: None,
        since_time: 1_700_000_000,
        changed_time: None,
        traffic: None,
        handshake_time: None,
    }
}

fn status(peers: u32) -> Status {
    let mut status = Status::joining(Agent::of_process("node-0", 1_700_000_000), Vec::new());
    let (subnet, underlay) = addresses(0);
    status.time = 1_763_836_245;
    status.health = Health::new(State::Ready, Vec::new());
    status.network = Some(Network {
        ipv4: Some("10.0.0.0/8".parse().unwrap()),
        ipv6: None,
        backend: "vxlan".to_owned(),
        subnets: None,
        mtu: 1450,
        rejected: None,
    });
    status.lease = Some(Lease {
        subnet: Some(subnet),
        subnet_v6: None,
        public_ip: Some(underlay),
        public_ipv6: None,
        since_time: 1_700_000_000,
        held: true,
        reservation: false,
        ttl_seconds: Some(86_400),
        left_seconds: Some(80_000),
        trouble: None,
    });
    status.underlay = Some(Underlay {
        interface: "eth0".to_owned(),
        index: 2,
        mtu: 1500,
        ipv4: Some(Ipv4Net::new(underlay, 16).unwrap()),
        ipv6: None,
    });
    status.devices = vec![Device {
        name: "flannel.1".to_owned(),
        present: true,
        kind: Some("vxlan".to_owned()),
        mtu: Some(1450),
        mac: Some("0e:00:00:00:00:01".to_owned()),
        traffic: Traffic::default(),
        tx_errors: 0,
        tx_dropped: 0,
        rx_errors: 0,
        rx_dropped: 0,
    }];
    status.peers = (1..=peers).map(peer).collect();
    status
}

/// One peer of each mark; the last is lost according to the doctor.
fn troubled() -> (Status, Vec<Finding>) {
    let mut status = status(6);
    let reasons = [
        (
            PeerState::Failed,
            "add route 10.0.2.0/24 via 10.0.2.0 dev flannel.1: no buffer space available",
        ),
        (PeerState::Refused, "its subnet 10.0.3.0/24 overlaps ours"),
    ];
    for (peer, (state, reason)) in status.peers.iter_mut().skip(1).zip(reasons) {
        peer.state = state;
        peer.reason = Some(reason.to_owned());
    }
    if let Some(peer) = status.peers.last_mut() {
        peer.subnet_v6 = Some("fd00:cafe:1234:5678::/64".parse::<Ipv6Net>().unwrap());
    }
    let finding = Finding {
        check: "unreachable".to_owned(),
        severity: Severity::Error,
        subject: Some("10.0.4.0/24".to_owned()),
        peers: nets(&["10.0.4.0/24"]),
        what: "10.0.4.0/24 at 192.168.0.4 gives no answer".to_owned(),
        why: String::new(),
        remedy: Vec::new(),
    };
    (status, vec![finding])
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// All texts, read by a strict XML parser.
fn texts(svg: &str) -> Vec<String> {
    let document = roxmltree::Document::parse(svg).unwrap();
    let root = document.root_element();
    assert!(root.has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    let in_style = |node: &roxmltree::Node<'_, '_>| {
        let parent = node.parent_element();
        parent.is_some_and(|parent| parent.tag_name().name() == "style")
    };
    let texts = document
        .descendants()
        .filter(|node| node.is_text() && !in_style(node));
    texts
        .filter_map(|node| Some(node.text()?.to_owned()))
        .collect()
}

fn has(texts: &[String], wanted: &str) -> bool {
    texts.iter().any(|text| text.contains(wanted))
}

#[test]
fn picture_tells_nodes_subnets_backend_and_underlay() {
    let texts = texts(&draw(&status(3), Ok(&[])));
    for wanted in [
        "Overlay 10.0.0.0/8 by vxlan, MTU 1450",
        "3 peers: 3 programmed",
        "ready, at 2025-11-22 18:30:45 UTC",
        "this node",
        "10.0.0.0/24",
        "192.168.0.0/16",
        "on eth0",
        "device flannel.1",
        "10.0.3.0/24",
        "at 192.168.0.3",
        "node-3",
    ] {
        assert!(has(&texts, wanted), "{wanted} is missing in {texts:?}");
    }
    assert!(!has(&texts, "refused"), "{texts:?}");
}

#[test]
fn trouble_is_told_by_words_and_forms() {
    let (status, findings) = troubled();
    let svg = draw(&status, Ok(&findings));
    let told = texts(&svg);
    for wanted in [
        "6 peers: 3 programmed, 1 packets lost, 1 failed, 1 refused",
        "packets lost",
        "10.0.4.0/24 at 192.168.0.4 gives no answer",
        "its subnet 10.0.3.0/24 overlaps ours",
        "10.0.2.0/24 at 192.168.0.2 (node-2), failed: add route 10.0.2.0/24",
        "fd00:cafe:1234:5678::/64",
    ] {
        assert!(has(&told, wanted), "{wanted} is missing in {told:?}");
    }
    // The line of each is broken and has the sign; so has the card, and the legend.
    for class in ["lost", "failed", "refused"] {
        let count = |what: &str| svg.matches(&format!(r#"class="{what} {class}""#)).count();
        assert_eq!(
            (count("line"), count("sign"), count("card bad")),
            (1, 3, 1),
            "{class}"
        );
    }
    // A finding about several peers marks all of them; one about none, whatever it says, marks no peer.
    let several = |what: &str, peers: &[&str]| Finding {
        subject: None,
        peers: nets(peers),
        what: what.to_owned(),
        ..findings[0].clone()
    };
    let finding = several("2 of 6 subnets", &["10.0.4.0/24", "10.0.5.0/24"]);
    let told = texts(&draw(&status, Ok(&[finding])));
    assert!(
        has(&told, "2 packets lost") && has(&told, "2 of 6 subnets"),
        "{told:?}"
    );
    let told = texts(&draw(
        &status,
        Ok(&[several("something about 10.0.4.0/24", &[])]),
    ));
    assert!(!has(&told, "packets lost"), "{told:?}");
}

#[test]
fn wireguard_that_never_was_answered_is_marked() {
    let mut status = status(1);
    let peer = &mut status.peers[0];
    peer.backend = "wireguard".to_owned();
    peer.traffic = Some(Traffic::default());
    let idle = status.clone();
    assert!(!has(&texts(&draw(&idle, Ok(&[]))), "packets lost"));
    let peer = &mut status.peers[0];
    peer.traffic = Some(Traffic {
        tx_bytes: 148,
        ..Traffic::default()
    });
    assert!(has(
        &texts(&draw(&status, Ok(&[]))),
        "there was never a handshake"
    ));
    status.peers[0].handshake_time = Some(1_700_000_000);
    assert!(!has(&texts(&draw(&status, Ok(&[]))), "packets lost"));
}

#[test]
fn what_is_not_known_yet_is_said() {
    let mut status = Status::joining(
        Agent::of_process("a/b\"c", 0),
        vec![Cause::new(Code::StoreUnreachable, "waiting for etcd")],
    );
    status.time = 0;
    let svg = draw(&status, Ok(&[]));
    let texts = texts(&svg);
    for wanted in [
        "not known yet",
        "no lease",
        "no peers",
        "waiting for etcd",
        "joining, at 1970-01-01 00:00:00 UTC",
    ] {
        assert!(has(&texts, wanted), "{wanted} is missing in {texts:?}");
    }
    assert!(svg.contains(r#"id="overlay-abc-title""#), "{svg}");
}

#[test]
fn peers_that_were_not_asked_are_not_said_to_answer() {
    let told = texts(&draw(&status(1), Err("that needs root")));
    assert!(has(&told, "not probed: that needs root"), "{told:?}");
    assert!(!has(&texts(&draw(&status(1), Ok(&[]))), "not probed"));
}

#[test]
fn lost_lease_and_many_reasons_have_their_place() {
    let mut status = status(0);
    status.health.state = State::Degraded;
    status.health.reasons = (0..9).map(|number| format!("reason {number}")).collect();
    status.lease.as_mut().unwrap().held = false;
    let texts = texts(&draw(&status, Ok(&[])));
    assert!(
        has(&texts, "no longer held") && has(&texts, "degraded"),
        "{texts:?}"
    );
    assert!(
        has(&texts, "reason 3") && !has(&texts, "reason 4"),
        "{texts:?}"
    );
    assert!(has(&texts, "and 5 more"), "{texts:?}");
}

#[test]
fn every_peer_of_some_hundred_has_a_card() {
    for count in [1, 2, 10, 11, 13, 120] {
        let svg = draw(&status(count), Ok(&[]));
        assert_eq!(
            svg.matches(r#"class="card""#).count(),
            usize::try_from(count).unwrap()
        );
        assert!(has(&texts(&svg), &format!("node-{count}")), "{count}");
    }
}

#[test]
fn ten_thousand_peers_are_summed_up() {
    let mut status = status(10_000);
    for (index, peer) in status
        .peers
        .iter_mut()
        .enumerate()
        .filter(|(index, _)| index % 100 == 7)
    {
        peer.state = PeerState::Refused;
        peer.reason = Some(format!("reason of {index}"));
    }
    let svg = draw(&status, Ok(&[]));
    assert!(svg.len() < 500_000, "{} bytes", svg.len());
    let texts = texts(&svg);
    assert!(
        has(&texts, "10000 peers: 9900 programmed, 100 refused"),
        "{texts:?}"
    );
    assert!(has(&texts, "and 40 more with faults"), "{texts:?}");
    assert!(has(&texts, "reason of 107") && !has(&texts, "reason of 9907"));
    // One tile each: a square, or a ring.
    assert_eq!(svg.matches("h8v8h-8z").count(), 9900);
    assert_eq!(svg.matches("a4 4 0 1 0 -8 0").count(), 100);
    assert!(
        has(&texts, "10.38.173.0/24"),
        "a row begins with its first subnet"
    );
}

#[test]
fn nothing_is_asked_of_elsewhere() {
    let (status, findings) = troubled();
    let svg = draw(&status, Ok(&findings)).replace(r#"xmlns="http://www.w3.org/2000/svg""#, "");
    for foreign in [
        "http",
        "href",
        "url(",
        "@import",
        "<script",
        "<image",
        "<foreignObject",
        "onload",
    ] {
        assert!(!svg.contains(foreign), "{foreign}");
    }
    assert!(svg.contains("prefers-color-scheme: dark"));
}

#[test]
fn days_are_those_of_the_calendar() {
    for (time, text) in [
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (1_709_251_199, "2024-02-29 23:59:59 UTC"),
        (4_107_542_400, "2100-03-01 00:00:00 UTC"),
    ] {
        assert_eq!(utc(time), text);
    }
    assert!(utc(u64::MAX).ends_with("UTC"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever text comes from a peer, the store or the kernel, the picture is valid XML without injected elements.
    #[test]
    fn hostile_texts_stay_texts(text in ".{0,80}|[<>&\"'/=a-z\u{0}-\u{1f}\u{202e}]{0,80}", count in 1u32..15) {
        let mut status = status(count);
        for peer in &mut status.peers {
            peer.owner = Some(text.clone());
            peer.backend = text.clone();
            peer.state = PeerState::Refused;
            peer.reason = Some(text.clone());
        }
        status.agent.node_id = text.clone();
        status.health.reasons = vec![text.clone()];
        status.devices[0].name = text.clone();
        status.underlay.as_mut().unwrap().interface = text.clone();
        status.network.as_mut().unwrap().backend = text;
        let svg = draw(&status, Ok(&[]));
        let document = roxmltree::Document::parse(&svg).unwrap();
        for node in document.descendants().filter(roxmltree::Node::is_element) {
            let name = node.tag_name().name();
            let ours = ["svg", "title", "desc", "style", "rect", "g", "path", "text"];
            prop_assert!(ours.contains(&name), "{name}");
            for attribute in node.attributes() {
                prop_assert!(!attribute.name().starts_with("on"), "{}", attribute.name());
            }
        }
    }
}
