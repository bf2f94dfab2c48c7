//! Which addresses are claimed by the leases in use, for finding overlaps fast.
//!
//! Subnets either contain one another or have nothing in common, so what overlaps a subnet is either one of its at most
//! 128 supernets or lies, in order, in the range of its own addresses.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::lease::SubnetKey;

/// The leases in use. No two of them overlap, once rivals are withdrawn.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Revision of creation.
    created: HashMap<SubnetKey, u64>,
    v4: Prefixes,
    v6: Prefixes,
}

impl Claims {
    pub(super) fn contains(&self, key: &SubnetKey) -> bool {
        self.created.contains_key(key)
    }

    /// Notes what `key` claims: those of its subnets that are in `relevant`.
    pub(super) fn insert(&mut self, key: SubnetKey, relevant: &SubnetKey, created: u64) {
        self.created.insert(key, created);
        if let Some(v4) = relevant.v4 {
            self.v4.insert(Prefix::from(v4), key);
        }
        if let Some(v6) = relevant.v6 {
            self.v6.insert(Prefix::from(v6), key);
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, key: &SubnetKey, relevant: &SubnetKey) -> bool {
        if self.created.remove(key).is_none() {
            return false;
        }
        if let Some(v4) = relevant.v4 {
            self.v4.remove(Prefix::from(v4));
        }
        if let Some(v6) = relevant.v6 {
            self.v6.remove(Prefix::from(v6));
        }
        true
    }

    /// The leases in use that overlap a newcomer, all of them younger; or an older one, if there is any.
    ///
    /// Of the same age (which etcd's revisions never are) the one with the lower key is older.
    pub(super) fn rivals(
        &self,
        key: &SubnetKey,
        relevant: &SubnetKey,
        created: u64,
    ) -> Result<BTreeSet<SubnetKey>, SubnetKey> {
        let mut younger = BTreeSet::new();
        let v4 = relevant.v4.map(|v4| self.v4.overlapping(Prefix::from(v4)));
        let v6 = relevant.v6.map(|v6| self.v6.overlapping(Prefix::from(v6)));
        for rival in v4.into_iter().flatten().chain(v6.into_iter().flatten()) {
            if self.created.get(rival).copied().map(|age| (age, *rival)) < Some((created, *key)) {
                return Err(*rival);
            }
            younger.insert(*rival);
        }
        Ok(younger)
    }
}

/// A subnet of either family, its addresses as 128-bit numbers. Ordered so that a supernet precedes what it contains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Prefix {
    first: u128,
    /// Number of leading bits that count, of 128 for either family.
    len: u8,
}

impl From<Ipv4Net> for Prefix {
    fn from(net: Ipv4Net) -> Self {
        Self {
            first: u128::from(u32::from(net.network())),
            len: 96 + net.prefix_len(),
        }
    }
}

impl From<Ipv6Net> for Prefix {
    fn from(net: Ipv6Net) -> Self {
        Self {
            first: net.network().into(),
            len: net.prefix_len(),
        }
    }
}

impl Prefix {
    fn hosts(len: u8) -> u128 {
        u128::MAX.checked_shr(len.into()).unwrap_or(0)
    }

    fn supernet(self, len: u8) -> Self {
        Self {
            first: self.first & !Self::hosts(len),
            len,
        }
    }
}

#[derive(Debug, Default)]
struct Prefixes {
    owners: BTreeMap<Prefix, SubnetKey>,
    /// How many there are of each length, so that only lengths in use are looked up.
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

    /// Supernets, the widest first, then the prefix itself and what it contains.
    fn overlapping(&self, prefix: Prefix) -> impl Iterator<Item = &SubnetKey> {
        let supernets = self
            .lengths
            .range(..prefix.len)
            .filter_map(move |(len, _)| self.owners.get(&prefix.supernet(*len)));
        let last = Prefix {
            first: prefix.first | Prefix::hosts(prefix.len),
            len: 128,
        };
        let contained = self.owners.range(prefix..=last).map(|(_, owner)| owner);
        supernets.chain(contained)
    }
}
