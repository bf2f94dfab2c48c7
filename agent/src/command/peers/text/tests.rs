//! Golden files of the text for one address.

use super::*;
use crate::base::terminal::Colour;
use crate::telemetry::status::SCHEMA;
use crate::telemetry::status::samples::{
    NOW, compare_with_golden, degraded, joining, peer, stopped, wireguard,
};

fn style() -> Style {
    Style::choose(Colour::Never)
}

fn detail(asked: &str, owner: Owner, peer: Option<Peer>) -> PeerDetail {
    PeerDetail {
        schema: SCHEMA,
        asked: asked.parse().unwrap(),
        owner,
        peer,
        objects: Vec::new(),
    }
}

fn object(wanted: &str, present: bool, found: Option<&str>) -> PeerObject {
    PeerObject {
        wanted: wanted.to_owned(),
        present,
        found: found.map(str::to_owned),
    }
}

#[test]
fn each_object_is_told_with_what_is_found_instead() {
    let objects = vec![
        object(
            "fdb 5e:11:22:33:44:55 dev flannel.1 dst 10.77.0.12",
            true,
            None,
        ),
        object(
            "neighbor 10.5.1.0 dev flannel.1 lladdr 5e:11:22:33:44:55",
            false,
            None,
        ),
        object("nexthop via 10.5.1.0 dev flannel.1 onlink", true, None),
        object(
            "route 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink",
            false,
            Some("route 10.5.1.0/24 proto 3"),
        ),
    ];
    let detail = PeerDetail {
        objects,
        ..detail("10.5.1.7/32", Owner::Peer, Some(peer(1, 12)))
    };
    compare_with_golden("peer-80.txt", &one(&detail, NOW, Some(80), style()));
    let coloured = one(&detail, NOW, Some(40), Style::choose(Colour::Always));
    compare_with_golden("peer-40-coloured.txt", &coloured);
}

#[test]
fn a_peer_of_both_versions_is_told_with_all_that_is_known() {
    let status = wireguard();
    let of = |index: usize| status.peers.get(index).cloned();
    let counted = detail("fd00:5:0:1::/64", Owner::Peer, of(0));
    compare_with_golden("peer-wireguard.txt", &one(&counted, NOW, None, style()));
    let refused = degraded().peers.pop();
    let refused = detail("10.77.0.5/32", Owner::Peer, refused);
    compare_with_golden("peer-refused.txt", &one(&refused, NOW, Some(80), style()));
}

#[test]
fn an_address_without_a_peer_is_told_in_a_line() {
    for (owner, expected) in [
        (Owner::Own, "10.5.9.9 is this host's\n"),
        (
            Owner::Nobody,
            "10.5.9.9 is nobody's: inside the overlay network, but in no lease\n",
        ),
        (Owner::Outside, "10.5.9.9 is outside the overlay\n"),
    ] {
        let detail = detail("10.5.9.9/32", owner, None);
        assert_eq!(one(&detail, NOW, Some(80), style()), expected);
    }
}

#[test]
fn without_an_agent_an_address_is_known_by_file_or_route() {
    let asked = |asked: &str, peers: usize| {
        let mut status = stopped();
        status.peers.truncate(peers);
        offline(&status, asked.parse().unwrap(), (None, style()))
    };
    assert_eq!(
        asked("10.5.34.7/32", 0),
        "10.5.34.7 is this host's, according to the subnet file\n"
    );
    assert_eq!(
        asked("10.5.9.0/24", 0),
        "the kernel has no overlay route to 10.5.9.0/24\n"
    );
    assert!(asked("10.5.1.7/32", 1).starts_with("1 peer in the kernel's routes:\n"));
}

#[test]
fn a_list_says_what_it_is_worth() {
    let status = joining();
    let text = all(&status, describe_peers(&status, None, style()));
    assert!(
        text.starts_with("The agent is joining:\n  - waiting to join: failed to read /coreos.com"),
        "{text}"
    );
    assert!(text.ends_with("No peers are known yet.\n"), "{text}");
}
