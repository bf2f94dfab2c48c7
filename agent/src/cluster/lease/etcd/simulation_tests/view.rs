//! What a node that is not in the sample is shown: its own leases whole, and those of the others as few, wide ones.
//!
//! 65,000 nodes that all read 65,000 leases are four billion values to parse. The choice of a free subnet only needs to
//! know which are taken, so all others' leases are merged into as few aligned blocks as cover the same subnets: the node
//! ends with the same candidates. The load counts what a real server would have sent.

use std::net::Ipv4Addr;

use crate::cluster::lease::SubnetKey;
use crate::cluster::lease::etcd::rpc::KeyValue;

/// Which /24 of the network are taken.
#[derive(Clone)]
pub(super) struct Taken {
    first: u32,
    bits: Vec<u64>,
    count: usize,
}

impl Taken {
    /// Of a network of `1 << width` subnets, at least 64.
    pub(super) fn new(network: Ipv4Addr, width: u8) -> Self {
        Self {
            first: u32::from(network),
            bits: vec![0; (1 << width) / 64],
            count: 0,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    fn index(&self, name: &[u8]) -> usize {
        let key = SubnetKey::parse_name(std::str::from_utf8(name).unwrap()).unwrap();
        let subnet = key.v4.unwrap();
        assert_eq!(subnet.prefix_len(), 24, "{subnet}");
        usize::try_from((u32::from(subnet.addr()) - self.first) >> 8).unwrap()
    }

    pub(super) fn set(&mut self, name: &[u8], taken: bool) {
        let index = self.index(name);
        let (word, bit) = (&mut self.bits[index / 64], 1 << (index % 64));
        let was = *word & bit != 0;
        match taken {
            true => *word |= bit,
            false => *word &= !bit,
        }
        self.count = self.count + usize::from(taken) - usize::from(was);
    }

    /// The blocks, without the subnets named: as keys that were just changed.
    pub(super) fn blocks<'a>(
        &self,
        prefix: &[u8],
        without: impl Iterator<Item = &'a [u8]>,
        revision: i64,
    ) -> Vec<KeyValue> {
        let mut rest = self.clone();
        for name in without {
            rest.set(name, false);
        }
        let mut found = Vec::new();
        rest.cover(0, rest.bits.len() * 64, &mut found);
        let kv = |(index, len): (usize, usize)| {
            let address = Ipv4Addr::from(self.first + (u32::try_from(index).unwrap() << 8));
            let name = format!("{address}-{}", 24 - len.ilog2());
            KeyValue {
                key: [prefix, name.as_bytes()].concat(),
                value: br#"{"PublicIP":"192.0.2.1"}"#.to_vec(),
                created: 1,
                // Later than all that the node has seen, so that it is no contradiction to it.
                modified: revision + 1,
                version: 1,
                lease: 0,
            }
        };
        found.into_iter().map(kv).collect()
    }

    fn cover(&self, index: usize, len: usize, found: &mut Vec<(usize, usize)>) {
        let (all, any) = if len >= 64 {
            let words = &self.bits[index / 64..(index + len) / 64];
            let all = words.iter().all(|word| *word == u64::MAX);
            (all, all || words.iter().any(|word| *word != 0))
        } else {
            let mask = ((1 << len) - 1) << (index % 64);
            let word = self.bits[index / 64] & mask;
            (word == mask, word != 0)
        };
        if all {
            found.push((index, len));
        } else if any {
            self.cover(index, len / 2, found);
            self.cover(index + len / 2, len / 2, found);
        }
    }
}

#[test]
fn blocks_cover_what_is_taken_and_nothing_else() {
    let mut taken = Taken::new(Ipv4Addr::new(10, 0, 0, 0), 8);
    for subnet in (4..100).chain([200]) {
        taken.set(format!("10.0.{subnet}.0-24").as_bytes(), true);
    }
    let without = [&b"10.0.5.0-24"[..]];
    let blocks = taken.blocks(b"/", without.into_iter(), 1);
    let names = blocks
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
    let names: Vec<_> = names.collect();
    assert_eq!(
        names,
        [
            "/10.0.4.0-24",
            "/10.0.6.0-23",
            "/10.0.8.0-21",
            "/10.0.16.0-20",
            "/10.0.32.0-19",
            "/10.0.64.0-19",
            "/10.0.96.0-22",
            "/10.0.200.0-24",
        ]
    );
    assert_eq!(taken.count(), 97);
}
