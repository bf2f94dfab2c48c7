//! The servers of the cluster: one client each, and a preference for the one that worked last.
//!
//! The client library can hold all servers in one client, but its balancer keeps choosing dead ones. So each server has
//! its own client; requests go to the current server, and if it does not answer, to the next.

use std::future::Future;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use etcd_client::{Client, Error};
use tokio::sync::watch;
use tokio::time::timeout;

use super::history::History;
use crate::base::endpoint::Endpoint;
use crate::base::logging::chain;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::endpoints::{Attempt, Endpoints};
use crate::cluster::lease::{Fault, SettingsError, StoreError};
use crate::settings::Etcd;

/// gRPC status codes (grpc/doc/statuscodes.md).
pub(super) mod code {
    /// A revision was compacted, or a message is too long.
    pub(in super::super) const OUT_OF_RANGE: i32 = 11;
    /// The server answered, but the key or lease asked for does not exist.
    pub(in super::super) const NOT_FOUND: i32 = 5;
    /// The user may not read or write a key.
    pub(in super::super) const PERMISSION_DENIED: i32 = 7;
    /// Among others: an etcd lease with that ID exists already.
    pub(in super::super) const FAILED_PRECONDITION: i32 = 9;
    /// Codes about one server or the path to it: cancelled, unknown (broken transport), deadline exceeded, internal
    /// (broken HTTP/2), unavailable (no connection, no leader), data loss (corrupt member).
    pub(super) const OF_ONE_SERVER: [i32; 6] = [1, 2, 4, 13, 14, 15];
}

/// The cluster.
#[derive(Debug)]
pub(super) struct Servers {
    settings: Etcd,
    endpoints: Endpoints,
    state: Mutex<State>,
    /// How often all connections were dropped.
    reconnections: watch::Sender<u64>,
    /// The history that the watch is based on and that every reply must match.
    pub(super) history: History,
}

struct State {
    /// The login settings. All others stay as they were when the store was created.
    access: Etcd,
    clients: Vec<Option<Client>>,
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
    pub(super) client: Client,
}

impl Servers {
    pub(super) fn new(settings: Etcd, endpoints: Vec<Endpoint>) -> Self {
        let clients = endpoints.iter().map(|_| None).collect();
        Self {
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

    /// Whether a user is configured.
    pub(super) fn has_user(&self) -> bool {
        self.state().access.username.is_some()
    }

    /// Sends a request to the current server and, as long as servers do not answer, to each of the others once.
    ///
    /// Several servers may get the request, so it must be idempotent.
    pub(super) async fn call<T, F, Fut>(&self, request: F) -> Result<T, StoreError>
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.send(request, true).await
    }

    /// The same for a request that must not be repeated: it goes to another server only if it cannot have reached the
    /// one before. After [`StoreError::Unreachable`] its outcome is unknown.
    pub(super) async fn call_once<T, F, Fut>(&self, request: F) -> Result<T, StoreError>
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        self.send(request, false).await
    }

    async fn send<T, F, Fut>(&self, mut request: F, may_repeat: bool) -> Result<T, StoreError>
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
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
    async fn ask<T, F, Fut>(
        &self,
        index: usize,
        client: Option<Client>,
        request: &mut F,
    ) -> Result<T, Failure>
    where
        F: FnMut(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let mut reconnections = self.reconnections();
        let answer = timeout(DEADLINE, async {
            let client = match client {
                Some(client) => client,
                None => self.connect(index).await.map_err(Failure::before_sending)?,
            };
            request(client).await.map_err(|error| Failure::of(&error))
        });
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| Err(Failure::silence())),
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
                .unwrap_or_else(|_| Err(Failure::silence())),
        };
        match client {
            Ok(client) => Ok(Connection { index, client }),
            Err(failure) => Err(self.unreachable(index, &failure)),
        }
    }

    /// Reports a broken stream: the next server becomes the current one.
    pub(super) fn broken(&self, connection: &Connection, error: Option<&Error>) -> StoreError {
        let failure = error.map_or_else(Failure::silence, Failure::of);
        self.unreachable(connection.index, &failure)
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

    fn current(&self) -> (usize, Option<Client>) {
        let index = self.endpoints.current();
        (index, self.state().clients.get(index).cloned().flatten())
    }

    /// Creates a client. Without a user this does not connect yet; the first request does.
    async fn connect(&self, index: usize) -> Result<Client, Failure> {
        let endpoint = self.endpoints.get(index).ok_or_else(Failure::silence)?;
        let options = self.state().access.connect_options(endpoint);
        // The only thing that can fail here is reading the certificate files.
        let options = options.map_err(|error| Failure {
            fault: Fault::Tls,
            ..Failure::text(chain(&error))
        })?;
        let client = Client::connect([&endpoint.url], Some(options))
            .await
            .map_err(|error| Failure::of(&error))?;
        if let Some(slot) = self.state().clients.get_mut(index) {
            *slot = Some(client.clone());
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

/// Why a request got no usable answer.
struct Failure {
    cause: String,
    /// What the operator must fix.
    fault: Fault,
    code: Option<i32>,
    of_one_server: bool,
    silent: bool,
    /// The request cannot have reached a server.
    unsent: bool,
}

impl Failure {
    fn silence() -> Self {
        Self {
            silent: true,
            ..Self::text(format!("no answer within {} s", DEADLINE.as_secs()))
        }
    }

    fn text(cause: String) -> Self {
        Self {
            cause,
            fault: Fault::Other,
            code: None,
            of_one_server: true,
            silent: false,
            unsent: false,
        }
    }

    fn of(error: &Error) -> Self {
        let Error::GRpcStatus(status) = error else {
            return Self {
                fault: Fault::of(error),
                ..Self::text(match error {
                    Error::TransportError(error) => chain(error),
                    error => error.to_string(),
                })
            };
        };
        let code = i32::from(status.code());
        let fault = Fault::of(status).max(Fault::of_answer(code, status.message()));
        Self {
            cause: root_cause(status).unwrap_or_else(|| status.message().to_owned()),
            fault,
            code: Some(code),
            of_one_server: code::OF_ONE_SERVER.contains(&code),
            silent: false,
            unsent: is_failed_connection(status),
        }
    }

    fn before_sending(self) -> Self {
        Self {
            unsent: true,
            ..self
        }
    }
}

/// Whether a request failed for lack of a connection, before any of it was sent: an unconnected client holds requests
/// until it connects.
fn is_failed_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    const KINDS: [io::ErrorKind; 4] = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::AddrNotAvailable,
    ];
    std::iter::successors(error.source(), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| KINDS.contains(&error.kind()))
}

/// The root cause of a failed connection: `connection refused`, or the TLS error. `None` for an error that the server
/// answered with.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut root = error.source()?;
    while let Some(source) = root.source() {
        root = source;
    }
    // The system's message ends with an error number that adds nothing; the kind's does not.
    let kind = root
        .downcast_ref::<io::Error>()
        .filter(|error| error.raw_os_error().is_some())
        .map(|error| error.kind().to_string())
        .filter(|text| text != "other error" && text != "uncategorized error");
    Some(kind.unwrap_or_else(|| root.to_string()))
}
