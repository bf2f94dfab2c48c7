//! The task that follows all leases and the network config: list, watch from that revision, and start over when the
//! watch ends.
//!
//! Neither a broken stream nor a change of server loses an event: when a watch starts anew, everything is listed and
//! reported as a snapshot. Only to resume at the revision after the last one seen would be cheaper but wrong: [another
//! history](super::history) may have that revision as well. In a large cluster, where all nodes cannot list at once, a
//! broken watch is resumed there first, with a check of the own key, and everything is listed later. If what it would go
//! on from is compacted, it goes on from the first revision that is not. The config is read whenever a watch starts, and
//! watched from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info};

use super::Store;
use super::challenge;
use super::config::{self, StoredConfig};
use super::listing::{Listing, get, is_compaction, list};
use super::rpc::{Event, Failure, Message, Range, Watch, Watching, code};
use super::servers::Connection;
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::cluster::lease::store::reporter::{Closed, Reporter};
use crate::cluster::lease::store::spread::{before_list, before_requests};
use crate::cluster::lease::store::{DEADLINE, RECONNECT, until};
use crate::cluster::lease::{Lease, StoreError, StoreEvent, SubnetKey};

mod questions;

use questions::QUESTIONS;

/// After at most this long without a message the server is asked for one; on average after a minute, since the last event
/// came to all nodes at the same moment. HTTP/2 pings detect dead connections sooner; this detects a server that
/// answers pings and nothing else.
const SILENCE: Duration = Duration::from_secs(75);

/// The longest part of [`SILENCE`] that is left out.
const SILENCE_JITTER: f64 = 0.4;

/// A cluster with more leases than this goes on with its watches at once when they broke, and lists later. Fewer nodes
/// wait at most two seconds for their turn to list, which a node may well be without its watch; `spread::LONG_LIST` is
/// about the servers.
const LISTED_AT_ONCE: usize = 2000;

/// Follows the leases until the receiver of the events is dropped.
pub(super) struct Watcher {
    store: Arc<Store>,
    reporter: Reporter,
    own: Option<SubnetKey>,
    /// The key prefix of the challenges to this node.
    questions: Option<String>,
    /// Challenges that are being answered.
    answers: JoinSet<()>,
    backoff: Backoff,
    /// Where to watch from, if nothing need be listed before.
    next: Option<i64>,
    /// When to list everything, though no event was missed.
    list: Option<Instant>,
    seed: u64,
}

/// The revisions to watch from.
#[derive(Clone, Copy)]
struct From {
    leases: i64,
    config: i64,
}

/// Why following ended.
enum Stop {
    /// The stream broke after it had worked.
    Broken,
    /// No stream could be opened.
    Failed(StoreError),
    /// The stream does not continue from the list, or skips something.
    Outdated,
    /// etcd has nothing from before this revision any more.
    Compacted(i64),
    /// It is time for the list that was put off.
    Due,
    /// The receiver of the events is gone.
    Closed,
}

impl std::convert::From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl std::convert::From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl Watcher {
    pub(super) fn new(
        store: Arc<Store>,
        events: Sender<StoreEvent>,
        own: Option<SubnetKey>,
        owner: &str,
    ) -> Self {
        Self {
            // A node without a lease has nothing to answer.
            questions: own.and_then(|_| challenge::questions(&store, owner)),
            answers: JoinSet::new(),
            reporter: Reporter::new(Arc::clone(&store.state), events),
            store,
            own,
            backoff: RECONNECT.seeded(random_seed()),
            next: None,
            list: None,
            seed: random_seed(),
        }
    }

    /// Runs until the store is dropped. `listing`: leases that are known already.
    pub(super) async fn run(mut self, listing: Option<Listing>) {
        if let Some(listing) = listing {
            match self.take_in(listing).await {
                Ok((next, _)) => self.next = Some(next),
                Err(Stop::Closed) => return,
                // Everything is listed again anyway.
                Err(_) => {}
            }
        }
        let mut interrupted = false;
        loop {
            let stop = match self.follow(interrupted).await {
                Ok(never) => match never {},
                Err(stop) => stop,
            };
            interrupted = !matches!(stop, Stop::Due);
            match stop {
                Stop::Due => {}
                Stop::Closed => return,
                Stop::Outdated => self.pause_before_list().await,
                Stop::Compacted(first) => self.pause_after_compaction(first).await,
                Stop::Broken => self.pause_before_going_on().await,
                Stop::Failed(error) => {
                    let told = self.reporter.unreachable((&error).into()).await;
                    if told.is_err() {
                        return;
                    }
                    self.pause_before_going_on().await;
                }
            }
        }
    }

