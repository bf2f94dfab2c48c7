//! The task that follows all leases by long polls, and the network config with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;
use tracing::debug;

use super::Shared;
use super::connection::Connection;
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::rest::wire::{WatchUpdate, Watched};
use crate::cluster::lease::store::reporter::{Closed, Reporter};
use crate::cluster::lease::store::{DEADLINE, RECONNECT};
use crate::cluster::lease::{Lease, StoreError, StoreEvent, StoreTrouble, SubnetKey};

/// How long a server may hold back an answer without news. A server that dies silently is noticed after this.
const WAIT: Duration = Duration::from_secs(20);

/// How long the answer to a first watch may take: it may be large.
const FIRST: Duration = Duration::from_secs(30);

/// Follows the leases until the receiver of the events is dropped.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    reporter: Reporter,
    backoff: Backoff,
    connection: Option<Connection>,
    /// Where to continue; `None` for all leases.
    cursor: Option<String>,
    /// The tag of the network config last read.
    config: Option<String>,
    /// The errors of the servers that failed since one last answered.
    failures: Vec<StoreTrouble>,
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, events: Sender<StoreEvent>) -> Self {
        Self {
            reporter: Reporter::new(Arc::clone(&shared.state), events),
            shared,
            backoff: RECONNECT.seeded(random_seed()),
            connection: None,
            cursor: None,
            config: None,
            failures: Vec::new(),
        }
    }

    /// Runs until the store is dropped.
    pub(super) async fn run(mut self) {
        while let Ok(()) = self.poll().await {}
    }

    /// One long poll and its results.
    async fn poll(&mut self) -> Result<(), Closed> {
        let asked = tokio::select! {
            asked = ask(&self.shared, self.cursor.as_deref(), &mut self.connection) => asked,
            // Dropping the poll closes its connection.
            () = self.reporter.hold_down_ends() => return self.reporter.gone().await,
        };
        match asked {
            Ok(watched) => {
                // A different server behind the same address does not know this one's cursors, and answers every poll
                // at once with everything.
                let lost_its_place =
                    self.cursor.is_some() && matches!(watched.update, WatchUpdate::Snapshot { .. });
                if lost_its_place {
                    sleep(self.backoff.next_delay()).await;
                } else {
                    self.backoff.reset();
                }
                self.failures.clear();
                let url = self.shared.servers.url();
                self.reporter.reachable(url).await?;
                self.received(watched).await
            }
            Err(error) => {
                debug!("the watch of the leases ended: {error}");
                // The next server has its own cursors, and this one may restart with new ones.
                self.connection = None;
                self.shared.state.start_hold_down();
                self.failures.push((&error).into());
                let servers = self.shared.servers.count();
                // Report and pause only after each server has failed once, or if all would answer the same.
                if self.failures.len() >= servers || matches!(error, StoreError::Refused { .. }) {
                    let texts: Vec<_> = self.failures.iter().map(|it| it.text.as_str()).collect();
                    let trouble = StoreTrouble {
                        fault: self
                            .failures
                            .iter()
                            .map(|it| it.fault)
                            .max()
                            .unwrap_or_default(),
                        text: texts.join("; "),
                        ..(&error).into()
                    };
                    self.failures.clear();
                    self.reporter.unreachable(trouble).await?;
                    sleep(self.backoff.next_delay()).await;
                }
                Ok(())
            }
        }
    }

    async fn received(&mut self, watched: Watched) -> Result<(), Closed> {
        match watched.update {
            WatchUpdate::Snapshot { leases, unreadable } => {
                let own = self.own();
                let found = leases.iter().find(|lease| Some(lease.key) == own);
                self.check_own(found);
                self.reporter.snapshot(leases, unreadable).await?;
            }
            WatchUpdate::Changes(changes) => {
                let changes: BTreeMap<SubnetKey, Option<Lease>> = changes.into_iter().collect();
                if let Some(own) = self.own().and_then(|own| changes.get(&own)) {
                    self.check_own(own.as_ref());
                }
                self.reporter.changes(changes).await?;
            }
        }
        self.cursor = Some(watched.cursor);
        let changed = watched.config.is_some() && watched.config != self.config;
        if changed && self.read_config().await? {
            self.config = watched.config;
        }
        Ok(())
    }

    fn own(&self) -> Option<SubnetKey> {
        self.shared.held().as_ref().map(|held| held.key)
    }

    /// Wakes the keeper if the own lease is not as wanted. `None`: it is missing.
    fn check_own(&self, found: Option<&Lease>) {
        let held = self.shared.held();
        let Some(held) = held.as_ref() else { return };
        let as_wanted = found.is_some_and(|lease| {
            // The server may append to the owner ID.
            let mut attrs = lease.attrs.clone();
            attrs.owner.clone_from(&held.wanted.owner);
            lease.key == held.key && attrs == held.wanted
        });
        if !as_wanted {
            self.shared.state.touch();
        }
    }

    /// Reads the network config and reports it if the agent knows another one. Returns whether it could be read.
    async fn read_config(&mut self) -> Result<bool, Closed> {
        let (text, config) = match self.shared.read_config().await {
            Ok(text) => {
                let config = self.shared.parse_config(&text);
                (text, config.map(Box::new).map_err(|e| (&e).into()))
            }
            Err(error @ (StoreError::NoNetworkConfig { .. } | StoreError::Refused { .. })) => {
                (String::new(), Err((&error).into()))
            }
            Err(_) => return Ok(false),
        };
        let is_other = {
            let mut known = self.shared.known_config();
            // A caller that never read the config wants no events about it.
            known.as_mut().is_some_and(|known| {
                let other = *known != text;
                *known = text;
                other
            })
        };
        if is_other {
            self.reporter
                .send(StoreEvent::NetworkConfig(config))
                .await?;
        }
        Ok(true)
    }
}

/// Asks the current server for the changes after `cursor`.
async fn ask(
    shared: &Shared,
    cursor: Option<&str>,
    connection: &mut Option<Connection>,
) -> Result<Watched, StoreError> {
    let (path, limit) = match cursor {
        Some(cursor) => (
            format!("/leases?next={cursor}&wait={}", WAIT.as_secs()),
            WAIT + DEADLINE,
        ),
        None => (format!("/leases?wait={}", WAIT.as_secs()), FIRST),
    };
    let question = shared.question(Method::GET, &path, String::new());
    let answer = shared
        .servers
        .ask_once(&question, connection, limit)
        .await?;
    let text = String::from_utf8_lossy(&answer.body);
    Watched::parse(&text, cursor.is_some())
        .map_err(|error| shared.servers.bad_answer(error.to_string()))
}
