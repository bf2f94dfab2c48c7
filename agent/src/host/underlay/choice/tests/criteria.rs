//! Each criterion of the settings, and their order.

use super::*;

#[test]
fn address_chooses_its_interface_even_if_deprecated() {
    let underlay = host().choose(&wanted(&["10.77.0.11"]), V4, None).unwrap();
    let v4 = underlay.v4.unwrap();
    assert_eq!((underlay.index, underlay.mtu, v4.prefix_len), (3, 1500, 24));
    assert_eq!(
        host().chosen(&wanted(&["10.0.2.14"]), V4, None),
        "eth0 10.0.2.14"
    );
    for (interfaces, families, expected) in [
        (&["fd00:77::11"][..], V6, "eth1 fd00:77::11"),
        (&["10.77.0.11"], DUAL, "eth1 10.77.0.11 fd00:77::11"),
        // flannel crashes at this.
        (&["fd00:77::11"], DUAL, "eth1 10.77.0.11 fd00:77::11"),
        // It says which interface, if not which of its IPv4 addresses.
        (&["fd00:77::11"], V4, "eth1 10.77.0.11"),
        // One for each family.
        (
            &["10.0.2.14", "2001:db8:2::7e39"],
            DUAL,
            "eth0 10.0.2.14 2001:db8:2::7e39",
        ),
    ] {
        assert_eq!(
            host().chosen(&wanted(interfaces), families, None),
            expected,
            "{interfaces:?}"
        );
    }
}

#[test]
fn interfaces_are_tried_in_order_and_never_the_default_route() {
    for (interfaces, families, expected) in [
        (
            &["eth7", "10.1.1.1", "eth1", "eth0"][..],
            V4,
            "eth1 10.77.0.11",
        ),
        // lo has no usable address.
        (&["lo", "eth0"], V4, "eth0 10.0.2.15"),
    ] {
        assert_eq!(host().chosen(&wanted(interfaces), families, None), expected);
    }
    let message = host().chosen(&wanted(&["eth7", "10.1.1.1", "lo"]), V4, None);
    let expected = "no interface is named \"eth7\"; no interface has the address 10.1.1.1; the interface lo has no usable IPv4 address; this host has lo (";
    assert!(message.starts_with(expected), "{message}");
    let mut host = host();
    host.has_not("2001:db8:2::15");
    host.has_not("2001:db8:2::7e39");
    assert_eq!(
        host.chosen(&wanted(&["eth0", "eth1"]), DUAL, None),
        "eth1 10.77.0.11 fd00:77::11",
        "both families are one interface's"
    );
}

#[test]
fn patterns_match_addresses_then_names() {
    for (patterns, families, expected) in [
        (&[r"^10\.77\."][..], V4, "eth1 10.77.0.11"),
        (&["^eth1$"], V4, "eth1 10.77.0.11"),
        (&["^eth"], V4, "eth0 10.0.2.15"),
        // An address anywhere comes before any name.
        (&[r"eth0|^10\.77\."], V4, "eth1 10.77.0.11"),
        (&["^wlan", "^fd00:77:"], V6, "eth1 fd00:77::11"),
        // The address that matches is used, though there is a better one.
        (&["^169"], V4, "eth0 169.254.7.7"),
        (&["7e39"], V6, "eth0 2001:db8:2::7e39"),
        // All families on one interface, by addresses; else by name; else by an address of one family.
        (&["^10|^fd00"], DUAL, "eth1 10.77.0.11 fd00:77::11"),
        (&["^10.*15$|eth1"], DUAL, "eth1 10.77.0.11 fd00:77::11"),
        (&[r"^10\.0\.2\."], DUAL, "eth0 10.0.2.15 2001:db8:2::15"),
    ] {
        assert_eq!(
            host().chosen(&matching(patterns), families, None),
            expected,
            "{patterns:?}"
        );
    }
    for pattern in ["^wlan", "^lo$", r"^10\.0\.2\.14$", "^fe80"] {
        let message = host().chosen(&matching(&[pattern]), DUAL, None);
        let expected = format!(
            "no interface with usable IPv4 and IPv6 addresses has an address or a name that matches {pattern:?}; this host has"
        );
        assert!(message.starts_with(&expected), "{message}");
    }
}

#[test]
fn can_reach_follows_the_kernels_route() {
    let mut host = host();
    let asked = reaching(&mut host, 2, "169.254.7.7");
    assert_eq!(host.chosen(&asked, V4, None), "eth0 169.254.7.7");
    let asked = reaching(&mut host, 3, "10.77.0.11");
    assert_eq!(
        host.chosen(&asked, DUAL, None),
        "eth1 10.77.0.11 fd00:77::11"
    );
    // Another family's, another interface's or no source: any address of the interface.
    for source in ["fd00:77::11", "10.0.2.15", ""] {
        let asked = reaching(&mut host, 3, source);
        assert_eq!(host.chosen(&asked, V4, None), "eth1 10.77.0.11");
    }
    // The kernel would go over lo.
    host.resolved = Some(Ok(ResolvedRoute {
        link_index: 1,
        source: None,
        local: true,
        gateway: None,
        table: 255,
    }));
    host.addresses.push(address(3, "192.0.2.1"));
    assert_eq!(host.chosen(&asked, V4, None), "eth1 192.0.2.1");
    host.resolved = Some(Err(Refused {
        errno: Errno::ENETUNREACH,
        hint: None,
    }));
    let message = host.chosen(&asked, V4, None);
    assert!(
        message.starts_with("no route to 192.0.2.1: ENETUNREACH"),
        "{message}"
    );
}

