//! Taking a lease: a pure function decides which one, then compared transactions write it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Store;
use super::challenge::{self, Answer};
use super::grants::Grant;
use super::held::{Claim, Held, claim, delete, lifetime, warn_of_conflict};
use super::listing::{Entry, Listing, list};
use super::rpc::{Compare, Must};
use super::write::Write;
use crate::base::retry::{Backoff, next_random, random_seed};
use crate::cluster::lease::allocate::{self, Avoid, Exhausted};
use crate::cluster::lease::{LeaseAttrs, StoreError, SubnetKey};
use crate::cluster::network_config::NetworkConfig;

/// The node that takes a lease.
pub(super) struct Node<'a> {
    /// What it publishes.
    pub(super) attrs: &'a LeaseAttrs,
    /// The subnet that it had before.
    pub(super) previous: Option<SubnetKey>,
    /// Whether it had that before a restart; its address or owner ID may have changed since.
    pub(super) restarted: bool,
    /// Whether it may challenge other owners. A host behind a lease server does not answer challenges, so it must
    /// not send any either.
    pub(super) may_ask: bool,
    /// Whether its public address is configured on its interface, not on a NAT that other hosts may share.
    pub(super) has_own_address: bool,
    /// What its subnet must not cover.
    pub(super) avoid: &'a Avoid,
}

/// What the owners of other leases answered, by owner ID.
type Answers = BTreeMap<String, Answer>;

impl Node<'_> {
    /// Whose a lease is. Two kinds of leases belong to this host if their owner is not alive:
    ///
    /// * same owner ID, other address: its own lease from before it got its present address, or a clone's;
    /// * same address, other owner ID: its own lease from before it was reinstalled, or that of another host behind the
    ///   same NAT.
    ///
    /// Where nobody can be asked, only evidence counts: the previous subnet on disk, which a cloned disk usually lacks,
    /// or a MAC address or key in common.
    fn claim(&self, entry: &Entry, answers: &Answers) -> Claim {
        let found = entry.attrs.as_ref();
        let claim = claim(self.attrs, found);
        let owner = found.and_then(|attrs| attrs.owner.as_ref());
        let is_ours = match (claim, owner.and_then(|owner| answers.get(owner))) {
            (Claim::Ours | Claim::Other, _) => return claim,
            (Claim::SameOwner, Some(Answer::Silent)) => true,
            (Claim::SameAddress, Some(Answer::Silent)) => self.has_own_address,
            (_, Some(Answer::Alive(_))) => false,
            (Claim::SameOwner, Some(Answer::Unknown(_)) | None) => {
                self.restarted && Some(entry.key) == self.previous
            }
            (Claim::SameAddress, Some(Answer::Unknown(_)) | None) => {
                self.restarted
                    && self.has_own_address
                    && found.is_some_and(|found| self.attrs.shares_identity(found))
            }
        };
        match is_ours {
            true => Claim::Ours,
            false => claim,
        }
    }

    /// The owners of these leases to challenge: those whose answer matters and who were not asked yet.
    fn to_challenge(
        &self,
        config: &NetworkConfig,
        entries: &[Entry],
        answers: &Answers,
    ) -> BTreeSet<String> {
        /// Behind a NAT many leases may have the same address.
        const MOST: usize = 16;
        if !self.may_ask {
            return BTreeSet::new();
        }
        let usable = || {
            entries
                .iter()
                .filter(|entry| allocate::allows(config, &entry.key))
        };
        let has_lease =
            usable().any(|entry| claim(self.attrs, entry.attrs.as_ref()) == Claim::Ours);
        let in_doubt = |entry: &&Entry| match claim(self.attrs, entry.attrs.as_ref()) {
            Claim::SameOwner => !has_lease || Some(entry.key) == self.previous,
            Claim::SameAddress => !has_lease && self.has_own_address,
            Claim::Ours | Claim::Other => false,
        };
        usable()
            .filter(in_doubt)
            .filter_map(|entry| entry.attrs.as_ref()?.owner.clone())
            .filter(|owner| !answers.contains_key(owner))
            .take(MOST)
            .collect()
    }

    /// Challenges all of them concurrently.
    async fn ask(
        &self,
        store: &Store,
        owners: BTreeSet<String>,
        answers: &mut Answers,
    ) -> Result<(), StoreError> {
        let own = self.attrs.public_address().to_string();
        let asked = owners.into_iter().map(|owner| {
            let own = &own;
            async move {
                let answer = challenge::ask(store, &owner, own).await?;
                Ok::<_, StoreError>((owner, answer))
            }
        });
        answers.extend(try_join_all(asked).await?);
        Ok(())
    }

    /// The node's own address if the subnet covers it: peers would send its packets to the containers.
    fn own_address_in(&self, key: &SubnetKey) -> Option<IpAddr> {
        let mut public = self.attrs.public_addresses();
        let public = public.find(|address| key.nets().any(|net| net.contains(address)));
        public.or_else(|| self.avoid.underlay_in(key))
    }
}

