use std::net::Ipv4Addr;

use super::*;
use crate::cluster::lease::LeaseAttrs;

mod moves;
mod properties;

const OWN: &str = "10.5.1.0-24";

fn key(name: &str) -> SubnetKey {
    SubnetKey::parse_name(name).unwrap()
}

fn lease(name: &str, public_ip: &str, created: u64) -> Lease {
    Lease {
        key: key(name),
        attrs: LeaseAttrs {
            public_ip: public_ip.parse().ok(),
            public_ipv6: None,
            backend_type: "vxlan".to_owned(),
            backend_data: None,
            backend_v6_data: None,
            owner: None,
        },
        created,
    }
}

/// A lease that publishes the MAC address 02:…:`mac`.
fn with_mac(name: &str, public_ip: &str, created: u64, mac: u8) -> Lease {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}"#);
    let mut lease = lease(name, public_ip, created);
    lease.attrs.backend_data = Some(serde_json::value::RawValue::from_string(data).unwrap());
    lease
}

/// A stand-in for a backend's check: leases of the owner `bad` are unusable.
fn check(bad: &'static str) -> CheckPeer {
    Box::new(move |lease| match lease.attrs.owner.as_deref() {
        Some(owner) if owner == bad => Err(PeerRefusal::BackendData("no VtepMAC".to_owned())),
        _ => Ok(()),
    })
}

fn table_of(config: &str, own: &str) -> PeerTable {
    let config = NetworkConfig::parse(config).unwrap();
    PeerTable::new(&config, &lease(own, "10.0.0.1", 100), check("bad"))
}

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

fn config() -> NetworkConfig {
    NetworkConfig::parse(CONFIG).unwrap()
}

fn table() -> PeerTable {
    table_of(CONFIG, OWN)
}

fn set(leases: impl Into<Vec<Lease>>) -> LeaseEvent {
    LeaseEvent::Changes {
        set: leases.into(),
        removed: Vec::new(),
    }
}

fn removed(names: &[&str]) -> LeaseEvent {
    LeaseEvent::Changes {
        set: Vec::new(),
        removed: names.iter().map(|name| key(name)).collect(),
    }
}

fn snapshot(leases: impl Into<Vec<Lease>>, unreadable: &[&str]) -> LeaseEvent {
    LeaseEvent::Snapshot {
        leases: leases.into(),
        unreadable: unreadable.iter().map(|name| key(name)).collect(),
    }
}

fn names<'a>(leases: impl IntoIterator<Item = &'a Arc<Lease>>) -> Vec<String> {
    leases.into_iter().map(|lease| lease.key.name()).collect()
}

/// `+` added, `~` changed, `-` removed, `!` refused.
fn shown(changes: &PeerChanges) -> String {
    let mut text = String::new();
    for name in names(&changes.added) {
        text += &format!("+{name} ");
    }
    for update in &changes.changed {
        text += &format!("~{} ", update.new.key.name());
    }
    for name in names(&changes.removed) {
        text += &format!("-{name} ");
    }
    for (key, refusal) in &changes.refused {
        text += &format!("!{}: {refusal} ", key.name());
    }
    text.trim_end().to_owned()
}

#[test]
fn peers_come_change_and_go() {
    let mut table = table();
    let mut apply = |event| shown(&table.apply(event));
    let a = lease("10.5.2.0-24", "10.0.0.2", 101);
    let b = lease("10.5.3.0-24", "10.0.0.3", 102);
    let own = lease(OWN, "10.0.0.1", 100);
    assert_eq!(apply(snapshot([own, a.clone()], &[])), "+10.5.2.0-24");
    assert_eq!(apply(set([b.clone()])), "+10.5.3.0-24");
    assert_eq!(apply(set([b.clone()])), "");
    let mut moved = b.clone();
    moved.attrs.public_ip = Some(Ipv4Addr::new(10, 0, 0, 33));
    assert_eq!(apply(set([moved])), "~10.5.3.0-24");
    assert_eq!(apply(snapshot([a], &[])), "-10.5.3.0-24");
    assert_eq!(
        apply(removed(&["10.5.2.0-24", "10.5.9.0-24"])),
        "-10.5.2.0-24"
    );
    assert!(table.is_empty());
}

#[test]
fn a_peer_that_one_event_takes_and_gives_back_is_not_reported_unless_it_differs() {
    let mut table = table();
    let old = lease("10.5.2.0-24", "10.0.0.2", 101);
    table.apply(set([old.clone()]));
    let back = LeaseEvent::Changes {
        set: vec![old.clone()],
        removed: vec![old.key],
    };
    assert_eq!(shown(&table.apply(back)), "");
    let new = lease("10.5.2.0-24", "10.0.0.9", 150);
    assert_eq!(shown(&table.apply(snapshot([new], &[]))), "~10.5.2.0-24");
}

