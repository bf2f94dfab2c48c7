use super::*;

const OWNER: &str = "machine-a";

fn config() -> NetworkConfig {
    NetworkConfig::parse(r#"{"Network":"10.5.0.0/22"}"#).unwrap()
}

fn attrs(public_ip: &str, owner: Option<&str>) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: public_ip.parse().ok(),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: None,
        backend_v6_data: None,
        owner: owner.map(str::to_owned),
    }
}

fn key(name: &str) -> SubnetKey {
    SubnetKey::parse_name(name).unwrap()
}

fn entry(name: &str, attrs: Option<LeaseAttrs>, etcd_lease: Option<i64>) -> Entry {
    Entry {
        key: key(name),
        attrs,
        created: 1,
        modified: 1,
        etcd_lease,
    }
}

fn answers(of: &[(&str, Answer)]) -> Answers {
    let owned = |(owner, answer): &(&str, Answer)| ((*owner).to_owned(), answer.clone());
    of.iter().map(owned).collect()
}

fn alive() -> Answer {
    Answer::Alive("10.0.0.9".to_owned())
}

fn unknown() -> Answer {
    Answer::Unknown("permission denied".to_owned())
}

/// The subnet, after a word for how it was obtained, and the leases to give up.
fn decided(entries: &[Entry], previous: Option<&str>, answers: &Answers) -> (String, Vec<String>) {
    let node = Node {
        attrs: &attrs("10.0.0.1", Some(OWNER)),
        previous: previous.map(key),
        restarted: true,
        may_ask: true,
        has_own_address: true,
        avoid: &Avoid::default(),
    };
    let decision = decide(&config(), &node, answers, entries, 0, 1);
    let subnet = match decision.subnet {
        Subnet::Keep(entry) => format!("keep {}", entry.key),
        Subnet::Create(key) => format!("create {key}"),
        Subnet::NoneLeft(exhausted) => exhausted.to_string(),
    };
    let discard = decision.discard.iter().map(|e| e.key.to_string());
    (subnet, discard.collect())
}

fn subnet(entries: &[Entry], previous: Option<&str>) -> String {
    let (subnet, discard) = decided(entries, previous, &Answers::new());
    assert_eq!(discard, Vec::<String>::new());
    subnet
}

#[test]
fn own_leases_are_kept_whoever_wrote_them_for_this_address() {
    let mine = Some(attrs("10.0.0.1", Some(OWNER)));
    let flannels = Some(attrs("10.0.0.1", None));
    let other = Some(attrs("10.0.0.2", Some("machine-b")));
    let entries = |attrs| {
        [
            entry("10.5.1.0-24", other.clone(), Some(1)),
            entry("10.5.2.0-24", attrs, Some(2)),
        ]
    };
    assert_eq!(subnet(&entries(mine), None), "keep 10.5.2.0/24");
    assert_eq!(subnet(&entries(flannels), None), "keep 10.5.2.0/24");
}

#[test]
fn leases_of_twins_are_left_alone() {
    for twin in [
        attrs("10.0.0.1", Some("machine-b")),
        attrs("10.0.0.9", Some("machine-b")),
        attrs("10.0.0.9", None),
    ] {
        let entries = [
            entry("10.5.1.0-24", Some(twin), Some(1)),
            entry("10.5.2.0-24", None, Some(2)),
        ];
        assert_eq!(subnet(&entries, Some("10.5.1.0-24")), "create 10.5.3.0/24");
    }
}

#[test]
fn the_lease_of_another_address_is_taken_up_if_nobody_there_answers() {
    let moved = || Some(attrs("10.0.0.9", Some(OWNER)));
    let entries = [
        entry("10.5.1.0-24", moved(), Some(1)),
        entry("10.5.2.0-24", moved(), Some(2)),
    ];
    let decided = |previous, answer| decided(&entries, previous, &answers(&[(OWNER, answer)])).0;
    let (first, second) = (Some("10.5.1.0-24"), Some("10.5.2.0-24"));
    for (previous, answer, subnet) in [
        // A reboot that emptied /run.
        (None, Answer::Silent, "keep 10.5.1.0/24"),
        (second, Answer::Silent, "keep 10.5.2.0/24"),
        // A clone, with or without its original's subnet file.
        (None, alive(), "create 10.5.3.0/24"),
        (first, alive(), "create 10.5.3.0/24"),
        // Where nobody can be asked, only the previous subnet counts.
        (None, unknown(), "create 10.5.3.0/24"),
        (first, unknown(), "keep 10.5.1.0/24"),
    ] {
        assert_eq!(
            decided(previous, answer.clone()),
            subnet,
            "{previous:?} {answer:?}"
        );
    }
}

