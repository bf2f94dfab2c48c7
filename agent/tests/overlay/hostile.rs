//! Leases that a broken or hostile node publishes: refused, logged once, and harmless to everybody else.

use crate::cluster::pair;
use crate::wait::wait_until;

fn lease(public_ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}}}"#
    )
}

#[test]
fn hostile_leases_are_refused_once_and_remove_nobody() {
    let (store, one, two) = pair();
    let before = one.overlay_objects();

    let own = one.lease_key();
    let own_part = own.replace(".0-24", ".128-25");
    let good = lease("10.77.0.50");
    let hostile: Vec<(&str, String)> = vec![
        ("garbage", "garbage".to_owned()),
        ("10.5.1.0-24hi", good.clone()),
        ("10.5.300.0-24", good.clone()),
        ("10.5.1.0", good.clone()),
        // Outside the network, the whole world, unaligned, ours.
        ("10.6.1.0-24", good.clone()),
        ("0.0.0.0-0", good.clone()),
        ("10.5.1.7-24", good.clone()),
        (&own_part, good.clone()),
        // Addresses that no packet should be sent to.
        ("10.5.201.0-24", lease("224.0.0.1")),
        ("10.5.202.0-24", lease("0.0.0.0")),
        ("10.5.203.0-24", lease("127.0.0.1")),
        ("10.5.204.0-24", lease("255.255.255.255")),
        // Values that are not what a lease is.
        ("10.5.205.0-24", "{".to_owned()),
        ("10.5.206.0-24", "null".to_owned()),
        (
            "10.5.207.0-24",
            good.replace("c6:d2:32:6f:8f:44", "not a mac"),
        ),
        (
            "10.5.208.0-24",
            good.replace("c6:d2:32:6f:8f:44", "01:00:5e:00:00:01"),
        ),
        (
            "10.5.209.0-24",
            r#"{"PublicIP":"10.77.0.51","BackendType":"vxlan"}"#.to_owned(),
        ),
    ];
    for (key, value) in &hostile {
        store.put_lease(key, value);
    }
    // A good lease written last shows that all before it have been looked at.
    store.put_lease(
        "10.5.222.0-24",
        &lease("10.77.0.60").replace("8f:44", "8f:60"),
    );
    wait_until("the good lease's route", || {
        one.namespace.ip("route show").contains("10.5.222.0/24")
    });
    assert!(one.reaches(&two) && two.reaches(&one));
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.222.0-24"]);
    wait_until("the kernel as it was", || one.overlay_objects() == before);

    // Written again, as every renewal does, they are not logged again.
    for (key, value) in &hostile {
        store.put_lease(key, value);
    }
    store.put_lease(
        "10.5.222.0-24",
        &lease("10.77.0.60").replace("8f:44", "8f:60"),
    );
    wait_until("the good lease's route", || {
        one.namespace.ip("route show").contains("10.5.222.0/24")
    });
    let log = one.log();
    for subnet in [
        "10.6.1.0",
        "10.5.201.0",
        "10.5.202.0",
        "10.5.205.0",
        "10.5.207.0",
        "10.5.300.0",
    ] {
        let lines = log.lines().filter(|line| line.contains(subnet)).count();
        assert_eq!(lines, 1, "{subnet} was logged {lines} times:\n{log}");
    }
}

#[test]
fn corrupted_lease_of_a_peer_keeps_the_peer() {
    let (store, one, mut two) = pair();
    let before = one.overlay_objects();
    two.kill_agent();
    store.put_lease(&two.lease_key(), "rubbish");
    let subnet = two.lease_key();
    wait_until("the rubbish to be reported", || {
        one.log()
            .lines()
            .any(|line| line.contains("WARN") && line.contains(&subnet))
    });
    assert_eq!(one.overlay_objects(), before);
    assert!(one.reaches(&two));
}
