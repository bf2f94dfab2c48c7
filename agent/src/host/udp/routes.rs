//! The route table: longest prefix match from destination to peer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::Ipv4Net;

/// A table of subnets and their peers.
///
/// One hash table per prefix length in use. Leases of one network nearly always have the same length, so a lookup is
/// nearly always one probe, whatever the number of peers.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    /// By prefix length, the longest first; none is empty.
    levels: Vec<Level>,
    /// Number of subnets per peer address.
    peers: HashMap<u32, usize, BuildHasherDefault<AddressHasher>>,
}

#[derive(Clone, Debug)]
struct Level {
    prefix_len: u8,
    mask: u32,
    peers: HashMap<u32, SocketAddrV4, BuildHasherDefault<AddressHasher>>,
}

impl Routes {
    /// The peer whose subnet contains an address.
    pub(super) fn lookup(&self, address: Ipv4Addr) -> Option<SocketAddrV4> {
        let bits = address.to_bits();
        self.levels
            .iter()
            .find_map(|level| level.peers.get(&(bits & level.mask)).copied())
    }

    /// Whether a peer with this address has a subnet, whatever its port.
    pub(super) fn has_peer(&self, address: Ipv4Addr) -> bool {
        self.peers.contains_key(&address.to_bits())
    }

    /// Adds a subnet or moves it to another peer. Host bits of the address are ignored.
    pub(super) fn insert(&mut self, subnet: Ipv4Net, peer: SocketAddrV4) {
        self.remove(subnet);
        *self.peers.entry(peer.ip().to_bits()).or_default() += 1;
        let prefix_len = subnet.prefix_len();
        let at = match self.position(prefix_len) {
            Ok(at) => at,
            Err(at) => {
                let level = Level {
                    prefix_len,
                    mask: subnet.netmask().to_bits(),
                    peers: HashMap::default(),
                };
                self.levels.insert(at, level);
                at
            }
        };
        self.levels[at]
            .peers
            .insert(subnet.network().to_bits(), peer);
    }

    /// Removes a subnet, if present.
    pub(super) fn remove(&mut self, subnet: Ipv4Net) {
        if let Ok(at) = self.position(subnet.prefix_len()) {
            let peers = &mut self.levels[at].peers;
            let removed = peers.remove(&subnet.network().to_bits());
            if peers.is_empty() {
                self.levels.remove(at);
            }
            if let Some(peer) = removed {
                self.release(*peer.ip());
            }
        }
    }

    /// All subnets with their peers, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv4Net, SocketAddrV4)> {
        self.levels.iter().flat_map(|level| {
            level.peers.iter().filter_map(|(&bits, &peer)| {
                let subnet = Ipv4Net::new(Ipv4Addr::from_bits(bits), level.prefix_len);
                Some((subnet.ok()?, peer))
            })
        })
    }

    /// Decrements a peer's subnet count.
    fn release(&mut self, address: Ipv4Addr) {
        if let Entry::Occupied(mut count) = self.peers.entry(address.to_bits()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn position(&self, prefix_len: u8) -> Result<usize, usize> {
        self.levels
            .binary_search_by(|level| prefix_len.cmp(&level.prefix_len))
    }
}

/// Hashes one 32-bit number by multiplication (Knuth, TAOCP 6.4). It need not resist collisions: an attacker who can
/// choose subnets can publish a lease for any of them anyway.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The upper half of the product is mixed best, and the hash table uses the lower bits first.
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, n), 8285)
    }

    /// Few addresses, so that prefixes nest and collide.
    fn subnets() -> impl Strategy<Value = Vec<(Ipv4Net, Option<u8>)>> {
        let address = prop_oneof![0_u32..16, any::<u32>()].prop_map(|n| n.rotate_right(8));
        let subnet = (address, 0_u8..=32)
            .prop_map(|(bits, len)| Ipv4Net::new(Ipv4Addr::from_bits(bits), len).unwrap());
        prop::collection::vec((subnet, prop::option::of(any::<u8>())), 0..60)
    }

    proptest! {
        #[test]
        fn finds_what_a_search_of_all_finds(changes in subnets(), others: Vec<u32>) {
            let mut routes = Routes::default();
            let mut naive: Vec<(Ipv4Net, SocketAddrV4)> = Vec::new();
            for &(subnet, n) in &changes {
                naive.retain(|(other, _)| *other != subnet.trunc());
                match n {
                    Some(n) => {
                        routes.insert(subnet, peer(n));
                        naive.push((subnet.trunc(), peer(n)));
                    }
                    None => routes.remove(subnet),
                }
            }
            let addresses = changes.iter().map(|(subnet, _)| subnet.addr());
            for address in addresses.chain(others.into_iter().map(Ipv4Addr::from_bits)) {
                let found = naive.iter().filter(|(subnet, _)| subnet.contains(&address));
                let longest = found.max_by_key(|(subnet, _)| subnet.prefix_len());
                prop_assert_eq!(routes.lookup(address), longest.map(|(_, peer)| *peer));
            }
            for n in 0..=255 {
                let known = naive.iter().any(|(_, other)| *other == peer(n));
                prop_assert_eq!(routes.has_peer(*peer(n).ip()), known);
            }
            let mut all: Vec<_> = routes.iter().collect();
            all.sort();
            naive.sort();
            prop_assert_eq!(all, naive);
        }
    }

    #[test]
    fn aligned_subnets_do_not_collide() {
        // Subnets differ only in their upper bits; a weak hash would map them all to one bucket.
        let hashes = (0_u32..10_000).map(|n| {
            let mut hasher = AddressHasher::default();
            hasher.write_u32(0x0a00_0000 + (n << 8));
            hasher.finish() & 0x3fff
        });
        let mut load = vec![0_u32; 0x4000];
        for hash in hashes {
            load[usize::try_from(hash).unwrap()] += 1;
        }
        assert!(load.iter().max() < Some(&8), "{:?}", load.iter().max());
    }
}