/// What to do, given a listing.
#[derive(Debug)]
struct Decision<'a> {
    /// Own leases that the config does not allow.
    discard: Vec<&'a Entry>,
    subnet: Subnet<'a>,
}

#[derive(Debug)]
enum Subnet<'a> {
    /// This node already holds it.
    Keep(&'a Entry),
    Create(SubnetKey),
    NoneLeft(Exhausted),
}

/// A lease was taken.
pub(super) struct Acquired {
    pub(super) held: Held,
    /// All leases, as of just before this node's was written.
    pub(super) listing: Listing,
    pub(super) created: i64,
    /// Whether the etcd lease is an older one, part of whose TTL has already passed.
    pub(super) aged: bool,
}

/// Takes a lease.
pub(super) async fn acquire(
    store: &Store,
    config: &NetworkConfig,
    node: Node<'_>,
) -> Result<Acquired, StoreError> {
    let node = Node {
        // The file may hold a host address; mask it to the subnet.
        previous: node.previous.map(|key| SubnetKey::new(key.v4, key.v6)),
        ..node
    };
    let result = with_retries(store, config, &node).await;
    // Not while etcd is unreachable: a write without a reply may have been committed and need its etcd lease.
    if !matches!(result, Err(StoreError::Unreachable { .. })) {
        store.spares.revoke(&store.servers).await;
    }
    result
}

/// Pauses after a lost race: long enough that the next list shows the winner, with a jitter large enough to separate
/// the nodes.
const RACE_PAUSES: Backoff =
    Backoff::constant(Duration::from_millis(10), Duration::from_secs(1), 0.9);

/// Repeats attempts that lost a race.
async fn with_retries(
    store: &Store,
    config: &NetworkConfig,
    node: &Node<'_>,
) -> Result<Acquired, StoreError> {
    /// As many rounds as flannel.
    const ATTEMPTS: u32 = 10;
    let mut seed = random_seed();
    let mut backoff = RACE_PAUSES.seeded(random_seed());
    let mut answers = Answers::new();
    store.spares.settle(&store.servers).await?;
    let mut grant = store.spares.grant();
    // Known from the last attempt, if it is enough to look at what was written since.
    let mut known = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(backoff.next_delay()).await;
        }
        let mut listing = listed(store, known.take()).await?;
        let owners = node.to_challenge(config, &listing.entries, &answers);
        if !owners.is_empty() {
            node.ask(store, owners, &mut answers).await?;
            // An answer takes seconds, and other nodes did not wait. A lease may be gone, too.
            listing = list(store).await?;
        }
        let random = next_random(&mut seed);
        let decision = decide(config, node, &answers, &listing.entries, attempt, random);
        if attempt == 0 {
            for entry in &listing.entries {
                warn_of_conflict(entry, node.claim(entry, &answers), &answers);
            }
        }
        let mut is_race = false;
        let written = match decision.subnet {
            _ if !decision.discard.is_empty() => {
                discard(store, node, decision.discard).await?;
                None
            }
            // Those that are gone since the list count as taken in one that was only refreshed.
            Subnet::NoneLeft(_) if listing.refreshed != listing.revision => None,
            Subnet::NoneLeft(exhausted) => return Err(StoreError::OutOfSubnets(exhausted)),
            Subnet::Keep(entry) => keep(store, node.attrs, entry, &mut grant).await?,
            Subnet::Create(key) => {
                let created = create(store, node.attrs, key, &listing, &mut grant).await?;
                is_race = created.is_none();
                created
            }
        };
        if let Some((held, created, aged)) = written {
            return Ok(Acquired {
                held,
                listing,
                created,
                aged,
            });
        }
        known = Some(listing).filter(|_| is_race);
    }
    Err(StoreError::LostRaces { attempts: ATTEMPTS })
}

