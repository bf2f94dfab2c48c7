//! Taking a lease: which one is decided by a pure function, then written by compared transactions.

use std::net::IpAddr;
use std::time::Duration;

use etcd_client::{Compare, CompareOp};
use tokio::time::sleep;
use tracing::{info, warn};

use super::Store;
use super::held::{
    Claim, EtcdLease, Held, claim, delete, grant, lifetime, put_if, revoke, warn_of_twin,
};
use super::listing::{Entry, Listing, list};
use crate::lease::allocate::{self, Avoid, Exhausted};
use crate::lease::{LeaseAttrs, StoreError, SubnetKey};
use crate::network_config::NetworkConfig;
use crate::retry::{Backoff, next_random, random_seed};

/// Who takes a lease.
pub(super) struct Node<'a> {
    /// What it publishes.
    pub(super) attrs: &'a LeaseAttrs,
    /// The subnet that it had before.
    pub(super) previous: Option<SubnetKey>,
    /// Whether it had that in an earlier life, so that its address or its machine ID may be another one since.
    pub(super) restarted: bool,
    /// Whether it is this very host, and not one that asks over the network and may claim whatever leases show.
    pub(super) is_local: bool,
    /// What is on it, for its subnet to keep off.
    pub(super) avoid: &'a Avoid,
}

impl Node<'_> {
    /// Whose a lease is. After a restart, two kinds of leases are a host's own still:
    ///
    /// * what it held at its former address, if it remembers the subnet: a cloned disk has the same machine ID, but
    ///   usually no such memory;
    /// * what it held with its former machine ID, if it has the address and the MAC address or key of that lease. Peers
    ///   refuse a second lease with these for as long as the first one lasts.
    ///
    /// A running node gets no such benefit. Two clones would take one subnet from each other for ever.
    fn claim(&self, entry: &Entry) -> Claim {
        match claim(self.attrs, entry.attrs.as_ref()) {
            Claim::SameMachine if self.restarted && Some(entry.key) == self.previous => Claim::Ours,
            Claim::SameAddress
                if self.restarted
                    && self.is_local
                    && let Some(found) = &entry.attrs
                    && self.attrs.same_identity(found) =>
            {
                Claim::Ours
            }
            claim => claim,
        }
    }

    /// The node's own address, if the subnet holds it: packets from peers would go to the containers.
    fn own_address_in(&self, key: &SubnetKey) -> Option<IpAddr> {
        let mut public = self.attrs.public_addresses();
        let public = public.find(|address| key.nets().any(|net| net.contains(address)));
        public.or_else(|| self.avoid.underlay_in(key))
    }
}

/// What to do about a listing.
#[derive(Debug)]
struct Decision<'a> {
    /// Own leases that the config does not allow.
    discard: Vec<&'a Entry>,
    subnet: Subnet<'a>,
}

#[derive(Debug)]
enum Subnet<'a> {
    /// This node holds it already.
    Keep(&'a Entry),
    Create(SubnetKey),
    NoneLeft(Exhausted),
}

/// A lease was taken.
pub(super) struct Acquired {
    pub(super) held: Held,
    /// All leases, as of just before the own one was written.
    pub(super) listing: Listing,
    pub(super) created: i64,
    /// Whether the etcd lease is an older one, of which an unknown part has passed.
    pub(super) aged: bool,
}

/// Takes a lease.
pub(super) async fn acquire(
    store: &Store,
    config: &NetworkConfig,
    node: Node<'_>,
) -> Result<Acquired, StoreError> {
    let mut fresh = None;
    let node = Node {
        // As found in a file, it may be an address in the subnet.
        previous: node.previous.map(|key| SubnetKey::new(key.v4, key.v6)),
        ..node
    };
    let result = with_retries(store, config, &node, &mut fresh).await;
    // A lease that was granted for an attempt which then failed would linger for a day. But after a request without an
    // answer it may be attached to this node's key, which revoking it would delete.
    if let Some(fresh) = fresh
        && !matches!(result, Err(StoreError::Unreachable { .. }))
    {
        revoke(&store.servers, fresh.id).await;
    }
    result
}

