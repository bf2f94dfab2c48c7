//! The task that keeps the own lease at the server: extends it in time, and asks after it when it may have changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Shared;
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::cluster::lease::{StoreError, StoreEvent, StoreTrouble};

const FAILURES: Backoff =
    match Backoff::new(Duration::from_millis(200), Duration::from_secs(60), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Between two looks at a lease that does not show in the list as it should: a server may lag behind etcd, or somebody may
/// keep changing the lease.
const LOOKS: Backoff = match Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 0.5, 0) {
    Ok(backoff) => backoff,
    Err(_) => panic!("constant out of range"),
};

/// After this long without a look, the next one is prompt again.
const QUIET: Duration = Duration::from_secs(300);

/// Keeps one lease until it is lost.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    events: Sender<StoreEvent>,
    /// The acquisition whose lease it keeps.
    term: u64,
    failures: Backoff,
    looks: Backoff,
    last_look: Option<Instant>,
    /// Why it could not be extended, as reported last.
    trouble: Option<StoreTrouble>,
    /// What there is to say about that, until its consumer has room for it.
    news: Option<StoreEvent>,
    seed: u64,
}

/// Why the keeper asks the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Due,
    Look,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, events: Sender<StoreEvent>, term: u64) -> Self {
        Self {
            shared,
            events,
            term,
            failures: FAILURES.seeded(random_seed()),
            looks: LOOKS.seeded(random_seed()),
            last_look: None,
            trouble: None,
            news: None,
            seed: random_seed(),
        }
    }

    /// Runs until the lease is lost, which it reports. `ttl`: how long the lease lasts; `None` for a reservation.
    pub(super) async fn run(mut self, ttl: Option<Duration>) {
        let mut due = ttl.map(|ttl| self.after(ttl));
        // When the lease is looked at next, since it may not be as it should.
        let mut look = None;
        let events = self.events.clone();
        loop {
            let cause = tokio::select! {
                () = until(due) => Cause::Due,
                () = until(look) => Cause::Look,
                () = self.shared.touched.notified(), if look.is_none() => {
                    look = Some(self.next_look());
                    continue;
                }
                permit = events.reserve(), if self.news.is_some() => {
                    // Fails only if the store is gone, and with it anybody interested.
                    if let (Ok(permit), Some(news)) = (permit, self.news.take()) {
                        permit.send(news);
                    }
                    continue;
                }
            };
            // To extend the lease is to look at it.
            if look.take().is_some() {
                self.last_look = Some(Instant::now());
            }
            match self.shared.renew(self.term).await {
                Ok(ttl) => {
                    self.failures.reset();
                    due = ttl.map(|ttl| self.after(ttl));
                    let told = cause == Cause::Due || self.trouble.is_some();
                    self.trouble = None;
                    if let Some(ttl) = ttl.filter(|_| told) {
                        self.news = Some(StoreEvent::Renewed { ttl });
                    }
                }
                Err(StoreError::NoLease { reason }) => {
                    self.lost(reason).await;
                    return;
                }
                Err(error) => {
                    debug!("failed to look after the own lease: {error}");
                    due = Some(Instant::now() + self.failed(&error));
                }
            }
        }
    }

    /// Reports that the lease is lost. A lease of another term is none of its business.
    async fn lost(&self, reason: String) {
        let term = self.term;
        let lost = self.shared.held().take_if(|held| held.term == term);
        let reason = match lost {
            Some(held) => {
                self.shared.departures().forget(&held.key);
                // Where one lease ended, others may have: their owners are taking them again.
                let until = Instant::now() + super::GRACE;
                self.shared.departures().hold(until);
                format!("lease of {} is lost: {reason}", held.key)
            }
            None => format!("the lease is lost: {reason}"),
        };
        // Fails only if the store is gone, and with it anybody interested.
        let _ = self.events.send(StoreEvent::OwnLeaseLost { reason }).await;
    }

    /// Says that the lease was not extended, once for each reason. That no server answers is the watch's to report, until
    /// the lease is in danger. How long to wait before the next attempt.
    fn failed(&mut self, error: &StoreError) -> Duration {
        let tenure = self.shared.tenure();
        let now = Instant::now();
        let left = tenure.expires.map(|at| at.saturating_duration_since(now));
        let (Some(ttl), Some(left)) = (tenure.ttl, left) else {
            return self.failures.next_delay();
        };
        let refused = matches!(error, StoreError::Refused { .. });
        let trouble = StoreTrouble::from(error);
        if (refused || left < ttl / 2) && self.trouble.as_ref() != Some(&trouble) {
            self.trouble = Some(trouble.clone());
            self.news = Some(StoreEvent::RenewalFailed {
                error: trouble,
                left: Some(left),
            });
        }
        self.failures.next_delay_within(left)
    }

    /// When to have a look: at once, unless there was one a short time ago.
    fn next_look(&mut self) -> Instant {
        let now = Instant::now();
        match self.last_look {
            Some(last) if now - last < QUIET => last + self.looks.next_delay(),
            _ => {
                self.looks.reset();
                now
            }
        }
    }

    /// When a lease that was just extended is to be extended again, as with etcd: after a sixth of its duration, less up
    /// to a fifth of that.
    fn after(&mut self, ttl: Duration) -> Instant {
        Instant::now() + jittered(ttl / 6, 0.2, &mut self.seed)
    }
}

/// Waits for a time; without one, for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
