//! What keeps a node waiting, and that it goes on when that is over.

use selvage::cluster::lease::{Fault, LeaseStore, StoreError, StoreErrorKind};
use serde_json::json;

use crate::node::{Files, NET_CONF, acquire, attrs, bare, cluster};
use crate::server::ApiServer;

/// What comes of an attempt to take the subnet.
async fn attempt(store: &mut impl LeaseStore) -> Result<String, StoreError> {
    let config = store.network_config().await?;
    let lease = store.acquire(&config, &attrs(), None).await?;
    Ok(lease.key.to_string())
}

/// flannel ends with `node "n1" pod cidr not assigned` (#728, #1344).
#[tokio::test]
async fn a_pod_cidr_may_come_late() {
    let server = ApiServer::start();
    let files = Files::new(&server.url());
    let mut store = files.store();
    let error = attempt(&mut store).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::NoNode { node } if node == "n1"),
        "{error}"
    );
    server.change(|cluster| cluster.put(bare("n1", &[])));
    let error = attempt(&mut store).await.unwrap_err();
    assert!(
        error.to_string().starts_with("node n1 has no IPv4 podCIDR"),
        "{error}"
    );
    server.change(|cluster| cluster.put(bare("n1", &["10.244.0.0/24"])));
    // The first subnet, which flannel leaves out in etcd.
    assert_eq!(attempt(&mut store).await.unwrap(), "10.244.0.0/24");
}

#[tokio::test]
async fn a_pod_cidr_outside_the_network_is_named_with_what_to_do() {
    let (server, files, mut store) = cluster();
    server.change(|cluster| cluster.put(bare("n1", &["10.42.0.0/24"])));
    let error = attempt(&mut store).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::BadPodCidr);
    assert!(error.to_string().contains("--cluster-cidr"), "{error}");
    let config = NET_CONF.replace("10.244.0.0/16", "10.42.0.0/16");
    std::fs::write(&files.settings.net_config, config).unwrap();
    assert_eq!(attempt(&mut store).await.unwrap(), "10.42.0.0/24");
    // Its length is the cluster's own affair, but pods that run keep theirs.
    let config = store.network_config().await.unwrap();
    server.change(|cluster| {
        cluster.edit("n1", |node| {
            node["spec"] = json!({"podCIDR": "10.42.0.0/25", "podCIDRs": ["10.42.0.0/25"]});
        });
    });
    store.network_config().await.unwrap();
    let error = store.acquire(&config, &attrs(), None).await.unwrap_err();
    assert!(error.to_string().contains("has another length"), "{error}");
}

#[tokio::test]
async fn missing_rights_are_named_by_the_server() {
    for forbidden in ["GET /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1/status"] {
        let (server, _files, mut store) = cluster();
        server.change(|cluster| cluster.faults.forbidden.push(forbidden));
        let error = attempt(&mut store).await.unwrap_err();
        assert_eq!(error.fault(), Fault::Login, "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("API server at http://127.0.0.1")
                && text.contains(
                    "refused the request: nodes \"n1\" is forbidden: User \"flannel\" cannot "
                ),
            "{text}"
        );
        server.change(|cluster| cluster.faults.forbidden.clear());
        assert_eq!(attempt(&mut store).await.unwrap(), "10.244.1.0/24");
    }
}

#[tokio::test]
async fn without_the_right_to_list_the_error_is_reported_until_it_is_given() {
    use selvage::cluster::lease::StoreEvent;

    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.faults.forbidden.push("GET /api/v1/nodes?"));
    acquire(&mut store).await;
    let error = crate::node::wait_for(&mut store, "the refusal", |event| match event {
        StoreEvent::Unreachable { error } => Some(error),
        _ => None,
    })
    .await;
    assert_eq!(error.fault, Fault::Login, "{error}");
    server.change(|cluster| cluster.faults.forbidden.clear());
    crate::node::snapshot(&mut store).await;
}

#[tokio::test]
async fn a_network_config_that_is_missing_or_wrong_is_waited_for() {
    let (_server, files, mut store) = cluster();
    let path = &files.settings.net_config;
    for (text, kind) in [
        (None, StoreErrorKind::NoNetworkConfig),
        (Some("{"), StoreErrorKind::BadNetworkConfig),
        (
            Some(r#"{"Network":"10.244.0.0/31"}"#),
            StoreErrorKind::BadNetworkConfig,
        ),
    ] {
        match text {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        let error = attempt(&mut store).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains("net-conf.json"), "{error}");
    }
    std::fs::write(path, NET_CONF).unwrap();
    attempt(&mut store).await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_away_or_no_api_server_is_named() {
    let server = ApiServer::start();
    let url = server.url();
    let files = Files::new(&url);
    let mut store = files.store();
    server.change(|cluster| {
        cluster.put(bare("n1", &["10.244.1.0/24"]));
        cluster.faults.busy = 1;
    });
    let error = attempt(&mut store).await.unwrap_err();
    assert!(error.to_string().contains("HTTP status 429"), "{error}");
    // The second on a connection that was not used before, so it is no idle one that was closed.
    server.change(|cluster| cluster.faults.dropped = 2);
    let error = attempt(&mut store).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unreachable);
    attempt(&mut store).await.unwrap();

    let nobody = Files::new("http://127.0.0.1:1");
    let error = attempt(&mut nobody.store()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "API server at http://127.0.0.1:1: connection refused"
    );
}
