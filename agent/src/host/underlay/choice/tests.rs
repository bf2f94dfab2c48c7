use super::*;
use crate::host::netlink::host::{DefaultRoute, Way};

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.parse().unwrap(),
        mtu: 1500,
        has_neighbors: true,
    }
}

fn address(link_index: u32, address: &str) -> Address {
    let address: IpAddr = address.parse().unwrap();
    Address {
        link_index,
        address,
        prefix_len: if address.is_ipv4() { 24 } else { 64 },
        deprecated: false,
        permanent: true,
        temporary: false,
        in_doubt: false,
    }
}

fn default_route(family: Family, link_index: u32, metric: u32) -> DefaultRoute {
    DefaultRoute {
        family,
        link_index,
        metric,
    }
}

/// lo, a provider's NIC with the default routes, and a NIC between the nodes.
fn host() -> Host {
    let dynamic = |address| Address {
        permanent: false,
        ..address
    };
    Host {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")],
        addresses: vec![
            Address {
                prefix_len: 8,
                ..address(1, "127.0.0.1")
            },
            address(2, "169.254.7.7"),
            dynamic(address(2, "10.0.2.15")),
            Address {
                deprecated: true,
                ..address(2, "10.0.2.14")
            },
            address(3, "10.77.0.11"),
            address(1, "::1"),
            Address {
                temporary: true,
                ..dynamic(address(2, "2001:db8:2::7e39"))
            },
            dynamic(address(2, "2001:db8:2::15")),
            address(2, "fe80::2"),
            address(3, "fd00:77::11"),
            address(3, "fe80::3"),
        ],
        default_routes: vec![
            default_route(Family::V4, 3, 200),
            default_route(Family::V4, 2, 100),
            default_route(Family::V6, 2, 1024),
            default_route(Family::V6, 3, 2048),
        ],
        way: None,
        complete: true,
    }
}

const V4: Families = Families {
    v4: Some(ipnet::Ipv4Net::new_assert(
        std::net::Ipv4Addr::new(10, 5, 0, 0),
        16,
    )),
    v6: None,
};
const V6: Families = Families {
    v4: None,
    v6: Some(ipnet::Ipv6Net::new_assert(
        std::net::Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0),
        48,
    )),
};
const DUAL: Families = Families {
    v4: V4.v4,
    v6: V6.v6,
};

fn any() -> settings::Underlay {
    settings::Underlay::default()
}

/// These interfaces, by name or address.
fn wanted(interfaces: &[&str]) -> settings::Underlay {
    let interface = |text: &&str| match text.parse() {
        Ok(address) => Interface::Address(address),
        Err(_) => Interface::Name(text.parse().unwrap()),
    };
    settings::Underlay {
        interfaces: interfaces.iter().map(interface).collect(),
        ..any()
    }
}

fn matching(patterns: &[&str]) -> settings::Underlay {
    let pattern = |text: &&str| Pattern::new(text).unwrap();
    settings::Underlay {
        interface_regex: patterns.iter().map(pattern).collect(),
        ..any()
    }
}

fn inside(networks: &[&str]) -> settings::Underlay {
    settings::Underlay {
        interface_cidr: networks.iter().map(|text| text.parse().unwrap()).collect(),
        ..any()
    }
}

/// Towards an address, by the interface `link_index` with `source`.
fn reaching(host: &mut Host, link_index: u32, source: &str) -> settings::Underlay {
    host.way = Some(Ok(Way {
        link_index,
        source: source.parse().ok(),
        local: false,
        gateway: None,
        table: 254,
    }));
    settings::Underlay {
        can_reach: "192.0.2.1".parse().ok(),
        ..any()
    }
}

impl Host {
    fn choose(
        &self,
        wanted: &settings::Underlay,
        families: Families,
        current: Option<&Underlay>,
    ) -> Result<Underlay, Error> {
        Choice::new(self, wanted, families).find(current)
    }

    /// The choice as text: `eth0 10.0.2.15 2001:db8::1`, or why there is none.
    fn chosen(
        &self,
        wanted: &settings::Underlay,
        families: Families,
        current: Option<&Underlay>,
    ) -> String {
        match self.choose(wanted, families, current) {
            Ok(underlay) => place(&underlay),
            Err(error) => error.to_string(),
        }
    }

    fn has_not(&mut self, address: &str) {
        let address: IpAddr = address.parse().unwrap();
        self.addresses.retain(|other| other.address != address);
    }

    fn address(&mut self, address: &str) -> &mut Address {
        let wanted: IpAddr = address.parse().unwrap();
        let mut addresses = self.addresses.iter_mut();
        addresses.find(|address| address.address == wanted).unwrap()
    }
}

