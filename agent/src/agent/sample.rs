//! The agent's answer to `/metrics`: its status, plus counters used nowhere else.

use tokio::time::Instant;

use super::overlay::Overlay;
use super::{Agent, Tasks};
use crate::cluster::lease::{LeaseStore, StoreErrorKind};
use crate::telemetry::metrics::{Events, Sample, Tally};
use crate::telemetry::status::Status;

/// All counters at zero. Each kind is present from the start: a counter that first appears as 1 does not count as an
/// increase.
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
    /// The metrics until the loop runs.
    pub(super) fn sample_joining(&self, status: Status) -> Sample {
        Sample {
            task_failures: failures(&Tasks::default()),
            events: self.events.clone(),
            ..Sample::joining(status)
        }
    }

    /// The metrics.
    pub(super) async fn sample(&self, overlay: &mut Overlay, tasks: &Tasks) -> Sample {
        Sample {
            status: self.report(overlay, tasks, Vec::new()).await,
            at: Instant::now(),
            task_failures: failures(tasks),
            peers: Some(overlay.count_peers()),
            data_plane: overlay.data_plane_counters(),
            tunnels: overlay.count_tunnels(),
            events: self.events.clone(),
        }
    }
}

/// The number of failures of each task.
fn failures(tasks: &Tasks) -> Tally {
    let tasks = tasks.all().into_iter();
    tasks
        .map(|task| (task.name().as_str(), task.failures()))
        .collect()
}
