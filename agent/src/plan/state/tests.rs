//! Cases and properties of the diff: applying it gives the wanted state, and applying it twice changes nothing.

use proptest::collection::btree_map;
use proptest::prelude::*;

use super::*;

fn link(name: &str) -> InterfaceName {
    name.parse().unwrap()
}

fn vxlan() -> Vxlan {
    Vxlan {
        vni: 1,
        port: 8472,
        underlay_index: 2,
        local: [192, 0, 2, 1].into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        learning: false,
        gbp: false,
        checksum: false,
    }
}

fn device(vxlan: Vxlan, mtu: u32) -> Object {
    Object::Link(Box::new(Link {
        mtu,
        up: true,
        kind: LinkKind::Vxlan(vxlan),
    }))
}

/// One VXLAN peer: subnet 10.5.`n`.0/24.
fn peer(state: &mut State, n: u8, mac: u8, public_ip: u8) {
    let dev = || link("flannel.1");
    let gateway: IpAddr = [10, 5, n, 0].into();
    let mac = MacAddr([2, 0, 0, 0, 1, mac]);
    let remote: IpAddr = [192, 0, 2, public_ip].into();
    state.insert(Key::Fdb(dev(), mac), Object::Fdb(remote));
    state.insert(Key::Neighbor(dev(), gateway), Object::Neighbor(mac));
    state.insert(
        Key::NextHop(dev(), gateway),
        Object::NextHop { onlink: true },
    );
    let route = Route {
        link: dev(),
        gateway: Some(gateway),
        onlink: true,
        inline: false,
    };
    state.insert(
        Key::Route(IpNet::new(gateway, 24).unwrap()),
        Object::Route(route),
    );
}

fn own() -> State {
    State::from([
        (Key::Link(link("flannel.1")), device(vxlan(), 1450)),
        (
            Key::Address(link("flannel.1"), "10.5.1.0/32".parse().unwrap()),
            Object::Address,
        ),
    ])
}

/// A small model of the kernel: applies changes with the side effects that the diff must handle.
fn apply(kernel: &mut State, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Set { key, object, was } => {
                assert_eq!(
                    was.is_some(),
                    kernel.contains_key(key),
                    "{change}: wrong idea of what was there"
                );
                if let (Key::Link(name), Some(Object::Link(old)), Object::Link(new)) =
                    (key, kernel.get(key).cloned(), object)
                    && old.kind.mac() != new.kind.mac()
                {
                    kernel.retain(|key, _| !matches!(key, Key::Neighbor(dev, _) if dev == name));
                }
                if let Some(dev) = key.link().filter(|dev| dev.as_str() != "eth0") {
                    assert!(
                        kernel.contains_key(&Key::Link(dev.clone())),
                        "{change}: no device"
                    );
                }
                kernel.insert(key.clone(), object.clone());
            }
            Change::Del { key, .. } => {
                assert!(kernel.remove(key).is_some(), "{change}: not there");
                if let Key::NextHop(link, gateway) = key {
                    kernel.retain(|_, object| {
                        !matches!(object, Object::Route(route)
                            if (&route.link, route.gateway) == (link, Some(*gateway)))
                    });
                }
                if let Key::Link(name) = key {
                    kernel.retain(|key, object| {
                        key.link() != Some(name)
                            && !matches!(object, Object::Route(route) if &route.link == name)
                    });
                }
            }
        }
    }
}

/// Whether a destination has a complete path: route, next hop, and on the overlay neighbor and FDB entry.
fn has_path(state: &State, destination: &Key) -> bool {
    let Some(Object::Route(route)) = state.get(destination) else {
        return false;
    };
    let Some(gateway) = route.gateway else {
        return true;
    };
    let at = || (route.link.clone(), gateway);
    let next_hop = Key::NextHop(at().0, at().1);
    let neighbor = state.get(&Key::Neighbor(at().0, at().1));
    state.contains_key(&next_hop)
        && match neighbor {
            Some(Object::Neighbor(mac)) => state.contains_key(&Key::Fdb(at().0, *mac)),
            _ => !route.onlink,
        }
}

