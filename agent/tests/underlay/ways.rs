//! Choices by pattern, by an address to reach, and by network, on a host with three NICs:
//!
//! ```text
//!   u0 10.77.0.11/24, 2001:db8:77::11/64        n0 198.51.100.1/24; docker0 10.5.3.1/24, an address of the overlay
//!   u1 192.0.2.1/24, fd00:2::1/64               └─ n1 without addresses
//! ```

use super::*;

fn addresses() {
    cable();
    ip("link add n0 type veth peer name n1");
    ip("link set n0 up");
    ip("link add docker0 type bridge");
    ip("link set docker0 up");
    ip("link set n1 up");
    for (device, address) in [
        ("u0", "10.77.0.11/24"),
        ("u0", "2001:db8:77::11/64"),
        ("u1", "192.0.2.1/24"),
        ("u1", "fd00:2::1/64"),
        ("docker0", "10.5.3.1/24"),
        ("n0", "198.51.100.1/24"),
    ] {
        super::address(device, address);
    }
}

#[test]
fn patterns_match_addresses_and_names() {
    in_namespace(|| async {
        addresses();
        for (pattern, families, expected) in [
            (r"^192\.0\.2\.", V4, "u1 192.0.2.1"),
            ("^fd00:2:", V6, "u1 fd00:2::1"),
            ("^192|^fd00", DUAL, "u1 192.0.2.1 fd00:2::1"),
            ("^n[0-9]", V4, "n0 198.51.100.1"),
            // Not the overlay's own address, which this host has as well.
            (r"^10\.", V4, "u0 10.77.0.11"),
            ("^u1$", DUAL, "u1 192.0.2.1 fd00:2::1"),
        ] {
            assert_eq!(found(&matching(pattern), families, None).await, expected);
        }
        for pattern in ["^n0", "^10.5.3.1$", "^lo"] {
            let message = found(&matching(pattern), DUAL, None).await;
            let expected = "no interface with usable IPv4 and IPv6 addresses has an address or";
            assert!(message.starts_with(expected), "{message}");
        }
    });
}

#[test]
fn the_kernel_is_asked_for_the_way_to_an_address() {
    in_namespace(|| async {
        addresses();
        address("u0", "10.77.0.99/24");
        ip("route add 203.0.113.0/24 via 192.0.2.2");
        ip("route add 203.0.113.128/25 via 10.77.0.1 src 10.77.0.99");
        ip("-6 route add 2001:db8:f::/48 via fd00:2::2");
        for (address, families, expected) in [
            ("203.0.113.5", V4, "u1 192.0.2.1"),
            ("203.0.113.200", V4, "u0 10.77.0.99"),
            ("203.0.113.200", DUAL, "u0 10.77.0.99 2001:db8:77::11"),
            ("2001:db8:f::1", DUAL, "u1 192.0.2.1 fd00:2::1"),
            ("2001:db8:f::1", V4, "u1 192.0.2.1"),
            ("10.77.0.1", V4, "u0 10.77.0.11"),
            // An address of this host: not over lo, as the kernel would have it.
            ("192.0.2.1", V4, "u1 192.0.2.1"),
            ("fd00:2::1", DUAL, "u1 192.0.2.1 fd00:2::1"),
        ] {
            assert_eq!(
                found(&reaching(address), families, None).await,
                expected,
                "{address}"
            );
        }
        let message = found(&reaching("8.8.8.8"), V4, None).await;
        let expected = "no route to 8.8.8.8: ENETUNREACH: Network is unreachable; this host has";
        assert!(message.starts_with(expected), "{message}");

        let asked = reaching("203.0.113.5");
        let current = discover(&asked, V4, None).await.unwrap();
        // Another source address on the same interface is no reason to move; another interface is.
        ip("route change 203.0.113.0/24 via 192.0.2.3");
        address("u1", "192.0.2.9/24");
        assert_eq!(found(&asked, V4, Some(&current)).await, "u1 192.0.2.1");
        ip("route change 203.0.113.0/24 via 10.77.0.1");
        assert_eq!(found(&asked, V4, Some(&current)).await, "u0 10.77.0.11");
    });
}

#[test]
fn networks_name_the_interface() {
    in_namespace(|| async {
        addresses();
        for (network, families, expected) in [
            ("198.51.100.0/24", V4, "n0 198.51.100.1"),
            ("10.0.0.0/8", V4, "u0 10.77.0.11"),
            ("fd00::/8", DUAL, "u1 192.0.2.1 fd00:2::1"),
        ] {
            assert_eq!(found(&inside(network), families, None).await, expected);
        }
        let message = found(&inside("198.51.100.0/24"), DUAL, None).await;
        let expected = "no interface with usable IPv4 and IPv6 addresses has an address in";
        assert!(message.starts_with(expected), "{message}");
    });
}

#[test]
fn public_addresses_need_not_be_the_hosts_own() {
    in_namespace(|| async {
        addresses();
        ip("route add default via 10.77.0.1");
        ip("-6 route add default via 2001:db8:77::1");
        let mut asked = Wanted {
            public_ip: "203.0.113.5".parse().ok(),
            public_ipv6: "2001:db8:f::5".parse().ok(),
            ..any()
        };
        let underlay = discover(&asked, DUAL, None).await.unwrap();
        assert_eq!(place(&underlay), "u0 10.77.0.11 2001:db8:77::11");
        assert_eq!(underlay.to_string(), "203.0.113.5 and 2001:db8:f::5");
        // But where it is, it says which interface is meant.
        asked.public_ip = "192.0.2.1".parse().ok();
        assert_eq!(found(&asked, DUAL, None).await, "u1 192.0.2.1 fd00:2::1");
    });
}
