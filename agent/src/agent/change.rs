//! Changes at run time, from the loop's side: the underlay, the network config, the node's identity.

use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::overlay::{ConnectError, Overlay};
use super::task::Tasks;
use super::{Agent, sample};
use crate::cluster::lease::{LeaseStore, StoreError, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::host::open::{self, OpenError};
use crate::telemetry::status::{Cause, Coded};

impl<S: LeaseStore> Agent<'_, S> {
    /// Checks the underlay; if it changed, updates the kernel at once and the peers as soon as possible.
    pub(super) async fn follow_underlay(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        let former = overlay.underlay_addresses();
        match overlay.follow_underlay(&self.prescribed_settings()).await {
            Ok(moved) => {
                tasks.underlay.done();
                if overlay.underlay_addresses() != former {
                    self.store.reconnect();
                }
                if moved {
                    tasks.publish.now();
                    tasks.programmed_all(overlay.program().await);
                }
            }
            Err(error) => tasks.underlay.failed(&error),
        }
    }

    /// Applies the latest network config, as far as possible with the present subnet.
    pub(super) async fn follow_config(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        // Only the command of the latest config counts; this ends an older one.
        self.preparing = JoinSet::new();
        let Some(config) = self.new_config.clone() else {
            tasks.config.done();
            return;
        };
        match overlay.first_command(&self.privileges, &config) {
            Ok(None) => self.apply_config(overlay, config, None, tasks).await,
            Ok(Some(command)) => {
                tasks.config.started();
                self.preparing.spawn(async move {
                    let printed = open::output(&command).await;
                    (config, printed)
                });
            }
            Err(error) => self.config_failed(&error, tasks),
        }
    }

    /// Continues when the first command of the latest config has ended.
    pub(super) async fn prepared(
        &mut self,
        overlay: &mut Overlay,
        (config, printed): (NetworkConfig, Result<String, OpenError>),
        tasks: &mut Tasks,
    ) {
        // Another config, valid or not, was written meanwhile and is handled on its own.
        if self.new_config.as_ref() != Some(&config) {
            return;
        }
        match printed {
            Ok(printed) => {
                self.apply_config(overlay, config, Some(printed), tasks)
                    .await;
            }
            Err(error) => self.config_failed(&error.into(), tasks),
        }
    }

    async fn apply_config(
        &mut self,
        overlay: &mut Overlay,
        config: NetworkConfig,
        printed: Option<String>,
        tasks: &mut Tasks,
    ) {
        match overlay
            .follow_config(
                &self.prescribed_settings(),
                &self.privileges,
                config,
                printed,
            )
            .await
        {
            Ok(changed) => {
                tasks.config.done();
                self.new_config = None;
                if changed {
                    tasks.publish.now();
                    tasks.programmed_all(overlay.program().await);
                    if overlay.cloud_trouble().is_ok() {
                        // That of the backend before.
                        tasks.cloud_routes.done();
                    }
                }
            }
            Err(error) => self.config_failed(&error, tasks),
        }
    }

    fn config_failed(&mut self, error: &ConnectError, tasks: &mut Tasks) {
        if error.is_transient() {
            tasks.config.failed(error);
        } else {
            self.events.configs_rejected += 1;
            tasks.config.stuck(error);
        }
    }

    /// Generates a new MAC address or key if another node has this one's and peers use that node's lease.
    pub(super) async fn renew_identity(&mut self, overlay: &mut Overlay, tasks: &mut Tasks) {
        let Some(duplicate) = overlay.duplicate_to_yield_to() else {
            tasks.identity.done();
            return;
        };
        warn_of_duplicate(duplicate);
        match overlay
            .renew_identity(&self.prescribed_settings(), &self.privileges)
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

    /// Publishes this node's attributes. A lost lease is published when it is taken again.
    pub(super) fn publish(&mut self, overlay: &Overlay, tasks: &mut Tasks) {
        tasks.publish.started();
        let publishing = self.store.update(&overlay.lease_attrs());
        self.publishing.spawn(publishing);
    }

    /// Handles the result of [`Self::publish`].
    pub(super) fn published(&mut self, outcome: Result<(), StoreError>, tasks: &mut Tasks) {
        let outcome = match outcome {
            Err(StoreError::NoLease { .. }) => Ok(()),
            outcome => outcome,
        };
        if let Err(error) = &outcome {
            sample::count(&mut self.events, error.kind());
        }
        tasks.publish.ended(outcome.as_ref());
    }

    /// Generates and publishes another MAC address or key than another node's, before the peers are programmed.
    pub(super) async fn change_identity(
        &mut self,
        overlay: &mut Overlay,
        duplicate: SubnetKey,
    ) -> Result<(), Cause> {
        warn_of_duplicate(duplicate);
        overlay
            .renew_identity(&self.prescribed_settings(), &self.privileges)
            .await
            .map_err(|error| error.to_cause())?;
        let published = self.store.update(&overlay.lease_attrs()).await;
        published.map_err(|error| error.to_cause())
    }
}

fn warn_of_duplicate(duplicate: SubnetKey) {
    warn!(
        "the lease of {duplicate} has this node's MAC address or key, as after cloning a disk; generating and publishing a new one"
    );
}
