//! How the own lease is renewed and restored: etcd's side of the [keeper](crate::cluster::lease::store::keeper).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::sleep;
use tracing::warn;

use super::Store;
use super::held::{EtcdLease, GONE, Held, Settled, keep_alive};
use crate::base::retry::random_seed;
use crate::cluster::lease::store::keeper::{Outcome, OwnLease, TimeLeft};
use crate::cluster::lease::store::spread::{before_list, before_requests};
use crate::cluster::lease::store::state::State;
use crate::cluster::lease::{Expiry, StoreError};

/// The lease that the store holds.
pub(super) struct Own {
    store: Arc<Store>,
    seed: u64,
}

impl Own {
    /// Starts with the lease that the store has just adopted, and its remaining time. `aged`: part of its TTL has
    /// already passed.
    pub(super) fn begin(
        store: Arc<Store>,
        etcd_lease: Option<EtcdLease>,
        aged: bool,
    ) -> (Self, TimeLeft) {
        let ttl = etcd_lease.map(|lease| lease.ttl);
        let time_left = match ttl {
            None => TimeLeft::Forever,
            Some(_) if aged => TimeLeft::Unknown,
            Some(ttl) => TimeLeft::FromNow(ttl),
        };
        match aged {
            true => store.state.set_expiry(Expiry { ttl, expires: None }),
            false => store.state.renewed(ttl),
        }
        let seed = random_seed();
        (Self { store, seed }, time_left)
    }
}

impl OwnLease for Own {
    fn state(&self) -> &State {
        &self.store.state
    }

    async fn maintain(&mut self, renew: bool, touched: &mut bool) -> Result<Outcome, StoreError> {
        let store = Arc::clone(&self.store);
        let state = &store.state;
        let mut guard = store.held.lock().await;
        let Some(held) = guard.as_mut() else {
            return Ok(Outcome::Lost {
                reason: "the lease was released meanwhile".to_owned(),
            });
        };
        let before = held.etcd_lease;
        let settled = renew_and_check(&store, held, renew, touched).await?;
        let is_retaken = settled == Settled::Gone && held.retake(&store).await?;
        let etcd_lease = held.etcd_lease;
        let (reason, is_taken) = match settled {
            Settled::Gone if !is_retaken => (GONE.to_owned(), false),
            Settled::TakenOver { reason } => (reason, true),
            Settled::Kept { .. } | Settled::Gone => {
                drop(guard);
                let time_left = match etcd_lease {
                    None => TimeLeft::Forever,
                    Some(lease) if is_retaken => TimeLeft::FromNow(lease.ttl),
                    // Another writer attached another etcd lease, part of whose TTL has passed.
                    Some(_) if etcd_lease != before => TimeLeft::Unknown,
                    Some(lease) if renew => TimeLeft::FromNow(lease.ttl),
                    Some(_) => TimeLeft::Unchanged,
                };
                if matches!(time_left, TimeLeft::Forever | TimeLeft::FromNow(_)) {
                    state.renewed(etcd_lease.map(|lease| lease.ttl));
                }
                store.spares.revoke(&store.servers).await;
                return Ok(Outcome::Kept {
                    time_left,
                    // Somebody may go on changing or deleting it.
                    slow_down: settled != Settled::Kept { rewritten: false },
                });
            }
        };
        let reason = format!("lost the lease of {}: {reason}", held.key);
        let own = held.key;
        held.spare(&store);
        *guard = None;
        drop(guard);
        state.lost(&own);
        self.pause_before_taking(is_taken).await;
        Ok(Outcome::Lost { reason })
    }
}

impl Own {
    /// Whatever ended this lease may have ended those of all nodes; they must not take them again in step. A lease that
    /// another node took is that node's doing, and peers send to the wrong one until this one has another subnet.
    async fn pause_before_taking(&mut self, is_taken: bool) {
        let state = &self.store.state;
        let nodes = state.hold_down().population();
        let pause = match is_taken {
            true => before_requests(nodes, &mut self.seed),
            false => {
                // This is the pause after a list that timed out, too.
                self.store.list_timed_out.store(false, Ordering::Relaxed);
                before_list(nodes, &mut self.seed)
            }
        };
        sleep(pause).await;
    }
}

/// Renews the lease if due; if it is gone or its key was touched, checks and corrects the key.
async fn renew_and_check(
    store: &Store,
    held: &mut Held,
    renew: bool,
    touched: &mut bool,
) -> Result<Settled, StoreError> {
    if let Some(lease) = held.etcd_lease.filter(|_| renew) {
        *touched |= !keep_alive(&store.servers, lease).await?;
    }
    if !*touched {
        return Ok(Settled::Kept { rewritten: false });
    }
    let settled = held.settle(store).await?;
    if settled == (Settled::Kept { rewritten: true }) {
        let subnet = held.key.to_string();
        warn!(
            subnet,
            "another program changed the lease of this node; restored it"
        );
    }
    Ok(settled)
}
