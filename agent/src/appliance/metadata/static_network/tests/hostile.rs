//! Documents that want to do harm: none makes a panic, or a file with more in it than the form has.

use proptest::prelude::*;

use super::super::*;

/// All lines that a file may have, up to the sign between key and value.
const LINES: [&str; 29] = [
    "RouteMetric=",
    "PermanentMACAddress=",
    "LinkLocalAddressing=",
    "# From ",
    "[Match]",
    "[Link]",
    "[Network]",
    "[Route]",
    "[DHCPv4]",
    "[DHCPv6]",
    "[IPv6AcceptRA]",
    "MACAddress=",
    "Name=",
    "Driver=",
    "Type=ether",
    "Kind=!*",
    "MTUBytes=",
    "RequiredForOnline=no",
    "DHCP=",
    "IPv6AcceptRA=",
    "KeepConfiguration=dynamic",
    "Address=",
    "DNS=",
    "Domains=",
    "Destination=",
    "Gateway=",
    "Metric=",
    "GatewayOnLink=yes",
    "Use",
];

fn judge(document: &[u8]) {
    for form in [Form::NetworkConfig, Form::NetworkData] {
        let Ok(network) = parse(form, document) else {
            continue;
        };
        for (name, text) in network.files("a\nb") {
            assert!(name.starts_with("72-platform-") && name.ends_with(".network"));
            for line in text.lines().filter(|line| !line.is_empty()) {
                let is_known = LINES.iter().any(|start| line.starts_with(start));
                assert!(is_known, "{line:?}");
            }
        }
        for problem in &network.left_out {
            assert!(problem.to_string().len() < 2000);
        }
    }
}

/// A document with one text from outside in many places.
fn with(text: &str) -> String {
    let text = serde_json::to_string(text).unwrap();
    format!(
        "{{\"version\": 2, \"ethernets\": {{{text}: {{\"addresses\": [\"192.0.2.1/24\", {text}]}}, \"a\": {{\"match\": \
         {{\"name\": {text}}}, \"addresses\": [\"192.0.2.2/24\"], \"nameservers\": {{\"search\": [{text}]}}}}}}}}"
    )
}

#[test]
fn values_do_not_end_their_line() {
    for text in [
        "eth0\n[Network]\nDNS=6.6.6.6",
        "eth0 eth1",
        "!eth0",
        "a\rb",
        "",
        "..",
        "a.b\u{0}",
        "\u{85}",
        "%i",
    ] {
        judge(with(text).as_bytes());
        let document = with(text);
        assert!(
            parse(Form::NetworkConfig, document.as_bytes()).is_err(),
            "{text:?}"
        );
    }
}

#[test]
fn lists_have_an_end() {
    let many = |count: usize, one: &str| vec![one; count].join(",");
    for (document, form) in [
        (
            format!(
                "{{\"version\": 1, \"config\": [{}]}}",
                many(300, "{\"type\": \"loopback\"}")
            ),
            Form::NetworkConfig,
        ),
        (
            format!(
                "{{\"version\": 2, \"ethernets\": {{\"a\": {{\"addresses\": [{}]}}}}}}",
                many(65, "\"192.0.2.1/24\"")
            ),
            Form::NetworkConfig,
        ),
        (
            format!(
                "{{\"links\": [{}]}}",
                many(65, "{\"id\": \"a\", \"name\": \"b\"}")
            ),
            Form::NetworkData,
        ),
    ] {
        let error = parse(form, document.as_bytes()).unwrap_err();
        assert!(matches!(error, Problem::TooMany { .. }), "{error}");
    }
    // Deep, and with a bomb of aliases.
    judge("[".repeat(100_000).as_bytes());
    judge(format!("{}a", "- ".repeat(100_000)).as_bytes());
    let bomb = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |text, level| {
        let below = level - 1;
        text + &format!("a{level}: &a{level} [*a{below}, *a{below}, *a{below}]\n")
    });
    judge(bomb.as_bytes());
}

