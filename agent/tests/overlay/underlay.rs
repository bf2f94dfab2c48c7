//! The underlay changes below a running agent: it follows, and tells its peers, without a restart.

use std::net::IpAddr;

use crate::cluster::Store;
use crate::host::Host;
use crate::wait::wait_until;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"vxlan","DirectRouting":false}}"#;

/// Two hosts on both families' overlay.
fn pair(network: &str) -> (Store, Host, Host) {
    let store = Store::start(network);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    (store, one, two)
}

/// Waits until a peer has read in a lease that its node is at `address`, and sends there.
fn wait_published(store: &Store, peer: &Host, address: &str) {
    wait_until("the peer to follow", || {
        let entries = peer.namespace.run("bridge fdb show");
        let sends = |line: &str| line.contains(&format!("dst {address} "));
        entries.lines().any(sends)
    });
    let subnets = "/coreos.com/network/subnets";
    let leases = store.etcdctl(&["get", "--prefix", "--print-value-only", subnets]);
    assert!(leases.contains(&format!("\"{address}\"")), "{leases}");
}

#[test]
fn new_ipv6_underlay_address_is_followed_and_published() {
    let (store, one, two) = pair(DUAL);
    let agent = one.agent_id();
    one.namespace.ip("address del fd77::b/64 dev eth0");
    one.namespace.ip("address add fd77::51/64 dev eth0 nodad");
    wait_until("the device to follow", || {
        let device = one.namespace.ip("-d link show flannel-v6.1");
        device.contains("local fd77::51")
    });
    wait_published(&store, &two, "fd77::51");
    one.wait_reaches(&two);
    assert_eq!(one.agent_id(), agent);
    // IPv4 stayed where it was.
    let device = one.namespace.ip("-d link show flannel.1");
    assert!(device.contains("local 10.77.0.11"), "{device}");
}

#[test]
fn better_address_of_the_underlay_is_no_reason_to_move() {
    let (_store, one, two) = pair(DUAL);
    // Global, where the one in use is unique local; the next address that goes shows that the news was heard.
    one.namespace
        .ip("address add 2001:db8::51/64 dev eth0 nodad");
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    one.namespace.ip("address add 10.77.0.51/24 dev eth0");
    wait_until("the device to follow", || {
        let device = one.namespace.ip("-d link show flannel.1");
        device.contains("local 10.77.0.51")
    });
    let device = one.namespace.ip("-d link show flannel-v6.1");
    assert!(device.contains("local fd77::b"), "{device}");
    one.wait_reaches(&two);
}

#[test]
fn mtu_of_the_underlay_is_followed() {
    let (_store, one, two) = pair(DUAL);
    one.namespace.ip("link set eth0 mtu 1400");
    wait_until("the devices to follow", || {
        let mtu = |device: &str| one.namespace.ip(&format!("link show {device}"));
        // 50 bytes of headers over IPv4, 70 over IPv6.
        mtu("flannel.1").contains("mtu 1350") && mtu("flannel-v6.1").contains("mtu 1330")
    });
    wait_until("subnet.env to follow", || {
        one.subnet_env("FLANNEL_MTU") == "1330"
    });
    one.wait_reaches(&two);
}

#[test]
fn direct_routing_is_decided_anew_when_the_underlay_changes() {
    let (_store, one, two) = pair(&DUAL.replace("false", "true"));
    let devices = || -> Vec<String> {
        let device = |target: IpAddr| {
            let route = one.namespace.run(&format!("ip route get {target}"));
            let mut words = route.split(' ').skip_while(|word| *word != "dev");
            words.nth(1).unwrap_or_default().to_owned()
        };
        two.container_addresses().into_iter().map(device).collect()
    };
    assert_eq!(devices(), ["eth0", "eth0"]);
    // The same addresses, but the peer is behind a router now.
    one.namespace.ip("address add 10.77.0.11/32 dev eth0");
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    one.namespace.ip("route add 10.77.0.0/24 dev eth0");
    wait_until("IPv4 to go through the tunnel", || {
        devices() == ["flannel.1", "eth0"]
    });
    one.wait_reaches(&two);
    one.namespace.ip("address add 10.77.0.11/24 dev eth0");
    one.namespace.ip("address del 10.77.0.11/32 dev eth0");
    wait_until("IPv4 to go directly", || devices() == ["eth0", "eth0"]);
    one.wait_reaches(&two);
}

#[test]
fn underlay_that_is_too_narrow_for_ipv6_is_named_and_waited_for() {
    let store = Store::start(DUAL);
    let mut one = store.host(1);
    one.namespace.ip("link set eth0 mtu 1349");
    one.start_agent();
    let told = one.wait_told("what it waits for", |line| line.contains("MTU"));
    assert!(
        told.contains("at least 1350 bytes, but eth0 has 1349"),
        "{told}"
    );
    one.namespace.ip("link set eth0 mtu 1350");
    one.wait_ready();
    assert_eq!(one.subnet_env("FLANNEL_MTU"), "1280");
}

#[test]
fn nothing_is_direct_over_a_device_without_neighbours() {
    let store = Store::start(
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#,
    );
    let mut one = store.host(1);
    // The way to etcd stays; the device of that name is now a VPN's, which takes what is sent to anybody.
    one.namespace.ip("link set eth0 down");
    one.namespace.ip("link set eth0 name up0");
    one.namespace.ip("link set up0 up");
    one.namespace.ip("link add eth0 type veth peer name far");
    one.namespace.ip("link set eth0 arp off");
    one.namespace.ip("address add 10.8.0.11/24 dev eth0");
    one.namespace.ip("link set far up");
    one.namespace.ip("link set eth0 up");
    one.start_agent();
    one.wait_ready();
    store.put_lease(
        "10.5.244.0-24",
        r#"{"PublicIP":"10.8.0.44","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
    );
    wait_until("the peer's route", || {
        one.namespace.ip("route show").contains("10.5.244.0/24 ")
    });
    let route = one.namespace.ip("route get 10.5.244.2");
    assert!(route.contains("dev flannel.1"), "{route}");
}
