use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::*;
use crate::telemetry::status::{self, Cause, Code, Traffic, samples};

/// A sample with every field set, and all numbers different.
fn sample() -> Sample {
    let tally = |kinds: &[&'static str]| -> Tally {
        kinds.iter().zip(1..).map(|(kind, n)| (*kind, n)).collect()
    };
    let away = Cause::new(Code::StoreUnreachable, "etcd is away").of(TaskName::Store);
    let full = samples::full();
    let status = Status {
        agent: status::Agent {
            started_time: 1_700_000_000,
            settings_pending: vec!["etcd.prefix".to_owned(); 88],
            ..full.agent
        },
        health: status::Health::new(State::Degraded, vec![away]),
        store: status::Store {
            kind: "etcd".to_owned(),
            server: Some("http://10.0.0.1:2379".to_owned()),
            ..full.store
        },
        network: full.network.map(|network| status::Network {
            subnets: Some(23),
            ..network
        }),
        lease: full.lease.map(|lease| status::Lease {
            since_time: 1_700_000_001,
            ttl_seconds: Some(86_400),
            left_seconds: Some(80_000),
            ..lease
        }),
        kernel: status::Kernel {
            created: 30,
            changed: 31,
            removed: 32,
            failed: 33,
            failures: vec!["no".to_owned(); 34],
            resyncs: 35,
            resync_total_usec: 1_500_000,
            resync_time: Some(1_700_000_002),
            resync_usec: Some(250),
            interval_seconds: 300,
            ..full.kernel
        },
        firewall: full.firewall.map(|firewall| status::Firewall {
            programmed: 36,
            ..firewall
        }),
        cloud: full.cloud.map(|cloud| status::Cloud {
            settled_time: Some(1_700_000_003),
            added: 40,
            replaced: 41,
            removed: 42,
            failures: 43,
            ..cloud
        }),
        clock: status::Clock {
            jumps: 80,
            ..full.clock
        },
        devices: vec![device("flannel.1", true), device("flannel.2", false)],
        peers: Vec::new(),
        ..full
    };
    Sample {
        task_failures: tally(&["lease", "program"]),
        peers: Some(Peers {
            used: 20,
            failed: 21,
            refused: tally(&["outside-network", "public-ip"]),
            leases: 22,
        }),
        data_plane: Some(Counters {
            sent_packets: 60,
            sent_bytes: 61,
            received_packets: 62,
            received_bytes: 63,
            not_ipv4: 64,
            no_route: 65,
            ttl_exceeded: 66,
            malformed: 67,
            oversize: 68,
            send_failed: 69,
            tun_failed: 70,
            unknown_peer: 71,
            icmp_sent: 72,
        }),
        tunnels: Some(tally(&["down", "up"])),
        events: Events {
            renewals: 81,
            renewal_failures: 82,
            leases_lost: 83,
            renumberings: 84,
            store_errors: tally(&["refused", "unreachable"]),
            configs_rejected: 85,
            reloads: Reloads {
                done: 86,
                failed: 87,
                last_failed: true,
            },
        },
        ..Sample::joining(status)
    }
}

fn device(name: &str, present: bool) -> Device {
    Device {
        name: name.to_owned(),
        present,
        kind: None,
        mtu: None,
        mac: None,
        traffic: Traffic {
            rx_bytes: 50,
            tx_bytes: 51,
            rx_packets: Some(52),
            tx_packets: Some(53),
        },
        tx_errors: 54,
        tx_dropped: 55,
        rx_errors: 56,
        rx_dropped: 57,
    }
}

fn text() -> String {
    let process = Process {
        cpu: Some(Duration::from_millis(1250)),
        resident: Some(90),
        virtual_size: Some(91),
        threads: Some(92),
        open_fds: Some(93),
        max_fds: Some(94),
    };
    let sample = sample();
    // The loop has not been asked since then.
    let now = sample.at + Duration::from_millis(10_500);
    sample.write(true, &process, now)
}

/// Names, types, help and labels are an interface: a difference here is one that users' alerts and dashboards notice.
#[test]
fn every_metric_is_as_documented() {
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let text = text().replace(&version, "version=\"VERSION\"");
    assert_eq!(text, include_str!("tests/metrics.txt"));
}

