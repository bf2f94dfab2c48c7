//! What a node learns of the others: lists, watches, and what may go wrong with both.

use selvage::cluster::lease::{LeaseEvent, StoreErrorKind, StoreEvent};
use serde_json::json;

use crate::node::{acquire, bare, changes, cluster, connected, flannel, snapshot, wait_for};

#[tokio::test]
async fn a_large_cluster_is_listed_in_pages_once_and_then_watched() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        for number in 0..600 {
            let name = format!("node{number:04}");
            let mut node = flannel(&name, 2);
            let cidr = format!("10.244.{}.{}/26", 2 + number / 4, number % 4 * 64);
            node["spec"] = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
            cluster.put(node);
        }
        // Nodes of another CNI plugin, without podCIDR, and with a subnet of another family.
        cluster.put(bare("other", &["10.244.200.0/24"]));
        let mut late = flannel("late", 7);
        late["spec"] = json!({});
        cluster.put(late);
    });
    let own = acquire(&mut store).await;
    assert_eq!(own.key.to_string(), "10.244.1.0/24");
    let (leases, unreadable) = snapshot(&mut store).await;
    assert_eq!((leases.len(), unreadable.len()), (600, 0));
    server.change(|cluster| cluster.put(flannel("late", 250)));
    let (set, removed) = changes(&mut store).await;
    assert_eq!(set[0].key.to_string(), "10.244.250.0/24");
    assert!(removed.is_empty());
    server.look(|cluster| {
        assert_eq!(cluster.count("GET /api/v1/nodes?limit=250"), 3);
        assert_eq!(cluster.count("GET /api/v1/nodes?watch=true"), 1);
        // The own node was read once and written once.
        assert_eq!(cluster.count("GET /api/v1/nodes/n1"), 1);
        assert_eq!(cluster.count("PATCH "), 1);
    });
}

/// flannel drops an update in dual stack unless both families change.
#[tokio::test]
async fn an_update_of_one_family_arrives() {
    let (server, files, mut store) = cluster();
    let config = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}"#;
    std::fs::write(&files.settings.net_config, config).unwrap();
    server.change(|cluster| {
        cluster.put(bare("n1", &["10.244.1.0/24", "fd00:10:244:1::/64"]));
        let mut node = flannel("n2", 2);
        node["spec"]["podCIDRs"] = json!(["10.244.2.0/24", "fd00:10:244:2::/64"]);
        cluster.put(node);
        cluster.annotate("n2", "public-ipv6", Some("fd00::2"));
        cluster.annotate(
            "n2",
            "backend-v6-data",
            Some(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}"#),
        );
    });
    acquire(&mut store).await;
    let (leases, _) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24 and fd00:10:244:2::/64"]);
    server.change(|cluster| cluster.annotate("n2", "public-ipv6", Some("fd00::9")));
    let (set, _) = changes(&mut store).await;
    assert_eq!(set[0].attrs.public_ipv6, Some("fd00::9".parse().unwrap()));
    let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}"#;
    server.change(|cluster| cluster.annotate("n2", "backend-data", Some(data)));
    let (set, _) = changes(&mut store).await;
    assert_eq!(set[0].attrs.backend_data.as_ref().unwrap().get(), data);
}

/// flannel keeps a peer whose annotation is removed (no event), and one that is created again with another podCIDR.
#[tokio::test]
async fn who_leaves_is_removed_and_who_comes_back_is_another() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.put(flannel("n3", 3));
    });
    acquire(&mut store).await;
    assert_eq!(snapshot(&mut store).await.0.len(), 2);
    server.change(|cluster| cluster.annotate("n2", "kube-subnet-manager", None));
    assert_eq!(changes(&mut store).await.1, ["10.244.2.0/24"]);
    server.change(|cluster| cluster.annotate("n2", "kube-subnet-manager", Some("true")));
    assert_eq!(changes(&mut store).await.0.len(), 1);
    server.change(|cluster| cluster.delete("n3"));
    assert_eq!(changes(&mut store).await.1, ["10.244.3.0/24"]);
    server.change(|cluster| {
        let mut node = flannel("n3", 33);
        node["metadata"]["creationTimestamp"] = json!("2026-02-03T04:05:06Z");
        cluster.put(node);
    });
    let (set, removed) = changes(&mut store).await;
    assert_eq!(set[0].key.to_string(), "10.244.33.0/24");
    assert!(removed.is_empty());
}

#[tokio::test]
async fn nonsense_of_one_node_removes_nobody() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.put(flannel("n3", 3));
        cluster.annotate("n3", "public-ip", Some("10.0.0"));
    });
    acquire(&mut store).await;
    let (leases, unreadable) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24"]);
    assert_eq!(unreadable, ["10.244.3.0/24"]);
    server.change(|cluster| {
        cluster.annotate("n2", "backend-data", Some("{\"VNI\":"));
        cluster.annotate("n3", "public-ip", Some("10.0.0.3"));
    });
    let (set, removed) = changes(&mut store).await;
    assert_eq!(set[0].key.to_string(), "10.244.3.0/24");
    assert!(removed.is_empty());
    // A new list agrees, and whoever is gone after that is gone.
    server.change(|cluster| {
        cluster.compacted = cluster.revision;
        cluster.faults.rubbish =
            Some(r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#);
    });
    let (leases, unreadable) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24", "10.244.3.0/24"]);
    assert!(unreadable.is_empty(), "{unreadable:?}");
    server.change(|cluster| cluster.delete("n2"));
    assert_eq!(changes(&mut store).await.1, ["10.244.2.0/24"]);
}

