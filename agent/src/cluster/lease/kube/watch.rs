//! The task that follows all nodes: one list, in pages, and one watch that goes on from it.
//!
//! The list is read from etcd, not from the API server's cache, so it is never older than what is known. A watch ends
//! every few minutes and goes on where it was. It says nothing where it must not go on, because etcd was restored
//! from a backup and is behind: the revision is compared at each event, and after each watch that ended unexpectedly
//! or silently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::mpsc::Sender;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::Shared;
use super::client::{Connection, Failure, Question, Stream};
use super::event::Event;
use super::node::{MOST_PAGES, NodeList, encoded};
use super::nodes::{Changes, Nodes};
use super::pace::Pace;
use crate::base::retry::{next_random, random_seed};
use crate::cluster::lease::StoreEvent;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::reporter::{Closed, Reporter};
use crate::cluster::network_config::Families;

/// How long a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(30);

/// The seconds after which a watch ends, of which up to a fifth are random. Only keep-alive probes of TCP notice a dead
/// server sooner, and load balancers answer those.
const WATCH_SECS: u64 = 300;

/// How much longer than that a watch may take.
const GRACE: Duration = Duration::from_secs(10);

/// Follows the nodes until the receiver of the events is dropped.
pub(super) struct Watcher {
    shared: Arc<Shared>,
    families: Families,
    reporter: Reporter,
    pace: Pace,
    connection: Option<Connection>,
    stream: Option<Running>,
    /// Where to continue; `None` to list all nodes.
    version: Option<String>,
    /// Whether the store may have another history since `version`.
    doubtful: bool,
    nodes: Nodes,
    seed: u64,
}

/// A watch.
struct Running {
    stream: Stream,
    since: Instant,
    /// When the server ends it.
    ends: Instant,
    /// Whether anything came: a server sends a bookmark each minute, but none of a revision that is yet to come.
    heard: bool,
}

/// Why a watch does not go on.
enum Broken {
    Closed(Closed),
    Failure(Failure),
}

