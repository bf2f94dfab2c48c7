//! What the agent answers to `/metrics`.

use super::overlay::Overlay;
use super::{Agent, Tasks, answers};
use crate::cluster::lease::{LeaseStore, StoreError};
use crate::telemetry::metrics::{Events, Lease, Sample, Store, Tally};

/// The kinds of [`StoreError`], as metrics call them.
const STORE_ERRORS: [&str; 9] = [
    "unreachable",
    "refused",
    "no-network-config",
    "bad-network-config",
    "out-of-subnets",
    "lost-races",
    "no-lease",
    "config-changed",
    "encode",
];

/// Nothing happened yet. Each kind is there from the start: a counter that appears with 1 looks as if it never went up.
pub(super) fn no_events() -> Events {
    Events {
        store_errors: STORE_ERRORS.into_iter().map(|kind| (kind, 0)).collect(),
        ..Events::default()
    }
}

fn kind(error: &StoreError) -> &'static str {
    let [
        unreachable,
        refused,
        no_config,
        bad_config,
        exhausted,
        races,
        no_lease,
        changed,
        encode,
    ] = STORE_ERRORS;
    match error {
        StoreError::Unreachable { .. } => unreachable,
        StoreError::Refused { .. } => refused,
        StoreError::NoNetworkConfig { .. } => no_config,
        StoreError::BadNetworkConfig { .. } => bad_config,
        StoreError::OutOfSubnets(_) => exhausted,
        StoreError::LostRaces { .. } => races,
        StoreError::NoLease { .. } => no_lease,
        StoreError::ConfigChanged { .. } => changed,
        StoreError::Encode(_) => encode,
    }
}

/// Counts a request that failed.
pub(super) fn count(events: &mut Events, error: &StoreError) {
    *events.store_errors.entry(kind(error)).or_default() += 1;
}

impl<S: LeaseStore> Agent<'_, S> {
    /// What there is to show until the loop runs.
    pub(super) fn sample_joining(&self) -> Sample {
        let nothing = Tasks::default();
        self.sample_process(&nothing, true)
    }

    /// What there is to show.
    pub(super) async fn sample(&self, overlay: &mut Overlay, tasks: &Tasks) -> Sample {
        let tenure = self.store.tenure();
        let lease = Lease {
            held: self.holds_lease(tasks),
            since: overlay.lease().since_time,
            ttl: tenure.ttl,
            expires: tenure.expires,
        };
        Sample {
            lease: Some(lease),
            overlay: Some(overlay.sample(self.settings.agent.resync)),
            devices: overlay.devices().await,
            data_plane: overlay.data_plane_counters(),
            ..self.sample_process(tasks, false)
        }
    }

    /// What does not hang on the overlay.
    fn sample_process(&self, tasks: &Tasks, joining: bool) -> Sample {
        let mut troubles = vec![
            ("joining", joining),
            ("store", self.store_trouble.is_some()),
        ];
        let mut task_failures = Tally::new();
        for task in tasks.all() {
            troubles.push((task.name(), task.trouble().is_some()));
            task_failures.insert(task.name(), task.failures());
        }
        troubles.push(("docker", answers::trouble(&self.docker).is_some()));
        Sample {
            joining,
            started: self.process.started_time,
            troubles,
            task_failures,
            store: Store {
                kind: match self.settings.remote.servers.is_empty() {
                    true => "etcd",
                    false => "remote",
                },
                server: self.server.clone(),
            },
            clock_jumps: self.clock.seen().jumps,
            events: self.events.clone(),
            ..Sample::default()
        }
    }
}
