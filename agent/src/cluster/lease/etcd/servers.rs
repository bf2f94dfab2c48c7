//! The servers of the cluster: one client each, and a preference for the one that worked last.
//!
//! The client library can hold all servers in one client, but its balancer keeps choosing dead ones. So each server has
//! its own client; requests go to the current server, and if it does not answer, to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::timeout;

use super::history::History;
use super::rpc::{Connect, Failure, Reply, Rpc};
use crate::base::endpoint::Endpoint;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::endpoints::{Attempt, Endpoints};
use crate::cluster::lease::{SettingsError, StoreError};
use crate::settings::Etcd;

/// The cluster.
#[derive(Debug)]
pub(super) struct Servers {
    settings: Etcd,
    endpoints: Endpoints,
    connector: Box<dyn Connect>,
    state: Mutex<State>,
    /// How often all connections were dropped.
    reconnections: watch::Sender<u64>,
    /// The history that the watch is based on and that every reply must match.
    pub(super) history: History,
}

struct State {
    /// The login settings. All others stay as they were when the store was created.
    access: Etcd,
    clients: Vec<Option<Arc<dyn Rpc>>>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The clients contain the password.
        f.debug_struct("State").finish_non_exhaustive()
    }
}

/// A connection to one server, for a stream that outlives a request.
pub(super) struct Connection {
    index: usize,
    pub(super) client: Arc<dyn Rpc>,
}

impl Servers {
    pub(super) fn new(
        settings: Etcd,
        endpoints: Vec<Endpoint>,
        connector: Box<dyn Connect>,
    ) -> Self {
        let clients = endpoints.iter().map(|_| None).collect();
        Self {
            connector,
            endpoints: Endpoints::new("etcd", endpoints),
            state: Mutex::new(State {
                access: settings.clone(),
                clients,
            }),
            reconnections: watch::Sender::new(0),
            history: History::default(),
            settings,
        }
    }

    /// Uses these login settings from the next connection on, and opens new connections for the next requests.
    pub(super) fn set_access(&self, new: &Etcd) -> Result<(), SettingsError> {
        let access = Etcd {
            endpoints: self.settings.endpoints.clone(),
            prefix: self.settings.prefix.clone(),
            lease_ttl: self.settings.lease_ttl,
            ..new.clone()
        };
        access.check()?;
        let mut state = self.state();
        state.access = access;
        state.clients.fill(None);
        Ok(())
    }

    /// Opens new connections for the next requests; ends the streams on the present ones and stops waiting for replies
    /// over them.
    pub(super) fn reconnect(&self) {
        self.state().clients.fill(None);
        self.reconnections.send_modify(|count| *count += 1);
    }

    /// Signals that connections were dropped. Subscribe before connecting.
    pub(super) fn reconnections(&self) -> watch::Receiver<u64> {
        self.reconnections.subscribe()
    }

    /// Sends a request to the current server and, as long as servers do not answer, to each of the others once.
    ///
    /// Several servers may get the request, so it must be idempotent.
    pub(super) async fn call<T>(
        &self,
        request: impl FnMut(&dyn Rpc) -> Reply<T>,
    ) -> Result<T, StoreError> {
        self.send(request, true).await
    }

    /// The same for a request that must not be repeated: it goes to another server only if it cannot have reached the
    /// one before. After [`StoreError::Unreachable`] its outcome is unknown.
    pub(super) async fn call_once<T>(
        &self,
        request: impl FnMut(&dyn Rpc) -> Reply<T>,
    ) -> Result<T, StoreError> {
        self.send(request, false).await
    }

