//! What makes a running overlay move, and what does not.

use super::*;

#[test]
fn running_overlay_stays_where_it_is() {
    let mut by_reach = host();
    let reach = reaching(&mut by_reach, 2, "10.0.2.15");
    for asked in [
        any(),
        wanted(&["eth0"]),
        wanted(&["10.0.2.15", "2001:db8:2::15"]),
        matching(&["^eth"]),
        matching(&[r"^10\.0\."]),
        inside(&["10.0.2.0/24", "2001:db8::/32"]),
        reach,
    ] {
        let mut host = host();
        host.way = by_reach.way.clone();
        let current = host.choose(&asked, DUAL, None).unwrap();
        assert_eq!(
            place(&current),
            "eth0 10.0.2.15 2001:db8:2::15",
            "{asked:?}"
        );
        // Service addresses, which are permanent beside those from DHCP, and a better way out.
        host.addresses.insert(0, address(2, "10.0.2.100"));
        host.addresses.insert(0, address(2, "2001:db8:2::100"));
        for family in [Family::V4, Family::V6] {
            host.default_routes.push(default_route(family, 3, 1));
        }
        if let Some(Ok(way)) = &mut host.way {
            way.source = "10.0.2.100".parse().ok();
        }
        let found = host.choose(&asked, DUAL, Some(&current)).unwrap();
        assert_eq!(found, current, "{asked:?}");

        host.links[1].mtu = 1400;
        host.address("10.0.2.15").prefix_len = 16;
        host.address("2001:db8:2::15").prefix_len = 128;
        let expected = Underlay {
            mtu: 1400,
            v4: current.v4.map(|v4| Attachment {
                prefix_len: 16,
                ..v4
            }),
            v6: current.v6.map(|v6| Attachment {
                prefix_len: 128,
                ..v6
            }),
            ..current.clone()
        };
        let found = host.choose(&asked, DUAL, Some(&current)).unwrap();
        assert_eq!(found, expected, "{asked:?}");
    }
}

/// Something that happens to a host.
type Event = fn(&mut Host);

#[test]
fn running_overlay_moves_when_it_must() {
    let cases: [(&str, Event, &str); 9] = [
        (
            "the IPv4 address went away",
            |host| host.has_not("10.0.2.15"),
            "eth0 10.0.2.100 2001:db8:2::15",
        ),
        (
            "the IPv6 address went away",
            |host| host.has_not("2001:db8:2::15"),
            "eth0 10.0.2.15 2001:db8:2::100",
        ),
        (
            "the address is deprecated",
            |host| host.address("10.0.2.15").deprecated = true,
            "eth0 10.0.2.100 2001:db8:2::15",
        ),
        (
            "the interface has no IPv4 default route any more",
            |host| {
                host.default_routes
                    .retain(|r| (r.family, r.link_index) != (Family::V4, 2));
            },
            "eth1 10.77.0.11 fd00:77::11",
        ),
        (
            "the interface has no IPv6 default route any more",
            |host| {
                host.default_routes
                    .retain(|r| (r.family, r.link_index) != (Family::V6, 2));
            },
            "eth1 10.77.0.11 fd00:77::11",
        ),
        (
            "another interface has the name",
            |host| {
                host.links[1].index = 7;
                host.addresses.push(address(7, "10.0.2.15"));
                host.addresses.insert(0, address(7, "10.0.2.101"));
                host.addresses.push(address(7, "2001:db8:2::101"));
                host.addresses.push(address(7, "2001:db8:2::15"));
                for route in &mut host.default_routes {
                    route.link_index = 7;
                }
            },
            "eth0 10.0.2.101 2001:db8:2::101",
        ),
        (
            "the interface has another name",
            |host| host.links[1].name = "wan".parse().unwrap(),
            "wan 10.0.2.100 2001:db8:2::100",
        ),
        (
            "the address went to another interface",
            |host| host.address("10.0.2.15").link_index = 3,
            "eth0 10.0.2.100 2001:db8:2::15",
        ),
        (
            "the MTU is too small for IPv6",
            |host| host.links[1].mtu = 1000,
            "the interface eth0 has an MTU of 1000: expected at least 1280 bytes; this host has",
        ),
    ];
    for (event, happen, expected) in cases {
        let mut host = host();
        let current = host.choose(&any(), DUAL, None).unwrap();
        host.addresses.push(address(2, "10.0.2.100"));
        // Better than the address in use, but no reason to move.
        host.addresses.push(address(2, "2001:db8:2::100"));
        happen(&mut host);
        let found = host.chosen(&any(), DUAL, Some(&current));
        assert!(found.starts_with(expected), "{event}: {found}");
    }
}

