//! The wireguard back end between whole agents: it carries packets in each of its modes.
//!
//! The tests are ignored by default, since many a kernel has no WireGuard: `make test-netns` runs them where there is one,
//! `make test-qemu` in the image's kernel.

use crate::backends::{DUAL, V4, V6, carries, pair};
use crate::wait::wait_until;

fn carries_encrypted(families: &str, mode: &str) {
    let backend = format!(r#"{{"Type":"wireguard","Mode":"{mode}"}}"#);
    carries(families, &backend, 1420);
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn v4() {
    carries_encrypted(V4, "separate");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn v6() {
    carries_encrypted(V6, "separate");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn dual_stack_separate() {
    carries_encrypted(DUAL, "separate");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn dual_stack_auto() {
    carries_encrypted(DUAL, "auto");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn dual_stack_over_ipv4() {
    carries_encrypted(DUAL, "ipv4");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn dual_stack_over_ipv6() {
    carries_encrypted(DUAL, "ipv6");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn one_word_encrypts_a_running_network_and_takes_it_back() {
    let (store, one, two) = pair(V4, r#"{"Type":"vxlan"}"#);
    let keys = store.lease_keys();
    for (word, device) in [
        (r#""Encrypt":true,"#, "flannel-wg"),
        ("", "flannel.1"),
        (r#""Encrypt":true,"#, "flannel-wg"),
    ] {
        let config = format!(r#"{{{V4},{word}"Backend":{{"Type":"vxlan"}}}}"#);
        store.etcdctl(&["put", "/coreos.com/network/config", &config]);
        for host in [&one, &two] {
            wait_until("the other device alone", || {
                let links = host.namespace.run("ip -br link show");
                let has = |name: &str| links.lines().any(|l| l.starts_with(&format!("{name} ")));
                has(device) && has("flannel-wg") != has("flannel.1")
            });
        }
        one.wait_reaches(&two);
        two.wait_reaches(&one);
    }
    assert_eq!(store.lease_keys(), keys, "nobody changed the subnet");
}
