//! The node's condition `NetworkUnavailable`, and events about what is wrong.

use std::sync::Arc;
use std::time::Duration;

use selvage::cluster::lease::kube::KubeStore;
use selvage::cluster::lease::{LeaseStore, NodeFault};
use serde_json::json;

use crate::node::{acquire, bare, cluster, connected};
use crate::server::{ApiServer, Cluster};
use crate::wait::wait_until;

fn publish(store: &mut KubeStore, up: bool, faults: &[(&'static str, &str)]) {
    store.publish_health(up, || {
        let fault = |(code, text): &(&'static str, &str)| NodeFault {
            code,
            text: (*text).to_owned(),
        };
        faults.iter().map(fault).collect()
    });
}

/// Waits until the cluster has what it should, beside the store's tasks.
pub(crate) async fn wait(
    server: &ApiServer,
    what: &'static str,
    holds: impl Fn(&Cluster) -> bool + Send + 'static,
) {
    let shared = Arc::clone(&server.shared);
    tokio::task::spawn_blocking(move || wait_until(what, || holds(&shared.seen())))
        .await
        .unwrap();
}

fn is(cluster: &Cluster, status: &str, reason: &str) -> bool {
    cluster.condition("n1") == Some((status.to_owned(), reason.to_owned()))
}

#[tokio::test]
async fn the_condition_is_flannels_when_the_overlay_is_up() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    // A cloud provider's, before there is a network.
    server.change(|cluster| {
        cluster.edit("n1", |node| {
            let conditions = node["status"]["conditions"].as_array_mut().unwrap();
            conditions.push(
                json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}),
            );
        });
        // flannel writes it once and gives up (#1431).
        cluster.faults.busy = 2;
    });
    publish(&mut store, true, &[]);
    wait(&server, "the condition", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    for _ in 0..10 {
        publish(&mut store, true, &[("docker-subnet", "words")]);
        publish(&mut store, true, &[]);
    }
    server.look(|cluster| {
        let node = &cluster.nodes["n1"];
        assert_eq!(node["status"]["conditions"][0]["type"], "Ready");
        assert_eq!(
            node["status"]["conditions"][1]["message"],
            "Flannel is running on this node"
        );
    });
}

/// It takes 30 s: what is over sooner, such as the agent's restart, is not shown.
#[tokio::test]
async fn the_condition_says_why_the_overlay_is_down_and_when_it_is_up_again() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    publish(&mut store, true, &[]);
    wait(&server, "the condition", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    publish(
        &mut store,
        false,
        &[("kernel-no-module", "the kernel has no vxlan")],
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(server.look(|cluster| is(cluster, "False", "FlannelIsUp")));
    wait(&server, "the reason", |cluster| {
        is(cluster, "True", "KernelNoModule")
    })
    .await;
    publish(&mut store, true, &[]);
    wait(&server, "the end", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
}

/// A cloud's route controller that knows of no routes, for example.
#[tokio::test]
async fn a_condition_that_somebody_else_writes_is_corrected() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    publish(&mut store, true, &[]);
    wait(&server, "the condition", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    connected(&mut store).await;
    server.change(|cluster| {
        cluster.edit("n1", |node| {
            let condition =
                json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"});
            node["status"]["conditions"] = json!([condition]);
        });
    });
    wait(&server, "the correction", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    let patches = server.look(|cluster| cluster.count("PATCH "));
    assert_eq!(patches, 3);
}

#[tokio::test]
async fn a_node_that_is_created_again_gets_its_condition_again() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    connected(&mut store).await;
    publish(&mut store, true, &[]);
    // As the watch brings it back, too.
    wait(&server, "the condition", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    server.change(|cluster| {
        cluster.delete("n1");
        cluster.put(bare("n1", &["10.244.1.0/24"]));
    });
    wait(&server, "the condition again", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
}

#[tokio::test]
async fn without_the_setting_the_condition_is_left_alone() {
    let (server, mut files, _) = cluster();
    files.settings.set_network_unavailable = false;
    let mut store = files.store();
    acquire(&mut store).await;
    publish(&mut store, true, &[("docker-subnet", "words")]);
    wait(&server, "an event", |cluster| cluster.events.len() == 1).await;
    assert_eq!(server.look(|cluster| cluster.condition("n1")), None);
}

#[tokio::test]
async fn each_fault_is_one_event() {
    let (server, _files, mut store) = cluster();
    let long = "x".repeat(5000);
    publish(&mut store, false, &[("starting", "starting")]);
    publish(
        &mut store,
        false,
        &[("no-pod-cidr", "node n1 has no IPv4 podCIDR")],
    );
    wait(&server, "an event", |cluster| cluster.events.len() == 1).await;
    publish(&mut store, false, &[("no-pod-cidr", "other words")]);
    let faults = [
        ("store-unreachable", "nobody is there"),
        ("firewall", &long),
        ("no-pod-cidr", ""),
    ];
    publish(&mut store, false, &faults);
    wait(&server, "two events", |cluster| cluster.events.len() == 2).await;
    server.look(|cluster| {
        let reasons: Vec<_> = cluster
            .events
            .iter()
            .map(|event| event["reason"].as_str())
            .collect();
        assert_eq!(reasons, [Some("NoPodCidr"), Some("Firewall")]);
        for event in &cluster.events {
            assert_eq!(event["involvedObject"]["name"], "n1");
            assert_eq!(event["type"], "Warning");
        }
    });
    publish(&mut store, false, &[("firewall", "again")]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(server.look(|cluster| cluster.events.len()), 2);
}

/// flannel's ClusterRole has no right to create events.
#[tokio::test]
async fn without_the_right_to_create_events_the_condition_is_still_set() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.faults.forbidden.push("POST "));
    publish(&mut store, true, &[("docker-subnet", "words")]);
    wait(&server, "the condition", |cluster| {
        is(cluster, "False", "FlannelIsUp")
    })
    .await;
    wait(&server, "an attempt", |cluster| cluster.count("POST ") == 1).await;
    acquire(&mut store).await;
    connected(&mut store).await;
    assert_eq!(server.look(|cluster| cluster.count("POST ")), 1);
}
