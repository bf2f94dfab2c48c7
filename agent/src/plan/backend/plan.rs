//! The plan: the kernel state wanted by the own lease and the accepted peers, updated peer by peer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Backend;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::refusal::{Claimed, PeerRefusal};
use crate::plan::state::{Delta, Key, Object, State};

/// The wanted state of the own lease and the peers. Pure: it knows leases and objects, never the kernel.
///
/// The caller ensures that no two peers' subnets overlap. Anything else that two peers can claim, such as a MAC
/// address, goes to the older lease; the younger peer is refused until the older one gives up the claim.
///
/// A peer's objects are made of its lease whenever they are needed: the reconciler has them all, and a second copy would
/// be a third of the memory that a peer takes.
#[derive(Debug)]
pub struct Plan {
    backend: Arc<dyn Backend>,
    subnet: SubnetKey,
    own: State,
    peers: BTreeMap<SubnetKey, Arc<Lease>>,
    /// Every claim that could be contested, oldest lease first for each key.
    claims: BTreeSet<(Key, Age)>,
    /// The peers that are not programmed.
    refused: BTreeMap<SubnetKey, PeerRefusal>,
}

/// The order of claims: by age, then by subnet.
type Age = (u64, SubnetKey);

/// A peer's objects, or why it was refused. A peer whose claims lose has objects as well.
type Objects = Result<Vec<(Key, Object)>, PeerRefusal>;

/// The claims of a lease with these objects that a peer with another subnet could make, too.
fn claims(lease: &Lease, objects: &[(Key, Object)]) -> impl Iterator<Item = (Key, Age)> {
    let (subnet, age) = (lease.key, (lease.created, lease.key));
    let keys = objects.iter().map(|(key, _)| key);
    keys.filter(move |key| may_be_contested(key, &subnet))
        .map(move |key| (key.clone(), age))
}

impl Plan {
    /// Plans for a set of peers; the own lease among them is skipped.
    pub fn new(
        backend: Arc<dyn Backend>,
        own: &SubnetKey,
        peers: impl IntoIterator<Item = Arc<Lease>>,
    ) -> Self {
        Self::with_state(backend, own, peers).0
    }

    /// As [`Self::new`], also returning what [`Self::state`] would.
    pub fn with_state(
        backend: Arc<dyn Backend>,
        own: &SubnetKey,
        peers: impl IntoIterator<Item = Arc<Lease>>,
    ) -> (Self, State) {
        let mut plan = Self {
            subnet: *own,
            own: backend.own(own),
            backend,
            peers: BTreeMap::new(),
            claims: BTreeSet::new(),
            refused: BTreeMap::new(),
        };
        // Build the maps from lists: a B-tree built at once has full nodes, one that grows in order has half-empty
        // ones.
        let mut all = Vec::new();
        let mut contested = Vec::new();
        let mut wanted = Wanted::default();
        for lease in peers.into_iter().filter(|peer| peer.key != *own) {
            match plan.objects(&lease) {
                Ok(objects) => {
                    contested.extend(claims(&lease, &objects));
                    wanted.add(objects);
                }
                Err(refusal) => {
                    plan.refused.insert(lease.key, refusal);
                }
            }
            all.push((lease.key, lease));
        }
        plan.peers = all.into_iter().collect();
        plan.claims = contested.into_iter().collect();
        let younger = plan.younger_claimants();
        if younger.is_empty() {
            let state = wanted.with(&plan.own);
            return (plan, state);
        }
        drop(wanted);
        plan.settle(&younger);
        let state = plan.state();
        (plan, state)
    }

    /// The whole wanted state.
    pub fn state(&self) -> State {
        let accepted = |(key, _): &(&SubnetKey, &Arc<Lease>)| !self.refused.contains_key(key);
        let mut wanted = Wanted::default();
        for (_, lease) in self.peers.iter().filter(accepted) {
            wanted.add(self.objects(lease).unwrap_or_default());
        }
        wanted.with(&self.own)
    }