#[test]
fn networks_choose_interface_and_address() {
    for (networks, families, expected) in [
        (&["10.77.0.0/16"][..], V4, "eth1 10.77.0.11"),
        (&["192.0.2.0/24", "10.0.0.0/8"], V4, "eth0 10.0.2.15"),
        (&["fd00:77::/64"], DUAL, "eth1 10.77.0.11 fd00:77::11"),
        (&["fd00:77::/64"], V4, "eth1 10.77.0.11"),
        (&["169.254.0.0/16"], V4, "eth0 169.254.7.7"),
        (
            &[
                "169.254.0.0/16",
                "2001:db8:2::7000/120",
                "2001:db8:2::7e00/120",
            ],
            DUAL,
            "eth0 169.254.7.7 2001:db8:2::7e39",
        ),
    ] {
        assert_eq!(
            host().chosen(&inside(networks), families, None),
            expected,
            "{networks:?}"
        );
    }
    // Beside a name they say which address.
    let mut asked = wanted(&["eth0"]);
    asked.interface_cidr = vec!["169.254.0.0/16".parse().unwrap()];
    assert_eq!(host().chosen(&asked, V4, None), "eth0 169.254.7.7");
    let message = host().chosen(&inside(&["192.0.2.0/24"]), V6, None);
    let expected =
        "no interface with usable IPv6 addresses has an address in 192.0.2.0/24; this host has";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn flannels_order_is_kept_and_ours_comes_last() {
    let mut host = host();
    let reach = reaching(&mut host, 3, "");
    let all = |interface: &str, pattern: &str, network: &str| settings::Underlay {
        interface_regex: matching(&[pattern]).interface_regex,
        interface_cidr: inside(&[network]).interface_cidr,
        ..settings::Underlay {
            can_reach: reach.can_reach,
            ..wanted(&[interface])
        }
    };
    let (eth0, eth1) = ("10.0.2.0/24", "10.77.0.0/24");
    assert_eq!(
        host.chosen(&all("eth0", "eth1", eth1), V4, None),
        "eth0 10.0.2.15"
    );
    assert_eq!(
        host.chosen(&all("eth7", "eth0", eth1), V4, None),
        "eth0 10.0.2.15"
    );
    assert_eq!(
        host.chosen(&all("eth7", "eth8", eth0), V4, None),
        "eth1 10.77.0.11"
    );
    host.resolved = None;
    assert_eq!(
        host.chosen(&all("eth7", "eth8", eth0), V4, None),
        "eth0 10.0.2.15"
    );
}

#[test]
fn public_address_of_nobody_changes_neither_interface_nor_source() {
    let public_ip = "203.0.113.5".parse().ok();
    let public_ipv6 = "2001:db8:ffff::5".parse().ok();
    let asked = settings::Underlay {
        public_ip,
        public_ipv6,
        ..any()
    };
    let underlay = host().choose(&asked, DUAL, None).unwrap();
    assert_eq!(place(&underlay), "eth0 10.0.2.15 2001:db8:2::15");
    assert_eq!(underlay.v4.map(|v4| v4.public), public_ip);
    assert_eq!(underlay.v6.map(|v6| v6.public), public_ipv6);
    assert_eq!(underlay.to_string(), "203.0.113.5 and 2001:db8:ffff::5");
}

#[test]
fn public_address_of_an_interface_chooses_it_as_in_flannel() {
    let mut asked = settings::Underlay {
        public_ip: "10.77.0.11".parse().ok(),
        ..any()
    };
    assert_eq!(host().chosen(&asked, V4, None), "eth1 10.77.0.11");
    // Not when an interface is asked for; then it is only told to the peers, unless it is that interface's.
    asked.interfaces = wanted(&["eth0"]).interfaces;
    let underlay = host().choose(&asked, V4, None).unwrap();
    assert_eq!(place(&underlay), "eth0 10.0.2.15");
    assert_eq!(underlay.v4.map(|v4| v4.public), asked.public_ip);
    asked.public_ip = "10.0.2.14".parse().ok();
    assert_eq!(host().chosen(&asked, V4, None), "eth0 10.0.2.14");
    let asked = settings::Underlay {
        public_ipv6: "fd00:77::11".parse().ok(),
        ..any()
    };
    assert_eq!(
        host().chosen(&asked, DUAL, None),
        "eth1 10.77.0.11 fd00:77::11"
    );
    // A setting for a family that the overlay has not says nothing.
    assert_eq!(host().chosen(&asked, V4, None), "eth0 10.0.2.15");
}