/// Between attempts that lost a race: long enough that the next list shows the winner, and very different from node to
/// node.
const RACE_PAUSES: Backoff =
    match Backoff::new(Duration::from_millis(10), Duration::from_secs(1), 0.9, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Repeats attempts that lost a race. `fresh` is an etcd lease that was granted but is not attached to a key.
async fn with_retries(
    store: &Store,
    config: &NetworkConfig,
    node: &Node<'_>,
    fresh: &mut Option<EtcdLease>,
) -> Result<Acquired, StoreError> {
    /// flannel's number of rounds.
    const ATTEMPTS: u32 = 10;
    let mut seed = random_seed();
    let mut backoff = RACE_PAUSES.seeded(random_seed());
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(backoff.next_delay()).await;
        }
        let listing = list(&store.servers, &store.keys, &store.reports).await?;
        let random = next_random(&mut seed);
        let decision = decide(config, node, &listing.entries, attempt, random);
        if attempt == 0 {
            for entry in &listing.entries {
                warn_of_twin(entry, node.claim(entry));
            }
        }
        let written = match decision.subnet {
            _ if !decision.discard.is_empty() => {
                for entry in decision.discard {
                    let subnet = entry.key.to_string();
                    match node.own_address_in(&entry.key) {
                        Some(address) => warn!(
                            subnet,
                            %address,
                            "giving up a lease whose subnet holds this host's own address"
                        ),
                        None => info!(
                            subnet,
                            "giving up a lease that the network config no longer allows"
                        ),
                    }
                    delete(store, &entry.key, entry.modified).await?;
                }
                None
            }
            Subnet::NoneLeft(exhausted) => return Err(StoreError::OutOfSubnets(exhausted)),
            Subnet::Keep(entry) => keep(store, node.attrs, entry, fresh).await?,
            Subnet::Create(key) => create(store, node.attrs, key, &listing, fresh).await?,
        };
        if let Some((held, created, aged)) = written {
            return Ok(Acquired {
                held,
                listing,
                created,
                aged,
            });
        }
    }
    Err(StoreError::LostRaces { attempts: ATTEMPTS })
}

/// Which subnet to take, as flannel: the one held already, the previous one, any.
fn decide<'a>(
    config: &NetworkConfig,
    node: &Node<'_>,
    entries: &'a [Entry],
    lost_races: u32,
    seed: u64,
) -> Decision<'a> {
    let own = entries
        .iter()
        .filter(|entry| node.claim(entry) == Claim::Ours);
    let (mut usable, unusable): (Vec<_>, Vec<_>) = own.partition(|entry| {
        allocate::allows(config, &entry.key) && node.own_address_in(&entry.key).is_none()
    });
    // The one in use first, then a reservation, then in key order.
    usable.sort_by_key(|entry| {
        (
            Some(entry.key) != node.previous,
            entry.etcd_lease.is_some(),
            entry.key,
        )
    });
    // A reservation is the administrator's to delete.
    let discard = unusable
        .into_iter()
        .filter(|entry| entry.etcd_lease.is_some())
        .collect();
    let subnet = match usable.first() {
        Some(entry) => Subnet::Keep(entry),
        None => {
            let taken: Vec<_> = entries.iter().map(|entry| entry.key).collect();
            let peers = entries.iter().filter_map(|entry| entry.attrs.as_ref());
            let peers: Vec<IpAddr> = peers.flat_map(LeaseAttrs::public_addresses).collect();
            let own = node.attrs.public_addresses();
            let inside = peers.iter().copied().chain(own);
            let families = config.families();
            let avoid = node
                .avoid
                .and(inside.filter(|host| families.contain(*host)));
            let holds_peer = |key: &SubnetKey| {
                let mut nets = key.nets();
                nets.any(|net| peers.iter().any(|peer| net.contains(peer)))
            };
            let previous = node
                .previous
                .filter(|key| allocate::allows(config, key))
                .filter(|key| !taken.iter().any(|taken| allocate::overlap(key, taken)))
                .filter(|key| node.own_address_in(key).is_none() && !holds_peer(key));
            match previous {
                Some(key) => Subnet::Create(key),
                None => allocate::choose_off(config, &taken, &avoid, lost_races, seed)
                    .map_or_else(Subnet::NoneLeft, Subnet::Create),
            }
        }
    };
    Decision { discard, subnet }
}