fn texts(changes: &[Change]) -> Vec<String> {
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_peer_is_made_from_the_wire_up() {
    let observed = own();
    let mut desired = own();
    peer(&mut desired, 2, 2, 2);
    assert_eq!(
        texts(&diff(&desired, &observed)),
        [
            "add fdb 02:00:00:00:01:02 dev flannel.1 dst 192.0.2.2",
            "add neighbor 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:01:02",
            "add nexthop via 10.5.2.0 dev flannel.1 onlink",
            "add route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
        ]
    );
}

#[test]
fn a_former_address_of_ours_goes_before_it_is_a_peers_gateway() {
    let mut observed = own();
    peer(&mut observed, 3, 3, 3);
    let device = || link("flannel.1");
    let address = |text: &str| Key::Address(device(), text.parse().unwrap());
    let mut desired = own();
    desired.remove(&address("10.5.1.0/32"));
    desired.insert(address("10.5.3.0/32"), Object::Address);
    peer(&mut desired, 1, 1, 1);
    assert_eq!(
        texts(&diff(&desired, &observed)),
        [
            "add address 10.5.3.0/32 dev flannel.1",
            "del address 10.5.1.0/32 dev flannel.1",
            "add fdb 02:00:00:00:01:01 dev flannel.1 dst 192.0.2.1",
            "add neighbor 10.5.1.0 dev flannel.1 lladdr 02:00:00:00:01:01",
            "add nexthop via 10.5.1.0 dev flannel.1 onlink",
            "add route 10.5.1.0/24 via 10.5.1.0 dev flannel.1 onlink",
            "del route 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink",
            "del nexthop via 10.5.3.0 dev flannel.1 onlink",
            "del neighbor 10.5.3.0 dev flannel.1 lladdr 02:00:00:00:01:03",
            "del fdb 02:00:00:00:01:03 dev flannel.1 dst 192.0.2.3",
        ]
    );
}

#[test]
fn a_peer_that_leaves_is_removed_from_the_route_down() {
    let desired = own();
    let mut observed = own();
    peer(&mut observed, 2, 2, 2);
    assert_eq!(
        texts(&diff(&desired, &observed)),
        [
            "del route 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            "del nexthop via 10.5.2.0 dev flannel.1 onlink",
            "del neighbor 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:01:02",
            "del fdb 02:00:00:00:01:02 dev flannel.1 dst 192.0.2.2",
        ]
    );
}

#[test]
fn a_new_mac_never_leaves_the_route_without_a_path() {
    let mut observed = own();
    peer(&mut observed, 2, 2, 2);
    let mut desired = own();
    peer(&mut desired, 2, 3, 2);
    let expected = [
        "add fdb 02:00:00:00:01:03 dev flannel.1 dst 192.0.2.2",
        "replace neighbor 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:01:03",
        "del fdb 02:00:00:00:01:02 dev flannel.1 dst 192.0.2.2",
    ];
    assert_eq!(texts(&diff(&desired, &observed)), expected);
    let touched: Vec<Key> = desired.keys().chain(observed.keys()).cloned().collect();
    let touched: std::collections::BTreeSet<Key> =
        touched.into_iter().filter(|k| k.link().is_some()).collect();
    assert_eq!(
        texts(&diff_keys(&touched, &desired, &observed)),
        expected,
        "the diff of the touched keys is the same"
    );
}

#[test]
fn a_moved_peer_costs_one_change() {
    let mut observed = own();
    peer(&mut observed, 2, 2, 2);
    let mut desired = own();
    peer(&mut desired, 2, 2, 9);
    assert_eq!(
        texts(&diff(&desired, &observed)),
        ["replace fdb 02:00:00:00:01:02 dev flannel.1 dst 192.0.2.9"]
    );
}

#[test]
fn mtu_changes_in_place_and_a_new_port_recreates_everything_on_the_link() {
    let mut observed = own();
    peer(&mut observed, 2, 2, 2);
    let with = |change: fn(&mut Vxlan)| {
        let mut state = observed.clone();
        let mut options = vxlan();
        change(&mut options);
        state.insert(Key::Link(link("flannel.1")), device(options, 1450));
        state
    };
    let mut smaller = observed.clone();
    smaller.insert(Key::Link(link("flannel.1")), device(vxlan(), 1400));
    for in_place in [
        smaller,
        with(|d| d.local = [192, 0, 2, 7].into()),
        with(|d| d.learning = true),
    ] {
        assert_eq!(diff(&in_place, &observed).len(), 1);
    }
    for recreated in [
        with(|d| d.port = 4789),
        with(|d| d.vni = 2),
        with(|d| d.underlay_index = 3),
        with(|d| d.gbp = true),
        with(|d| d.checksum = true),
        with(|d| d.local = [0; 16].into()),
    ] {
        let changes = diff(&recreated, &observed);
        assert!(
            matches!(
                &changes[..2],
                [
                    Change::Del {
                        key: Key::Link(_),
                        ..
                    },
                    Change::Set { was: None, .. }
                ]
            ),
            "{changes:?}"
        );
        assert_eq!(changes.len(), 2 + 5);
    }
    let readdressed = with(|d| d.mac = MacAddr([2, 0, 0, 0, 0, 2]));
    assert_eq!(
        texts(&diff(&readdressed, &observed))[1..],
        ["add neighbor 10.5.2.0 dev flannel.1 lladdr 02:00:00:00:01:02"],
        "the kernel drops the neighbours of a device whose address changes"
    );
}

#[test]
fn a_device_of_another_kind_is_replaced() {
    let observed = State::from([(Key::Link(link("flannel.1")), Object::OtherLink)]);
    let changes = diff(&own(), &observed);
    assert_eq!(
        texts(&changes)[0],
        "del link flannel.1",
        "the name is ours, so the device is"
    );
    assert_eq!(changes.len(), 3);
}

fn states() -> impl Strategy<Value = State> {
    let device = (
        1..3u32,
        any::<bool>(),
        1..3u8,
        1400..1402u32,
        any::<bool>(),
        any::<bool>(),
    );
    let device = device.prop_map(|(vni, port, mac, mtu, learning, up)| {
        let kind = LinkKind::Vxlan(Vxlan {
            vni,
            port: if port { 8472 } else { 4789 },
            mac: MacAddr([2, 0, 0, 0, 0, mac]),
            learning,
            ..vxlan()
        });
        Object::Link(Box::new(Link { mtu, up, kind }))
    });
    let device = prop_oneof![9 => device, 1 => Just(Object::OtherLink)];
    let peers = btree_map(0..6u8, (0..6u8, 1..4u8), 0..6);
    (prop::option::of(device), peers).prop_map(|(device, peers)| {
        let mut state = State::new();
        if let Some(device) = device {
            state.insert(Key::Link(link("flannel.1")), device);
            for (n, (mac, public_ip)) in peers {
                peer(&mut state, n, mac, public_ip);
            }
        }
        state
    })
}

fn is_possible(state: &State) -> bool {
    !state.values().any(|object| object == &Object::OtherLink)
}

/// One peer that is reached directly, by a route over another device.
fn direct_peer(state: &mut State, n: u8, public_ip: u8) {
    let gateway: IpAddr = [192, 0, 2, public_ip].into();
    let route = Route {
        link: link("eth0"),
        gateway: Some(gateway),
        onlink: false,
        inline: false,
    };
    state.insert(
        Key::NextHop(link("eth0"), gateway),
        Object::NextHop { onlink: false },
    );
    let destination = IpNet::new([10, 5, n, 0].into(), 24).unwrap();
    state.insert(Key::Route(destination), Object::Route(route));
}

proptest! {
    #[test]
    fn a_route_that_stays_always_has_its_path(
        before in btree_map(0..6u8, (0..6u8, 1..4u8, any::<bool>()), 0..6),
        after in btree_map(0..6u8, (0..6u8, 1..4u8, any::<bool>()), 0..6),
    ) {
        let build = |peers: &BTreeMap<u8, (u8, u8, bool)>| {
            let mut state = own();
            for (&n, &(mac, public_ip, direct)) in peers {
                if direct {
                    direct_peer(&mut state, n, public_ip);
                } else {
                    peer(&mut state, n, mac, public_ip);
                }
            }
            state
        };
        let (observed, desired) = (build(&before), build(&after));
        let stays: Vec<&Key> = observed
            .keys()
            .filter(|key| matches!(key, Key::Route(_)) && desired.contains_key(*key))
            .collect();
        let mut kernel = observed.clone();
        for change in diff(&desired, &observed) {
            apply(&mut kernel, std::slice::from_ref(&change));
            for destination in &stays {
                prop_assert!(has_path(&kernel, destination), "{destination} after {change}");
            }
        }
    }

    #[test]
    fn applied_once_it_is_what_is_wanted_and_applied_twice_nothing_changes(
        desired in states().prop_filter("nobody wants another kind", is_possible),
        observed in states(),
    ) {
        let mut kernel = observed.clone();
        apply(&mut kernel, &diff(&desired, &observed));
        prop_assert_eq!(&kernel, &desired);
        prop_assert_eq!(diff(&desired, &kernel), []);
    }

    #[test]
    fn the_diff_of_touched_keys_is_the_whole_diff_where_no_link_changed(
        peers in btree_map(0..6u8, (0..6u8, 1..4u8), 0..6),
        others in btree_map(0..6u8, (0..6u8, 1..4u8), 0..6),
    ) {
        let (mut desired, mut observed) = (own(), own());
        peers.iter().for_each(|(&n, &(mac, ip))| peer(&mut desired, n, mac, ip));
        others.iter().for_each(|(&n, &(mac, ip))| peer(&mut observed, n, mac, ip));
        let mut keys: Vec<&Key> = desired.keys().chain(observed.keys()).collect();
        keys.sort();
        keys.dedup();
        prop_assert_eq!(
            diff_keys(keys.iter().copied(), &desired, &observed),
            diff(&desired, &observed)
        );
    }
}
