//! The lease store that the settings choose: etcd, lease servers in front of it, or Kubernetes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use thiserror::Error;

use super::allocate::Avoid;
use super::etcd::{self, EtcdStore};
use super::kube::{self, KubeStore, Surroundings};
use super::remote::{self, RemoteStore};
use super::{
    Expiry, Lease, LeaseAttrs, LeaseStore, NodeFault, Past, Prescribed, Released, StoreError,
    StoreEvent,
};
use crate::base::endpoint;
use crate::cluster::lease::rest::tls::TlsError;
use crate::cluster::network_config::NetworkConfig;
use crate::settings::Settings;

/// The lease store that the settings choose.
#[derive(Debug)]
pub enum ChosenStore {
    /// etcd, directly.
    Etcd(EtcdStore),
    /// Lease servers.
    Remote(RemoteStore),
    /// The nodes of a Kubernetes cluster.
    Kubernetes(KubeStore),
}

/// The settings of a store cannot be used.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// No endpoint is configured.
    #[error("endpoints is empty: expected at least one, such as http://127.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint is malformed.
    #[error("invalid endpoint {0:?}: expected {form}", form = endpoint::FORM)]
    Endpoint(String),
    /// Two settings must be set together.
    #[error("{given} is set, but {missing} is not: expected both or neither")]
    Alone {
        /// The one that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// TLS is configured without a CA file, and no system CA bundle can be read.
    #[error("no CA certificates: cafile is not set and none of {0} can be read")]
    NoSystemRoots(String),
    /// The lease TTL is out of range.
    #[error("ttl {0:?} is outside 1 s to 9000000000 s")]
    Ttl(Duration),
    /// The TLS files for lease servers cannot be used.
    #[error(transparent)]
    Remote(#[from] TlsError),
    /// Two stores are configured.
    #[error(
        "kubernetes.enabled and remote.server are both set: expected one of them, since a node has one subnet"
    )]
    TwoStores,
    /// Nothing tells which node of the Kubernetes cluster this is.
    #[error(
        "the name of this node is not known: set kubernetes.node-name or NODE_NAME, or in a pod POD_NAME and POD_NAMESPACE by the downward API"
    )]
    NoNodeName,
    /// The environment names no node or pod.
    #[error(
        "{0:?} is not the name of a node, pod or namespace: expected lower-case letters, digits, '-' and '.'"
    )]
    NodeName(String),
}

impl ChosenStore {
    /// Checks the settings; connects to nothing yet. `owner` finds this node's owner ID, except in Kubernetes, where a
    /// node is known by its name; returned is what the node is called.
    ///
    /// # Errors
    /// The settings are wrong, or `owner` fails.
    pub fn new<E: From<SettingsError>>(
        settings: &Settings,
        owner: impl FnOnce() -> Result<String, E>,
    ) -> Result<(Self, String), E> {
        let is_remote = !settings.remote.servers.is_empty();
        if settings.kubernetes.enabled {
            if is_remote {
                return Err(SettingsError::TwoStores.into());
            }
            let store = KubeStore::new(&settings.kubernetes, Surroundings::of_process())?;
            let owner = store.owner();
            return Ok((Self::Kubernetes(store), owner));
        }
        let owner = owner()?;
        let store = match is_remote {
            true => RemoteStore::new(&settings.remote, owner.clone())
                .map(Self::Remote)
                .map_err(SettingsError::from)?,
            false => Self::Etcd(EtcdStore::new(settings.etcd.clone(), owner.clone())?),
        };
        Ok((store, owner))
    }
}

/// A lease taken in the chosen store, not yet held.
pub enum Taken {
    /// In etcd.
    Etcd(Box<etcd::Taken>),
    /// From a lease server.
    Remote(Box<remote::Taken>),
    /// From Kubernetes.
    Kubernetes(Box<kube::Taken>),
}

/// The same call on whichever store it is.
macro_rules! either {
    ($chosen:ident, $store:ident => $call:expr) => {
        match $chosen {
            Self::Etcd($store) => $call,
            Self::Remote($store) => $call,
            Self::Kubernetes($store) => $call,
        }
    };
}

impl LeaseStore for ChosenStore {
    type Taken = Taken;

    async fn network_config(&mut self) -> Result<NetworkConfig, StoreError> {
        either!(self, store => store.network_config().await)
    }

    fn take(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> BoxFuture<'static, Result<Taken, StoreError>> {
        match self {
            Self::Etcd(store) => {
                let taking = store.take(config, attrs, past);
                Box::pin(async move { taking.await.map(|taken| Taken::Etcd(Box::new(taken))) })
            }
            Self::Remote(store) => {
                let taking = store.take(config, attrs, past);
                Box::pin(async move { taking.await.map(|taken| Taken::Remote(Box::new(taken))) })
            }
            Self::Kubernetes(store) => {
                let taking = store.take(config, attrs, past);
                Box::pin(async move {
                    let taken = taking.await?;
                    Ok(Taken::Kubernetes(Box::new(taken)))
                })
            }
        }
    }

    async fn hold(&mut self, taken: Taken) -> Lease {
        match (self, taken) {
            (Self::Etcd(store), Taken::Etcd(taken)) => store.hold(*taken).await,
            (Self::Remote(store), Taken::Remote(taken)) => store.hold(*taken).await,
            (Self::Kubernetes(store), Taken::Kubernetes(taken)) => store.hold(*taken).await,
            (_, _) => unreachable!("a store holds only what it took itself"),
        }
    }

    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>> {
        either!(self, store => store.update(attrs))
    }

    async fn release(&mut self) -> Result<Released, StoreError> {
        either!(self, store => store.release().await)
    }

    fn set_access(&mut self, settings: &crate::settings::Etcd) -> Result<(), SettingsError> {
        either!(self, store => store.set_access(settings))
    }

    fn prescribed(&self) -> Prescribed {
        either!(self, store => store.prescribed())
    }

    fn publish_health(&mut self, up: bool, faults: impl FnOnce() -> Vec<NodeFault>) {
        either!(self, store => store.publish_health(up, faults));
    }

    fn expect_no_lease(&mut self) {
        either!(self, store => store.expect_no_lease())
    }

    fn reconnect(&mut self) {
        either!(self, store => store.reconnect())
    }

    fn set_avoid(&mut self, avoid: Avoid) {
        either!(self, store => store.set_avoid(avoid))
    }

    fn expiry(&self) -> Expiry {
        either!(self, store => store.expiry())
    }

    async fn next_event(&mut self) -> StoreEvent {
        either!(self, store => store.next_event().await)
    }
}
