//! The addresses claimed by the leases in use, indexed to find overlaps fast: those of their subnets, and public
//! addresses that another node's subnet could cover.
//!
//! Two subnets either contain one another or are disjoint. So whatever overlaps a subnet is either one of its at most
//! 128 supernets or lies, in order, in the range of its own addresses.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::base::net::Family;
use crate::cluster::lease::SubnetKey;

/// What a lease claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    pub(super) key: SubnetKey,
    /// Its relevant subnets.
    pub(super) subnets: SubnetKey,
    /// The public addresses that another node's subnet could cover, as host prefixes.
    pub(super) public: SubnetKey,
    /// Revision of creation.
    pub(super) created: u64,
}

impl Claim {
    fn subnets(&self) -> impl Iterator<Item = (Family, Prefix)> {
        by_family(&self.subnets)
    }

    fn public(&self) -> impl Iterator<Item = (Family, Prefix)> {
        by_family(&self.public)
    }
}

fn by_family(key: &SubnetKey) -> impl Iterator<Item = (Family, Prefix)> + use<> {
    let v4 = key.v4.map(|v4| (Family::V4, Prefix::from(v4)));
    let v6 = key.v6.map(|v6| (Family::V6, Prefix::from(v6)));
    v4.into_iter().chain(v6)
}

/// The leases in use. Once rivals are withdrawn, no two of them overlap, and none has its public address in another's
/// subnet.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Revision of creation.
    created: BTreeMap<SubnetKey, u64>,
    v4: Prefixes,
    v6: Prefixes,
    /// Public addresses with their leases. Several leases may share one.
    public: BTreeSet<(Family, Prefix, SubnetKey)>,
}

impl Claims {
    pub(super) fn contains(&self, key: &SubnetKey) -> bool {
        self.created.contains_key(key)
    }

    fn prefixes(&mut self, family: Family) -> &mut Prefixes {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    fn prefixes_of(&self, family: Family) -> &Prefixes {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Builds the maps anew, each at once, so that their nodes are full.
    pub(super) fn compact(&mut self) {
        self.created = std::mem::take(&mut self.created).into_iter().collect();
        self.public = std::mem::take(&mut self.public).into_iter().collect();
        for Prefixes { owners, .. } in [&mut self.v4, &mut self.v6] {
            *owners = std::mem::take(owners).into_iter().collect();
        }
    }

    /// Adds a lease's claim.
    pub(super) fn insert(&mut self, claim: Claim) {
        for (family, prefix) in claim.subnets() {
            self.prefixes(family).insert(prefix, claim.key);
        }
        let public = claim.public().map(|(family, at)| (family, at, claim.key));
        self.public.extend(public);
        self.created.insert(claim.key, claim.created);
    }

    /// Removes a claim. Returns whether it was there.
    pub(super) fn remove(&mut self, claim: &Claim) -> bool {
        if self.created.remove(&claim.key).is_none() {
            return false;
        }
        for (family, prefix) in claim.subnets() {
            self.prefixes(family).remove(prefix);
        }
        for (family, at) in claim.public() {
            self.public.remove(&(family, at, claim.key));
        }
        true
    }

    /// The lease in use whose subnet covers a public address of another lease, if any.
    pub(super) fn subnet_covering(&self, claim: &Claim) -> Option<SubnetKey> {
        let mut holders = claim
            .public()
            .flat_map(|(family, at)| self.prefixes_of(family).overlapping(at).copied());
        holders.find(|holder| *holder != claim.key)
    }

    /// The leases in use that conflict with a new claim (they overlap, or one's subnet covers the other's public
    /// address), if all of them are younger; else an older one as the error.
    ///
    /// At equal age, which etcd's revisions never have, the lease with the lower key is older.
    pub(super) fn rivals(&self, claim: &Claim) -> Result<BTreeSet<SubnetKey>, SubnetKey> {
        let overlapping = claim
            .subnets()
            .chain(claim.public())
            .flat_map(|(family, prefix)| self.prefixes_of(family).overlapping(prefix).copied());
        let lowest = SubnetKey { v4: None, v6: None };
        let inside = claim.subnets().flat_map(|(family, prefix)| {
            let from = (family, prefix, lowest);
            self.public
                .range(from..)
                .take_while(move |(of, at, _)| *of == family && at.first <= prefix.last())
                .map(|(_, _, key)| *key)
        });
        let mut younger = BTreeSet::new();
        for rival in overlapping
            .chain(inside)
            .filter(|rival| *rival != claim.key)
        {
            let age = self.created.get(&rival).copied();
            if age.map(|age| (age, rival)) < Some((claim.created, claim.key)) {
                return Err(rival);
            }
            younger.insert(rival);
        }
        Ok(younger)
    }
}

/// A subnet of either family, with its addresses as 128-bit numbers. Ordered so that a supernet precedes its subnets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Prefix {
    /// In the order of the network, so that there is one of these for each peer without padding.
    first: [u8; 16],
    /// The prefix length, out of 128 bits for either family.
    len: u8,
}

impl From<Ipv4Net> for Prefix {
    fn from(net: Ipv4Net) -> Self {
        Self {
            first: u128::from(u32::from(net.network())).to_be_bytes(),
            len: 96 + net.prefix_len(),
        }
    }
}

impl From<Ipv6Net> for Prefix {
    fn from(net: Ipv6Net) -> Self {
        Self {
            first: net.network().octets(),
            len: net.prefix_len(),
        }
    }
}

impl Prefix {
    fn hosts(len: u8) -> u128 {
        u128::MAX.checked_shr(len.into()).unwrap_or(0)
    }

    /// The last address.
    fn last(self) -> [u8; 16] {
        (u128::from_be_bytes(self.first) | Self::hosts(self.len)).to_be_bytes()
    }

    fn supernet(self, len: u8) -> Self {
        let first = u128::from_be_bytes(self.first) & !Self::hosts(len);
        Self {
            first: first.to_be_bytes(),
            len,
        }
    }
}

#[derive(Debug, Default)]
struct Prefixes {
    owners: BTreeMap<Prefix, SubnetKey>,
    /// The number of subnets of each length, so that only lengths in use are looked up.
    lengths: BTreeMap<u8, usize>,
}

impl Prefixes {
    fn insert(&mut self, prefix: Prefix, owner: SubnetKey) {
        if self.owners.insert(prefix, owner).is_none() {
            *self.lengths.entry(prefix.len).or_default() += 1;
        }
    }

    fn remove(&mut self, prefix: Prefix) {
        if self.owners.remove(&prefix).is_some()
            && let Some(count) = self.lengths.get_mut(&prefix.len)
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&prefix.len);
            }
        }
    }

    /// Supernets, widest first, then the prefix itself and its subnets.
    fn overlapping(&self, prefix: Prefix) -> impl Iterator<Item = &SubnetKey> {
        let supernets = self
            .lengths
            .range(..prefix.len)
            .filter_map(move |(len, _)| self.owners.get(&prefix.supernet(*len)));
        let last = Prefix {
            first: prefix.last(),
            len: 128,
        };
        let contained = self.owners.range(prefix..=last).map(|(_, owner)| owner);
        supernets.chain(contained)
    }
}
