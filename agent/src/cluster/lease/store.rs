//! Lease stores: the interface that the agent's main loop uses ([`LeaseStore`]), and the parts that all stores share.
//!
//! A store is a thin client of the service that keeps the leases. It defines how to list and watch leases there, and
//! how to take, renew, write and give back its own. The rest is here, once:
//!
//! | module | purpose |
//! |---|---|
//! | `keeper` | the task that keeps the own lease: when to renew, how long to wait after a failure, what to report |
//! | `reporter` | what a watcher reports: snapshots, changes, whether a server answers; each once |
//! | `hold_down` | leases that vanished during an outage still count for a while |
//! | `state` | what these share: hold-down, the lease's TTL, and that the own lease may have been touched |
//! | `endpoints` | several servers, and which of them is used |
//! | `dial` | a connection to one of them, with or without TLS |
//! | `tasks` | the tasks of a store and their events |
//! | `spread` | random delays that keep the nodes of a cluster from acting in step |
//!
//! Another store is a folder beside `etcd`, `remote` and `kube`, an arm in [`super::ChosenStore`], and its settings. It
//! implements [`LeaseStore`], and `OwnLease` for the keeper.

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use crate::base::net::Family;
use crate::base::retry::Backoff;
use crate::cluster::lease::allocate::{Avoid, Exhausted};
use crate::cluster::lease::{Fault, Lease, LeaseAttrs, SettingsError, StoreTrouble, SubnetKey};
use crate::cluster::network_config::{NetworkConfig, NetworkConfigError};
use crate::settings;

pub(super) mod dial;
pub(super) mod endpoints;
pub(super) mod hold_down;
pub(super) mod keeper;
pub(super) mod reporter;
pub(super) mod spread;
pub(super) mod state;
pub(super) mod tasks;

/// The timeout of one request to one server, connecting included.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The hold-down after an outage: how long a lease that vanished meanwhile still counts, so that its owner can take it
/// again without losing its peers. Longer than the longest reconnect pause plus one attempt that times out.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// Pauses between attempts to reconnect: flannel's for etcd.
pub(super) const RECONNECT: Backoff =
    Backoff::constant(Duration::from_millis(100), Duration::from_secs(5), 0.5);

/// Sleeps until a time, or forever without one. Cancel-safe.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A request to the store failed. Each message is complete and fits a status line.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No server answered.
    #[error("{attempts}")]
    Unreachable {
        /// Every server tried and what came of it: `etcd at http://10.0.0.1:2379: connection refused`.
        attempts: String,
        /// What the operator must fix, at a server or on the path to it.
        fault: Fault,
    },
    /// A server answered with an error that the other servers would return as well.
    #[error("{server} refused the request: {reason}")]
    Refused {
        /// The server, in the form used in `Unreachable`.
        server: String,
        /// The server's error message.
        reason: String,
        /// etcd's gRPC status code, or the HTTP status of a lease or API server.
        code: i32,
    },
    /// There is no network config yet.
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
    /// Other nodes were faster every time.
    #[error("other writers were faster in all of {attempts} attempts")]
    LostRaces {
        /// The number of attempts.
        attempts: u32,
    },
    /// No lease is held (any more), so there is nothing to update.
    #[error("no lease is held: {reason}")]
    NoLease {
        /// The reason.
        reason: String,
    },
    /// Another writer changed the network config meanwhile.
    #[error("another writer changed {key} meanwhile")]
    ConfigChanged {
        /// The key.
        key: String,
    },
    /// Attributes cannot be encoded as JSON.
    #[error("failed to encode a lease: {0}")]
    Encode(#[from] serde_json::Error),
    /// There is no such node in the Kubernetes cluster.
    #[error(
        "there is no node {node} in the cluster: the kubelet registers it; if it has another name, set kubernetes.node-name or NODE_NAME"
    )]
    NoNode {
        /// The node's name.
        node: String,
    },
    /// Kubernetes has given the node no subnet yet.
    #[error(
        "node {node} has no {family} podCIDR: kube-controller-manager assigns it with --allocate-node-cidrs=true and --cluster-cidr"
    )]
    NoPodCidr {
        /// The node's name.
        node: String,
        /// The family that the network has and the node lacks.
        family: Family,
    },
    /// The node's subnet cannot be used.
    #[error("the podCIDR {cidr} of node {node} {what}")]
    BadPodCidr {
        /// The node's name.
        node: String,
        /// The podCIDR as published.
        cidr: String,
        /// What is wrong with it, as a predicate.
        what: String,
    },
}

/// What happened to the leases of the network.
///
/// The first event after [`LeaseStore::acquire`] is a snapshot; after a connection loss that may have hidden changes
/// comes another one. So a consumer needs no resync logic of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseEvent {
    /// All leases that exist now.
    Snapshot {
        /// The readable ones.
        leases: Vec<Lease>,
        /// Leases whose last known state still holds: their value cannot be parsed, or they vanished during an outage
        /// and their owner may be about to take them again.
        unreadable: Vec<SubnetKey>,
    },
    /// What changed since the last event, each subnet at most once.
    Changes {
        /// New leases and those whose attributes changed.
        set: Vec<Lease>,
        /// Leases that expired or were deleted.
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

/// What the store reports unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum StoreEvent {
    /// Leases changed. The own lease may be among them.
    Peers(LeaseEvent),
    /// The network config changed since it was last read; an error if it is unusable or gone.
    NetworkConfig(Result<Box<NetworkConfig>, StoreTrouble>),
    /// The own lease was renewed.
    Renewed {
        /// Its remaining time from now.
        ttl: Duration,
    },
    /// The own lease could not be renewed; the store retries. Sent when the server refuses, or when half of the TTL has
    /// passed; again when the reason changes. Ends with [`StoreEvent::Renewed`].
    RenewalFailed {
        /// Which servers, and why.
        error: StoreTrouble,
        /// The remaining time; `None` if unknown because an earlier process renewed the lease last.
        left: Option<Duration>,
    },
    /// The own lease belongs to another node, or is gone and cannot just be written again. The store no longer renews it.
    /// Acquire again, and keep the data plane until that succeeds or fails.
    OwnLeaseLost {
        /// The reason, as a sentence.
        reason: String,
    },
    /// The store has another history than before, for example after a backup was restored. All leases follow as a
    /// snapshot, and the own one is checked.
    AnotherHistory {
        /// The evidence, as a sentence.
        reason: String,
    },
    /// No server answers. Sent once, and again when the reason changes. The known leases stay in use.
    Unreachable {
        /// Which servers, and why.
        error: StoreTrouble,
    },
    /// A server answers again, or a different one than before.
    Reachable {
        /// Its address as configured.
        endpoint: String,
    },
}