#[test]
fn before_anything_is_known_only_the_process_is_told_of() {
    let nothing = Status::joining(status::Agent::of_process("", 0), Vec::new());
    let text = Sample::joining(nothing).text(false);
    assert!(text.contains("selvage_ready 0\n"), "{text}");
    assert!(text.contains("selvage_store_reachable 0\n"), "{text}");
    for absent in ["selvage_lease_held", "selvage_peers", "selvage_udp"] {
        assert!(!text.contains(absent), "{text}");
    }
    assert!(text.contains("process_resident_memory_bytes "), "{text}");
}

/// Runs Prometheus' promtool on its standard input, or on the files in its arguments.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    use std::io::Write;
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/data/prometheus"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, which agent/host-packages test installs");
    // Dropped at once, so that promtool sees EOF.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn promtool_finds_nothing_to_say() {
    let (good, said) = promtool(&["check", "metrics"], &text());
    assert!(good && said.is_empty(), "{said}");
    let bad = "# HELP selvage_bad_total\n# TYPE selvage_bad_total gauge\nselvage_bad_total 1\n";
    let (good, said) = promtool(&["check", "metrics"], bad);
    assert!(!good, "promtool takes anything: {said}");
}

#[test]
fn alerts_are_valid_and_fire_when_they_should() {
    for arguments in [
        &["check", "rules", "--lint-fatal", "alerts.yml"][..],
        &["test", "rules", "alerts.test.yml"],
    ] {
        let (good, said) = promtool(arguments, "");
        assert!(good, "promtool {arguments:?}: {said}");
    }
}

#[test]
fn every_metric_is_in_the_documentation() {
    let page = include_str!("../../../docs/monitoring.md");
    let text = text();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, kind) = (words.next().unwrap(), words.next().unwrap());
        let row = format!("| `{name}` | {kind} | ");
        let row = page.lines().find(|line| line.starts_with(&row));
        let row = row.unwrap_or_else(|| panic!("{name} is missing"));
        let help = format!("# HELP {name} ");
        let help = text.lines().find_map(|line| line.strip_prefix(&help));
        assert!(row.ends_with(&format!(" | {} |", help.unwrap())), "{row}");
    }
}

#[test]
fn metrics_of_updates_are_added_only_if_they_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(METRICS_FILE);
    assert_eq!(added(&path), "");
    let whole = "# HELP selvage_update_a A.\n# TYPE selvage_update_a gauge\nselvage_update_a 1\n";
    std::fs::write(&path, whole).unwrap();
    assert_eq!(added(&path), whole);
    let long = whole.repeat(2000);
    for bad in [
        &whole[..whole.len() - 1],
        "selvage_ready 1\n",
        "\n\n",
        "selvage_update_a 1\n\u{0}\n",
        &long,
    ] {
        std::fs::write(&path, bad).unwrap();
        assert_eq!(added(&path), "", "{} bytes", bad.len());
    }
}

/// The names of metrics in an expression or a file.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("selvage_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    let text = text();
    let known: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let alerts = include_str!("../../../data/prometheus/alerts.yml");
    let tests = include_str!("../../../data/prometheus/alerts.test.yml");
    let dashboard = include_str!("../../../data/prometheus/dashboard.json");
    for (file, content) in [
        ("alerts", alerts),
        ("tests", tests),
        ("dashboard", dashboard),
    ] {
        let used = names(content);
        assert!(used.len() >= 5, "{file}: {used:?}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}

#[test]
fn every_alert_has_a_test_and_says_what_to_do() {
    let alerts = include_str!("../../../data/prometheus/alerts.yml");
    let tests = include_str!("../../../data/prometheus/alerts.test.yml");
    let names: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 8, "{names:?}");
    for name in &names {
        let tested = format!("alertname: {name}\n");
        assert!(tests.contains(&tested), "{name} has no test");
    }
    assert_eq!(alerts.matches("summary: ").count(), names.len());
    assert_eq!(alerts.matches("description: ").count(), names.len());
}

#[test]
fn the_dashboard_is_one_that_grafana_loads() {
    let text = include_str!("../../../data/prometheus/dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(dashboard["uid"], "selvage");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels with one id");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(!names(expression).is_empty(), "{title}: {expression}");
        }
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(
                    x < 24 && taken.insert((x, y)),
                    "{title} overlaps at {x}, {y}"
                );
            }
        }
    }
}
