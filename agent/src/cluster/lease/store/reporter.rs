//! What a watcher reports about leases and servers, each thing once.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::state::State;
use super::{LeaseEvent, StoreEvent};
use crate::cluster::lease::{Lease, StoreTrouble, SubnetKey};

/// The receiver of the events is gone: the store was dropped.
#[derive(Debug)]
pub(in crate::cluster::lease) struct Closed;

/// What was last reported about the servers.
#[derive(PartialEq, Eq)]
enum Connectivity {
    Unknown,
    Reachable(String),
    Unreachable(StoreTrouble),
}

/// Sends the store's events to the agent. A lease that vanished during an outage is held back during the hold-down.
pub(in crate::cluster::lease) struct Reporter {
    state: Arc<State>,
    events: Sender<StoreEvent>,
    reported: Connectivity,
}

impl Reporter {
    pub(in crate::cluster::lease) fn new(state: Arc<State>, events: Sender<StoreEvent>) -> Self {
        Self {
            state,
            events,
            reported: Connectivity::Unknown,
        }
    }

    /// A server answers. Reported if it is the first, or a different one than before.
    pub(in crate::cluster::lease) async fn reachable(
        &mut self,
        endpoint: String,
    ) -> Result<(), Closed> {
        self.report(Connectivity::Reachable(endpoint)).await
    }

    /// No server answers. Reported once for each reason.
    pub(in crate::cluster::lease) async fn unreachable(
        &mut self,
        error: StoreTrouble,
    ) -> Result<(), Closed> {
        self.report(Connectivity::Unreachable(error)).await
    }

    async fn report(&mut self, connectivity: Connectivity) -> Result<(), Closed> {
        if self.reported == connectivity {
            return Ok(());
        }
        let event = match connectivity {
            Connectivity::Unknown => return Ok(()),
            Connectivity::Reachable(ref endpoint) => StoreEvent::Reachable {
                endpoint: endpoint.clone(),
            },
            Connectivity::Unreachable(ref error) => StoreEvent::Unreachable {
                error: error.clone(),
            },
        };
        self.reported = connectivity;
        self.send(event).await
    }

    /// All leases were listed; also the keys whose value cannot be parsed.
    pub(in crate::cluster::lease) async fn snapshot(
        &self,
        leases: Vec<Lease>,
        mut unreadable: Vec<SubnetKey>,
    ) -> Result<(), Closed> {
        let keys = leases.iter().map(|lease| lease.key);
        let keys = keys.chain(unreadable.iter().copied());
        let held = self.state.hold_down().listed(keys, Instant::now());
        unreadable.extend(held);
        let snapshot = LeaseEvent::Snapshot { leases, unreadable };
        self.send(StoreEvent::Peers(snapshot)).await
    }

    /// Leases were written (`Some`) or are gone (`None`).
    pub(in crate::cluster::lease) async fn changes(
        &self,
        changes: BTreeMap<SubnetKey, Option<Lease>>,
    ) -> Result<(), Closed> {
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        let now = Instant::now();
        for (key, lease) in changes {
            let mut hold_down = self.state.hold_down();
            match lease {
                Some(lease) => {
                    hold_down.set(key);
                    set.push(lease);
                }
                None if hold_down.removed(key, now) => removed.push(key),
                None => {}
            }
        }
        self.changed(set, removed).await
    }

    /// Waits until the hold-down ends; forever if nothing is held down. Cancel-safe.
    pub(in crate::cluster::lease) fn hold_down_ends(
        &self,
    ) -> impl Future<Output = ()> + Send + use<> {
        super::until(self.state.hold_down().due())
    }

    /// The hold-down ended: leases that were not taken again in time are gone.
    pub(in crate::cluster::lease) async fn gone(&self) -> Result<(), Closed> {
        let removed = self.state.hold_down().take_gone(Instant::now());
        self.changed(Vec::new(), removed).await
    }

    async fn changed(&self, set: Vec<Lease>, removed: Vec<SubnetKey>) -> Result<(), Closed> {
        if set.is_empty() && removed.is_empty() {
            return Ok(());
        }
        self.send(StoreEvent::Peers(LeaseEvent::Changes { set, removed }))
            .await
    }

    pub(in crate::cluster::lease) async fn send(&self, event: StoreEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}
