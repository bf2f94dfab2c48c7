//! Documents that others wrote, and the files that networkd gets of them.

use super::super::*;

/// The files of a document, each section on a line of its own, without empty ones.
fn files(form: Form, document: &str) -> Result<Vec<String>, Problem> {
    let network = parse(form, document.as_bytes())?;
    let files = network.files("a test").into_iter();
    Ok(files.map(|(_, text)| squeezed(&text)).collect())
}

fn squeezed(text: &str) -> String {
    let text = text.strip_prefix("# From a test.\n\n[").unwrap();
    let sections = text.split("\n[").filter_map(|section| {
        let (name, lines) = section.split_once("]\n").unwrap();
        let lines = lines.trim();
        let lines = lines.replace('\n', " ");
        (!lines.is_empty()).then(|| format!("{name}: {lines}"))
    });
    sections.collect::<Vec<_>>().join("\n")
}

fn left_out(form: Form, document: &str) -> Vec<String> {
    let network = parse(form, document.as_bytes()).unwrap();
    network.left_out.iter().map(ToString::to_string).collect()
}

#[test]
fn netplan_examples() {
    for (document, expected) in [
        // examples/static.yaml
        (
            "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    enp3s0:\n      addresses:\n        \
             - 10.10.10.2/24\n      gateway4: 10.10.10.1\n      nameservers:\n        search: [mydomain, \
             otherdomain]\n        addresses: [10.10.10.1, 1.1.1.1]\n",
            "Match: Name=enp3s0 Type=ether Kind=!*\n\
             Network: DHCP=no Address=10.10.10.2/24 DNS=10.10.10.1 DNS=1.1.1.1 Domains=mydomain otherdomain\n\
             Route: Destination=0.0.0.0/0 Gateway=10.10.10.1",
        ),
        // examples/direct_connect_gateway.yaml
        (
            "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    eth0:\n      addresses: [ \
             \"10.10.10.1/24\" ]\n      routes:\n        - to: 0.0.0.0/0\n          via: 9.9.9.9\n          \
             on-link: true\n",
            "Match: Name=eth0 Type=ether Kind=!*\n\
             Network: DHCP=no Address=10.10.10.1/24\n\
             Route: Destination=0.0.0.0/0 Gateway=9.9.9.9 GatewayOnLink=yes",
        ),
        // examples/static_singlenic_multiip_multigateway.yaml
        (
            "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n    eno1:\n      addresses:\n      - \
             10.0.0.10/24\n      - 11.0.0.11/24\n      nameservers:\n        addresses:\n          - 8.8.8.8\n          \
             - 8.8.4.4\n      routes:\n      - to: 0.0.0.0/0\n        via: 10.0.0.1\n        metric: 100\n      - to: \
             0.0.0.0/0\n        via: 11.0.0.1\n        metric: 200\n",
            "Match: Name=eno1 Type=ether Kind=!*\n\
             Network: DHCP=no Address=10.0.0.10/24 Address=11.0.0.11/24 DNS=8.8.8.8 DNS=8.8.4.4\n\
             Route: Destination=0.0.0.0/0 Gateway=10.0.0.1 Metric=100\n\
             Route: Destination=0.0.0.0/0 Gateway=11.0.0.1 Metric=200",
        ),
    ] {
        assert_eq!(files(Form::NetworkConfig, document).unwrap(), [expected]);
    }
}

/// cloud-init's "Networking config Version 2": the complex example, up to its bonds.
const COMPLEX: &str = "\
network:
  version: 2
  ethernets:
    id0:
      match:
        macaddress: '00:11:22:33:44:55'
      wakeonlan: true
      dhcp4: true
      addresses:
        - 192.168.14.2/24
        - 2001:1::1/64
      gateway4: 192.168.14.1
      gateway6: 2001:1::2
      nameservers:
        search: [foo.local, bar.local]
        addresses: [8.8.8.8]
      routes:
        - to: 192.0.2.0/24
          via: 11.0.0.1
          metric: 3
    lom:
      match:
        driver: ixgbe
      set-name: lom1
      dhcp6: true
";

