//! What the doctor says of the own lease, of others', and of what leases go by.

use selvage::command::doctor::Severity;

use crate::authority::Authority;
use crate::clock::Clock;
use crate::cluster::{NETWORK, Store, pair};
use crate::diagnosis::Diagnosis;

/// Subnets 10.5.0.16/28 to 10.5.0.48/28.
const SMALL: &str = r#"{"Network":"10.5.0.0/26","SubnetLen":28,"Backend":{"Type":"vxlan"}}"#;

fn lease(public_ip: &str, mac: &str, owner: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"SelvageOwner":"{owner}"}}"#
    )
}

#[test]
fn lease_that_another_took_in_a_full_network_is_lost() {
    let store = Store::start(SMALL);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    Diagnosis::without_probes(&one).assert_silent();
    let own = one.subnet_env("FLANNEL_SUBNET");
    let own: ipnet::Ipv4Net = own.parse().expect("a subnet");
    // Its own last, or it would take one of the others.
    let mut all = [16, 32, 48];
    all.sort_by_key(|last| own.network().octets()[3] == *last);
    for last in all {
        let (ip, mac) = (
            format!("10.77.0.{}", 50 + last),
            format!("02:00:00:00:00:{last}"),
        );
        store.put_lease(
            &format!("10.5.0.{last}-28"),
            &lease(&ip, &mac, &format!("f{last}")),
        );
    }
    // Before that, it is lost and nothing is known of the next one.
    let remedy = "selvage network leases";
    let diagnosis = Diagnosis::until_finds(&one, "lease-lost", remedy);
    let finding = diagnosis.assert_finds("lease-lost", remedy);
    assert_eq!(finding.severity, Severity::Error);
    assert_eq!(finding.subject, Some(own.trunc().to_string()));
    assert!(diagnosis.of_check("agent").is_empty(), "{diagnosis:#?}");

    store.etcdctl(&["del", "--prefix", "/coreos.com/network/subnets/10.5.0."]);
    Diagnosis::until(&one, "the lease to be back", |diagnosis| {
        diagnosis.of_check("lease-lost").is_empty()
    });
}

#[test]
fn lease_that_is_not_extended_is_told_before_it_ends() {
    let mut store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.environment = vec![("SELVAGE_ETCD_LEASE_TTL", "60".to_owned())];
    one.start_agent();
    one.wait_ready();
    Diagnosis::without_probes(&one).assert_silent();
    store.stop_etcd();
    // Extended every 10 s, it has less than 30 s left half a minute later.
    let remedy = "endpoint health";
    let diagnosis = Diagnosis::until_finds(&one, "lease-expiry", remedy);
    let finding = diagnosis.assert_finds("lease-expiry", remedy);
    assert_eq!(finding.severity, Severity::Warning);
    let left = ["it expires in 1", "it expires in 2"];
    assert!(
        left.iter().any(|left| finding.what.contains(left)),
        "{finding:?}"
    );
    Diagnosis::until(&one, "the end to be near", |diagnosis| {
        let found = diagnosis.of_check("lease-expiry");
        found.iter().any(|found| found.severity == Severity::Error)
    });
    store.start_etcd();
    // The keeper's pauses have grown meanwhile.
    Diagnosis::until_silent(&one);
}

#[test]
fn clock_that_jumped_is_told() {
    let clock = Clock::new();
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.environment = clock.environment();
    one.start_agent();
    one.wait_ready();
    Diagnosis::without_probes(&one).assert_silent();
    // Back, since the first jump forward after a start may be the setting of a clock that was never right.
    clock.set("-2h");
    let diagnosis = Diagnosis::until_finds(&one, "clock-jump", "timedatectl");
    let finding = diagnosis.assert_finds("clock-jump", "timedatectl");
    assert!(finding.what.contains("by 2 h back"), "{finding:?}");
    assert_eq!(diagnosis.report.findings.len(), 1, "{diagnosis:#?}");
}

