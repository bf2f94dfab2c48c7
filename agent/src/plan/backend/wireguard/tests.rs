//! Modes, lease data, key changes, and malicious leases.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cluster::network_config::NetworkConfig;
use crate::plan::backend::plan::Plan;
use crate::plan::backend::vxlan::tests::underlay;
use crate::plan::state::{Delta, diff};

const V4: &str = r#""Network":"10.5.0.0/16""#;
const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;
const DUAL: &str = r#""Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;

/// Reads a network config of these networks with this `Backend` object; the first error as text.
fn try_parse(networks: &str, backend: &str) -> Result<WireguardConfig, String> {
    let config = format!(r#"{{{networks},"Backend":{backend}}}"#);
    let config = NetworkConfig::parse(&config).map_err(|error| error.to_string())?;
    assert_eq!(config.backend.kind, KIND);
    let options = go_json::Object::parse(config.backend.options.get()).unwrap();
    WireguardConfig::parse(&options, &config).map_err(|error| error.to_string())
}

fn private(n: u8) -> PrivateKey {
    PrivateKey::new([n; 32])
}

/// The public key of node `n`.
fn key(n: u8) -> PublicKey {
    private(n).public()
}

/// The node 9, 192.0.2.1 and 2001:db8::1; `options` is the `Backend` object without the type.
fn backend(networks: &str, options: &str) -> WireguardBackend {
    let options = options.trim_start_matches('{');
    let separator = if options == "}" { "" } else { "," };
    let config = format!(r#"{{"Type":"wireguard"{separator}{options}"#);
    let networks_config = NetworkConfig::parse(&format!("{{{networks}}}")).unwrap();
    let mut underlay = underlay();
    underlay.v4 = underlay.v4.filter(|_| networks_config.ipv4.is_some());
    underlay.v6 = underlay.v6.filter(|_| networks_config.ipv6.is_some());
    WireguardBackend::new(
        &try_parse(networks, &config).unwrap(),
        networks_config.networks().collect(),
        &underlay,
        private(9),
    )
}

fn raw(data: &str) -> Option<Box<RawValue>> {
    Some(RawValue::from_string(data.to_owned()).unwrap())
}

/// The lease data of node `n` with this key and port.
fn data(key: PublicKey, port: u16) -> Option<Box<RawValue>> {
    raw(&format!(r#"{{"PublicKey":"{key}","Port":{port}}}"#))
}

/// Node `n` with the subnets 10.5.`n`.0/24 and fd00:5:0:`n`::/64, at 198.18.0.`n` and 2001:db8::`n`. Leases are as old as
/// their subnets are high.
fn lease(n: u8) -> Lease {
    Lease {
        key: SubnetKey::new(
            Some(format!("10.5.{n}.0/24").parse().unwrap()),
            Some(format!("fd00:5:0:{n:x}::/64").parse().unwrap()),
        ),
        attrs: LeaseAttrs {
            public_ip: Some([198, 18, 0, n].into()),
            public_ipv6: Some(format!("2001:db8::{n:x}").parse().unwrap()),
            backend_type: KIND.to_owned(),
            backend_data: data(key(n), 51820),
            backend_v6_data: data(key(n), 51821),
            owner: None,
        },
        created: n.into(),
    }
}

fn lease_v4(n: u8) -> Lease {
    let mut lease = lease(n);
    lease.key.v6 = None;
    lease.attrs.public_ipv6 = None;
    lease.attrs.backend_v6_data = None;
    lease
}

/// A peer's objects as text.
fn words(objects: &[(Key, Object)]) -> Vec<String> {
    let state: State = objects.iter().cloned().collect();
    let changes = diff(&state, &State::new());
    changes.iter().map(ToString::to_string).collect()
}

fn reached(backend: &WireguardBackend, lease: &Lease) -> Vec<String> {
    words(&backend.peer(lease).unwrap())
}

fn peer_words(n: u8, link: &str, endpoint: &str, allowed: &str) -> String {
    let key = key(n);
    format!("add wireguard peer {key} dev {link} endpoint {endpoint} allowed-ips {allowed}")
}

#[test]
fn defaults_are_flannels() {
    let expected = WireguardConfig {
        port: 51820,
        port_v6: 51821,
        mtu: None,
        preshared_key: None,
        keepalive: 0,
        mode: Mode::Separate,
    };
    let parse = |options| try_parse(V4, options).unwrap();
    assert_eq!(parse(r#"{"Type":"wireguard"}"#), expected);
    let nothing = r#"{"type":"WireGuard","PSK":"","MTU":null,"Port":8472,"VNI":1}"#;
    assert_eq!(parse(nothing), expected, "vxlan's keys mean nothing");
    let all = format!(
        r#"{{"Type":"wireguard","listenport":1,"ListenPortV6":2,"mtu":9000,"Psk":"{}","PersistentKeepaliveInterval":25,"mode":"auto"}}"#,
        key(3)
    );
    let expected = WireguardConfig {
        port: 1,
        port_v6: 2,
        mtu: Some(9000),
        preshared_key: key(3).to_string().parse().ok(),
        keepalive: 25,
        mode: Mode::Auto,
    };
    assert_eq!(parse(&all), expected);
}

#[test]
fn bad_configurations_name_key_value_and_range() {
    let modes = r#""separate", "auto", "ipv4" or "ipv6""#;
    for (networks, option, message) in [
        (
            V4,
            r#""ListenPort":0"#,
            "Backend: ListenPort: 0 is not an integer from 1 to 65535",
        ),
        (
            V4,
            r#""MTU":147"#,
            "Backend: MTU: 147 is not an integer from 148 to 65535",
        ),
        (
            DUAL,
            r#""MTU":1359"#,
            "Backend: MTU: 1359 is not an integer from 1360 to 65535",
        ),
        (
            V4,
            r#""PersistentKeepaliveInterval":"25s""#,
            "Backend: PersistentKeepaliveInterval: \"25s\" is not an integer from 0 to 65535",
        ),
        (
            V4,
            r#""Mode":"v4""#,
            &format!("Backend: Mode: \"v4\" is not {modes}"),
        ),
        (
            V4,
            r#""Mode":"ipv6""#,
            "Backend: Mode is not possible without EnableIPv6: true; allowed: \"separate\" or \"auto\"",
        ),
        (
            V6,
            r#""Mode":"ipv4""#,
            "Backend: Mode is not possible without EnableIPv4: true; allowed: \"separate\" or \"auto\"",
        ),
        (
            DUAL,
            r#""ListenPort":51821"#,
            "Backend: ListenPortV6: 51821 is not another port than ListenPort, since Mode \"separate\" has two devices",
        ),
    ] {
        let config = format!(r#"{{"Type":"wireguard",{option}}}"#);
        assert_eq!(try_parse(networks, &config).unwrap_err(), message);
    }
    // Users set both ports equal to work around flannel's wrong port.
    let config = r#"{"Type":"wireguard","Mode":"auto","ListenPort":51821}"#;
    assert!(try_parse(DUAL, config).is_ok());
}

#[test]
fn no_error_shows_the_pre_shared_key() {
    for bad in [r#""c2VjcmV0""#, "7654321", r#"["c2VjcmV0"]"#] {
        let config = format!(r#"{{"Type":"wireguard","PSK":{bad}}}"#);
        let error = try_parse(V4, &config).unwrap_err();
        assert_eq!(
            error,
            "Backend: PSK: (redacted) is not a key of 32 bytes in base64, as `wg genpsk` makes them"
        );
    }
}

#[test]
fn the_own_objects_of_each_mode() {
    let own = lease(3).key;
    let shown = |networks, options: &str| {
        let state = backend(networks, options).own(&own);
        words(&state.into_iter().collect::<Vec<_>>())
    };
    let device = "add link flannel-wg type wireguard listen-port 51820 mtu 1420";
    let address = "add address 10.5.3.0/32 dev flannel-wg";
    let route = "add route 10.5.0.0/16 dev flannel-wg";
    assert_eq!(shown(V4, "{}"), [device, address, route]);
    assert_eq!(shown(V4, r#"{"Mode":"auto"}"#), [device, address, route]);
    assert_eq!(
        shown(V6, "{}"),
        [
            "add link flannel-wg-v6 type wireguard listen-port 51821 mtu 1420",
            "add address fd00:5:0:3::/128 dev flannel-wg-v6",
            "add route fd00:5::/48 dev flannel-wg-v6",
        ]
    );
    assert_eq!(
        shown(DUAL, r#"{"ListenPortV6":7}"#),
        [
            device,
            "add link flannel-wg-v6 type wireguard listen-port 7 mtu 1420",
            address,
            "add address fd00:5:0:3::/128 dev flannel-wg-v6",
            route,
            "add route fd00:5::/48 dev flannel-wg-v6",
        ]
    );
    for mode in ["auto", "ipv4", "ipv6"] {
        assert_eq!(
            shown(DUAL, &format!(r#"{{"Mode":"{mode}"}}"#)),
            [
                device,
                address,
                "add address fd00:5:0:3::/128 dev flannel-wg",
                route,
                "add route fd00:5::/48 dev flannel-wg",
            ]
        );
    }
    assert_eq!(
        shown(V6, r#"{"Mode":"ipv6"}"#),
        [
            device,
            "add address fd00:5:0:3::/128 dev flannel-wg",
            "add route fd00:5::/48 dev flannel-wg",
        ],
        "never a route for all of IPv4"
    );
}

#[test]
fn the_mtu_leaves_room_for_ipv6_outside_and_inside() {
    let mtu = |networks, options: &str, underlay_mtu| {
        let underlay = Underlay {
            mtu: underlay_mtu,
            ..underlay()
        };
        backend(networks, options).over(&underlay).mtu()
    };
    assert_eq!(mtu(V4, "{}", 1500), 1420);
    assert_eq!(mtu(V4, r#"{"MTU":1400}"#, 1500), 1320);
    assert_eq!(mtu(V4, r#"{"MTU":9000}"#, 1500), 1420);
    assert_eq!(mtu(V4, "{}", 576), 496);
    assert_eq!(mtu(DUAL, "{}", 1300), 1280, "IPv6 needs as much");
}

#[test]
fn the_ports_published_are_those_listened_on() {
    let published = |networks, options: &str| {
        let attrs = backend(networks, options).lease_attrs();
        let text = |data: Option<Box<RawValue>>| data.map(|data| data.get().to_owned());
        (text(attrs.backend_data), text(attrs.backend_v6_data))
    };
    let data = |port| Some(format!(r#"{{"PublicKey":"{}","Port":{port}}}"#, key(9)));
    assert_eq!(published(V4, "{}"), (data(51820), None));
    assert_eq!(published(V6, "{}"), (None, data(51821)));
    assert_eq!(published(DUAL, "{}"), (data(51820), data(51821)));
    for mode in ["auto", "ipv4", "ipv6"] {
        let options = format!(r#"{{"Mode":"{mode}","ListenPort":5}}"#);
        assert_eq!(published(DUAL, &options), (data(5), data(5)), "{mode}");
    }
    let attrs = backend(DUAL, "{}").lease_attrs();
    assert_eq!(attrs.backend_type, "wireguard");
    assert_eq!(attrs.public_ip, Some([192, 0, 2, 1].into()));
    assert_eq!(attrs.public_ipv6, "2001:db8::1".parse().ok());
}

#[test]
fn each_mode_reaches_a_peer_in_its_way() {
    let v4 = "198.18.0.1:51820";
    let both = "10.5.1.0/24,fd00:5:0:1::/64";
    let separate = [
        peer_words(1, "flannel-wg", v4, "10.5.1.0/24"),
        peer_words(1, "flannel-wg-v6", "[2001:db8::1]:51821", "fd00:5:0:1::/64"),
    ];
    // Node 1 has our own IPv6 address, so this is about node 1 seen by an underlay elsewhere.
    let elsewhere = |options: &str| {
        let mut underlay = underlay();
        underlay.v6 = underlay.v6.map(|mut v6| {
            v6.address = "2001:db8::ffff".parse().unwrap();
            v6.public = v6.address;
            v6
        });
        WireguardBackend {
            underlay,
            ..backend(DUAL, options)
        }
    };
    assert_eq!(reached(&elsewhere("{}"), &lease(1)), separate);
    let one = |endpoint| [peer_words(1, "flannel-wg", endpoint, both)];
    let mode = |mode| elsewhere(&format!(r#"{{"Mode":"{mode}"}}"#));
    assert_eq!(reached(&mode("ipv4"), &lease(1)), one(v4));
    assert_eq!(
        reached(&mode("ipv6"), &lease(1)),
        one("[2001:db8::1]:51820"),
        "the port of the IPv4 data: flannel's other one is wrong"
    );
    assert_eq!(
        reached(&backend(V4, "{}"), &lease(1)),
        [peer_words(1, "flannel-wg", v4, "10.5.1.0/24")]
    );
    assert_eq!(
        reached(&mode("ipv4"), &lease_v4(1)),
        [peer_words(1, "flannel-wg", v4, "10.5.1.0/24")]
    );
}

#[test]
fn mode_auto_takes_the_address_that_is_more_likely_to_be_reached() {
    let (public, private) = ("203.0.113.1", "10.9.9.9");
    let (global, local) = ("2001:db8:9::9", "fd99::9");
    for (peer_v4, peer_v6, own_v6, expected) in [
        (public, None, global, public),
        (private, None, global, private),
        (public, Some(global), global, public),
        (private, Some(global), global, global),
        (private, Some(local), global, private),
        (private, Some(global), local, private),
    ] {
        let mut backend = backend(DUAL, r#"{"Mode":"auto"}"#);
        if let Some(v6) = &mut backend.underlay.v6 {
            v6.public = own_v6.replace("::9", "::1").parse().unwrap();
        }
        let mut lease = lease(2);
        lease.attrs.public_ip = peer_v4.parse().ok();
        lease.attrs.public_ipv6 = peer_v6.map(|v6| v6.parse().unwrap());
        let address = backend.endpoint(&[lease.key.nets().next().unwrap()], &lease.attrs);
        assert_eq!(address.unwrap().to_string(), expected, "{peer_v6:?}");
    }
    let without_v4 = backend(V6, r#"{"Mode":"auto"}"#);
    let mut lease = lease(2);
    lease.attrs.public_ip = None;
    let reached = reached(&without_v4, &lease);
    assert!(reached[0].contains("[2001:db8::2]:51821"), "{reached:?}");
    lease.attrs.public_ipv6 = None;
    let refused = without_v4.peer(&lease);
    assert_eq!(refused, Err(PeerRefusal::NoEndpoint("PublicIPv6")));
}

#[test]
fn a_peer_without_a_port_listens_where_we_do() {
    let backend = backend(DUAL, r#"{"ListenPort":4,"ListenPortV6":6}"#);
    for data in [
        format!(r#"{{"PublicKey":"{}"}}"#, key(2)),
        format!(r#"{{"publickey":"{}","PORT":0,"New":[]}}"#, key(2)),
    ] {
        let mut lease = lease(2);
        lease.attrs.backend_data = raw(&data);
        lease.attrs.backend_v6_data = raw(&data);
        let reached = reached(&backend, &lease);
        assert!(reached[0].contains("198.18.0.2:4 "), "{reached:?}");
        assert!(reached[1].contains("[2001:db8::2]:6 "), "{reached:?}");
    }
}

#[test]
fn options_reach_every_peer() {
    let options = format!(r#"{{"PSK":"{}","PersistentKeepaliveInterval":25}}"#, key(3));
    let objects = backend(V4, &options).peer(&lease(2)).unwrap();
    let [(_, Object::WireguardPeer(peer))] = objects.as_slice() else {
        panic!("{objects:?}")
    };
    assert_eq!(peer.keepalive, 25);
    assert_eq!(peer.preshared_key, key(3).to_string().parse().ok());
    let shown = format!("{objects:?} {:?}", backend(V4, &options));
    assert!(!shown.contains(&private(9).expose_text()), "{shown}");
    assert!(!shown.contains(&key(3).to_string()), "{shown}");
}

#[test]
fn harmful_leases_are_refused_with_the_reason() {
    let refused = |change: &dyn Fn(&mut Lease)| {
        let mut lease = lease(2);
        change(&mut lease);
        backend(DUAL, "{}").peer(&lease).unwrap_err().to_string()
    };
    let with = |data: &'static str| refused(&move |lease| lease.attrs.backend_data = raw(data));
    let unusable = "its BackendData is unusable: ";
    for (data, expected) in [
        ("{}", "its lease has no BackendData for 10.5.2.0/24"),
        ("[]", &format!("{unusable}[] is not a JSON object")),
        (
            r#"{"PublicKey":"AAAA"}"#,
            &format!("{unusable}PublicKey: \"AAAA\" is not a public key of 32 bytes in base64"),
        ),
        (
            r#"{"PublicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#,
            &format!(
                "{unusable}PublicKey: \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\" is not a public key of 32 bytes in base64"
            ),
        ),
        (
            r#"{"PublicKey":"hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=","Port":65536}"#,
            &format!("{unusable}Port: 65536 is not an integer from 0 to 65535"),
        ),
    ] {
        assert_eq!(with(data), expected);
    }
    assert_eq!(
        refused(&|lease| lease.attrs.backend_v6_data = None),
        "its lease has no BackendV6Data for fd00:5:0:2::/64"
    );
    assert_eq!(
        refused(&|lease| lease.attrs.backend_data = data(key(9), 1)),
        format!(
            "its PublicKey {} is this node's; was a disk cloned with its state directory?",
            key(9)
        )
    );
    assert_eq!(
        refused(&|lease| lease.attrs.public_ip = Some([192, 0, 2, 1].into())),
        "its public IP 192.0.2.1 is this node's"
    );
    assert_eq!(
        refused(&|lease| lease.attrs.public_ipv6 = None),
        "its lease has no PublicIPv6 to send packets to"
    );
    assert_eq!(
        refused(&|lease| lease.attrs.backend_type = "vxlan".to_owned()),
        "it runs another backend, \"vxlan\""
    );
}

fn apply(state: &mut State, delta: Delta) {
    for (key, object) in delta {
        match object {
            Some(object) => state.insert(key, object),
            None => state.remove(&key),
        };
    }
}

#[test]
fn a_node_with_a_new_key_leaves_no_stale_peer() {
    let backend = backend(V4, "{}");
    let peers = [lease(1), lease(2)].map(Arc::new);
    let mut plan = Plan::new(Arc::new(backend), &lease(0).key, peers);
    let mut state = plan.state();
    let mut renewed = lease(1);
    renewed.attrs.backend_data = data(key(77), 51820);
    apply(&mut state, plan.set_peer(&Arc::new(renewed)));
    assert_eq!(state, plan.state());
    let link: InterfaceName = "flannel-wg".parse().unwrap();
    let has = |n| state.contains_key(&Key::WireguardPeer(link.clone(), Box::new(key(n))));
    assert_eq!((has(1), has(2), has(77)), (false, true, true));
}

#[test]
fn of_two_leases_with_one_key_the_older_counts() {
    let (old, mut young) = (lease(1), lease(2));
    young.attrs.backend_data = data(key(1), 51820);
    let (old, young) = (Arc::new(old), Arc::new(young));
    for order in [[&old, &young], [&young, &old]] {
        let mut plan = Plan::new(Arc::new(backend(V4, "{}")), &lease(0).key, []);
        for peer in order {
            plan.set_peer(peer);
        }
        let refused: Vec<_> = plan
            .refused()
            .map(|(key, why)| (*key, why.clone()))
            .collect();
        let [(subnet, PeerRefusal::Taken { holder, .. })] = refused.as_slice() else {
            panic!("{refused:?}")
        };
        assert_eq!((*subnet, *holder), (young.key, old.key));
        let mut state = plan.state();
        apply(&mut state, plan.remove_peer(&old.key));
        assert_eq!(state, plan.state());
        assert_eq!(plan.refused().count(), 0);
        assert!(state.values().any(|object| matches!(
            object, Object::WireguardPeer(peer) if peer.allowed.contains(&young.key.nets().next().unwrap())
        )));
    }
}

#[test]
fn both_device_names_are_the_agents() {
    let [device, device_v6] = device_names();
    assert_eq!(
        (device.as_str(), device_v6.as_str()),
        ("flannel-wg", "flannel-wg-v6")
    );
    let scope = backend(V4, r#"{"Mode":"auto"}"#).scope();
    assert_eq!(scope.links, [device, device_v6], "the former mode's goes");
}

proptest! {
    /// Leases with few keys and subnets come and go: incremental updates equal a full plan, and no prefix of a device
    /// has two peers.
    #[test]
    fn every_prefix_has_one_peer(
        steps in prop::collection::vec((1u8..5, 5u8..11, any::<bool>()), 0..20),
        mode in 0usize..4,
    ) {
        let mode = ["separate", "auto", "ipv4", "ipv6"][mode];
        let backend = backend(DUAL, &format!(r#"{{"Mode":"{mode}"}}"#));
        let mut plan = Plan::new(Arc::new(backend), &lease(0).key, []);
        let mut state = plan.state();
        for (n, with_key, set) in steps {
            let mut lease = lease(n + 1);
            lease.attrs.backend_data = data(key(with_key), 51820);
            lease.attrs.backend_v6_data = data(key(with_key), 51820);
            apply(&mut state, match set {
                true => plan.set_peer(&Arc::new(lease)),
                false => plan.remove_peer(&lease.key),
            });
        }
        prop_assert_eq!(&state, &plan.state());
        let mut seen = BTreeSet::new();
        for (peer, object) in &state {
            let (Key::WireguardPeer(link, public), Object::WireguardPeer(object)) = (peer, object)
            else {
                continue;
            };
            prop_assert!(**public != key(9), "our own key");
            for net in &object.allowed {
                prop_assert!(seen.insert((link.clone(), *net)), "{} twice", net);
            }
        }
    }

    #[test]
    fn no_data_makes_the_planner_panic(data in "\\PC{0,80}", port: i64) {
        let backend = backend(DUAL, "{}");
        let mut lease = lease(2);
        for data in [data, format!(r#"{{"PublicKey":"{}","Port":{port}}}"#, key(2))] {
            lease.attrs.backend_data = RawValue::from_string(data).ok();
            let _ = backend.peer(&lease);
        }
    }
}