/// A node of nonsense that is deleted while nobody watches.
#[tokio::test]
async fn nonsense_does_not_outlive_its_node() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.put(flannel("n3", 3));
        cluster.annotate("n3", "public-ip", Some("10.0.0"));
    });
    acquire(&mut store).await;
    assert_eq!(snapshot(&mut store).await.1, ["10.244.3.0/24"]);
    server.change(|cluster| {
        cluster.delete("n3");
        cluster.history.clear();
        cluster.compacted = cluster.revision;
        cluster.watches_end += 1;
    });
    let (leases, unreadable) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24"]);
    assert!(unreadable.is_empty(), "{unreadable:?}");
}

/// Something else on the server's address, such as a proxy's own page: it must not pass for a cluster without nodes.
#[tokio::test]
async fn an_answer_that_is_no_list_removes_nobody() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.put(flannel("n2", 2)));
    acquire(&mut store).await;
    snapshot(&mut store).await;
    connected(&mut store).await;
    for instead in [
        r#"{"kind":"Status","metadata":{"resourceVersion":"9000"},"items":[]}"#,
        r#"{"kind":"NodeList","metadata":{},"items":[]}"#,
    ] {
        server.change(|cluster| {
            cluster.faults.instead = Some(instead);
            cluster.faults.rubbish = Some(r#"{"type":"ERROR","object":{"code":410}}"#);
        });
        let text = wait_for(&mut store, "the wrong answer", |event| match event {
            StoreEvent::Unreachable { error } => Some(error.text),
            StoreEvent::Peers(event) => panic!("{instead}: {event:?}"),
            _ => None,
        })
        .await;
        assert!(text.contains("no list of nodes"), "{instead}: {text}");
        assert_eq!(snapshot(&mut store).await.0, ["10.244.2.0/24"], "{instead}");
        connected(&mut store).await;
    }
}

/// Each hides what happened, or a revision to go on from.
#[tokio::test]
async fn after_an_event_that_is_wrong_all_nodes_are_listed_again() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.put(flannel("n2", 2)));
    acquire(&mut store).await;
    snapshot(&mut store).await;
    connected(&mut store).await;
    let endless: &str = "x".repeat(9 << 20).leak();
    for line in [
        r#"{"type":"BOOKMARK","object":{"metadata":{}}}"#,
        r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"0"}}}"#,
        r#"{"type":"DELETED","object":{"metadata":{"name":"n2"}}}"#,
        r#"{"type":"ERROR","object":{"code":500,"message":"etcdserver: no leader"}}"#,
        "",
        endless,
    ] {
        server.change(|cluster| cluster.faults.rubbish = Some(line));
        let (leases, unreadable) = snapshot(&mut store).await;
        let start = line.get(..60).unwrap_or(line);
        assert_eq!(leases, ["10.244.2.0/24"], "{start}");
        assert!(unreadable.is_empty(), "{start}");
        connected(&mut store).await;
    }
}

#[tokio::test]
async fn after_a_revision_that_is_gone_all_nodes_are_listed_again() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.put(flannel("n3", 3));
    });
    acquire(&mut store).await;
    assert_eq!(snapshot(&mut store).await.0.len(), 2);
    // What happens while nobody watches, and is compacted then.
    server.change(|cluster| {
        cluster.watches_end += 1;
        cluster.delete("n3");
        cluster.put(flannel("n4", 4));
        cluster.compacted = cluster.revision;
        cluster.history.clear();
    });
    let (leases, _) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24", "10.244.4.0/24"]);
}
#[tokio::test]
async fn an_api_server_that_is_away_keeps_all_peers() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.put(flannel("n2", 2)));
    acquire(&mut store).await;
    snapshot(&mut store).await;
    connected(&mut store).await;
    server.change(|cluster| {
        cluster.faults.dropped = 3;
        cluster.watches_end += 1;
    });
    let trouble = wait_for(&mut store, "an outage", |event| match event {
        StoreEvent::Unreachable { error } => Some(error),
        StoreEvent::Peers(event) => panic!("{event:?}"),
        _ => None,
    })
    .await;
    assert_eq!(trouble.kind, StoreErrorKind::Unreachable);
    assert!(
        trouble.text.starts_with("API server at http://127.0.0.1"),
        "{trouble}"
    );
    wait_for(&mut store, "the server", |event| match event {
        StoreEvent::Reachable { endpoint } => Some(endpoint),
        StoreEvent::Peers(event) => panic!("{event:?}"),
        _ => None,
    })
    .await;
    // It goes on where it was: no new list.
    server.change(|cluster| cluster.annotate("n2", "public-ip", Some("10.0.0.9")));
    assert_eq!(changes(&mut store).await.0.len(), 1);
    assert_eq!(
        server.look(|cluster| cluster.count("GET /api/v1/nodes?limit=250")),
        1
    );
}

#[tokio::test]
async fn a_line_that_is_no_event_lists_again_and_a_busy_server_is_left_alone() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.put(flannel("n2", 2)));
    acquire(&mut store).await;
    snapshot(&mut store).await;
    connected(&mut store).await;
    server.change(|cluster| {
        cluster.faults.busy = 1;
        cluster.faults.rubbish = Some("{\"type\":\"MODIFIED\"");
    });
    let texts = wait_for(&mut store, "both failures and a snapshot", {
        let mut texts = Vec::new();
        move |event| match event {
            StoreEvent::Unreachable { error } => {
                texts.push(error.text);
                None
            }
            StoreEvent::Peers(LeaseEvent::Snapshot { leases, .. }) => {
                assert_eq!(leases.len(), 1);
                Some(texts.clone())
            }
            _ => None,
        }
    })
    .await;
    assert!(texts[0].contains("bad answer: "), "{texts:?}");
    assert!(
        texts[1].contains("HTTP status 429: too many requests"),
        "{texts:?}"
    );
}
