//! The peers: leases of other nodes that may be used.
//!
//! What other nodes publish is untrusted. A lease is accepted if its subnet is inside the network and covers no address
//! of this host, its public IP is a usable address of another host, its backend is ours and can use its data, and no
//! older lease claims any of its addresses; the own lease counts as older than all. Everything else is refused, and
//! reported once.
//!
//! A public IP may be inside the overlay network, which may be as wide as the site that it is in. But packets to an
//! address in a node's subnet are encapsulated for that node: if a subnet covers another node's public IP, the older
//! lease wins.
//!
//! Bad input removes no peer:
//!
//! * An update that would make an accepted lease unacceptable is refused, and its last good attributes stay in use for
//!   as long as the lease exists.
//! * A lease that overlaps an older one waits, and is accepted when the older one is gone.
//! * If an update claims something that another lease in use has, the other lease keeps it, whichever of the two is
//!   older: the update is refused until the other releases the claim. This applies to a public IP in its subnet, and to
//!   its MAC address or key. A lease that has since published something else has released its claim, so two nodes may
//!   swap.
//!
//! Between leases seen for the first time only age decides, since it is unknown which node had a claim first. This is
//! the case on a node that has just started. The losing node generates another MAC address or key if it runs this
//! agent. One case is refused wrongly: an older node that was given the MAC address or key of a node that is gone for
//! good is refused until that node's lease expires. Its agent generates another one when it starts.
//!
//! Refused leases are remembered: when the own lease or the backend changes, all leases are judged again without a
//! request to the store.
//!
//! The table is pure. A change costs O(log n) to find overlaps, plus time proportional to what it changes. A released
//! claim also costs a look at every refused and every waiting lease.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::cluster::host_nets::HostNets;
use crate::cluster::lease::allocate::overlap;
use crate::cluster::lease::{Lease, LeaseEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;

mod changes;
mod claims;
mod identity_index;
mod judge;

pub use changes::{PeerChanges, PeerUpdate};
use claims::{Claim, Claims};
use identity_index::IdentityIndex;

/// The backend's check of a peer's lease: why it cannot use it. Called only for leases with its own backend type.
pub type CheckPeer = Box<dyn Fn(&Lease) -> Result<(), PeerRefusal> + Send + Sync>;

/// How a lease is judged.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Seen for the first time, or the first time after the rules changed: its age decides.
    New,
    /// Known before, perhaps with other attributes.
    Known,
}

/// The leases of the other nodes, accepted or not.
pub struct PeerTable {
    network: Option<Ipv4Net>,
    network_v6: Option<Ipv6Net>,
    own: Lease,
    /// The host's addresses.
    host: HostNets,
    check: CheckPeer,
    /// All existing leases, including refused ones and the own one, as last parsed.
    latest: BTreeMap<SubnetKey, Arc<Lease>>,
    /// All leases that are usable except for overlaps, with their last good attributes.
    sound: BTreeMap<SubnetKey, Arc<Lease>>,
    /// The ones in use.
    accepted: Claims,
    /// The MAC addresses and keys of the sound leases.
    identities: IdentityIndex,
    /// For each blocked lease the one that blocks it, and the reverse.
    blocked_by: HashMap<SubnetKey, SubnetKey>,
    blocks: HashMap<SubnetKey, BTreeSet<SubnetKey>>,
    /// What was reported about leases that are not in use, and about updates that were refused.
    refusals: BTreeMap<SubnetKey, PeerRefusal>,
}

impl fmt::Debug for PeerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTable")
            .field("own", &self.own.key)
            .field("peers", &self.len())
            .field("refusals", &self.refusals.len())
            .finish_non_exhaustive()
    }
}

