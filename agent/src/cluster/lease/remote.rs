//! Leases that a lease server keeps in etcd for this host: flannel's client mode, over the interface of
//! [`crate::cluster::lease::rest`].
//!
//! The rest of the agent sees no difference from etcd. The watcher follows all leases by long polls, the
//! [keeper](super::store) keeps the own lease. The server decides whose a lease is by comparing what is in etcd; this
//! side asks it whenever the list does not show the own lease as wanted.

use std::future::ready;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper::Method;
use ipnet::IpNet;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use self::connection::Question;
use self::own::Own;
use self::servers::Servers;
use self::watch::Watcher;
use crate::base::endpoint::Endpoint;
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::rest::MOST_AVOIDED;
use crate::cluster::lease::rest::tls::{Files, TlsError};
use crate::cluster::lease::rest::wire::{
    self, FLANNELS_TTL, LeaseBody, Received, WatchUpdate, Watched,
};
use crate::cluster::lease::store::keeper::{Keeper, TimeLeft};
use crate::cluster::lease::store::state::State;
use crate::cluster::lease::store::tasks::Tasks;
use crate::cluster::lease::store::{DEADLINE, GRACE};
use crate::cluster::lease::{
    Expiry, Lease, LeaseAttrs, LeaseStore, Past, Released, StoreError, StoreEvent, SubnetKey,
    allocate,
};
use crate::cluster::network_config::NetworkConfig;
use crate::settings::Remote;

mod connection;
mod own;
mod servers;
mod watch;

/// What the tasks share.
#[derive(Debug)]
struct Shared {
    servers: Servers,
    /// `/v1/NET`.
    base: String,
    held: Mutex<Option<Held>>,
    /// Locked while the own lease is written, so that an older write does not overtake a newer one.
    writing: tokio::sync::Mutex<()>,
    state: Arc<State>,
    /// The network config text that the agent knows.
    config: Mutex<Option<String>>,
}

/// The lease that this host holds.
#[derive(Clone, Debug)]
struct Held {
    key: SubnetKey,
    /// The acquisition that it comes from: a task of another term must not touch it.
    term: u64,
    /// What should be published.
    wanted: LeaseAttrs,
    /// Whether the server confirmed that.
    confirmed: bool,
    /// Addresses that the server may know it by: the last confirmed one, and those sent without a reply.
    addresses: Vec<IpAddr>,
}

/// The most addresses to remember.
const MOST_ADDRESSES: usize = 8;

