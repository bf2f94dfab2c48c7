//! Lease stores: what the agent's main loop needs of one ([`LeaseStore`]), and what all of them have in common.
//!
//! A store is a thin client of the service that keeps the leases. It says how to list and follow leases there, and how to
//! take, extend, write and give back its own. The rest is here, once:
//!
//! | module | what |
//! |---|---|
//! | `keeper` | the task that keeps the own lease: when it extends it, how long it waits after a failure, what it reports |
//! | `reporter` | what a watcher reports: snapshots, changes, whether a server answers; each once |
//! | `hold_down` | leases that vanished in an outage count as there for a while |
//! | `state` | what these share: hold-down, the lease's duration, and that the own lease may have been touched |
//! | `endpoints` | several servers, and which of them is asked |
//! | `tasks` | the tasks of a store and their events |
//! | `spread` | pauses that keep the nodes of a cluster from doing the same thing at once |
//!
//! A third store is a folder beside `etcd` and `remote`, an arm in [`super::ChosenStore`], and its settings. It implements
//! [`LeaseStore`], and `OwnLease` for the keeper. Kubernetes, for example: leases are the nodes' podCIDRs and annotations.
//! A watcher lists nodes, then watches from the list's `resourceVersion`; bookmarks move that on, and `410 Gone` means to
//! list again, which is a snapshot as after any other gap. Nothing expires, so `look_after` never extends: it returns
//! `Lasts::Forever`, writes annotations anew when they were touched, and reports the lease lost when the node has another
//! podCIDR or none.

use std::future::Future;
use std::time::Duration;

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use crate::base::retry::Backoff;
use crate::cluster::lease::allocate::{Avoid, Exhausted};
use crate::cluster::lease::{Fault, Lease, LeaseAttrs, SettingsError, StoreTrouble, SubnetKey};
use crate::cluster::network_config::{NetworkConfig, NetworkConfigError};
use crate::settings;

pub(super) mod endpoints;
pub(super) mod hold_down;
pub(super) mod keeper;
pub(super) mod reporter;
pub(super) mod spread;
pub(super) mod state;
pub(super) mod tasks;

/// How long one server may take to answer one request, connecting included.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// For how long after an outage a lease that vanished meanwhile counts as there, so that its owner can take it again
/// without losing its peers: longer than the longest pause between two attempts to connect, with one that gets no answer.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// Between attempts to reach a server again: flannel's pauses for etcd.
pub(super) const RECONNECT: Backoff =
    match Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Waits for a time; without one, for ever. Cancel-safe.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A request to the store failed. The text of each is complete, fit for a status line.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No server gave an answer.
    #[error("{attempts}")]
    Unreachable {
        /// Every server tried and what came of it: `etcd at http://10.0.0.1:2379: connection refused`.
        attempts: String,
        /// What is to be put right: at a server, or on the way to it.
        fault: Fault,
    },
    /// A server answered with an error that the other servers would give as well.
    #[error("{server} refused the request: {reason}")]
    Refused {
        /// The server, as in `Unreachable`.
        server: String,
        /// The server's own words.
        reason: String,
        /// The gRPC status code of etcd, or the HTTP status of a server that keeps leases.
        code: i32,
    },
    /// Nobody wrote a network config yet.
    #[error("no network config at {key}")]
    NoNetworkConfig {
        /// The key that is read.
        key: String,
    },
    /// The network config breaks a rule.
    #[error("bad network config at {key}: {error}")]
    BadNetworkConfig {
        /// The key that was read.
        key: String,
        /// Which rule.
        error: NetworkConfigError,
    },
    /// Every subnet of the network is leased.
    #[error("out of subnets: {0}")]
    OutOfSubnets(Exhausted),
    /// Other nodes were faster, every time.
    #[error("lost {attempts} races for a subnet to other nodes")]
    LostRaces {
        /// How often it was tried.
        attempts: u32,
    },
    /// There is no lease to update, or no longer.
    #[error("no lease is held: {reason}")]
    NoLease {
        /// Why not.
        reason: String,
    },
    /// Somebody else wrote the network config meanwhile.
    #[error("{key} was changed by somebody else meanwhile")]
    ConfigChanged {
        /// The key.
        key: String,
    },
    /// Attributes cannot be written as JSON.
    #[error("failed to encode a lease: {0}")]
    Encode(#[from] serde_json::Error),
}

/// What happened to the leases of the network.
///
/// The first event after [`LeaseStore::acquire`] is a snapshot; after a loss of connection that may have hidden
/// something comes another one. So a consumer needs no resync logic of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseEvent {
    /// All leases that exist now.
    Snapshot {
        /// The readable ones.
        leases: Vec<Lease>,
        /// Those of which what is known still holds: their value cannot be read, or they vanished during an outage and
        /// their owner may be about to take them again.
        unreadable: Vec<SubnetKey>,
    },
    /// What changed since the last event, each subnet at most once.
    Changes {
        /// New leases and those whose attributes changed.
        set: Vec<Lease>,
        /// Leases that ended.
        removed: Vec<SubnetKey>,
    },
}

impl LeaseEvent {
    /// The leases that exist, or those that changed.
    pub fn leases(&self) -> &[Lease] {
        match self {
            Self::Snapshot { leases, .. } => leases,
            Self::Changes { set, .. } => set,
        }
    }
}

