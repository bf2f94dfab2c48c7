//! `/readyz` tells the truth: not ready with the reason while something is wrong, and ready again afterwards.

use std::fs;
use std::time::Duration;

use crate::cluster::{ETCD, NETWORK, Store, pair, pair_in};
use crate::host::Host;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A lease of a node that exists only in the store.
const GHOST: &str = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

/// Waits until the agent says that it is not ready for a reason with this code that names `text`, and metrics say so as
/// well, with the reason's kind.
fn wait_not_ready(host: &Host, kind: &str, code: &str, text: &str) {
    let what = format!("readyz to say {text:?} [{code}]");
    let code = format!(" [{code}]");
    wait_for(PATIENCE, &what, || {
        let (status, body) = host.ask("/readyz");
        let mut reasons = body.lines().skip(1);
        let fits = |line: &str| line.contains(text) && line.ends_with(&code);
        (status == 503 && reasons.any(fits)).then_some(())
    });
    let reason = format!("selvage_not_ready_reasons{{reason=\"{kind}\"}} 1\n");
    wait_for(PATIENCE, &format!("metrics to say {kind}"), || {
        let (_, metrics) = host.ask("/metrics");
        (metrics.contains("selvage_ready 0\n") && metrics.contains(&reason)).then_some(())
    });
}

/// Waits until the agent says that it is ready, and metrics say so as well.
fn wait_ready(host: &Host) {
    wait_for(PATIENCE, "readyz to say that all is well", || {
        let ready = (200, "flanneld is ready".to_owned());
        (host.ask("/readyz") == ready).then_some(())
    });
    wait_for(PATIENCE, "metrics to say that all is well", || {
        let (_, metrics) = host.ask("/metrics");
        let reasons = metrics
            .lines()
            .filter(|line| line.starts_with("selvage_not_ready_reasons{"));
        let none = reasons.clone().count() >= 8 && reasons.clone().all(|line| line.ends_with(" 0"));
        (none && metrics.contains("selvage_ready 1\n")).then_some(())
    });
}

fn metric(host: &Host, series: &str) -> f64 {
    let (_, metrics) = host.ask("/metrics");
    let prefix = format!("{series} ");
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .unwrap_or_else(|| panic!("{series} is not in\n{metrics}"));
    value.parse().expect("a number")
}

/// Whether a metric that counts whole things has a value.
fn is(host: &Host, series: &str, value: f64) -> bool {
    (metric(host, series) - value).abs() < 0.5
}

#[test]
fn without_the_store_before_and_after_joining() {
    let mut store = Store::start(NETWORK);
    store.stop_etcd();
    let mut one = store.host(1);
    one.start_agent();
    one.wait_told("that it waits", |line| line.contains("waiting to join:"));
    wait_not_ready(&one, "joining", "store-unreachable", ETCD);
    store.start_etcd();
    one.wait_ready();
    wait_ready(&one);

    store.stop_etcd();
    wait_not_ready(&one, "store", "store-unreachable", ETCD);
    assert!(is(&one, "selvage_store_reachable", 0.0));
    assert!(metric(&one, "selvage_store_errors_total{kind=\"unreachable\"}") >= 1.0);
    // What is known of the lease still holds.
    assert!(metric(&one, "selvage_lease_remaining_seconds") > 1000.0);
    store.start_etcd();
    wait_ready(&one);
    assert!(is(&one, "selvage_store_reachable", 1.0));
}

#[test]
fn with_a_lost_lease_until_it_is_taken_again() {
    let only = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0","Backend":{"Type":"vxlan"}}"#;
    let store = Store::start(only);
    let mut one = store.host(1);
    one.join();
    wait_ready(&one);
    store.put_lease("10.5.1.0-24", GHOST);
    wait_not_ready(&one, "lease", "out-of-subnets", "10.5.0.0/16");
    assert!(is(&one, "selvage_lease_held", 0.0));
    assert!(is(&one, "selvage_lease_lost_total", 1.0));
    assert!(one.subnet_file().exists());
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.1.0-24"]);
    wait_ready(&one);
    assert!(is(&one, "selvage_lease_held", 1.0));
    assert_eq!(one.lease_key(), "10.5.1.0-24");
}