/// The effects of an event, collected so that a peer that it both removes and adds back is not reported.
#[derive(Default)]
struct Batch {
    /// All affected keys, with the peers as they were before the event.
    before: BTreeMap<SubnetKey, Option<Arc<Lease>>>,
    /// Leases to check again, oldest first.
    pending: BTreeSet<(u64, SubnetKey)>,
    /// Leases that released a claim, for which updates of others may have been refused.
    moved: BTreeSet<SubnetKey>,
    refused: BTreeMap<SubnetKey, PeerRefusal>,
}

impl PeerTable {
    /// An empty table for the node that holds `own`.
    pub fn new(config: &NetworkConfig, own: &Lease, check: CheckPeer) -> Self {
        Self {
            network: config.ipv4.map(|range| range.network),
            network_v6: config.ipv6.map(|range| range.network),
            own: own.clone(),
            host: HostNets::default(),
            check,
            latest: BTreeMap::new(),
            sound: BTreeMap::new(),
            accepted: Claims::default(),
            identities: IdentityIndex::default(),
            blocked_by: HashMap::new(),
            blocks: HashMap::new(),
            refusals: BTreeMap::new(),
        }
    }

    /// Sets this host's addresses, for the next [`Self::rejudge`].
    pub fn set_host(&mut self, host: HostNets) {
        self.host = host;
    }

