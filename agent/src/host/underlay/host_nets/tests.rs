use std::net::IpAddr;

use super::*;
use crate::host::netlink::host::Link;

/// `eth0`, the underlay, and the other devices of a host in a site that is 10.0.0.0/8.
fn nets(addresses: &[(&str, &str)]) -> HostNets {
    let names = [
        "lo",
        "eth0",
        "eth1",
        "docker0",
        "cni0",
        "flannel.1",
        "veth9",
    ];
    let link = |(name, index)| Link {
        index,
        name: str::parse(name).unwrap(),
        mtu: 1500,
        has_neighbors: true,
    };
    let host = Host {
        links: names.into_iter().zip(1..).map(link).collect(),
        addresses: addresses
            .iter()
            .map(|(name, net)| {
                let net: IpNet = net.parse().unwrap();
                let index = names.iter().zip(1..).find(|(other, _)| *other == name);
                Address {
                    link_index: index.unwrap().1,
                    address: net.addr(),
                    prefix_len: net.prefix_len(),
                    deprecated: false,
                    permanent: true,
                    temporary: false,
                    tentative: false,
                }
            })
            .collect(),
        ..Host::default()
    };
    let underlay = Underlay {
        index: 2,
        name: "eth0".parse().unwrap(),
        mtu: 1500,
        has_neighbors: true,
        v4: None,
        v6: None,
    };
    host_nets(&host, &underlay)
}

fn usual() -> HostNets {
    nets(&[
        ("lo", "127.0.0.1/8"),
        ("lo", "10.1.1.1/32"),
        ("eth0", "10.77.0.6/24"),
        ("eth0", "fe80::6/64"),
        ("eth0", "fd77::6/64"),
        ("eth1", "10.99.0.1/16"),
        ("docker0", "10.5.34.1/24"),
        ("cni0", "10.5.35.1/24"),
        ("flannel.1", "10.5.34.0/32"),
        ("veth9", "10.5.34.1/32"),
    ])
}

#[test]
fn another_nodes_subnet_holds_none_of_the_hosts_addresses() {
    for (subnet, held) in [
        ("10.77.0.0/24", Some("10.77.0.6")),
        ("10.1.1.0/24", Some("10.1.1.1")),
        ("10.99.0.0/24", Some("10.99.0.1")),
        ("fd77::/64", Some("fd77::6")),
        // Beside it on the link, but not it.
        ("10.99.1.0/24", None),
        ("10.77.1.0/24", None),
        // A former subnet's bridge is a remnant.
        ("10.5.34.0/24", None),
        ("10.5.35.0/24", None),
    ] {
        let held: Option<IpAddr> = held.map(|text| text.parse().unwrap());
        assert_eq!(
            usual().in_subnet(&subnet.parse().unwrap()),
            held,
            "{subnet}"
        );
    }
    let avoid = usual().avoid();
    let underlay: Vec<_> = avoid.underlay.iter().map(ToString::to_string).collect();
    assert_eq!(underlay, ["10.77.0.6", "fd77::6", "fe80::6"]);
    assert!(avoid.addresses.contains(&[10, 5, 34, 1].into()));
}

#[test]
fn outside_is_the_underlay_but_for_links_on_which_nodes_have_subnets() {
    let network = "10.0.0.0/8".parse().unwrap();
    let own = "10.5.34.0/24".parse().unwrap();
    let outside = |leased: &'static str| {
        let leased: IpNet = leased.parse().unwrap();
        let nets = usual().outside(network, own, |net| net.contains(&leased));
        let texts: Vec<_> = nets.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    assert_eq!(
        outside("10.5.71.0/24"),
        "10.1.1.1/32 10.77.0.0/24 10.99.0.0/16"
    );
    assert_eq!(
        outside("10.99.7.0/24"),
        "10.1.1.1/32 10.77.0.0/24 10.99.0.1/32"
    );
    // The site is one link, and the overlay is in it.
    let wide = nets(&[("eth0", "10.77.0.6/8")]);
    assert_eq!(
        wide.outside(network, own, |_| false),
        ["10.77.0.6/32".parse().unwrap()]
    );
    let elsewhere = "10.5.0.0/16".parse().unwrap();
    assert_eq!(usual().outside(elsewhere, own, |_| false), []);
}
