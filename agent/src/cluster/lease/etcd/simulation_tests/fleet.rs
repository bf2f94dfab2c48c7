//! The nodes: each runs the real store with its watcher and keeper, and around it the part of the agent's loop that
//! takes a lease again. The nodes of the sample also keep the real table of peers.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::server::{Cluster, MEMBERS, Side};
use crate::base::retry::{Backoff, next_random, random_seed};
use crate::cluster::lease::etcd::{EtcdStore, Taken};
use crate::cluster::lease::store::GRACE;
use crate::cluster::lease::{
    Lease, LeaseAttrs, LeaseEvent, LeaseStore, Past, StoreError, StoreEvent, SubnetKey,
};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::peers::PeerTable;
use crate::settings::Etcd;

/// The TTL of the leases: renewed every two and a half minutes or a little sooner.
pub(super) const TTL: Duration = Duration::from_secs(15 * 60);

/// The pauses of the agent's loop after it failed (`agent::task`).
const PAUSES: Backoff = Backoff::constant(Duration::from_millis(200), Duration::from_secs(10), 0.3);

/// What the nodes report.
#[derive(Default)]
pub(super) struct Board {
    /// The subnet of each node; `None` before it has one, and after it lost it.
    held: Mutex<Vec<Option<SubnetKey>>>,
    /// The table of each node of the sample.
    tables: Vec<Mutex<Option<PeerTable>>>,
    pub(super) holding: AtomicUsize,
    /// How often a node came to another subnet than before.
    pub(super) renumbered: AtomicUsize,
    /// How often a node's lease was lost and taken again by the agent's loop.
    pub(super) lost: AtomicUsize,
    /// How often a node of the sample removed a peer.
    pub(super) removed: AtomicUsize,
    /// How often a node of the sample heard that etcd has another history.
    pub(super) other_history: AtomicUsize,
    /// The attempts to take a lease that failed.
    pub(super) failed: AtomicUsize,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board")
            .field("holding", &self.holding)
            .field("renumbered", &self.renumbered)
            .field("lost", &self.lost)
            .field("removed", &self.removed)
            .field("other_history", &self.other_history)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// All nodes, and their cluster.
pub(super) struct Fleet {
    pub(super) cluster: Arc<Cluster>,
    pub(super) board: Arc<Board>,
    pub(super) config: NetworkConfig,
    pub(super) nodes: usize,
    sample: usize,
    /// Makes the last node publish new attributes.
    change: Sender<LeaseAttrs>,
    tasks: JoinSet<()>,
}

/// A node.
struct Node {
    number: usize,
    attrs: LeaseAttrs,
    config: NetworkConfig,
    board: Arc<Board>,
    store: EtcdStore,
    /// Whether it is in the sample.
    is_full: bool,
    /// What to publish next; only the last node is told.
    changes: Option<Receiver<LeaseAttrs>>,
    acquiring: JoinSet<Result<Taken, StoreError>>,
}

pub(super) fn owner(number: usize) -> String {
    format!("{number:032x}")
}

/// A node's public address, outside the network.
fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0001 + u32::try_from(number).unwrap())
}

pub(super) fn attrs(number: usize) -> LeaseAttrs {
    let low = u32::try_from(number).unwrap();
    let [_, b, c, d] = low.to_be_bytes();
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:{b:02x}:{c:02x}:{d:02x}"}}"#);
    LeaseAttrs {
        public_ip: Some(address(number)),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: RawValue::from_string(data).ok(),
        backend_v6_data: None,
        owner: None,
    }
}

/// The store of a node. `is_full`: it is shown all leases.
pub(super) fn store(cluster: &Arc<Cluster>, number: usize, is_full: bool) -> EtcdStore {
    // Each node prefers another member, as where clients shuffle their list.
    let member = |i: usize| format!("http://{}.etcd:2379", (number + i) % MEMBERS);
    let settings = Etcd {
        endpoints: (0..MEMBERS).map(member).collect(),
        lease_ttl: TTL,
        ..Etcd::default()
    };
    let connector = Box::new(Side {
        cluster: Arc::clone(cluster),
        owner: owner(number).into(),
        is_full,
    });
    EtcdStore::connected_by(connector, settings, owner(number), GRACE).unwrap()
}

