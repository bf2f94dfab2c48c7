//! Which leases have which MAC address or key.
//!
//! Needed only when an update changes one, which is rare: the index is built at the first query and maintained from
//! then on, so that ten thousand peers that only come and go cost nothing.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::cluster::lease::{Lease, SubnetKey};

/// The leases by the hash of their MAC address or key; the caller compares the text itself.
#[derive(Debug, Default)]
pub(super) struct IdentityIndex(Option<BTreeSet<(u64, SubnetKey)>>);

impl IdentityIndex {
    /// The leases that may have this MAC address or key. `all` are all sound leases, to build the index from.
    pub(super) fn of<'a>(
        &mut self,
        identity: &str,
        all: impl Iterator<Item = &'a Arc<Lease>>,
    ) -> impl Iterator<Item = SubnetKey> {
        let known = self
            .0
            .get_or_insert_with(|| all.flat_map(|lease| entries(lease)).collect());
        let hash = hash(identity);
        let lowest = SubnetKey { v4: None, v6: None };
        let from = known.range((hash, lowest)..);
        from.take_while(move |(of, _)| *of == hash)
            .map(|(_, key)| *key)
    }

    pub(super) fn insert(&mut self, lease: &Lease) {
        if let Some(known) = &mut self.0 {
            known.extend(entries(lease));
        }
    }

    pub(super) fn remove(&mut self, lease: &Lease) {
        if let Some(known) = &mut self.0 {
            for entry in entries(lease) {
                known.remove(&entry);
            }
        }
    }
}

fn entries(lease: &Lease) -> impl Iterator<Item = (u64, SubnetKey)> + use<> {
    let key = lease.key;
    let identities = lease.attrs.identities().into_iter();
    identities.map(move |(identity, _)| (hash(&identity), key))
}

fn hash(identity: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    hasher.finish()
}
