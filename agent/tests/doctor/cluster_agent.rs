//! What the doctor says of the agent itself: not running, waiting, or lacking something.

use std::time::Duration;

use selvage::doctor::Severity;

use crate::cluster::{NETWORK, Store, pair};
use crate::diagnosis::Diagnosis;
use crate::wait::{wait_for, wait_until};

/// Writes another network config.
fn set(store: &Store, config: &str) {
    store.etcdctl(&["put", "/coreos.com/network/config", config]);
}

/// Asks until a finding of the check is there.
fn until_found(host: &crate::host::Host, check: &str) -> Diagnosis {
    wait_for(
        Duration::from_secs(30),
        &format!("a finding of {check}"),
        || {
            let diagnosis = Diagnosis::without_probes(host);
            (!diagnosis.of_check(check).is_empty()).then_some(diagnosis)
        },
    )
}

/// Asks until nothing is found.
fn until_silent(host: &crate::host::Host) {
    wait_until("the doctor to be silent", || {
        Diagnosis::without_probes(host).report.findings.is_empty()
    });
}

#[test]
fn agent_that_does_not_run_is_missed() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let never = Diagnosis::without_probes(&one);
    let finding = never.assert_finds("agent", "systemctl enable --now selvage.service");
    assert_eq!(
        (finding.severity, never.status),
        (Severity::Warning, Some(2))
    );
    // Without an agent the rest cannot be looked at, which is not silence.
    let unchecked = &never.report.unchecked;
    assert!(
        unchecked
            .iter()
            .any(|unchecked| unchecked.check == "lease-expiry")
    );

    one.start_agent();
    one.wait_ready();
    Diagnosis::without_probes(&one).assert_silent();
    one.kill_agent();
    let killed = Diagnosis::without_probes(&one);
    let finding = killed.assert_finds("agent", "systemctl start selvage");
    assert_eq!(
        (finding.severity, killed.status),
        (Severity::Error, Some(1))
    );
    assert!(finding.what.contains("subnet.env is there"), "{finding:?}");
}

#[test]
fn agent_that_answers_elsewhere_is_told_from_none() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    std::fs::remove_file(one.socket()).expect("the socket");
    let finding = Diagnosis::without_probes(&one);
    let finding = finding.assert_finds("agent", "--socket");
    assert!(finding.what.contains("an agent runs"), "{finding:?}");
}

#[test]
fn what_joining_waits_for_is_told_with_its_remedy() {
    let mut store = Store::start(NETWORK);
    let mut one = store.host(1);
    store.stop_etcd();
    one.start_agent();
    let waits = |line: &str| line.starts_with("STATUS=waiting for");
    one.wait_told("what it waits for", waits);
    let diagnosis = Diagnosis::without_probes(&one);
    let finding = diagnosis.assert_finds(
        "agent",
        "etcdctl --endpoints=http://10.77.0.1:2379 endpoint health",
    );
    assert!(finding.what.contains("has not joined"), "{finding:?}");

    store.start_etcd();
    one.wait_ready();
    until_silent(&one);
    one.kill_agent();

    store.etcdctl(&["del", "/coreos.com/network/config"]);
    one.start_agent();
    wait_until("the missing network config to be named", || {
        let diagnosis = Diagnosis::without_probes(&one);
        let found = diagnosis.of_check("agent");
        found.iter().any(|finding| {
            finding
                .what
                .contains("no network config at /coreos.com/network/config")
                && finding.remedy[0].contains("selvage network set")
        })
    });
    set(&store, r#"{"Network":"nonsense"}"#);
    wait_until("the bad network config to be named", || {
        let diagnosis = Diagnosis::without_probes(&one);
        let found = diagnosis.of_check("agent");
        found.iter().any(|finding| {
            finding.what.contains("nonsense") && finding.remedy[0].contains("selvage network get")
        })
    });
    set(&store, NETWORK);
    one.wait_ready();
    until_silent(&one);
}

#[test]
fn store_that_went_away_is_told_until_it_is_back() {
    let (mut store, one, _two) = pair();
    store.stop_etcd();
    let diagnosis = until_found(&one, "agent");
    let finding = diagnosis.assert_finds("agent", "curl -s http://10.77.0.1:2379/health");
    assert!(
        finding.what.starts_with("the lease store does not answer"),
        "{finding:?}"
    );
    assert_eq!(diagnosis.report.findings.len(), 1, "{diagnosis:#?}");
    store.start_etcd();
    until_silent(&one);
}

#[test]
fn underlay_without_an_address_is_told() {
    let (_store, one, _two) = pair();
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    let diagnosis = until_found(&one, "agent");
    let told = diagnosis.of_check("agent");
    let of_underlay = |finding: &&&selvage::doctor::Finding| finding.what.contains("underlay");
    let finding = told.iter().find(of_underlay).expect("the underlay");
    assert!(
        finding.remedy[0].contains("ip -brief address"),
        "{finding:?}"
    );
    one.namespace.ip("address add 10.77.0.11/24 dev eth0");
    until_silent(&one);
}

#[test]
fn route_in_the_way_is_a_refusal_of_the_kernel() {
    let (_store, one, two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    // Held fast: a foreign route is not the agent's to mend.
    one.namespace.ip(&format!("route del {subnet}"));
    one.namespace
        .run(&format!("ip route add {subnet} via 10.77.0.1 proto static"));
    let diagnosis = until_found(&one, "kernel-refusal");
    let finding = diagnosis.assert_finds("kernel-refusal", &format!("ip route del {subnet}"));
    assert!(
        finding
            .what
            .contains("another program's route is in the way"),
        "{finding:?}"
    );
    // One fault, told once.
    assert!(
        diagnosis.of_check("agent").is_empty() && diagnosis.of_check("overlap").is_empty(),
        "{diagnosis:#?}"
    );
    one.namespace.ip(&format!("route del {subnet}"));
    until_silent(&one);
}

#[test]
fn device_that_the_kernel_does_not_know_needs_a_module() {
    let store = Store::start(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#);
    let mut one = store.host(1);
    if one
        .namespace
        .try_run("ip link add probe type ipip")
        .status
        .success()
    {
        eprintln!("skipped: this kernel has ipip");
        return;
    }
    one.start_agent();
    let diagnosis = until_found(&one, "kernel-refusal");
    diagnosis.assert_finds("kernel-refusal", "modprobe ipip");
    assert!(diagnosis.of_check("agent").is_empty(), "{diagnosis:#?}");
}

#[test]
fn network_config_that_cannot_be_followed_is_told() {
    let (store, one, _two) = pair();
    for (config, word) in [
        (
            r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan"}}"#,
            "systemctl restart selvage",
        ),
        (
            r#"{"Network":"10.5.0.0/16","Backend":{"Type":"x"}}"#,
            "selvage network get",
        ),
        (r#"{"Network":"nonsense"}"#, "selvage network get"),
    ] {
        set(&store, config);
        let diagnosis = until_found(&one, "network-config");
        wait_until("the remedy that fits", || {
            let diagnosis = Diagnosis::without_probes(&one);
            let found = diagnosis.of_check("network-config");
            found.iter().any(|finding| finding.remedy[0].contains(word))
        });
        assert_eq!(diagnosis.status, Some(2), "{diagnosis:#?}");
        assert!(diagnosis.of_check("agent").is_empty(), "{diagnosis:#?}");
    }
    set(&store, NETWORK);
    until_silent(&one);
}