#[test]
fn cloud_inits_complex_example() {
    let expected = [
        "Match: MACAddress=00:11:22:33:44:55 Type=ether Kind=!*\n\
         Network: DHCP=ipv4 KeepConfiguration=dynamic Address=192.168.14.2/24 Address=2001:1::1/64 DNS=8.8.8.8 \
         Domains=foo.local bar.local\n\
         Route: Destination=0.0.0.0/0 Gateway=192.168.14.1\n\
         Route: Destination=::/0 Gateway=2001:1::2\n\
         Route: Destination=192.0.2.0/24 Gateway=11.0.0.1 Metric=3\n\
         DHCPv4: UseDomains=yes",
        "Match: Driver=ixgbe Type=ether Kind=!*\n\
         Network: DHCP=ipv6 KeepConfiguration=dynamic",
    ];
    assert_eq!(files(Form::NetworkConfig, COMPLEX).unwrap(), expected);
    assert_eq!(left_out(Form::NetworkConfig, COMPLEX), [""; 0]);
    // Its next lines.
    for (more, expected) in [
        (
            "  bonds:\n    bond0:\n      interfaces: [switchports]\n",
            "network.bonds.bond0 is a bond: only cards",
        ),
        (
            "  vlans:\n    en-intra:\n      id: 1\n      link: id0\n      dhcp4: yes\n",
            "network.vlans.en-intra is a VLAN: only cards",
        ),
        (
            "  bridges:\n    br0:\n      interfaces: [wlp1s0, switchports]\n      dhcp4: true\n",
            "network.bridges.br0 is a bridge: only cards",
        ),
    ] {
        let error = files(Form::NetworkConfig, &format!("{COMPLEX}{more}")).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}

#[test]
fn cloud_inits_overrides() {
    // "dhcp4-overrides and dhcp6-overrides", with a card around it.
    let document = "\
version: 2
ethernets:
  eno1:
    dhcp4: yes
    dhcp4-overrides:
      hostname: hal
      route-metric: 1100
      send-hostname: false
      use-dns: false
      use-domains: false
      use-hostname: false
      use-mtu: false
      use-ntp: false
      use-routes: false
";
    assert_eq!(
        files(Form::NetworkConfig, document).unwrap(),
        ["Match: Name=eno1 Type=ether Kind=!*\n\
             Network: DHCP=ipv4 KeepConfiguration=dynamic\n\
             DHCPv4: UseDNS=no UseDomains=no UseRoutes=no RouteMetric=1100"]
    );
}

#[test]
fn netplans_guide_to_matching_by_mac_address() {
    // "How to match the interface by MAC address" of netplan's documentation.
    let document = "\
network:
  version: 2
  ethernets:
    netplan-isp-interface:
      match:
        macaddress: 00:16:3e:0c:97:8a
      set-name: netplan-isp
      dhcp4: false
      dhcp6: false
      accept-ra: false
      link-local: []
      addresses:
        - 172.16.0.1/24
      routes:
        - to: default
          via: 172.16.0.254
      nameservers:
        search:
          - netplanlab.local
        addresses:
          - 172.16.0.254
          - 172.16.0.253
";
    let expected = "Match: MACAddress=00:16:3e:0c:97:8a Type=ether Kind=!*\n\
                    Network: DHCP=no IPv6AcceptRA=no LinkLocalAddressing=no Address=172.16.0.1/24 DNS=172.16.0.254 \
                    DNS=172.16.0.253 Domains=netplanlab.local\n\
                    Route: Destination=0.0.0.0/0 Gateway=172.16.0.254";
    assert_eq!(files(Form::NetworkConfig, document).unwrap(), [expected]);
    assert_eq!(left_out(Form::NetworkConfig, document), [""; 0]);
    for (families, value) in [
        ("[ipv4]", "ipv4"),
        ("[ ipv6 ]", "ipv6"),
        ("[ipv4, ipv6]", "yes"),
    ] {
        let document = document.replace("link-local: []", &format!("link-local: {families}"));
        let expected = expected.replace("Addressing=no", &format!("Addressing={value}"));
        assert_eq!(files(Form::NetworkConfig, &document).unwrap(), [expected]);
    }
}

#[test]
fn a_card_that_gets_another_ethernet_address_is_known_by_its_own() {
    // Our own: the reference has no whole example of `macaddress`.
    let document = "\
network:
  version: 2
  ethernets:
    id0:
      match:
        macaddress: 00:11:22:33:44:55
      macaddress: 52:54:00:6b:3c:59
      optional: true
      dhcp4: true
";
    assert_eq!(
        files(Form::NetworkConfig, document).unwrap(),
        [
            "Match: PermanentMACAddress=00:11:22:33:44:55 Type=ether Kind=!*\n\
             Link: MACAddress=52:54:00:6b:3c:59 RequiredForOnline=no\n\
             Network: DHCP=ipv4 KeepConfiguration=dynamic\n\
             DHCPv4: UseDomains=yes"
        ]
    );
}

#[test]
fn vmwares_walkthrough() {
    // cloud-init's documentation of its datasource VMware: the key `network` of meta-data.yaml.
    let document =
        "version: 2\nethernets:\n  nics:\n    match:\n      name: ens*\n    dhcp4: yes\n";
    assert_eq!(
        files(Form::NetworkConfig, document).unwrap(),
        ["Match: Name=ens* Type=ether Kind=!*\n\
             Network: DHCP=ipv4 KeepConfiguration=dynamic\n\
             DHCPv4: UseDomains=yes"]
    );
}

/// doc/examples/network-config-v1-*.yaml of cloud-init, from `subnets` on.
fn version_1(rest: &str) -> String {
    format!(
        "network:\n  version: 1\n  config:\n    - type: physical\n      name: interface0\n      mac_address: \
         '00:11:22:33:44:55'\n{rest}"
    )
}

const CARD: &str = "Match: MACAddress=00:11:22:33:44:55 Type=ether Kind=!*\n";

#[test]
fn cloud_inits_examples_of_version_1() {
    for (rest, expected) in [
        // nameserver
        (
            "      subnets:\n         - type: static\n           address: 192.168.23.14/27\n           gateway: \
             192.168.23.1\n    - type: nameserver\n      interface: interface0  # Ties nameserver to interface0 only\n      \
             address:\n        - 192.168.23.2\n        - 8.8.8.8\n      search:\n        - exemplary\n",
            "Network: DHCP=no Address=192.168.23.14/27 DNS=192.168.23.2 DNS=8.8.8.8 Domains=exemplary\n\
             Route: Destination=0.0.0.0/0 Gateway=192.168.23.1",
        ),
        // subnet-routes
        (
            "      subnets:\n        - type: dhcp\n          metric: 200\n        - type: static\n          metric: 100\n          \
             address: 10.184.225.122\n          netmask: 255.255.255.252\n          routes:\n            - gateway: \
             10.184.225.121\n              netmask: 255.240.0.0\n              destination: 10.176.0.0\n            - \
             gateway: 10.184.225.121\n              netmask: 255.240.0.0\n              destination: 10.208.0.0\n",
            "Network: DHCP=ipv4 KeepConfiguration=dynamic Address=10.184.225.122/30\n\
             Route: Destination=10.176.0.0/12 Gateway=10.184.225.121 Metric=100\n\
             Route: Destination=10.208.0.0/12 Gateway=10.184.225.121 Metric=100\n\
             DHCPv4: UseDomains=yes RouteMetric=200",
        ),
        // subnet-multiple
        (
            "      subnets:\n        - type: dhcp\n        - type: static\n          address: 192.168.23.14/27\n          \
             gateway: 192.168.23.1\n          dns_nameservers:\n            - 192.168.23.2\n            - 8.8.8.8\n          \
             dns_search:\n            - exemplary\n",
            "Network: DHCP=ipv4 KeepConfiguration=dynamic Address=192.168.23.14/27 DNS=192.168.23.2 DNS=8.8.8.8 \
             Domains=exemplary\n\
             Route: Destination=0.0.0.0/0 Gateway=192.168.23.1\n\
             DHCPv4: UseDomains=yes",
        ),
    ] {
        let document = version_1(rest);
        let expected = format!("{CARD}{expected}");
        assert_eq!(files(Form::NetworkConfig, &document).unwrap(), [expected]);
    }
}

#[test]
fn a_route_whose_gateway_no_card_reaches_is_left_out() {
    // network-config-v1-route.yaml, whose gateway is in another network than its card.
    let route = version_1(
        "      subnets:\n         - type: static\n           address: 192.168.23.14/24\n           gateway: \
         192.168.23.1\n    - type: route\n      destination: 192.168.24.0/24\n      gateway: 192.168.24.1\n      metric: 3\n",
    );
    let card = "Network: DHCP=no Address=192.168.23.14/24\nRoute: Destination=0.0.0.0/0 Gateway=192.168.23.1";
    let expected = format!("{CARD}{card}");
    assert_eq!(files(Form::NetworkConfig, &route).unwrap(), [&*expected]);
    assert_eq!(
        left_out(Form::NetworkConfig, &route),
        ["network.config.1: no card has an address in the network of this route's gateway"]
    );
    let near = route.replace("gateway: 192.168.24.1", "gateway: 192.168.23.7");
    assert_eq!(
        files(Form::NetworkConfig, &near).unwrap(),
        [format!(
            "{expected}\nRoute: Destination=192.168.24.0/24 Gateway=192.168.23.7 Metric=3"
        )]
    );
}

#[test]
fn cards_without_purpose_are_left_out_and_bonds_refused() {
    // physical-3-nic, without its second pair.
    let cards = version_1(
        "    # Second nic with Jumbo frames\n    - type: physical\n      name: jumbo0\n      mac_address: \
         'aa:11:22:33:44:55'\n      mtu: 9000\n",
    );
    assert_eq!(files(Form::NetworkConfig, &cards).unwrap(), [""; 0]);
    assert_eq!(left_out(Form::NetworkConfig, &cards).len(), 2);
    // bonded-pair.
    let bond = version_1(
        "    - type: physical\n      name: gbe0\n      mac_address: 'cd:11:22:33:44:00'\n    - type: bond\n      name: \
         bond0\n      bond_interfaces:\n       - gbe0\n       - gbe1\n      params:\n       bond-mode: active-backup\n",
    );
    let error = files(Form::NetworkConfig, &bond).unwrap_err().to_string();
    assert!(
        error.starts_with("network.config.2 is a bond: only cards"),
        "{error}"
    );
}

#[test]
fn proxmox_ve() {
    for (document, expected) in [
        // What `nocloud_network` of its Cloudinit.pm prints for `ipconfig0: ip=10.0.0.5/24,gw=10.0.0.1,ip6=2001:db8::5/64,
        // gw6=fe80::1`, with a host that has a search domain.
        (
            "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: 'bc:24:11:2e:aa:01'\n      \
             subnets:\n      - type: static\n        address: '10.0.0.5'\n        netmask: '255.255.255.0'\n        gateway: \
             '10.0.0.1'\n      - type: static6\n        address: '2001:db8::5/64'\n        gateway: 'fe80::1'\n    - type: \
             nameserver\n      address:\n      - '1.1.1.1'\n      search:\n      - 'example.com'\n",
            "Match: MACAddress=bc:24:11:2e:aa:01 Type=ether Kind=!*\n\
             Network: DHCP=no Address=10.0.0.5/24 Address=2001:db8::5/64 DNS=1.1.1.1 Domains=example.com\n\
             Route: Destination=0.0.0.0/0 Gateway=10.0.0.1\n\
             Route: Destination=::/0 Gateway=fe80::1",
        ),
        // The same for `ip=dhcp,ip6=auto`, without a search domain.
        (
            "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: 'bc:24:11:2e:aa:01'\n      \
             subnets:\n      - type: dhcp4\n      - type: ipv6_slaac\n    - type: nameserver\n      address:\n      - \
             '1.1.1.1'\n      search:\n      - ''\n",
            "Match: MACAddress=bc:24:11:2e:aa:01 Type=ether Kind=!*\n\
             Network: DHCP=ipv4 IPv6AcceptRA=yes KeepConfiguration=dynamic DNS=1.1.1.1\n\
             DHCPv4: UseDomains=yes",
        ),
        // Afterburn's tests/fixtures/proxmoxve/static-no-gateway.
        (
            "version: 1\nconfig:\n  - type: physical\n    name: eth0\n    mac_address: \"01:23:45:67:89:00\"\n    subnets:\n      \
             - type: static\n        address: \"192.168.1.1\"\n        netmask: \"255.255.255.0\"\n  - type: nameserver\n    \
             address:\n      - \"1.1.1.1\"\n      - \"8.8.8.8\"\n",
            "Match: MACAddress=01:23:45:67:89:00 Type=ether Kind=!*\n\
             Network: DHCP=no Address=192.168.1.1/24 DNS=1.1.1.1 DNS=8.8.8.8",
        ),
        // Afterburn's tests/fixtures/proxmoxve/dhcp-dual.
        (
            "version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: '01:23:45:67:89:00'\n      \
             subnets:\n      - type: dhcp4\n      - type: dhcp6\n    - type: nameserver\n      address:\n      - '1.1.1.1'\n      \
             - '8.8.8.8'\n      search:\n      - 'local.com'\n",
            "Match: MACAddress=01:23:45:67:89:00 Type=ether Kind=!*\n\
             Network: DHCP=yes KeepConfiguration=dynamic DNS=1.1.1.1 DNS=8.8.8.8 Domains=local.com\n\
             DHCPv4: UseDomains=yes",
        ),
    ] {
        assert_eq!(files(Form::NetworkConfig, document).unwrap(), [expected]);
    }
}

/// cloud-init's tests/unittests/sources/test_configdrive.py, NETWORK_DATA_3, whose second link has no type.
const DATA_3: &str = r#"{
  "services": [{"type": "dns", "address": "172.16.36.11"}, {"type": "dns", "address": "172.16.36.12"}],
  "networks": [
    {"network_id": "7c41450c-ba44-401a-9ab1-1604bb2da51e", "type": "ipv4", "netmask": "255.255.255.128",
     "link": "tap77a0dc5b-72", "ip_address": "172.17.48.18", "id": "network0",
     "routes": [{"netmask": "0.0.0.0", "network": "0.0.0.0", "gateway": "172.17.48.1"}]},
    {"network_id": "7c41450c-ba44-401a-9ab1-1604bb2da51e", "type": "ipv6", "netmask": "ffff:ffff:ffff:ffff::",
     "link": "tap77a0dc5b-72", "ip_address": "fdb8:52d0:9d14:0:f816:3eff:fe9f:70d", "id": "network1",
     "routes": [{"netmask": "::", "network": "::", "gateway": "fdb8:52d0:9d14::1"}]},
    {"network_id": "1f53cb0e-72d3-47c7-94b9-ff4397c5fe54", "type": "ipv4", "netmask": "255.255.255.128",
     "link": "tap7d6b7bec-93", "ip_address": "172.16.48.13", "id": "network2",
     "routes": [{"netmask": "0.0.0.0", "network": "0.0.0.0", "gateway": "172.16.48.1"},
                {"netmask": "255.255.0.0", "network": "172.16.0.0", "gateway": "172.16.48.1"}]}],
  "links": [
    {"ethernet_mac_address": "fa:16:3e:dd:50:9a", "mtu": null, "type": "tap", "id": "tap77a0dc5b-72",
     "vif_id": "77a0dc5b-720e-41b7-bfa7-1b2ff62e0d48"},
    {"ethernet_mac_address": "fa:16:3e:a8:14:69", "mtu": null, "type": null, "id": "tap7d6b7bec-93",
     "vif_id": "7d6b7bec-93e6-4c03-869a-ddc5014892d5"}]
}"#;