    /// What was known is of no use. Whatever ended this watch may have ended those of all nodes.
    async fn pause_before_list(&mut self) {
        (self.next, self.list) = (None, None);
        let nodes = self.store.state.hold_down().population();
        let list = Instant::now() + self.backoff.next_delay() + before_list(nodes, &mut self.seed);
        // The own key may be missing as well, and must not wait that long.
        sleep(before_requests(nodes, &mut self.seed)).await;
        self.store.state.touch();
        // A clone that starts meanwhile must not take this node for dead.
        let _ = timeout_at(list, self.answer_challenges()).await;
    }

    /// The stream broke. In a large cluster, where a list must wait, the watch goes on from the last event; the list is
    /// put off, not left out: only it shows [another history](super::history) whose revision has come as far.
    async fn pause_before_going_on(&mut self) {
        let nodes = self.store.state.hold_down().population();
        let seen = self.store.servers.history.mark().seen();
        let mut pause = self.backoff.next_delay();
        match seen.filter(|_| nodes > LISTED_AT_ONCE) {
            Some(seen) => {
                self.next = Some(seen.saturating_add(1));
                self.list = self.list.or_else(|| Some(Instant::now()));
                pause += before_requests(nodes, &mut self.seed);
            }
            None => pause += before_list(nodes, &mut self.seed),
        }
        sleep(pause).await;
    }

    /// Catches up and follows the stream until it ends. `interrupted`: an earlier one ended.
    async fn follow(&mut self, interrupted: bool) -> Result<std::convert::Infallible, Stop> {
        /// The challenge watch is the third to be created.
        const THIRD: u32 = 3;
        let is_resumed = interrupted && self.next.is_some();
        let from = self.catch_up(interrupted).await?;
        let store = Arc::clone(&self.store);
        let mut reconnections = store.servers.reconnections();
        let connection = store.servers.connection().await?;
        let (mut stream, leases) = self.open(&connection, from).await?;
        self.backoff.reset();
        self.put_off_list();
        if is_resumed {
            // In another history that has come as far the own key may be missing, which no event would tell.
            store.state.touch();
        }
        let url = store.servers.url(&connection).to_owned();
        self.reporter.reachable(url).await?;
        self.answer_earlier().await;
        // `open` waited for the first watch's confirmation. Refused watches have no ID.
        let mut created = 1;
        loop {
            let silence = jittered(SILENCE, SILENCE_JITTER, &mut self.seed);
            let message = tokio::select! {
                message = next_message(stream.as_mut(), silence) => message,
                () = until(self.list) => {
                    self.list = None;
                    return Err(Stop::Due);
                }
                () = self.reporter.hold_down_ends() => {
                    self.reporter.gone().await?;
                    continue;
                }
                () = store.servers.history.contradicted() => return Err(Stop::Outdated),
                Ok(()) = reconnections.changed() => return Err(Stop::Broken),
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return Err(self.broken(&connection, None)),
                Err(failure) => return Err(self.broken(&connection, failure)),
            };
            created += u32::from(response.created);
            if response.canceled && response.created && created == THIRD {
                self.not_asked(&response);
                continue;
            }
            if response.canceled {
                return Err(self.canceled(&connection, &response));
            }
            let of_leases = response.watch == leases;
            let first = response.events.first().filter(|_| of_leases);
            let first = first.map(|event| event.kv.modified);
            if !store.servers.history.fits(response.header, first) {
                return Err(Stop::Outdated);
            }
            self.received(&response, leases).await?;
        }
    }

    /// What happened before revision `first` is gone. In a large cluster, where the list that shows it must wait, the watch
    /// goes on from there: of what peers do from now on, nothing comes late.
    async fn pause_after_compaction(&mut self, first: i64) {
        let nodes = self.store.state.hold_down().population();
        if nodes <= LISTED_AT_ONCE {
            return self.pause_before_list().await;
        }
        self.store.servers.history.skip_to(first);
        self.pause_before_going_on().await;
    }

    /// Draws another time for a list that would be made as soon as the watch goes on: by all nodes at once.
    fn put_off_list(&mut self) {
        let now = Instant::now();
        if self.list.is_some_and(|list| list <= now) {
            let nodes = self.store.state.hold_down().population();
            self.list = Some(now + before_list(nodes, &mut self.seed));
        }
    }

