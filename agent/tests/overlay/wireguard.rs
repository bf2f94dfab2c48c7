//! The wireguard backend between whole agents: it carries packets in each of its modes, and follows a peer whatever becomes
//! of that, with a pre-shared key and without, whichever side sends first.
//!
//! The tests are ignored by default, since many a kernel has no WireGuard: `make test-netns` runs them where there is one,
//! `make test-qemu` in the image's kernel.

use std::cell::Cell;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::backends::{DUAL, V4, V6, carries, pair};
use crate::cluster::Store;
use crate::host::Host;
use crate::wait::{look_until, wait_until};

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

/// A pre-shared key, as flannel's network config has it; and none.
const SECRETS: [&str; 2] = [
    "",
    r#","PSK":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=""#,
];

fn backend(secret: &str, port: u16) -> String {
    format!(r#"{{"Type":"wireguard","ListenPort":{port}{secret}}}"#)
}

/// Something happens to the second of two hosts while packets from one of them, and from that one alone, are on their way.
/// When it is over, they arrive and are answered.
fn follows(what: &str, happens: impl Fn(&Store, &mut Host, &str)) {
    for secret in SECRETS {
        let (store, one, mut two) = pair(V4, &backend(secret, 51820));
        for sender in ["the other side", "the side that it happened to"] {
            let is_second = sender != "the other side";
            let target = if is_second { &one } else { &two }.container_address();
            let source = if is_second { &two } else { &one };
            let mut traffic = source
                .container()
                .command("ping")
                .args(["-q", "-i", "0.2", &target.to_string()])
                .stdout(Stdio::null())
                .spawn()
                .expect("ping");
            happens(&store, &mut two, secret);
            let source = if is_second { &two } else { &one };
            let over = Instant::now();
            wait_until("packets to pass again", || {
                source.reaches_address(target.into(), 56)
            });
            let keyed = if secret.is_empty() {
                ""
            } else {
                ", with a pre-shared key"
            };
            eprintln!(
                "{what}{keyed}: packets from {sender} pass after {:.1} s",
                over.elapsed().as_secs_f64()
            );
            traffic.kill().expect("to end ping");
            traffic.wait().expect("ping's end");
        }
        one.wait_reaches(&two);
    }
}

fn stop(host: &mut Host) {
    assert_eq!(host.stop_agent(), Some(0));
}

fn start(host: &mut Host) {
    host.start_agent();
    host.wait_ready();
}

/// Gives a host without an agent a new key, as if it had lost its state directory; flannel has one at each boot.
fn lose_key(host: &Host) {
    fs::remove_file(host.state_dir().join("wireguard.key")).expect("the private key");
}

/// The kernel forgets its sessions.
fn lose_device(host: &Host) {
    host.namespace.ip("link del flannel-wg");
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_whose_agent_was_restarted() {
    follows("restarted", |_, two, _| {
        stop(two);
        start(two);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_that_was_rebooted() {
    follows("rebooted", |_, two, _| {
        stop(two);
        lose_device(two);
        start(two);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_with_a_new_key() {
    follows("new key", |_, two, _| {
        stop(two);
        lose_key(two);
        start(two);
    });
}

/// What flannel does at each start after a boot.
#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_with_a_new_key_and_a_new_device() {
    follows("new key and device", |_, two, _| {
        stop(two);
        lose_key(two);
        lose_device(two);
        start(two);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_to_another_address() {
    let next = Cell::new(61);
    follows("another address", |_, two, _| {
        stop(two);
        two.move_to(Ipv4Addr::new(10, 77, 0, next.replace(next.get() + 1)));
        start(two);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_that_was_rebooted_at_another_address() {
    let next = Cell::new(61);
    follows("rebooted at another address", |_, two, _| {
        stop(two);
        lose_device(two);
        two.move_to(Ipv4Addr::new(10, 77, 0, next.replace(next.get() + 1)));
        start(two);
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn follows_a_peer_to_another_port() {
    let next = Cell::new(4001);
    follows("another port", |store, two, secret| {
        let port = next.replace(next.get() + 1);
        let config = format!("{{{V4},\"Backend\":{}}}", backend(secret, port));
        store.etcdctl(&["put", "/coreos.com/network/config", &config]);
        wait_until("the other port", || {
            let sockets = two.namespace.run("ss -Huln");
            sockets.contains(&format!(":{port} "))
        });
    });
}

/// When the peer of a host that has one peer answered last, in seconds since 1970.
fn handshake(host: &Host) -> Option<u64> {
    let (status, body) = host.ask("/v1/status");
    assert_eq!(status, 200, "{body}");
    let status: serde_json::Value = serde_json::from_str(&body).expect("a status");
    status["peers"][0]["handshake_time"].as_u64()
}

/// The kernel begins a session when it has a packet to send, and tries again after five seconds where there was no answer.
/// The node that has a new key, or a new device, and its peers do not wait for that.
#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_new_key_and_a_new_device_have_sessions_before_anybody_sends() {
    let (_store, one, mut two) = pair(V4, &backend("", 51820));
    for lose in [lose_key, lose_device] {
        stop(&mut two);
        lose(&two);
        // Handshakes are told apart by the second.
        let now = || SystemTime::now().duration_since(UNIX_EPOCH);
        let lost = now().expect("a time after 1970").as_secs() + 1;
        wait_until("the next second", || {
            now().is_ok_and(|now| now > Duration::from_secs(lost))
        });
        start(&mut two);
        look_until(
            "a session with the host that was restarted",
            || handshake(&one),
            |at| at.is_some_and(|at| at >= lost),
        );
    }
}
