use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap_or_else(|e| panic!("{text}: {}", chain(&e)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn range_of(text: &str) -> (u8, String, String) {
    let range = parse(text).ipv4.unwrap();
    (
        range.subnet_len,
        range.min.to_string(),
        range.max.to_string(),
    )
}

fn refused(text: &str, fragment: &str) {
    let error = NetworkConfig::parse(text).expect_err(text);
    let message = chain(&error);
    assert!(message.contains(fragment), "{text}: {message}");
}

#[test]
fn defaults_follow_flannel() {
    let table = [
        (r#"{"Network":"10.3.0.0/16"}"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#"{"Network":"10.3.0.5/16"}"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#"{"Network":"10.0.0.0/26"}"#, 28, "10.0.0.16", "10.0.0.48"),
        (r#"{"Network":"10.0.0.0/22"}"#, 24, "10.0.1.0", "10.0.3.0"),
        (
            r#"{"Network":"10.0.0.0/23"}"#,
            25,
            "10.0.0.128",
            "10.0.1.128",
        ),
        (r#"{"Network":"10.0.0.0/28"}"#, 30, "10.0.0.4", "10.0.0.12"),
        (
            r#"{"Network":"255.255.0.0/16"}"#,
            24,
            "255.255.1.0",
            "255.255.255.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":28}"#,
            28,
            "10.3.0.16",
            "10.3.255.240",
        ),
        (
            r#"{"network":"10.3.0.0/16","SUBNETLEN":28,"subnetMin":"10.3.5.0","subnetmax":"10.3.8.0"}"#,
            28,
            "10.3.5.0",
            "10.3.8.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.0"}"#,
            24,
            "10.3.0.0",
            "10.3.255.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"0.0.0.0","SubnetLen":null}"#,
            24,
            "10.3.1.0",
            "10.3.255.0",
        ),
        (
            r#"{"Network":"1.0.0.0/8","Network":"10.3.0.0/16","Junk":[1]}"#,
            24,
            "10.3.1.0",
            "10.3.255.0",
        ),
    ];
    for (text, len, min, max) in table {
        assert_eq!(
            range_of(text),
            (len, min.to_owned(), max.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn ipv6_defaults_follow_flannel() {
    let v6 = |text| parse(text).ipv6.unwrap();
    let range = v6(r#"{"Network":"10.3.0.0/16","enableIPv6":true,"ipv6Network":"fc00::/48"}"#);
    assert_eq!(range.subnet_len, 64);
    assert_eq!(range.min.to_string(), "fc00:0:0:1::");
    assert_eq!(range.max.to_string(), "fc00:0:0:ffff::");
    let range = v6(
        r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"ffff::/16","IPv6SubnetMin":null,"IPv6SubnetLen":18}"#,
    );
    assert_eq!(range.max.to_string(), "ffff:c000::");
    // Not enabled, so not even parsed.
    assert!(
        parse(r#"{"Network":"10.3.0.0/16","IPv6Network":"fc00::/48"}"#)
            .ipv6
            .is_none()
    );
}

#[test]
fn bad_ranges_are_refused_with_key_value_and_range() {
    let v4 = [
        ("{}", "Network is missing or empty"),
        ("null", "Network is missing or empty"),
        (r#"{"Network":"0.0.0.0/0"}"#, "Network is missing or empty"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#,
            "SubnetLen: 31 is outside 18 to 30",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
            "SubnetLen: 17 is outside 18 to 30",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":4294967320}"#,
            "SubnetLen: 4294967320 is outside",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":-1}"#,
            "SubnetLen: -1 is not a whole number",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#,
            r#"SubnetLen: "24" is not a whole number"#,
        ),
        (
            r#"{"Network":"10.3.0.0/29"}"#,
            "Network: /29 is too small; allowed are prefix lengths up to /28",
        ),
        (
            r#"{"Network":"10.3.0.0/32","SubnetLen":24}"#,
            "Network: /32 is too small",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
            "SubnetMin: 10.4.0.0 is not in the network, 10.3.0.0 to 10.3.255.255",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.2.0.0"}"#,
            "SubnetMax: 10.2.0.0 is not in the network",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.4.1"}"#,
            "SubnetMin: 10.3.4.1 is not on a boundary of SubnetLen /24; the next lower one is 10.3.4.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.4.128"}"#,
            "SubnetMax: 10.3.4.128 is not on a boundary",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#,
            "SubnetMin: 10.3.9.0 is above SubnetMax: 10.3.8.0",
        ),
    ];
    for (text, fragment) in v4 {
        refused(text, fragment);
    }
    let v6 = [
        ("", "IPv6Network is missing or empty"),
        (
            r#","IPv6Network":"::/0""#,
            "IPv6Network is missing or empty",
        ),
        (
            r#","IPv6Network":"fc00::/125""#,
            "IPv6Network: /125 is too small",
        ),
        (
            r#","IPv6Network":"fc00::/48","IPv6SubnetLen":127"#,
            "IPv6SubnetLen: 127 is outside 50 to 126",
        ),
        (
            r#","IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00::1""#,
            "IPv6SubnetMin: fc00::1 is not on a boundary",
        ),
        (
            r#","IPv6Network":"fc00::/48","IPv6SubnetMax":"fd00::""#,
            "IPv6SubnetMax: fd00:: is not in the network",
        ),
    ];
    for (rest, fragment) in v6 {
        refused(
            &format!(r#"{{"Network":"10.3.0.0/16","EnableIPv6":true{rest}}}"#),
            fragment,
        );
    }
}

#[test]
fn bad_types_are_refused() {
    for (text, fragment) in [
        (
            r#"{"Network":null}"#,
            "Network: null is not an IPv4 network",
        ),
        (
            r#"{"Network":"10.3.0.0"}"#,
            "Network: \"10.3.0.0\" is not an IPv4 network",
        ),
        (r#"{"Network":"fc00::/48"}"#, "is not an IPv4 network"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":null}"#,
            "SubnetMin: null is not an IPv4 address",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":1}"#,
            "EnableIPv6: 1 is not true or false",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#,
            "EnableIPv4: false and EnableIPv6: false leave no network",
        ),
        (r#"{"Network":"10.3.0.0/16",}"#, "not valid JSON"),
        (r#"["Network"]"#, "is not a JSON object"),
        (
            r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#,
            "\"vxlan\" is not a JSON object",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":1}}"#,
            "Type: 1 is not the name of a backend",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"VNI":1}}"#,
            "Backend: {\"VNI\":1} has no Type",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":null}"#,
            "Backend: null has no Type",
        ),
    ] {
        refused(text, fragment);
    }
}

#[test]
fn backend_is_found_in_any_case_and_defaults_to_udp() {
    let backend = parse(r#"{"Network":"10.3.0.0/16"}"#).backend;
    assert_eq!(
        (backend.kind.as_str(), backend.options.get()),
        ("udp", "{}")
    );
    let backend =
        parse(r#"{"Network":"10.3.0.0/16","backend":{ "type" : "VXLAN", "vni": 7 }}"#).backend;
    assert_eq!(backend.kind, "vxlan");
    assert_eq!(backend.options.get(), r#"{"type":"VXLAN","vni":7}"#);
}

#[test]
fn json_with_defaults_reads_back_the_same() {
    let config = parse(r#"{"network":"10.3.0.5/16"}"#);
    assert_eq!(
        config.to_json().unwrap(),
        r#"{"EnableIPv4":true,"EnableIPv6":false,"EnableNFTables":false,"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0","SubnetMax":"10.3.255.0","SubnetLen":24,"Backend":{"Type":"udp"}}"#
    );
}

#[test]
fn encrypt_puts_wireguard_in_the_place_of_vxlan_or_nothing() {
    let with = |rest: &str| format!(r#"{{"Network":"10.3.0.0/16",{rest}}}"#);
    for (rest, kind, options) in [
        (r#""Encrypt":true"#, "wireguard", "{}"),
        (r#""encrypt":false"#, "udp", "{}"),
        (
            r#""encrypt":true,"Backend":{"Type":"VXLAN","MTU":1400}"#,
            "wireguard",
            r#"{"Type":"VXLAN","MTU":1400}"#,
        ),
        (
            r#""Encrypt":true,"Backend":{"Type":"wireguard"}"#,
            "wireguard",
            r#"{"Type":"wireguard"}"#,
        ),
        (
            r#""Encrypt":false,"Backend":{"Type":"vxlan"}"#,
            "vxlan",
            r#"{"Type":"vxlan"}"#,
        ),
    ] {
        let config = parse(&with(rest));
        let again = parse(&config.to_json().unwrap());
        for config in [&config, &again] {
            assert_eq!(config.backend.kind, kind, "{rest}");
        }
        assert_eq!(config.backend.options.get(), options, "{rest}");
        assert_eq!(config.encrypt, again.encrypt, "{rest}");
    }
    for (rest, error) in [
        (
            r#""Encrypt":true,"Backend":{"Type":"udp"}"#,
            "Encrypt: true is not possible with the backend \"udp\"; allowed: \"wireguard\", \"vxlan\" (replaced by wireguard), or no Backend",
        ),
        (r#""Encrypt":1"#, "Encrypt: 1 is not true or false"),
    ] {
        let refused = NetworkConfig::parse(&with(rest)).unwrap_err();
        assert_eq!(refused.to_string(), error);
    }
}

proptest! {
    #[test]
    fn parsing_never_panics(text in ".{0,80}") {
        let _ = NetworkConfig::parse(&text);
    }

    #[test]
    fn every_accepted_range_lies_in_its_network_and_reads_back(
        address: u32, len in 0u8..=32, subnet_len in prop::option::of(0u8..=40), min: u32, max: u32, bounds: bool,
    ) {
        let mut text = format!(r#"{{"Network":"{}/{len}""#, Ipv4Addr::from(address));
        if let Some(subnet_len) = subnet_len {
            text += &format!(r#","SubnetLen":{subnet_len}"#);
        }
        if bounds {
            // Bounds that are often valid: inside the network, on a /24.
            let host = u32::MAX.checked_shr(len.into()).unwrap_or(0);
            let inside = |a: u32| Ipv4Addr::from((address & !host) | (a & host & 0xffff_ff00));
            text += &format!(r#","SubnetMin":"{}","SubnetMax":"{}""#, inside(min), inside(max));
        }
        text.push('}');
        if let Ok(config) = NetworkConfig::parse(&text) {
            let range = config.ipv4.unwrap();
            let (first, last) = (range.network.network(), range.network.broadcast());
            let size = 1u32 << (32 - range.subnet_len);
            prop_assert!(range.subnet_len >= range.network.prefix_len() + 2 && range.subnet_len <= 30);
            prop_assert!(first <= range.min && range.min <= range.max && range.max <= last);
            prop_assert_eq!(u32::from(range.min) % size, 0);
            prop_assert_eq!(u32::from(range.max) % size, 0);
            let again = parse(&config.to_json().unwrap());
            prop_assert_eq!(again.ipv4, Some(range));
            prop_assert_eq!(again.to_json().unwrap(), config.to_json().unwrap());
        }
    }
}

#[test]
fn subnets_are_counted_as_they_can_be_leased() {
    for (config, subnets) in [
        // The first subnet is skipped, as in flannel.
        (r#"{"Network":"10.5.0.0/16"}"#, 255),
        (
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.8.0","SubnetMax":"10.5.11.0"}"#,
            4,
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#,
            65535,
        ),
        // As many as in the smaller family.
        (
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/62","IPv6SubnetLen":64}"#,
            3,
        ),
        (
            r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8","IPv6SubnetLen":126}"#,
            u64::MAX,
        ),
    ] {
        assert_eq!(
            NetworkConfig::parse(config).unwrap().subnets(),
            subnets,
            "{config}"
        );
    }
}
