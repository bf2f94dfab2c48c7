//! The vxlan config, lease data, and malicious leases.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::cluster::network_config::NetworkConfig;
use crate::plan::backend::BackendConfig;
use crate::plan::state::Route;
use crate::plan::underlay::Attachment;

/// 192.0.2.1/24 and 2001:db8::1/64 on eth0.
pub(crate) fn underlay() -> Underlay {
    Underlay {
        index: 2,
        name: "eth0".parse().unwrap(),
        mtu: 1500,
        has_neighbors: true,
        v4: Some(Attachment {
            address: Ipv4Addr::new(192, 0, 2, 1),
            prefix_len: 24,
            public: Ipv4Addr::new(192, 0, 2, 1),
        }),
        v6: Some(Attachment {
            address: "2001:db8::1".parse().unwrap(),
            prefix_len: 64,
            public: "2001:db8::1".parse().unwrap(),
        }),
    }
}

fn only_v4() -> Underlay {
    Underlay {
        v6: None,
        ..underlay()
    }
}

/// The node 192.0.2.1 with the MAC address 02:…:09; `config` is JSON without the type.
pub(in crate::plan::backend) fn backend(config: &str) -> VxlanBackend {
    backend_over(&only_v4(), config)
}

/// The same, for other modules.
pub(crate) fn shared() -> std::sync::Arc<dyn Backend> {
    std::sync::Arc::new(backend("{}"))
}

fn backend_over(underlay: &Underlay, config: &str) -> VxlanBackend {
    let options = go_json::Object::parse(config).unwrap();
    let network = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    VxlanBackend::new(
        &VxlanConfig::parse(&options, &network).unwrap(),
        underlay,
        &[("10.5.0.0/16".parse().unwrap(), identity(9))],
    )
}

/// A node of both families, with the MAC addresses 02:…:09 and 02:…:0a.
fn dual() -> VxlanBackend {
    VxlanBackend::new(
        &parse(r#"{"Type":"vxlan"}"#),
        &underlay(),
        &[
            ("10.5.0.0/16".parse().unwrap(), identity(9)),
            ("fd00:5::/48".parse().unwrap(), identity(10)),
        ],
    )
}

fn identity(last: u8) -> Identity {
    Identity {
        mac: MacAddr([2, 0, 0, 0, 0, last]),
        checksum: false,
    }
}

/// A peer with the subnet 10.5.`n`.0/24, the MAC address 02:…:`mac` and the public IP 198.18.0.`ip`; MAC 0 is not
/// unicast. Leases are as old as their subnets are high.
pub(crate) fn lease(n: u8, mac: u8, ip: u8) -> Lease {
    let first = if mac == 0 { 1 } else { 2 };
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{first:02x}:00:00:00:00:{mac:02x}"}}"#);
    Lease {
        key: SubnetKey::new(
            Some(Ipv4Net::new(Ipv4Addr::new(10, 5, n, 0), 24).unwrap()),
            None,
        ),
        attrs: LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(198, 18, 0, ip)),
            public_ipv6: None,
            backend_type: KIND.into(),
            backend_data: Some(RawValue::from_string(data).unwrap()),
            backend_v6_data: None,
            owner: None,
        },
        created: u64::from(n),
    }
}

fn lease_with(data: &str) -> Lease {
    let mut lease = lease(1, 1, 1);
    lease.attrs.backend_data = Some(RawValue::from_string(data.into()).unwrap());
    lease
}

/// Reads the `Backend` value of a network config; the first error as text.
fn try_parse(backend: &str) -> Result<BackendConfig, String> {
    let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    let config = NetworkConfig::parse(&config).map_err(|error| error.to_string())?;
    BackendConfig::parse(&config).map_err(|error| error.to_string())
}

fn parse(backend: &str) -> VxlanConfig {
    let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    let network = NetworkConfig::parse(&config).unwrap();
    assert_eq!(network.backend.kind, KIND);
    let options = go_json::Object::parse(network.backend.options.get()).unwrap();
    VxlanConfig::parse(&options, &network).unwrap()
}

