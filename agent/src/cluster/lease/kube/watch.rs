//! The task that follows all nodes: one list, in pages, and one watch that goes on from it.
//!
//! The list is read from etcd, not from the API server's cache, so it is never older than what is known. A watch ends
//! every few minutes and goes on where it was. It says nothing where it must not go on, because etcd was restored
//! from a backup and is behind: the revision is compared at each event, and after each watch that ended unexpectedly
//! or silently.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use super::Shared;
use super::client::{Connection, Failure, Question, Stream};
use super::node::{MOST_PAGES, Meta, Node, NodeList, encoded};
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

/// One event of a watch.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// An object, of which only the metadata counts.
#[derive(Deserialize)]
struct Bookmark {
    metadata: Meta,
}

/// The object of an `ERROR`.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
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
        let mut next = String::new();
        let mut pages = 0..MOST_PAGES;
        let version = loop {
            if pages.next().is_none() {
                let text = format!("the list of nodes has more than {MOST_PAGES} pages");
                return Err(Failure::Answer(text).into());
            }
            let page = self.page(&NodeList::path(&next)).await?;
            for node in page.items {
                if self.shared.is_own(&node) {
                    own = Some(node);
                } else {
                    nodes.set(&node, &self.shared.annotations, self.families);
                    names.insert(node.metadata.name);
                }
            }
            next = page.metadata.next;
            if next.is_empty() {
                break page.metadata.resource_version;
            }
        };
        nodes.keep_only(&names);
        self.nodes = nodes;
        self.shared.check_own(own.as_ref());
        let (leases, unreadable) = self.nodes.all();
        self.reporter.snapshot(leases, unreadable).await?;
        self.version = Some(version.clone());
        Ok(version)
    }

    async fn page(&mut self, path: &str) -> Result<NodeList, Failure> {
        let client = &self.shared.session.client;
        let question = Question::get(path);
        let body = client
            .ask(&question, &mut self.connection, PAGE_LIMIT)
            .await?;
        NodeList::parse(&body).map_err(Failure::Answer)
    }

    /// Compares the store's revision with the known one.
    async fn compare_history(&mut self) -> Result<(), Broken> {
        let Some(known) = self.version.clone() else {
            return Ok(());
        };
        let page = self.page("/api/v1/nodes?limit=1").await?;
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
        let wrong = |error: serde_json::Error| Failure::Answer(error.to_string());
        let event: Event<'_> = serde_json::from_slice(line).map_err(wrong)?;
        let text = event.object.get();
        let (meta, changes) = match event.kind.as_str() {
            "ERROR" => {
                let status: Status = serde_json::from_str(text).map_err(wrong)?;
                // A watch from the same revision may meet the same error for ever.
                self.version = None;
                return Err(Broken::Failure(Failure::Refused {
                    status: status.code,
                    text: status.message,
                }));
            }
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(text).map_err(wrong)?;
                (bookmark.metadata, Changes::new())
            }
            "ADDED" | "MODIFIED" | "DELETED" => {
                let node: Node = serde_json::from_str(text).map_err(wrong)?;
                let changes = self.changed(&node, event.kind == "DELETED");
                (node.metadata, changes)
            }
            _ => return Ok(()),
        };
        if !meta.has_version() {
            let text = format!("an event {} without a resourceVersion", event.kind);
            return Err(Failure::Answer(text).into());
        }
        let version = meta.resource_version;
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

    fn changed(&mut self, node: &Node, deleted: bool) -> Changes {
        match (self.shared.is_own(node), deleted) {
            (true, _) => {
                self.shared.check_own(Some(node).filter(|_| !deleted));
                Changes::new()
            }
            (false, true) => self.nodes.remove(&node.metadata.name),
            (false, false) => self
                .nodes
                .set(node, &self.shared.annotations, self.families),
        }
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
