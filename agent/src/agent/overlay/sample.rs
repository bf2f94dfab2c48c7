//! The overlay's part in `/metrics`, beside its status.

use super::Overlay;
use crate::cluster::refusal::RefusalCode;
use crate::host::udp::Counters;
use crate::telemetry::metrics::{Peers, Tally};

impl Overlay {
    /// How many peers there are, and how they are.
    pub(crate) fn count_peers(&self) -> Peers {
        Peers {
            used: self.peers(),
            failed: self.count_failed(),
            refused: self.count_refused(),
            leases: self.peers.others().count() + 1,
        }
    }

    /// What went through the udp backend's data plane, if there is one.
    pub(crate) fn data_plane_counters(&self) -> Option<Counters> {
        self.reconciler.executor().data_plane_counters()
    }

    /// How many peers the kernel lacks something for. Costs something only while it does for any.
    fn count_failed(&self) -> usize {
        let troubled = &self.journal.troubled;
        if troubled.is_empty() {
            return 0;
        }
        let failed = |key: &_| {
            let mut objects = self.plan.peer(key).iter();
            objects.any(|(key, _)| troubled.contains_key(key))
        };
        self.peers
            .peers()
            .filter(|lease| failed(&lease.key))
            .count()
    }

    fn count_refused(&self) -> Tally {
        // Each class is there from the start, so that a query for it finds 0 and not nothing.
        let classes = RefusalCode::CLASSES.into_iter();
        let mut tally: Tally = classes.map(|class| (class, 0)).collect();
        let refused = self.peers.refusals().chain(self.plan.refused());
        for (_, refusal) in refused {
            *tally.entry(refusal.code().class()).or_default() += 1;
        }
        tally
    }
}