impl Fleet {
    /// Starts the nodes at random moments within a time. The first `sample` ones are spread among them.
    pub(super) fn start(
        cluster: Arc<Cluster>,
        config: NetworkConfig,
        nodes: usize,
        sample: usize,
        within: Duration,
    ) -> Self {
        let board = Arc::new(Board {
            held: Mutex::new(vec![None; nodes]),
            tables: (0..sample).map(|_| Mutex::default()).collect(),
            ..Board::default()
        });
        let (change, changes) = channel(1);
        let mut changes = Some(changes);
        let mut fleet = Self {
            cluster,
            board,
            config,
            nodes,
            sample,
            change,
            tasks: JoinSet::new(),
        };
        let mut seed = random_seed();
        for number in 0..nodes {
            let part = f64::from(u32::try_from(next_random(&mut seed) >> 32).unwrap());
            let after = within.mul_f64(part / f64::from(u32::MAX));
            let mut node = fleet.node(number);
            if number + 1 == nodes {
                node.changes = changes.take();
            }
            fleet.tasks.spawn(async move {
                sleep(after).await;
                node.run().await;
            });
        }
        fleet
    }

    fn node(&self, number: usize) -> Node {
        let is_full = number < self.sample;
        Node {
            number,
            attrs: attrs(number),
            config: self.config.clone(),
            board: Arc::clone(&self.board),
            store: store(&self.cluster, number, is_full),
            is_full,
            changes: None,
            acquiring: JoinSet::new(),
        }
    }

    /// Whether every node holds a lease of its own, as etcd has it, and every node of the sample has all others as
    /// peers, with their present attributes.
    pub(super) fn agrees(&self) -> bool {
        if self.board.holding.load(Ordering::Relaxed) != self.nodes {
            return false;
        }
        // What is compared first is what takes longest to become true.
        if !(0..self.sample).all(|own| self.knows_as_many(own)) {
            return false;
        }
        let held = self.board.held.lock().unwrap();
        let inner = self.cluster.lock();
        if inner.world.taken.count() != self.nodes {
            return false;
        }
        let in_etcd = held.iter().enumerate().all(|(number, key)| {
            let owner = owner(number);
            let mut leases = inner.world.leases_of(&owner);
            let lease = leases.next().filter(|_| leases.next().is_none());
            let name = lease.and_then(|kv| kv.key.rsplit(|b| *b == b'/').next());
            name.is_some_and(|name| {
                Some(name) == key.map(|key| key.name()).as_deref().map(str::as_bytes)
            })
        });
        in_etcd && (0..self.sample).all(|own| self.knows_all(own, &held))
    }

    fn knows_as_many(&self, own: usize) -> bool {
        let table = self.board.tables[own].lock().unwrap();
        table
            .as_ref()
            .is_some_and(|table| table.len() == self.nodes - 1)
    }

    fn knows_all(&self, own: usize, held: &[Option<SubnetKey>]) -> bool {
        let table = self.board.tables[own].lock().unwrap();
        let Some(table) = table.as_ref() else {
            return false;
        };
        held.iter().enumerate().all(|(number, key)| {
            let peer = key.and_then(|key| table.get(&key));
            number == own || peer.is_some_and(|peer| peer.attrs.public_ip == Some(address(number)))
        })
    }

    /// Lets the last node publish other attributes; returns how long it takes until all of the sample know them.
    pub(super) async fn change_heard(&self, within: Duration) -> Duration {
        let last = self.nodes - 1;
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:ff:ff:ff"}"#;
        let new = LeaseAttrs {
            backend_data: RawValue::from_string(data.to_owned()).ok(),
            ..attrs(last)
        };
        let start = Instant::now();
        self.change.send(new).await.unwrap();
        let knows = |own: usize| {
            let key = self.board.held.lock().unwrap()[last];
            let table = self.board.tables[own].lock().unwrap();
            let peer = table
                .as_ref()
                .zip(key)
                .and_then(|(table, key)| table.get(&key));
            let found = peer.and_then(|peer| peer.attrs.backend_data.as_deref());
            found.is_some_and(|found| found.get() == data)
        };
        while !(0..self.sample).all(|own| own == last || knows(own)) {
            assert!(start.elapsed() < within, "a change is not known to all");
            sleep(Duration::from_secs(1)).await;
        }
        start.elapsed()
    }