    /// Adds or updates a peer; returns the change of the wanted state.
    pub fn set_peer(&mut self, peer: &Arc<Lease>) -> Delta {
        let mut touched = self.take(&peer.key);
        let inserted = self.insert(Arc::clone(peer));
        touched.keys.extend(inserted.keys);
        touched.peers.extend(inserted.peers);
        self.delta(touched)
    }

    /// Removes a peer; returns the change of the wanted state.
    pub fn remove_peer(&mut self, key: &SubnetKey) -> Delta {
        let touched = self.take(key);
        self.delta(touched)
    }

    /// The peers that are not programmed, and why.
    pub fn refused(&self) -> impl Iterator<Item = (&SubnetKey, &PeerRefusal)> {
        self.refused.iter()
    }

    /// Why one peer is not programmed; `None` if it is, or if there is no such peer.
    pub fn refusal(&self, key: &SubnetKey) -> Option<&PeerRefusal> {
        self.refused.get(key)
    }

    /// A peer's objects; empty if it is refused or unknown.
    pub fn peer(&self, key: &SubnetKey) -> Vec<(Key, Object)> {
        let accepted = self
            .peers
            .get(key)
            .filter(|_| !self.refused.contains_key(key));
        accepted
            .and_then(|lease| self.objects(lease).ok())
            .unwrap_or_default()
    }

    /// The number of programmed peers.
    pub fn accepted(&self) -> usize {
        self.peers.len() - self.refused.len()
    }

    fn objects(&self, lease: &Lease) -> Objects {
        self.backend.between(&self.subnet, lease)
    }

    /// Adds a peer; returns what it may have changed.
    fn insert(&mut self, lease: Arc<Lease>) -> Touched {
        let mut touched = Touched::default();
        let objects = self.objects(&lease).unwrap_or_default();
        for claim in claims(&lease, &objects) {
            touched.peers.extend(self.claimants(&claim.0));
            self.claims.insert(claim);
        }
        touched.keys.extend(objects.into_iter().map(|(key, _)| key));
        touched.peers.insert(lease.key);
        self.peers.insert(lease.key, lease);
        touched
    }

    /// Takes a peer out; returns what that may have changed.
    fn take(&mut self, subnet: &SubnetKey) -> Touched {
        let mut touched = Touched::default();
        let Some(lease) = self.peers.remove(subnet) else {
            return touched;
        };
        self.refused.remove(subnet);
        let objects = self.objects(&lease).unwrap_or_default();
        for claim in claims(&lease, &objects) {
            self.claims.remove(&claim);
            touched.peers.extend(self.claimants(&claim.0));
        }
        touched.keys.extend(objects.into_iter().map(|(key, _)| key));
        touched
    }

    /// The new wanted state of the touched keys, and of all keys of the touched peers.
    fn delta(&mut self, touched: Touched) -> Delta {
        self.settle(&touched.peers);
        let contested = |key: Key| {
            let object = self.claimed(&key);
            (key, object)
        };
        let mut delta: Delta = touched.keys.into_iter().map(contested).collect();
        for subnet in &touched.peers {
            let Some(Ok(objects)) = self.peers.get(subnet).map(|lease| self.objects(lease)) else {
                continue;
            };
            let accepted = !self.refused.contains_key(subnet);
            for (key, object) in objects {
                let object = if accepted {
                    Some(object)
                } else {
                    self.claimed(&key)
                };
                delta.insert(key, object);
            }
        }
        delta
    }

    /// The object of a contested key, from the accepted peer with the oldest claim.
    fn claimed(&self, key: &Key) -> Option<Object> {
        let winner = self
            .claimants(key)
            .find(|subnet| !self.refused.contains_key(subnet))?;
        let objects = self.objects(self.peers.get(&winner)?).ok()?;
        let found = objects.into_iter().find(|(claimed, _)| claimed == key);
        found.map(|(_, object)| object)
    }

