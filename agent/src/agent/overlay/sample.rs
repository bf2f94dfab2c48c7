//! The overlay's part in `/metrics`.

use std::time::Duration;

use super::Overlay;
use crate::cluster::peers::Refusal;
use crate::host::udp::Counters;
use crate::telemetry::metrics::{self, Tally};

impl Overlay {
    /// What metrics show; `interval` is the longest time between two resyncs.
    pub(crate) fn sample(&self, interval: Duration) -> metrics::Overlay {
        let (firewall_updates, _) = self.journal.firewall;
        metrics::Overlay {
            backend: self.backend.kind(),
            firewall: self.firewall_mode.map(|mode| mode.to_string()),
            underlay: self.underlay.name.to_string(),
            peers: self.peers(),
            peers_failed: self.count_failed(),
            refused: self.count_refused(),
            leases: self.peers.others().count() + 1,
            subnets: self.config.subnets(),
            kernel: self.reconciler.totals(),
            troubled: self.journal.troubled.len(),
            resyncs: self.journal.resyncs,
            resync_total: self.journal.resync_total,
            resync_last: self.journal.resync,
            resync_interval: interval,
            firewall_updates,
        }
    }

    /// What went through the udp back end's data plane, if there is one.
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
        const KINDS: [&str; 9] = [
            "outside-network",
            "other-family",
            "overlaps-own",
            "overlaps-older",
            "public-ip",
            "our-public-ip",
            "other-backend",
            "backend-data",
            "not-programmable",
        ];
        let [
            outside,
            family,
            own,
            older,
            address,
            ours,
            backend,
            data,
            unplanned,
        ] = KINDS;
        // Each kind is there from the start, so that a query for it finds 0 and not nothing.
        let mut tally: Tally = KINDS.into_iter().map(|kind| (kind, 0)).collect();
        let refused = self.peers.refusals().map(|(_, refusal)| match refusal {
            Refusal::OutsideNetwork => outside,
            Refusal::OtherFamily => family,
            Refusal::OverlapsOwn(_) | Refusal::HoldsHost(_) => own,
            Refusal::OverlapsOlder(_)
            | Refusal::MeetsOlder(_)
            | Refusal::MovesInto(_)
            | Refusal::Copies { .. } => older,
            Refusal::PublicIp { .. } => address,
            Refusal::OurPublicIp => ours,
            Refusal::OtherBackend { .. } => backend,
            Refusal::BackendData(_) => data,
        });
        for kind in refused.chain(self.plan.refused().map(|_| unplanned)) {
            *tally.entry(kind).or_default() += 1;
        }
        tally
    }
}
