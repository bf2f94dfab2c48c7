//! A network config that changes while the agents run.

use crate::cluster::{NETWORK, Store, pair};
use crate::wait::wait_until;

/// Writes another network config.
fn set(store: &Store, config: &str) {
    store.etcdctl(&["put", "/coreos.com/network/config", config]);
}

fn config(backend: &str) -> String {
    format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#)
}

#[test]
fn running_agents_switch_the_back_end_and_keep_their_subnets() {
    let (store, one, two) = pair();
    let subnets = [one.lease_key(), two.lease_key()];
    for (backend, mtu, device) in [
        (r#"{"Type":"host-gw"}"#, "1500", None),
        (r#"{"Type":"vxlan","VNI":5}"#, "1450", Some("flannel.5")),
        (
            r#"{"Type":"vxlan","VNI":5,"MTU":1400}"#,
            "1350",
            Some("flannel.5"),
        ),
        (r#"{"Type":"vxlan"}"#, "1450", Some("flannel.1")),
    ] {
        set(&store, &config(backend));
        for host in [&one, &two] {
            wait_until(&format!("{backend} to be followed"), || {
                host.subnet_env("FLANNEL_MTU") == mtu
            });
        }
        one.wait_reaches(&two);
        wait_until("former devices to be gone", || {
            [&one, &two].iter().all(|host| {
                let links = host.namespace.ip("-o link show type vxlan");
                let names: Vec<&str> = links
                    .lines()
                    .filter_map(|line| line.split(": ").nth(1))
                    .collect();
                names == device.as_slice()
            })
        });
        assert_eq!([one.lease_key(), two.lease_key()], subnets);
    }
}

#[test]
fn a_wider_network_is_followed() {
    let (store, one, two) = pair();
    set(
        &store,
        r#"{"Network":"10.4.0.0/15","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#,
    );
    wait_until("the wider network", || {
        one.subnet_env("FLANNEL_NETWORK") == "10.4.0.0/15"
            && two.subnet_env("FLANNEL_NETWORK") == "10.4.0.0/15"
    });
    one.wait_reaches(&two);
}

#[test]
fn what_cannot_be_followed_is_said_and_harms_nothing() {
    let (store, mut one, two) = pair();
    let before = one.overlay_objects();
    for (config, reason) in [
        (
            r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "does not allow this host's subnet",
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x"}}"#,
            "the back end \"x\" does not exist",
        ),
        (r#"{"Network":"nonsense"}"#, "nonsense"),
    ] {
        set(&store, config);
        one.wait_told(reason, |line| {
            line.starts_with("STATUS=") && line.contains(reason)
        });
        assert!(one.reaches(&two));
        assert_eq!(one.overlay_objects(), before);
    }
    set(&store, NETWORK);
    one.wait_told_last("that all is well", |line| !line.contains(';'));
    assert_eq!(one.overlay_objects(), before);
}

#[test]
fn a_host_whose_subnet_was_taken_is_renumbered_and_goes_on() {
    let (store, mut one, two) = pair();
    let old = one.lease_key();
    let taken = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    store.put_lease(&old, taken);
    wait_until("another subnet", || one.lease_key() != old);
    one.wait_told("what keeps the old one busy", |line| {
        line.starts_with("STATUS=") && line.contains("dev docker0")
    });
    // As when Docker restarts with the new subnet.
    one.namespace.ip("link del docker0");
    one.wait_told_last("that all is well", |line| !line.contains(';'));
    let bridge = one.subnet_env("DOCKER_OPT_BIP");
    assert_eq!(
        bridge,
        format!("--bip={}", one.subnet_env("FLANNEL_SUBNET"))
    );
    // Who took the subnet is a peer like any other.
    wait_until("the old subnet's new owner to be programmed", || {
        let routes = one.namespace.ip("route show");
        routes.contains(&old.replace('-', "/")) && routes.contains("flannel.1")
    });
    assert_eq!(store.lease_keys().len(), 3);
    drop(two);
}
