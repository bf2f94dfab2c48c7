//! What the cluster's servers had to do, by second of the simulation.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// A page of all leases, or those that changed.
    Page,
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

pub(super) const KINDS: [(Kind, &str); 9] = [
    (Kind::Page, "page"),
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
    /// In bytes.
    pub(super) read: u64,
    pub(super) peak_read: u64,
    pub(super) watched: u64,
}

impl Load {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            seconds: Vec::new(),
        }
    }

    fn now(&mut self) -> &mut Second {
        let second = usize::try_from(self.start.elapsed().as_secs()).unwrap();
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Second::default);
        }
        &mut self.seconds[second]
    }

    pub(super) fn count(&mut self, kind: Kind, requests: usize, bytes: usize) {
        let second = self.now();
        *second.requests.entry(kind).or_default() += requests;
        second.read += bytes as u64;
    }

    pub(super) fn event(&mut self, bytes: usize, streams: usize) {
        self.now().watched += (bytes * streams) as u64;
    }

    /// The number of this second.
    pub(super) fn mark(&mut self) -> usize {
        self.now();
        self.seconds.len() - 1
    }

    /// From a second on.
    pub(super) fn since(&self, mark: usize) -> Span {
        let mut span = Span::default();
        for second in &self.seconds[mark..] {
            span.seconds += 1;
            let all: usize = second.requests.values().sum();
            span.peak_of_all = span.peak_of_all.max(all);
            for (kind, number) in &second.requests {
                *span.total.entry(*kind).or_default() += number;
                let peak = span.peak.entry(*kind).or_default();
                *peak = (*peak).max(*number);
            }
            span.read += second.read;
            span.peak_read = span.peak_read.max(second.read);
            span.watched += second.watched;
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