/// Takes up a lease that is this node's already. Nothing is written if nothing changed.
async fn keep(
    store: &Store,
    attrs: &LeaseAttrs,
    entry: &Entry,
    fresh: &mut Option<EtcdLease>,
) -> Result<Option<(Held, i64, bool)>, StoreError> {
    let mut held = Held {
        key: entry.key,
        wanted: attrs.clone(),
        published: entry.attrs.clone().unwrap_or_else(|| attrs.clone()),
        unsure: Vec::new(),
        modified: entry.modified,
        etcd_lease: None,
    };
    if held.published.public_address() != attrs.public_address() {
        info!(
            subnet = %held.key,
            former_public_ip = %held.published.public_address(),
            "taking up the lease of this machine's former address"
        );
    }
    let Some(id) = entry.etcd_lease else {
        let subnet = entry.key.to_string();
        info!(subnet, "using the subnet reserved for this node");
        let unchanged = held.published == held.wanted;
        let kept = unchanged || held.put(store, None).await?;
        return Ok(kept.then_some((held, entry.created, false)));
    };
    // A lease of another duration (a real flannel's is 24 hours) is replaced by one of ours.
    let reusable = lifetime(&store.servers, id)
        .await?
        .filter(|lease| lease.ttl == store.servers.settings().ttl);
    if let Some(lease) = reusable {
        held.etcd_lease = Some(lease);
        let unchanged = held.published == held.wanted;
        let kept = unchanged || held.put(store, Some(lease)).await?;
        return Ok(kept.then_some((held, entry.created, true)));
    }
    let lease = granted(store, fresh).await?;
    if held.put(store, Some(lease)).await? {
        *fresh = None;
        return Ok(Some((held, entry.created, false)));
    }
    Ok(None)
}

/// Creates a lease, if nobody else did so since the list.
async fn create(
    store: &Store,
    attrs: &LeaseAttrs,
    key: SubnetKey,
    listing: &Listing,
    fresh: &mut Option<EtcdLease>,
) -> Result<Option<(Held, i64, bool)>, StoreError> {
    let lease = granted(store, fresh).await?;
    let name = store.key(&key);
    let compares = free(store, &key, listing);
    match put_if(&store.servers, compares, &name, attrs, Some(lease)).await? {
        Some(revision) => {
            *fresh = None;
            let held = Held {
                key,
                wanted: attrs.clone(),
                published: attrs.clone(),
                unsure: Vec::new(),
                modified: revision,
                etcd_lease: Some(lease),
            };
            Ok(Some((held, revision, false)))
        }
        None => {
            let subnet = key.to_string();
            warn!(
                subnet,
                "another node was faster in taking this subnet; choosing again"
            );
            Ok(None)
        }
    }
}

/// What must hold for a subnet that was free in the listing to be free still.
fn free(store: &Store, key: &SubnetKey, listing: &Listing) -> Vec<Compare> {
    let name = store.key(key);
    let mut compares = vec![Compare::version(name.as_str(), CompareOp::Equal, 0)];
    match (key.v4, key.v6) {
        // With another family, the same IPv4 subnet begins another key. The byte after '&' is '\''.
        (Some(_), None) => compares.push(
            Compare::version(format!("{name}&"), CompareOp::Equal, 0)
                .with_range(format!("{name}'")),
        ),
        // With two families the key's absence says nothing: another node may have taken the same IPv4 subnet with
        // another IPv6 one, or without any. So no lease at all may have been created since the list.
        (Some(_), Some(_)) => compares.push(store.unchanged_since(listing.revision)),
        // Among keys of IPv6 alone the name says all. Any other key may be that of a node which still has both.
        (None, _) if listing.entries.iter().any(|entry| entry.key.v4.is_some()) => {
            compares.push(store.unchanged_since(listing.revision));
        }
        (None, _) => {}
    }
    compares
}

/// The unattached lease of an earlier attempt, or a new one.
async fn granted(store: &Store, fresh: &mut Option<EtcdLease>) -> Result<EtcdLease, StoreError> {
    match *fresh {
        Some(lease) => Ok(lease),
        None => {
            let lease = grant(&store.servers).await?;
            *fresh = Some(lease);
            Ok(lease)
        }
    }
}

#[cfg(test)]
mod tests;
