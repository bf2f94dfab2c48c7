//! The lease store against a real etcd, one server per test, on loopback only.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how a test fails, in helpers as well"
)]

mod acquire;
mod authority;
mod chaos;
mod dice;
mod events;
mod failures;
mod families;
mod fleet;
mod grace;
mod history;
mod identity;
mod keeping;
mod lost_replies;
mod moved;
mod network;
mod proxy;
mod reservations;
mod security;
mod server;

use std::time::{Duration, Instant};

use etcd_client::{Client, PutOptions};
use selvage::cluster::lease::etcd::EtcdStore;
use selvage::cluster::lease::{
    Fault, Lease, LeaseAttrs, LeaseEvent, LeaseStore, Past, StoreError, StoreEvent, StoreTrouble,
    SubnetKey,
};
use selvage::cluster::network_config::NetworkConfig;
use serde_json::value::RawValue;
use tokio::time::{sleep, timeout};

/// Everything in these tests happens well before.
const PATIENCE: Duration = Duration::from_secs(90);

const SUBNETS: &str = "/coreos.com/network/subnets/";

/// Subnets 10.5.1.0/24 to 10.5.3.0/24.
fn small_network() -> NetworkConfig {
    NetworkConfig::parse(r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#).unwrap()
}

fn attrs(public_ip: &str) -> LeaseAttrs {
    attrs_with(public_ip, "c6:d2:32:6f:8f:44")
}

fn attrs_with(public_ip: &str, mac: &str) -> LeaseAttrs {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    LeaseAttrs {
        public_ip: public_ip.parse().ok(),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: Some(RawValue::from_string(data).unwrap()),
        backend_v6_data: None,
        owner: None,
    }
}

fn key(name: &str) -> SubnetKey {
    SubnetKey::parse_name(name).unwrap()
}

async fn acquire(store: &mut EtcdStore, public_ip: &str) -> Result<Lease, StoreError> {
    store
        .acquire(&small_network(), &attrs(public_ip), None)
        .await
}

/// Writes a lease as somebody else would.
async fn put(client: &mut Client, name: &str, value: &str, etcd_lease: i64) {
    let options = PutOptions::new().with_lease(etcd_lease);
    client
        .put(format!("{SUBNETS}{name}"), value, Some(options))
        .await
        .unwrap();
}

/// The value of a lease key and the etcd lease it is attached to.
async fn stored(client: &mut Client, name: &str) -> Option<(String, i64)> {
    let answer = client.get(format!("{SUBNETS}{name}"), None).await.unwrap();
    let kv = answer.kvs().first()?;
    Some((kv.value_str().unwrap().to_owned(), kv.lease()))
}

/// Waits until the value of a lease key is as wanted.
async fn stored_as(client: &mut Client, name: &str, wanted: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (value, _) = stored(client, name).await.unwrap();
        if wanted(&value) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is still {value}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The store's revision, which grows with every write to any key.
async fn revision(client: &mut Client) -> i64 {
    let answer = client.get("any", None).await.unwrap();
    answer.header().unwrap().revision()
}

/// What a flannel node with this address writes.
fn flannels(public_ip: &str) -> String {
    attrs(public_ip).to_json().unwrap()
}

/// The first event that `wanted` takes.
async fn wait_for<T>(
    store: &mut EtcdStore,
    what: &str,
    mut wanted: impl FnMut(StoreEvent) -> Option<T>,
) -> T {
    let waiting = async {
        loop {
            if let Some(found) = wanted(store.next_event().await) {
                return found;
            }
        }
    };
    timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
}

async fn next_leases(store: &mut EtcdStore) -> LeaseEvent {
    wait_for(store, "lease event", |event| match event {
        StoreEvent::Peers(event) => Some(event),
        _ => None,
    })
    .await
}

/// Waits for a change of one key: `Some` if it was set, `None` if removed.
async fn change_of(store: &mut EtcdStore, name: &str) -> Option<Lease> {
    let key = key(name);
    wait_for(store, name, |event| match event {
        StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => set
            .into_iter()
            .find(|lease| lease.key == key)
            .map(Some)
            .or_else(|| removed.contains(&key).then_some(None)),
        _ => None,
    })
    .await
}

/// Waits until a lease is told of, by a change or in a snapshot.
async fn lease_of(store: &mut EtcdStore, name: &str) -> Lease {
    let key = key(name);
    wait_for(store, name, |event| match event {
        StoreEvent::Peers(
            LeaseEvent::Changes { set: leases, .. } | LeaseEvent::Snapshot { leases, .. },
        ) => leases.into_iter().find(|lease| lease.key == key),
        _ => None,
    })
    .await
}

/// Waits for a snapshot; its subnets.
async fn snapshot(store: &mut EtcdStore) -> Vec<String> {
    wait_for(store, "snapshot", |event| match event {
        StoreEvent::Peers(LeaseEvent::Snapshot { leases, .. }) => {
            Some(leases.iter().map(|lease| lease.key.name()).collect())
        }
        _ => None,
    })
    .await
}

/// Waits until a lease that ended is told of as written again.
async fn younger(store: &mut EtcdStore, former: &Lease) -> Lease {
    wait_for(store, "younger lease", |event| match event {
        StoreEvent::Peers(
            LeaseEvent::Changes { set: leases, .. } | LeaseEvent::Snapshot { leases, .. },
        ) => leases
            .into_iter()
            .find(|lease| lease.key == former.key && lease.created > former.created),
        StoreEvent::OwnLeaseLost { reason } => panic!("{reason}"),
        _ => None,
    })
    .await
}

/// Waits until something is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Whether the error is that no server answers.
fn unreachable_error(error: &StoreError) -> bool {
    matches!(error, StoreError::Unreachable { .. })
}

async fn lost(store: &mut EtcdStore) -> String {
    wait_for(store, "loss of the lease", |event| match event {
        StoreEvent::OwnLeaseLost { reason } => Some(reason),
        _ => None,
    })
    .await
}
