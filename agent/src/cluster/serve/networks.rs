//! The networks that a server serves: the one at the etcd prefix, and those below it that clients request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{info, warn};

use super::table::Table;
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::SettingsError;
use crate::cluster::lease::etcd::{Broker, EtcdStore};
use crate::cluster::lease::rest::wire::{self, LeaseBody, WatchResult};
use crate::cluster::lease::{LeaseStore, StoreError, StoreEvent};
use crate::settings::Etcd;
use crate::settings::is_network_name;

/// The most networks to follow. Only those with a config are followed.
const MOST: usize = 256;

/// Pauses between attempts to read a first network config.
const PAUSES: Backoff =
    match Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// All networks.
#[derive(Debug)]
pub(super) struct Networks {
    settings: Etcd,
    /// By name; the network at the prefix has an empty name.
    known: Mutex<BTreeMap<String, Arc<Network>>>,
    /// The tasks end when this is dropped.
    tasks: Mutex<JoinSet<()>>,
}

/// One network.
#[derive(Debug)]
pub(super) struct Network {
    /// Writes leases for clients.
    pub(super) broker: Broker,
    table: Mutex<Table>,
    /// Notified when the table or the trouble changes.
    news: watch::Sender<()>,
    /// What is wrong with etcd, if anything.
    trouble: Mutex<Option<String>>,
    /// The last list of all leases, with its cursor: after an outage all clients request the same.
    list: Mutex<Option<(String, Bytes)>>,
}

impl Networks {
    /// Checks the settings and follows the network at the prefix.
    pub(super) fn new(settings: Etcd) -> Result<Self, SettingsError> {
        let networks = Self {
            settings,
            known: Mutex::default(),
            tasks: Mutex::default(),
        };
        let store = networks.store("")?;
        networks.follow(String::new(), store);
        Ok(networks)
    }

    /// The network at the prefix.
    pub(super) fn root(&self) -> Option<Arc<Network>> {
        self.known().get("").cloned()
    }

    /// The network for a path element. Follows it from now on if it exists.
    pub(super) async fn get(&self, element: &str) -> Result<Arc<Network>, StoreError> {
        let name = if element == "_" { "" } else { element };
        if let Some(network) = self.known().get(name) {
            return Ok(Arc::clone(network));
        }
        let absent = || StoreError::NoNetworkConfig {
            key: format!("{}/{name}/config", self.settings.prefix),
        };
        if !is_network_name(name) || self.known().len() >= MOST {
            return Err(absent());
        }
        let store = self.store(name).map_err(|_| absent())?;
        match store.broker().config().await {
            Ok(_) | Err(StoreError::BadNetworkConfig { .. }) => {
                Ok(self.follow(name.to_owned(), store))
            }
            Err(error) => Err(error),
        }
    }

    /// What is wrong with etcd, if anything.
    pub(super) fn trouble(&self) -> Option<String> {
        let known = self.known();
        known.values().find_map(|network| network.trouble())
    }

    /// The number of networks and leases.
    pub(super) fn count(&self) -> (usize, usize) {
        let known = self.known();
        let leases = known.values().map(|network| network.table().len()).sum();
        (known.len(), leases)
    }

    fn store(&self, name: &str) -> Result<EtcdStore, SettingsError> {
        let settings = Etcd {
            prefix: match name {
                "" => self.settings.prefix.clone(),
                name => format!("{}/{name}", self.settings.prefix),
            },
            ..self.settings.clone()
        };
        EtcdStore::new(settings, String::new())
    }

    /// Follows a network, unless that is done already.
    fn follow(&self, name: String, store: EtcdStore) -> Arc<Network> {
        let mut known = self.known();
        let network = known.entry(name).or_insert_with(|| {
            let network = Arc::new(Network {
                broker: store.broker(),
                table: Mutex::new(Table::new(random_seed())),
                news: watch::Sender::new(()),
                trouble: Mutex::new(None),
                list: Mutex::new(None),
            });
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.spawn(follow(store, Arc::clone(&network)));
            network
        });
        Arc::clone(network)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Network>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Network {
    /// The leases and their latest changes.
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Valid at every step, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes when there may be news.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// What is wrong with etcd, if anything.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The answer with all leases.
    pub(super) fn list(&self) -> Result<Bytes, serde_json::Error> {
        let table = self.table();
        let cursor = table.cursor();
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, bytes)) = list.as_ref()
            && *of == cursor
        {
            return Ok(bytes.clone());
        }
        let (leases, unreadable) = table.all();
        let snapshot: Vec<_> = leases.map(LeaseBody::new).collect();
        let bytes = Bytes::from(wire::encode(&WatchResult::<LeaseBody, _> {
            events: None,
            snapshot: Some(&snapshot),
            cursor: &cursor,
            unreadable,
            config: Some(&table.config_tag()),
        })?);
        *list = Some((cursor, bytes.clone()));
        Ok(bytes)
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

/// Follows a network for as long as the server runs.
async fn follow(mut store: EtcdStore, network: Arc<Network>) {
    let mut backoff = PAUSES.seeded(random_seed());
    // Once the config has been read, the store reports its changes.
    while let Err(error @ (StoreError::Unreachable { .. } | StoreError::Refused { .. })) =
        store.network_config().await
    {
        let text = error.to_string();
        if network.trouble().as_ref() != Some(&text) {
            warn!("failed to read the network config, retrying: {text}");
        }
        network.set_trouble(Some(text));
        network.news.send_replace(());
        sleep(backoff.next_delay()).await;
    }
    network.set_trouble(None);
    loop {
        match store.next_event().await {
            StoreEvent::Peers(event) => network.table().apply(event),
            StoreEvent::NetworkConfig(_) => network.table().config_changed(),
            StoreEvent::Unreachable { error } => {
                warn!("lost the connection to etcd: {error}");
                network.set_trouble(Some(error.text));
            }
            StoreEvent::Reachable { endpoint } => {
                info!(endpoint, "connected to etcd");
                network.set_trouble(None);
            }
            StoreEvent::AnotherHistory { reason } => {
                warn!(
                    "etcd was restored from a backup or recreated; listed all leases again: {reason}"
                );
            }
            // This store holds no lease of its own.
            StoreEvent::Renewed { .. }
            | StoreEvent::RenewalFailed { .. }
            | StoreEvent::OwnLeaseLost { .. } => {}
        }
        network.news.send_replace(());
    }
}