#[test]
fn certificates_that_are_not_valid_are_told() {
    let authority = Authority::new();
    let client = authority.path("client.pem");
    let files = [
        ("SELVAGE_ETCD_CAFILE", "ca.pem"),
        ("SELVAGE_ETCD_CERTFILE", "client.pem"),
        ("SELVAGE_ETCD_KEYFILE", "client.key"),
    ]
    .map(|(variable, file)| (variable, authority.path(file).display().to_string()));
    let store = Store::start_with_tls(NETWORK, authority);
    let mut one = store.host(1);
    one.environment = files.to_vec();
    one.start_agent();
    one.wait_ready();
    Diagnosis::without_probes(&one).assert_silent();

    // The files alone tell it, so that nobody has to wait for them to end.
    let authority = store.tls.as_ref().expect("an authority");
    authority.shorten("client", 3600);
    let diagnosis = Diagnosis::without_probes(&one);
    let finding = diagnosis.assert_finds("certificates", &client.display().to_string());
    assert_eq!(finding.severity, Severity::Warning, "{finding:?}");
    assert!(finding.what.contains("CN=client"), "{finding:?}");
    authority.shorten("client", -1);
    let diagnosis = Diagnosis::without_probes(&one);
    let finding = diagnosis.assert_finds("certificates", &client.display().to_string());
    assert!(finding.what.contains(" expired "), "{finding:?}");
    assert_eq!(diagnosis.status, Some(1));
    authority.certificate("client", "leaf", Some("ca"));
    Diagnosis::until_silent(&one);
    std::fs::remove_file(client).expect("to remove the certificate");
    Diagnosis::without_probes(&one).assert_finds("certificates", "etcd.certfile");
}

#[test]
fn network_that_fills_up_is_told() {
    let store = Store::start(SMALL);
    let mut hosts = [1, 2].map(|number| store.host(number));
    for host in &mut hosts {
        host.start_agent();
        host.wait_ready();
    }
    Diagnosis::without_probes(&hosts[0]).assert_silent();
    store.put_lease(
        "10.5.0.48-28",
        &lease("10.77.0.90", "02:00:00:00:00:90", "f"),
    );
    store.put_lease(
        "10.5.0.32-28",
        &lease("10.77.0.91", "02:00:00:00:00:91", "e"),
    );
    store.put_lease(
        "10.5.0.16-28",
        &lease("10.77.0.92", "02:00:00:00:00:92", "d"),
    );
    let remedy = "selvage network leases";
    let diagnosis = Diagnosis::until_finds(&hosts[0], "subnets", remedy);
    let finding = diagnosis.assert_finds("subnets", remedy);
    assert!(
        finding.what.contains("of the network's 3 subnets"),
        "{finding:?}"
    );
}

#[test]
fn leases_that_cannot_be_used_are_told_by_their_fault() {
    let (store, one, _two) = pair();
    // A reservation that waits for its node is none of them.
    store.put_lease(
        "10.5.240.0-24",
        r#"{"PublicIP":"10.77.0.80","PublicIPv6":null}"#,
    );
    store.put_lease(
        "10.6.1.0-24",
        &lease("10.77.0.81", "02:00:00:00:00:81", "a"),
    );
    store.put_lease(
        "10.5.241.0-24",
        &lease("224.0.0.1", "02:00:00:00:00:82", "b"),
    );
    let other = lease("10.77.0.83", "02:00:00:00:00:83", "c").replace("vxlan", "host-gw");
    store.put_lease("10.5.242.0-24", &other);
    store.put_lease(
        "10.5.243.0-24",
        &other.replace("83", "84").replace("\"c\"", "\"d\""),
    );
    // The last lease makes none of its own: it joins the one before.
    let diagnosis = Diagnosis::until(&one, "all faults to be told", |diagnosis| {
        let found = diagnosis.of_check("refused-peers");
        found.len() == 3
            && found
                .iter()
                .any(|found| found.what.contains("10.5.243.0/24"))
    });
    let found = diagnosis.of_check("refused-peers");
    for (subject, what, word) in [
        (
            "10.6.1.0/24",
            "outside the network",
            "etcdctl del '/coreos.com/network/subnets/10.6.1.0-24'",
        ),
        (
            "10.5.241.0/24",
            "224.0.0.1 is a multicast address",
            "underlay.public-ip",
        ),
        (
            "10.5.242.0/24",
            "10.5.242.0/24 and 10.5.243.0/24",
            "selvage network get",
        ),
    ] {
        let finding = found
            .iter()
            .find(|finding| finding.subject.as_deref() == Some(subject));
        let finding = finding.unwrap_or_else(|| panic!("{subject}: {diagnosis:#?}"));
        assert!(finding.what.contains(what), "{what}: {finding:?}");
        assert!(
            finding.remedy.iter().any(|remedy| remedy.contains(word)),
            "{word}: {finding:?}"
        );
    }
    assert_eq!(diagnosis.report.findings.len(), 3, "{diagnosis:#?}");
}
