//! The task that follows all leases: list once, then watch from there, and start over where that is not possible.
//!
//! Neither a broken stream nor a changed server loses an event: the watch resumes at the revision after the last one
//! seen, and where etcd no longer has that (compaction, a restored backup), everything is listed again and reported as a
//! snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::listing::{LONGEST_MESSAGE, Listing, get, is_compaction, list};
use super::servers::{Connection, code};
use super::{DEADLINE, Store};
use crate::lease::{Lease, LeaseEvent, StoreError, StoreEvent, SubnetKey};
use crate::retry::{Backoff, random_seed};

/// After this long without a message the server is asked for one. HTTP/2 pings find dead connections sooner; this finds
/// a server that answers pings and nothing else.
const SILENCE: Duration = Duration::from_secs(60);

/// Between attempts to reconnect: flannel's pauses.
const RECONNECT: Backoff =
    match Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Follows the leases until nobody wants the events any more.
pub(super) struct Watcher {
    store: Arc<Store>,
    events: Sender<StoreEvent>,
    own: Option<SubnetKey>,
    backoff: Backoff,
    /// The revision from which nothing was seen yet; `None` if all is to be listed first.
    next: Option<i64>,
    said: Said,
}

/// What was reported last about the server.
#[derive(PartialEq, Eq)]
enum Said {
    Nothing,
    Reachable(String),
    Unreachable(String),
}

