use super::*;

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.parse().unwrap(),
        mtu: 1500,
    }
}

fn address(link_index: u32, address: &str) -> Address {
    Address {
        link_index,
        address: address.parse().unwrap(),
        prefix_len: 24,
        deprecated: false,
        permanent: true,
    }
}

/// lo, a provider's NIC with the default route, and a NIC between the nodes.
fn host() -> Host {
    Host {
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")],
        addresses: vec![
            Address {
                prefix_len: 8,
                ..address(1, "127.0.0.1")
            },
            address(2, "169.254.7.7"),
            Address {
                permanent: false,
                ..address(2, "10.0.2.15")
            },
            Address {
                deprecated: true,
                ..address(2, "10.0.2.14")
            },
            address(3, "10.77.0.11"),
        ],
        default_routes: vec![
            DefaultRoute {
                link_index: 3,
                metric: 200,
            },
            DefaultRoute {
                link_index: 2,
                metric: 100,
            },
        ],
    }
}

fn wanted(interface: &str) -> settings::Underlay {
    settings::Underlay {
        interfaces: vec![match interface.parse() {
            Ok(address) => Interface::Address(address),
            Err(_) => Interface::Name(interface.parse().unwrap()),
        }],
        ..ANY
    }
}

const ANY: settings::Underlay = settings::Underlay {
    interfaces: Vec::new(),
    interface_regex: Vec::new(),
    can_reach: None,
    interface_cidr: Vec::new(),
    public_ip: None,
    public_ipv6: None,
};

#[test]
fn nothing_asked_for_means_the_default_route_of_the_lowest_metric() {
    let underlay = host().choose(&ANY, None).unwrap();
    assert_eq!(underlay.name.as_str(), "eth0");
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(10, 0, 2, 15));
    assert_eq!(underlay.v4.unwrap().public, underlay.v4.unwrap().address);
}

#[test]
fn permanent_address_comes_before_a_dynamic_one() {
    let mut host = host();
    host.addresses.push(address(2, "10.0.2.16"));
    let underlay = host.choose(&wanted("eth0"), None).unwrap();
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(10, 0, 2, 16));
}

#[test]
fn link_local_address_is_the_last_resort() {
    let mut host = host();
    host.addresses
        .retain(|address| address.address.octets()[0] != 10);
    let underlay = host.choose(&wanted("eth0"), None).unwrap();
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(169, 254, 7, 7));
}

#[test]
fn address_chooses_its_interface_even_if_deprecated() {
    let underlay = host().choose(&wanted("10.77.0.11"), None).unwrap();
    assert_eq!(
        (
            underlay.index,
            underlay.mtu,
            underlay.v4.unwrap().prefix_len
        ),
        (3, 1500, 24)
    );
    let underlay = host().choose(&wanted("10.0.2.14"), None).unwrap();
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(10, 0, 2, 14));
}

#[test]
fn public_address_changes_neither_interface_nor_source() {
    let public_ip = Some(Ipv4Addr::new(203, 0, 113, 5));
    let underlay = host()
        .choose(&settings::Underlay { public_ip, ..ANY }, None)
        .unwrap();
    assert_eq!(underlay.name.as_str(), "eth0");
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(10, 0, 2, 15));
    assert_eq!(Some(underlay.v4.unwrap().public), public_ip);
}

#[test]
fn failures_say_what_there_is() {
    let inventory =
        "lo (127.0.0.1/8), eth0 (169.254.7.7/24 10.0.2.15/24 10.0.2.14/24), eth1 (10.77.0.11/24)";
    let error = host().choose(&wanted("eth7"), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no interface is called \"eth7\"; there are {inventory}")
    );
    assert!(error.is_transient());
    let error = host()
        .choose(&wanted("10.1.1.1"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("address 10.1.1.1; there are lo"), "{error}");
    let error = host().choose(&wanted("lo"), None).unwrap_err().to_string();
    assert!(
        error.starts_with("the interface lo has no usable IPv4"),
        "{error}"
    );

    let mut host = host();
    host.default_routes.clear();
    let error = host.choose(&ANY, None).unwrap_err().to_string();
    assert!(error.contains("underlay.interfaces is not set"), "{error}");
    host.links[1].mtu = 0;
    let error = host.choose(&wanted("eth0"), None).unwrap_err().to_string();
    assert!(error.contains("MTU of 0"), "{error}");
    let error = Host::default().choose(&ANY, None).unwrap_err().to_string();
    assert!(error.ends_with("there are no interfaces"), "{error}");
}

