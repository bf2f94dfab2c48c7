//! Updates that claim what another lease has: a public IP in its subnet, its MAC address or its key.

use super::*;

#[test]
fn of_a_subnet_and_a_public_address_in_it_the_older_leases_counts() {
    let waits = |key: &str, older: &str| {
        format!(
            "!{key}: it conflicts with the older lease {older}: the subnet of one contains the public IP of the other"
        )
    };
    let mut table = table();
    assert_eq!(
        shown(&table.apply(set([lease("10.5.2.0-24", "10.5.7.1", 2)]))),
        "+10.5.2.0-24"
    );
    let holder = lease("10.5.7.0-24", "10.0.0.7", 3);
    assert_eq!(
        shown(&table.apply(set([holder.clone()]))),
        waits("10.5.7.0-24", "10.5.2.0/24")
    );
    // An older one displaces it.
    assert_eq!(
        shown(&table.apply(set([lease("10.5.6.0-23", "10.0.0.6", 1)]))),
        format!(
            "+10.5.6.0-23 -10.5.2.0-24 {} {}",
            waits("10.5.2.0-24", "10.5.6.0/23"),
            "!10.5.7.0-24: its subnet overlaps the older lease 10.5.6.0/23"
        )
    );
    assert_eq!(table.len(), 1);
    table.apply(removed(&["10.5.6.0-23"]));
    assert!(table.get(&key("10.5.2.0-24")).is_some() && table.len() == 1);
    // An update that moves a node's public IP into another's subnet is refused until that lease is gone.
    table.apply(removed(&["10.5.2.0-24"]));
    assert_eq!(table.len(), 1);
    table.apply(set([lease("10.5.3.0-24", "10.0.0.3", 5)]));
    let moved = lease("10.5.3.0-24", "10.5.7.3", 5);
    let into = "!10.5.3.0-24: its new public IP is in the subnet of the lease 10.5.7.0/24; what it published before stays in use";
    assert_eq!(shown(&table.apply(set([moved.clone()]))), into);
    let in_use = |table: &PeerTable| table.get(&key("10.5.3.0-24")).unwrap().attrs.public_ip;
    assert_eq!(in_use(&table), "10.0.0.3".parse().ok());
    assert_eq!(
        shown(&table.apply(removed(&["10.5.7.0-24"]))),
        "~10.5.3.0-24 -10.5.7.0-24"
    );
    assert_eq!(in_use(&table), moved.attrs.public_ip);
    assert_eq!(table.refusals().count(), 0);
    // It moves away, and the lease that it blocked is accepted.
    assert!(shown(&table.apply(set([lease("10.5.7.0-24", "10.0.0.7", 9)]))).starts_with('!'));
    let away = shown(&table.apply(set([lease("10.5.3.0-24", "10.0.0.3", 5)])));
    assert_eq!(away, "+10.5.7.0-24 ~10.5.3.0-24");
}

#[test]
fn update_of_an_older_lease_takes_nothing_from_a_younger_one_in_use() {
    let mut table = table();
    let elder = |ip: &str, mac| with_mac("10.5.2.0-24", ip, 1, mac);
    let younger = with_mac("10.5.7.0-24", "10.0.0.7", 2, 7);
    table.apply(snapshot([elder("10.0.0.2", 2), younger.clone()], &[]));
    let in_use = |table: &PeerTable, name| table.get(&key(name)).unwrap().attrs.clone();

    // Its public IP moves into the younger one's subnet; its MAC address becomes the younger one's.
    for (update, refusal) in [
        (
            elder("10.5.7.1", 2),
            "its new public IP is in the subnet of the lease 10.5.7.0/24; what it published before stays in use",
        ),
        (
            elder("10.0.0.2", 7),
            "the lease of 10.5.7.0/24 already has its new MAC address; what it published before stays in use",
        ),
    ] {
        let changes = table.apply(set([update.clone()]));
        assert_eq!(shown(&changes), format!("!10.5.2.0-24: {refusal}"));
        assert_eq!(in_use(&table, "10.5.7.0-24"), younger.attrs);
        assert_eq!(in_use(&table, "10.5.2.0-24"), elder("10.0.0.2", 2).attrs);
        // Nor when all is judged or listed again.
        assert_eq!(
            shown(&table.rejudge(&config(), &lease(OWN, "10.0.0.1", 100), check("bad"))),
            ""
        );
        assert_eq!(
            shown(&table.apply(snapshot([update, younger.clone()], &[]))),
            ""
        );
        // It is accepted when the other lease is gone.
        let gone = shown(&table.apply(removed(&["10.5.7.0-24"])));
        assert_eq!(gone, "~10.5.2.0-24 -10.5.7.0-24");
        assert_eq!(table.refusals().count(), 0);
        table.apply(snapshot([elder("10.0.0.2", 2), younger.clone()], &[]));
    }

    // The younger node generates another MAC address, as this agent does.
    table.apply(set([elder("10.0.0.2", 7)]));
    let renewed = with_mac("10.5.7.0-24", "10.0.0.7", 2, 77);
    assert_eq!(
        shown(&table.apply(set([renewed]))),
        "~10.5.2.0-24 ~10.5.7.0-24"
    );
    assert_eq!(in_use(&table, "10.5.2.0-24"), elder("10.0.0.2", 7).attrs);
}

