//! The vxlan configuration, what nodes publish, and leases that mean harm.

use proptest::prelude::*;
use serde_json::value::RawValue;

use super::*;
use crate::backend::BackendConfig;
use crate::network_config::NetworkConfig;

/// The node 192.0.2.1 with the MAC address 02:…:09; `config` is JSON without the type.
pub(in crate::backend) fn backend(config: &str) -> VxlanBackend {
    let options = go_json::Object::parse(config).unwrap();
    let underlay = Underlay {
        index: 2,
        name: "eth0".parse().unwrap(),
        address: Ipv4Addr::new(192, 0, 2, 1),
        prefix_len: 24,
        mtu: 1500,
        public_ip: Ipv4Addr::new(192, 0, 2, 1),
    };
    VxlanBackend::new(
        &VxlanConfig::parse(&options).unwrap(),
        "10.5.0.0/16".parse().unwrap(),
        &underlay,
        MacAddr([2, 0, 0, 0, 0, 9]),
    )
}

/// A peer with the subnet 10.5.`n`.0/24, the MAC address 02:…:`mac` and the public IP 198.18.0.`ip`; MAC 0 is not
/// unicast. Leases are as old as their subnets are high.
pub(in crate::backend) fn lease(n: u8, mac: u8, ip: u8) -> Lease {
    let first = if mac == 0 { 1 } else { 2 };
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{first:02x}:00:00:00:00:{mac:02x}"}}"#);
    Lease {
        key: SubnetKey {
            v4: Ipv4Net::new(Ipv4Addr::new(10, 5, n, 0), 24).unwrap(),
            v6: None,
        },
        attrs: LeaseAttrs {
            public_ip: Ipv4Addr::new(198, 18, 0, ip),
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

/// Reads the `Backend` value of a network config; the first error in words.
fn try_parse(backend: &str) -> Result<BackendConfig, String> {
    let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
    let config = NetworkConfig::parse(&config).map_err(|error| error.to_string())?;
    BackendConfig::parse(&config).map_err(|error| error.to_string())
}

fn parse(backend: &str) -> VxlanConfig {
    match try_parse(backend).unwrap() {
        BackendConfig::Vxlan(config) => config,
    }
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
        (
            r#"{"Type":"host-gw"}"#,
            "the back end \"host-gw\" does not exist; there is: vxlan",
        ),
    ] {
        assert_eq!(try_parse(config).unwrap_err(), message, "{config}");
    }
    for (config, message) in [
        (
            r#"{"Network":"10.5.0.0/16"}"#,
            "the back end \"udp\" does not exist; there is: vxlan",
        ),
        (
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan"}}"#,
            "EnableIPv6: true is not possible: no back end carries IPv6; allowed: false",
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
    let mut underlay = backend("{}").underlay;
    underlay.mtu = 20;
    let config = parse(r#"{"Type":"vxlan"}"#);
    let network = "10.5.0.0/16".parse().unwrap();
    let tiny = VxlanBackend::new(&config, network, &underlay, MacAddr([2; 6]));
    assert_eq!(tiny.mtu(), 68);
}

#[test]
fn behind_a_nat_the_device_sends_from_its_own_address_and_the_lease_names_the_public_one() {
    let mut underlay = backend("{}").underlay;
    underlay.public_ip = Ipv4Addr::new(203, 0, 113, 5);
    let config = parse(r#"{"Type":"vxlan"}"#);
    let network = "10.5.0.0/16".parse().unwrap();
    let backend = VxlanBackend::new(&config, network, &underlay, MacAddr([2; 6]));
    assert_eq!(backend.lease_attrs().public_ip, underlay.public_ip);
    assert_eq!(backend.device.local, underlay.address);
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
        ("null", "its lease has no BackendData"),
        ("{}", "its lease has no BackendData"),
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
            "its VtepMAC 02:00:00:00:00:09 is our own",
        ),
    ] {
        let refusal = backend.peer(&lease_with(data)).unwrap_err().to_string();
        assert!(refusal.starts_with(reason), "{data}: {refusal}");
    }
    let mut other = lease(1, 1, 1);
    other.attrs.backend_type = "host-gw".into();
    assert_eq!(
        backend.peer(&other).unwrap_err().to_string(),
        "it runs the back end \"host-gw\", this node runs \"vxlan\""
    );
    let mut mirror = lease(1, 1, 1);
    mirror.attrs.public_ip = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(
        backend.peer(&mirror),
        Err(Refusal::OwnAddress(mirror.attrs.public_ip))
    );
}

#[test]
fn direct_routing_takes_only_peers_on_the_underlays_link() {
    let backend = backend(r#"{"DirectRouting":true}"#);
    let far = backend.peer(&lease(1, 1, 1)).unwrap();
    assert_eq!(far.len(), 4);
    let mut near = lease(1, 1, 1);
    near.attrs.public_ip = Ipv4Addr::new(192, 0, 2, 250);
    let gateway = IpAddr::V4(near.attrs.public_ip);
    let eth0: InterfaceName = "eth0".parse().unwrap();
    let route = Route {
        link: eth0.clone(),
        gateway,
        onlink: false,
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
}

proptest! {
    #[test]
    fn no_back_end_data_makes_the_plan_panic(text in "\\PC*", kind in "\\PC*") {
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
