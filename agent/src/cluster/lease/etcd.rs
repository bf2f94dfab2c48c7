//! Leases in etcd v3, with flannel's keys and values.
//!
//! | what | key |
//! |---|---|
//! | network config | `PREFIX/config` |
//! | lease | `PREFIX/subnets/A.B.C.D-LEN`, or with IPv6 `PREFIX/subnets/A.B.C.D-LEN&V6-LEN6` |
//! | question whether a lease's owner is alive, for seconds | `PREFIX/.challenges/OWNER/NUMBER`; flannel ignores it |
//!
//! A real flannel can share the keys. Differences, all on purpose:
//!
//! * Every write is a transaction that compares what was last seen, so no node overwrites another's lease by mistake.
//! * The etcd lease behind a key is granted once and kept alive; flannel grants a new one daily and puts the key again,
//!   which every peer sees as a change.
//! * A key without an etcd lease is a reservation, and stays one.
//! * The value contains the owner ID (`SelvageOwner`), so that two nodes with one public IP do not share a lease.
//!   flannel skips the field. A node whose public IP changed over a restart finds its lease by the owner ID; the
//!   [`challenge`] makes sure that it is not a clone of a running node.
//! * Keys are parsed strictly, and only directly under `PREFIX/subnets/`; flannel also accepts `PREFIX/subnets-old/…`.
//!
//! The watcher and the [keeper](super::store) share the held lease behind a lock; a task that writes the lease holds
//! the lock. Needs etcd 3.4 or newer.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::store::keeper::{Keeper, TimeLeft};
use crate::cluster::lease::store::state::State;
use crate::cluster::lease::store::tasks::Tasks;
use crate::cluster::lease::store::{DEADLINE, GRACE};
use crate::cluster::lease::{
    Expiry, Lease, LeaseAttrs, LeaseStore, Past, Released, SettingsError, StoreError, StoreEvent,
    SubnetKey,
};
use crate::cluster::network_config::NetworkConfig;
use crate::settings::Etcd;

mod acquire;
mod broker;
mod challenge;
mod config;
mod grants;
mod grpc;
mod held;
mod history;
mod listing;
mod own;
mod plain;
mod records;
mod retake;
mod rpc;
mod servers;
mod settings;
#[cfg(test)]
mod simulation_tests;
mod watch;
mod write;

pub use broker::{Broker, Granted};
use challenge::OwnChallenges;
pub use config::{Expected, StoredConfig};
use grants::Spares;
use grpc::Grpc;
use held::{GONE, Held, Settled};
use listing::{Entry, Listing, Reports, Unfinished};
use own::Own;
pub use plain::{Condition, Folder, PlainKey, PlainKeys};
pub use records::{Record, Records};
use rpc::{Compare, Connect, Must};
use servers::Servers;
use settings::Keys;
use watch::Watcher;

/// What the tasks share.
#[derive(Debug)]
struct Store {
    servers: Servers,
    keys: Keys,
    reports: Reports,
    unfinished: std::sync::Mutex<Option<Unfinished>>,
    /// A whole list, of before a race that was lost, and when it was kept.
    whole: std::sync::Mutex<Option<(Listing, Instant)>>,
    /// Whether the last list failed because no answer came in time.
    list_timed_out: AtomicBool,
    held: Mutex<Option<Held>>,
    spares: Spares,
    asked: OwnChallenges,
    config: config::Known,
    state: Arc<State>,
}

impl Store {
    /// The full etcd key of a lease.
    fn key(&self, key: &SubnetKey) -> String {
        format!("{}{}", self.keys.subnets, key.name())
    }

    /// True if no lease was created after this revision.
    fn unchanged_since(&self, revision: i64) -> Compare {
        let keys = &self.keys;
        let until = Must::BeCreatedUntil(revision);
        Compare::range(keys.subnets.as_str(), keys.subnets_end.as_str(), until)
    }
}

/// The lease store of one node.
#[derive(Debug)]
pub struct EtcdStore {
    store: Arc<Store>,
    owner: String,
    /// Whether this process has acquired a lease before. If so, the previous subnet is not from before a restart.
    acquired: bool,
    /// Whether the node will most likely need a new etcd lease.
    needs_grant: bool,
    /// What the node's subnet must not cover.
    avoid: Avoid,
    tasks: Tasks,
}

