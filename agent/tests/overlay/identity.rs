//! Who is who, as the kernel of the peers sees it: reboots at another address, clones, and the originals that come back.

use std::net::Ipv4Addr;

use crate::cluster::{NETWORK, Store, pair};
use crate::host::Host;
use crate::wait::wait_until;

/// The MAC address of a host's VTEP.
fn vtep_mac(host: &Host) -> String {
    let text = host.namespace.run("ip -br link show flannel.1");
    text.split_whitespace()
        .find(|word| word.matches(':').count() == 5)
        .expect("a MAC address")
        .to_owned()
}

/// Reboots a host, whose agent does not run: the devices and what was in `/run` are gone, the state directory stays.
fn reboot(host: &mut Host, address: Ipv4Addr) {
    host.namespace.ip("link del flannel.1");
    std::fs::remove_file(host.subnet_file()).expect("subnet.env");
    host.move_to(address);
}

/// Disk and memory of one host, on another one.
fn clone(original: &Host, copy: &mut Host, with_subnet_file: bool) {
    std::fs::create_dir_all(copy.state_dir()).expect("the state directory");
    for file in std::fs::read_dir(original.state_dir()).expect("the state directory") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), copy.state_dir().join(file.file_name())).expect("a copy");
    }
    if with_subnet_file {
        std::fs::copy(original.subnet_file(), copy.subnet_file()).expect("a copy");
    }
    copy.environment
        .push(("SELVAGE_NODE_ID", original.node_id()));
}

#[test]
fn host_that_comes_back_at_another_address_keeps_its_subnet_and_its_peers() {
    let (store, mut one, two) = pair();
    one.wait_reaches(&two);
    let (key, mac) = (one.lease_key(), vtep_mac(&one));
    assert_eq!(one.stop_agent(), Some(0));
    reboot(&mut one, Ipv4Addr::new(10, 77, 0, 61));
    one.start_agent();
    one.wait_ready();
    assert_eq!((one.lease_key(), vtep_mac(&one)), (key, mac));
    assert_eq!(store.lease_keys().len(), 2);
    two.wait_reaches(&one);
    one.wait_reaches(&two);
    let log = two.log();
    assert!(!log.contains("lease refused"), "{log}");
    assert!(!log.contains("is not programmed"), "{log}");
}

#[test]
fn clone_of_a_running_host_gets_a_subnet_and_a_mac_address_of_its_own() {
    for with_subnet_file in [false, true] {
        let store = Store::start(NETWORK);
        let mut original = store.host(1);
        original.join();
        let before = (original.subnet_env("FLANNEL_SUBNET"), vtep_mac(&original));
        let mut copy = store.host(2);
        clone(&original, &mut copy, with_subnet_file);
        copy.join();
        assert_ne!(copy.lease_key(), original.lease_key());
        let unchanged = (original.subnet_env("FLANNEL_SUBNET"), vtep_mac(&original));
        assert_eq!(unchanged, before);
        assert_ne!(vtep_mac(&copy), before.1);
        copy.wait_reaches(&original);
        original.wait_reaches(&copy);
        let log = copy.log();
        assert!(log.contains("one of the two is a clone"), "{log}");
        assert!(
            !original.log().contains("lost the lease"),
            "{}",
            original.log()
        );
        // It stays what it is now.
        let own = (copy.lease_key(), vtep_mac(&copy));
        assert_eq!(copy.stop_agent(), Some(0));
        copy.start_agent();
        copy.wait_ready();
        assert_eq!((copy.lease_key(), vtep_mac(&copy)), own);
    }
}

#[test]
fn clone_takes_over_from_an_original_that_is_off_which_is_the_newcomer_when_it_comes_back() {
    let store = Store::start(NETWORK);
    let (mut original, mut witness) = (store.host(1), store.host(3));
    original.join();
    witness.join();
    let key = original.lease_key();
    assert_eq!(original.stop_agent(), Some(0));
    let mut copy = store.host(2);
    clone(&original, &mut copy, true);
    copy.join();
    assert_eq!(copy.lease_key(), key);
    witness.wait_reaches(&copy);
    // Back with all that it had.
    original.start_agent();
    original.wait_ready();
    assert_ne!(original.lease_key(), key);
    assert_ne!(vtep_mac(&original), vtep_mac(&copy));
    assert_eq!(copy.lease_key(), key);
    original.restart_container();
    witness.wait_reaches(&original);
    witness.wait_reaches(&copy);
}

/// Two machines whose images were made of one, with a machine id each.
#[test]
fn of_two_machines_with_one_mac_address_the_younger_makes_itself_another() {
    let store = Store::start(NETWORK);
    let (mut elder, mut younger) = (store.host(1), store.host(2));
    elder.join();
    let mac = vtep_mac(&elder);
    clone(&elder, &mut younger, false);
    younger.environment.clear();
    younger.join();
    assert_eq!(vtep_mac(&elder), mac);
    assert_ne!(vtep_mac(&younger), mac);
    younger.wait_reaches(&elder);
    elder.wait_reaches(&younger);

    // And while both run: the elder's address is copied by hand into the younger's device and file.
    assert_eq!(younger.stop_agent(), Some(0));
    younger
        .namespace
        .ip(&format!("link set flannel.1 address {mac}"));
    younger.start_agent();
    younger.wait_ready();
    wait_until("a MAC address of its own", || vtep_mac(&younger) != mac);
    younger.wait_reaches(&elder);
}

/// A real flannel that was given this node's MAC address, by a clone's device, joins later and never changes it.
#[test]
fn a_flannel_with_the_mac_address_of_a_running_host_does_not_cut_it_off() {
    let store = Store::start(NETWORK);
    let (mut host, mut witness) = (store.host(1), store.host(2));
    host.join();
    witness.join();
    let mac = vtep_mac(&host);
    let lease = format!(
        r#"{{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    store.put_lease("10.5.200.0-24", &lease);
    wait_until("a MAC address of its own", || vtep_mac(&host) != mac);
    let published = format!("/coreos.com/network/subnets/{}", host.lease_key());
    wait_until("the new address in the lease", || {
        store
            .etcdctl(&["get", &published])
            .contains(&vtep_mac(&host))
    });
    witness.wait_reaches(&host);
    host.wait_reaches(&witness);
}

/// An older lease that is given this node's MAC address while it runs: by a clone whose agent is older, or on purpose.
#[test]
fn older_lease_that_copies_the_mac_address_does_not_cut_a_running_host_off() {
    let store = Store::start(NETWORK);
    let ghost = |mac: &str| {
        let lease = format!(
            r#"{{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"SelvageOwner":"ghost"}}"#
        );
        store.put_lease("10.5.200.0-24", &lease);
    };
    ghost("02:00:00:00:00:99");
    let (mut host, mut witness) = (store.host(1), store.host(2));
    host.join();
    witness.join();
    let (key, mut mac) = (host.lease_key(), vtep_mac(&host));
    for _ in 0..2 {
        ghost(&mac.to_ascii_uppercase());
        wait_until("a MAC address of its own", || vtep_mac(&host) != mac);
        mac = vtep_mac(&host);
        let published = format!("/coreos.com/network/subnets/{key}");
        wait_until("the new address in the lease", || {
            store.etcdctl(&["get", &published]).contains(&mac)
        });
        witness.wait_reaches(&host);
    }
    assert_eq!(host.lease_key(), key);
}