    /// Makes sure that a server answers, lists everything if needed, and returns the revisions to watch from.
    async fn catch_up(&mut self, interrupted: bool) -> Result<From, Stop> {
        let store = Arc::clone(&self.store);
        let (found, revision) = config::read(&store).await?;
        if interrupted {
            store.state.start_hold_down();
        }
        if let Some(event) = config::changed_event(&store, found.as_ref()) {
            self.reporter.send(event).await?;
        }
        let config = revision.saturating_add(1);
        let leases = match self.next.take() {
            Some(next) => next,
            None => {
                let listing = list(&store).await?;
                let own = listing.entries.iter().find(|e| Some(e.key) == self.own);
                let own = own.map(|entry| entry.modified);
                let (next, is_other) = self.take_in(listing).await?;
                // The own key's revision in another history proves nothing about this one.
                self.check_own(own.filter(|_| !is_other));
                next
            }
        };
        Ok(From { leases, config })
    }

    /// Reports a listing, preceded by [`StoreEvent::AnotherHistory`] if it is of another history. Returns the revision
    /// after it, and whether the history changed.
    async fn take_in(&mut self, listing: Listing) -> Result<(i64, bool), Stop> {
        let store = Arc::clone(&self.store);
        let other = self.contradiction(&listing).await?;
        store.servers.history.start_from(&listing.listed);
        let is_other = other.is_some();
        if let Some(reason) = other {
            store.state.start_hold_down();
            self.reporter
                .send(StoreEvent::AnotherHistory { reason })
                .await?;
        }
        let next = listing.revision + 1;
        let (leases, unreadable) = listing.into_leases();
        self.reporter.snapshot(leases, unreadable).await?;
        Ok((next, is_other))
    }