#[test]
fn two_nodes_that_swapped_addresses_keep_their_subnets() {
    let entries = [
        entry(
            "10.5.1.0-24",
            Some(attrs("10.0.0.1", Some("machine-b"))),
            Some(1),
        ),
        entry("10.5.2.0-24", Some(attrs("10.0.0.2", Some(OWNER))), Some(2)),
    ];
    let silent = answers(&[(OWNER, Answer::Silent), ("machine-b", Answer::Silent)]);
    assert_eq!(decided(&entries, None, &silent).0, "keep 10.5.2.0/24");
}

#[test]
fn who_was_reinstalled_takes_its_addresss_lease_over_unless_that_is_a_nats() {
    let of = |mac: &str, owner: &str| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        LeaseAttrs {
            backend_data: serde_json::value::RawValue::from_string(data).ok(),
            ..attrs("10.0.0.1", Some(owner))
        }
    };
    let own = of("02:00:00:00:00:01", OWNER);
    let decided = |found: LeaseAttrs, answer: Option<Answer>, has_own_address| {
        let entries = [entry("10.5.1.0-24", Some(found), Some(1))];
        let node = Node {
            attrs: &own,
            previous: None,
            restarted: true,
            may_ask: answer.is_some(),
            has_own_address,
            avoid: &Avoid::default(),
        };
        let answers: Vec<_> = answer
            .into_iter()
            .map(|answer| ("before", answer))
            .collect();
        let decision = decide(&config(), &node, &self::answers(&answers), &entries, 0, 1);
        matches!(decision.subnet, Subnet::Keep(_))
    };
    let other = || of("02:00:00:00:00:02", "before");
    assert!(decided(other(), Some(Answer::Silent), true));
    assert!(!decided(other(), Some(alive()), true));
    assert!(!decided(other(), Some(Answer::Silent), false));
    // Where nobody can be asked, the MAC address decides, in either letter case.
    let same = of("02:00:00:00:00:01", "before");
    assert!(decided(same.clone(), Some(unknown()), true));
    assert!(!decided(other(), Some(unknown()), true));
    assert!(!decided(same.clone(), Some(unknown()), false));
    // Hosts behind a lease server can read every MAC address, so it proves nothing there.
    assert!(!decided(same.clone(), None, false));
    // Backends that publish neither.
    let mut of_another_kind = same.clone();
    of_another_kind.backend_type = "wireguard".to_owned();
    let mut without_data = same;
    without_data.backend_data = None;
    for other in [of_another_kind, without_data] {
        assert!(!decided(other.clone(), Some(unknown()), true), "{other:?}");
    }
}

#[test]
fn only_those_are_asked_whose_answer_makes_a_difference() {
    let own = attrs("10.0.0.1", Some(OWNER));
    let avoid = Avoid::default();
    let node = |previous: Option<&str>, may_ask, has_own_address| Node {
        attrs: &own,
        previous: previous.map(key),
        restarted: true,
        may_ask,
        has_own_address,
        avoid: &avoid,
    };
    let moved = entry("10.5.1.0-24", Some(attrs("10.0.0.9", Some(OWNER))), Some(1));
    let before = entry(
        "10.5.2.0-24",
        Some(attrs("10.0.0.1", Some("before"))),
        Some(2),
    );
    let mine = entry("10.5.3.0-24", Some(own.clone()), Some(3));
    let other = entry(
        "10.5.3.0-25",
        Some(attrs("10.0.0.3", Some("other"))),
        Some(4),
    );
    let all = [moved.clone(), before.clone(), other.clone()];
    let asked = |node: Node<'_>, entries: &[Entry], answers: &Answers| -> Vec<String> {
        node.to_challenge(&config(), entries, answers)
            .into_iter()
            .collect()
    };
    let none = Answers::new();
    assert_eq!(
        asked(node(None, true, true), &all, &none),
        ["before", OWNER]
    );
    assert_eq!(asked(node(None, true, false), &all, &none), [OWNER]);
    assert!(asked(node(None, false, true), &all, &none).is_empty());
    let known = answers(&[("before", alive())]);
    assert_eq!(asked(node(None, true, true), &all, &known), [OWNER]);
    // A plain restart sends no challenge.
    let with_mine = [moved.clone(), before, mine];
    assert!(asked(node(Some("10.5.3.0-24"), true, true), &with_mine, &none).is_empty());
    // Its previous subnet is another one.
    assert_eq!(
        asked(node(Some("10.5.1.0-24"), true, true), &with_mine, &none),
        [OWNER]
    );
}

