//! The store that the settings choose: etcd, or a server that has etcd behind it.

use futures_util::future::BoxFuture;
use thiserror::Error;

use super::allocate::Avoid;
use super::etcd::{self, EtcdStore};
use super::remote::{self, RemoteStore};
use super::{Lease, LeaseAttrs, LeaseStore, Past, Released, StoreError, StoreEvent, Tenure};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::remote::tls::TlsError;
use crate::settings::Settings;

/// The store that the settings choose.
#[derive(Debug)]
pub enum ChosenStore {
    /// etcd itself.
    Etcd(EtcdStore),
    /// Servers that keep the leases.
    Remote(RemoteStore),
}

/// The settings of the chosen store are wrong.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// Those of etcd.
    #[error("the etcd settings are wrong")]
    Etcd(#[from] etcd::SettingsError),
    /// Those of the servers.
    #[error("the settings for the servers that keep leases are wrong")]
    Remote(#[from] TlsError),
}

impl ChosenStore {
    /// Checks the settings; connects to nothing yet. `owner` identifies this machine.
    pub fn new(settings: &Settings, owner: String) -> Result<Self, SettingsError> {
        if settings.remote.servers.is_empty() {
            let store = EtcdStore::new(settings.etcd.clone().into(), owner)?;
            return Ok(Self::Etcd(store));
        }
        Ok(Self::Remote(RemoteStore::new(&settings.remote, owner)?))
    }
}

/// A lease that was taken in the chosen store.
pub enum Taken {
    /// In etcd.
    Etcd(Box<etcd::Taken>),
    /// From a server.
    Remote(Box<remote::Taken>),
}

impl LeaseStore for ChosenStore {
    type Taken = Taken;

    async fn network_config(&mut self) -> Result<NetworkConfig, StoreError> {
        match self {
            Self::Etcd(store) => store.network_config().await,
            Self::Remote(store) => store.network_config().await,
        }
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
        }
    }

    async fn hold(&mut self, taken: Taken) -> Lease {
        match (self, taken) {
            (Self::Etcd(store), Taken::Etcd(taken)) => store.hold(*taken).await,
            (Self::Remote(store), Taken::Remote(taken)) => store.hold(*taken).await,
            (_, _) => unreachable!("a store is given what it took, and stays of one kind"),
        }
    }

    fn update(&mut self, attrs: &LeaseAttrs) -> BoxFuture<'static, Result<(), StoreError>> {
        match self {
            Self::Etcd(store) => store.update(attrs),
            Self::Remote(store) => store.update(attrs),
        }
    }

    async fn release(&mut self) -> Result<Released, StoreError> {
        match self {
            Self::Etcd(store) => store.release().await,
            Self::Remote(store) => store.release().await,
        }
    }

    fn set_access(&mut self, settings: &crate::settings::Etcd) -> Result<(), etcd::SettingsError> {
        match self {
            Self::Etcd(store) => store.set_access(settings),
            Self::Remote(store) => store.set_access(settings),
        }
    }

    fn reconnect(&mut self) {
        match self {
            Self::Etcd(store) => store.reconnect(),
            Self::Remote(store) => store.reconnect(),
        }
    }

    fn set_avoid(&mut self, avoid: Avoid) {
        match self {
            Self::Etcd(store) => store.set_avoid(avoid),
            Self::Remote(store) => store.set_avoid(avoid),
        }
    }

    fn tenure(&self) -> Tenure {
        match self {
            Self::Etcd(store) => store.tenure(),
            Self::Remote(store) => store.tenure(),
        }
    }

    async fn next_event(&mut self) -> StoreEvent {
        match self {
            Self::Etcd(store) => store.next_event().await,
            Self::Remote(store) => store.next_event().await,
        }
    }
}