#[test]
fn openstack_with_addresses() {
    assert_eq!(
        files(Form::NetworkData, DATA_3).unwrap(),
        [
            "Match: MACAddress=fa:16:3e:dd:50:9a Type=ether Kind=!*\n\
             Network: DHCP=no IPv6AcceptRA=no Address=172.17.48.18/25 Address=fdb8:52d0:9d14:0:f816:3eff:fe9f:70d/64 \
             DNS=172.16.36.11 DNS=172.16.36.12\n\
             Route: Destination=0.0.0.0/0 Gateway=172.17.48.1\n\
             Route: Destination=::/0 Gateway=fdb8:52d0:9d14::1",
            "Match: MACAddress=fa:16:3e:a8:14:69 Type=ether Kind=!*\n\
             Network: DHCP=no Address=172.16.48.13/25 DNS=172.16.36.11 DNS=172.16.36.12\n\
             Route: Destination=0.0.0.0/0 Gateway=172.16.48.1\n\
             Route: Destination=172.16.0.0/16 Gateway=172.16.48.1",
        ]
    );
}

#[test]
fn openstack_with_dhcp() {
    // Nova's documentation ("Metadata"), with the MTU of an overlay in place of none.
    let document = r#"{
       "links": [{"ethernet_mac_address": "fa:16:3e:9c:bf:3d", "id": "tapcd9f6d46-4a", "mtu": 1450, "type": "bridge",
                  "vif_id": "cd9f6d46-4a3a-43ab-a466-994af9db96fc"}],
       "networks": [{"id": "network0", "link": "tapcd9f6d46-4a", "network_id": "99e88329-f20d-4741-9593-25bf07847b16",
                     "type": "ipv4_dhcp"}],
       "services": [{"address": "8.8.8.8", "type": "dns"}]
    }"#;
    assert_eq!(
        files(Form::NetworkData, document).unwrap(),
        ["Match: MACAddress=fa:16:3e:9c:bf:3d Type=ether Kind=!*\n\
             Link: MTUBytes=1450\n\
             Network: DHCP=ipv4 KeepConfiguration=dynamic DNS=8.8.8.8\n\
             DHCPv4: UseDomains=yes UseMTU=no"]
    );
    // The kinds of IPv6 that Nova's schema has.
    for (kind, expected) in [
        ("ipv6_slaac", "DHCP=no IPv6AcceptRA=yes"),
        ("ipv6_dhcpv6-stateless", "DHCP=no IPv6AcceptRA=yes"),
        ("ipv6_dhcp", "DHCP=ipv6 IPv6AcceptRA=yes"),
        ("ipv6_dhcpv6-stateful", "DHCP=ipv6 IPv6AcceptRA=yes"),
    ] {
        let files = files(Form::NetworkData, &document.replace("ipv4_dhcp", kind)).unwrap();
        assert!(files[0].contains(expected), "{kind}: {}", files[0]);
    }
}

