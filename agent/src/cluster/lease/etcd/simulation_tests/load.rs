//! What the cluster's servers had to do, by second of the simulation.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// The first page of all leases.
    List,
    /// A further one.
    Page,
    /// The leases that changed since.
    Refresh,
    /// One key, a few, or a number of keys.
    Get,
    Txn,
    Grant,
    Revoke,
    KeepAlive,
    TimeToLive,
    /// A stream of watches was opened.
    Watch,
    /// A stream was asked for its progress.
    Progress,
}

pub(super) const KINDS: [(Kind, &str); 11] = [
    (Kind::List, "list"),
    (Kind::Page, "page"),
    (Kind::Refresh, "refresh"),
    (Kind::Get, "get"),
    (Kind::Txn, "txn"),
    (Kind::Grant, "grant"),
    (Kind::Revoke, "revoke"),
    (Kind::KeepAlive, "keepalive"),
    (Kind::TimeToLive, "ttl"),
    (Kind::Watch, "watch"),
    (Kind::Progress, "progress"),
];

/// One second.
#[derive(Clone, Debug, Default)]
struct Second {
    requests: BTreeMap<Kind, usize>,
    /// Sent in replies to reads.
    read: u64,
    /// Sent as events of watches.
    watched: u64,
    events: u64,
}

/// The load so far.
#[derive(Debug)]
pub(super) struct Load {
    start: Instant,
    seconds: Vec<Second>,
}

/// The load of a span of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    pub(super) seconds: usize,
    pub(super) total: BTreeMap<Kind, usize>,
    /// The most in one second, by kind.
    pub(super) peak: BTreeMap<Kind, usize>,
    /// The most of all kinds in one second.
    pub(super) peak_of_all: usize,
    /// Of replies to reads, in bytes.
    pub(super) read: Bytes,
    /// Of events, in bytes.
    pub(super) watched: Bytes,
    /// The number of events.
    pub(super) events: u64,
}

/// How much was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bytes {
    pub(super) total: u64,
    /// The most in one second.
    pub(super) peak: u64,
}

impl Bytes {
    fn add(&mut self, in_a_second: u64) {
        self.total += in_a_second;
        self.peak = self.peak.max(in_a_second);
    }
}

impl Load {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            seconds: Vec::new(),
        }
    }

    fn second(&mut self, at: Instant) -> &mut Second {
        let since = at.saturating_duration_since(self.start);
        let second = usize::try_from(since.as_secs()).unwrap();
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Second::default);
        }
        &mut self.seconds[second]
    }

    pub(super) fn count(&mut self, kind: Kind, requests: usize, bytes: usize) {
        let second = self.second(Instant::now());
        *second.requests.entry(kind).or_default() += requests;
        second.read += bytes as u64;
    }

    /// So many events are sent by then.
    pub(super) fn event(&mut self, at: Instant, bytes: usize, events: usize) {
        let second = self.second(at);
        second.watched += bytes as u64;
        second.events += events as u64;
    }

    /// The number of this second.
    pub(super) fn mark(&self) -> usize {
        usize::try_from(self.start.elapsed().as_secs()).unwrap()
    }

    /// From a second until now.
    pub(super) fn since(&self, mark: usize) -> Span {
        let mut span = Span {
            seconds: self.mark() + 1 - mark,
            ..Span::default()
        };
        for second in self.seconds.iter().skip(mark).take(span.seconds) {
            let all: usize = second.requests.values().sum();
            span.peak_of_all = span.peak_of_all.max(all);
            for (kind, number) in &second.requests {
                *span.total.entry(*kind).or_default() += number;
                let peak = span.peak.entry(*kind).or_default();
                *peak = (*peak).max(*number);
            }
            span.read.add(second.read);
            span.watched.add(second.watched);
            span.events += second.events;
        }
        span
    }
}

impl Span {
    pub(super) fn requests(&self) -> usize {
        self.total.values().sum()
    }

    pub(super) fn of(&self, kind: Kind) -> usize {
        self.total.get(&kind).copied().unwrap_or(0)
    }
}