#[test]
fn when_the_kernel_refuses_a_change() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.join();
    wait_ready(&one);
    one.namespace
        .ip("route add 10.5.250.0/24 via 10.77.0.1 proto static");
    store.put_lease("10.5.250.0-24", GHOST);
    wait_not_ready(&one, "program", "kernel-conflict", "10.5.250.0/24");
    assert!(is(&one, "selvage_peers_failed", 1.0));
    assert!(metric(&one, "selvage_kernel_change_failures_total") >= 1.0);
    one.namespace.ip("route del 10.5.250.0/24");
    wait_ready(&one);
    assert!(is(&one, "selvage_peers_failed", 0.0));
}

#[test]
fn when_the_vxlan_device_is_gone_and_cannot_be_made() {
    let (_store, one, two) = pair();
    wait_ready(&one);
    // The same device under another name keeps the VNI and the port, of which the kernel has one each.
    one.namespace.ip("link set flannel.1 down");
    one.namespace.ip("link set flannel.1 name taken up");
    wait_not_ready(&one, "program", "kernel-exists", "flannel.1");
    wait_for(PATIENCE, "metrics to miss the device", || {
        is(&one, "selvage_device_present{device=\"flannel.1\"}", 0.0).then_some(())
    });
    one.namespace.ip("link del taken");
    wait_ready(&one);
    one.wait_reaches(&two);
}

#[test]
fn when_the_underlay_is_away() {
    let (_store, one, two) = pair();
    wait_ready(&one);
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    wait_not_ready(&one, "underlay", "no-underlay", "eth0");
    one.namespace.ip("address add 10.77.0.11/24 dev eth0");
    wait_ready(&one);
    one.wait_reaches(&two);
}

#[test]
fn when_the_udp_port_is_somebody_elses() {
    let store = Store::start(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#);
    let mut one = store.host(1);
    // The kernel's own use of the port: a VXLAN device.
    one.namespace
        .ip("link add blocker type vxlan id 9 dstport 8285");
    one.namespace.ip("link set blocker up");
    one.start_agent();
    one.wait_told("that it waits", |line| line.contains("waiting to join:"));
    wait_not_ready(&one, "joining", "kernel-port", "8285");
    one.namespace.ip("link del blocker");
    one.wait_ready();
    wait_ready(&one);
    // The data plane is closed and opened again, and so are its counters.
    one.namespace.ip("link del flannel0");
    wait_for(PATIENCE, "the device to come back", || {
        one.namespace
            .try_run("ip link show flannel0")
            .status
            .success()
            .then_some(())
    });
    wait_ready(&one);
    assert!(metric(&one, "selvage_udp_transmit_packets_total") >= 0.0);
}

#[test]
fn with_a_network_config_that_cannot_be_used() {
    let (store, one, two) = pair();
    wait_ready(&one);
    let set = |config: &str| store.etcdctl(&["put", "/coreos.com/network/config", config]);
    for (config, code, text) in [
        (
            r#"{"Network":"nonsense"}"#,
            "bad-network-config",
            "nonsense",
        ),
        (
            r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "subnet-outside-network",
            "10.99.0.0/16",
        ),
    ] {
        set(config);
        wait_not_ready(&one, "config", code, text);
        assert!(one.reaches(&two));
    }
    // A scrape may show what was a second ago.
    wait_for(PATIENCE, "both to be counted", || {
        (metric(&one, "selvage_network_configs_rejected_total") >= 2.0).then_some(())
    });
    set(NETWORK);
    wait_ready(&one);
}

/// What a scrape shows is what there is.
#[test]
fn metrics_tell_of_peers_leases_and_traffic() {
    let (store, one, two) =
        pair_in(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.100.0","Backend":{"Type":"vxlan"}}"#);
    store.put_lease("10.6.1.0-24", GHOST);
    store.put_lease("10.5.199.0-24", &GHOST.replace("10.77.0.99", "224.0.0.1"));
    wait_for(PATIENCE, "the refused leases", || {
        is(&one, "selvage_pool_leases", 4.0).then_some(())
    });
    for (series, value) in [
        ("selvage_peers", 1.0),
        ("selvage_pool_subnets", 100.0),
        ("selvage_leases_refused{reason=\"outside-network\"}", 1.0),
        ("selvage_leases_refused{reason=\"public-ip\"}", 1.0),
        ("selvage_leases_refused{reason=\"overlaps-own\"}", 0.0),
        ("selvage_lease_held", 1.0),
        ("selvage_lease_ttl_seconds", 86_400.0),
        ("selvage_peers_failed", 0.0),
    ] {
        assert!(is(&one, series, value), "{series}");
    }
    assert!(metric(&one, "selvage_resync_duration_seconds_count") >= 1.0);
    assert!(metric(&one, "selvage_kernel_changes_total{operation=\"created\"}") >= 5.0);
    let received = "selvage_device_receive_packets_total{device=\"flannel.1\"}";
    let before = metric(&one, received);
    assert!(one.reaches(&two));
    wait_for(PATIENCE, "the counter to follow", || {
        (metric(&one, received) > before).then_some(())
    });
    let (_, metrics) = one.ask("/metrics");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), &metrics).expect("the metrics");
    let checked = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(fs::File::open(file.path()).expect("the metrics"))
        .output();
    match checked {
        Ok(output) => assert!(
            output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
            "{output:?}"
        ),
        Err(error) => eprintln!("not checked by promtool: {error}"),
    }
}

