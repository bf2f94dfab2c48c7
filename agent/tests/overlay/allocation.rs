//! Who gets which subnet.

use crate::cluster::{NETWORK, Store};
use crate::wait::wait_until;

/// Subnets 10.5.0.16/28 to 10.5.0.48/28, of which a test leaves one free.
const SMALL: &str = r#"{"Network":"10.5.0.0/26","SubnetLen":28,"Backend":{"Type":"vxlan"}}"#;

#[test]
fn last_subnet_goes_to_one_of_two_and_the_other_says_why() {
    let store = Store::start(SMALL);
    for (key, public_ip) in [
        ("10.5.0.16-28", "10.77.0.90"),
        ("10.5.0.32-28", "10.77.0.91"),
    ] {
        store.put_lease(
            key,
            &format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#),
        );
    }
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.start_agent();
    two.start_agent();
    wait_until("one of them to hold the last subnet", || {
        store.lease_keys().len() == 3
    });
    let out = |line: &str| line.starts_with("STATUS=") && line.contains("out of subnets");
    let (winner, loser) = if store
        .etcdctl(&["get", "--prefix", "/coreos.com/network/subnets"])
        .contains("10.77.0.11\"")
    {
        (&mut one, &mut two)
    } else {
        (&mut two, &mut one)
    };
    winner.wait_ready();
    assert_eq!(winner.subnet_env("FLANNEL_SUBNET"), "10.5.0.49/28");
    loser.wait_told("that it is out of subnets", out);

    // It goes on waiting, and takes the first subnet that becomes free.
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.0.16-28"]);
    loser.wait_ready();
    assert_eq!(loser.subnet_env("FLANNEL_SUBNET"), "10.5.0.17/28");
}

#[test]
fn restarted_agent_keeps_its_subnet_and_its_mac() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let subnet = one.subnet_env("FLANNEL_SUBNET");
    let value = store.etcdctl(&[
        "get",
        "--print-value-only",
        &format!("/coreos.com/network/subnets/{}", one.lease_key()),
    ]);
    // As after a reboot: no device, no subnet.env, only what the state directory keeps.
    one.kill_agent();
    one.namespace.ip("link del flannel.1");
    std::fs::remove_file(one.subnet_file()).expect("subnet.env");
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.subnet_env("FLANNEL_SUBNET"), subnet);
    let again = store.etcdctl(&[
        "get",
        "--print-value-only",
        &format!("/coreos.com/network/subnets/{}", one.lease_key()),
    ]);
    assert_eq!(again, value);
}

#[test]
fn another_machine_id_costs_no_subnet() {
    let store = Store::start(NETWORK);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    for host in [&mut one, &mut two] {
        host.join();
    }
    one.wait_reaches(&two);
    let value = |key: &str| {
        store.etcdctl(&[
            "get",
            "--print-value-only",
            &format!("/coreos.com/network/subnets/{key}"),
        ])
    };
    let (key, former) = (two.lease_key(), value(&two.lease_key()));

    // As after systemd-machine-id-setup and a reboot: what the agent kept for itself is there, subnet.env is not.
    assert_eq!(two.stop_agent(), Some(0));
    let id = "0123456789abcdef0123456789abcdef";
    two.environment.push(("SELVAGE_NODE_ID", id.to_owned()));
    std::fs::remove_file(two.subnet_file()).expect("subnet.env");
    two.start_agent();
    two.wait_ready();
    assert_eq!(two.lease_key(), key);
    let value = value(&key);
    assert_ne!(value, former);
    assert!(value.contains(id), "{value}");
    assert_eq!(store.lease_keys().len(), 2);
    one.wait_reaches(&two);
}

#[test]
fn reservation_is_honoured_and_stays_without_a_time_limit() {
    let store = Store::start(NETWORK);
    store.put_lease(
        "10.5.77.0-24",
        r#"{"PublicIP":"10.77.0.11","PublicIPv6":null}"#,
    );
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.subnet_env("FLANNEL_SUBNET"), "10.5.77.1/24");
    let fields = store.etcdctl(&[
        "get",
        "--write-out=fields",
        "/coreos.com/network/subnets/10.5.77.0-24",
    ]);
    assert!(fields.contains("\"Lease\" : 0"), "{fields}");
}

#[test]
fn lease_looks_as_flannel_writes_it() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let value = store.etcdctl(&[
        "get",
        "--print-value-only",
        &format!("/coreos.com/network/subnets/{}", one.lease_key()),
    ]);
    let start = r#"{"PublicIP":"10.77.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":""#;
    assert!(value.starts_with(start), "{value}");
    let fields = store.etcdctl(&[
        "get",
        "--write-out=fields",
        &format!("/coreos.com/network/subnets/{}", one.lease_key()),
    ]);
    assert!(!fields.contains("\"Lease\" : 0"), "{fields}");
}

#[test]
fn bad_network_config_is_named_and_waited_out() {
    let store = Store::start(NETWORK);
    store.etcdctl(&[
        "put",
        "/coreos.com/network/config",
        r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#,
    ]);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("what is wrong", |line| {
        line.starts_with("STATUS=") && line.contains("SubnetLen")
    });
    store.etcdctl(&["put", "/coreos.com/network/config", NETWORK]);
    one.wait_ready();
}

#[test]
fn network_config_set_right_while_waiting_counts() {
    let store = Store::start(NETWORK);
    store.etcdctl(&[
        "put",
        "/coreos.com/network/config",
        r#"{"Network":"10.5.0.0/16","Backend":{"Type":"nonsense"}}"#,
    ]);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("that there is no such backend", |line| {
        line.starts_with("STATUS=waiting to join:") && line.contains("nonsense")
    });
    store.etcdctl(&["put", "/coreos.com/network/config", NETWORK]);
    one.wait_ready();
}

#[test]
fn network_enlarged_while_waiting_for_a_subnet_counts() {
    let store = Store::start(SMALL);
    for (key, public_ip) in [
        ("16", "10.77.0.90"),
        ("32", "10.77.0.91"),
        ("48", "10.77.0.92"),
    ] {
        let value = format!(r#"{{"PublicIP":"{public_ip}","PublicIPv6":null}}"#);
        store.put_lease(&format!("10.5.0.{key}-28"), &value);
    }
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("that it is out of subnets", |line| {
        line.contains("out of subnets")
    });
    store.etcdctl(&[
        "put",
        "/coreos.com/network/config",
        &SMALL.replace("/26", "/24"),
    ]);
    one.wait_ready();
}