#[test]
fn defaults_are_flannels() {
    let expected = VxlanConfig {
        vni: 1,
        port: 8472,
        mtu: None,
        gbp: false,
        learning: false,
        direct_routing: false,
        checksum: None,
    };
    assert_eq!(parse(r#"{"Type":"vxlan"}"#), expected);
    assert_eq!(
        parse(r#"{"type":"VXLAN","Port":0,"MTU":null,"Unknown":[1]}"#),
        expected
    );
}

#[test]
fn keys_match_in_any_case_and_the_last_wins() {
    let config = parse(
        r#"{"TYPE":"vxlan","vni":7,"VNI":42,"port":4789,"mtu":9000,"Gbp":true,"learning":true,"Directrouting":true}"#,
    );
    let expected = VxlanConfig {
        vni: 42,
        port: 4789,
        mtu: Some(9000),
        gbp: true,
        learning: true,
        direct_routing: true,
        checksum: None,
    };
    assert_eq!(config, expected);
}

#[test]
fn bad_configurations_name_key_value_and_range() {
    for (config, message) in [
        (
            r#"{"Type":"vxlan","VNI":16777215}"#,
            "Backend: VNI: 16777215 is not an integer from 0 to 9999999",
        ),
        (
            r#"{"Type":"vxlan","VNI":-1}"#,
            "Backend: VNI: -1 is not an integer from 0 to 9999999",
        ),
        (
            r#"{"Type":"vxlan","VNI":1.5}"#,
            "Backend: VNI: 1.5 is not an integer from 0 to 9999999",
        ),
        (
            r#"{"Type":"vxlan","VNI":"1"}"#,
            "Backend: VNI: \"1\" is not an integer from 0 to 9999999",
        ),
        (
            r#"{"Type":"vxlan","Port":65536}"#,
            "Backend: Port: 65536 is not an integer from 0 to 65535",
        ),
        (
            r#"{"Type":"vxlan","MTU":117}"#,
            "Backend: MTU: 117 is not an integer from 118 to 65535",
        ),
        (
            r#"{"Type":"vxlan","GBP":1}"#,
            "Backend: GBP: 1 is not true or false",
        ),
        (
            r#"{"Type":"vxlan","Learning":"no"}"#,
            "Backend: Learning: \"no\" is not true or false",
        ),
        (
            r#"{"Type":"vxlan","DirectRouting":[]}"#,
            "Backend: DirectRouting: [] is not true or false",
        ),
    ] {
        assert_eq!(try_parse(config).unwrap_err(), message, "{config}");
    }
    for (config, message) in [
        (
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","VNI":10000}}"#,
            "Backend: VNI: 10000 is not an integer from 0 to 9999",
        ),
        (
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","MTU":1349}}"#,
            "Backend: MTU: 1349 is not an integer from 1350 to 65535",
        ),
    ] {
        let error = BackendConfig::parse(&NetworkConfig::parse(config).unwrap());
        assert_eq!(error.unwrap_err().to_string(), message);
    }
}

#[test]
fn the_lease_data_is_flannels_to_the_byte() {
    let attrs = backend("{}").lease_attrs();
    assert_eq!(
        serde_json::to_string(&attrs).unwrap(),
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#
    );
}

#[test]
fn the_mtu_is_the_underlays_less_fifty_and_never_more_than_it_carries() {
    for (config, mtu) in [
        ("{}", 1450),
        (r#"{"MTU":1400}"#, 1350),
        (r#"{"MTU":9000}"#, 1450),
        (r#"{"MTU":118}"#, 68),
    ] {
        assert_eq!(backend(config).mtu(), mtu, "{config}");
    }
    assert_eq!(dual().mtu(), 1430, "an outer IPv6 header has 40 bytes");
    let tiny = Underlay {
        mtu: 20,
        ..only_v4()
    };
    assert_eq!(backend_over(&tiny, "{}").mtu(), 68);
}

#[test]
fn behind_a_nat_the_device_sends_from_its_own_address_and_the_lease_names_the_public_one() {
    let mut underlay = only_v4();
    let v4 = underlay.v4.as_mut().unwrap();
    v4.public = Ipv4Addr::new(203, 0, 113, 5);
    let (own, public) = (v4.address, v4.public);
    let backend = backend_over(&underlay, "{}");
    assert_eq!(backend.lease_attrs().public_ip, Some(public));
    assert_eq!(options(&backend.own(&lease(0, 0, 0).key)).local, own);
}

#[test]
fn checksums_are_as_asked_for_or_as_they_are() {
    let network = "10.5.0.0/16".parse().unwrap();
    for (config, existing, expected) in [
        ("{}", false, false),
        ("{}", true, true),
        (r#"{"Checksum":true}"#, false, true),
        (r#"{"Checksum":false}"#, true, false),
    ] {
        let config = backend(config).config;
        let identity = Identity {
            checksum: existing,
            ..identity(9)
        };
        let backend = VxlanBackend::new(&config, &only_v4(), &[(network, identity)]);
        let own = backend.own(&lease(0, 0, 0).key);
        assert_eq!(options(&own).checksum, expected, "{config:?}");
    }
}

/// The options of the only device.
fn options(own: &State) -> Vxlan {
    let object = own.first_key_value().unwrap().1;
    match object {
        Object::Link(device) => match &device.kind {
            LinkKind::Vxlan(vxlan) => vxlan.clone(),
            _ => panic!("{object:?}"),
        },
        _ => panic!("{object:?}"),
    }
}

fn dual_lease() -> Lease {
    let mut lease = lease(1, 1, 1);
    lease.key.v6 = Some("fd00:5:0:1::/64".parse().unwrap());
    lease.attrs.public_ipv6 = Some("2001:db8:1::1".parse().unwrap());
    let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:61"}"#;
    lease.attrs.backend_v6_data = Some(RawValue::from_string(data.into()).unwrap());
    lease
}

#[test]
fn each_family_has_its_device_and_its_objects() {
    let texts = |objects: &mut dyn Iterator<Item = Key>| -> Vec<String> {
        objects.map(|key| key.to_string()).collect()
    };
    let own = dual_lease().key;
    assert_eq!(
        texts(&mut dual().own(&own).into_keys()),
        [
            "link flannel-v6.1",
            "link flannel.1",
            "address fd00:5:0:1::/128 dev flannel-v6.1",
            "address 10.5.1.0/32 dev flannel.1",
        ]
    );
    let peer = dual().peer(&dual_lease()).unwrap();
    assert_eq!(
        texts(&mut peer.into_iter().map(|(key, _)| key)),
        [
            "fdb 02:00:00:00:00:01 dev flannel.1",
            "neighbor 10.5.1.0 dev flannel.1",
            "nexthop via 10.5.1.0 dev flannel.1",
            "route 10.5.1.0/24",
            "fdb 02:00:00:00:00:61 dev flannel-v6.1",
            "neighbor fd00:5:0:1:: dev flannel-v6.1",
            "nexthop via fd00:5:0:1:: dev flannel-v6.1",
            "route fd00:5:0:1::/64",
        ]
    );
    let attrs = serde_json::to_string(&dual().lease_attrs()).unwrap();
    assert_eq!(
        attrs,
        r#"{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:0a"}}"#
    );
}

#[test]
fn a_peer_of_one_family_is_reached_in_that_one_alone() {
    assert_eq!(dual().peer(&lease(1, 1, 1)).unwrap().len(), 4);
    let mut alone = dual_lease();
    alone.key.v4 = None;
    assert_eq!(dual().peer(&alone).unwrap().len(), 4);
    let mut without_data = dual_lease();
    without_data.attrs.backend_v6_data = None;
    let network = "fd00:5::/48".parse().unwrap();
    assert_eq!(
        dual().peer(&without_data),
        Err(PeerRefusal::NoBackendData(network))
    );
    let mut nowhere = dual_lease();
    nowhere.attrs.public_ipv6 = None;
    let subnet = "fd00:5:0:1::/64".parse().unwrap();
    assert_eq!(dual().peer(&nowhere), Err(PeerRefusal::NoAddress(subnet)));
}

#[test]
fn peers_of_every_flannel_are_understood() {
    for data in [
        r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
        r#"{"VtepMAC":"C6-D2-32-6F-8F-44"}"#,
        r#"{"vtepmac":"c6:d2:32:6f:8f:44","vni":99,"Extra":{}}"#,
    ] {
        let objects = backend("{}").peer(&lease_with(data)).unwrap();
        let fdb = Key::Fdb(
            "flannel.1".parse().unwrap(),
            "c6:d2:32:6f:8f:44".parse().unwrap(),
        );
        let remote = Object::Fdb(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)));
        assert!(objects.contains(&(fdb, remote)), "{data}: {objects:?}");
    }
}

#[test]
fn leases_that_mean_harm_are_refused_with_the_reason() {
    let backend = backend("{}");
    for (data, reason) in [
        ("null", "its lease has no BackendData for 10.5.0.0/16"),
        ("{}", "its lease has no BackendData for 10.5.0.0/16"),
        (r#""vxlan""#, "its BackendData is unusable: "),
        (
            r#"{"VtepMAC":7}"#,
            "its BackendData is unusable: VtepMAC: 7 is not an Ethernet address",
        ),
        (
            r#"{"VtepMAC":"xyz"}"#,
            "its BackendData is unusable: VtepMAC: \"xyz\" is not an Ethernet address",
        ),
        (
            r#"{"VtepMAC":"01:00:5e:00:00:01"}"#,
            "its VtepMAC 01:00:5e:00:00:01 is not a unicast address",
        ),
        (
            r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
            "its VtepMAC ff:ff:ff:ff:ff:ff is not a unicast address",
        ),
        (
            r#"{"VtepMAC":"00:00:00:00:00:00"}"#,
            "its VtepMAC 00:00:00:00:00:00 is not a unicast address",
        ),
        (
            r#"{"VtepMAC":"02:00:00:00:00:09"}"#,
            "its VtepMAC 02:00:00:00:00:09 is this node's",
        ),
    ] {
        let refusal = backend.peer(&lease_with(data)).unwrap_err().to_string();
        assert!(refusal.starts_with(reason), "{data}: {refusal}");
    }
    let mut other = lease(1, 1, 1);
    other.attrs.backend_type = "host-gw".into();
    assert_eq!(
        backend.peer(&other).unwrap_err().to_string(),
        "it runs another backend, \"host-gw\""
    );
    let mut mirror = lease(1, 1, 1);
    mirror.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(
        backend.peer(&mirror),
        Err(PeerRefusal::OurPublicIp([192, 0, 2, 1].into()))
    );
}

#[test]
fn direct_routing_takes_only_peers_on_the_underlays_link() {
    let backend = backend(r#"{"DirectRouting":true}"#);
    let far = backend.peer(&lease(1, 1, 1)).unwrap();
    assert_eq!(far.len(), 4);
    let mut near = lease(1, 1, 1);
    near.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, 250));
    let gateway: IpAddr = [192, 0, 2, 250].into();
    let eth0: InterfaceName = "eth0".parse().unwrap();
    let route = Route {
        link: eth0.clone(),
        gateway: Some(gateway),
        onlink: false,
        inline: false,
    };
    assert_eq!(
        backend.peer(&near).unwrap(),
        [
            (
                Key::NextHop(eth0, gateway),
                Object::NextHop { onlink: false }
            ),
            (
                Key::Route("10.5.1.0/24".parse().unwrap()),
                Object::Route(route)
            ),
        ]
    );
    // In a VPN's network an on-link address does not say which host gets a packet.
    let over = backend.over(&Underlay {
        has_neighbors: false,
        ..underlay()
    });
    assert_eq!(over.peer(&near).unwrap().len(), 4);
}

proptest! {
    #[test]
    fn no_backend_data_makes_the_plan_panic(text in "\\PC*", kind in "\\PC*") {
        let mut lease = lease(1, 1, 1);
        lease.attrs.backend_data = RawValue::from_string(text).ok();
        let _ = backend("{}").peer(&lease);
        lease.attrs.backend_type = kind;
        let _ = backend("{}").peer(&lease);
    }

    #[test]
    fn no_configuration_makes_the_parser_panic(
        value in "\\PC*|-?[0-9]{1,30}|true|null|\"[a-z]*\"",
        key in "(?i)VNI|Port|MTU|GBP|Learning|DirectRouting|Type",
    ) {
        let _ = try_parse(&format!(r#"{{"Type":"vxlan","{key}":{value}}}"#));
    }
}
