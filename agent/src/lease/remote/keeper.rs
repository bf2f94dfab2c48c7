//! The task that keeps the own lease at the server: extends it in time, and asks after it when it may have changed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::Shared;
use crate::lease::{StoreError, StoreEvent};
use crate::retry::{Backoff, jittered, random_seed};

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
    failures: Backoff,
    looks: Backoff,
    last_look: Option<Instant>,
    /// Why it could not be extended, as reported last.
    trouble: Option<String>,
    seed: u64,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, events: Sender<StoreEvent>) -> Self {
        Self {
            shared,
            events,
            failures: FAILURES.seeded(random_seed()),
            looks: LOOKS.seeded(random_seed()),
            last_look: None,
            trouble: None,
            seed: random_seed(),
        }
    }

    /// Runs until the lease is lost, which it reports. `ttl`: how long the lease lasts; `None` for a reservation.
    pub(super) async fn run(mut self, ttl: Option<Duration>) {
        let mut due = ttl.map(|ttl| self.after(ttl));
        loop {
            let renewing = tokio::select! {
                () = until(due) => true,
                () = self.shared.touched.notified() => {
                    self.wait_for_look().await;
                    false
                }
            };
            match self.shared.renew().await {
                Ok(ttl) => {
                    self.failures.reset();
                    due = ttl.map(|ttl| self.after(ttl));
                    if let Some(ttl) = ttl.filter(|_| renewing || self.trouble.is_some()) {
                        // A consumer that is far behind has more urgent events to read.
                        if self.events.try_send(StoreEvent::Renewed { ttl }).is_ok() {
                            self.trouble = None;
                        }
                    }
                }
                Err(StoreError::NoLease { reason }) => {
                    let Some(held) = self.shared.held().take() else {
                        return;
                    };
                    let reason = format!("lease of {} is lost: {reason}", held.key);
                    self.shared.departures().forget(&held.key);
                    // Where one lease ended, others may have: their owners are taking them again.
                    let until = Instant::now() + super::GRACE;
                    self.shared.departures().hold(until);
                    // Fails only if the store is gone, and with it anybody interested.
                    let _ = self.events.send(StoreEvent::OwnLeaseLost { reason }).await;
                    return;
                }
                Err(error) => {
                    debug!("failed to look after the own lease: {error}");
                    self.report(&error);
                    due = Some(Instant::now() + self.failures.next_delay());
                }
            }
        }
    }

    /// Says that the lease was not extended, once for each reason. That no server answers is the watch's to report, until
    /// the lease is in danger.
    fn report(&mut self, error: &StoreError) {
        let tenure = *self
            .shared
            .tenure
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(ttl) = tenure.ttl else {
            return;
        };
        let now = Instant::now();
        let left = tenure.expires.map(|at| at.saturating_duration_since(now));
        let in_danger = left.is_some_and(|left| left < ttl / 2);
        let refused = matches!(error, StoreError::Refused { .. });
        let text = error.to_string();
        if (refused || in_danger) && self.trouble.as_ref() != Some(&text) {
            let error = text.clone();
            let event = StoreEvent::RenewalFailed { error, left };
            if self.events.try_send(event).is_ok() {
                self.trouble = Some(text);
            }
        }
    }

    async fn wait_for_look(&mut self) {
        let now = Instant::now();
        match self.last_look {
            Some(last) if now - last < QUIET => {
                sleep_until(last + self.looks.next_delay()).await;
            }
            _ => self.looks.reset(),
        }
        self.last_look = Some(Instant::now());
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