impl Shared {
    fn question(&self, method: Method, path: &str, body: String) -> Question {
        Question {
            method,
            path: format!("{}{path}", self.base),
            body,
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_config(&self) -> MutexGuard<'_, Option<String>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the network config's text.
    async fn read_config(&self) -> Result<String, StoreError> {
        let question = self.question(Method::GET, "/config", String::new());
        let answer = self.servers.ask(&question).await?;
        Ok(String::from_utf8_lossy(&answer.body).trim_end().to_owned())
    }

    fn parse_config(&self, text: &str) -> Result<NetworkConfig, StoreError> {
        NetworkConfig::parse(text).map_err(|error| StoreError::BadNetworkConfig {
            key: format!("{}{}/config", self.servers.url(), self.base),
            error,
        })
    }

    /// Renews the lease of one term and publishes the wanted attributes. Returns the remaining time; `None` for a
    /// reservation.
    async fn renew(&self, term: u64) -> Result<Option<Duration>, StoreError> {
        let _writing = self.writing.lock().await;
        let held = self.held().clone().filter(|held| held.term == term);
        let held = held.ok_or_else(|| StoreError::NoLease {
            reason: "it was released meanwhile".to_owned(),
        })?;
        let former: Vec<_> = held
            .addresses
            .iter()
            .map(|address| format!("former={address}"))
            .collect();
        let path = format!("/leases/{}?{}", encoded(&held.key), former.join("&"));
        let body = held.body()?;
        let question = self.question(Method::PUT, &path, body);
        let answer = self.servers.ask(&question).await?;
        let received = self.lease_in(&answer.body)?;
        let mut current = self.held();
        if let Some(current) = current.as_mut().filter(|current| current.term == term) {
            // Attributes that changed meanwhile are written by the task that changed them.
            current.addresses.retain(|address| {
                !held.addresses.contains(address) || *address == held.wanted.public_address()
            });
            current.remember(held.wanted.public_address());
            current.confirmed = current.wanted == held.wanted;
            self.state.renewed(received.ttl);
        }
        Ok(received.ttl)
    }

    /// Parses the lease in a server's answer.
    fn lease_in(&self, body: &[u8]) -> Result<Received, StoreError> {
        let text = String::from_utf8_lossy(body);
        let mut received =
            Received::parse(&text).map_err(|error| self.servers.bad_answer(error.to_string()))?;
        // A Selvage server sends `Created`; a flannel one gives the expiry by its own clock only.
        if received.ttl.is_none() && received.created == 0 {
            received.ttl = Some(FLANNELS_TTL);
        }
        Ok(received)
    }
}

impl Held {
    /// The lease as sent.
    fn body(&self) -> Result<String, serde_json::Error> {
        wire::encode(&LeaseBody::new(&Lease {
            key: self.key,
            attrs: self.wanted.clone(),
            created: 0,
        }))
    }

    fn remember(&mut self, address: IpAddr) {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
            if self.addresses.len() > MOST_ADDRESSES {
                self.addresses.remove(0);
            }
        }
    }
}

/// A subnet as part of a path. flannel's router accepts `&` and `:` plain or escaped.
fn encoded(key: &SubnetKey) -> String {
    const ESCAPED: &percent_encoding::AsciiSet = &NON_ALPHANUMERIC
        .remove(b'.')
        .remove(b'-')
        .remove(b'&')
        .remove(b':');
    utf8_percent_encode(&key.name(), ESCAPED).to_string()
}

/// The owner ID that a client sent, without the certificate digest that a server appended.
fn named(owner: &str) -> &str {
    owner.split_once('@').map_or(owner, |(named, _)| named)
}

/// The lease store of one node, behind lease servers.
#[derive(Debug)]
pub struct RemoteStore {
    shared: Arc<Shared>,
    owner: String,
    /// The number of acquisitions so far. After the first, a previous subnet is not from before a restart.
    terms: u64,
    /// What the node's subnet must not cover.
    avoid: Avoid,
    tasks: Tasks,
}

impl RemoteStore {
    /// Checks the settings; connects to nothing yet. `owner` is this node's owner ID.
    pub fn new(settings: &Remote, owner: String) -> Result<Self, TlsError> {
        let files = Files {
            cafile: settings.cafile.clone(),
            certfile: settings.certfile.clone(),
            keyfile: settings.keyfile.clone(),
        };
        let servers = settings.servers.iter();
        // The settings were validated before; an invalid one is skipped.
        let endpoints: Vec<_> = servers
            .filter_map(|url| Endpoint::parse(url, false))
            .collect();
        if endpoints.iter().any(|endpoint| endpoint.tls) {
            files.client()?;
        }
        Ok(Self {
            shared: Arc::new(Shared {
                servers: Servers::new(endpoints, files),
                base: format!("/v1/{}", settings.network),
                held: Mutex::new(None),
                writing: tokio::sync::Mutex::new(()),
                state: Arc::new(State::new(GRACE)),
                config: Mutex::new(None),
            }),
            owner,
            terms: 0,
            avoid: Avoid::default(),
            tasks: Tasks::default(),
        })
    }

    /// The leases whose owner ID is this node's.
    pub async fn own_leases(&self) -> Result<Vec<Lease>, StoreError> {
        let shared = &self.shared;
        let question = shared.question(Method::GET, "/leases?wait=0", String::new());
        let answer = shared.servers.ask(&question).await?;
        let watched = Watched::parse(&String::from_utf8_lossy(&answer.body), false)
            .map_err(|error| shared.servers.bad_answer(error.to_string()))?;
        let WatchUpdate::Snapshot { mut leases, .. } = watched.update else {
            return Ok(Vec::new());
        };
        leases.retain(|lease| {
            let owner = lease.attrs.owner.as_deref().unwrap_or_default();
            named(owner) == self.owner
        });
        Ok(leases)
    }

    /// Gives back a lease of [`Self::own_leases`].
    pub async fn give_back(&self, lease: &Lease) -> Result<Released, StoreError> {
        let held = Held {
            key: lease.key,
            term: 0,
            wanted: lease.attrs.owned_by(&self.owner),
            confirmed: true,
            addresses: Vec::new(),
        };
        give_back(&self.shared, &held).await
    }

    /// Starts the tasks and ends the running ones. `own`: the remaining time of the own lease, if there is one.
    fn start(&mut self, own: Option<TimeLeft>) {
        let events = self.tasks.restart();
        self.tasks
            .spawn(Watcher::new(Arc::clone(&self.shared), events.clone()).run());
        if let Some(time_left) = own {
            let own = Own {
                shared: Arc::clone(&self.shared),
                term: self.terms,
            };
            self.tasks.spawn(Keeper::new(own, events).run(time_left));
        }
    }
}

/// The query parameters that list what the subnet must not cover, as far as it overlaps the network. Other servers skip
/// the unknown parameter.
fn avoided(avoid: &Avoid, config: &NetworkConfig) -> String {
    let networks: Vec<IpNet> = config.networks().collect();
    let hosts = avoid.addresses.iter().map(|host| IpNet::from(*host));
    let meets = |net: &IpNet| {
        let mut networks = networks.iter();
        networks.any(|network| network.contains(net) || net.contains(network))
    };
    hosts
        .chain(avoid.on_link.iter().copied())
        .filter(meets)
        .take(MOST_AVOIDED)
        .map(|net| format!("&avoid={net}"))
        .collect()
}

/// A lease from a server that no store holds yet.
pub struct Taken {
    received: Received,
    attrs: LeaseAttrs,
}

impl LeaseStore for RemoteStore {
    type Taken = Taken;

