//! Whole hosts: the real agent and kernel in network namespaces, with containers that talk.

use selvage::command::doctor::Report;
use serde_json::json;

use crate::fleet::{Fleet, VXLAN};
use crate::host::Host;
use crate::node::{bare, flannel};
use crate::wait::wait_until;

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"host-gw"}}"#;

#[test]
fn two_nodes_over_vxlan_and_what_happens_to_a_peer() {
    let (fleet, mut one, two) = Fleet::pair(VXLAN, [&["10.244.0.0/24"], &["10.244.7.0/24"]]);
    assert_eq!(one.subnet_env("FLANNEL_NETWORK"), "10.244.0.0/16");
    assert_eq!(one.subnet_env("FLANNEL_SUBNET"), "10.244.0.1/24");
    fleet.wait_condition("n1", "False", "FlannelIsUp");
    fleet.wait_condition("n2", "False", "FlannelIsUp");
    let published = fleet
        .server
        .look(|cluster| cluster.annotation("n2", "public-ip"));
    assert_eq!(published.as_deref(), Some("10.77.0.12"));
    let has_route = |host: &Host| {
        host.namespace
            .ip("route show 10.244.7.0/24")
            .contains("flannel.1")
    };
    assert!(has_route(&one));

    // The agent's restart changes nothing, and nothing is written again.
    let before = one.overlay_objects();
    let patches = fleet
        .server
        .look(|cluster| cluster.count("PATCH /api/v1/nodes/n1/status"));
    one.kill_agent();
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.overlay_objects(), before);
    fleet.wait_condition("n1", "False", "FlannelIsUp");
    wait_until("the condition to be written once", || {
        fleet
            .server
            .look(|cluster| cluster.count("PATCH /api/v1/nodes/n1/status"))
            == patches + 1
    });

    // An API server that is away takes no peer.
    fleet.server.change(|cluster| {
        cluster.faults.dropped = u32::MAX;
        cluster.watches_end += 1;
    });
    one.wait_told_last("the outage", |line| {
        line.contains("API server at http://10.77.0.1:8001")
    });
    assert!(has_route(&one) && one.reaches(&two));
    fleet.server.change(|cluster| cluster.faults.dropped = 0);
    one.wait_told_last("the end", |line| !line.contains("API server at"));

    // A node that is drained for good.
    drop(two);
    fleet.server.change(|cluster| cluster.delete("n2"));
    wait_until("the route to go", || !has_route(&one));
}

#[test]
fn two_nodes_over_host_gw_in_dual_stack() {
    let (fleet, one, two) = Fleet::pair(
        DUAL,
        [
            &["10.244.1.0/24", "fd00:10:244:1::/64"],
            &["10.244.2.0/24", "fd00:10:244:2::/64"],
        ],
    );
    for target in two.container_addresses() {
        wait_until("each family", || one.reaches_address(target, 56));
    }
    fleet.server.look(|cluster| {
        assert_eq!(
            cluster.annotation("n1", "backend-data").as_deref(),
            Some("null")
        );
        assert_eq!(
            cluster.annotation("n1", "public-ipv6").as_deref(),
            Some("fd77::b")
        );
    });
    // Only the IPv6 address of the peer changes, which flannel does not notice.
    let gateway = |host: &Host| host.namespace.ip("-6 route show fd00:10:244:2::/64");
    assert!(gateway(&one).contains("via fd77::c"), "{}", gateway(&one));
    drop(two);
    fleet
        .server
        .change(|cluster| cluster.annotate("n2", "public-ipv6", Some("fd77::99")));
    wait_until("the route to follow", || {
        gateway(&one).contains("via fd77::99")
    });
    fleet
        .server
        .change(|cluster| cluster.annotate("n2", "kube-subnet-manager", None));
    wait_until("the route to go", || gateway(&one).is_empty());
}

/// flannel ends in a crash loop here, and `kubectl describe node` says nothing.
#[test]
fn a_node_without_a_subnet_waits_and_says_so() {
    let fleet = Fleet::start(VXLAN);
    let mut host = fleet.host(1, &[]);
    host.arguments.push("--healthz-port=8081".to_owned());
    host.start_agent();
    let status = host.wait_told("what it waits for", |line| line.contains("podCIDR"));
    assert!(
        status.starts_with("STATUS=waiting to join: node n1 has no IPv4 podCIDR"),
        "{status}"
    );
    let ready = host.namespace.run("curl -s http://127.0.0.1:8081/readyz");
    assert!(
        ready.contains("has no IPv4 podCIDR") && ready.contains("[no-pod-cidr]"),
        "{ready}"
    );
    wait_until("an event", || {
        fleet.server.look(|cluster| !cluster.events.is_empty())
    });
    fleet.server.look(|cluster| {
        let event = &cluster.events[0];
        assert_eq!(event["reason"], "NoPodCidr");
        assert_eq!(event["involvedObject"]["name"], "n1");
    });
    fleet.wait_condition("n1", "True", "NoPodCidr");
    fleet.server.change(|cluster| {
        cluster.edit("n1", |node| {
            node["spec"] = json!({"podCIDR": "10.244.3.0/24", "podCIDRs": ["10.244.3.0/24"]});
        });
    });
    host.wait_ready();
    assert_eq!(host.subnet_env("FLANNEL_SUBNET"), "10.244.3.1/24");
    fleet.wait_condition("n1", "False", "FlannelIsUp");
}

