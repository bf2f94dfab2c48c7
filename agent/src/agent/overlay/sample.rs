//! The overlay's part of `/metrics`, besides the status.

use super::Overlay;
use crate::cluster::refusal::RefusalCode;
use crate::host::udp::Counters;
use crate::telemetry::metrics::{Peers, Tally};

impl Overlay {
    /// The number of peers, by state.
    pub(crate) fn count_peers(&self) -> Peers {
        Peers {
            used: self.peers(),
            failed: self.count_failed(),
            refused: self.count_refused(),
            leases: self.peers.others().count() + 1,
        }
    }

    /// The counters of the udp backend's data plane, if in use.
    pub(crate) fn data_plane_counters(&self) -> Option<Counters> {
        self.reconciler.executor().data_plane_counters()
    }

    /// The number of peers with missing kernel objects. Costs time only while there are any.
    fn count_failed(&self) -> usize {
        let failed_objects = &self.journal.failed_objects;
        if failed_objects.is_empty() && self.count_tunnels().is_none() {
            return 0;
        }
        let failed = |key: &_| {
            let objects = self.plan.peer(key);
            let mut keys = objects.iter().map(|(key, _)| key);
            keys.any(|key| failed_objects.contains_key(key)) || self.tunnel(&objects).1.is_some()
        };
        self.peers
            .peers()
            .filter(|lease| failed(&lease.key))
            .count()
    }

    fn count_refused(&self) -> Tally {
        // Each class is present from the start, so that a query for it returns 0 rather than nothing.
        let classes = RefusalCode::CLASSES.into_iter();
        let mut tally: Tally = classes.map(|class| (class, 0)).collect();
        let refused = self.peers.refusals().chain(self.plan.refused());
        for (_, refusal) in refused {
            *tally.entry(refusal.code().class()).or_default() += 1;
        }
        tally
    }
}
