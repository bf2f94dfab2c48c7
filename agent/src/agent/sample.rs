//! What the agent answers to `/metrics`.

use super::overlay::Overlay;
use super::{Agent, Tasks, answers};
use crate::cluster::lease::{LeaseStore, StoreErrorKind};
use crate::telemetry::metrics::{Events, Lease, Sample, Store, Tally};

/// Nothing happened yet. Each kind is there from the start: a counter that appears with 1 looks as if it never went up.
pub(super) fn no_events() -> Events {
    Events {
        store_errors: StoreErrorKind::ALL
            .iter()
            .map(|kind| (kind.as_str(), 0))
            .collect(),
        ..Events::default()
    }
}

/// Counts a request that failed.
pub(super) fn count(events: &mut Events, kind: StoreErrorKind) {
    *events.store_errors.entry(kind.as_str()).or_default() += 1;
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
            troubles.push((task.name().as_str(), task.trouble().is_some()));
            task_failures.insert(task.name().as_str(), task.failures());
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