#[test]
fn a_prescribed_address_is_what_peers_send_to() {
    let fleet = Fleet::start(VXLAN);
    let mut host = fleet.host(1, &["10.244.1.0/24"]);
    fleet
        .server
        .change(|cluster| cluster.annotate("n1", "node-public-ip", Some("203.0.113.9")));
    host.start_agent();
    host.wait_ready();
    let published = fleet
        .server
        .look(|cluster| cluster.annotation("n1", "public-ip"));
    assert_eq!(published.as_deref(), Some("203.0.113.9"));
}

#[test]
fn the_doctor_knows_the_cluster() {
    let fleet = Fleet::start(VXLAN);
    let mut host = fleet.host(1, &["10.244.1.0/24"]);
    host.arguments
        .push("--set-node-network-unavailable=false".to_owned());
    fleet.server.change(|cluster| {
        cluster.put(bare("k3s", &["10.42.1.0/24"]));
        cluster.put(bare("late", &[]));
        cluster.edit("n1", |node| {
            let condition =
                json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"});
            node["status"]["conditions"] = json!([condition]);
        });
        cluster.faults.denied = vec!["create events"];
    });
    host.start_agent();
    host.wait_ready();
    let output = host
        .selvage("doctor")
        .args(["--json", "--no-probes"])
        .output()
        .expect("the doctor");
    let report: Report = serde_json::from_slice(&output.stdout).expect("a report");
    let of_cluster = report
        .findings
        .iter()
        .filter(|finding| finding.check.starts_with("kube-"));
    let said: Vec<_> = of_cluster.map(|finding| finding.what.as_str()).collect();
    assert_eq!(
        said,
        [
            "the node k3s has a podCIDR outside the network 10.244.0.0/16",
            "the node late has no podCIDR",
            "the overlay is up, but the node n1 has the condition NetworkUnavailable, reason NoRouteCreated",
            "the agent may not create events",
        ]
    );
    for check in ["bridge-mtu", "certificates"] {
        assert!(
            report.checked.iter().any(|name| name == check),
            "{report:?}"
        );
    }
}

/// A line of what the kernel says of the agent's memory, in bytes.
fn memory(host: &Host, name: &str) -> u64 {
    let path = format!("/proc/{}/status", host.agent_id());
    let text = std::fs::read_to_string(path).expect("the agent's status");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.expect("a number of kilobytes") * 1024
}

/// Each of them as large as on a node with fifty images.
#[test]
fn five_thousand_nodes_are_read_in_little_memory_and_few_requests() {
    let fleet = Fleet::start(r#"{"Network":"100.64.0.0/10","Backend":{"Type":"vxlan"}}"#);
    let mut host = fleet.host(1, &["100.127.255.0/24"]);
    let image = |number: u32| {
        let digest = format!("{number:064x}");
        json!({"names": [format!("registry.example/some/image@sha256:{digest}"), "registry.example/some/image:v1.2.3"], "sizeBytes": 12_345_678})
    };
    let images: Vec<_> = (0..50).map(image).collect();
    fleet.server.change(|cluster| {
        for number in 0..5000_u32 {
            let mut node = flannel(&format!("node{number:04}"), 2);
            let cidr = format!("100.{}.{}.0/24", 64 + number / 256, number % 256);
            node["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            node["status"]["images"] = json!(images);
            let annotations = &mut node["metadata"]["annotations"];
            let [high, low] = [number / 250, number % 250 + 1];
            annotations["flannel.alpha.coreos.com/public-ip"] = json!(format!("10.9.{high}.{low}"));
            let mac = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:01:{high:02x}:{low:02x}"}}"#);
            annotations["flannel.alpha.coreos.com/backend-data"] = json!(mac);
            cluster.put(node);
        }
    });
    host.start_agent();
    host.wait_ready();
    let routes = host
        .namespace
        .ip("route show dev flannel.1")
        .lines()
        .count();
    assert_eq!(routes, 5000);
    // How much of the program's file is in memory depends on how it was built.
    let at_most = memory(&host, "VmHWM:") - memory(&host, "RssFile:");
    assert!(at_most < 20 << 20, "{at_most}");
    fleet.server.look(|cluster| {
        assert_eq!(cluster.count("GET /api/v1/nodes?limit=250"), 21);
        assert_eq!(cluster.count("GET /api/v1/nodes?watch=true"), 1);
        assert_eq!(cluster.count("GET /api/v1/nodes/n1"), 1);
    });
}