/// What became of the own lease when it was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// There was none, it belonged to another node by then, or it is not the agent's to give back.
    Nothing,
    /// It is free for all nodes.
    Lease(SubnetKey),
    /// It is a reservation for this node, and stays one.
    Reservation(SubnetKey),
}

/// The TTL and expiry of the own lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expiry {
    /// The TTL; `None` for a reservation or without a lease.
    pub ttl: Option<Duration>,
    /// When it expires unless renewed; `None` if unknown or never.
    pub expires: Option<Instant>,
}

/// What a node knows about itself when it requests a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past {
    /// The subnet that it had before, if known.
    pub previous: Option<SubnetKey>,
    /// Whether its public addresses are configured on its interface, so that any lease with one of them is this host's,
    /// whatever its owner ID. Not so behind a NAT.
    pub has_own_address: bool,
}

impl From<Option<SubnetKey>> for Past {
    /// For a node without NAT.
    fn from(previous: Option<SubnetKey>) -> Self {
        Self {
            previous,
            has_own_address: true,
        }
    }
}

/// Something that is wrong with this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFault {
    /// The code for programs, as in the status.
    pub code: &'static str,
    /// The sentence.
    pub text: String,
}

/// The public addresses that a store prescribes for this node; `None` where it leaves the choice to the settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Prescribed {
    /// The IPv4 address that peers send to.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that peers send to.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// Where leases are kept: an etcd cluster, lease servers, a Kubernetes cluster, or in tests a table in memory.
pub trait LeaseStore: Send {
    /// A lease that was taken but is not held yet.
    type Taken: Send + 'static;

    /// Reads and validates the network config. One attempt, with a timeout.
    fn network_config(&mut self) -> impl Future<Output = Result<NetworkConfig, StoreError>> + Send;

    /// Takes a lease for this node, or adopts one that it already has. In this order: a lease or reservation with its
    /// public IP (and no other owner), one with its owner ID at another address, one of another owner with its public
    /// IP, the previous subnet if free, any free subnet. The second and third count only if their owner is not alive: a
    /// clone and its original share an owner ID, and behind a NAT many nodes share an address.
    ///
    /// One attempt, in which lost races are retried: it may take minutes, during which the store keeps the present
    /// lease. [`Self::hold`] takes the result. Not cancel-safe in one harmless way: a cancelled attempt may hold a
    /// subnet until the same node acquires again.
    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> BoxFuture<'static, Result<Self::Taken, StoreError>>;

    /// Holds a lease that was taken, in place of the previous one: the store renews it by itself, and the next lease
    /// event is a snapshot. Sends no request itself.
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

    /// Publishes changed attributes in the held lease. Returns within seconds: after [`StoreError::Unreachable`] the
    /// store retries by itself for as long as it holds the lease.
    ///
    /// The store has recorded them when this returns, and continues even if the future is dropped.
    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Gives the held lease back, so that its subnet is free at once; a reservation stays. Returns within seconds. The
    /// store holds no lease afterwards, whatever the outcome.
    fn release(&mut self) -> impl Future<Output = Result<Released, StoreError>> + Send;

    /// Uses these login settings from the next connection on; certificates are read again. A store without a login does
    /// nothing.
    ///
    /// # Errors
    /// A file cannot be read, or the settings contradict each other; nothing has changed then.
    fn set_access(&mut self, settings: &settings::Etcd) -> Result<(), SettingsError> {
        let _ = settings;
        Ok(())
    }

    /// The public addresses that the last read of the network config found prescribed for this node.
    fn prescribed(&self) -> Prescribed {
        Prescribed::default()
    }

    /// Tells the store whether this host is on the overlay, and all that is wrong, for others to see there. Cheap
    /// enough to call whenever anything may have changed; returns at once.
    fn publish_health(&mut self, up: bool, faults: impl FnOnce() -> Vec<NodeFault>) {
        let _ = (up, faults);
    }

    /// Drops the present connections because this host's address changed: nothing comes back to an address that is
    /// gone, and only a timeout would notice.
    fn reconnect(&mut self) {}

    /// Says that this node has most likely no lease yet, so that what a new one needs may be requested ahead.
    fn expect_no_lease(&mut self) {}

    /// Sets what the host's subnet must not cover, from the next [`Self::acquire`] on.
    fn set_avoid(&mut self, avoid: Avoid);

    /// The TTL and expiry of the held lease, as far as known.
    fn expiry(&self) -> Expiry;

    /// Waits for the next event. Cancel-safe.
    fn next_event(&mut self) -> impl Future<Output = StoreEvent> + Send;
}
