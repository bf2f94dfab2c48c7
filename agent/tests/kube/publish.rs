//! What a node writes about itself, and how it keeps that.

use std::os::unix::fs::symlink;
use std::time::Duration;

use selvage::cluster::lease::{LeaseStore, Released, StoreError, StoreErrorKind, StoreEvent};
use serde_json::json;

use crate::node::{NET_CONF, acquire, attrs, cluster, connected, wait_for};
use crate::server::ApiServer;
use crate::wait::wait_until;

/// Waits for an annotation of `n1`.
async fn wait_annotation(server: &ApiServer, suffix: &'static str, value: &'static str) {
    let shared = std::sync::Arc::clone(&server.shared);
    tokio::task::spawn_blocking(move || {
        wait_until(&format!("{suffix} to be {value}"), || {
            shared.seen().annotation("n1", suffix).as_deref() == Some(value)
        });
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_annotations_are_flannels() {
    let (server, files, mut store) = cluster();
    let lease = acquire(&mut store).await;
    assert_eq!(lease.attrs.owner.as_deref(), Some("n1"));
    // A real server's nodes are as old as the test.
    if server.real().is_none() {
        assert_eq!(lease.created, 1_767_323_045);
    }
    server.look(|cluster| {
        let annotations = &cluster.nodes["n1"]["metadata"]["annotations"];
        let expected = json!({
            "node.alpha.kubernetes.io/ttl": "0",
            "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#,
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/public-ip": "10.0.0.1",
        });
        assert_eq!(*annotations, expected);
    });
    // A restart finds all as it should be.
    let mut again = files.store();
    acquire(&mut again).await;
    assert_eq!(server.look(|cluster| cluster.count("PATCH ")), 1);
}

#[tokio::test]
async fn a_changed_address_is_written_and_a_conflict_tried_again() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    server.change(|cluster| cluster.faults.conflicts = 2);
    let mut moved = attrs();
    moved.public_ip = Some([10, 0, 0, 99].into());
    store.update(&moved).await.unwrap();
    server.look(|cluster| {
        assert_eq!(
            cluster.annotation("n1", "public-ip").as_deref(),
            Some("10.0.0.99")
        );
        assert_eq!(cluster.count("PATCH "), 4);
    });
    server.change(|cluster| cluster.faults.conflicts = 1000);
    moved.public_ip = Some([10, 0, 0, 98].into());
    let error = store.update(&moved).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::LostRaces);
    // The keeper goes on with it.
    server.change(|cluster| cluster.faults.conflicts = 0);
    wait_annotation(&server, "public-ip", "10.0.0.98").await;
}

/// A flanneld that is started beside, or an administrator's mistake.
#[tokio::test]
async fn what_others_write_over_the_own_annotations_is_corrected() {
    let (server, _files, mut store) = cluster();
    acquire(&mut store).await;
    connected(&mut store).await;
    server.change(|cluster| cluster.annotate("n1", "public-ip", Some("10.9.9.9")));
    wait_annotation(&server, "public-ip", "10.0.0.1").await;
    server.change(|cluster| cluster.annotate("n1", "kube-subnet-manager", None));
    wait_annotation(&server, "kube-subnet-manager", "true").await;
    // The address that is published instead, until the annotation is gone.
    server.change(|cluster| cluster.annotate("n1", "public-ip-overwrite", Some("203.0.113.5")));
    wait_annotation(&server, "public-ip", "203.0.113.5").await;
    server.change(|cluster| cluster.annotate("n1", "public-ip-overwrite", None));
    wait_annotation(&server, "public-ip", "10.0.0.1").await;
}

#[tokio::test]
async fn a_prescribed_address_is_known_before_the_lease() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.annotate("n1", "node-public-ip", Some("203.0.113.7"));
        cluster.annotate("n1", "node-public-ipv6", Some("nonsense"));
    });
    store.network_config().await.unwrap();
    let prescribed = store.prescribed();
    assert_eq!(prescribed.public_ip, Some([203, 0, 113, 7].into()));
    assert_eq!(prescribed.public_ipv6, None);
}

