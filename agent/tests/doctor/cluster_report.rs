//! The doctor's report: silence on a healthy cluster, the schema of its JSON, its words and its exit statuses.

use selvage::command::doctor::{Finding, Report, Severity, Unchecked};

use crate::cluster::{NETWORK, Store};
use crate::diagnosis::Diagnosis;
use crate::host::Host;

/// What the doctor prints for people.
fn text(host: &Host, arguments: &[&str]) -> (String, Option<i32>) {
    let output = host
        .selvage("doctor")
        .args(arguments)
        .output()
        .expect("the doctor");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.is_empty(), "{complaint}");
    (text, output.status.code())
}

/// What hosts have besides the overlay, and may have.
fn furnish(host: &Host) {
    let ip = |arguments: &str| host.namespace.ip(arguments);
    // Docker's other networks.
    ip("link add br-0123456789ab type bridge");
    ip("address add 172.18.0.1/16 dev br-0123456789ab");
    ip("link set br-0123456789ab up");
    // A default route, a VPN that sends everything through itself, and networks summed up.
    ip("route add default via 10.77.0.1");
    ip("tuntap add tun0 mode tun");
    ip("address add 10.8.0.2/24 dev tun0");
    ip("link set tun0 up");
    ip("route add 192.168.0.0/16 dev tun0");
    ip("route add default dev tun0 table 200");
    ip("route add blackhole 10.0.0.0/8");
    // A container's own route, as CNI plugins make them.
    let container = host.container_address();
    ip(&format!("route add {container}/32 dev docker0"));
}

#[test]
fn doctor_is_silent_on_a_healthy_cluster_of_three() {
    let store = Store::start(NETWORK);
    let mut hosts = [1, 2, 3].map(|number| store.host(number));
    for host in &mut hosts {
        host.join();
        furnish(host);
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        hosts[one].wait_reaches(&hosts[other]);
    }
    // Subnets that are kept for hosts to come, and for one that has another already.
    store.put_lease(
        "10.5.240.0-24",
        r#"{"PublicIP":"10.77.0.80","PublicIPv6":null}"#,
    );
    store.put_lease(
        "10.5.241.0-24",
        r#"{"PublicIP":"10.77.0.11","PublicIPv6":null}"#,
    );
    for host in &hosts {
        let diagnosis = Diagnosis::of(host);
        diagnosis.assert_silent();
        for check in [
            "agent",
            "kernel-refusal",
            "lease-lost",
            "lease-expiry",
            "certificates",
            "clock-jump",
            "nat-interface",
            "duplicate-address",
            "overlap",
            "network-config",
            "subnets",
            "refused-peers",
        ] {
            let checked = &diagnosis.report.checked;
            assert!(
                checked.iter().any(|name| name == check),
                "{check}: {diagnosis:#?}"
            );
        }
        assert_eq!(text(host, &[]), (String::new(), Some(0)));
    }
}

#[test]
fn exit_status_and_words_follow_what_was_found() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let (said, status) = text(&one, &[]);
    assert_eq!(status, Some(2), "{said}");
    assert!(
        said.starts_with("warning: no agent runs on this host, and none is enabled [agent]\n"),
        "{said}"
    );
    assert!(
        said.contains("\n  why: ") && said.contains("\n  do:  systemctl enable"),
        "{said}"
    );
    assert!(
        said.contains("\nskipped: kernel-refusal, lease-lost, lease-expiry, "),
        "{said}"
    );
    one.start_agent();
    one.wait_ready();
    let (said, status) = text(&one, &["--verbose"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("checked for other networks, VPN routes and servers"),
        "{said}"
    );
    one.kill_agent();
    let (said, status) = text(&one, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("error: no agent runs, though "), "{said}");
    let (coloured, _) = text(&one, &["--color", "always"]);
    assert!(coloured.starts_with("\x1b[31merror\x1b[0m: "), "{coloured}");
    let wrong = one
        .selvage("doctor")
        .arg("--no-such-flag")
        .output()
        .expect("the doctor");
    assert_eq!(wrong.status.code(), Some(64));
}

#[test]
fn schema_is_as_it_was() {
    let finding = |severity, subject: Option<&str>| Finding {
        check: "overlap".to_owned(),
        severity,
        subject: subject.map(str::to_owned),
        peers: match subject {
            Some(_) => Vec::new(),
            None => vec!["10.5.6.0/24".parse().expect("a subnet")],
        },
        what: "what".to_owned(),
        why: "why".to_owned(),
        remedy: vec!["first".to_owned(), "second".to_owned()],
    };
    let report = Report {
        schema: 1,
        time: 1_700_000_000,
        findings: vec![
            finding(Severity::Error, Some("tun0")),
            finding(Severity::Warning, None),
        ],
        checked: vec!["agent".to_owned(), "overlap".to_owned()],
        unchecked: vec![Unchecked {
            check: "one-way".to_owned(),
            reason: "not root".to_owned(),
        }],
    };
    let golden = include_str!("report.json");
    let written = serde_json::to_string_pretty(&report).expect("JSON");
    assert_eq!(written, golden.trim_end());
    // Readers of this version skip what later ones add.
    let later = golden.replacen("\"schema\": 1,", "\"schema\": 1, \"new\": {},", 1);
    let read: Report = serde_json::from_str(&later).expect("a report");
    assert_eq!(read, report);
}