    /// The claimants of a contested key, oldest lease first.
    fn claimants(&self, key: &Key) -> impl Iterator<Item = SubnetKey> {
        let lowest = SubnetKey { v4: None, v6: None };
        let key = key.clone();
        self.claims
            .range((key.clone(), (0, lowest))..)
            .take_while(move |(claimed, _)| *claimed == key)
            .map(|&(_, (_, subnet))| subnet)
    }

    /// The peers with a claim to something that an older lease claims as well.
    fn younger_claimants(&self) -> BTreeSet<SubnetKey> {
        let pairs = self.claims.iter().zip(self.claims.iter().skip(1));
        let contested = pairs.filter(|((older, _), (key, _))| older == key);
        contested.map(|(_, (_, (_, younger)))| *younger).collect()
    }

    /// Decides again about peers whose claims changed.
    fn settle(&mut self, peers: &BTreeSet<SubnetKey>) {
        for subnet in peers {
            let refusal = match self.peers.get(subnet).map(|lease| self.objects(lease)) {
                None => None,
                Some(Err(refusal)) => Some(refusal),
                Some(Ok(objects)) => self.older_claim(subnet, &objects),
            };
            match refusal {
                Some(refusal) => self.refused.insert(*subnet, refusal),
                None => self.refused.remove(subnet),
            };
        }
    }

    /// An older claim to something that this peer needs, if there is one. A shared next hop is no conflict.
    fn older_claim(&self, subnet: &SubnetKey, objects: &[(Key, Object)]) -> Option<PeerRefusal> {
        objects.iter().find_map(|(key, _)| {
            if matches!(key, Key::NextHop(..)) || !may_be_contested(key, subnet) {
                return None;
            }
            let oldest = self.claimants(key).next()?;
            (oldest != *subnet).then(|| PeerRefusal::Taken {
                what: match key {
                    Key::Fdb(..) => Claimed::Mac,
                    Key::WireguardPeer(..) => Claimed::Key,
                    _ => Claimed::Other,
                },
                object: key.to_string(),
                holder: oldest,
            })
        })
    }
}

/// Objects of many peers, which are to become a state.
///
/// The first objects of all peers, then the second ones, and so on: as peers come in the order of their subnets, that is
/// nearly the order of keys, and to sort them costs little.
#[derive(Default)]
struct Wanted(Vec<Vec<(Key, Object)>>);

impl Wanted {
    /// Adds the objects of a peer.
    fn add(&mut self, objects: Vec<(Key, Object)>) {
        for (place, object) in objects.into_iter().enumerate() {
            match self.0.get_mut(place) {
                Some(of_place) => of_place.push(object),
                None => self.0.push(vec![object]),
            }
        }
    }

    /// The state of them and of the own objects.
    fn with(self, own: &State) -> State {
        let own = own
            .iter()
            .map(|(key, object)| (key.clone(), object.clone()));
        own.chain(self.0.into_iter().flatten()).collect()
    }
}

/// The parts of the wanted state that one change may have affected.
#[derive(Default)]
struct Touched {
    keys: BTreeSet<Key>,
    peers: BTreeSet<SubnetKey>,
}

/// Whether a peer with another subnet could want the same object. Keys derived only from the peer's own subnet are
/// safe, because no two subnets overlap; omitting them keeps the set of claims small.
fn may_be_contested(key: &Key, subnet: &SubnetKey) -> bool {
    match key {
        Key::Neighbor(_, address) | Key::NextHop(_, address) => {
            !subnet.nets().any(|net| net.contains(address))
        }
        Key::Route(destination) | Key::Blackhole(destination) => {
            !subnet.nets().any(|net| net == *destination)
        }
        Key::Forward(_, of) => subnet.v4 != Some(*of),
        Key::Hook(of) => of != subnet,
        Key::Policy(_, from, to) => subnet.v4 != Some(*from) && subnet.v4 != Some(*to),
        Key::Link(_)
        | Key::Address(..)
        | Key::Fdb(..)
        | Key::WireguardPeer(..)
        | Key::Connection(_) => true,
    }
}