impl EtcdStore {
    /// Checks the settings; connects to nothing yet. `owner` is this node's owner ID, for example the machine ID.
    ///
    /// # Errors
    /// A file cannot be read, or the settings contradict each other.
    pub fn new(settings: Etcd, owner: String) -> Result<Self, SettingsError> {
        Self::with_grace(settings, owner, GRACE)
    }

    /// Like [`Self::new`], with another hold-down: how long a lease that vanished during an outage is still reported.
    ///
    /// # Errors
    /// Like [`Self::new`].
    pub fn with_grace(
        settings: Etcd,
        owner: String,
        grace: Duration,
    ) -> Result<Self, SettingsError> {
        Self::connected_by(Box::new(Grpc), settings, owner, grace)
    }

    /// Like [`Self::with_grace`], with other connections than those to real servers.
    fn connected_by(
        connector: Box<dyn Connect>,
        settings: Etcd,
        owner: String,
        grace: Duration,
    ) -> Result<Self, SettingsError> {
        let endpoints = settings.check()?;
        let keys = settings.keys();
        let state = Arc::new(State::new(grace));
        Ok(Self {
            store: Arc::new(Store {
                servers: Servers::new(settings, endpoints, connector),
                keys,
                reports: Reports::default(),
                unfinished: std::sync::Mutex::default(),
                whole: std::sync::Mutex::default(),
                list_timed_out: AtomicBool::new(false),
                held: Mutex::new(None),
                spares: Spares::default(),
                asked: OwnChallenges::default(),
                config: config::Known::default(),
                state,
            }),
            owner,
            acquired: false,
            needs_grant: false,
            avoid: Avoid::default(),
            tasks: Tasks::default(),
        })
    }

    /// Reads the network config without parsing it.
    pub async fn raw_network_config(&mut self) -> Result<Option<StoredConfig>, StoreError> {
        config::read(&self.store).await.map(|(config, _)| config)
    }

    /// Writes the network config if the stored state is `expected`; else [`StoreError::ConfigChanged`].
    pub async fn set_network_config(
        &mut self,
        text: &str,
        expected: Expected,
    ) -> Result<(), StoreError> {
        config::write(&self.store, text, expected).await
    }

    /// The key of the network config.
    pub fn config_key(&self) -> &str {
        &self.store.keys.config
    }

    /// All readable leases.
    pub async fn list(&mut self) -> Result<Vec<Lease>, StoreError> {
        let store = &self.store;
        let listing = listing::list(store).await?;
        Ok(listing
            .entries
            .into_iter()
            .filter_map(Entry::into_lease)
            .collect())
    }

    /// Starts the tasks and ends the running ones. `own`: the held lease and its remaining time.
    fn start(&mut self, own: Option<(SubnetKey, Own, TimeLeft)>, listing: Option<Listing>) {
        let events = self.tasks.restart();
        let key = own.as_ref().map(|(key, ..)| *key);
        let store = Arc::clone(&self.store);
        let watcher = Watcher::new(store, events.clone(), key, &self.owner);
        self.tasks.spawn(watcher.run(listing));
        if let Some((_, own, time_left)) = own {
            self.tasks.spawn(Keeper::new(own, events).run(time_left));
        }
    }
}

/// Publishes new attributes in the held lease.
async fn publish(store: Arc<Store>, wanted: LeaseAttrs) -> Result<(), StoreError> {
    let mut guard = store.held.lock().await;
    let Some(held) = guard.as_mut() else {
        return Err(StoreError::NoLease {
            reason: "none was acquired, or it was lost".to_owned(),
        });
    };
    held.wanted = wanted;
    if held.published == held.wanted {
        return Ok(());
    }
    // The keeper checks the key when the lock is free, so it makes up for any failure below.
    store.state.touch();
    let etcd_lease = held.etcd_lease;
    if held.put(&store, etcd_lease).await? {
        return Ok(());
    }
    match held.settle(&store).await? {
        Settled::Kept { .. } => Ok(()),
        Settled::Gone if held.retake(&store).await? => Ok(()),
        Settled::Gone => Err(StoreError::NoLease {
            reason: GONE.to_owned(),
        }),
        Settled::TakenOver { reason } => Err(StoreError::NoLease { reason }),
    }
}

