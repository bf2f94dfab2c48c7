//! The task that keeps the own lease: renews it in time, and checks it when it may have been touched.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tracing::debug;

use super::state::State;
use super::{StoreError, StoreEvent, until};
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::cluster::lease::StoreTrouble;

/// What a store provides to the keeper: the lease of one acquisition.
pub(in crate::cluster::lease) trait OwnLease: Send {
    fn state(&self) -> &State;

    /// Renews the lease if due (`renew`), and corrects it if it may have been changed (`touched`). A store that finds
    /// the lease gone sets `touched` itself, so that the next attempt completes what failed halfway. The remaining time
    /// is recorded in [`State`]; a lost lease is no longer held.
    fn maintain(
        &mut self,
        renew: bool,
        touched: &mut bool,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + Send;
}

/// The result of renewing or checking the lease.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cluster::lease) enum Outcome {
    /// It is held.
    Kept {
        time_left: TimeLeft,
        /// Whether to delay the next check, since another writer may keep changing the lease.
        slow_down: bool,
    },
    /// It is gone or belongs to another node; a complete sentence.
    Lost { reason: String },
}

/// How long a lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster::lease) enum TimeLeft {
    /// Until deleted: it is a reservation.
    Forever,
    /// This long from now.
    FromNow(Duration),
    /// As long as was known before: this check did not renew it.
    Unchanged,
    /// An unknown part of its TTL has passed.
    Unknown,
}

/// Pauses after failed requests.
const FAILURES: Backoff =
    Backoff::constant(Duration::from_millis(200), Duration::from_secs(60), 0.5);

/// The lower bound of pauses, however little time is left.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Pauses between checks of a lease that another writer keeps changing, for example a flannel on the same host.
const CHECKS: Backoff = Backoff::constant(Duration::from_secs(1), Duration::from_secs(60), 0.5);

/// After this long without such a check, the next one is immediate again.
const QUIET: Duration = Duration::from_secs(300);

/// Keeps one lease until it is lost.
pub(in crate::cluster::lease) struct Keeper<L> {
    lease: L,
    events: Sender<StoreEvent>,
    failures: Backoff,
    checks: Backoff,
    /// The last check after which the next one is delayed.
    last_check: Option<Instant>,
    /// The event about the lease, until the event queue has room.
    event: Option<StoreEvent>,
    /// The last reported reason of a failed renewal.
    trouble: Option<StoreTrouble>,
    seed: u64,
}

impl<L: OwnLease> Keeper<L> {
    pub(in crate::cluster::lease) fn new(lease: L, events: Sender<StoreEvent>) -> Self {
        Self {
            lease,
            events,
            failures: FAILURES.seeded(random_seed()),
            checks: CHECKS.seeded(random_seed()),
            last_check: None,
            event: None,
            trouble: None,
            seed: random_seed(),
        }
    }

    /// Runs until the lease is lost, and reports that. `time_left`: what is known at the start.
    pub(in crate::cluster::lease) async fn run(mut self, time_left: TimeLeft) {
        let mut due = self.due(time_left, None);
        // When to check the lease next, if it may have been changed.
        let mut check = None;
        let mut touched = false;
        let events = self.events.clone();
        loop {
            tokio::select! {
                () = until(due) => {}
                () = until(check) => {}
                () = self.lease.state().touched(), if check.is_none() => {
                    check = Some(self.next_check());
                    continue;
                }
                // Fails only if the store and the receiver of its events are gone.
                Ok(room) = events.reserve(), if self.event.is_some() => {
                    if let Some(event) = self.event.take() {
                        room.send(event);
                    }
                    continue;
                }
            }
            // A renewal includes the check: a check can wait, the renewal cannot.
            touched |= check.take().is_some();
            let renew = due.is_some_and(|due| due <= Instant::now());
            match self.lease.maintain(renew, &mut touched).await {
                Ok(Outcome::Kept {
                    time_left,
                    slow_down,
                }) => {
                    self.failures.reset();
                    touched = false;
                    if slow_down {
                        self.last_check = Some(Instant::now());
                    }
                    self.kept(time_left, renew);
                    due = self.due(time_left, due);
                }
                Ok(Outcome::Lost { reason }) => {
                    // Fails only if the store and the receiver of its events are gone.
                    let _ = self.events.send(StoreEvent::OwnLeaseLost { reason }).await;
                    return;
                }
                Err(error) => {
                    debug!("failed to renew or check the own lease: {error}");
                    due = Some(Instant::now() + self.failed(&error));
                }
            }
        }
    }