#[test]
fn two_nodes_may_change_places() {
    let mut table = table();
    let one = |mac| with_mac("10.5.2.0-24", "10.0.0.2", 1, mac);
    let two = |mac| with_mac("10.5.3.0-24", "10.0.0.3", 2, mac);
    table.apply(snapshot([one(2), two(3)], &[]));
    assert!(shown(&table.apply(set([one(3)]))).starts_with("!10.5.2.0-24: the lease of"));
    assert_eq!(
        shown(&table.apply(set([two(2)]))),
        "~10.5.2.0-24 ~10.5.3.0-24"
    );
    assert_eq!(table.refusals().count(), 0);
}

#[test]
fn lease_that_was_bad_so_far_takes_nothing_from_one_in_use() {
    let mut table = table();
    let mut late = with_mac("10.5.2.0-24", "10.0.0.2", 1, 7);
    late.attrs.owner = Some("bad".to_owned());
    let victim = with_mac("10.5.7.0-24", "10.0.0.7", 2, 7);
    table.apply(snapshot([late.clone(), victim.clone()], &[]));
    late.attrs.owner = None;
    assert_eq!(
        shown(&table.apply(set([late.clone()]))),
        "!10.5.2.0-24: the lease of 10.5.7.0/24 already has its new MAC address; what it published before stays in use"
    );
    assert_eq!(names(table.peers()), ["10.5.7.0-24"]);
    assert_eq!(
        shown(&table.apply(removed(&["10.5.7.0-24"]))),
        "+10.5.2.0-24 -10.5.7.0-24"
    );
}

#[test]
fn a_waiting_lease_that_ends_with_the_older_one_refuses_nobody() {
    let three = || {
        let older = lease("10.5.4.0-23", "10.0.0.4", 1);
        let waiting = with_mac("10.5.5.0-24", "10.0.0.5", 2, 5);
        let mut table = table();
        table.apply(set([
            older,
            waiting,
            with_mac("10.5.3.0-24", "10.0.0.9", 3, 9),
        ]));
        table
    };
    // It is gone in the event that would have let it in.
    let mut table = three();
    let moved = with_mac("10.5.3.0-24", "10.5.5.9", 3, 9);
    table.apply(snapshot([moved.clone()], &[]));
    assert_eq!(table.get(&moved.key).unwrap().attrs, moved.attrs);
    assert_eq!(table.refusals().count(), 0);
    // It is created again in that event, with another MAC address.
    let mut table = three();
    let copy = with_mac("10.5.3.0-24", "10.0.0.9", 3, 5);
    let again = with_mac("10.5.5.0-24", "10.0.0.5", 4, 6);
    table.apply(snapshot([copy.clone(), again.clone()], &[]));
    for lease in [copy, again] {
        assert_eq!(table.get(&lease.key).unwrap().attrs, lease.attrs);
    }
    assert_eq!(table.refusals().count(), 0);
}
