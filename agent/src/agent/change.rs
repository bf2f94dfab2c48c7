//! What changes while the agent runs, from the loop's side: the underlay, the network config, the node's identity.

use tokio::time::Instant;
use tracing::warn;

use super::overlay::{self, Overlay, Place};
use super::task::Tasks;
use super::{Agent, sample};
use crate::cluster::lease::{LeaseAttrs, LeaseStore, StoreError, SubnetKey};
use crate::host::netlink::Kernel;
use crate::telemetry::status::{Cause, Coded};

impl<S: LeaseStore> Agent<'_, S> {
    /// Looks at the underlay again; when it is not what it was, tells the kernel at once and the peers as soon as can be.
    pub(super) async fn follow_underlay(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        match overlay.follow_underlay(&self.settings).await {
            Ok(moved) => {
                tasks.underlay.done();
                if moved {
                    tasks.publish.now();
                    tasks.programmed_all(overlay.program().await);
                }
            }
            Err(error) => tasks.underlay.failed(&error),
        }
    }

    /// Applies the network config that was written last, as far as that is possible without another subnet.
    pub(super) async fn follow_config(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        let Some(config) = self.new_config.clone() else {
            tasks.config.done();
            return;
        };
        match overlay
            .follow_config(&self.settings, &self.privileges, config)
            .await
        {
            Ok(changed) => {
                tasks.config.done();
                self.new_config = None;
                if changed {
                    tasks.publish.now();
                    tasks.programmed_all(overlay.program().await);
                }
            }
            Err(error) if error.may_heal() => tasks.config.failed(&error),
            Err(error) => {
                self.events.configs_rejected += 1;
                tasks.config.stuck(&error);
            }
        }
    }

    /// Makes this node another MAC address or key if an older node has its own: the peers believe that one.
    pub(super) async fn renew_identity(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        let Some(elder) = overlay.elder_twin() else {
            tasks.identity.done();
            return;
        };
        warn_of_elder(elder);
        match overlay
            .renew_identity(&self.settings, &self.privileges)
            .await
        {
            Ok(()) => {
                tasks.identity.done();
                self.next_identity = Instant::now() + self.identity_pauses.next_delay();
                tasks.publish.now();
                tasks.programmed_all(overlay.program().await);
            }
            Err(error) => tasks.identity.failed(&error),
        }
    }

    /// Tells the peers where this node is now. A lost lease is published when it is taken again.
    pub(super) async fn publish(&mut self, overlay: &Overlay, tasks: &mut Tasks) {
        match self.store.update(&overlay.lease_attrs()).await {
            Ok(()) => tasks.publish.done(),
            Err(StoreError::NoLease { .. }) => tasks.publish.done(),
            Err(error) => {
                sample::count(&mut self.events, error.kind());
                tasks.publish.failed(&error);
            }
        }
    }

    /// Makes the MAC address or key another than that of an older node, before it is programmed, and publishes it.
    pub(super) async fn differ(
        &mut self,
        place: &mut Place,
        elder: SubnetKey,
        kernel: &mut Kernel,
    ) -> Result<(), Cause> {
        warn_of_elder(elder);
        let (underlay, host, backend) = overlay::connect(
            &self.settings,
            &self.privileges,
            &place.config,
            true,
            kernel,
        )
        .await
        .map_err(|error| error.to_cause())?;
        let attrs = backend.lease_attrs();
        self.store
            .update(&attrs)
            .await
            .map_err(|error| error.to_cause())?;
        place.own.attrs = LeaseAttrs {
            owner: place.own.attrs.owner.take(),
            ..attrs
        };
        (place.underlay, place.host, place.backend) = (underlay, host, backend);
        Ok(())
    }
}

fn warn_of_elder(elder: SubnetKey) {
    warn!(
        "the older lease of {elder} has this node's MAC address or key, as that of a cloned disk does; this node makes itself another and publishes it"
    );
}