/// Every change of state is one line with fields, and a fault that lasts is not a line for each try.
#[test]
fn the_log_has_each_change_and_each_fault_once() {
    let (mut store, one, mut two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    let has = |line: &str| one.log().matches(line).count();
    assert_eq!(
        has(&format!("peer added subnet={subnet} public_ip=10.77.0.12")),
        1
    );
    two.kill_agent();
    store.etcdctl(&[
        "del",
        &format!("/coreos.com/network/subnets/{}", two.lease_key()),
    ]);
    wait_for(PATIENCE, "the peer to be gone", || {
        (has(&format!(
            "peer removed subnet={subnet} public_ip=10.77.0.12"
        )) == 1)
            .then_some(())
    });
    // The route keeps the subnet's own next hop from being made, at every try and at every look.
    one.namespace
        .ip("route add 10.5.250.0/24 via 10.77.0.1 proto static");
    store.put_lease("10.5.250.0-24", GHOST);
    wait_not_ready(&one, "program", "kernel-conflict", "10.5.250.0/24");
    for _ in 0..10 {
        // Each of these makes the agent look at everything again.
        one.namespace.ip("link add stir type bridge");
        one.namespace.ip("link del flannel.1");
        one.namespace.ip("link del stir");
        std::thread::sleep(Duration::from_millis(200));
        wait_until("the device to be back", || {
            let shown = one.namespace.try_run("ip link show flannel.1");
            shown.status.success()
        });
    }
    assert_eq!(has("WARN failed to program the kernel"), 1, "{}", one.log());
    one.namespace.ip("route del 10.5.250.0/24");
    wait_ready(&one);
    let log = one.log();
    let end = log
        .lines()
        .find(|line| line.contains("recovered: can program the kernel again"))
        .unwrap_or_else(|| panic!("no end in {log}"));
    assert!(end.contains("seen ") && end.contains(" times in "), "{end}");
    store.stop_etcd();
    wait_not_ready(&one, "store", "store-unreachable", ETCD);
    store.start_etcd();
    wait_ready(&one);
    assert_eq!(
        has("lost the connection to the lease store: etcd"),
        1,
        "{}",
        one.log()
    );
}

/// The lease is written when the agent is told to stop, and not known of yet.
#[test]
fn an_agent_that_is_to_leave_when_it_stops_leaves_no_lease_that_it_was_taking() {
    let store = Store::start(NETWORK);
    let directory = tempfile::TempDir::new().expect("a directory");
    let slow = directory.path().join("slow");
    fs::write(slow.with_extension("replies"), "").expect("a file");
    let mut relay = store.start_relay(2391, &slow);
    let mut host = store.host(1);
    host.etcd = "http://10.77.0.1:2391".to_owned();
    host.arguments.push("--leave-on-stop".to_owned());
    host.start_agent();
    wait_until("the lease", || !store.lease_keys().is_empty());
    assert_eq!(host.stop_agent(), Some(0));
    assert_eq!(store.lease_keys(), [""; 0]);
    assert!(!host.subnet_file().exists());
    relay.kill().expect("to end the relay");
    relay.wait().expect("its end");
}