    async fn network_config(&mut self) -> Result<NetworkConfig, StoreError> {
        let text = self.shared.read_config().await?;
        let config = self.shared.parse_config(&text);
        *self.shared.known_config() = Some(text);
        config
    }

    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> BoxFuture<'static, Result<Taken, StoreError>> {
        let (shared, config) = (Arc::clone(&self.shared), config.clone());
        let attrs = attrs.owned_by(&self.owner);
        let previous = past.previous;
        let previous = previous.map(|key| SubnetKey::new(key.v4, key.v6));
        let mut path = format!("/leases?restarted={}", self.terms == 0);
        if let Some(previous) = previous {
            let name = utf8_percent_encode(&previous.name(), NON_ALPHANUMERIC).to_string();
            path.push_str(&format!("&previous={name}"));
        }
        path.push_str(&avoided(&self.avoid, &config));
        Box::pin(async move {
            let question = shared.question(Method::POST, &path, attrs.to_json()?);
            let answer = shared.servers.ask(&question).await?;
            let received = shared.lease_in(&answer.body)?;
            if !allocate::allows(&config, &received.key) {
                let text = format!(
                    "gave {}, which the network config does not allow",
                    received.key
                );
                return Err(shared.servers.bad_answer(text));
            }
            Ok(Taken { received, attrs })
        })
    }

    async fn hold(&mut self, taken: Taken) -> Lease {
        let Taken { received, attrs } = taken;
        let shared = Arc::clone(&self.shared);
        self.terms += 1;
        shared.state.renewed(received.ttl);
        let former = shared.held().replace(Held {
            key: received.key,
            term: self.terms,
            wanted: attrs.clone(),
            confirmed: true,
            addresses: vec![attrs.public_address()],
        });
        shared.state.hold_down().forget(&received.key);
        // This ends the keeper of the former lease: from now on the server may refuse that one.
        self.start(Some(
            received.ttl.map_or(TimeLeft::Forever, TimeLeft::FromNow),
        ));
        if let Some(former) = former.filter(|former| former.key != received.key) {
            // Its subnet is free at once, or when it expires.
            self.tasks.spawn(async move {
                let _ = give_back(&shared, &former).await;
            });
        }
        Lease {
            key: received.key,
            attrs,
            created: received.created,
        }
    }

    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>> {
        let wanted = attrs.owned_by(&self.owner);
        let term = match self.shared.held().as_mut() {
            None => {
                return Box::pin(ready(Err(StoreError::NoLease {
                    reason: "none was acquired, or it was lost".to_owned(),
                })));
            }
            Some(held) if held.wanted == wanted && held.confirmed => {
                return Box::pin(ready(Ok(())));
            }
            Some(held) => {
                held.confirmed = false;
                held.remember(wanted.public_address());
                held.wanted = wanted;
                held.term
            }
        };
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let renewed = timeout(DEADLINE, shared.renew(term))
                .await
                .unwrap_or_else(|_| Err(shared.servers.silence()));
            if renewed.is_err() {
                // The keeper retries.
                shared.state.touch();
            }
            renewed.map(drop)
        })
    }

    async fn release(&mut self) -> Result<Released, StoreError> {
        // No task may renew or write the lease from here on.
        self.tasks.stop();
        let Some(held) = self.shared.held().take() else {
            return Ok(Released::Nothing);
        };
        timeout(DEADLINE, give_back(&self.shared, &held))
            .await
            .unwrap_or_else(|_| Err(self.shared.servers.silence()))
    }

    fn set_avoid(&mut self, avoid: Avoid) {
        self.avoid = avoid;
    }

    fn expiry(&self) -> Expiry {
        self.shared.state.expiry()
    }

    async fn next_event(&mut self) -> StoreEvent {
        loop {
            if !self.tasks.are_watching() {
                self.start(None);
            }
            if let Some(event) = self.tasks.next_event().await {
                return event;
            }
        }
    }
}

/// Gives a lease back, if the server agrees that it belongs to this host.
async fn give_back(shared: &Shared, held: &Held) -> Result<Released, StoreError> {
    let body = held.body()?;
    let path = format!("/leases/{}", encoded(&held.key));
    let question = shared.question(Method::DELETE, &path, body);
    match shared.servers.ask(&question).await {
        Ok(answer) if answer.body.starts_with(b"reservation") => {
            Ok(Released::Reservation(held.key))
        }
        Ok(_) => Ok(Released::Lease(held.key)),
        Err(StoreError::NoLease { .. }) => Ok(Released::Nothing),
        Err(error) => Err(error),
    }
}