    async fn send<T>(
        &self,
        mut request: impl FnMut(&dyn Rpc) -> Reply<T>,
        may_repeat: bool,
    ) -> Result<T, StoreError> {
        let mut attempts = Vec::new();
        for _ in 0..self.endpoints.count() {
            let (index, known) = self.current();
            let mut failure = match self.ask(index, known.clone(), &mut request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if known.is_some()
                && failure.of_one_server
                && !failure.silent
                && (may_repeat || failure.unsent)
            {
                // The server may have restarted since this connection was made. A new one shows its present state.
                self.forget(index);
                failure = match self.ask(index, None, &mut request).await {
                    Ok(answer) => return Ok(answer),
                    Err(failure) => failure,
                };
            }
            if let Some(code) = failure.code.filter(|_| !failure.of_one_server) {
                return Err(StoreError::Refused {
                    server: self.endpoints.name(index),
                    reason: failure.cause,
                    code,
                });
            }
            attempts.push(self.give_up(index, &failure));
            if !may_repeat && !failure.unsent {
                // The server may have restarted since this connection was made.
                self.forget(index);
                break;
            }
        }
        Err(Endpoints::unreachable(&attempts))
    }

    /// Sends a request to one server, over a new connection if none is given.
    async fn ask<T>(
        &self,
        index: usize,
        client: Option<Arc<dyn Rpc>>,
        request: &mut impl FnMut(&dyn Rpc) -> Reply<T>,
    ) -> Result<T, Failure> {
        let mut reconnections = self.reconnections();
        let answer = timeout(DEADLINE, async {
            let client = match client {
                Some(client) => client,
                None => self.connect(index).await.map_err(Failure::before_sending)?,
            };
            request(client.as_ref()).await
        });
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(silence())),
            Ok(()) = reconnections.changed() => {
                Err(Failure::text("this host's address changed meanwhile".to_owned()))
            }
        }
    }

    /// Connects to the current server. On failure the next server becomes the current one.
    pub(super) async fn connection(&self) -> Result<Connection, StoreError> {
        let (index, known) = self.current();
        let client = match known {
            Some(client) => Ok(client),
            None => timeout(DEADLINE, self.connect(index))
                .await
                .unwrap_or_else(|_| Err(silence())),
        };
        match client {
            Ok(client) => Ok(Connection { index, client }),
            Err(failure) => Err(self.unreachable(index, &failure)),
        }
    }

    /// Reports a broken stream: the next server becomes the current one.
    pub(super) fn broken(&self, connection: &Connection, failure: Option<Failure>) -> StoreError {
        self.unreachable(connection.index, &failure.unwrap_or_else(silence))
    }

    /// The error for no answer in time from any server.
    pub(super) fn silence(&self) -> StoreError {
        self.endpoints.silence()
    }

    /// The address of a connection's server, as configured.
    pub(super) fn url(&self, connection: &Connection) -> &str {
        self.endpoints.url(connection.index)
    }

    pub(super) fn settings(&self) -> &Etcd {
        &self.settings
    }

    fn unreachable(&self, index: usize, failure: &Failure) -> StoreError {
        Endpoints::unreachable(&[self.give_up(index, failure)])
    }

    fn current(&self) -> (usize, Option<Arc<dyn Rpc>>) {
        let index = self.endpoints.current();
        (index, self.state().clients.get(index).cloned().flatten())
    }

    /// Creates a client. Without a user this does not connect yet; the first request does.
    async fn connect(&self, index: usize) -> Result<Arc<dyn Rpc>, Failure> {
        let endpoint = self.endpoints.get(index).ok_or_else(silence)?;
        let connecting = self.connector.connect(endpoint, &self.state().access);
        let client = connecting.await?;
        if let Some(slot) = self.state().clients.get_mut(index) {
            *slot = Some(Arc::clone(&client));
        }
        Ok(client)
    }

    /// Moves on to the next server. A silent connection may be half open, so it is not reused.
    fn give_up(&self, index: usize, failure: &Failure) -> Attempt {
        if failure.silent {
            self.forget(index);
        }
        self.endpoints.give_up(index, &failure.cause, failure.fault)
    }

    /// Makes the next request to this server open a new connection.
    fn forget(&self, index: usize) {
        if let Some(slot) = self.state().clients.get_mut(index) {
            *slot = None;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid at every step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing came in time.
fn silence() -> Failure {
    Failure {
        silent: true,
        ..Failure::text(format!("no answer within {} s", DEADLINE.as_secs()))
    }
}