fn place(underlay: &Underlay) -> String {
    let mut place = underlay.name.to_string();
    if let Some(v4) = underlay.v4 {
        place.push_str(&format!(" {}", v4.address));
    }
    if let Some(v6) = underlay.v6 {
        place.push_str(&format!(" {}", v6.address));
    }
    place
}

mod moves;

#[test]
fn nothing_asked_for_means_the_default_route_of_the_lowest_metric() {
    for (families, expected) in [
        (V4, "eth0 10.0.2.15"),
        (V6, "eth0 2001:db8:2::15"),
        (DUAL, "eth0 10.0.2.15 2001:db8:2::15"),
    ] {
        assert_eq!(host().chosen(&any(), families, None), expected);
    }
    let underlay = host().choose(&any(), DUAL, None).unwrap();
    assert_eq!(underlay.v4.unwrap().public, underlay.v4.unwrap().address);
    assert_eq!(underlay.v6.unwrap().public, underlay.v6.unwrap().address);
}

#[test]
fn both_default_routes_must_lead_over_one_interface() {
    let mut host = host();
    // The best IPv4 route's interface has no IPv6 one; the second best has.
    host.default_routes.remove(2);
    assert_eq!(
        host.chosen(&any(), DUAL, None),
        "eth1 10.77.0.11 fd00:77::11"
    );
    host.default_routes.remove(0);
    let message = host.chosen(&any(), DUAL, None);
    let expected = "the IPv4 default route uses eth0, the IPv6 one eth1, but one";
    assert!(message.starts_with(expected), "{message}");
    host.default_routes.pop();
    let message = host.chosen(&any(), DUAL, None);
    assert!(message.contains("no IPv6 default route"), "{message}");
}

#[test]
fn of_an_interfaces_addresses_the_best_is_taken() {
    // From the worst to the best: each beats those before it, whatever the kernel's order.
    let dynamic = |address: Address| Address {
        permanent: false,
        ..address
    };
    let temporary = |address: Address| Address {
        temporary: true,
        ..address
    };
    let ladders = [
        (
            V4,
            vec![
                address(3, "169.254.1.1"),
                dynamic(address(3, "10.77.0.3")),
                address(3, "10.77.0.1"),
            ],
        ),
        (
            V6,
            vec![
                temporary(dynamic(address(3, "fd00::1"))),
                temporary(dynamic(address(3, "2001:db8::1"))),
                dynamic(address(3, "fd00::2")),
                dynamic(address(3, "2001:db8::2")),
                address(3, "fd00::3"),
                address(3, "2001:db8::3"),
            ],
        ),
    ];
    for (families, ladder) in ladders {
        for rung in 1..=ladder.len() {
            let mut host = host();
            host.addresses = ladder[..rung].to_vec();
            let best = ladder[rung - 1].address;
            let expected = format!("eth1 {best}");
            assert_eq!(host.chosen(&wanted(&["eth1"]), families, None), expected);
            host.addresses.reverse();
            assert_eq!(host.chosen(&wanted(&["eth1"]), families, None), expected);
        }
    }
    let mut host = host();
    host.addresses.push(address(3, "10.77.0.12"));
    host.addresses.push(address(3, "fd00:77::12"));
    assert_eq!(
        host.chosen(&wanted(&["eth1"]), DUAL, None),
        "eth1 10.77.0.11 fd00:77::11",
        "among equals the kernel's order counts"
    );
}