    /// Reports a renewal if it was due or had failed before.
    fn kept(&mut self, time_left: TimeLeft, renew: bool) {
        match time_left {
            TimeLeft::FromNow(ttl) => {
                if self.trouble.take().is_some() || renew {
                    self.event = Some(StoreEvent::Renewed { ttl });
                }
            }
            TimeLeft::Forever => self.trouble = None,
            TimeLeft::Unchanged | TimeLeft::Unknown => {}
        }
    }

    /// When to renew next: after a sixth of the TTL, so that five attempts may fail, minus up to a fifth of that, so
    /// that nodes that started together do not renew together. Never for a reservation.
    fn due(&mut self, time_left: TimeLeft, before: Option<Instant>) -> Option<Instant> {
        let now = Instant::now();
        match time_left {
            TimeLeft::Forever => None,
            TimeLeft::FromNow(ttl) => Some(now + jittered(ttl / 6, 0.2, &mut self.seed)),
            TimeLeft::Unchanged => before,
            TimeLeft::Unknown => Some(now),
        }
    }

    /// Reports a failed renewal, once for each reason. That no server answers is reported by the watcher, until the
    /// lease is in danger. Returns the pause before the next attempt.
    fn failed(&mut self, error: &StoreError) -> Duration {
        let expiry = self.lease.state().expiry();
        let now = Instant::now();
        let left = expiry.expires.map(|at| at.saturating_duration_since(now));
        let pause = self.failures.next_delay();
        let Some(ttl) = expiry.ttl else {
            return pause;
        };
        let in_danger = left.is_some_and(|left| left < ttl / 2);
        let refused = matches!(error, StoreError::Refused { .. });
        let trouble = StoreTrouble::from(error);
        if (refused || in_danger) && self.trouble.as_ref() != Some(&trouble) {
            self.trouble = Some(trouble.clone());
            self.event = Some(StoreEvent::RenewalFailed {
                error: trouble,
                left,
            });
        }
        capped(pause, left, ttl)
    }

    /// When to check: at once, unless the last check was a short time ago.
    fn next_check(&mut self) -> Instant {
        let now = Instant::now();
        match self.last_check {
            Some(last) if now - last < QUIET => last + self.checks.next_delay(),
            _ => {
                self.checks.reset();
                now
            }
        }
    }
}

/// Caps a pause to a quarter of the remaining time, so that renewal does not depend on the server being up at one
/// moment. With no time left, pauses stay short too: if the server itself was down, it restores the lease's full TTL
/// when it is back (etcd does so when a leader is elected), and that must not expire unused either.
fn capped(pause: Duration, left: Option<Duration>, ttl: Duration) -> Duration {
    let most = match left {
        Some(left) if !left.is_zero() => left / 4,
        Some(_) => ttl / 8,
        None => ttl / 4,
    };
    pause.min(most.max(SHORTEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease with a TTL of 60 s, and a server that is back after 52 s: with pauses that grow to a minute regardless
    /// of the remaining time, the next attempt would be at 100 s.
    #[test]
    fn no_pause_outlasts_the_lease() {
        let ttl = Duration::from_secs(60);
        for seed in 0..100 {
            let mut failures = FAILURES.seeded(seed);
            let mut at = ttl / 6;
            let mut tries_at_the_end = 0;
            while at < ttl {
                at += capped(failures.next_delay(), Some(ttl.saturating_sub(at)), ttl);
                tries_at_the_end += u32::from(at > Duration::from_secs(52) && at < ttl);
            }
            assert!(tries_at_the_end >= 3, "{tries_at_the_end}");
            assert!(capped(failures.next_delay(), Some(Duration::ZERO), ttl) < ttl / 4);
        }
    }
}