    /// The leases in use, ordered by subnet.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.sound
            .iter()
            .filter(|(key, _)| !self.blocked_by.contains_key(key))
            .map(|(_, lease)| lease)
    }

    /// One lease, if it is in use.
    pub fn get(&self, key: &SubnetKey) -> Option<&Arc<Lease>> {
        self.sound
            .get(key)
            .filter(|_| !self.blocked_by.contains_key(key))
    }

    /// All existing leases of other nodes, in use or not, as last parsed.
    pub fn others(&self) -> impl Iterator<Item = &Arc<Lease>> {
        let own = self.own.key;
        self.latest
            .iter()
            .filter(move |(key, _)| **key != own)
            .map(|(_, lease)| lease)
    }

    /// An existing lease, in use or not, as last parsed.
    pub fn latest(&self, key: &SubnetKey) -> Option<&Lease> {
        self.latest.get(key).map(AsRef::as_ref)
    }

    /// The number of existing leases, in use or not.
    pub fn known(&self) -> usize {
        self.latest.len()
    }

    /// Whether a lease exists, in use or not.
    pub fn knows(&self, key: &SubnetKey) -> bool {
        self.latest.contains_key(key)
    }

    /// What was reported about a lease that is not in use, or whose last update was refused.
    pub fn refusal(&self, key: &SubnetKey) -> Option<&PeerRefusal> {
        self.refusals.get(key)
    }

    /// The number of leases in use.
    pub fn len(&self) -> usize {
        self.sound.len() - self.blocked_by.len()
    }

    /// Whether no lease is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The leases that are not in use, or not with their last published attributes, and why.
    pub fn refusals(&self) -> impl Iterator<Item = (&SubnetKey, &PeerRefusal)> {
        self.refusals.iter()
    }

    /// Applies an event and returns what it changed.
    pub fn apply(&mut self, event: LeaseEvent) -> PeerChanges {
        let mut batch = Batch::default();
        let is_snapshot = matches!(event, LeaseEvent::Snapshot { .. });
        match event {
            LeaseEvent::Snapshot { leases, unreadable } => {
                let exist: HashSet<SubnetKey> = leases
                    .iter()
                    .map(|lease| lease.key)
                    .chain(unreadable)
                    .collect();
                let known = self.latest.keys();
                let gone: Vec<_> = known.filter(|key| !exist.contains(key)).copied().collect();
                for key in gone {
                    self.remove(key, &mut batch);
                }
                for lease in leases {
                    self.set(lease, &mut batch);
                }
            }
            LeaseEvent::Changes { set, removed } => {
                for key in removed {
                    self.remove(key, &mut batch);
                }
                for lease in set {
                    self.set(lease, &mut batch);
                }
            }
        }
        self.settle(&mut batch);
        if is_snapshot {
            self.compact();
        }
        self.changes(batch)
    }

    /// Builds the maps anew, each at once: a B-tree that grew in order has half-empty nodes.
    fn compact(&mut self) {
        for leases in [&mut self.latest, &mut self.sound] {
            *leases = std::mem::take(leases).into_iter().collect();
        }
        self.accepted.compact();
    }

    /// Judges all leases again for a node that now holds `own`, or whose networks or backend changed, and returns what
    /// that changed. A lease whose last update is still bad keeps its last good attributes if those are still good.
    pub fn rejudge(
        &mut self,
        config: &NetworkConfig,
        own: &Lease,
        check: CheckPeer,
    ) -> PeerChanges {
        let mut batch = Batch::default();
        for key in self.latest.keys() {
            batch.note(self, *key);
        }
        self.network = config.ipv4.map(|range| range.network);
        self.network_v6 = config.ipv6.map(|range| range.network);
        let former = std::mem::replace(&mut self.own, own.clone());
        self.check = check;
        // The node's own former lease does not belong to another node; the store will report when it is gone.
        if former.key != own.key
            && let Some(lease) = self.latest.get(&former.key)
            && (lease.attrs.public_ip, &lease.attrs.owner)
                == (former.attrs.public_ip, &former.attrs.owner)
        {
            self.latest.remove(&former.key);
        }
        let reported = std::mem::take(&mut self.refusals);
        let last_good = std::mem::take(&mut self.sound);
        self.accepted = Claims::default();
        self.identities = IdentityIndex::default();
        self.blocked_by.clear();
        self.blocks.clear();
        for lease in last_good.into_values() {
            self.admit(lease, Standing::New, &mut batch);
        }
        self.settle(&mut batch);
        for lease in self.latest.values().cloned().collect::<Vec<_>>() {
            let standing = match self.sound.contains_key(&lease.key) {
                true => Standing::Known,
                false => Standing::New,
            };
            self.admit(lease, standing, &mut batch);
        }
        self.settle(&mut batch);
        self.compact();
        batch
            .refused
            .retain(|key, refusal| reported.get(key) != Some(refusal));
        self.changes(batch)
    }

    fn remove(&mut self, key: SubnetKey, batch: &mut Batch) {
        batch.note(self, key);
        self.latest.remove(&key);
        self.refusals.remove(&key);
        batch.refused.remove(&key);
        self.withdraw(key, batch);
        if let Some(lease) = self.sound.remove(&key) {
            // Even while it waited, an update of another lease may have been refused for what it claimed.
            batch.pending.remove(&(lease.created, key));
            batch.moved.insert(key);
            self.identities.remove(&lease);
            self.unblock(key);
        }
    }

    fn set(&mut self, lease: Lease, batch: &mut Batch) {
        let key = lease.key;
        // A lease that was created again is a new one, even if the same node had the subnet before.
        if self
            .sound
            .get(&key)
            .is_some_and(|known| known.created != lease.created)
        {
            let refusal = self.refusals.get(&key).cloned();
            self.remove(key, batch);
            self.refusals.extend(refusal.map(|refusal| (key, refusal)));
        }
        let lease = Arc::new(lease);
        let former = self.latest.insert(key, Arc::clone(&lease));
        let standing = match former {
            Some(former) if former.created == lease.created => Standing::Known,
            _ => Standing::New,
        };
        self.admit(Arc::clone(&lease), standing, batch);
        if self.sound.get(&key).is_some_and(|known| *known != lease) {
            // It has released its old claims, although its update is refused.
            batch.moved.insert(key);
        }
    }

    /// Adds a lease to the sound ones if it is sound.
    fn admit(&mut self, lease: Arc<Lease>, standing: Standing, batch: &mut Batch) {
        let key = lease.key;
        if key == self.own.key {
            return;
        }
        let known = self.sound.get(&key).cloned();
        let judged = self.judge(&lease).and_then(|()| match standing {
            Standing::New => Ok(()),
            Standing::Known => self.judge_update(&lease, known.as_deref(), batch),
        });
        if let Err(refusal) = judged {
            self.refuse(key, refusal, batch);
            return;
        }
        batch.note(self, key);
        let claim = self.claim(&lease);
        let has_moved = known
            .as_ref()
            .is_some_and(|known| self.claim(known) != claim);
        if has_moved {
            self.withdraw(key, batch);
        }
        match self.blocked_by.get(&key).copied() {
            Some(older) => self.refuse(key, self.blocked_because(&lease, &older), batch),
            None => {
                self.refusals.remove(&key);
                batch.refused.remove(&key);
            }
        }
        if has_moved || known.is_none() {
            batch.pending.insert((lease.created, key));
        }
        if known.as_ref() != Some(&lease) {
            if let Some(known) = known {
                self.identities.remove(&known);
                batch.moved.insert(key);
            }
            self.identities.insert(&lease);
        }
        self.sound.insert(key, lease);
    }

    /// What a lease claims.
    fn claim(&self, lease: &Lease) -> Claim {
        let (v4, v6) = (lease.attrs.public_ip, lease.attrs.public_ipv6);
        Claim {
            key: lease.key,
            subnets: self.relevant(&lease.key),
            created: lease.created,
            public: SubnetKey {
                v4: v4
                    .filter(|v4| self.network.is_some_and(|network| network.contains(v4)))
                    .map(Ipv4Net::from),
                v6: v6
                    .filter(|v6| self.network_v6.is_some_and(|network| network.contains(v6)))
                    .map(Ipv6Net::from),
            },
        }
    }

    /// Why an older lease blocks another one.
    fn blocked_because(&self, lease: &Lease, older: &SubnetKey) -> PeerRefusal {
        match self.overlap(&lease.key, older) {
            true => PeerRefusal::OverlapsOlder(*older),
            false => PeerRefusal::MeetsOlder(*older),
        }
    }

    /// The relevant subnets of a lease: those of the network's families.
    fn relevant(&self, key: &SubnetKey) -> SubnetKey {
        SubnetKey {
            v4: key.v4.filter(|_| self.network.is_some()),
            v6: key.v6.filter(|_| self.network_v6.is_some()),
        }
    }

    /// Whether two leases overlap in a family of the network.
    fn overlap(&self, a: &SubnetKey, b: &SubnetKey) -> bool {
        overlap(&self.relevant(a), &self.relevant(b))
    }

    /// Decides about all leases that a change may affect.
    fn settle(&mut self, batch: &mut Batch) {
        self.settle_pending(batch);
        while !batch.moved.is_empty() {
            let moved = std::mem::take(&mut batch.moved);
            let refused = self.refusals.iter().filter(|(_, refusal)| {
                refusal
                    .holder()
                    .is_some_and(|holder| moved.contains(holder))
            });
            // For a lease blocked by an older one, no refusal of its update is recorded: check its update again too.
            let blocked = self.blocked_by.keys();
            let outdated = blocked.filter(|key| self.latest.get(key) != self.sound.get(key));
            let waiting: BTreeSet<_> = refused.map(|(key, _)| key).chain(outdated).collect();
            let waiting: Vec<_> = waiting
                .into_iter()
                .filter_map(|key| self.latest.get(key).cloned())
                .collect();
            for lease in waiting {
                self.admit(lease, Standing::Known, batch);
            }
            self.settle_pending(batch);
        }
    }

    /// Checks each pending lease, oldest first, so that everything that may block it is decided already.
    fn settle_pending(&mut self, batch: &mut Batch) {
        while let Some((_, key)) = batch.pending.pop_first() {
            if self.accepted.contains(&key) {
                continue;
            }
            batch.note(self, key);
            self.unblock(key);
            let Some(claim) = self.sound.get(&key).map(|lease| self.claim(lease)) else {
                continue;
            };
            match self.accepted.rivals(&claim) {
                Err(older) => {
                    self.block(key, older, batch);
                    // While it was pending, an update of another lease may have been refused for what it claims.
                    batch.moved.insert(key);
                }
                Ok(younger) => {
                    for rival in younger {
                        batch.note(self, rival);
                        self.withdraw(rival, batch);
                        self.block(rival, key, batch);
                    }
                    self.accepted.insert(claim);
                    // A refusal for a bad update stays.
                    if let Some(PeerRefusal::OverlapsOlder(_) | PeerRefusal::MeetsOlder(_)) =
                        self.refusals.get(&key)
                    {
                        self.refusals.remove(&key);
                        batch.refused.remove(&key);
                        // The blocking refusal had replaced that of a bad update: check the update again.
                        let latest = self.latest.get(&key).cloned();
                        if let Some(latest) = latest.filter(|l| self.sound.get(&key) != Some(l)) {
                            self.admit(latest, Standing::Known, batch);
                        }
                    }
                }
            }
        }
    }

    /// Takes a lease out of use; the leases that it blocked are checked again.
    fn withdraw(&mut self, key: SubnetKey, batch: &mut Batch) {
        let claim = self.sound.get(&key).map(|lease| self.claim(lease));
        if !claim.is_some_and(|claim| self.accepted.remove(&claim)) {
            return;
        }
        batch.moved.insert(key);
        for waiting in self.blocks.remove(&key).unwrap_or_default() {
            batch.note(self, waiting);
            self.blocked_by.remove(&waiting);
            if let Some(lease) = self.sound.get(&waiting) {
                batch.pending.insert((lease.created, waiting));
            }
        }
    }

    fn block(&mut self, key: SubnetKey, older: SubnetKey, batch: &mut Batch) {
        self.blocked_by.insert(key, older);
        self.blocks.entry(older).or_default().insert(key);
        let refusal = self
            .sound
            .get(&key)
            .map(|lease| self.blocked_because(lease, &older));
        self.refuse(
            key,
            refusal.unwrap_or(PeerRefusal::OverlapsOlder(older)),
            batch,
        );
    }

    fn unblock(&mut self, key: SubnetKey) {
        if let Some(older) = self.blocked_by.remove(&key)
            && let Some(waiting) = self.blocks.get_mut(&older)
        {
            waiting.remove(&key);
            if waiting.is_empty() {
                self.blocks.remove(&older);
            }
        }
    }

    fn refuse(&mut self, key: SubnetKey, refusal: PeerRefusal, batch: &mut Batch) {
        if self.refusals.get(&key) != Some(&refusal) {
            batch.refused.insert(key, refusal.clone());
            self.refusals.insert(key, refusal);
        }
    }

    fn changes(&self, batch: Batch) -> PeerChanges {
        let mut changes = PeerChanges {
            refused: batch.refused.into_iter().collect(),
            ..PeerChanges::default()
        };
        for (key, old) in batch.before {
            match (old, self.get(&key).cloned()) {
                (None, Some(new)) => changes.added.push(new),
                (Some(old), None) => changes.removed.push(old),
                (Some(old), Some(new)) if old != new => {
                    changes.changed.push(PeerUpdate { old, new });
                }
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        changes
    }
}

impl Batch {
    /// Whether it is still to be decided if a lease is in use.
    fn is_pending(&self, lease: &Lease) -> bool {
        self.pending.contains(&(lease.created, lease.key))
    }

    /// Records a peer as it was before the event.
    fn note(&mut self, table: &PeerTable, key: SubnetKey) {
        let accepted = |key| table.accepted.contains(key);
        self.before
            .entry(key)
            .or_insert_with(|| table.sound.get(&key).filter(|_| accepted(&key)).cloned());
    }
}

#[cfg(test)]
mod tests;