#[test]
fn what_cannot_be_used_is_no_choice() {
    let mut host = host();
    host.addresses.retain(|address| address.link_index != 3);
    host.addresses.push(address(3, "fe80::3"));
    host.links.push(link(4, "docker0"));
    host.addresses.push(address(4, "10.5.3.1"));
    host.addresses.push(Address {
        in_doubt: true,
        ..address(3, "2001:db8::3")
    });
    host.addresses.push(Address {
        deprecated: true,
        ..address(3, "2001:db8::4")
    });
    let message = host.chosen(&wanted(&["eth1"]), V6, None);
    let expected = "the interface eth1 has no usable IPv6 address; this host has lo (";
    assert!(message.starts_with(expected), "{message}");
    assert!(!message.contains("fe80"), "{message}");
    let message = host.chosen(&wanted(&["docker0"]), V4, None);
    let expected = "the interface docker0 has no usable IPv4 address (10.5.3.1 belongs to an overlay device or a container bridge); this";
    assert!(message.contains(expected), "{message}");
    // Who names a deprecated one gets it; who names one in doubt does not.
    let named = wanted(&["2001:db8::4"]);
    assert_eq!(host.chosen(&named, V6, None), "eth1 2001:db8::4");
    let message = host.chosen(&wanted(&["2001:db8::3"]), V6, None);
    assert!(
        message.starts_with("no interface has the address 2001:db8::3"),
        "{message}"
    );
}

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
    let expected = "no interface is called \"eth7\"; no interface has the address 10.1.1.1; the interface lo has no usable IPv4 address; this host has lo (";
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
fn can_reach_goes_by_the_kernels_way() {
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
    host.way = Some(Ok(Way {
        link_index: 1,
        source: None,
        local: true,
        gateway: None,
        table: 255,
    }));
    host.addresses.push(address(3, "192.0.2.1"));
    assert_eq!(host.chosen(&asked, V4, None), "eth1 192.0.2.1");
    host.way = Some(Err(Refused {
        errno: Errno::ENETUNREACH,
        hint: None,
    }));
    let message = host.chosen(&asked, V4, None);
    assert!(
        message.starts_with("192.0.2.1 cannot be reached: ENETUNREACH"),
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
    host.way = None;
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

#[test]
fn failures_say_what_there_is() {
    let inventory = "lo (127.0.0.1/8 ::1/64), eth0 (169.254.7.7/24 10.0.2.15/24 10.0.2.14/24 2001:db8:2::7e39/64 2001:db8:2::15/64), eth1 (10.77.0.11/24 fd00:77::11/64)";
    let error = host().choose(&wanted(&["eth7"]), V4, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no interface is called \"eth7\"; this host has {inventory}")
    );
    assert!(error.is_transient());

    let mut host = host();
    host.default_routes.clear();
    let message = host.chosen(&any(), V4, None);
    assert!(message.contains("; set underlay.interfaces"), "{message}");
    for (mtu, families, least) in [
        (0, V4, 68),
        (67, V4, 68),
        (1279, V6, 1280),
        (1279, DUAL, 1280),
    ] {
        host.links[1].mtu = mtu;
        let message = host.chosen(&wanted(&["eth0"]), families, None);
        let expected =
            format!("eth0 has an MTU of {mtu}: expected at least {least} bytes; this host has");
        assert!(message.contains(&expected), "{message}");
    }
    host.links
        .extend((10..40).map(|index| link(index, &format!("veth{index}"))));
    let message = host.chosen(&any(), V4, None);
    assert!(
        message.ends_with("veth22 (no address), 17 more"),
        "{message}"
    );
    let message = Host::default().chosen(&any(), V4, None);
    assert!(
        message.ends_with("this host has no interfaces"),
        "{message}"
    );
}

#[test]
fn a_hosts_address_may_be_inside_the_network_but_none_of_the_overlays_own() {
    let mut host = host();
    host.addresses.insert(0, address(3, "10.5.0.11"));
    let named = ["eth1", "10.5.0.11"].map(|name| wanted(&[name]));
    let mut asked = named.to_vec();
    asked.push(matching(&[r"^10\.5\."]));
    asked.push(inside(&["10.5.0.0/16"]));
    let mut by_public = any();
    by_public.public_ip = "10.5.0.11".parse().ok();
    asked.push(by_public);
    for asked in &asked {
        assert_eq!(host.chosen(asked, V4, None), "eth1 10.5.0.11", "{asked:?}");
    }
    let reached = reaching(&mut host, 3, "10.5.0.11");
    assert_eq!(host.chosen(&reached, V4, None), "eth1 10.5.0.11");

    host.has_not("10.5.0.11");
    for (index, name, net) in [
        (4, "flannel.1", "10.5.3.0"),
        (5, "flannel0", "10.5.3.0"),
        (6, "flannel-wg", "10.5.3.0"),
        (7, "docker0", "10.5.3.1"),
        (8, "cni0", "10.5.3.1"),
        (9, "br-0123456789ab", "10.5.9.1"),
    ] {
        host.links.push(link(index, name));
        host.addresses.push(address(index, net));
    }
    for asked in [matching(&[r"^10\.5\."]), inside(&["10.5.0.0/16"])] {
        let message = host.chosen(&asked, V4, None);
        assert!(message.starts_with("no interface with usable"), "{message}");
    }
}

#[test]
fn among_equal_default_routes_the_interface_is_chosen_by_name() {
    for order in [[2, 3], [3, 2]] {
        let mut host = host();
        let routes = order.map(|index| default_route(Family::V4, index, 1024));
        host.default_routes = routes.to_vec();
        assert_eq!(host.chosen(&any(), V4, None), "eth0 10.0.2.15", "{order:?}");
        // As when the drivers come up in another order.
        for link in &mut host.links {
            link.name = match link.index {
                2 => "eth1".parse().unwrap(),
                3 => "eth0".parse().unwrap(),
                _ => continue,
            };
        }
        assert_eq!(
            host.chosen(&any(), V4, None),
            "eth0 10.77.0.11",
            "{order:?}"
        );
    }
}
