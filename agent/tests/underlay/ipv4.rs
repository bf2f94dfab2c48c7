//! ```text
//!   lo 127.0.0.1        u0 10.77.0.11/24 ── veth ── u1 192.0.2.1/24
//!                       └─ default via 10.77.0.1 metric 200    └─ default via 192.0.2.2 metric 100
//! ```

use std::net::Ipv4Addr;

use selvage::plan::underlay::Attachment;

use super::*;

#[test]
fn interface_is_found_by_name_by_address_and_by_default_route() {
    in_namespace(|| async {
        let error = discover(&any(), V4, None).await.unwrap_err();
        assert!(error.is_transient());
        let message = error.to_string();
        assert!(message.contains("lo (no address)"), "{message}");

        cable();
        address("u0", "10.77.0.11/24");
        address("u1", "192.0.2.1/24");
        ip("route add default via 10.77.0.1 metric 200");
        ip("route add default via 192.0.2.2 metric 100");

        let by_name = discover(&named("u0"), V4, None).await.unwrap();
        let expected = Underlay {
            index: by_name.index,
            name: "u0".parse().unwrap(),
            has_neighbors: true,
            mtu: 1400,
            v4: Some(Attachment {
                address: Ipv4Addr::new(10, 77, 0, 11),
                prefix_len: 24,
                public: Ipv4Addr::new(10, 77, 0, 11),
            }),
            v6: None,
        };
        assert_eq!(by_name, expected);
        let by_address = discover(&named("10.77.0.11"), V4, None).await.unwrap();
        assert_eq!(by_address, expected);
        let by_route = discover(&any(), V4, None).await.unwrap();
        assert_eq!((by_route.name.as_str(), by_route.mtu), ("u1", 1500));

        stays(&by_route).await;

        let message = found(&named("u7"), V4, None).await;
        assert!(message.contains("u0 (10.77.0.11/24)"), "{message}");
        let message = found(&named("lo"), V4, None).await;
        assert!(message.contains("no usable IPv4 address"), "{message}");
    });
}

/// What may happen beside a running overlay on `u1`, and what makes it move.
async fn stays(current: &Underlay) {
    // As if from DHCP, so that a permanent service address comes first. So does a route of a lower metric.
    ip("address change 192.0.2.1/24 dev u1 valid_lft 1000 preferred_lft 1000");
    address("u1", "192.0.2.100/32");
    ip("route add default via 10.77.0.1 metric 10");
    assert_eq!(found(&named("u1"), V4, None).await, "u1 192.0.2.100");
    assert_eq!(found(&any(), V4, None).await, "u0 10.77.0.11");
    for asked in [any(), named("u1"), matching("^192"), inside("192.0.2.0/24")] {
        let kept = discover(&asked, V4, Some(current)).await.unwrap();
        assert_eq!(kept, *current);
    }
    ip("link set u1 mtu 1450");
    let kept = discover(&any(), V4, Some(current)).await.unwrap();
    assert_eq!((place(&kept), kept.mtu), (place(current), 1450));

    // One of two ways out is enough, whichever it is.
    ip("route del default metric 100");
    ip("route add default metric 100 nexthop via 10.77.0.1 nexthop via 192.0.2.2");
    assert_eq!(found(&any(), V4, Some(current)).await, "u1 192.0.2.1");
    ip("route del default metric 100");
    assert_eq!(found(&any(), V4, Some(current)).await, "u0 10.77.0.11");

    ip("address del 192.0.2.1/24 dev u1");
    let moved = found(&named("u1"), V4, Some(current)).await;
    assert_eq!(moved, "u1 192.0.2.100");
}
