//! What an event changed about the peers, and how it is logged.

use std::sync::Arc;

use tracing::{info, warn};

use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::refusal::PeerRefusal;

/// What an event changed. A peer is in at most one of the lists.
#[derive(Debug, Default)]
pub struct PeerChanges {
    /// New peers.
    pub added: Vec<Arc<Lease>>,
    /// Peers with changed attributes, or with a new lease for the same subnet.
    pub changed: Vec<PeerUpdate>,
    /// Former peers, with their last attributes.
    pub removed: Vec<Arc<Lease>>,
    /// Leases refused for the first time, or for a new reason.
    pub refused: Vec<(SubnetKey, PeerRefusal)>,
}

/// A peer before and after a change.
#[derive(Debug)]
pub struct PeerUpdate {
    /// Before.
    pub old: Arc<Lease>,
    /// After.
    pub new: Arc<Lease>,
}

impl PeerChanges {
    /// Whether the set of peers and their attributes are unchanged.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// Logs every peer that was added, changed or removed, and new refusals; only their numbers if there are many, as
    /// when the agent starts. A peer still `reached` through the former backend, because one side has not followed a
    /// change of backend yet, is neither logged as removed nor warned about.
    pub fn log(&self, reached: impl Fn(&SubnetKey) -> bool) {
        /// More log lines than this are less useful than their number.
        const LINES: usize = 16;
        let (added, changed) = (&self.added, &self.changed);
        let removed: Vec<_> = self
            .removed
            .iter()
            .filter(|peer| !reached(&peer.key))
            .collect();
        if added.len() + changed.len() + removed.len() > LINES {
            info!(
                added = added.len(),
                changed = changed.len(),
                removed = removed.len(),
                "peers changed"
            );
        } else {
            let changed = changed.iter().map(|update| &update.new);
            let peers = added.iter().map(|lease| (lease, "peer added"));
            let peers = peers.chain(changed.map(|lease| (lease, "peer changed")));
            let peers = peers.chain(removed.iter().map(|lease| (*lease, "peer removed")));
            for (lease, what) in peers {
                let public_ip = lease.attrs.public_address();
                info!(subnet = %lease.key, %public_ip, "{what}");
            }
        }
        for (key, refusal) in &self.refused {
            let subnet = key.to_string();
            match refusal {
                PeerRefusal::OtherBackend { theirs } if reached(key) => info!(
                    subnet,
                    theirs,
                    "peer has another backend than this node; it stays reachable through the former one until both have the same"
                ),
                refusal => warn!(subnet, "lease refused: {refusal}"),
            }
        }
    }
}