#[test]
fn hostile_leases_are_refused_and_reported_once() {
    let table_of_cases = [
        (
            "10.6.0.0-24",
            "10.0.0.2",
            "its subnet is outside the network",
        ),
        (
            "10.0.0.0-8",
            "10.0.0.2",
            "its subnet is outside the network",
        ),
        ("0.0.0.0-0", "10.0.0.2", "its subnet is outside the network"),
        (
            "10.5.1.0-24&fd00::-64",
            "10.0.0.2",
            "its subnet overlaps this node's, 10.5.1.0/24",
        ),
        (
            "10.5.1.128-25",
            "10.0.0.2",
            "its subnet overlaps this node's, 10.5.1.0/24",
        ),
        (
            "10.5.0.0-16",
            "10.0.0.2",
            "its subnet overlaps this node's, 10.5.1.0/24",
        ),
        (
            "10.5.2.0-24",
            "224.0.0.1",
            "its public IP 224.0.0.1 is a multicast address",
        ),
        (
            "10.5.2.0-24",
            "127.0.0.1",
            "its public IP 127.0.0.1 is a loopback address",
        ),
        (
            "10.5.2.0-24",
            "0.0.0.0",
            "its public IP 0.0.0.0 is unspecified",
        ),
        (
            "10.5.2.0-24",
            "255.255.255.255",
            "its public IP 255.255.255.255 is the broadcast address",
        ),
        (
            "10.5.2.0-24",
            "240.0.0.1",
            "its public IP 240.0.0.1 is a reserved (class E) address",
        ),
        (
            "10.5.2.0-24",
            "10.5.2.1",
            "its public IP 10.5.2.1 is inside its own subnet",
        ),
        (
            "10.5.2.0-24",
            "10.5.1.7",
            "its public IP 10.5.1.7 is inside this node's subnet",
        ),
        (
            "10.5.2.0-24",
            "10.0.0.1",
            "its public IP 10.0.0.1 is this node's",
        ),
    ];
    for (name, public_ip, reason) in table_of_cases {
        let mut table = table();
        let bad = lease(name, public_ip, 1);
        assert_eq!(
            shown(&table.apply(set([bad.clone()]))),
            format!("!{name}: {reason}")
        );
        assert_eq!(shown(&table.apply(set([bad.clone()]))), "");
        assert_eq!(shown(&table.apply(snapshot([bad], &[]))), "");
        assert_eq!(table.refusals().count(), 1);
        assert!(table.apply(removed(&[name])).is_empty());
        assert_eq!(table.refusals().count(), 0);
    }
}

#[test]
fn other_backends_and_unusable_data_are_refused() {
    let mut table = table();
    let mut other = lease("10.5.2.0-24", "10.0.0.2", 101);
    other.attrs.backend_type = "host-gw".to_owned();
    let mut bad = lease("10.5.3.0-24", "10.0.0.3", 102);
    bad.attrs.owner = Some("bad".to_owned());
    let changes = table.apply(set([other, bad]));
    assert_eq!(
        shown(&changes),
        "!10.5.2.0-24: it runs another backend, \"host-gw\" \
         !10.5.3.0-24: its BackendData is unusable: no VtepMAC"
    );
}

#[test]
fn a_bad_update_keeps_the_last_good_attributes() {
    let mut table = table();
    let good = lease("10.5.2.0-24", "10.0.0.2", 101);
    table.apply(set([good.clone()]));
    let mut bad = good.clone();
    bad.attrs.public_ip = Some(Ipv4Addr::LOCALHOST);
    let changes = table.apply(set([bad.clone()]));
    assert!(changes.is_empty());
    assert_eq!(changes.refused.len(), 1);
    assert_eq!(shown(&table.apply(snapshot([bad], &[]))), "");
    assert_eq!(table.get(&good.key).unwrap().attrs, good.attrs);
    // The same node publishes good attributes again.
    assert_eq!(shown(&table.apply(set([good.clone()]))), "");
    assert_eq!(table.refusals().count(), 0);
    // A lease that was created again may be another node's: the former one's attributes must not be used for it.
    let mut anew = lease("10.5.2.0-24", "127.0.0.1", 200);
    assert_eq!(
        shown(&table.apply(snapshot([anew.clone()], &[]))),
        "-10.5.2.0-24 !10.5.2.0-24: its public IP 127.0.0.1 is a loopback address"
    );
    anew.attrs.public_ip = Some(Ipv4Addr::new(10, 0, 0, 7));
    assert_eq!(shown(&table.apply(set([anew]))), "+10.5.2.0-24");
}