#[tokio::test]
async fn a_node_that_is_deleted_or_gets_another_subnet_has_lost_its_own() {
    for recreated in [true, false] {
        let (server, _files, mut store) = cluster();
        acquire(&mut store).await;
        connected(&mut store).await;
        server.change(|cluster| {
            let mut node = cluster.nodes["n1"].clone();
            cluster.delete("n1");
            node["spec"] = json!({"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]});
            node["metadata"]["annotations"] = json!({});
            if recreated {
                cluster.put(node);
            }
        });
        let reason = wait_for(&mut store, "the loss", |event| match event {
            StoreEvent::OwnLeaseLost { reason } => Some(reason),
            _ => None,
        })
        .await;
        let expected = match recreated {
            true => "lost the subnet 10.244.1.0/24: the node's podCIDR is 10.244.9.0/24 now",
            false => "lost the subnet 10.244.1.0/24: there is no node n1 in the cluster",
        };
        assert!(reason.starts_with(expected), "{reason}");
        let config = store.network_config().await;
        if recreated {
            let lease = store.acquire(&config.unwrap(), &attrs(), None).await;
            assert_eq!(lease.unwrap().key.to_string(), "10.244.9.0/24");
        } else {
            assert!(
                matches!(config, Err(StoreError::NoNode { .. })),
                "{config:?}"
            );
        }
    }
}

#[tokio::test]
async fn the_subnet_stays_the_nodes_when_it_is_given_back() {
    let (server, _files, mut store) = cluster();
    assert_eq!(store.release().await.unwrap(), Released::Nothing);
    acquire(&mut store).await;
    assert_eq!(store.release().await.unwrap(), Released::Nothing);
    assert!(store.update(&attrs()).await.is_err());
    assert_eq!(server.look(|cluster| cluster.count("PATCH ")), 1);
}

/// The kubelet writes a ConfigMap into a directory of its own and turns `..data` to it.
#[tokio::test]
async fn a_changed_config_map_is_followed() {
    let (_server, mut files, _) = cluster();
    let version = |name: &str, text: &str| {
        let directory = files.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("net-conf.json"), text).unwrap();
        std::fs::create_dir_all(files.path("map")).unwrap();
        let link = files.path("map/..data_tmp");
        symlink(&directory, &link).unwrap();
        std::fs::rename(&link, files.path("map/..data")).unwrap();
    };
    version("one", NET_CONF);
    let file = files.path("map/net-conf.json");
    symlink("..data/net-conf.json", &file).unwrap();
    files.settings.net_config = file;
    let mut store = files.store();
    acquire(&mut store).await;
    let mut next = async || {
        wait_for(&mut store, "another config", |event| match event {
            StoreEvent::NetworkConfig(config) => Some(config),
            _ => None,
        })
        .await
    };
    let version = |name: &str, text: &str| {
        std::fs::remove_file(files.path("map/..data")).unwrap();
        let directory = files.path(name);
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("net-conf.json"), text).unwrap();
        symlink(&directory, files.path("map/..data")).unwrap();
    };
    version("two", &NET_CONF.replace("vxlan", "host-gw"));
    let config = next().await.unwrap();
    assert_eq!(config.backend.kind, "host-gw");
    version("three", "{\"Network\":");
    let error = next().await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::BadNetworkConfig);
    assert!(error.text.contains("net-conf.json"), "{error}");
    std::fs::remove_file(files.path("map/..data")).unwrap();
    assert_eq!(
        next().await.unwrap_err().kind,
        StoreErrorKind::NoNetworkConfig
    );
}

#[tokio::test]
async fn a_slow_server_and_a_lost_connection_only_take_time() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.faults.slow = Duration::from_millis(500);
    });
    acquire(&mut store).await;
    server.change(|cluster| {
        cluster.faults.slow = Duration::ZERO;
        cluster.faults.dropped = 1;
    });
    let mut moved = attrs();
    moved.public_ip = Some([10, 0, 0, 99].into());
    // The connection was in use before, so one that is closed is no failure of the server.
    store.update(&moved).await.unwrap();
    assert_eq!(
        server
            .look(|cluster| cluster.annotation("n1", "public-ip"))
            .as_deref(),
        Some("10.0.0.99")
    );
}