/// What the store has to tell, besides answers.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreEvent {
    /// Leases changed. The own lease may be among them.
    Peers(LeaseEvent),
    /// The network config was written anew since it was read last; or why it cannot be used, or that it is gone.
    NetworkConfig(Result<Box<NetworkConfig>, StoreTrouble>),
    /// The own lease was extended.
    Renewed {
        /// How long it lasts from now, if nothing extends it again.
        ttl: Duration,
    },
    /// The own lease could not be extended; it is tried again. Sent when the server refuses, or when half of the lease's
    /// duration has passed; again when the reason changes. Ends with [`StoreEvent::Renewed`].
    RenewalFailed {
        /// Which servers, and why.
        error: StoreTrouble,
        /// How long the lease lasts still; `None` if that is not known, since an earlier process extended it last.
        left: Option<Duration>,
    },
    /// The own lease is gone or somebody else's. The store no longer renews it; acquire anew, and keep the data plane
    /// until that has an answer.
    OwnLeaseLost {
        /// What was found, in words.
        reason: String,
    },
    /// The store has another history than before, as after restoring a backup. All leases follow as a snapshot, and the
    /// own one is looked after.
    AnotherHistory {
        /// What showed it, in words.
        reason: String,
    },
    /// No server answers. Sent once, and again when the reason changes. What is known of leases still holds.
    Unreachable {
        /// Which servers, and why.
        error: StoreTrouble,
    },
    /// A server answers again, or another one than before.
    Reachable {
        /// Its address as configured.
        endpoint: String,
    },
}

/// What became of the own lease when it was to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// There was none, or it was somebody else's by then.
    Nothing,
    /// It is free for everybody.
    Lease(SubnetKey),
    /// It is reserved for this node, and stays so.
    Reservation(SubnetKey),
}

/// What holds of the own lease's duration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tenure {
    /// For how long it is granted; `None` for a reservation, and for no lease.
    pub ttl: Option<Duration>,
    /// When it ends if nothing extends it; `None` if that is not known or not so.
    pub expires: Option<Instant>,
}

/// What a node knows about itself when it asks for a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past {
    /// The subnet that it had before, as far as it remembers.
    pub previous: Option<SubnetKey>,
    /// Whether its public addresses are its interface's own, so that a lease with one of them is this host's, whoever took
    /// it. Behind a NAT that is not so.
    pub has_own_address: bool,
}

impl From<Option<SubnetKey>> for Past {
    /// The memory of a node without NAT.
    fn from(previous: Option<SubnetKey>) -> Self {
        Self {
            previous,
            has_own_address: true,
        }
    }
}

/// Where leases are kept: one etcd cluster, or in a test a table in memory.
pub trait LeaseStore: Send {
    /// A lease that was taken and is not held yet.
    type Taken: Send + 'static;

    /// Reads and validates the network config. One attempt, with a deadline.
    fn network_config(&mut self) -> impl Future<Output = Result<NetworkConfig, StoreError>> + Send;

    /// Takes a lease for this node, or takes up the one it holds already: in this order a lease or reservation with
    /// its public IP (and no other owner), one with its owner id at another address, one of another owner with its public
    /// IP, the previous subnet if it is free, any free subnet. The second and third count only if whoever took them is not
    /// alive: a clone and its original have one owner id, and behind a NAT many have one address.
    ///
    /// One attempt, in which lost races are retried: that may take minutes, in which the store goes on with what it has.
    /// [`Self::hold`] takes up what comes of it. Not cancel-safe in one harmless way: a cancelled attempt may hold a
    /// subnet until the same node acquires again.
    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> BoxFuture<'static, Result<Self::Taken, StoreError>>;

    /// Holds a lease that was taken, in place of the one before: the store renews it by itself, and the next lease event is
    /// a snapshot. Asks nobody.
    fn hold(&mut self, taken: Self::Taken) -> impl Future<Output = Lease> + Send;

    /// Takes a lease and holds it.
    fn acquire(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: impl Into<Past> + Send,
    ) -> impl Future<Output = Result<Lease, StoreError>> + Send {
        let taking = self.take(config, attrs, past.into());
        async move {
            let taken = taking.await?;
            Ok(self.hold(taken).await)
        }
    }

    /// Publishes changed attributes with the lease that is held. Answers within seconds: after
    /// [`StoreError::Unreachable`] the store goes on trying by itself, for as long as it holds the lease.
    ///
    /// The store has taken note of them when this returns, and goes on whether or not anybody waits for the answer.
    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Gives the held lease back, so that its subnet is free at once; a reservation stays. Answers within seconds. After
    /// that the store holds no lease, whatever the outcome.
    fn release(&mut self) -> impl Future<Output = Result<Released, StoreError>> + Send;

    /// Logs in as these settings say from the next connection on; certificates are read anew. A store that needs no
    /// login has nothing to do.
    ///
    /// # Errors
    /// Files cannot be read, or the settings contradict each other; nothing has changed then.
    fn set_access(&mut self, settings: &settings::Etcd) -> Result<(), SettingsError> {
        let _ = settings;
        Ok(())
    }

    /// Gives up the connections that there are, because this host's address has changed: over one from an address that is
    /// gone nothing comes back, and only a time limit would tell.
    fn reconnect(&mut self) {}

    /// Says what the host's subnet must keep off, from the next [`Self::acquire`] on.
    fn set_avoid(&mut self, avoid: Avoid);

    /// How long the held lease lasts, as far as is known.
    fn tenure(&self) -> Tenure;

    /// Waits for the next event. Cancel-safe.
    fn next_event(&mut self) -> impl Future<Output = StoreEvent> + Send;
}