#[test]
fn running_overlay_moves_when_its_interface_is_not_what_is_asked_for_any_more() {
    let mut host = host();
    let asked = reaching(&mut host, 2, "");
    let current = host.choose(&asked, V4, None).unwrap();
    reaching(&mut host, 3, "");
    assert_eq!(host.chosen(&asked, V4, Some(&current)), "eth1 10.77.0.11");

    for asked in [
        matching(&["^10.0.2.15$", "eth1"]),
        inside(&["10.0.2.15/32", "10.77.0.0/24"]),
        wanted(&["10.0.2.15", "eth1"]),
    ] {
        let mut host = self::host();
        let current = host.choose(&asked, V4, None).unwrap();
        assert_eq!(place(&current), "eth0 10.0.2.15");
        host.has_not("10.0.2.15");
        host.addresses.push(address(2, "10.0.2.16"));
        let found = host.chosen(&asked, V4, Some(&current));
        assert_eq!(found, "eth1 10.77.0.11", "{asked:?}");
    }
}

#[test]
fn an_interface_that_comes_late_is_left_alone() {
    let mut host = host();
    let asked = wanted(&["eth9", "eth1"]);
    let current = host.choose(&asked, V4, None).unwrap();
    host.links.push(link(9, "eth9"));
    host.addresses.push(address(9, "10.99.0.1"));
    let found = host.choose(&asked, V4, Some(&current)).unwrap();
    assert_eq!(found, current);
    assert_eq!(host.chosen(&asked, V4, None), "eth9 10.99.0.1");
}

#[test]
fn an_address_that_is_named_and_comes_late_is_moved_to() {
    let named = wanted(&["10.77.0.11", "fd00:77::12"]);
    let mut network = wanted(&["eth1"]);
    network.interface_cidr = vec!["fd00:77::12/128".parse().unwrap()];
    let public = settings::Underlay {
        public_ipv6: "fd00:77::12".parse().ok(),
        ..wanted(&["eth1"])
    };
    for asked in [named, network, public] {
        let mut host = host();
        let current = host.choose(&asked, DUAL, None).unwrap();
        assert_eq!(place(&current), "eth1 10.77.0.11 fd00:77::11");
        host.addresses.push(address(3, "fd00:77::12"));
        let found = host.chosen(&asked, DUAL, Some(&current));
        assert_eq!(found, "eth1 10.77.0.11 fd00:77::12", "{asked:?}");
    }
}

#[test]
fn link_local_address_is_given_up_for_a_better_one() {
    let mut host = host();
    host.address("10.0.2.15").link_index = 9;
    let current = host.choose(&any(), V4, None).unwrap();
    assert!(current.v4.unwrap().address.is_link_local());
    assert_eq!(host.choose(&any(), V4, Some(&current)).unwrap(), current);
    host.address("10.0.2.15").link_index = 2;
    assert_eq!(host.chosen(&any(), V4, Some(&current)), "eth0 10.0.2.15");
    // If it is named, it is used.
    let asked = wanted(&["169.254.7.7"]);
    assert_eq!(host.choose(&asked, V4, Some(&current)).unwrap(), current);
}

#[test]
fn another_family_is_added_where_the_overlay_is() {
    let host = host();
    let current = host.choose(&wanted(&["eth1"]), V4, None).unwrap();
    let asked = wanted(&["eth0", "eth1"]);
    let found = host.chosen(&asked, DUAL, Some(&current));
    assert_eq!(found, "eth1 10.77.0.11 fd00:77::11");
    assert_eq!(
        host.chosen(&asked, DUAL, None),
        "eth0 10.0.2.15 2001:db8:2::15"
    );
}
