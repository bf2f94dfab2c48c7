//! The lease store's events, while the overlay is up.

use tracing::{info, warn};

use super::overlay::Overlay;
use super::task::Tasks;
use super::{Agent, sample};
use crate::cluster::lease::{LeaseStore, StoreErrorKind, StoreEvent};
use crate::telemetry::status::{Coded, TaskName};

impl<S: LeaseStore> Agent<'_, S> {
    /// Applies an event.
    pub(super) async fn on_store(
        &mut self,
        overlay: &mut Overlay,
        event: StoreEvent,
        tasks: &mut Tasks,
    ) {
        match event {
            StoreEvent::Peers(event) => {
                if overlay.meets_duplicate(event.leases()) {
                    tasks.identity.at(self.next_identity);
                }
                tasks.programmed_part(overlay.apply(event).await);
            }
            StoreEvent::Renewed { .. } => {
                self.events.renewals += 1;
                tasks.renewal.done();
            }
            StoreEvent::RenewalFailed { error, .. } => {
                self.events.renewal_failures += 1;
                // The store retries by itself.
                tasks.renewal.stuck(&error);
            }
            StoreEvent::NetworkConfig(Ok(config)) => {
                self.new_config = Some(*config);
                tasks.config.now();
            }
            StoreEvent::NetworkConfig(Err(error)) => {
                self.new_config = None;
                self.events.configs_rejected += 1;
                // A retry is useless until the config changes again.
                tasks.config.stuck(&error);
            }
            StoreEvent::OwnLeaseLost { reason } => {
                warn!(subnet = %overlay.own().key, "{reason}");
                self.events.leases_lost += 1;
                self.lease = None;
                tasks.lease.now();
            }
            StoreEvent::AnotherHistory { reason } => self.note_history(reason),
            StoreEvent::Unreachable { error } => {
                warn!("lost the connection to the lease store: {error}");
                self.server = None;
                sample::count(&mut self.events, StoreErrorKind::Unreachable);
                self.store_trouble = Some(error.to_cause().of(TaskName::Store));
            }
            StoreEvent::Reachable { endpoint } => {
                info!(endpoint, "connected to the lease store");
                self.server = Some(endpoint);
                self.store_trouble = None;
            }
        }
    }

    pub(super) fn note_history(&mut self, reason: String) {
        warn!(
            "the lease store was restored from a backup or recreated; listed all leases again: {reason}"
        );
        self.history.changed(reason);
    }
}
