//! The task that keeps the own lease: extends it in time, and looks after it when somebody touched its key.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::Store;
use super::held::{EtcdLease, Held, Settled, keep_alive};
use super::spread::{LIST, spread};
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::cluster::lease::{StoreError, StoreEvent, StoreTrouble, Tenure};

/// Keeps one lease until it is lost.
pub(super) struct Keeper {
    store: Arc<Store>,
    events: Sender<StoreEvent>,
    /// Pauses after failed requests.
    failures: Backoff,
    /// Pauses between rewrites of a key that somebody else keeps changing, for example a flannel on the same machine.
    rewrites: Backoff,
    last_rewrite: Option<Instant>,
    /// What holds of the lease, until the consumer of events has room for it.
    news: Option<StoreEvent>,
    /// Why it could not be extended, as reported last.
    trouble: Option<StoreTrouble>,
    seed: u64,
}

const FAILURES: Backoff =
    match Backoff::new(Duration::from_millis(200), Duration::from_secs(60), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// However little time is left, or if none is.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

const REWRITES: Backoff =
    match Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 0.5, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// After this long without a rewrite, the next one is prompt again.
const QUIET: Duration = Duration::from_secs(300);

impl Keeper {
    pub(super) fn new(store: Arc<Store>, events: Sender<StoreEvent>) -> Self {
        Self {
            store,
            events,
            failures: FAILURES.seeded(random_seed()),
            rewrites: REWRITES.seeded(random_seed()),
            last_rewrite: None,
            news: None,
            trouble: None,
            seed: random_seed(),
        }
    }

    /// Runs until the lease is lost, which it reports. `aged`: the lease is an older one, to be extended at once.
    pub(super) async fn run(mut self, aged: bool) {
        let mut due = self.first_renewal(aged).await;
        let mut touched = false;
        let events = self.events.clone();
        loop {
            tokio::select! {
                () = until(due) => {}
                () = self.store.touched.notified() => {
                    touched = true;
                    // A rewrite can wait, the lease cannot.
                    let at = self.earliest_rewrite();
                    if let Some(at) = at.map(|at| due.map_or(at, |due| at.min(due))) {
                        sleep_until(at).await;
                    }
                }
                // Fails only if the store is gone, and with it anybody interested.
                Ok(room) = events.reserve(), if self.news.is_some() => {
                    if let Some(event) = self.news.take() {
                        room.send(event);
                    }
                    continue;
                }
            }
            // While the lease is locked, nothing waits for the consumer of events, who may wait for the lock.
            let store = Arc::clone(&self.store);
            let mut guard = store.held.lock().await;
            let Some(held) = guard.as_mut() else {
                return;
            };
            let renew = due.is_some_and(|due| due <= Instant::now());
            let before = held.etcd_lease;
            let outcome = self.look_after(held, renew, &mut touched).await;
            let etcd_lease = held.etcd_lease;
            match outcome {
                Ok(Settled::Kept { .. }) => {
                    drop(guard);
                    self.failures.reset();
                    touched = false;
                    due = match etcd_lease {
                        None => None,
                        // Somebody attached another one, of which an unknown part has passed.
                        Some(_) if etcd_lease != before => Some(Instant::now()),
                        Some(lease) if renew => {
                            self.trouble = None;
                            self.news = Some(StoreEvent::Renewed { ttl: lease.ttl });
                            Some(self.after(lease))
                        }
                        Some(_) => due,
                    };
                    store.spares.revoke(&store.servers).await;
                }
                Ok(Settled::Lost { reason }) => {
                    let reason = format!("lease of {} is lost: {reason}", held.key);
                    let own = held.key;
                    if let Some(lease) = etcd_lease {
                        store.spares.add(lease.id);
                    }
                    *guard = None;
                    drop(guard);
                    // Where one lease ended, others may have: their owners are taking them again.
                    store.departures().forget(&own);
                    store.hold_departures();
                    let nodes = store.departures().population();
                    sleep(spread(nodes, LIST, &mut self.seed)).await;
                    // Fails only if the store is gone, and with it anybody interested.
                    let _ = self.events.send(StoreEvent::OwnLeaseLost { reason }).await;
                    return;
                }
                Err(error) => {
                    drop(guard);
                    debug!("failed to look after the own lease: {error}");
                    self.report(&error, etcd_lease);
                    due = Some(Instant::now() + self.pause(etcd_lease));
                }
            }
        }
    }

    /// Extends the lease if that is due; if it is gone, or its key was touched, sees to the key. A lease that is found
    /// gone counts as touched from then on, so that a failure halfway is made up for.
    async fn look_after(
        &mut self,
        held: &mut Held,
        renew: bool,
        touched: &mut bool,
    ) -> Result<Settled, StoreError> {
        if let Some(lease) = held.etcd_lease.filter(|_| renew) {
            *touched |= !keep_alive(&self.store.servers, lease).await?;
        }
        if !*touched {
            return Ok(Settled::Kept { rewritten: false });
        }
        let settled = held.settle(&self.store).await?;
        if settled == (Settled::Kept { rewritten: true }) {
            let subnet = held.key.to_string();
            warn!(
                subnet,
                "the key of the own lease was not as this node wants it, and is restored"
            );
            let now = Instant::now();
            if self.last_rewrite.is_none_or(|last| now - last > QUIET) {
                self.rewrites.reset();
            }
            self.last_rewrite = Some(now);
        }
        Ok(settled)
    }

    /// Says that the lease was not extended, once for each reason. That no server answers is the watch's to report, until
    /// the lease is in danger.
    fn report(&mut self, error: &StoreError, etcd_lease: Option<EtcdLease>) {
        let Some(lease) = etcd_lease else {
            return;
        };
        let left = self.left();
        let in_danger = left.is_some_and(|left| left < lease.ttl / 2);
        let refused = matches!(error, StoreError::Refused { .. });
        let trouble = StoreTrouble::from(error);
        if (refused || in_danger) && self.trouble.as_ref() != Some(&trouble) {
            let error = trouble.clone();
            self.news = Some(StoreEvent::RenewalFailed { error, left });
            self.trouble = Some(trouble);
        }
    }

    /// How long the lease lasts, if that is known.
    fn left(&self) -> Option<Duration> {
        let expires = self.store.tenure().expires?;
        Some(expires.saturating_duration_since(Instant::now()))
    }

    /// How long to wait after a failure: no more than a quarter of the time that is left, so that the server need not be
    /// there at one certain moment.
    fn pause(&mut self, etcd_lease: Option<EtcdLease>) -> Duration {
        let pause = self.failures.next_delay();
        let Some(lease) = etcd_lease else {
            return pause;
        };
        capped(pause, self.left().unwrap_or(lease.ttl))
    }

    fn earliest_rewrite(&mut self) -> Option<Instant> {
        let last = self.last_rewrite?;
        Some(last + self.rewrites.next_delay()).filter(|at| *at > Instant::now())
    }

    /// When the lease is to be extended first; never, if it is a reservation.
    async fn first_renewal(&mut self, aged: bool) -> Option<Instant> {
        let etcd_lease = self.store.held.lock().await.as_ref()?.etcd_lease;
        self.store.set_tenure(Tenure {
            ttl: etcd_lease.map(|lease| lease.ttl),
            expires: None,
        });
        let lease = etcd_lease?;
        Some(if aged {
            Instant::now()
        } else {
            self.after(lease)
        })
    }

    /// When a lease that was just granted or extended is to be extended again: after a sixth of its duration, so that five
    /// attempts may fail, less up to a fifth of that, so that nodes which started together do not renew together.
    fn after(&mut self, lease: EtcdLease) -> Instant {
        let now = Instant::now();
        self.store.set_tenure(Tenure {
            ttl: Some(lease.ttl),
            expires: Some(now + lease.ttl),
        });
        now + jittered(lease.ttl / 6, 0.2, &mut self.seed)
    }
}

fn capped(pause: Duration, left: Duration) -> Duration {
    pause.min((left / 4).max(SHORTEST_PAUSE))
}

/// Waits for a time; without one, for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lease of a minute, and etcd that is back after 52 of its 60 seconds: with pauses that grow to a minute whatever
    /// is left, the next try would be at 100 s.
    #[test]
    fn no_pause_outlasts_the_lease() {
        let ttl = Duration::from_secs(60);
        for seed in 0..100 {
            let mut failures = FAILURES.seeded(seed);
            let mut at = ttl / 6;
            let mut tries_at_the_end = 0;
            while at < ttl {
                at += capped(failures.next_delay(), ttl.saturating_sub(at));
                tries_at_the_end += u32::from(at > Duration::from_secs(52) && at < ttl);
            }
            assert!(tries_at_the_end >= 3, "{tries_at_the_end}");
        }
    }
}
