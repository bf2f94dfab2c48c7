//! The task that follows all leases by long polls, and the network config with them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use super::connection::Connection;
use super::{GRACE, Shared};
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::etcd::DEADLINE;
use crate::cluster::lease::{Lease, LeaseEvent, StoreError, StoreEvent, StoreTrouble, SubnetKey};
use crate::cluster::remote::wire::{News, Watched};

/// How long a server may keep an answer back that has no news. A server that is gone without a word is noticed after this.
const WAIT: Duration = Duration::from_secs(20);

/// How long an answer to a first watch may take: it may be long.
const FIRST: Duration = Duration::from_secs(30);

/// Between attempts to reach a server again: flannel's pauses for etcd.
const RECONNECT: Backoff =
    match Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Nobody wants the events any more.
struct Unwanted;

/// What was reported last about the servers.
#[derive(PartialEq, Eq)]
enum Said {
    Nothing,
    Reachable(String),
    Unreachable(StoreTrouble),
}

/// Follows the leases until nobody wants the events any more.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    events: Sender<StoreEvent>,
    backoff: Backoff,
    connection: Option<Connection>,
    /// Where to go on; `None` for all leases.
    cursor: Option<String>,
    /// The tag of the network config that was read last.
    config: Option<String>,
    said: Said,
    /// What the servers said that failed since one last answered.
    failures: Vec<StoreTrouble>,
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, events: Sender<StoreEvent>) -> Self {
        Self {
            shared,
            events,
            backoff: RECONNECT.seeded(random_seed()),
            connection: None,
            cursor: None,
            config: None,
            said: Said::Nothing,
            failures: Vec::new(),
        }
    }

    /// Runs until the store is dropped.
    pub(super) async fn run(mut self) {
        while let Ok(()) = self.poll().await {}
    }

    /// One long poll and what comes of it.
    async fn poll(&mut self) -> Result<(), Unwanted> {
        let due = self.shared.departures().due();
        let asked = tokio::select! {
            asked = ask(&self.shared, self.cursor.as_deref(), &mut self.connection) => asked,
            () = until(due) => {
                // The poll that is given up closes its connection with it.
                let removed = self.shared.departures().take_gone(Instant::now());
                return self.changed(Vec::new(), removed).await;
            }
        };
        match asked {
            Ok(watched) => {
                // Another server behind the same address does not know this one's cursors, and answers at once with
                // everything, every time.
                let lost_its_place =
                    self.cursor.is_some() && matches!(watched.news, News::Snapshot { .. });
                if lost_its_place {
                    sleep(self.backoff.next_delay()).await;
                } else {
                    self.backoff.reset();
                }
                self.failures.clear();
                let url = self.shared.servers.url();
                self.say(Said::Reachable(url)).await?;
                self.received(watched).await
            }
            Err(error) => {
                debug!("the watch of the leases ended: {error}");
                // The next server numbers its changes in its own way, and so may this one from now on.
                self.connection = None;
                self.shared.departures().hold(Instant::now() + GRACE);
                self.failures.push((&error).into());
                let servers = self.shared.servers.count();
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
                    self.say(Said::Unreachable(trouble)).await?;
                    sleep(self.backoff.next_delay()).await;
                }
                Ok(())
            }
        }
    }

    async fn received(&mut self, watched: Watched) -> Result<(), Unwanted> {
        match watched.news {
            News::Snapshot {
                leases,
                mut unreadable,
            } => {
                let keys = leases.iter().map(|lease| lease.key);
                let keys = keys.chain(unreadable.iter().copied());
                let held = self.shared.departures().listed(keys, Instant::now());
                unreadable.extend(held);
                self.look_at_own(&leases, true);
                let snapshot = LeaseEvent::Snapshot { leases, unreadable };
                self.send(StoreEvent::Peers(snapshot)).await?;
            }
            News::Changes(changes) => {
                let changes: BTreeMap<SubnetKey, Option<Lease>> = changes.into_iter().collect();
                let (mut set, mut removed, mut own_gone) = (Vec::new(), Vec::new(), false);
                let own = self.own();
                let now = Instant::now();
                for (key, lease) in changes {
                    let mut departures = self.shared.departures();
                    match lease {
                        Some(lease) => {
                            departures.set(key);
                            set.push(lease);
                        }
                        None => {
                            own_gone |= own == Some(key);
                            if departures.removed(key, now) {
                                removed.push(key);
                            }
                        }
                    }
                }
                self.look_at_own(&set, own_gone);
                self.changed(set, removed).await?;
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

    /// Wakes the keeper if the own lease is not as it should be. `whole`: it must be among these.
    fn look_at_own(&self, leases: &[Lease], whole: bool) {
        let held = self.shared.held();
        let Some(held) = held.as_ref() else { return };
        let found = leases.iter().find(|lease| lease.key == held.key);
        let as_wanted = match found {
            None => !whole,
            // The server may write the owner in its own way.
            Some(lease) => {
                let mut attrs = lease.attrs.clone();
                attrs.owner.clone_from(&held.wanted.owner);
                attrs == held.wanted
            }
        };
        if !as_wanted {
            self.shared.touched.notify_one();
        }
    }

    /// Reads the network config and tells of it, if the agent knows another one. Whether it could be read.
    async fn read_config(&mut self) -> Result<bool, Unwanted> {
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
        let news = {
            let mut known = self.shared.known_config();
            // Who never asked for it does not want to hear of it.
            known.as_mut().is_some_and(|known| {
                let other = *known != text;
                *known = text;
                other
            })
        };
        if news {
            self.send(StoreEvent::NetworkConfig(config)).await?;
        }
        Ok(true)
    }

    async fn changed(&self, set: Vec<Lease>, removed: Vec<SubnetKey>) -> Result<(), Unwanted> {
        if set.is_empty() && removed.is_empty() {
            return Ok(());
        }
        self.send(StoreEvent::Peers(LeaseEvent::Changes { set, removed }))
            .await
    }

    async fn say(&mut self, said: Said) -> Result<(), Unwanted> {
        if self.said == said {
            return Ok(());
        }
        let event = match &said {
            Said::Nothing => return Ok(()),
            Said::Reachable(endpoint) => StoreEvent::Reachable {
                endpoint: endpoint.clone(),
            },
            Said::Unreachable(error) => StoreEvent::Unreachable {
                error: error.clone(),
            },
        };
        self.said = said;
        self.send(event).await
    }

    async fn send(&self, event: StoreEvent) -> Result<(), Unwanted> {
        self.events.send(event).await.map_err(|_| Unwanted)
    }
}

/// Asks the current server for what happened after `cursor`.
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
        .map_err(|error| shared.servers.nonsense(error.to_string()))
}

/// Waits for a time; without one, for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