    /// Why a listing belongs to another history than the known state; `None` if nothing indicates it.
    ///
    /// If the list itself does not show it, because the other history is past the last revision seen, the number of
    /// keys at that revision may.
    async fn contradiction(&self, listing: &Listing) -> Result<Option<String>, StoreError> {
        let servers = &self.store.servers;
        let found = servers.history.contradiction(&listing.listed);
        let known = servers.history.count(&listing.listed);
        let (None, Some((revision, known))) = (&found, known) else {
            return Ok(found);
        };
        let keys = &self.store.keys;
        let range = Range {
            revision,
            count_only: true,
            ..Range::between(keys.subnets.as_str(), keys.subnets_end.as_str())
        };
        let had = match get(servers, range).await {
            Ok(found) => usize::try_from(found.count).ok(),
            // Most likely compacted: then it cannot be checked.
            Err(StoreError::Refused { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(had.filter(|had| *had != known).map(|had| {
            format!("at revision {revision} it has {had} lease keys instead of {known}")
        }))
    }

    /// Opens a watch of all leases and waits until the server confirms it; then, on the same stream, one of the config
    /// and one of the challenges to this node. Also returns the ID of the first.
    ///
    /// A single watch from config to leases would do, but a user may have rights to these keys only.
    async fn open(
        &self,
        connection: &Connection,
        from: From,
    ) -> Result<(Box<dyn Watching>, i64), Stop> {
        let opened = timeout(DEADLINE, async {
            let leases = self.lease_watch(from.leases);
            let mut stream = connection.client.watch(leases).await?;
            let first = stream.message().await?;
            for watch in self.other_watches(from.config) {
                stream.add(watch).await?;
            }
            Ok::<_, Failure>((stream, first))
        });
        let failed = |failure| Stop::Failed(self.store.servers.broken(connection, failure));
        match opened.await {
            Ok(Ok((_, Some(first)))) if first.canceled => {
                Err(match self.canceled(connection, &first) {
                    Stop::Broken => failed(Some(refused(&first))),
                    stop => stop,
                })
            }
            Ok(Ok((stream, Some(created)))) => Ok((stream, created.watch)),
            Ok(Ok((_, None))) | Err(_) => Err(failed(None)),
            Ok(Err(failure)) => Err(failed(Some(failure))),
        }
    }

    fn lease_watch(&self, from: i64) -> Watch {
        let keys = &self.store.keys;
        Watch {
            id: 0,
            key: keys.subnets.as_str().into(),
            end: keys.subnets_end.as_str().into(),
            from,
            progress: true,
            deletions: true,
        }
    }

    /// The watches of the config and of the challenges to this node.
    fn other_watches(&self, from: i64) -> impl Iterator<Item = Watch> {
        let of_config = Watch {
            id: 0,
            key: self.store.keys.config.as_str().into(),
            end: Vec::new(),
            from,
            progress: false,
            deletions: true,
        };
        // Earlier challenges are read once the watch is confirmed.
        std::iter::once(of_config).chain(self.question_watch(from))
    }

    fn canceled(&self, connection: &Connection, response: &Message) -> Stop {
        let compacted = response.compacted;
        if compacted > 0 || is_compaction(&response.reason) {
            info!(
                compacted,
                "etcd compacted revisions that this node has not seen; it will read all leases again"
            );
            return match compacted {
                // A server that does not say.
                ..=0 => Stop::Outdated,
                first => Stop::Compacted(first),
            };
        }
        self.broken(connection, Some(refused(response)))
    }

    fn broken(&self, connection: &Connection, failure: Option<Failure>) -> Stop {
        if failure.as_ref().and_then(|failure| failure.code) == Some(code::OUT_OF_RANGE) {
            // More changes at once than fit into a message. A list comes in pages.
            return Stop::Outdated;
        }
        let error = self.store.servers.broken(connection, failure);
        debug!("the watch of the leases ended: {error}");
        Stop::Broken
    }

    /// Turns one message of the stream into events. `leases`: the ID of the lease watch.
    async fn received(&mut self, response: &Message, leases: i64) -> Result<(), Stop> {
        let store = Arc::clone(&self.store);
        if response.watch == QUESTIONS {
            for question in &response.events {
                self.answer(question.kv.clone());
            }
            return Ok(());
        }
        // The reply to a progress request belongs to no watch and may overtake events (etcd-io/etcd#15220), so its
        // revision proves nothing; what the server sends unasked stays in order.
        if response.watch != leases {
            return match response.events.last() {
                Some(event) => self.config_changed(event).await,
                None => Ok(()),
            };
        }
        let changes = self.lease_changes(&response.events);
        let seen = seen_revision(
            response.header.map(|header| header.revision),
            response.events.last().map(|event| event.kv.modified),
        );
        if let Some(seen) = seen {
            store.servers.history.reach(seen);
        }
        Ok(self.reporter.changes(changes).await?)
    }

    /// The last change of each lease: written (`Some`) or gone (`None`).
    fn lease_changes(&self, events: &[Event]) -> BTreeMap<SubnetKey, Option<Lease>> {
        let store = &self.store;
        let mut changes = BTreeMap::new();
        for Event { kv, gone } in events {
            store.servers.history.follow(kv, *gone);
            let key = match gone {
                // The deletion of an unreadable key needs no report.
                true => {
                    let key = store.keys.subnet(&kv.key).and_then(Result::ok);
                    key.inspect(|key| {
                        changes.insert(*key, None);
                    })
                }
                false => store.reports.entry(&store.keys, kv).map(|entry| {
                    // An unreadable value changes nothing: the previous one stays in use.
                    let key = entry.key;
                    if let Some(lease) = entry.into_lease() {
                        changes.insert(key, Some(lease));
                    }
                    key
                }),
            };
            if key.is_some() && key == self.own {
                self.check_own(Some(kv.modified));
            }
        }
        changes
    }

    async fn config_changed(&self, event: &Event) -> Result<(), Stop> {
        let found = (!event.gone).then(|| StoredConfig::new(&event.kv));
        match config::changed_event(&self.store, found.as_ref()) {
            Some(event) => Ok(self.reporter.send(event).await?),
            None => Ok(()),
        }
    }

    /// Wakes the keeper if the own key is not as this node last wrote it. `None`: the key is missing.
    fn check_own(&self, modified: Option<i64>) {
        let as_written = match self.store.held.try_lock() {
            Ok(held) => held
                .as_ref()
                .is_none_or(|held| Some(held.modified) == modified),
            // It is being written right now; the keeper will check.
            Err(_) => false,
        };
        if self.own.is_some() && !as_written {
            self.store.state.touch();
        }
    }
}

/// The revision up to which everything was seen after a message of the stream; `None` if the message does not say.
/// `header` is the revision in its header, `last` that of its last event.
///
/// Like etcd's own client (clientv3 `watch.go`): a server that catches up sends old events in batches under its present
/// revision, so if there are events, only the last one counts.
fn seen_revision(header: Option<i64>, last: Option<i64>) -> Option<i64> {
    last.or(header)
}

/// What ended a watch that the server refused to go on with.
fn refused(message: &Message) -> Failure {
    Failure::text(format!("watch error: {}", message.reason))
}

/// The next message; the server is asked for one after `silence`. `Err(None)`: it fell silent.
async fn next_message(
    stream: &mut dyn Watching,
    silence: Duration,
) -> Result<Option<Message>, Option<Failure>> {
    if let Ok(message) = timeout(silence, stream.message()).await {
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
    fn all_was_seen_up_to_the_last_event_and_not_up_to_the_servers_revision() {
        for (header, last, seen) in [
            (Some(90), Some(40), Some(40)),
            (Some(90), None, Some(90)),
            (None, Some(40), Some(40)),
            (None, None, None),
        ] {
            assert_eq!(seen_revision(header, last), seen);
        }
    }
}