/// All leases. After a lost race for a free subnet, with those written since a known list: thousands of nodes that start
/// together must not read everything at each attempt.
pub(super) async fn listed(store: &Store, known: Option<Listing>) -> Result<Listing, StoreError> {
    let Some(mut listing) = known.or_else(|| Listing::kept(store)) else {
        return list(store).await;
    };
    match listing.refresh(store).await {
        Ok(()) => Ok(listing),
        Err(error) => {
            if matches!(error, StoreError::Unreachable { .. }) {
                listing.keep(store);
            }
            Err(error)
        }
    }
}

/// Deletes own leases that this node may not keep, and logs why. The keeper must not take one of them again.
async fn discard(store: &Store, node: &Node<'_>, leases: Vec<&Entry>) -> Result<(), StoreError> {
    for entry in leases {
        let subnet = entry.key.to_string();
        match node.own_address_in(&entry.key) {
            Some(address) => warn!(
                subnet,
                %address,
                "releasing a lease whose subnet contains this host's own address"
            ),
            None => info!(
                subnet,
                "releasing a lease that the network config no longer allows"
            ),
        }
        let mut held = store.held.lock().await;
        let is_deleted = delete(store, &entry.key, entry.modified).await?;
        if let Some(held) = held
            .as_mut()
            .filter(|held| held.key == entry.key && is_deleted)
        {
            held.spare(store);
            held.etcd_lease = None;
            store.state.touch();
        }
    }
    Ok(())
}

/// Which subnet to take, in flannel's order: the one already held, the previous one, any free one.
fn decide<'a>(
    config: &NetworkConfig,
    node: &Node<'_>,
    answers: &Answers,
    entries: &'a [Entry],
    lost_races: u32,
    seed: u64,
) -> Decision<'a> {
    let own = entries
        .iter()
        .filter(|entry| node.claim(entry, answers) == Claim::Ours);
    let (mut usable, unusable): (Vec<_>, Vec<_>) = own.partition(|entry| {
        allocate::allows(config, &entry.key) && node.own_address_in(&entry.key).is_none()
    });
    // The previous subnet first, then leases that match by address and owner ID, by owner ID, by address; then a
    // reservation, then by key.
    usable.sort_by_key(|entry| {
        (
            Some(entry.key) != node.previous,
            claim(node.attrs, entry.attrs.as_ref()),
            entry.etcd_lease.is_some(),
            entry.key,
        )
    });
    // Only the administrator deletes a reservation, and a lease that matches by address alone may be wanted again.
    let discard = unusable
        .into_iter()
        .filter(|entry| entry.etcd_lease.is_some())
        .filter(|entry| claim(node.attrs, entry.attrs.as_ref()) != Claim::SameAddress)
        .collect();
    let subnet = match usable.first() {
        Some(entry) => Subnet::Keep(entry),
        None => free_subnet(config, node, entries, lost_races, seed),
    };
    Decision { discard, subnet }
}

/// The previous subnet if it is free, else any that is.
fn free_subnet<'a>(
    config: &NetworkConfig,
    node: &Node<'_>,
    entries: &[Entry],
    lost_races: u32,
    seed: u64,
) -> Subnet<'a> {
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

