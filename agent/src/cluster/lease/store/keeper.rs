//! The task that keeps the own lease: extends it in time, and looks after it when it may not be as it should.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;
use tracing::debug;

use super::state::State;
use super::{StoreError, StoreEvent, until};
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::cluster::lease::StoreTrouble;

/// What a store must offer the keeper: the lease of one acquisition.
pub(in crate::cluster::lease) trait OwnLease: Send {
    fn state(&self) -> &State;

    /// Extends the lease if it is due (`renew`), and makes it as this node wants it if it may not be so (`touched`). A
    /// store that finds the lease gone sets `touched` itself, so that a failure halfway is made up for at the next attempt.
    /// How long the lease lasts is noted in [`State`]; a lost lease is no longer held.
    fn look_after(
        &mut self,
        renew: bool,
        touched: &mut bool,
    ) -> impl Future<Output = Result<Outcome, StoreError>> + Send;
}

/// What came of looking after the lease.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cluster::lease) enum Outcome {
    /// It is held.
    Kept {
        lasts: Lasts,
        /// Whether the next look has to wait, since somebody else may keep changing the lease.
        slow_down: bool,
    },
    /// It is gone or somebody else's; the whole sentence.
    Lost { reason: String },
}

/// How long a lease lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster::lease) enum Lasts {
    /// For ever: it is a reservation.
    Forever,
    /// So long from now.
    FromNow(Duration),
    /// As long as was known.
    AsBefore,
    /// An unknown part of its time has passed.
    Unknown,
}

/// Pauses after failed requests.
const FAILURES: Backoff =
    match Backoff::new(Duration::from_millis(200), Duration::from_secs(60), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// However little time is left.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Pauses between looks at a lease that somebody else keeps changing, for example a flannel on the same machine.
const LOOKS: Backoff = match Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 0.5, 0) {
    Ok(backoff) => backoff,
    Err(_) => panic!("constant out of range"),
};

/// After this long without such a look, the next one is prompt again.
const QUIET: Duration = Duration::from_secs(300);

/// Keeps one lease until it is lost.
pub(in crate::cluster::lease) struct Keeper<L> {
    lease: L,
    events: Sender<StoreEvent>,
    failures: Backoff,
    looks: Backoff,
    /// The last look after which the next one has to wait.
    last_look: Option<Instant>,
    /// What holds of the lease, until the consumer of events has room for it.
    news: Option<StoreEvent>,
    /// Why it could not be extended, as reported last.
    trouble: Option<StoreTrouble>,
    seed: u64,
}

impl<L: OwnLease> Keeper<L> {
    pub(in crate::cluster::lease) fn new(lease: L, events: Sender<StoreEvent>) -> Self {
        Self {
            lease,
            events,
            failures: FAILURES.seeded(random_seed()),
            looks: LOOKS.seeded(random_seed()),
            last_look: None,
            news: None,
            trouble: None,
            seed: random_seed(),
        }
    }

    /// Runs until the lease is lost, which it reports. `lasts`: what is known of it at the start.
    pub(in crate::cluster::lease) async fn run(mut self, lasts: Lasts) {
        let mut due = self.due(lasts, None);
        // When the lease is looked at next, since it may not be as it should.
        let mut look = None;
        let mut touched = false;
        let events = self.events.clone();
        loop {
            tokio::select! {
                () = until(due) => {}
                () = until(look) => {}
                () = self.lease.state().touched(), if look.is_none() => {
                    look = Some(self.next_look());
                    continue;
                }
                // Fails only if the store is gone, and with it anybody interested.
                Ok(room) = events.reserve(), if self.news.is_some() => {
                    if let Some(event) = self.news.take() {
                        room.send(event);
                    }
                    continue;
                }
            }
            // Whoever extends the lease has a look as well: a look can wait, the lease cannot.
            touched |= look.take().is_some();
            let renew = due.is_some_and(|due| due <= Instant::now());
            match self.lease.look_after(renew, &mut touched).await {
                Ok(Outcome::Kept { lasts, slow_down }) => {
                    self.failures.reset();
                    touched = false;
                    if slow_down {
                        self.last_look = Some(Instant::now());
                    }
                    self.kept(lasts, renew);
                    due = self.due(lasts, due);
                }
                Ok(Outcome::Lost { reason }) => {
                    // Fails only if the store is gone, and with it anybody interested.
                    let _ = self.events.send(StoreEvent::OwnLeaseLost { reason }).await;
                    return;
                }
                Err(error) => {
                    debug!("failed to look after the own lease: {error}");
                    due = Some(Instant::now() + self.failed(&error));
                }
            }
        }
    }

    /// Says that the lease was extended, when that was due or had failed before.
    fn kept(&mut self, lasts: Lasts, renew: bool) {
        match lasts {
            Lasts::FromNow(ttl) => {
                if self.trouble.take().is_some() || renew {
                    self.news = Some(StoreEvent::Renewed { ttl });
                }
            }
            Lasts::Forever => self.trouble = None,
            Lasts::AsBefore | Lasts::Unknown => {}
        }
    }

    /// When the lease is to be extended next: after a sixth of its duration, so that five attempts may fail, less up to a
    /// fifth of that, so that nodes which started together do not renew together. Never, if it is a reservation.
    fn due(&mut self, lasts: Lasts, before: Option<Instant>) -> Option<Instant> {
        let now = Instant::now();
        match lasts {
            Lasts::Forever => None,
            Lasts::FromNow(ttl) => Some(now + jittered(ttl / 6, 0.2, &mut self.seed)),
            Lasts::AsBefore => before,
            Lasts::Unknown => Some(now),
        }
    }

    /// Says that the lease was not extended, once for each reason. That no server answers is the watch's to report, until
    /// the lease is in danger. How long to wait before the next attempt.
    fn failed(&mut self, error: &StoreError) -> Duration {
        let tenure = self.lease.state().tenure();
        let now = Instant::now();
        let left = tenure.expires.map(|at| at.saturating_duration_since(now));
        let pause = self.failures.next_delay();
        let Some(ttl) = tenure.ttl else {
            return pause;
        };
        let in_danger = left.is_some_and(|left| left < ttl / 2);
        let refused = matches!(error, StoreError::Refused { .. });
        let trouble = StoreTrouble::from(error);
        if (refused || in_danger) && self.trouble.as_ref() != Some(&trouble) {
            self.trouble = Some(trouble.clone());
            self.news = Some(StoreEvent::RenewalFailed {
                error: trouble,
                left,
            });
        }
        capped(pause, left, ttl)
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
}

/// A pause of no more than a quarter of the time that is left, so that the server need not be there at one certain moment.
/// When nothing is left the server may have been down itself, and gives the lease its whole duration again when it is back
/// (etcd does, when a leader is elected): that is not to pass unused either.
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

    /// A lease of a minute, and a server that is back after 52 of its 60 seconds: with pauses that grow to a minute whatever
    /// is left, the next try would be at 100 s.
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
