//! The own lease, from the loop's side: taken again when lost, and given back at the end.

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{info, warn};

use super::overlay::Overlay;
use super::task::Tasks;
use super::{Agent, sample};
use crate::base::logging::chain;
use crate::cluster::lease::DEADLINE;
use crate::cluster::lease::{
    Lease, LeaseAttrs, LeaseStore, Past, Released, StoreError, SubnetKey, allocate,
};
use crate::cluster::network_config::NetworkConfig;

/// How long to wait for a lease being taken when the agent ends: as long as one request to etcd.
const LAST_WAIT: Duration = DEADLINE;

impl<S: LeaseStore> Agent<'_, S> {
    /// Takes a lease and holds it. If the agent ends meanwhile, [`Self::leave`] handles the result.
    pub(super) async fn acquire(
        &mut self,
        config: &NetworkConfig,
        attrs: &LeaseAttrs,
        past: Past,
    ) -> Result<Lease, StoreError> {
        let taking = self.store.take(config, attrs, past);
        self.acquiring.spawn(taking);
        match self.acquiring.join_next().await {
            Some(Ok(taken)) => Ok(self.store.hold(taken?).await),
            Some(Err(ended)) => resume_unwind(ended.into_panic()),
            // Unreachable: one was spawned above.
            None => std::future::pending().await,
        }
    }

    /// Takes a lease again after the own one was lost: the same subnet if it is still free.
    pub(super) fn acquire_again(&mut self, overlay: &Overlay, tasks: &mut Tasks) {
        tasks.lease.started();
        if self.acquiring.is_empty() {
            let attrs = overlay.lease_attrs();
            let past = Past {
                previous: Some(overlay.own().key),
                has_own_address: overlay.has_own_address(),
            };
            self.store.set_avoid(overlay.avoid());
            let taking = self.store.take(overlay.config(), &attrs, past);
            self.acquiring.spawn(taking);
        }
    }

    /// Continues with a lease that was taken.
    pub(super) async fn acquired(
        &mut self,
        overlay: &mut Overlay,
        outcome: Result<S::Taken, StoreError>,
        tasks: &mut Tasks,
    ) {
        let old = overlay.own().key;
        match outcome {
            Ok(taken) => {
                let own = self.store.hold(taken).await;
                if !allocate::allows(overlay.config(), &own.key) {
                    // The network config changed meanwhile; the next attempt gives this lease up.
                    tasks.lease.now();
                    return;
                }
                tasks.lease.done();
                tasks.renewal.done();
                self.log_lease(own.key, own.attrs.public_address());
                if own.key != old {
                    self.events.renumberings += 1;
                    warn!(
                        old_subnet = %old,
                        subnet = %own.key,
                        "this host has another subnet now; containers keep the old one until Docker restarts"
                    );
                }
                overlay.set_own(own);
                // The underlay may have changed meanwhile.
                tasks.publish.now();
                tasks.programmed_all(overlay.program().await);
            }
            Err(error) => {
                sample::count(&mut self.events, error.kind());
                tasks.lease.failed(&error);
            }
        }
    }

    /// Gives the subnet back. One attempt only, since the service manager waits for it.
    pub(super) async fn leave(&mut self) {
        // Wait for a lease that is being taken: it would outlive the one given back.
        let taken = timeout(LAST_WAIT, self.acquiring.join_next()).await;
        if let Ok(Some(Ok(Ok(taken)))) = taken {
            self.store.hold(taken).await;
        }
        self.acquiring.shutdown().await;
        match self.store.release().await {
            Ok(Released::Lease(subnet)) => info!(%subnet, "lease released"),
            Ok(Released::Reservation(subnet)) => info!(%subnet, "reservation kept"),
            Ok(Released::Nothing) => (),
            Err(error) => warn!("failed to release the lease: {}", chain(&error)),
        }
    }

    pub(super) fn log_lease(&mut self, subnet: SubnetKey, public_ip: IpAddr) {
        if self.lease.replace(subnet) != Some(subnet) {
            info!(subnet = %subnet, public_ip = %public_ip, "lease acquired");
        }
    }
}
