//! What the agent answers to `/metrics`: its status, and what is counted for nobody else.

use tokio::time::Instant;

use super::overlay::Overlay;
use super::{Agent, Tasks};
use crate::cluster::lease::{LeaseStore, StoreErrorKind};
use crate::telemetry::metrics::{Events, Sample, Tally};
use crate::telemetry::status::Status;

/// Nothing happened yet. Each kind is there from the start: a counter that appears with 1 looks as if it never went up.
pub(super) fn no_events() -> Events {
    let kinds = StoreErrorKind::ALL.iter();
    Events {
        store_errors: kinds.map(|kind| (kind.as_str(), 0)).collect(),
        ..Events::default()
    }
}

/// Counts a request that failed.
pub(super) fn count(events: &mut Events, kind: StoreErrorKind) {
    *events.store_errors.entry(kind.as_str()).or_default() += 1;
}

impl<S: LeaseStore> Agent<'_, S> {
    /// What there is to show until the loop runs.
    pub(super) fn sample_joining(&self, status: Status) -> Sample {
        Sample {
            task_failures: failures(&Tasks::default()),
            events: self.events.clone(),
            ..Sample::joining(status)
        }
    }

    /// What there is to show.
    pub(super) async fn sample(&self, overlay: &mut Overlay, tasks: &Tasks) -> Sample {
        Sample {
            status: self.report(overlay, tasks, Vec::new()).await,
            at: Instant::now(),
            task_failures: failures(tasks),
            peers: Some(overlay.count_peers()),
            data_plane: overlay.data_plane_counters(),
            events: self.events.clone(),
        }
    }
}

/// How often each task failed.
fn failures(tasks: &Tasks) -> Tally {
    let tasks = tasks.all().into_iter();
    tasks
        .map(|task| (task.name().as_str(), task.failures()))
        .collect()
}