    /// Waits until [`Self::agrees`]; returns how long that took.
    pub(super) async fn agreement(&self, within: Duration) -> Duration {
        let start = Instant::now();
        while !self.agrees() {
            assert!(
                start.elapsed() < within,
                "after {within:?} of the simulation {} of {} nodes hold a lease, etcd has {}; {:?}",
                self.board.holding.load(Ordering::Relaxed),
                self.nodes,
                self.cluster.lock().world.taken.count(),
                self.board,
            );
            sleep(Duration::from_secs(1)).await;
        }
        start.elapsed()
    }
}

/// What to publish next; never, unless somebody tells.
async fn changed(changes: &mut Option<Receiver<LeaseAttrs>>) -> Option<LeaseAttrs> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

impl Node {
    async fn run(mut self) {
        let mut pauses = PAUSES.seeded(random_seed());
        let own = loop {
            match self.join().await {
                Ok(own) => break own,
                Err(_) => self.failed(),
            }
            sleep(pauses.next_delay()).await;
        };
        pauses.reset();
        self.hold(&own);
        let mut own = own;
        let mut due = None;
        loop {
            tokio::select! {
                event = self.store.next_event() => match event {
                    StoreEvent::Peers(event) => self.peers(event),
                    StoreEvent::OwnLeaseLost { .. } => {
                        self.lost();
                        due = Some(Instant::now());
                    }
                    StoreEvent::AnotherHistory { .. } if self.is_full => {
                        self.board.other_history.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => {}
                },
                Some(new) = changed(&mut self.changes) => {
                    // The store retries.
                    let _ = self.store.update(&new).await;
                    self.attrs = new;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && self.acquiring.is_empty() => {
                    due = None;
                    let taking = self.store.take(&self.config, &self.attrs, Past::from(Some(own.key)));
                    self.acquiring.spawn(taking);
                }
                Some(taken) = self.acquiring.join_next() => match taken.unwrap() {
                    Ok(taken) => {
                        pauses.reset();
                        let new = self.store.hold(taken).await;
                        let other = usize::from(new.key != own.key);
                        self.board.renumbered.fetch_add(other, Ordering::Relaxed);
                        own = new;
                        self.hold(&own);
                    }
                    Err(_) => {
                        self.failed();
                        due = Some(Instant::now() + pauses.next_delay());
                    }
                },
            }
        }
    }

    async fn join(&mut self) -> Result<Lease, StoreError> {
        let config = self.store.network_config().await?;
        self.store.acquire(&config, &self.attrs, None).await
    }

    fn failed(&self) {
        self.board.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn hold(&self, own: &Lease) {
        let mut held = self.board.held.lock().unwrap();
        if held[self.number].replace(own.key).is_none() {
            self.board.holding.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(table) = self.board.tables.get(self.number) {
            let mut table = table.lock().unwrap();
            // Renumbering is counted, and no scenario expects it, so the table need not be moved to another lease.
            table.get_or_insert_with(|| {
                PeerTable::new(&self.config, own, Box::new(|_: &Lease| Ok(())))
            });
        }
    }

    fn lost(&self) {
        self.board.lost.fetch_add(1, Ordering::Relaxed);
        if self.board.held.lock().unwrap()[self.number]
            .take()
            .is_some()
        {
            self.board.holding.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn peers(&self, event: LeaseEvent) {
        if let Some(table) = self.board.tables.get(self.number)
            && let Some(table) = table.lock().unwrap().as_mut()
        {
            let changes = table.apply(event);
            let removed = changes.removed.len();
            self.board.removed.fetch_add(removed, Ordering::Relaxed);
        }
    }
}