#[test]
fn running_overlay_stays_where_it_is() {
    for asked in [ANY, wanted("eth0"), wanted("10.0.2.15")] {
        let mut host = host();
        let current = host.choose(&asked, None).unwrap();
        // A service address, which is permanent beside one from DHCP, and a better way out.
        host.addresses.insert(0, address(2, "10.0.2.100"));
        host.default_routes.push(DefaultRoute {
            link_index: 3,
            metric: 1,
        });
        assert_eq!(host.choose(&asked, Some(&current)).unwrap(), current);

        host.links[1].mtu = 1400;
        host.addresses[3].prefix_len = 16;
        let expected = Underlay {
            mtu: 1400,
            v4: Some(Attachment {
                prefix_len: 16,
                ..current.v4.unwrap()
            }),
            ..current.clone()
        };
        assert_eq!(host.choose(&asked, Some(&current)).unwrap(), expected);
    }
}

/// Something that happens to a host.
type Event = fn(&mut Host);

#[test]
fn running_overlay_moves_when_it_must() {
    let cases: [(&str, Event, &str); 6] = [
        (
            "the address went away",
            |host| host.addresses.retain(|a| a.address.octets()[3] != 15),
            "eth0 10.0.2.100",
        ),
        (
            "the address is deprecated",
            |host| host.addresses[2].deprecated = true,
            "eth0 10.0.2.100",
        ),
        (
            "the interface has no default route any more",
            |host| host.default_routes.retain(|r| r.link_index != 2),
            "eth1 10.77.0.11",
        ),
        (
            "another interface has the name",
            |host| {
                host.links[1].index = 7;
                host.addresses.push(address(7, "10.0.2.15"));
                host.addresses.insert(0, address(7, "10.0.2.101"));
                host.default_routes[1].link_index = 7;
            },
            "eth0 10.0.2.101",
        ),
        (
            "the interface has another name",
            |host| host.links[1].name = "wan".parse().unwrap(),
            "wan 10.0.2.100",
        ),
        (
            "the address went to another interface",
            |host| host.addresses[2].link_index = 3,
            "eth0 10.0.2.100",
        ),
    ];
    for (event, happen, expected) in cases {
        let mut host = host();
        let current = host.choose(&ANY, None).unwrap();
        host.addresses.push(address(2, "10.0.2.100"));
        happen(&mut host);
        let underlay = host.choose(&ANY, Some(&current)).unwrap();
        let found = format!("{} {}", underlay.name, underlay.v4.unwrap().address);
        assert_eq!(found, expected, "{event}");
    }
}

#[test]
fn link_local_address_is_given_up_for_a_better_one() {
    let mut host = host();
    host.addresses[2].link_index = 9;
    let current = host.choose(&ANY, None).unwrap();
    assert!(current.v4.unwrap().address.is_link_local());
    assert_eq!(host.choose(&ANY, Some(&current)).unwrap(), current);
    host.addresses[2].link_index = 2;
    let underlay = host.choose(&ANY, Some(&current)).unwrap();
    assert_eq!(underlay.v4.unwrap().address, Ipv4Addr::new(10, 0, 2, 15));
    // Whoever asks for it by name gets it.
    let asked = wanted("169.254.7.7");
    assert_eq!(host.choose(&asked, Some(&current)).unwrap(), current);
}
