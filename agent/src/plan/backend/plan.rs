//! The plan: the kernel state wanted by the own lease and the accepted peers, updated peer by peer.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::Backend;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::refusal::{Claimed, PeerRefusal};
use crate::plan::state::{Delta, Key, Object, State};

/// The wanted state of the own lease and the peers. Pure: it knows leases and objects, never the kernel.
///
/// The caller ensures that no two peers' subnets overlap. Anything else that two peers can claim, such as a MAC
/// address, goes to the older lease; the younger peer is refused until the older one gives up the claim.
#[derive(Debug)]
pub struct Plan {
    subnet: SubnetKey,
    own: State,
    peers: BTreeMap<SubnetKey, Peer>,
    /// Every claim that could be contested, oldest lease first for each key.
    claims: BTreeSet<(Key, Age)>,
    /// The peers that are not programmed.
    refused: BTreeMap<SubnetKey, PeerRefusal>,
}

/// The order of claims: by age, then by subnet.
type Age = (u64, SubnetKey);

#[derive(Debug)]
struct Peer {
    created: u64,
    /// The peer's objects, or why it was refused. A peer whose claims lose keeps its objects here.
    objects: Result<Box<[(Key, Object)]>, PeerRefusal>,
}

impl Peer {
    fn new(backend: &dyn Backend, own: &SubnetKey, lease: &Lease) -> Self {
        Self {
            created: lease.created,
            objects: backend.between(own, lease).map(Vec::into_boxed_slice),
        }
    }

    /// Its claims that a peer with another subnet could make, too.
    fn claims(&self, subnet: &SubnetKey) -> impl Iterator<Item = (Key, Age)> {
        let keys = self.objects.iter().flatten().map(|(key, _)| key);
        keys.filter(|key| may_be_contested(key, subnet))
            .map(|key| (key.clone(), (self.created, *subnet)))
    }
}

impl Plan {
    /// Plans for a set of peers; the own lease among them is skipped.
    pub fn new<'a>(
        backend: &dyn Backend,
        own: &SubnetKey,
        peers: impl IntoIterator<Item = &'a Lease>,
    ) -> Self {
        // Build the maps from lists: a B-tree built at once has full nodes, one that grows in order has half-empty
        // ones.
        let (mut all, mut claims) = (Vec::new(), Vec::new());
        for lease in peers.into_iter().filter(|peer| peer.key != *own) {
            let peer = Peer::new(backend, own, lease);
            claims.extend(peer.claims(&lease.key));
            all.push((lease.key, peer));
        }
        let mut plan = Self {
            subnet: *own,
            own: backend.own(own),
            peers: all.into_iter().collect(),
            claims: claims.into_iter().collect(),
            refused: BTreeMap::new(),
        };
        let all: BTreeSet<SubnetKey> = plan.peers.keys().copied().collect();
        plan.settle(&all);
        plan
    }

    /// The whole wanted state.
    pub fn state(&self) -> State {
        let accepted = |(key, _): &(&SubnetKey, &Peer)| !self.refused.contains_key(key);
        let peers = self.peers.iter().filter(accepted);
        let objects = peers.flat_map(|(_, peer)| peer.objects.iter().flatten().cloned());
        self.own.clone().into_iter().chain(objects).collect()
    }

    /// Adds or updates a peer; returns the change of the wanted state.
    pub fn set_peer(&mut self, backend: &dyn Backend, peer: &Lease) -> Delta {
        let mut touched = self.take(&peer.key);
        let inserted = self.insert(backend, peer);
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
    pub fn peer(&self, key: &SubnetKey) -> &[(Key, Object)] {
        let accepted = self
            .peers
            .get(key)
            .filter(|_| !self.refused.contains_key(key));
        accepted
            .and_then(|peer| peer.objects.as_deref().ok())
            .unwrap_or_default()
    }

    /// The number of programmed peers.
    pub fn accepted(&self) -> usize {
        self.peers.len() - self.refused.len()
    }

    /// Adds a peer; returns what it may have changed.
    fn insert(&mut self, backend: &dyn Backend, lease: &Lease) -> Touched {
        let peer = Peer::new(backend, &self.subnet, lease);
        let mut touched = Touched::default();
        for (key, _) in peer.objects.iter().flatten() {
            touched.keys.insert(key.clone());
        }
        for claim in peer.claims(&lease.key) {
            touched.peers.extend(self.claimants(&claim.0));
            self.claims.insert(claim);
        }
        touched.peers.insert(lease.key);
        self.peers.insert(lease.key, peer);
        touched
    }

    /// Takes a peer out; returns what that may have changed.
    fn take(&mut self, subnet: &SubnetKey) -> Touched {
        let mut touched = Touched::default();
        let Some(peer) = self.peers.remove(subnet) else {
            return touched;
        };
        self.refused.remove(subnet);
        for (key, _) in peer.objects.into_iter().flatten() {
            if may_be_contested(&key, subnet) {
                self.claims.remove(&(key.clone(), (peer.created, *subnet)));
                touched.peers.extend(self.claimants(&key));
            }
            touched.keys.insert(key);
        }
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
            let Some(Ok(objects)) = self.peers.get(subnet).map(|peer| &peer.objects) else {
                continue;
            };
            let accepted = !self.refused.contains_key(subnet);
            for (key, object) in objects {
                let object = if accepted {
                    Some(object.clone())
                } else {
                    self.claimed(key)
                };
                delta.insert(key.clone(), object);
            }
        }
        delta
    }

    /// The object of a contested key, from the accepted peer with the oldest claim.
    fn claimed(&self, key: &Key) -> Option<Object> {
        let winner = self
            .claimants(key)
            .find(|subnet| !self.refused.contains_key(subnet))?;
        let objects = self.peers.get(&winner)?.objects.as_ref().ok()?;
        let (_, object) = objects.iter().find(|(claimed, _)| claimed == key)?;
        Some(object.clone())
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

    /// Decides again about peers whose claims changed.
    fn settle(&mut self, peers: &BTreeSet<SubnetKey>) {
        for subnet in peers {
            let refusal = match self.peers.get(subnet).map(|peer| &peer.objects) {
                None => None,
                Some(Err(refusal)) => Some(refusal.clone()),
                Some(Ok(objects)) => self.older_claim(subnet, objects),
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
