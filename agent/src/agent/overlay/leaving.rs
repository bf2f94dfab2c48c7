//! The way to the peers of before a change of back end, which stays until each of them has followed.
//!
//! All nodes read the changed network config at about the same time, but not at the same time: a peer is reached by the new
//! back end only when its new lease is there. Were the old objects removed at once, packets would take the default route
//! until then. A real flannel follows when it is restarted, and is reached in the old way for so long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::peers::PeerTable;
use crate::plan::backend::{Backend, table};
use crate::plan::state::State;

/// How long the devices stay after the last peer has followed: it may have sent before it heard of this node's new lease.
const LINGER: Duration = Duration::from_secs(10);

/// A back end that is no longer the network's, and the peers that are still reached by it.
#[derive(Debug)]
pub(super) struct Leaving {
    backend: Arc<dyn Backend>,
    peers: BTreeMap<SubnetKey, Arc<Lease>>,
    /// When it is over, once no peer is left.
    end: Option<Instant>,
}

impl Leaving {
    /// What is left of a back end for these peers, if both it and the next one can be there at a time.
    pub(super) fn new(
        former: &Arc<dyn Backend>,
        next: &dyn Backend,
        peers: impl Iterator<Item = Arc<Lease>>,
    ) -> Option<Self> {
        let stays = |kind| table::find(kind).is_some_and(|backend| backend.side_by_side);
        let differ = former.kind() != next.kind();
        (differ && stays(former.kind()) && stays(next.kind())).then(|| Self {
            backend: Arc::clone(former),
            peers: peers.map(|lease| (lease.key, lease)).collect(),
            end: None,
        })
    }

    /// The name of the back end.
    pub(super) fn kind(&self) -> &'static str {
        self.backend.kind()
    }

    /// Its devices.
    pub(super) fn links(&self) -> Vec<InterfaceName> {
        self.backend.scope().links
    }

    /// Whether a peer is still reached in the old way.
    pub(super) fn has(&self, key: &SubnetKey) -> bool {
        self.peers.contains_key(key)
    }

    /// Lets go of the peers that have followed, moved or ended. Whether it is over.
    pub(super) fn settle(&mut self, table: &PeerTable, now: Instant) -> bool {
        self.peers.retain(|key, lease| {
            table.latest(key).is_some_and(|latest| {
                latest.created == lease.created
                    && latest.attrs.backend_type == lease.attrs.backend_type
                    && latest.attrs.same_address(&lease.attrs)
            })
        });
        if !self.peers.is_empty() {
            return false;
        }
        now >= *self.end.get_or_insert(now + LINGER)
    }

    /// When it is over, once no peer is left.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Adds what is needed for it to what is wanted, which comes first.
    pub(super) fn add_to(&self, own: &SubnetKey, wanted: &mut State) {
        let peers = self.peers.values();
        let objects = peers
            .filter_map(|lease| self.backend.peer(lease).ok())
            .flatten();
        for (key, object) in self.backend.own(own).into_iter().chain(objects) {
            wanted.entry(key).or_insert(object);
        }
    }
}
