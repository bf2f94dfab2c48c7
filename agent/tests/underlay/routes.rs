//! Default routes that cannot be told by asking the kernel for one route, and those that can among many.

use std::fmt::Write;
use std::time::Instant;

use super::*;

#[test]
fn only_default_routes_of_the_main_table_that_lead_somewhere_count() {
    in_namespace(|| async {
        cable();
        address("u0", "10.77.0.11/24");
        address("u1", "192.0.2.1/24");
        address("u0", "fd00:77::11/64");
        address("u1", "fd00:2::1/64");
        // Another table's, by rule or not; a blackhole; and a way for just the addresses that are asked about.
        for (family, gateway, probe) in [
            ("-4", "10.77.0.1", "240.0.0.0/4"),
            ("-6", "fd00:77::1", "4000::/3"),
        ] {
            ip(&format!(
                "{family} route add default via {gateway} table 77"
            ));
            let message = found(&any(), if family == "-4" { V4 } else { V6 }, None).await;
            assert!(message.contains("default route"), "{message}");
            ip(&format!("{family} route add {probe} via {gateway}"));
            ip(&format!("{family} route add blackhole default metric 50"));
        }
        ip("-4 route add default via 192.0.2.2 metric 100");
        ip("-6 route add default via fd00:2::2 metric 100");
        let expected = "u1 192.0.2.1 fd00:2::1";
        assert_eq!(found(&any(), DUAL, None).await, expected);
        let current = discover(&any(), DUAL, None).await.unwrap();
        for family in ["-4", "-6"] {
            ip(&format!("{family} route del blackhole default metric 50"));
            assert_eq!(found(&any(), DUAL, None).await, expected);
            ip(&format!("{family} rule add pref 10 lookup 77"));
            assert_eq!(found(&any(), DUAL, None).await, expected);
            assert_eq!(found(&any(), DUAL, Some(&current)).await, expected);
        }
        // Without what was in the way.
        ip("-4 rule del pref 10");
        ip("-6 rule del pref 10");
        ip("-4 route del 240.0.0.0/4");
        ip("-6 route del 4000::/3");
        assert_eq!(found(&any(), DUAL, None).await, expected);
        assert_eq!(found(&any(), DUAL, Some(&current)).await, expected);
        ip("-4 route del default via 192.0.2.2");
        let message = found(&any(), DUAL, Some(&current)).await;
        assert!(message.contains("no IPv4 default route"), "{message}");
    });
}

#[test]
fn among_equal_default_routes_the_order_of_their_coming_does_not_matter() {
    for order in [["u0", "u1"], ["u1", "u0"]] {
        in_namespace(move || async move {
            cable();
            address("u0", "10.77.0.11/24");
            address("u1", "192.0.2.1/24");
            address("u0", "fd00:77::11/64");
            address("u1", "fd00:2::1/64");
            for device in order {
                let (v4, v6) = match device {
                    "u0" => ("10.77.0.1", "fd00:77::1"),
                    _ => ("192.0.2.2", "fd00:2::2"),
                };
                // As networkd does for two leases of DHCP.
                ip(&format!(
                    "-4 route append default via {v4} dev {device} metric 1024"
                ));
                ip(&format!(
                    "-6 route append default via {v6} dev {device} metric 1024"
                ));
            }
            assert_eq!(found(&any(), V4, None).await, "u0 10.77.0.11", "{order:?}");
            let both = "u0 10.77.0.11 fd00:77::11";
            assert_eq!(found(&any(), DUAL, None).await, both, "{order:?}");
            // A better one counts, whatever it is called.
            ip("-4 route add default via 192.0.2.2 dev u1 metric 100");
            assert_eq!(found(&any(), V4, None).await, "u1 192.0.2.1", "{order:?}");
        });
    }
}

#[test]
fn a_large_routing_table_is_not_read_for_its_default_route() {
    in_namespace(|| async {
        cable();
        address("u1", "192.0.2.1/24");
        let mut routes = String::new();
        for number in 0..50_000_u32 {
            let [_, a, b, c] = (number * 16).to_be_bytes();
            writeln!(routes, "route add 20.{a}.{b}.{c}/28 via 192.0.2.2").unwrap();
        }
        // Beside them the default route.
        routes.push_str("route add default via 192.0.2.2\n");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), routes).unwrap();
        ip(&format!("-batch {}", file.path().display()));

        let current = discover(&any(), V4, None).await.unwrap();
        assert_eq!(place(&current), "u1 192.0.2.1");
        // The shortest of several times is what it takes; what is above that, other programs took.
        let shortest = async |current: [Option<&Underlay>; 2]| {
            let mut times = Vec::new();
            for _ in 0..5 {
                let started = Instant::now();
                for current in current {
                    assert_eq!(found(&any(), V4, current).await, "u1 192.0.2.1");
                }
                times.push(started.elapsed());
            }
            times.into_iter().min().unwrap()
        };
        let quick = shortest([None, Some(&current)]).await;
        // What takes the long way, for comparison: there is no default route that could be told quickly.
        ip("route add 240.0.0.0/4 via 192.0.2.2");
        let thorough = shortest([None, None]).await;
        eprintln!("by one route {quick:?}, by all routes {thorough:?}");
        assert!(quick * 4 < thorough, "{quick:?} against {thorough:?}");
    });
}
