//! A cluster that has this agent.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::world::{World, documents, manifest};
use crate::node::bare;

/// Our own manifest, as `kubectl apply` leaves it.
fn ours() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units/kubernetes/selvage.yaml");
    let mut objects = documents(&fs::read_to_string(path).unwrap());
    objects.retain(|object| object["kind"] != "Namespace");
    let set = objects
        .iter_mut()
        .find(|object| object["kind"] == "DaemonSet")
        .unwrap();
    set["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": "{}"});
    set["status"] = json!({
        "currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
    });
    objects
}

#[tokio::test]
async fn after_the_move_it_is_known_that_there_is_nothing_to_do() {
    let world = World::new(ours());
    let report = world.report().await;
    assert_eq!((report.findings(), report.status), (Vec::new(), 0));
    assert_eq!(report.list("daemon_sets")[0]["program"], "selvage");
    assert!(report.says(
        "changes",
        "kube-flannel/kube-flannel-ds runs this agent already"
    ));
    // kubespray's is still there.
    for object in manifest("kubespray.yaml") {
        world.put(object);
    }
    let report = world.report().await;
    assert_eq!(report.status, 1);
    let both = "error migrate-flannel: kube-system/kube-flannel runs flannel, and kube-flannel/kube-flannel-ds runs this agent";
    assert!(report.findings().contains(&both.to_owned()), "{report:?}");
}

#[tokio::test]
async fn the_way_back_says_what_flannel_lacks_and_what_remains() {
    let world = World::new(ours());
    let report = world.back().await;
    assert_eq!((report.findings(), report.status), (Vec::new(), 0));
    let how = report.how();
    let position = |words: &str| how.iter().position(|line| line.contains(words));
    assert_eq!(position("modprobe br_netfilter"), Some(0));
    assert!(position("take its ConfigMap out") < position("kubectl apply -f kube-flannel.yml"));
    assert!(position("kubectl -n default delete role,rolebinding flannel").is_some());
    assert!(position("ip nexthop flush proto 83").is_some());
    assert!(position("nft delete table").is_none() && position(" delete daemonset ").is_none());
    assert!(report.says("changes", "selvage cni uninstall is not needed"));
}

/// The same with settings of ours.
fn with_settings() -> Vec<Value> {
    let mut objects = ours();
    for object in &mut objects {
        if object["kind"] == "ConfigMap" {
            let config = r#"{"Network": "10.244.0.0/16", "EnableNFTables": true, "Encrypt": true, "Backend": {"Type": "vxlan"}}"#;
            object["data"]["net-conf.json"] = json!(config);
        }
        if object["kind"] == "DaemonSet" {
            object["metadata"]["annotations"] = json!({});
            let container = &mut object["spec"]["template"]["spec"]["containers"][0];
            container["args"] = json!([
                "--ip-masq",
                "--kube-subnet-mgr",
                "--healthz-port=8081",
                "--public-ip=198.51.100.7",
                "--networks=blue"
            ]);
            container["env"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "SELVAGE_LOG", "value": "debug"}));
        }
    }
    objects
}

#[tokio::test]
async fn settings_that_flannel_lacks_are_named_before_it_is_back() {
    let world = World::new(with_settings());
    world.server.change(|cluster| {
        for number in 1..=3 {
            cluster.annotate(&format!("n{number}"), "backend-type", Some("wireguard"));
        }
        cluster.put(bare("n4", &[]));
    });
    let report = world.back().await;
    assert_eq!(report.status, 1);
    assert_eq!(
        report.findings(),
        [
            "error migrate-config: the network config says \"Encrypt\": true, which flannel does not know",
            "error kube-nodes: the node n4 has no podCIDR",
            "warning migrate-flags: flannel lacks settings that kube-flannel/kube-flannel-ds has: --networks=blue, SELVAGE_LOG",
            "warning migrate-flags: kube-flannel/kube-flannel-ds has --public-ip, and does not name an interface",
        ]
    );
    let how = report.how();
    assert!(
        how.contains(&"kubectl -n kube-flannel delete daemonset kube-flannel-ds --cascade=orphan")
    );
    assert!(how.contains(&"add to args of the container kube-flannel: --public-ip=198.51.100.7"));
    assert!(how.contains(&"nft delete table inet selvage, if an agent was killed with kill -9"));
    assert!(!how.iter().any(|line| line.contains("br_netfilter")));
}

#[tokio::test]
async fn there_is_nothing_to_move_back_where_flannel_runs() {
    let report = World::of("flannel-0.28.9.yaml").back().await;
    assert_eq!(
        report.findings(),
        [
            "error migrate-flannel: kube-flannel/kube-flannel-ds runs flannel already, and no DaemonSet runs this agent"
        ]
    );
}
