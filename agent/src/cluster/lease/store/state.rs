//! What the tasks of a store share, whatever service keeps the leases.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Expiry;
use super::hold_down::HoldDown;
use super::spread::longest_before_list;
use crate::cluster::lease::SubnetKey;

/// State shared by the watcher, the keeper and the store's methods.
#[derive(Debug)]
pub(in crate::cluster::lease) struct State {
    /// The hold-down: how long a lease that vanished during an outage still counts.
    grace: Duration,
    hold_down: Mutex<HoldDown>,
    expiry: Mutex<Expiry>,
    touched: Notify,
}

impl State {
    pub(in crate::cluster::lease) fn new(grace: Duration) -> Self {
        Self {
            grace,
            hold_down: Mutex::default(),
            expiry: Mutex::default(),
            touched: Notify::new(),
        }
    }

    pub(in crate::cluster::lease) fn hold_down(&self) -> MutexGuard<'_, HoldDown> {
        // Valid at every step, so a panic elsewhere does not spoil it.
        self.hold_down
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the hold-down: leases that vanished still count for as long as their owners may wait before they take them
    /// again.
    pub(in crate::cluster::lease) fn start_hold_down(&self) {
        let mut hold_down = self.hold_down();
        let owners_wait = longest_before_list(hold_down.population());
        hold_down.start(Instant::now() + self.grace + owners_wait);
    }

    /// The own lease is lost. Others may be too, and their owners are taking them again: start the hold-down.
    pub(in crate::cluster::lease) fn lost(&self, own: &SubnetKey) {
        self.hold_down().forget(own);
        self.start_hold_down();
    }

    /// The TTL and expiry of the own lease, as far as known.
    pub(in crate::cluster::lease) fn expiry(&self) -> Expiry {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The own lease was renewed for this long from now; `None` for a reservation.
    pub(in crate::cluster::lease) fn renewed(&self, ttl: Option<Duration>) {
        let expires = ttl.map(|ttl| Instant::now() + ttl);
        self.set_expiry(Expiry { ttl, expires });
    }

    pub(in crate::cluster::lease) fn set_expiry(&self, expiry: Expiry) {
        *self.expiry.lock().unwrap_or_else(PoisonError::into_inner) = expiry;
    }

    /// The own lease may not be as wanted: wakes the keeper.
    pub(in crate::cluster::lease) fn touch(&self) {
        self.touched.notify_one();
    }

    /// Waits for [`Self::touch`]; returns at once if it was called while nobody waited. Cancel-safe.
    pub(in crate::cluster::lease) async fn touched(&self) {
        self.touched.notified().await;
    }
}
