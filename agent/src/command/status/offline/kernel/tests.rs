//! Peers by what leads to them.

use super::*;
use crate::plan::state::{Link, LinkKind, Vxlan, WireguardPeer};
use crate::plan::wireguard_key::PublicKey;

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn device(kind: LinkKind) -> Object {
    Object::Link(Box::new(Link {
        mtu: 1450,
        up: true,
        kind,
    }))
}

fn vxlan() -> Vec<(InterfaceName, Object)> {
    let options = Vxlan {
        vni: 1,
        port: 8472,
        underlay_index: 2,
        local: "10.77.0.11".parse().unwrap(),
        mac: "5e:00:00:00:00:0b".parse().unwrap(),
        learning: false,
        gbp: false,
        checksum: false,
    };
    vec![(name("flannel.1"), device(LinkKind::Vxlan(options)))]
}

fn route(subnet: &str, link: &str, gateway: Option<&str>) -> (Key, Object) {
    let route = Route {
        link: name(link),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        onlink: true,
        inline: false,
    };
    (Key::Route(subnet.parse().unwrap()), Object::Route(route))
}

fn networks() -> Vec<IpNet> {
    vec!["10.5.0.0/16".parse().unwrap()]
}

#[test]
fn a_vxlan_peer_is_where_its_frames_are_sent() {
    let mac = |last: u8| crate::base::net::MacAddr([0x5e, 0, 0, 0, 0, last]);
    let link = name("flannel.1");
    let neighbor = |gateway: &str, last| {
        let key = Key::Neighbor(link.clone(), gateway.parse().unwrap());
        (key, Object::Neighbor(mac(last)))
    };
    let state = State::from([
        route("10.5.1.0/24", "flannel.1", Some("10.5.1.0")),
        neighbor("10.5.1.0", 1),
        (
            Key::Fdb(link.clone(), mac(1)),
            Object::Fdb("10.77.0.12".parse().unwrap()),
        ),
        route("10.5.2.0/24", "flannel.1", Some("10.5.2.0")),
        neighbor("10.5.2.0", 2),
        route("10.5.3.0/24", "flannel.1", Some("10.5.3.0")),
        // Reached directly.
        route("10.5.4.0/24", "eth0", Some("10.77.0.14")),
        // Another network's.
        route("10.6.4.0/24", "eth0", Some("10.77.0.14")),
    ]);
    let found = peers(&state, &vxlan(), &networks());
    let found: Vec<_> = found
        .iter()
        .map(|peer| {
            let subnet = peer.subnet.unwrap().to_string();
            let address = peer.public_ip.map(|ip| ip.to_string());
            (subnet, address, peer.reason.clone())
        })
        .collect();
    let expected = [
        ("10.5.1.0/24", Some("10.77.0.12"), None),
        (
            "10.5.2.0/24",
            None,
            Some("no FDB entry for 5e:00:00:00:00:02 on flannel.1"),
        ),
        (
            "10.5.3.0/24",
            None,
            Some("no neighbor entry for 10.5.3.0 on flannel.1"),
        ),
        ("10.5.4.0/24", Some("10.77.0.14"), None),
    ];
    let expected = expected.map(|(subnet, address, reason)| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        (subnet.to_owned(), owned(address), owned(reason))
    });
    assert_eq!(found, expected);
}

#[test]
fn a_wireguard_peer_is_at_its_endpoint() {
    let key = Key::WireguardPeer(
        name("flannel-wg"),
        Box::new(PublicKey::new([1; 32]).unwrap()),
    );
    let peer = WireguardPeer {
        endpoint: Some("10.77.0.12:51820".parse().unwrap()),
        preshared_key: None,
        keepalive: 0,
        allowed: ["10.5.1.0/24".parse().unwrap()].into(),
        in_session: true,
    };
    let devices = [(
        name("flannel-wg"),
        device(LinkKind::Wireguard(crate::plan::state::Wireguard::default())),
    )];
    let mut state = State::from([route("10.5.1.0/24", "flannel-wg", None)]);
    // Only root sees the peers.
    let found = peers(&state, &devices, &networks());
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].public_ip, found[0].state),
        (None, PeerState::Programmed)
    );
    state.insert(key, Object::WireguardPeer(Box::new(peer)));
    let found = peers(&state, &devices, &networks());
    assert_eq!(found[0].public_ip, Some("10.77.0.12".parse().unwrap()));
    assert_eq!(found[0].backend, "wireguard");
}

#[test]
fn routes_alone_are_a_host_gw() {
    let state = State::from([route("10.5.1.0/24", "eth0", Some("10.77.0.12"))]);
    let found = peers(&state, &[], &networks());
    assert_eq!(found[0].backend, "host-gw");
    assert_eq!(found[0].public_ip, Some("10.77.0.12".parse().unwrap()));
    assert_eq!(backend_of(&[], &State::new()), "unknown");
}