/// Why following ended.
enum Stop {
    /// The stream broke after it had worked; what is known is still good.
    Broken,
    /// No stream could be had.
    Failed(StoreError),
    /// The stream cannot be resumed where it ended.
    Outdated,
    /// Nobody wants the events.
    Unwanted,
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Watcher {
    pub(super) fn new(
        store: Arc<Store>,
        events: Sender<StoreEvent>,
        own: Option<SubnetKey>,
    ) -> Self {
        Self {
            store,
            events,
            own,
            backoff: RECONNECT.seeded(random_seed()),
            next: None,
            said: Said::Nothing,
        }
    }

    /// Runs until the store is dropped. `listing`: what is known already.
    pub(super) async fn run(mut self, listing: Option<Listing>) {
        if let Some(listing) = listing
            && self.snapshot(listing).await.is_err()
        {
            return;
        }
        loop {
            let stop = match self.follow().await {
                Ok(never) => match never {},
                Err(stop) => stop,
            };
            match stop {
                Stop::Broken => {}
                Stop::Outdated => self.next = None,
                Stop::Unwanted => return,
                Stop::Failed(error) => {
                    let said = Said::Unreachable(error.to_string());
                    if self.say(said).await.is_err() {
                        return;
                    }
                }
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// Catches up and follows the stream for as long as it lasts.
    async fn follow(&mut self) -> Result<std::convert::Infallible, Stop> {
        let from = self.catch_up().await?;
        let store = Arc::clone(&self.store);
        let connection = store.servers.connection().await?;
        let mut stream = self.open(&connection, from).await?;
        self.backoff.reset();
        let url = store.servers.url(&connection).to_owned();
        self.say(Said::Reachable(url)).await?;
        loop {
            let response = match next_message(&mut stream).await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken(&connection, None)),
                Err(error) => return Err(self.broken(&connection, error.as_ref())),
            };
            if response.canceled() {
                return Err(self.canceled(&connection, &response));
            }
            self.received(&response).await?;
        }
    }

    /// Makes sure that a server answers, lists everything if need be, and says from where to watch.
    async fn catch_up(&mut self) -> Result<i64, Stop> {
        let store = Arc::clone(&self.store);
        if let Some(next) = self.next {
            let options = GetOptions::new().with_keys_only();
            let answer = get(&store.servers, store.keys.config.as_bytes(), options).await?;
            let revision = answer.header().map_or(0, |header| header.revision());
            if revision + 1 >= next {
                return Ok(next);
            }
            info!(
                revision,
                expected = next - 1,
                "etcd went back in time, as after restoring a backup; listing all leases again"
            );
        }
        let listing = list(&store.servers, &store.keys, &store.reports).await?;
        let own = listing.entries.iter().find(|e| Some(e.key) == self.own);
        self.look_at_own(own.map(|entry| entry.modified));
        self.snapshot(listing).await
    }

    /// Reports a listing. Returns the revision after it.
    async fn snapshot(&mut self, listing: Listing) -> Result<i64, Stop> {
        let next = listing.revision + 1;
        self.next = Some(next);
        self.send(StoreEvent::Peers(listing.into_snapshot()))
            .await?;
        Ok(next)
    }

    /// Opens a watch of all leases and waits for the server's word that it stands.
    async fn open(&self, connection: &Connection, from: i64) -> Result<WatchStream, Stop> {
        let keys = &self.store.keys;
        let options = WatchOptions::new()
            .with_range(keys.subnets_end.as_str())
            .with_start_revision(from)
            .with_progress_notify();
        let opened = timeout(DEADLINE, async {
            // A watch with an expired token is refused inside the stream, which the library does not see.
            if self.store.servers.settings().username.is_some() {
                connection.client.refresh_token().await?;
            }
            let client = connection.client.watch_client();
            let mut stream = client
                .max_decoding_message_size(LONGEST_MESSAGE)
                .watch(keys.subnets.as_str(), Some(options))
                .await?;
            let first = stream.message().await?;
            Ok::<_, Error>((stream, first))
        });
        let failed = |error| Stop::Failed(self.store.servers.broken(connection, error));
        match opened.await {
            Ok(Ok((_, Some(first)))) if first.canceled() => {
                Err(match self.canceled(connection, &first) {
                    Stop::Broken => {
                        failed(Some(&Error::WatchError(first.cancel_reason().to_owned())))
                    }
                    stop => stop,
                })
            }
            Ok(Ok((stream, Some(_created)))) => Ok(stream),
            Ok(Ok((_, None))) | Err(_) => Err(failed(None)),
            Ok(Err(error)) => Err(failed(Some(&error))),
        }
    }

    fn canceled(&self, connection: &Connection, response: &WatchResponse) -> Stop {
        let reason = response.cancel_reason();
        let compacted = response.compact_revision();
        if compacted > 0 || is_compaction(reason) {
            info!(
                compacted,
                "etcd compacted what was not seen yet; listing all leases again"
            );
            return Stop::Outdated;
        }
        self.broken(connection, Some(&Error::WatchError(reason.to_owned())))
    }

    fn broken(&self, connection: &Connection, error: Option<&Error>) -> Stop {
        if let Some(Error::GRpcStatus(status)) = error
            && i32::from(status.code()) == code::OUT_OF_RANGE
        {
            // More changes at once than fit into a message: the list comes in pages.
            return Stop::Outdated;
        }
        let error = self.store.servers.broken(connection, error);
        debug!("the watch of the leases ended: {error}");
        Stop::Broken
    }

    /// Turns one message of the stream into an event.
    async fn received(&mut self, response: &WatchResponse) -> Result<(), Stop> {
        let mut changes: BTreeMap<SubnetKey, Option<Lease>> = BTreeMap::new();
        let store = Arc::clone(&self.store);
        for event in response.events() {
            let Some(kv) = event.kv() else {
                continue;
            };
            let key = match event.event_type() {
                // That an unreadable key is gone is no news.
                EventType::Delete => {
                    store
                        .keys
                        .subnet(kv.key())
                        .and_then(Result::ok)
                        .inspect(|key| {
                            changes.insert(*key, None);
                        })
                }
                EventType::Put => store.reports.entry(&store.keys, kv).map(|entry| {
                    // An unreadable value changes nothing: what was there before still holds.
                    let key = entry.key;
                    if let Some(lease) = entry.into_lease() {
                        changes.insert(key, Some(lease));
                    }
                    key
                }),
            };
            if key.is_some() && key == self.own {
                self.look_at_own(Some(kv.mod_revision()));
            }
        }
        let events = response.events().iter();
        let last = events.filter_map(|event| event.kv()).next_back();
        self.next = self.next.max(next_revision(
            response.watch_id(),
            response.header().map(|header| header.revision()),
            last.map(|kv| kv.mod_revision()),
        ));
        if changes.is_empty() {
            return Ok(());
        }
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for (key, lease) in changes {
            match lease {
                Some(lease) => set.push(lease),
                None => removed.push(key),
            }
        }
        self.send(StoreEvent::Peers(LeaseEvent::Changes { set, removed }))
            .await
    }

    /// Wakes the keeper if the own key is not as this node wrote it last. `None`: the key is not there.
    fn look_at_own(&self, modified: Option<i64>) {
        let as_written = match self.store.held.try_lock() {
            Ok(held) => held
                .as_ref()
                .is_none_or(|held| Some(held.modified) == modified),
            // It is being written right now; the keeper will see.
            Err(_) => false,
        };
        if self.own.is_some() && !as_written {
            self.store.touched.notify_one();
        }
    }

    async fn say(&mut self, said: Said) -> Result<(), Stop> {
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

    async fn send(&self, event: StoreEvent) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::Unwanted)
    }
}

/// From which revision nothing was seen yet, after a message of the stream; `None` if it does not say. `header` is the
/// revision that the message names, `last` that of its last event.
///
/// As etcd's own client (clientv3 `watch.go`) does: a server that catches up sends old events in batches under its
/// present revision, so with events only the last of them counts.
fn next_revision(watch_id: i64, header: Option<i64>, last: Option<i64>) -> Option<i64> {
    /// The watch ID of an answer to a request for progress. Such answers may overtake events (etcd-io/etcd#15220), so
    /// their revision says nothing; those that the server sends of its own accord stay in line.
    const NO_WATCH: i64 = -1;
    let seen = last.or(header.filter(|_| watch_id != NO_WATCH))?;
    seen.checked_add(1)
}

/// The next message. `Err(None)`: the server fell silent.
async fn next_message(stream: &mut WatchStream) -> Result<Option<WatchResponse>, Option<Error>> {
    if let Ok(message) = timeout(SILENCE, stream.message()).await {
        return message.map_err(Some);
    }
    stream.request_progress().await.map_err(Some)?;
    match timeout(DEADLINE, stream.message()).await {
        Ok(message) => message.map_err(Some),
        Err(_) => Err(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watching_resumes_after_the_last_event_and_not_after_the_servers_revision() {
        for (watch_id, header, last, next) in [
            (0, Some(90), Some(40), Some(41)),
            (0, Some(90), None, Some(91)),
            (-1, Some(90), None, None),
            (0, None, Some(40), Some(41)),
            (0, None, None, None),
            (0, Some(i64::MAX), None, None),
        ] {
            assert_eq!(next_revision(watch_id, header, last), next);
        }
    }
}