impl From<Closed> for Broken {
    fn from(closed: Closed) -> Self {
        Self::Closed(closed)
    }
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>, families: Families, events: Sender<StoreEvent>) -> Self {
        Self {
            reporter: Reporter::new(Arc::clone(&shared.state), events),
            shared,
            families,
            pace: Pace::new(random_seed()),
            connection: None,
            stream: None,
            version: None,
            doubtful: false,
            nodes: Nodes::default(),
            seed: random_seed(),
        }
    }

    /// Runs until the store is dropped.
    pub(super) async fn run(mut self) {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(Broken::Closed(Closed)) => return,
                Err(Broken::Failure(failure)) => {
                    if self.failed(failure).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Waits for one event, or begins what is missing for that.
    async fn turn(&mut self) -> Result<(), Broken> {
        let Some(running) = &mut self.stream else {
            return self.begin().await;
        };
        let line = tokio::select! {
            line = timeout_at(running.ends + GRACE, running.stream.next()) => line,
            () = self.reporter.hold_down_ends() => return Ok(self.reporter.gone().await?),
            () = self.shared.moved.notified() => {
                self.stream = None;
                return Ok(());
            }
        };
        match line {
            Ok(Ok(Some(line))) => {
                running.heard = true;
                self.received(&line).await
            }
            Ok(Ok(None)) => self.ended().await,
            // An event that is too long would come again.
            Ok(Err(failure @ Failure::Answer(_))) => Err(failure.into()),
            Ok(Err(failure)) => {
                debug!("the watch of the nodes broke: {failure}");
                self.ended().await
            }
            Err(_) => self.ended().await,
        }
    }

    /// The watch ended, as planned or not.
    async fn ended(&mut self) -> Result<(), Broken> {
        let Some(running) = self.stream.take() else {
            return Ok(());
        };
        let now = Instant::now();
        let is_early = now + GRACE < running.ends;
        self.doubtful |= is_early || !running.heard;
        let (lasted, nodes) = (now - running.since, self.population());
        sleep(self.pace.after_watch(lasted, is_early, nodes)).await;
        Ok(())
    }

    /// The number of nodes, as far as known.
    fn population(&self) -> usize {
        self.shared.state.hold_down().population()
    }

    /// Lists the nodes unless they are known, and starts to watch.
    async fn begin(&mut self) -> Result<(), Broken> {
        if self.doubtful {
            self.compare_history().await?;
            self.doubtful = false;
        }
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.list().await?,
        };
        let secs = WATCH_SECS - next_random(&mut self.seed) % (WATCH_SECS / 5);
        let path = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&timeoutSeconds={secs}&resourceVersion={}",
            encoded(&version)
        );
        let client = &self.shared.session.client;
        let stream = client.watch(&path, &mut self.connection, DEADLINE).await?;
        let now = Instant::now();
        self.stream = Some(Running {
            stream,
            since: now,
            ends: now + Duration::from_secs(secs),
            heard: false,
        });
        self.reporter.reachable(client.server()).await?;
        Ok(())
    }

    /// Lists all nodes and reports them. Returns the list's revision.
    async fn list(&mut self) -> Result<String, Broken> {
        // Changed in a copy: a list may fail midway.
        let mut nodes = self.nodes.clone();
        let mut names = BTreeSet::new();
        let mut own = None;
        let mut body = self.page(&NodeList::path("")).await?;
        let mut pages = 0..MOST_PAGES;
        let version = loop {
            if pages.next().is_none() {
                let text = format!("the list of nodes has more than {MOST_PAGES} pages");
                return Err(Failure::Answer(text).into());
            }
            let after = NodeList::token_after(&body);
            let (ahead, page) = tokio::try_join!(self.page_after(&after), parsed(&body))?;
            for node in page.items {
                if self.shared.is_own(&node) {
                    own = Some(node);
                } else {
                    nodes.set(&node, &self.shared.annotations, self.families);
                    names.insert(node.metadata.name);
                }
            }
            body = match (page.metadata.next.as_str(), ahead) {
                ("", _) => break page.metadata.resource_version,
                (_, Some(ahead)) => ahead,
                (next, None) => self.page(&NodeList::path(next)).await?,
            };
        };
        nodes.keep_only(&names);
        self.nodes = nodes;
        self.shared.check_own(own.as_ref());
        let (leases, unreadable) = self.nodes.all();
        self.reporter.snapshot(leases, unreadable).await?;
        self.version = Some(version.clone());
        Ok(version)
    }

    /// The page with this token; nothing without a token.
    async fn page_after(&mut self, token: &str) -> Result<Option<Bytes>, Failure> {
        match token {
            "" => Ok(None),
            token => self.page(&NodeList::path(token)).await.map(Some),
        }
    }

    async fn page(&mut self, path: &str) -> Result<Bytes, Failure> {
        let client = &self.shared.session.client;
        let question = Question::get(path);
        client
            .ask(&question, &mut self.connection, PAGE_LIMIT)
            .await
    }

    /// Compares the store's revision with the known one.
    async fn compare_history(&mut self) -> Result<(), Broken> {
        let Some(known) = self.version.clone() else {
            return Ok(());
        };
        let page = self.page("/api/v1/nodes?limit=1").await?;
        let page = NodeList::parse(&page).map_err(Failure::Answer)?;
        let now = page.metadata.resource_version;
        if is_older(&now, &known) {
            self.another_history(&now, &known).await?;
        }
        Ok(())
    }

    async fn another_history(&mut self, now: &str, known: &str) -> Result<(), Broken> {
        self.stream = None;
        self.version = None;
        // Nodes that are newer than the backup register again.
        self.shared.state.start_hold_down();
        let reason = format!("the revision of the nodes went back from {known} to {now}");
        let event = StoreEvent::AnotherHistory { reason };
        self.reporter.send(event).await?;
        Ok(())
    }

    async fn received(&mut self, line: &[u8]) -> Result<(), Broken> {
        let event = Event::read(line).map_err(Failure::Answer)?;
        if let Event::Error(failure) = event {
            // A watch from the same revision may meet the same error for ever.
            self.version = None;
            return Err(failure.into());
        }
        let Some(meta) = event.meta() else {
            return Ok(());
        };
        let version = meta.resource_version.clone();
        let changes = self.changed(&event);
        if let Some(known) = self
            .version
            .clone()
            .filter(|known| is_older(&version, known))
        {
            return self.another_history(&version, &known).await;
        }
        self.version = Some(version);
        self.reporter.changes(changes).await?;
        Ok(())
    }

    fn changed(&mut self, event: &Event) -> Changes {
        let shared = &self.shared;
        match event {
            Event::Set(node) if shared.is_own(node) => shared.check_own(Some(node)),
            Event::Deleted(node) if shared.is_own(node) => shared.check_own(None),
            Event::Set(node) => return self.nodes.set(node, &shared.annotations, self.families),
            Event::Deleted(node) => return self.nodes.remove(&node.metadata.name),
            Event::Bookmark(_) | Event::Error(_) | Event::Other => {}
        }
        Changes::new()
    }

    /// A request failed, or the watch did.
    async fn failed(&mut self, failure: Failure) -> Result<(), Closed> {
        if let Some(running) = self.stream.take() {
            self.pace.broken(running.since.elapsed());
        }
        self.connection = None;
        let nodes = self.population();
        if failure.status() == Some(410) {
            debug!("the revision is too old: listing all nodes again");
            self.version = None;
            sleep(self.pace.after_compaction(nodes)).await;
            return Ok(());
        }
        // An event that cannot be read may have hidden a change.
        if matches!(failure, Failure::Answer(_)) {
            self.version = None;
        }
        self.doubtful = true;
        self.shared.state.start_hold_down();
        let asked = failure.pause();
        let error = self.shared.session.client.error(failure);
        self.reporter.unreachable((&error).into()).await?;
        sleep(self.pace.after_failure(asked, nodes)).await;
        Ok(())
    }
}

/// Reads a page, once the request for the next one is under way: to read takes as long as the server takes to answer.
async fn parsed(body: &[u8]) -> Result<NodeList, Failure> {
    // The task of the connection sends the request meanwhile.
    yield_now().await;
    NodeList::parse(body).map_err(Failure::Answer)
}

/// Whether one revision is older than another. They are numbers, which clients may compare (KEP-5504); what is none is
/// never older.
fn is_older(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_compared_as_numbers() {
        assert!(is_older("9", "10") && !is_older("10", "9") && !is_older("10", "10"));
        assert!(!is_older("", "10") && !is_older("x", "10"));
    }
}