#[test]
fn openstacks_bonds_and_vlans_are_refused() {
    // NETWORK_DATA_BOND and NETWORK_DATA_VLAN of the same tests, shortened.
    let bond = r#"{
      "networks": [{"id": "network2-ipv4", "ip_address": "2.2.2.13", "link": "vlan2", "netmask": "255.255.255.248",
                    "type": "ipv4", "routes": [{"netmask": "0.0.0.0", "network": "0.0.0.0", "gateway": "2.2.2.9"}]}],
      "links": [
        {"ethernet_mac_address": "0c:c4:7a:34:6e:3c", "id": "eth0", "mtu": 1500, "type": "phy"},
        {"ethernet_mac_address": "0c:c4:7a:34:6e:3d", "id": "eth1", "mtu": 1500, "type": "phy"},
        {"bond_links": ["eth0", "eth1"], "bond_miimon": 100, "bond_mode": "4", "id": "bond0", "type": "bond"},
        {"id": "vlan2", "type": "vlan", "vlan_id": 602, "vlan_link": "bond0", "vlan_mac_address": "fa:16:3e:b3:72:30"}]
    }"#;
    let error = files(Form::NetworkData, bond).unwrap_err().to_string();
    assert!(
        error.starts_with("links.2 is a bond: only cards"),
        "{error}"
    );
    let vlan = bond.replace("\"type\": \"bond\"", "\"type\": \"phy\", \"name\": \"x\"");
    let error = files(Form::NetworkData, &vlan).unwrap_err().to_string();
    assert!(
        error.starts_with("links.3 is a VLAN: only cards"),
        "{error}"
    );
}
