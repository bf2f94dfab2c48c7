//! What breaks around the agent: the device, the store, the network between them.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::cluster::{NETWORK, Store, pair};
use crate::wait::wait_until;

/// A lease of a node that exists only in the store.
const GHOST: &str = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

#[test]
fn deleted_device_heals_by_itself() {
    let (_store, one, two) = pair();
    let before = one.overlay_objects();
    one.namespace.ip("link del flannel.1");
    one.wait_reaches(&two);
    let without_index = |text: &str| {
        // A new device has a new index, and the kernel counts its bridge ports and queues anew.
        text.lines()
            .filter(|line| line.contains("flannel.1") && !line.contains(": flannel.1"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    wait_until("the same objects as before", || {
        without_index(&one.overlay_objects()) == without_index(&before)
    });
}

#[test]
fn removed_route_neighbour_and_forwarding_entry_come_back() {
    let (_store, one, two) = pair();
    let before = one.overlay_objects();
    one.namespace
        .ip("neighbor flush dev flannel.1 nud permanent");
    one.namespace
        .ip(&format!("route del {}", two.lease_key().replace('-', "/")));
    wait_until("the flushed objects", || one.overlay_objects() == before);
    one.wait_reaches(&two);
}

#[test]
fn traffic_flows_while_etcd_is_away_and_later_changes_arrive() {
    let (mut store, mut one, two) = pair();
    let before = one.overlay_objects();

    store.stop_etcd();
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while std::time::Instant::now() < end {
        assert!(one.reaches(&two), "a packet was lost while etcd was away");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(one.overlay_objects(), before);
    one.wait_told("that etcd is away", |line| {
        line.starts_with("STATUS=") && line.contains(crate::cluster::ETCD)
    });

    store.start_etcd();
    store.put_lease("10.5.250.0-24", GHOST);
    wait_until("the lease written after the outage", || {
        one.namespace.ip("route show").contains("10.5.250.0/24")
    });
    assert!(one.reaches(&two));
}

#[test]
fn changes_made_behind_a_partition_and_a_compaction_arrive() {
    let (store, one, two) = pair();
    store.put_lease("10.5.250.0-24", GHOST);
    wait_until("the ghost's route", || {
        one.namespace.ip("route show").contains("10.5.250.0/24")
    });

    store.set_port(1, "down");
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.250.0-24"]);
    store.put_lease(
        "10.5.251.0-24",
        &GHOST
            .replace("10.77.0.99", "10.77.0.98")
            .replace("8f:44", "8f:45"),
    );
    let status = store.etcdctl(&["endpoint", "status", "--write-out=fields"]);
    let revision = status
        .lines()
        .find_map(|line| line.strip_prefix("\"Revision\" : "))
        .expect("etcd's revision")
        .to_owned();
    store.etcdctl(&["compact", &revision]);
    std::thread::sleep(Duration::from_secs(3));
    store.set_port(1, "up");

    wait_until("what changed behind the partition", || {
        let routes = one.namespace.ip("route show");
        routes.contains("10.5.251.0/24") && !routes.contains("10.5.250.0/24")
    });
    one.wait_reaches(&two);
}

/// The agent hears of etcd again when that is beyond all that it has seen, with the cluster ID that it knows.
#[test]
fn restored_etcd_that_went_further_is_followed_and_told_of() {
    let (mut store, one, mut two) = pair();
    let former = two.lease_key();
    two.kill_agent();
    store.save();
    for last in 90..96 {
        store.put_lease(
            "10.5.250.0-24",
            &GHOST.replace("0.99", &format!("0.{last}")),
        );
    }
    let has = |subnet: &str| {
        one.namespace
            .ip("route show")
            .contains(&subnet.replace('-', "/"))
    };
    wait_until("the route of the lease that is not in the backup", || {
        has("10.5.250.0-24")
    });
    store.stop_etcd();
    one.signal_agent(Signal::SIGSTOP);
    store.restore();
    store.start_etcd();
    store.put_lease("10.5.251.0-24", GHOST);
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{former}")]);
    for _ in 0..30 {
        store.etcdctl(&["put", "/else/where", "something"]);
    }
    one.signal_agent(Signal::SIGCONT);

    wait_until("the peers to be what etcd has", || {
        has("10.5.251.0-24") && !has("10.5.250.0-24") && !has(&former)
    });
    let mut keys = [one.lease_key(), "10.5.251.0-24".to_owned()];
    keys.sort();
    assert_eq!(store.lease_keys(), keys);
    let status: serde_json::Value =
        serde_json::from_str(&one.ask("/v1/status").1).expect("the status");
    let history = &status["store"]["history"];
    assert_eq!(history["changes"], 1, "{history}");
    assert!(history["last_time"].as_u64() > Some(0), "{history}");
    let text = one.selvage("status").output().expect("selvage status");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("restored from a backup or recreated "),
        "{text}"
    );
}

#[test]
fn lost_lease_is_taken_again_with_the_same_subnet() {
    let (store, one, two) = pair();
    let key = one.lease_key();
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")]);
    wait_until("the lease to be taken again", || {
        store.lease_keys().contains(&key)
    });
    one.wait_reaches(&two);
}

#[test]
fn agent_waits_for_etcd_and_says_so() {
    let mut store = Store::start(NETWORK);
    store.stop_etcd();
    let mut one = store.host(1);
    one.start_agent();
    let status = one.wait_told("that it waits for etcd", |line| {
        line.starts_with("STATUS=waiting to join:")
    });
    assert!(status.contains(crate::cluster::ETCD), "{status}");
    assert!(!one.subnet_file().exists());
    store.start_etcd();
    one.wait_ready();
    assert!(one.subnet_file().exists());
}

#[test]
fn agent_waits_for_a_network_config_and_says_so() {
    let store = Store::start(NETWORK);
    store.etcdctl(&["del", "/coreos.com/network/config"]);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("that there is no network config", |line| {
        line.starts_with("STATUS=") && line.contains("/coreos.com/network/config")
    });
    store.etcdctl(&["put", "/coreos.com/network/config", NETWORK]);
    one.wait_ready();
}

#[test]
fn new_underlay_address_is_followed_even_while_etcd_is_away() {
    let (mut store, one, two) = pair();
    store.stop_etcd();
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    one.namespace.ip("address add 10.77.0.51/24 dev eth0");
    wait_until("the device to follow", || {
        one.namespace
            .ip("-d link show flannel.1")
            .contains("local 10.77.0.51")
    });
    store.start_etcd();
    wait_until("the peer to follow", || {
        two.namespace.run("bridge fdb show").contains("10.77.0.51")
    });
    one.wait_reaches(&two);
}

#[test]
fn foreign_route_in_the_way_is_left_alone_and_named_once() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    one.namespace
        .ip("route add 10.5.250.0/24 via 10.77.0.1 proto static");
    store.put_lease("10.5.250.0-24", GHOST);
    one.wait_told("the route in the way", |line| {
        line.contains("10.5.250.0/24")
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        one.namespace
            .ip("route show")
            .contains("10.5.250.0/24 via 10.77.0.1")
    );
    let named = one
        .log()
        .lines()
        .filter(|line| line.contains("failed to program"))
        .count();
    assert_eq!(named, 1, "{}", one.log());

    one.namespace.ip("route del 10.5.250.0/24");
    wait_until("the route to the peer", || {
        one.namespace
            .ip("route show")
            .contains("10.5.250.0/24 nhid")
    });
}
