//! What an event changed about the peers, and how the log has it.

use std::sync::Arc;

use tracing::{info, warn};

use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::refusal::PeerRefusal;

/// What an event changed. A peer is in at most one of the lists.
#[derive(Debug, Default)]
pub struct PeerChanges {
    /// New peers.
    pub added: Vec<Arc<Lease>>,
    /// Peers with other attributes, or another lease for the same subnet.
    pub changed: Vec<PeerUpdate>,
    /// Former peers, as they were.
    pub removed: Vec<Arc<Lease>>,
    /// Leases refused for the first time, or for another reason than before.
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
    /// Whether the set of peers and their attributes are as before.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// Logs every peer that came, changed or went, and the new refusals. Where many do at once, as when the agent starts,
    /// the log has their numbers. A peer that is `reached` all the same, since one side has not followed a change of the back
    /// end yet, is no trouble.
    pub fn log(&self, reached: impl Fn(&SubnetKey) -> bool) {
        /// More lines than these say no more than their number does.
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
                    "peer has another back end than this node; it is reached as before until both have the same"
                ),
                refusal => warn!(subnet, "lease of another node is not used: {refusal}"),
            }
        }
    }
}
