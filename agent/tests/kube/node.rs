//! A node of the tests: its store, and what the cluster knows of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use selvage::cluster::lease::kube::{KubeStore, Surroundings, Survey};
use selvage::cluster::lease::{Lease, LeaseAttrs, LeaseEvent, LeaseStore, StoreEvent};
use selvage::settings::Kubernetes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::server::ApiServer;
use crate::wait::PATIENCE;

/// What kube-flannel's ConfigMap has, for IPv4 alone.
pub(crate) const NET_CONF: &str = r#"{
  "Network": "10.244.0.0/16",
  "EnableNFTables": false,
  "Backend": {
    "Type": "vxlan"
  }
}
"#;

/// A node as a kubelet registers it, with a podCIDR and no annotation.
pub(crate) fn bare(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"kubernetes.io/os": "linux"},
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": cidrs.first().copied().unwrap_or_default(), "podCIDRs": cidrs},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "images": [{"names": ["registry.k8s.io/pause:3.10"], "sizeBytes": 1}],
        },
    })
}

/// A node with a flannel on it: `10.244.NUMBER.0/24` at 10.0.0.NUMBER.
pub(crate) fn flannel(name: &str, number: u8) -> Value {
    let mut node = bare(name, &[&format!("10.244.{number}.0/24")]);
    for (suffix, value) in [
        (
            "backend-data",
            format!(r#"{{"VNI":1,"VtepMAC":"5a:cd:a5:a4:fb:{number:02x}"}}"#),
        ),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", format!("10.0.0.{number}")),
    ] {
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")] =
            json!(value);
    }
    node
}

/// What this node's backend wants to publish.
pub(crate) fn attrs() -> LeaseAttrs {
    let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;
    LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(10, 0, 0, 1)),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: Some(RawValue::from_string(data.to_owned()).unwrap()),
        backend_v6_data: None,
        owner: None,
    }
}

/// The files of a node, and how its store is set up.
pub(crate) struct Files {
    pub(crate) directory: TempDir,
    pub(crate) settings: Kubernetes,
    pub(crate) surroundings: Surroundings,
}

impl Files {
    /// For the node `n1`, whose API server is at this URL.
    pub(crate) fn new(url: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let net_config = directory.path().join("net-conf.json");
        fs::write(&net_config, NET_CONF).unwrap();
        let settings = Kubernetes {
            enabled: true,
            api_url: Some(url.to_owned()),
            kubeconfig: None,
            annotation_prefix: "flannel.alpha.coreos.com/".to_owned(),
            net_config,
            node_name: Some("n1".to_owned()),
            set_network_unavailable: true,
        };
        let surroundings = Surroundings {
            variables: BTreeMap::new(),
            service_account: directory.path().join("serviceaccount"),
        };
        Self {
            directory,
            settings,
            surroundings,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> KubeStore {
        KubeStore::new(&self.settings, self.surroundings.clone()).unwrap()
    }

    /// What asks the cluster without being one of its nodes.
    pub(crate) fn survey(&self) -> Survey {
        Survey::new(&self.settings, self.surroundings.clone())
    }
}

/// A cluster with the node `n1`, which has 10.244.1.0/24 and a store.
pub(crate) fn cluster() -> (ApiServer, Files, KubeStore) {
    let server = ApiServer::start();
    server.change(|cluster| cluster.put(bare("n1", &["10.244.1.0/24"])));
    let files = Files::new(&server.url());
    let store = files.store();
    (server, files, store)
}

/// Takes the node's subnet.
pub(crate) async fn acquire(store: &mut KubeStore) -> Lease {
    let config = store.network_config().await.unwrap();
    store.acquire(&config, &attrs(), None).await.unwrap()
}

/// Waits for an event that fits.
pub(crate) async fn wait_for<T>(
    store: &mut KubeStore,
    what: &str,
    mut fits: impl FnMut(StoreEvent) -> Option<T>,
) -> T {
    let waiting = async {
        loop {
            if let Some(value) = fits(store.next_event().await) {
                return value;
            }
        }
    };
    timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits for a snapshot: the subnets of its leases, and those that cannot be read.
pub(crate) async fn snapshot(store: &mut KubeStore) -> (Vec<String>, Vec<String>) {
    wait_for(store, "a snapshot", |event| match event {
        StoreEvent::Peers(LeaseEvent::Snapshot { leases, unreadable }) => Some((
            leases.iter().map(|lease| lease.key.to_string()).collect(),
            unreadable.iter().map(ToString::to_string).collect(),
        )),
        _ => None,
    })
    .await
}

/// Waits for a change: the leases that are set, and the subnets that are gone. A snapshot is a failure.
pub(crate) async fn changes(store: &mut KubeStore) -> (Vec<Lease>, Vec<String>) {
    wait_for(store, "a change", |event| match event {
        StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => {
            Some((set, removed.iter().map(ToString::to_string).collect()))
        }
        StoreEvent::Peers(event @ LeaseEvent::Snapshot { .. }) => panic!("{event:?}"),
        _ => None,
    })
    .await
}

/// Waits until the node watches the others.
pub(crate) async fn connected(store: &mut KubeStore) {
    wait_for(store, "the server", |event| {
        matches!(event, StoreEvent::Reachable { .. }).then_some(())
    })
    .await;
}
