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

/// The subnet, with a word for how it comes about, and the leases to give up.
fn decided(entries: &[Entry], previous: Option<&str>, restarted: bool) -> (String, Vec<String>) {
    let node = Node {
        attrs: &attrs("10.0.0.1", Some(OWNER)),
        previous: previous.map(key),
        restarted,
        is_local: true,
        avoid: &Avoid::default(),
    };
    let decision = decide(&config(), &node, entries, 0, 1);
    let subnet = match decision.subnet {
        Subnet::Keep(entry) => format!("keep {}", entry.key),
        Subnet::Create(key) => format!("create {key}"),
        Subnet::NoneLeft(exhausted) => exhausted.to_string(),
    };
    let discard = decision.discard.iter().map(|e| e.key.to_string());
    (subnet, discard.collect())
}

fn subnet(entries: &[Entry], previous: Option<&str>) -> String {
    let (subnet, discard) = decided(entries, previous, true);
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
fn the_lease_of_the_former_address_is_kept_if_this_host_remembers_it() {
    let moved = || Some(attrs("10.0.0.9", Some(OWNER)));
    let entries = [
        entry("10.5.1.0-24", moved(), Some(1)),
        entry("10.5.2.0-24", moved(), Some(2)),
    ];
    assert_eq!(subnet(&entries, Some("10.5.2.0-24")), "keep 10.5.2.0/24");
    for forgotten in [None, Some("10.5.3.0-24")] {
        assert_eq!(subnet(&entries, forgotten), "create 10.5.3.0/24");
    }
    // A running node lost its lease to its twin: whoever would take it back, would not keep it for long.
    let (running, discard) = decided(&entries, Some("10.5.2.0-24"), false);
    assert_eq!((running.as_str(), discard.len()), ("create 10.5.3.0/24", 0));
}

#[test]
fn the_lease_of_the_former_machine_id_is_kept_by_whom_its_mac_address_tells() {
    let of = |mac: &str, owner: &str| {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        LeaseAttrs {
            backend_data: serde_json::value::RawValue::from_string(data).ok(),
            ..attrs("10.0.0.1", Some(owner))
        }
    };
    let own = of("02:00:00:00:00:01", OWNER);
    let decided = |found: LeaseAttrs, restarted, is_local| {
        let entries = [entry("10.5.1.0-24", Some(found), Some(1))];
        let node = Node {
            attrs: &own,
            previous: None,
            restarted,
            is_local,
            avoid: &Avoid::default(),
        };
        matches!(
            decide(&config(), &node, &entries, 0, 1).subnet,
            Subnet::Keep(_)
        )
    };
    let former = || of("02:00:00:00:00:01", "machine-before");
    assert!(decided(former(), true, true));
    // A twin that runs, and a host that asks a server for what it has read in the listing.
    assert!(!decided(former(), false, true));
    assert!(!decided(former(), true, false));
    // Others behind the same address, and back ends that tell nothing.
    let mut elsewhere = former();
    elsewhere.public_ip = "10.0.0.9".parse().ok();
    let mut of_another_kind = former();
    of_another_kind.backend_type = "wireguard".to_owned();
    let mut without_data = former();
    without_data.backend_data = None;
    for other in [
        of("02:00:00:00:00:02", "machine-b"),
        elsewhere,
        of_another_kind,
        without_data,
    ] {
        assert!(!decided(other.clone(), true, true), "{other:?}");
    }
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
    let (subnet, discard) = decided(&entries, None, true);
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
            is_local: true,
            avoid,
        };
        let decision = decide(&config(), &node, entries, 0, 1);
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
    // A reservation is the administrator's.
    let reserved = entry("10.5.1.0-24", Some(attrs("10.5.1.9", None)), None);
    assert_eq!(decided(&[peer.clone(), reserved], None, &none), free);
    // Another interface's address is no reason to give up what is held.
    let avoid = none.and(["10.5.3.1".parse().unwrap()].into_iter());
    let held = entry("10.5.3.0-24", Some(attrs("10.5.1.9", Some(OWNER))), Some(3));
    assert_eq!(
        decided(&[peer.clone(), held], None, &avoid),
        "keep 10.5.3.0/24, give up []"
    );
    assert!(
        decided(&[peer], None, &avoid)
            .starts_with("no free /24 left in 10.5.0.0/22 that holds no host's address")
    );
}