#[test]
fn unreadable_leases_in_a_snapshot_remove_nobody() {
    let mut table = table();
    let a = lease("10.5.2.0-24", "10.0.0.2", 101);
    table.apply(set([a.clone()]));
    assert_eq!(shown(&table.apply(snapshot([], &["10.5.2.0-24"]))), "");
    assert_eq!(names(table.peers()), ["10.5.2.0-24"]);
    assert_eq!(shown(&table.apply(snapshot([], &[]))), "-10.5.2.0-24");
}

#[test]
fn the_older_of_two_overlapping_leases_is_used_whichever_comes_first() {
    let (old, young) = (
        lease("10.5.4.0-23", "10.0.0.2", 101),
        lease("10.5.5.0-24", "10.0.0.3", 102),
    );
    let refused = "!10.5.5.0-24: its subnet overlaps the older lease 10.5.4.0/23";

    let mut table = table();
    assert_eq!(shown(&table.apply(set([old.clone()]))), "+10.5.4.0-23");
    assert_eq!(shown(&table.apply(set([young.clone()]))), refused);
    assert_eq!(
        shown(&table.apply(removed(&["10.5.4.0-23"]))),
        "+10.5.5.0-24 -10.5.4.0-23"
    );
    assert_eq!(table.refusals().count(), 0);
    assert_eq!(
        shown(&table.apply(set([old.clone()]))),
        format!("+10.5.4.0-23 -10.5.5.0-24 {refused}")
    );
    // A waiting lease may change; one that is gone blocks nothing.
    let mut moved = young.clone();
    moved.attrs.public_ip = Some(Ipv4Addr::new(10, 0, 0, 33));
    assert_eq!(shown(&table.apply(set([moved]))), "");
    assert_eq!(shown(&table.apply(removed(&["10.5.5.0-24"]))), "");
    assert_eq!(
        shown(&table.apply(removed(&["10.5.4.0-23"]))),
        "-10.5.4.0-23"
    );
}

#[test]
fn a_lease_freed_by_an_eviction_is_used() {
    let mut table = table();
    // The middle one overlaps both others, which do not overlap each other.
    let (narrow, wide, other) = (
        lease("10.5.4.0-24", "10.0.0.2", 101),
        lease("10.5.4.0-22", "10.0.0.3", 102),
        lease("10.5.6.0-24", "10.0.0.4", 103),
    );
    assert_eq!(shown(&table.apply(set([wide]))), "+10.5.4.0-22");
    table.apply(set([other]));
    assert_eq!(names(table.peers()), ["10.5.4.0-22"]);
    table.apply(set([narrow]));
    assert_eq!(names(table.peers()), ["10.5.4.0-24", "10.5.6.0-24"]);
}

#[test]
fn judging_anew_under_the_same_circumstances_changes_nothing() {
    let mut table = table();
    let mut worse = lease("10.5.2.0-24", "10.0.0.2", 101);
    table.apply(set([worse.clone(), lease("10.5.3.0-24", "10.0.0.1", 102)]));
    worse.attrs.public_ip = Some(Ipv4Addr::LOCALHOST);
    table.apply(set([worse]));
    let changes = table.rejudge(&config(), &lease(OWN, "10.0.0.1", 100), check("bad"));
    assert_eq!(shown(&changes), "");
    assert_eq!(names(table.peers()), ["10.5.2.0-24"]);
    assert_eq!(table.refusals().count(), 2);
}

#[test]
fn a_lease_that_waits_still_waits_after_all_were_judged_anew() {
    let mut table = table();
    let old = lease("10.5.4.0-23", "10.0.0.2", 101);
    let young = lease("10.5.5.0-24", "10.0.0.3", 102);
    table.apply(set([old, young]));
    let own = lease(OWN, "10.0.0.77", 100);
    assert_eq!(shown(&table.rejudge(&config(), &own, check("bad"))), "");
    assert_eq!(names(table.peers()), ["10.5.4.0-23"]);
    assert_eq!(
        shown(&table.apply(removed(&["10.5.4.0-23"]))),
        "+10.5.5.0-24 -10.5.4.0-23"
    );
}

