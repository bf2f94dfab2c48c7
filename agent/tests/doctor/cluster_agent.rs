//! What the doctor says of the agent itself: not running, waiting, or lacking something.

use selvage::command::doctor::{Finding, Severity};

use crate::cluster::{NETWORK, Store, pair};
use crate::diagnosis::Diagnosis;

/// Writes another network config.
fn set(store: &Store, config: &str) {
    store.etcdctl(&["put", "/coreos.com/network/config", config]);
}

/// Asks until the check of the agent finds what fits, maybe among others.
fn until_told(host: &crate::host::Host, what: &str, fits: impl Fn(&Finding) -> bool) -> Diagnosis {
    Diagnosis::until(host, what, |diagnosis| {
        diagnosis.of_check("agent").into_iter().any(&fits)
    })
}

#[test]
fn agent_that_does_not_run_is_missed() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let never = Diagnosis::without_probes(&one);
    let finding = never.assert_finds("agent", "systemctl enable --now selvage");
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
    assert!(finding.what.contains("subnet.env exists"), "{finding:?}");
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
    let remedy = "etcdctl --endpoints=http://10.77.0.1:2379 endpoint health";
    let diagnosis = Diagnosis::until_finds(&one, "agent", remedy);
    let finding = diagnosis.assert_finds("agent", remedy);
    assert!(finding.what.contains("has not joined"), "{finding:?}");

    store.start_etcd();
    one.wait_ready();
    Diagnosis::until_silent(&one);
    one.kill_agent();

    store.etcdctl(&["del", "/coreos.com/network/config"]);
    one.start_agent();
    until_told(&one, "the missing network config", |finding| {
        finding
            .what
            .contains("no network config at /coreos.com/network/config")
            && finding.remedy[0].contains("selvage network set")
    });
    set(&store, r#"{"Network":"nonsense"}"#);
    until_told(&one, "the bad network config", |finding| {
        finding.what.contains("nonsense") && finding.remedy[0].contains("selvage network get")
    });
    set(&store, NETWORK);
    one.wait_ready();
    Diagnosis::until_silent(&one);
}

#[test]
fn store_that_went_away_is_told_until_it_is_back() {
    let (mut store, one, _two) = pair();
    store.stop_etcd();
    let remedy = "curl -s http://10.77.0.1:2379/health";
    let diagnosis = Diagnosis::until_finds(&one, "agent", remedy);
    let finding = diagnosis.assert_finds("agent", remedy);
    assert!(
        finding.what.starts_with("the lease store does not answer"),
        "{finding:?}"
    );
    assert_eq!(diagnosis.report.findings.len(), 1, "{diagnosis:#?}");
    store.start_etcd();
    Diagnosis::until_silent(&one);
}

#[test]
fn underlay_without_an_address_is_told() {
    let (_store, one, _two) = pair();
    one.namespace.ip("address del 10.77.0.11/24 dev eth0");
    // The store, which is out of reach as well, may be missed first.
    until_told(&one, "the underlay", |finding| {
        finding.what.contains("underlay") && finding.remedy[0].contains("ip -brief address")
    });
    one.namespace.ip("address add 10.77.0.11/24 dev eth0");
    Diagnosis::until_silent(&one);
}

#[test]
fn route_in_the_way_is_a_refusal_of_the_kernel() {
    let (_store, one, two) = pair();
    let subnet = two.lease_key().replace('-', "/");
    // Held fast: a foreign route is not the agent's to mend. In one step, or the agent's own might be back in between.
    one.namespace.ip(&format!(
        "route replace {subnet} via 10.77.0.1 proto static"
    ));
    let remedy = format!("ip route del {subnet}");
    let diagnosis = Diagnosis::until_finds(&one, "kernel-refusal", &remedy);
    let finding = diagnosis.assert_finds("kernel-refusal", &remedy);
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
    Diagnosis::until_silent(&one);
}

#[test]
#[ignore = "needs a kernel without ipip"]
fn without_ipip_the_device_that_the_kernel_does_not_know_needs_a_module() {
    let store = Store::start(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#);
    let mut one = store.host(1);
    one.start_agent();
    let diagnosis = Diagnosis::until_finds(&one, "kernel-refusal", "modprobe ipip");
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
        // Until then it is the one before that is told.
        let diagnosis = Diagnosis::until(&one, word, |diagnosis| {
            let found = diagnosis.of_check("network-config");
            found.iter().any(|finding| finding.remedy[0].contains(word))
        });
        assert_eq!(diagnosis.status, Some(2), "{diagnosis:#?}");
        assert!(diagnosis.of_check("agent").is_empty(), "{diagnosis:#?}");
    }
    set(&store, NETWORK);
    Diagnosis::until_silent(&one);
}
