//! ```text
//!   u0 10.77.0.11/24, 2001:db8:77::11/64 ── veth ── u1 192.0.2.1/24, fd00:2::1/64
//! ```

use super::*;

fn addresses() {
    cable();
    address("u0", "10.77.0.11/24");
    address("u0", "2001:db8:77::11/64");
    address("u1", "192.0.2.1/24");
    address("u1", "fd00:2::1/64");
}

#[test]
fn both_families_are_found_on_one_interface() {
    in_namespace(|| async {
        addresses();
        let underlay = discover(&named("u0"), DUAL, None).await.unwrap();
        assert_eq!(place(&underlay), "u0 10.77.0.11 2001:db8:77::11");
        let v6 = underlay.v6.unwrap();
        assert_eq!((v6.prefix_len, v6.public), (64, v6.address));
        for (asked, families, expected) in [
            (named("u1"), V6, "u1 fd00:2::1"),
            (named("fd00:2::1"), DUAL, "u1 192.0.2.1 fd00:2::1"),
            (named("192.0.2.1"), DUAL, "u1 192.0.2.1 fd00:2::1"),
            (named("2001:db8:77::11"), V6, "u0 2001:db8:77::11"),
        ] {
            assert_eq!(found(&asked, families, None).await, expected);
        }
        ip("address del fd00:2::1/64 dev u1");
        let message = found(&named("u1"), DUAL, None).await;
        let expected = "the interface u1 has no usable IPv6 address; this host has lo (";
        assert!(message.starts_with(expected), "{message}");
        ip("link set u0 mtu 1200");
        let message = found(&named("u0"), DUAL, None).await;
        assert!(
            message.contains("expected at least 1280 bytes"),
            "{message}"
        );
    });
}

#[test]
fn default_routes_of_both_families_agree_on_the_interface() {
    in_namespace(|| async {
        addresses();
        let message = found(&any(), V6, None).await;
        assert!(message.contains("no IPv6 default route"), "{message}");
        ip("route add default via 10.77.0.1 metric 100");
        ip("-6 route add default via fd00:2::2 metric 100");
        assert_eq!(found(&any(), V4, None).await, "u0 10.77.0.11");
        assert_eq!(found(&any(), V6, None).await, "u1 fd00:2::1");
        let message = found(&any(), DUAL, None).await;
        let expected = "the IPv4 default route uses u0, the IPv6 one u1, but one";
        assert!(message.starts_with(expected), "{message}");
        // Worse ways, but of both families.
        ip("route add default via 192.0.2.2 metric 200");
        assert_eq!(found(&any(), DUAL, None).await, "u1 192.0.2.1 fd00:2::1");

        let current = discover(&any(), DUAL, None).await.unwrap();
        ip("-6 route add default via 2001:db8:77::1 metric 1");
        assert_eq!(
            found(&any(), DUAL, None).await,
            "u0 10.77.0.11 2001:db8:77::11"
        );
        let kept = discover(&any(), DUAL, Some(&current)).await.unwrap();
        assert_eq!(kept, current);
        ip("-6 route del default via fd00:2::2");
        assert_eq!(
            found(&any(), DUAL, Some(&current)).await,
            "u0 10.77.0.11 2001:db8:77::11"
        );
    });
}

#[test]
fn temporary_deprecated_and_tentative_addresses_are_passed_over() {
    in_namespace(|| async {
        cable();
        sysctl("u0", "use_tempaddr", "2");
        for device in ["all", "u0"] {
            sysctl(device, "accept_dad", "0");
        }
        // From a router: the kernel adds a random address to it, which it would send from itself.
        ip(
            "address add 2001:db8:77::11/64 dev u0 mngtmpaddr nodad valid_lft 9999 preferred_lft 9999",
        );
        while list("u0").contains("tentative") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(list("u0").contains("temporary"), "{}", list("u0"));
        assert_eq!(found(&named("u0"), V6, None).await, "u0 2001:db8:77::11");

        let current = discover(&named("u0"), V6, None).await.unwrap();
        ip("address add 2001:db8:77::12/64 dev u0 nodad valid_lft 9999 preferred_lft 9999");
        ip("address change 2001:db8:77::11/64 dev u0 valid_lft 9999 preferred_lft 0");
        let moved = found(&named("u0"), V6, Some(&current)).await;
        assert_eq!(moved, "u0 2001:db8:77::12");
        // Who names it gets it all the same.
        let asked = named("2001:db8:77::11");
        assert_eq!(found(&asked, V6, None).await, "u0 2001:db8:77::11");

        sysctl("all", "accept_dad", "1");
        sysctl("u1", "dad_transmits", "50");
        ip("address add 2001:db8:1::1/64 dev u1");
        assert!(list("u1").contains("tentative"), "{}", list("u1"));
        let message = found(&named("u1"), V6, None).await;
        assert!(message.contains("no usable IPv6 address"), "{message}");
        address("u1", "2001:db8:1::2/64");
        assert_eq!(found(&named("u1"), V6, None).await, "u1 2001:db8:1::2");
    });
}

fn list(device: &str) -> String {
    let output = Command::new("ip")
        .args(["-6", "address", "show", device])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_new_address_is_taken_when_the_old_one_goes() {
    in_namespace(|| async {
        addresses();
        let current = discover(&named("u0"), DUAL, None).await.unwrap();
        address("u0", "2001:db8:78::11/64");
        let kept = discover(&named("u0"), DUAL, Some(&current)).await.unwrap();
        assert_eq!(kept, current);
        ip("address del 2001:db8:77::11/64 dev u0");
        let moved = found(&named("u0"), DUAL, Some(&current)).await;
        assert_eq!(moved, "u0 10.77.0.11 2001:db8:78::11");
    });
}