#[test]
fn what_was_refused_is_accepted_when_its_reason_ends() {
    let mut table = table();
    let ours = lease("10.5.2.0-24", "10.0.0.1", 101);
    let mut unusable = lease("10.5.3.0-24", "10.0.0.3", 102);
    unusable.attrs.owner = Some("bad".to_owned());
    let overlapping = lease("10.5.1.128-25", "10.0.0.4", 103);
    table.apply(set([ours, unusable, overlapping]));
    assert!(table.is_empty());

    let mut own = lease(OWN, "10.0.0.77", 100);
    let changes = table.rejudge(&config(), &own, check("bad"));
    assert_eq!(shown(&changes), "+10.5.2.0-24");
    let changes = table.rejudge(&config(), &own, check("nobody"));
    assert_eq!(shown(&changes), "+10.5.3.0-24");
    own.key = key("10.5.9.0-24");
    let changes = table.rejudge(&config(), &own, check("nobody"));
    assert_eq!(shown(&changes), "+10.5.1.128-25");
    assert_eq!(table.refusals().count(), 0);
}

#[test]
fn what_was_accepted_is_refused_when_there_is_a_reason_now() {
    let mut table = table();
    let a = lease("10.5.2.0-24", "10.0.0.2", 101);
    let b = lease("10.5.3.0-24", "10.0.0.3", 102);
    table.apply(set([a, b]));
    assert_eq!(
        shown(&table.rejudge(&config(), &lease(OWN, "10.0.0.2", 100), check("bad"))),
        "-10.5.2.0-24 !10.5.2.0-24: its public IP 10.0.0.2 is this node's"
    );
    // The subnet of a peer that is gone, although that was not seen yet.
    assert_eq!(
        shown(&table.rejudge(
            &config(),
            &lease("10.5.3.0-24", "10.0.0.1", 100),
            check("bad")
        )),
        "+10.5.2.0-24 -10.5.3.0-24"
    );
}

#[test]
fn an_update_refused_once_is_followed_when_it_is_good() {
    let mut table = table();
    let mut peer = lease("10.5.2.0-24", "10.0.0.2", 101);
    table.apply(set([peer.clone()]));
    // It takes over our address before we know that it is no longer ours.
    peer.attrs.public_ip = Some(Ipv4Addr::new(10, 0, 0, 1));
    assert!(table.apply(set([peer.clone()])).is_empty());
    let changes = table.rejudge(&config(), &lease(OWN, "10.0.0.77", 100), check("bad"));
    assert_eq!(shown(&changes), "~10.5.2.0-24");
    assert_eq!(table.get(&peer.key).unwrap().attrs, peer.attrs);
    assert_eq!(table.refusals().count(), 0);
}

#[test]
fn the_own_former_lease_is_nobodys_but_who_took_it_over_is_a_peer() {
    let own = lease(OWN, "10.0.0.1", 100);
    let next = lease("10.5.9.0-24", "10.0.0.1", 200);
    let mut left = table();
    left.apply(snapshot([own], &[]));
    assert_eq!(shown(&left.rejudge(&config(), &next, check("bad"))), "");
    let mut taken = table();
    taken.apply(snapshot([lease(OWN, "10.0.0.9", 100)], &[]));
    assert_eq!(
        shown(&taken.rejudge(&config(), &next, check("bad"))),
        format!("+{OWN}")
    );
}

#[test]
fn ipv6_counts_only_where_the_network_has_it() {
    let leases = || {
        [
            lease("10.5.2.0-24&fd00:0:0:2::-64", "10.0.0.2", 101),
            lease("10.5.3.0-24&fd00:0:0:2::-64", "10.0.0.3", 102),
            lease("10.5.4.0-24&fd01::-64", "10.0.0.4", 103),
            lease("10.5.5.0-24", "10.0.0.5", 104),
        ]
    };
    let mut v4_only = table();
    v4_only.apply(set(leases()));
    assert_eq!(v4_only.len(), 4);
    let mut dual = table_of(
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#,
        "10.5.1.0-24&fd00:0:0:1::-64",
    );
    let changes = dual.apply(set(leases()));
    assert_eq!(
        names(dual.peers()),
        ["10.5.2.0-24&fd00:0:0:2::-64", "10.5.5.0-24"]
    );
    assert_eq!(changes.refused.len(), 2);
    let mut link_local = lease("10.5.6.0-24&fd00:0:0:6::-64", "10.0.0.6", 106);
    link_local.attrs.public_ipv6 = Some("fe80::1".parse().unwrap());
    let changes = dual.apply(set([link_local]));
    assert!(shown(&changes).ends_with("its public IP fe80::1 is a link-local address"));
}