/// Adopts a lease that already belongs to this node. Writes nothing if nothing changed.
async fn keep(
    store: &Store,
    attrs: &LeaseAttrs,
    entry: &Entry,
    grant: &mut Grant<'_>,
) -> Result<Option<(Held, i64, bool)>, StoreError> {
    let published = entry.attrs.clone().unwrap_or_else(|| attrs.clone());
    let mut held = Held::new(entry.key, attrs.clone(), published, entry.modified);
    log_adopted(&held);
    let Some(id) = entry.etcd_lease else {
        let subnet = entry.key.to_string();
        info!(subnet, "using the subnet reserved for this node");
        let unchanged = held.published == held.wanted;
        let kept = unchanged || held.put(store, None).await?;
        return Ok(kept.then_some((held, entry.created, false)));
    };
    // An etcd lease with another TTL (flannel's is 24 hours) is replaced by one of ours.
    let reusable = lifetime(&store.servers, id)
        .await?
        .filter(|lease| lease.ttl == store.servers.settings().lease_ttl);
    if let Some(lease) = reusable {
        held.etcd_lease = Some(lease);
        let unchanged = held.published == held.wanted;
        let kept = unchanged || held.put(store, Some(lease)).await?;
        return Ok(kept.then_some((held, entry.created, true)));
    }
    let lease = grant.lease(&store.servers).await?;
    if held.put(store, Some(lease)).await? {
        grant.attached();
        store.spares.add(id);
        return Ok(Some((held, entry.created, false)));
    }
    Ok(None)
}

/// Logs that a lease of another address or owner is this node's.
fn log_adopted(held: &Held) {
    match claim(&held.wanted, Some(&held.published)) {
        Claim::SameOwner => info!(
            subnet = %held.key,
            former_public_ip = %held.published.public_address(),
            "adopting the lease of this node's former address; no node answers there"
        ),
        Claim::SameAddress => info!(
            subnet = %held.key,
            former_owner = held.published.owner.as_deref().unwrap_or("unknown"),
            "adopting the lease of this address; the node that took it does not answer"
        ),
        Claim::Ours | Claim::Other => {}
    }
}

/// Creates a lease unless another node was faster since the list.
async fn create(
    store: &Store,
    attrs: &LeaseAttrs,
    key: SubnetKey,
    listing: &Listing,
    grant: &mut Grant<'_>,
) -> Result<Option<(Held, i64, bool)>, StoreError> {
    let lease = grant.lease(&store.servers).await?;
    let name = store.key(&key);
    let compares = free(store, &key, listing);
    let write = Write::put(&name, 0, compares, attrs.to_json()?, Some(lease));
    match write.commit(&store.servers).await? {
        Some(revision) => {
            grant.attached();
            let held = Held {
                etcd_lease: Some(lease),
                ..Held::new(key, attrs.clone(), attrs.clone(), revision)
            };
            Ok(Some((held, revision, false)))
        }
        None => {
            let subnet = key.to_string();
            warn!(
                subnet,
                "another node took this subnet first; choosing another"
            );
            Ok(None)
        }
    }
}

/// The comparisons that hold while a subnet that was free in the listing is still free.
fn free(store: &Store, key: &SubnetKey, listing: &Listing) -> Vec<Compare> {
    let name = store.key(key);
    let mut compares = vec![Compare::key(name.as_str(), Must::BeAbsent)];
    match (key.v4, key.v6) {
        // With a second family, the same IPv4 subnet starts a longer key, `…&…`. The byte after '&' is '\''.
        (Some(_), None) => compares.push(Compare::range(
            format!("{name}&"),
            format!("{name}'"),
            Must::BeAbsent,
        )),
        // With two families, an absent key proves nothing: another node may have taken the same IPv4 subnet with
        // another IPv6 one, or alone. So no lease at all may have been created since the list.
        (Some(_), Some(_)) => compares.push(store.unchanged_since(listing.refreshed)),
        // Among IPv6-only keys the name is unique. Any other key may belong to a node that still has both families.
        (None, _) if listing.entries.iter().any(|entry| entry.key.v4.is_some()) => {
            compares.push(store.unchanged_since(listing.refreshed));
        }
        (None, _) => {}
    }
    compares
}

#[cfg(test)]
mod tests;