/// A lease in etcd that no store holds yet.
pub struct Taken {
    acquired: acquire::Acquired,
    attrs: LeaseAttrs,
}

impl LeaseStore for EtcdStore {
    type Taken = Taken;

    async fn network_config(&mut self) -> Result<NetworkConfig, StoreError> {
        let (config, _) = config::read(&self.store).await?;
        self.store.config.note(config.as_ref());
        let config = config::parse(&self.store, config.as_ref())?;
        // A node without a network may wait for days, and without a server for hours.
        if std::mem::take(&mut self.needs_grant) {
            grants::request_ahead(&self.store).await;
        }
        Ok(config)
    }

    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> BoxFuture<'static, Result<Taken, StoreError>> {
        let (store, config) = (Arc::clone(&self.store), config.clone());
        let (attrs, restarted) = (attrs.owned_by(&self.owner), !self.acquired);
        let (past, avoid) = (past, self.avoid.clone());
        Box::pin(async move {
            let node = acquire::Node {
                attrs: &attrs,
                previous: past.previous,
                restarted,
                may_ask: true,
                has_own_address: past.has_own_address,
                avoid: &avoid,
            };
            listing::pause_after_timeout(&store).await?;
            let acquired = acquire::acquire(&store, &config, node).await?;
            Ok(Taken { acquired, attrs })
        })
    }

    async fn hold(&mut self, taken: Taken) -> Lease {
        let Taken { acquired, attrs } = taken;
        self.acquired = true;
        let lease = Lease {
            key: acquired.held.key,
            attrs,
            created: listing::to_unsigned(acquired.created),
        };
        // A task that writes or renews the former lease holds its lock, and may be waiting for a reply.
        self.tasks.stop();
        let etcd_lease = acquired.held.etcd_lease;
        let former = self.store.held.lock().await.replace(acquired.held);
        // The old watch may have seen the lease in the store although the listing lacks it.
        self.store.state.hold_down().forget(&lease.key);
        let (own, time_left) = Own::begin(Arc::clone(&self.store), etcd_lease, acquired.aged);
        self.start(Some((lease.key, own, time_left)), Some(acquired.listing));
        if let Some(former) = former.filter(|former| former.key != lease.key) {
            let store = Arc::clone(&self.store);
            self.tasks.spawn(async move {
                let subnet = former.key.to_string();
                if let Err(error) = former.release(&store).await {
                    warn!(subnet, "failed to release the previous lease: {error}");
                }
            });
        }
        lease
    }

    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>> {
        let publishing = publish(Arc::clone(&self.store), attrs.owned_by(&self.owner));
        let (done, outcome) = oneshot::channel();
        // In its own task it outlives the caller's timeout, and tries one server after the other.
        self.tasks.spawn(async move {
            let _ = done.send(publishing.await);
        });
        let store = Arc::clone(&self.store);
        Box::pin(async move {
            match timeout(DEADLINE, outcome).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) | Err(_) => Err(store.servers.silence()),
            }
        })
    }

    async fn release(&mut self) -> Result<Released, StoreError> {
        // No task may renew or write the lease from here on.
        self.tasks.stop();
        let releasing = async {
            match self.store.held.lock().await.take() {
                Some(held) => held.release(&self.store).await,
                None => {
                    self.store.spares.revoke(&self.store.servers).await;
                    Ok(Released::Nothing)
                }
            }
        };
        timeout(DEADLINE, releasing)
            .await
            .unwrap_or_else(|_| Err(self.store.servers.silence()))
    }

    fn set_access(&mut self, settings: &Etcd) -> Result<(), SettingsError> {
        self.store.servers.set_access(settings)
    }

    fn reconnect(&mut self) {
        self.store.servers.reconnect();
    }

    fn expect_no_lease(&mut self) {
        self.needs_grant = true;
    }

    fn set_avoid(&mut self, avoid: Avoid) {
        self.avoid = avoid;
    }

    fn expiry(&self) -> Expiry {
        self.store.state.expiry()
    }

    async fn next_event(&mut self) -> StoreEvent {
        loop {
            if !self.tasks.are_watching() {
                self.start(None, None);
            }
            if let Some(event) = self.tasks.next_event().await {
                return event;
            }
        }
    }
}
