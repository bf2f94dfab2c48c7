use std::{net::Ipv4Addr, path::Path, process::Command};

use selvage::telemetry::status::{Agent, Network};

use super::*;
use crate::{container::Ping, facts::Facts, timeline::Timeline};

fn node(number: u8) -> NodeReport {
    let at = |secs: u64| Some(Duration::from_secs(secs));
    NodeReport {
        name: format!("node{number}"),
        underlay: Ipv4Addr::new(10, 77, 0, 10 + number),
        facts: Facts {
            machine_id: "m".into(),
            subnet: format!("10.5.{number}.0/24").parse().unwrap(),
            network: "10.5.0.0/16".parse().unwrap(),
            mtu: 1450,
            docker_bridge: format!("10.5.{number}.1/24").parse().unwrap(),
            docker_mtu: 1450,
            overlay_mac: "0e:00:00:00:00:01".into(),
            peers: vec![Ipv4Addr::new(10, 77, 0, 12)],
        },
        image: crate::facts::Image {
            version: "0.1.0.1500".into(),
            slot: "a".into(),
            update: "none is pending".into(),
        },
        timeline: Timeline {
            ignition: at(11),
            lease: at(16),
            subnet_file: at(17),
            agent_active: at(17),
            docker_start: at(18),
            docker_ready: at(25 + u64::from(number)),
        },
        first_container: at(31),
    }
}

fn status() -> Status {
    let mut status = Status::joining(Agent::of_process("node1", 0), Vec::new());
    status.health.state = State::Ready;
    status.network = Some(Network {
        ipv4: "10.5.0.0/16".parse().ok(),
        ipv6: None,
        subnets: Some(255),
        backend: "vxlan".to_owned(),
        mtu: 1450,
        rejected: None,
    });
    status
}

fn crossing(seen: &str) -> CrossReport {
    CrossReport {
        from: "node1".into(),
        to: "node2".into(),
        client: Ipv4Addr::new(10, 5, 1, 2),
        server: Ipv4Addr::new(10, 5, 2, 2),
        ping: Ping {
            loss_percent: 0.0,
            rtt_ms: Some(2.25),
        },
        seen: seen.into(),
    }
}

/// A whole page, of which a server `saw` the client.
fn sample(saw: &str) -> String {
    let (nodes, statuses) = ([node(1), node(2)], [status(), status()]);
    let overlay = selvage::command::status::graph::draw(&statuses[0], Ok(&[]));
    Page {
        nodes: &nodes,
        statuses: &statuses,
        overlay: &overlay,
        crossings: &[crossing(saw)],
        accelerator: "TCG",
        took: Duration::from_secs(174),
    }
    .html()
}

#[test]
fn page_tells_what_was_found_and_asks_nothing_of_elsewhere() {
    let page = sample("10.5.1.2");
    for word in [
        "2 hosts on one overlay",
        "All is as it should be.",
        "10.5.2.0/24",
        "<td>0.1.0.1500</td><td>a</td><td>none is pending</td>",
        "vxlan",
        "the client's own address",
        "2.2 ms",
        "26.0 s",
    ] {
        assert!(page.contains(word), "{word} is missing in\n{page}");
    }
    for outside in ["<script", "src=", "@import", "url(", "href=\"http"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn trouble_is_not_taken_for_health_and_texts_stay_texts() {
    let page = sample("<b>10.77.0.11</b> & co");
    assert!(page.contains("Something is wrong"), "{page}");
    assert!(
        page.contains("&lt;b&gt;10.77.0.11&lt;/b&gt; &amp; co"),
        "{page}"
    );
    assert!(!page.contains("<b>"), "{page}");
}

/// What a browser makes of the page, and what it says about it.
pub(super) fn browse(page: &Path, profile: &Path, width: &str) -> (String, String) {
    let output = Command::new("timeout")
        .args([
            "120",
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
        ])
        .args([
            "--no-first-run",
            "--enable-logging=stderr",
            "--v=0",
            "--virtual-time-budget=2000",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={width},900"))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

pub(super) fn complaints(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|line| line.contains("CONSOLE"))
        .collect()
}

#[test]
fn a_real_browser_opens_the_page_from_disk_without_a_complaint() {
    let version = Command::new("chromium").arg("--version").output();
    assert!(
        version.is_ok(),
        "chromium is missing: agent/host-packages test"
    );
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("report.html");
    std::fs::write(&path, sample("10.5.1.2")).unwrap();
    let (page, said) = browse(&path, &directory.path().join("profile"), "1280");
    assert_eq!(complaints(&said), Vec::<&str>::new(), "{said}");
    assert!(
        page.contains("2 hosts on one overlay") && page.contains("</svg>"),
        "{page}"
    );

    // That this browser does say what is wrong.
    std::fs::write(
        &path,
        "<img src=\"missing.png\"><script>console.error('so')</script>",
    )
    .unwrap();
    let (_, said) = browse(&path, &directory.path().join("profile"), "1280");
    assert!(!complaints(&said).is_empty(), "{said}");
}
