//! The hosts' own addresses lie inside the overlay's network, as where that is as wide as the site: 10.0.0.0/8.

use crate::cluster::{NETWORK, Store, pair_in};
use crate::host::Host;
use crate::wait::wait_until;

const SITE: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

fn lease(public_ip: &str, mac: u8) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:{mac:02x}"}}}}"#
    )
}

/// Whether a subnet is reached by the overlay's device.
fn is_routed(host: &Host, subnet: &str) -> bool {
    let routes = host.namespace.ip("route show dev flannel.1");
    let mut routes = routes.lines().map(str::split_whitespace);
    routes.any(|mut words| words.next() == Some(subnet))
}

/// Two hosts join, reach each other, and have taken none of the underlay's addresses.
fn joined(network: &str) -> (Store, Host, Host) {
    let (store, one, two) = pair_in(network);
    for host in [&one, &two] {
        let key = host.lease_key();
        assert!(!key.starts_with("10.77.0."), "{key}");
        let value = store.etcdctl(&[
            "get",
            "--prefix",
            "--print-value-only",
            &format!("/coreos.com/network/subnets/{key}"),
        ]);
        assert!(
            value.contains(&format!("\"PublicIP\":\"{}\"", host.address)),
            "{value}"
        );
    }
    two.wait_reaches(&one);
    (store, one, two)
}

/// Whether a container gets an answer from an underlay host that is no node, and so knows no way to the overlay.
fn wait_answered(host: &Host) {
    wait_until("an answer from the underlay to a container", || {
        host.reaches_address("10.77.0.1".parse().expect("an address"), 56)
    });
}

#[test]
fn vxlan_works_inside_the_site_and_containers_reach_the_underlay() {
    let (_store, one, two) = joined(SITE);
    wait_answered(&one);
    wait_answered(&two);
}

#[test]
fn host_gw_works_inside_the_site() {
    let (_store, one, _two) = joined(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"host-gw"}}"#);
    wait_answered(&one);
}

#[test]
fn udp_leaves_the_rest_of_the_site_to_the_underlay() {
    let (_store, one, two) = joined(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}"#);
    wait_answered(&one);
    let routes = one.namespace.ip("route show");
    assert!(!routes.contains("10.0.0.0/8"), "{routes}");
    let peer = two.lease_key().replace("-24", "/24");
    assert!(routes.contains(&format!("{peer} dev flannel0")), "{routes}");
}

#[test]
fn ipv6_works_inside_the_site() {
    let (_store, one, _two) = joined(
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/8","Backend":{"Type":"vxlan"}}"#,
    );
    let address = one.subnet_env("FLANNEL_IPV6_SUBNET");
    assert!(!address.starts_with("fd77:0:0:0"), "{address}");
}

#[test]
fn second_address_outside_the_network_is_not_preferred() {
    let store = Store::start(SITE);
    let mut one = store.host(1);
    one.namespace.ip("address add 172.20.0.11/24 dev eth0");
    one.start_agent();
    one.wait_ready();
    let leases = store.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets"]);
    assert!(leases.contains("\"10.77.0.11\""), "{leases}");
}

#[test]
fn only_subnet_with_the_hosts_address_is_never_taken() {
    let store = Store::start(
        r#"{"Network":"10.77.0.0/16","SubnetMin":"10.77.0.0","SubnetMax":"10.77.0.0","Backend":{"Type":"vxlan"}}"#,
    );
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("that no subnet is left, and why", |line| {
        line.starts_with("STATUS=")
            && line
                .contains("no free /24 left in 10.77.0.0/16 without a host's address (10.77.0.11)")
    });
    assert_eq!(store.lease_keys(), Vec::<String>::new());
    // A network with room beside the hosts ends it.
    store.etcdctl(&[
        "put",
        "/coreos.com/network/config",
        r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#,
    ]);
    one.wait_ready();
}

#[test]
fn flat_site_on_one_link_still_has_subnets() {
    let store = Store::start(SITE);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    for host in [&one, &two] {
        host.namespace
            .ip(&format!("address del {}/24 dev eth0", host.address));
        host.namespace
            .ip(&format!("address add {}/8 dev eth0", host.address));
    }
    one.join();
    two.join();
    one.wait_reaches(&two);
}

#[test]
fn lease_that_holds_the_hosts_address_is_refused() {
    let store = Store::start(SITE);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    store.put_lease("10.77.0.0-24", &lease("10.88.0.1", 1));
    store.put_lease("10.99.0.0-24", &lease("10.88.0.2", 2));
    store.put_lease("10.88.7.0-24", &lease("10.88.0.3", 3));
    let has = |subnet: &str| is_routed(&one, subnet);
    wait_until("the good leases' routes", || {
        has("10.99.0.0/24") && has("10.88.7.0/24")
    });
    assert!(!has("10.77.0.0/24"));
    wait_until("the refusal in the log", || {
        one.log()
            .contains("its subnet contains this host's address 10.77.0.11")
    });
    // A card of another network comes, with an address in a node's subnet, and goes.
    one.namespace
        .ip("link add eth1 type veth peer name eth1-far");
    one.namespace.ip("link set eth1-far up");
    one.namespace.ip("link set eth1 up");
    one.namespace.ip("address add 10.99.0.7/24 dev eth1");
    wait_until("the lease to be dropped", || !has("10.99.0.0/24"));
    assert!(has("10.88.7.0/24"));
    one.namespace.ip("link del eth1");
    wait_until("the lease to be used again", || has("10.99.0.0/24"));
}

#[test]
fn peers_public_address_may_be_inside_the_network_but_in_no_subnet() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let own = one.lease_key().replace(".0-24", ".9");
    store.put_lease("10.5.201.0-24", &lease("10.5.200.9", 1));
    store.put_lease("10.5.202.0-24", &lease("10.5.202.9", 2));
    store.put_lease("10.5.203.0-24", &lease(&own, 3));
    store.put_lease("10.5.204.0-24", &lease("10.5.201.9", 4));
    // Younger than the node whose address it holds.
    store.put_lease("10.5.200.0-24", &lease("10.77.0.99", 5));
    store.put_lease("10.5.205.0-24", &lease("10.77.0.98", 6));
    let has = |subnet: &str| is_routed(&one, subnet);
    wait_until("the last lease's route", || has("10.5.205.0/24"));
    let used = ["201", "202", "203", "204", "200"].map(|part| has(&format!("10.5.{part}.0/24")));
    assert_eq!(used, [true, false, false, false, false]);
    let entries = one.namespace.run("bridge fdb show dev flannel.1");
    assert!(entries.contains("dst 10.5.200.9"), "{entries}");
    // The older one gone, its address is a subnet's like any other.
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.201.0-24"]);
    wait_until("the others to take their places", || {
        has("10.5.200.0/24") && has("10.5.204.0/24")
    });
}
