//! Joining the overlay: whatever is missing is waited for, and every attempt starts over.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::overlay::{self, CloudRoutes, EarlierRun, Membership, Overlay, Programmed};
use super::{Agent, node_faults, sample, task};
use crate::base::logging::chain;
use crate::cluster::lease::{LeaseEvent, LeaseStore, Past, StoreError, StoreEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::host::executor::Executor;
use crate::host::subnet_file;
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code, Coded};

/// How long the list of peers may take before this host begins without it. The store of etcd has the list at once, and
/// a cluster of some hundred nodes takes no longer.
const HEAD_START: Duration = Duration::from_millis(10);

impl<S: LeaseStore> Agent<'_, S> {
    /// Joins the overlay, however long that takes, and programs the host. Some peers may still have to be programmed.
    pub(super) async fn join(&mut self, mut executor: Executor) -> (Overlay, Programmed) {
        self.report_joining(Cause::new(Code::Starting, "starting"));
        let mut retry = task::new_retry();
        let mut cloud = CloudRoutes::new(&self.settings.files.state_dir);
        loop {
            let reason = match self.become_member(&mut executor).await {
                Ok(membership) => {
                    let mut overlay = Overlay::new(&self.settings, membership, (executor, cloud));
                    match self.enter(&mut overlay).await {
                        Ok(programmed) => return (overlay, programmed),
                        Err(reason) => {
                            (executor, cloud) = overlay.into_parts();
                            reason
                        }
                    }
                }
                Err(reason) => reason,
            };
            if let Some(line) = self.waits.note(&reason.text, Instant::now()) {
                warn!("waiting to join: {line}");
            }
            // Compare code and object, not the text: a hook's output may differ each time.
            let what = (reason.code, reason.object.clone());
            self.report_waiting(reason);
            if self.waiting.as_ref() != Some(&what) {
                self.waiting = Some(what);
                retry.done();
            }
            retry.schedule();
            tokio::select! {
                () = retry.due() => (),
                Some(()) = self.hangup.recv() => self.reload().await,
            }
        }
    }

    /// Reports what joining waits for.
    fn report_waiting(&mut self, reason: Cause) {
        self.store
            .publish_health(false, || node_faults(std::slice::from_ref(&reason)));
        let reason = reason.worded(|text| format!("waiting to join: {text}"));
        self.service.status(&reason.text);
        self.health.set_ready(vec![reason.clone()]);
        self.report_joining(reason);
    }

    /// Attempts once everything that comes before programming; the error says what is missing.
    async fn become_member(&mut self, executor: &mut Executor) -> Result<Membership, Cause> {
        let config = self.store.network_config().await;
        let config = config.map_err(|error| self.store_failed(&error))?;
        let (underlay, host, backend) = overlay::connect(
            &self.prescribed_settings(),
            &self.privileges,
            &config,
            false,
            executor,
        )
        .await
        .map_err(|error| error.to_cause())?;
        let earlier_run = EarlierRun::find(&self.settings, executor.kernel_mut(), &backend.scope())
            .await
            .map_err(|error| error.to_cause())?;
        let past = Past {
            previous: previous_subnet(&self.settings),
            has_own_address: underlay.has_own_address(),
        };
        self.store.set_avoid(host.avoid());
        let own = self.acquire(&config, &backend.lease_attrs(), past).await;
        let own = own.map_err(|error| self.store_failed(&error))?;
        self.log_lease(own.key, own.attrs.public_address());
        Ok(Membership {
            config,
            underlay,
            host,
            backend,
            own,
            earlier_run,
        })
    }

    /// Programs the host once the peers are known; what it needs for itself sooner, if they take long.
    async fn enter(&mut self, overlay: &mut Overlay) -> Result<Programmed, Cause> {
        let config = overlay.config().clone();
        let leases = {
            let mut listed = pin!(self.first_snapshot(&config));
            tokio::select! {
                leases = &mut listed => leases,
                () = sleep(HEAD_START) => {
                    overlay.prepare().await;
                    listed.await
                }
            }
        }?;
        // Yield even to younger leases: peers that already use such a lease keep it, while few know this node's yet.
        let duplicate = overlay::duplicates(overlay.own(), leases.leases()).next();
        if let Some(duplicate) = duplicate.map(|lease| lease.key) {
            self.change_identity(overlay, duplicate).await?;
        }
        overlay.begin(leases);
        overlay.join().await
    }

    /// Waits for the list of peers: without it, a restarted agent would treat their kernel objects as stale.
    async fn first_snapshot(&mut self, config: &NetworkConfig) -> Result<LeaseEvent, Cause> {
        loop {
            match self.store.next_event().await {
                StoreEvent::Peers(event @ LeaseEvent::Snapshot { .. }) => return Ok(event),
                StoreEvent::Peers(LeaseEvent::Changes { .. })
                | StoreEvent::Renewed { .. }
                | StoreEvent::RenewalFailed { .. } => (),
                StoreEvent::NetworkConfig(Ok(now)) if *now == *config => (),
                StoreEvent::NetworkConfig(_) => {
                    return Err(Cause::new(
                        Code::NetworkConfigChanged,
                        "the network config changed meanwhile",
                    ));
                }
                StoreEvent::OwnLeaseLost { reason } => {
                    return Err(Cause::new(Code::LeaseLost, reason));
                }
                StoreEvent::AnotherHistory { reason } => self.note_history(reason),
                StoreEvent::Unreachable { error } => self.report_waiting(error.to_cause()),
                StoreEvent::Reachable { endpoint } => self.server = Some(endpoint),
            }
        }
    }

    fn store_failed(&mut self, error: &StoreError) -> Cause {
        sample::count(&mut self.events, error.kind());
        error.to_cause()
    }
}

/// The subnet in `subnet.env` from an earlier run.
fn previous_subnet(settings: &Settings) -> Option<SubnetKey> {
    match subnet_file::read_previous(&settings.files.subnet_file) {
        Ok(previous) => {
            let key = SubnetKey::new(previous.subnet, previous.subnet_v6);
            key.nets().next().is_some().then_some(key)
        }
        Err(error) => {
            warn!("ignoring the previous subnet file: {}", chain(&error));
            None
        }
    }
}
