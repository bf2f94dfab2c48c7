//! What one node does, in a cluster that is simulated to be large where that matters: how the store keeps, watches and
//! takes a lease.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::fleet::{attrs, owner, store};
use super::load::Kind;
use super::server::{Cluster, Reach};
use super::{SECOND, network, put};
use crate::cluster::lease::etcd::acquire::listed;
use crate::cluster::lease::etcd::challenge::{self, Answer};
use crate::cluster::lease::etcd::listing::{list, pause_after_timeout};
use crate::cluster::lease::etcd::{EtcdStore, Held};
use crate::cluster::lease::store::spread::longest_before_requests;
use crate::cluster::lease::{Lease, LeaseStore, Past, StoreError, StoreEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;

/// So many nodes wait up to twelve minutes before they list all leases, and up to 24 seconds before small requests.
const MANY: usize = 60_000;

/// When so many pauses before a few requests are over, each the longest that there is, and what comes between them.
fn after_pauses(pauses: u32) -> Duration {
    pauses * longest_before_requests(MANY) + 16 * SECOND
}

/// A node that holds a lease, and follows all of them.
struct Node {
    cluster: Arc<Cluster>,
    config: NetworkConfig,
    store: EtcdStore,
    lease: Lease,
}

impl Node {
    async fn start() -> Self {
        let (config, world) = network(62);
        Self::start_in(Cluster::new(world), config).await
    }

    async fn start_in(cluster: Arc<Cluster>, config: NetworkConfig) -> Self {
        let mut store = store(&cluster, 0, true);
        let lease = store.acquire(&config, &attrs(0), None).await.unwrap();
        sleep(SECOND).await;
        Self {
            cluster,
            config,
            store,
            lease,
        }
    }

    /// As if it had counted so many leases.
    fn among_many(&self) {
        self.store.store.state.hold_down().counted(MANY);
    }

    fn key(&self) -> String {
        self.store.store.key(&self.lease.key)
    }

    fn has_lease(&self) -> bool {
        self.cluster
            .lock()
            .world
            .current(self.key().as_bytes())
            .is_some()
    }

    async fn held(&self) -> Held {
        self.store.store.held.lock().await.clone().unwrap()
    }

    /// Another node takes its key.
    fn is_taken_over(&self) {
        let value = attrs(1).owned_by(&owner(1)).to_json().unwrap();
        put(&mut self.cluster.lock().world, &self.key(), &value);
        // The watches go on from before.
        self.cluster.set_all(Reach::Up);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_server_does_not_revive_a_lease_that_its_host_gave_back() {
    let mut node = Node::start().await;
    let held = node.held().await;
    node.store.release().await.unwrap();
    let broker = node.store.broker();
    let renewed = broker.check_and_renew(held, node.lease.created).await;
    assert!(
        matches!(renewed, Err(StoreError::NoLease { .. })),
        "{renewed:?}"
    );
    assert!(!node.has_lease());
}

#[tokio::test(start_paused = true)]
async fn attempts_to_take_a_lease_again_leave_no_etcd_lease_behind() {
    let mut node = Node::start().await;
    node.store.tasks.stop();
    let mut held = node.held().await;
    let id = held.etcd_lease.unwrap().id;
    node.cluster.lock().world.revoke(id).unwrap();
    node.is_taken_over();
    for _ in 0..5 {
        assert!(!held.retake(&node.store.store).await.unwrap());
    }
    assert_eq!(node.cluster.lock().world.etcd_leases(), 1);
    node.store
        .store
        .spares
        .revoke(&node.store.store.servers)
        .await;
    assert_eq!(node.cluster.lock().world.etcd_leases(), 0);
}

/// What thousands of nodes do that lost a race while the servers have more to send than they can.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_nobody_answered_is_made_again_and_no_list() {
    let mut node = Node::start().await;
    node.store.tasks.stop();
    let store = Arc::clone(&node.store.store);
    let known = list(&store).await.unwrap();
    node.cluster.set_all(Reach::CutOff);
    listed(&store, Some(known)).await.unwrap_err();
    assert!(store.list_timed_out.load(Ordering::Relaxed));
    node.cluster.set_all(Reach::Up);
    for (lists, refreshes) in [(0, 1), (1, 0)] {
        sleep(SECOND).await;
        let mark = node.cluster.lock().load.mark();
        let found = listed(&store, None).await.unwrap();
        assert_eq!(found.entries.len(), 1);
        let span = node.cluster.lock().load.since(mark);
        let asked = (span.of(Kind::List), span.of(Kind::Refresh));
        assert_eq!(asked, (lists, refreshes));
    }
}

#[tokio::test(start_paused = true)]
async fn only_who_takes_a_lease_after_a_list_without_answer_pauses() {
    let mut node = Node::start().await;
    node.store.tasks.stop();
    let store = Arc::clone(&node.store.store);
    let timed_out = || store.list_timed_out.load(Ordering::Relaxed);
    node.cluster.set_all(Reach::Down);
    list(&store).await.unwrap_err();
    assert!(
        !timed_out(),
        "a refused connection is no server at its limits"
    );
    node.cluster.set_all(Reach::CutOff);
    list(&store).await.unwrap_err();
    assert!(timed_out());
    node.cluster.set_all(Reach::Up);
    node.among_many();
    let begun = Instant::now();
    let past = || Past::from(Some(node.lease.key));
    node.store
        .take(&node.config, &attrs(0), past())
        .await
        .ok()
        .unwrap();
    assert!(begun.elapsed() > SECOND / 10, "{:?}", begun.elapsed());
    assert!(!timed_out());
    // A watcher and a lease server have other pauses, and clients that wait.
    store.list_timed_out.store(true, Ordering::Relaxed);
    node.among_many();
    let begun = Instant::now();
    list(&store).await.unwrap();
    assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
    assert!(!timed_out());
}

/// Nodes that start together know of a few others only when the servers come to their limits.
#[tokio::test(start_paused = true)]
async fn the_pause_after_a_list_without_answer_is_for_as_many_nodes_as_there_are_by_then() {
    let (config, world) = network(20_000);
    let mut node = Node::start_in(Cluster::new(world), config).await;
    node.store.tasks.stop();
    let store = Arc::clone(&node.store.store);
    node.cluster.set_all(Reach::CutOff);
    list(&store).await.unwrap_err();
    assert_eq!(store.state.hold_down().population(), 1);
    node.cluster.set_all(Reach::Up);
    {
        let world = &mut node.cluster.lock().world;
        let prefix = String::from_utf8(world.subnets.clone()).unwrap();
        // The node has one of the first hundred.
        for subnet in 1000..21_000_u32 {
            let address = Ipv4Addr::from(0x0a00_0000 | subnet << 8);
            put(world, &format!("{prefix}{address}-24"), "{}");
        }
    }
    let begun = Instant::now();
    pause_after_timeout(&store).await.unwrap();
    // At random up to 80 s; for one node it would be up to a millisecond.
    assert!(begun.elapsed() > SECOND / 100, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_waits_to_list_answers_challenges() {
    let node = Node::start().await;
    node.among_many();
    {
        let mut inner = node.cluster.lock();
        for _ in 0..2 {
            put(&mut inner.world, "/other", "x");
        }
        inner.world.compact();
    }
    node.cluster.set_all(Reach::Up);
    // By now it has found that its watch cannot go on.
    sleep(after_pauses(2)).await;
    let clone = store(&node.cluster, 1, true);
    let answer = challenge::ask(&clone.store, &owner(0), "192.0.2.1")
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Alive(_)), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_over_is_reported_without_the_pause_before_a_list() {
    let mut node = Node::start().await;
    node.among_many();
    node.is_taken_over();
    let begun = Instant::now();
    while !matches!(
        node.store.next_event().await,
        StoreEvent::OwnLeaseLost { .. }
    ) {}
    assert!(begun.elapsed() < after_pauses(2), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_discarded_is_not_taken_again_by_its_keeper() {
    let (_, world) = network(62);
    let part = |bounds: &str| {
        let config = format!(
            r#"{{"Network":"10.0.0.0/18","SubnetLen":24,{bounds},"Backend":{{"Type":"vxlan"}}}}"#
        );
        NetworkConfig::parse(&config).unwrap()
    };
    let lower = part(r#""SubnetMin":"10.0.1.0","SubnetMax":"10.0.31.0""#);
    let upper = part(r#""SubnetMin":"10.0.32.0","SubnetMax":"10.0.62.0""#);
    let mut node = Node::start_in(Cluster::new(world), lower).await;
    let past = Past::from(Some(node.lease.key));
    node.store.take(&upper, &attrs(0), past).await.ok().unwrap();
    sleep(10 * SECOND).await;
    assert!(!node.has_lease());
    assert_eq!(node.cluster.lock().world.taken.count(), 1);
}

/// A backup from before the lease is restored, with the same cluster ID, and has come further than the node has seen.
#[tokio::test(start_paused = true)]
async fn a_watch_that_is_resumed_in_another_history_checks_the_own_lease_at_once() {
    let (config, world) = network(62);
    let mut backup = world.clone();
    let node = Node::start_in(Cluster::new(world), config).await;
    for _ in 0..100 {
        put(&mut backup, "/other", "x");
    }
    let cluster = backup.cluster;
    node.among_many();
    node.cluster.restore(backup, cluster);
    sleep(after_pauses(1)).await;
    assert!(node.has_lease());
}

#[tokio::test(start_paused = true)]
async fn a_list_is_not_added_to_from_another_history() {
    let mut node = Node::start().await;
    node.store.tasks.stop();
    let (_, mut empty) = network(62);
    for _ in 0..100 {
        put(&mut empty, "/other", "x");
    }
    let mut behind = empty.clone();
    behind.revision = 1;
    let (present, own) = (node.cluster.lock().world.clone(), empty.cluster);
    for (other, cluster) in [(empty, 0xbac), (behind, own)] {
        node.cluster.restore(present.clone(), own);
        let mut listing = list(&node.store.store).await.unwrap();
        assert_eq!(listing.entries.len(), 1);
        node.cluster.restore(other, cluster);
        listing.refresh(&node.store.store).await.unwrap();
        assert_eq!(listing.entries.len(), 0);
    }
}

/// Of a change that the compaction took, only the list tells, for which a node of a large cluster waits its turn.
#[tokio::test(start_paused = true)]
async fn after_a_compaction_only_what_was_missed_waits_for_the_list() {
    let mut node = Node::start().await;
    let prefix = node.store.store.keys.subnets.clone();
    node.among_many();
    let missed = attrs(2).owned_by(&owner(2));
    let free = ["10.0.40.0-24", "10.0.41.0-24"];
    let free = free.map(|name| SubnetKey::parse_name(name).unwrap());
    let free = free.into_iter().find(|key| *key != node.lease.key).unwrap();
    {
        let mut inner = node.cluster.lock();
        let key = format!("{prefix}{}", free.name());
        put(&mut inner.world, &key, &missed.to_json().unwrap());
        put(&mut inner.world, "/other", "x");
        inner.world.compact();
    }
    node.cluster.set_all(Reach::Up);
    // By now it watches again.
    sleep(after_pauses(2)).await;
    let mut other = store(&node.cluster, 1, true);
    let new = other.acquire(&node.config, &attrs(1), None).await.unwrap();
    let begun = Instant::now();
    // The list has both, and may come first.
    let mut known = [new.key, free].map(|key| (key, None));
    while known.iter().any(|(_, after)| after.is_none()) {
        let event = timeout(900 * SECOND, node.store.next_event()).await;
        let event = match event.unwrap() {
            StoreEvent::AnotherHistory { reason } => panic!("{reason}"),
            StoreEvent::Peers(event) => event,
            _ => continue,
        };
        for (key, after) in &mut known {
            if after.is_none() && event.leases().iter().any(|lease| lease.key == *key) {
                *after = Some(begun.elapsed());
            }
        }
    }
    let [(_, new), (_, missed)] = known;
    assert!(new.unwrap() < 5 * SECOND, "{new:?}");
    assert!(missed.unwrap() < 800 * SECOND, "{missed:?}");
}