#[test]
fn among_several_own_leases_the_previous_comes_first_and_then_a_reservation() {
    let mine = || Some(attrs("10.0.0.1", Some(OWNER)));
    let entries = [
        entry("10.5.1.0-24", mine(), Some(1)),
        entry("10.5.2.0-24", mine(), None),
        entry("10.5.3.0-24", mine(), Some(3)),
    ];
    assert_eq!(subnet(&entries, Some("10.5.3.0-24")), "keep 10.5.3.0/24");
    assert_eq!(subnet(&entries, None), "keep 10.5.2.0/24");
    assert_eq!(subnet(&entries[..1], None), "keep 10.5.1.0/24");
}

#[test]
fn previous_subnet_is_taken_only_if_free_and_allowed() {
    let other = || Some(attrs("10.0.0.2", Some("machine-b")));
    let most = [entry("10.5.1.0-24", other(), Some(1))];
    assert_eq!(subnet(&most, Some("10.5.3.0-24")), "create 10.5.3.0/24");
    let nearly_all = [
        entry("10.5.1.0-24", other(), Some(1)),
        entry("10.5.3.0-25", other(), Some(2)),
    ];
    assert_eq!(
        subnet(&nearly_all, Some("10.5.3.0-24")),
        "create 10.5.2.0/24"
    );
    assert_eq!(
        subnet(&nearly_all, Some("10.9.0.0-24")),
        "create 10.5.2.0/24"
    );
    let all = [entry("10.5.0.0-22", None, Some(1))];
    assert_eq!(
        subnet(&all, Some("10.5.3.0-24")),
        "no free /24 left in 10.5.0.0/22"
    );
}

#[test]
fn own_leases_outside_the_config_are_given_up_but_reservations_are_not() {
    let mine = || Some(attrs("10.0.0.1", Some(OWNER)));
    let entries = [
        entry("10.9.1.0-24", mine(), Some(1)),
        entry("10.5.1.0-25", mine(), Some(2)),
        entry("10.9.2.0-24", mine(), None),
        entry("10.9.3.0-24", Some(attrs("10.0.0.2", None)), Some(3)),
    ];
    let (subnet, discard) = decided(&entries, None, &Answers::new());
    assert!(subnet.starts_with("create 10.5."), "{subnet}");
    assert_eq!(discard, ["10.9.1.0/24", "10.5.1.0/25"]);
}

#[test]
fn subnets_that_hold_an_address_of_a_host_are_neither_taken_nor_kept() {
    let decided = |entries: &[Entry], previous: Option<&str>, avoid: &Avoid| {
        let attrs = attrs("10.5.1.9", Some(OWNER));
        let node = Node {
            attrs: &attrs,
            previous: previous.map(key),
            restarted: true,
            may_ask: true,
            has_own_address: true,
            avoid,
        };
        let decision = decide(&config(), &node, &Answers::new(), entries, 0, 1);
        let discard: Vec<_> = decision.discard.iter().map(|e| e.key.to_string()).collect();
        let subnet = match decision.subnet {
            Subnet::Keep(entry) => format!("keep {}", entry.key),
            Subnet::Create(key) => format!("create {key}"),
            Subnet::NoneLeft(exhausted) => exhausted.to_string(),
        };
        format!("{subnet}, give up {discard:?}")
    };
    let none = Avoid::default();
    // A peer's address in .2; our own in .1, which we held.
    let peer = entry("10.6.0.0-24", Some(attrs("10.5.2.7", Some("b"))), Some(1));
    let own = entry("10.5.1.0-24", Some(attrs("10.5.1.9", Some(OWNER))), Some(2));
    let free = "create 10.5.3.0/24, give up []";
    for previous in [None, Some("10.5.1.0-24"), Some("10.5.2.0-24")] {
        assert_eq!(decided(std::slice::from_ref(&peer), previous, &none), free);
    }
    assert_eq!(
        decided(&[peer.clone(), own.clone()], None, &none),
        "create 10.5.3.0/24, give up [\"10.5.1.0/24\"]"
    );
    // Only the administrator deletes a reservation.
    let reserved = entry("10.5.1.0-24", Some(attrs("10.5.1.9", None)), None);
    assert_eq!(decided(&[peer.clone(), reserved], None, &none), free);
    // Another interface's address is no reason to give up a held subnet.
    let avoid = none.and(["10.5.3.1".parse().unwrap()].into_iter());
    let held = entry("10.5.3.0-24", Some(attrs("10.5.1.9", Some(OWNER))), Some(3));
    assert_eq!(
        decided(&[peer.clone(), held], None, &avoid),
        "keep 10.5.3.0/24, give up []"
    );
    assert!(
        decided(&[peer], None, &avoid)
            .starts_with("no free /24 left in 10.5.0.0/22 without a host's address")
    );
}