#[test]
fn one_card_has_one_part_and_a_router_of_its_family() {
    for (document, expected) in [
        (
            "version: 2\nethernets:\n  a: {match: {macaddress: '52:54:00:00:00:01'}, dhcp4: true}\n  b: {match: {macaddress: \
             '52:54:00:00:00:01'}, dhcp4: true}\n",
            "ethernets.b is about the same card",
        ),
        (
            "version: 2\nethernets: {a: {gateway4: '2001:db8::1'}}\n",
            "ethernets.a.gateway4 is \"2001:db8::1\": expected a router of the family",
        ),
        (
            "version: 2\nethernets: {a: {routes: [{to: 10.0.0.0/8, via: '2001:db8::1'}]}}\n",
            "ethernets.a.routes.0.via is \"2001:db8::1\"",
        ),
        (
            "version: 2\nethernets: {a: {addresses: [0.0.0.0/0]}}\n",
            "ethernets.a.addresses.0 is \"0.0.0.0/0\": expected an address that a machine can have",
        ),
        (
            "version: 2\nethernets: {a: {match: {pciid: x}, dhcp4: true}}\n",
            "ethernets.a.match.pciid is \"x\": expected only macaddress, name and driver",
        ),
        (
            "version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 10.0.0.1, netmask: \
             255.0.255.0}]}]\n",
            "config.0.subnets.0.netmask is \"255.0.255.0\": expected a network mask",
        ),
        (
            "version: 1\nconfig: [{type: physical, name: a, subnets: [{type: bootp}]}]\n",
            "config.0.subnets.0.type is \"bootp\": expected static",
        ),
        (
            r#"{"links": [], "networks": [{"link": "a", "type": "ipv4_dhcp"}]}"#,
            "networks.0.link is \"a\": expected the id of one of the links",
        ),
        (
            r#"{"links": [{"id": "a", "type": "phy"}]}"#,
            "links.0.ethernet_mac_address is missing",
        ),
        (
            "version: 2\nethernets: [a]\n",
            "ethernets is a list: expected a mapping",
        ),
        ("just text", "version is missing"),
    ] {
        let form = match document.starts_with('{') {
            true => Form::NetworkData,
            false => Form::NetworkConfig,
        };
        let error = parse(form, document.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_gateway_outside_of_the_cards_network_is_on_its_link() {
    // As hosters give single addresses, whose gateway is none of the same network.
    let document = "version: 2\nethernets: {eth0: {addresses: [203.0.113.10/32], routes: [{to: default, via: \
                    198.51.100.254}]}}\n";
    let network = parse(Form::NetworkConfig, document.as_bytes()).unwrap();
    assert!(network.interfaces[0].routes[0].on_link);
    // DHCP may bring the network.
    let dynamic = document.replace("addresses: [203.0.113.10/32]", "dhcp4: yes");
    let network = parse(Form::NetworkConfig, dynamic.as_bytes()).unwrap();
    assert!(!network.interfaces[0].routes[0].on_link);
}

proptest! {
    #[test]
    fn bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        judge(&bytes);
    }

    #[test]
    fn texts_in_values_do_no_harm(text in "\\PC{0,40}|[\\x00-\\x7f]{0,20}") {
        judge(with(&text).as_bytes());
    }

    /// Documents of the right keys with values of any kind.
    #[test]
    fn values_of_any_kind_do_no_harm(
        key in proptest::sample::select(vec![
            "match", "dhcp4", "dhcp4-overrides", "addresses", "gateway4", "macaddress", "mtu", "nameservers", "optional",
            "routes", "subnets", "type", "mac_address", "config", "links", "networks", "services", "accept-ra",
        ]),
        value in proptest::sample::select(vec![
            "null", "true", "-1", "1e400", "\"\"", "[]", "{}", "[[]]", "[null]", "{\"a\": null}", "[{\"type\": \"ipv4\"}]",
            "[{\"to\": \"default\"}]", "{\"addresses\": {}}", "\"::\"", "[{\"type\": \"physical\", \"subnets\": [{}]}]",
        ]),
    ) {
        for outer in [
            format!("{{\"version\": 1, \"config\": [{{\"type\": \"physical\", \"name\": \"a\", \"{key}\": {value}}}]}}"),
            format!("{{\"version\": 2, \"ethernets\": {{\"a\": {{\"dhcp6\": true, \"{key}\": {value}}}}}}}"),
            format!("{{\"{key}\": {value}}}"),
        ] {
            judge(outer.as_bytes());
        }
    }
}
