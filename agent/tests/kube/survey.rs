//! What the doctor asks a cluster.

use selvage::cluster::lease::Fault;
use selvage::cluster::lease::kube::{Right, Survey};
use serde_json::json;

use crate::node::{bare, cluster, flannel};

fn texts(rights: &[Right]) -> Vec<String> {
    let text = |right: &Right| format!("{} {}", right.verb, right.resource);
    rights.iter().map(text).collect()
}

async fn missing(survey: &Survey) -> Vec<String> {
    texts(&survey.missing_rights().await.unwrap())
}

#[tokio::test]
async fn all_nodes_are_seen_and_nothing_is_written() {
    let (server, files, store) = cluster();
    let survey = files.survey();
    server.change(|cluster| {
        for number in 0..=250 {
            cluster.put(flannel(&format!("peer{number:03}"), 2));
        }
        cluster.put(bare("zero", &[]));
        let mut away = bare("z1", &["10.244.9.0/24", "fd00:10:244:9::/64"]);
        let condition =
            json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"});
        away["status"]["conditions"] = json!([condition]);
        cluster.put(away);
    });
    let nodes = survey.nodes().await.unwrap();
    assert_eq!(store.seen_node().await.unwrap(), nodes[0]);
    assert_eq!(nodes.len(), 254);
    let [own, peer, .., away, zero] = &nodes[..] else {
        panic!("{nodes:?}")
    };
    assert!(own.name == "n1" && !own.takes_part && own.unavailable.is_none());
    assert!(peer.name == "peer000" && peer.takes_part);
    assert_eq!(away.cidrs.len(), 2);
    assert_eq!(away.unavailable.as_deref(), Some("NoRouteCreated"));
    assert!(zero.cidrs.is_empty());
    assert!(missing(&survey).await.is_empty());
    server.look(|cluster| assert_eq!(cluster.count("PATCH "), 0));
}

#[tokio::test]
async fn all_missing_rights_are_known_at_once() {
    let (server, files, _store) = cluster();
    let survey = files.survey();
    server.change(|cluster| {
        cluster.faults.denied = vec!["watch nodes", "patch nodes/status", "create events"]
    });
    let expected = ["watch nodes", "patch nodes/status", "create events"];
    assert_eq!(missing(&survey).await, expected);
    server.change(|cluster| cluster.faults.forbidden.push("GET /api/v1/nodes?"));
    let error = survey.nodes().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Login, "{error}");
    server.change(|cluster| cluster.faults.instead = Some("{}"));
    let error = survey.missing_rights().await.unwrap_err().to_string();
    assert!(error.contains("bad answer"), "{error}");
}
