//! Something that is tried again, with growing pauses, until it is done.

use std::error::Error;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::logging::{Repeats, chain};
use crate::retry::{Backoff, Retry, random_seed};

/// Between the first failure and the next try 200 ms; at the most 10 s, so that what heals by itself is noticed soon.
const PAUSES: Backoff =
    match Backoff::new(Duration::from_millis(200), Duration::from_secs(10), 0.3, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Pauses between tries, different on every node so that a cluster does not try in step.
pub(super) fn new_retry() -> Retry {
    Retry::new(PAUSES.seeded(random_seed()))
}

/// A task and what keeps it from being done.
#[derive(Debug)]
pub(super) struct Task {
    /// What metrics call it.
    name: &'static str,
    /// What is to be done, in words that follow "failed to".
    what: &'static str,
    retry: Retry,
    trouble: Option<String>,
    repeats: Repeats,
    /// How often it failed since the start of the process.
    failures: u64,
}

impl Task {
    /// There is nothing to do yet.
    pub(super) fn new(name: &'static str, what: &'static str) -> Self {
        Self {
            name,
            what,
            retry: new_retry(),
            trouble: None,
            repeats: Repeats::default(),
            failures: 0,
        }
    }

    /// What metrics call it.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// How often it failed since the start of the process.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// What is wrong, for the status.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// It is to be done at once.
    pub(super) fn now(&mut self) {
        self.retry.now();
    }

    /// It is to be done at a certain time.
    pub(super) fn at(&mut self, due: Instant) {
        self.retry.at(due);
    }

    /// It is done.
    pub(super) fn done(&mut self) {
        self.retry.done();
        self.trouble = None;
        if let Some(seen) = self.repeats.end(Instant::now()) {
            info!("succeeded after all to {}; the fault was {seen}", self.what);
        }
    }

    /// It failed and is due again after a pause.
    pub(super) fn failed(&mut self, error: &dyn Error) {
        self.note(error);
        self.retry.schedule();
    }

    /// It failed, and no other try helps before somebody else changes something.
    pub(super) fn stuck(&mut self, error: &dyn Error) {
        self.note(error);
        self.retry.done();
    }

    /// Waits until it is due; for ever when there is nothing to do. Cancel-safe.
    pub(super) async fn due(&self) {
        self.retry.due().await;
    }

    /// A fault that lasts is logged once, and then now and then with a count; not at every try.
    fn note(&mut self, error: &dyn Error) {
        self.failures += 1;
        let trouble = format!("failed to {}: {}", self.what, chain(error));
        if let Some(line) = self.repeats.note(&trouble, Instant::now()) {
            warn!(task = self.name, "{line}");
        }
        self.trouble = Some(trouble);
    }
}
