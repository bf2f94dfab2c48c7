//! What a node that is not in the sample is shown: its own leases whole, and those of the others as few, wide ones.
//!
//! 65,000 nodes that all read 65,000 leases are four billion values to parse and to keep. A node that has a lease needs
//! those of others for its peers only, so it is shown none. One that chooses a subnet needs to know which are taken, and
//! that only among the first free ones from which it chooses at random ([`Tried::candidates`]): up to there, all others'
//! leases are merged into as few aligned blocks as cover the same subnets, so that the node ends with the same
//! candidates. Where those are thousands, even the blocks are too many: then it is shown only some of them, drawn for
//! each node at random, so that nodes come to choose the same subnet as often.
//!
//! Such a view cannot be refreshed: what was left out of it counts as taken, and a refresh adds leases only. So who
//! refreshes it pays for the refresh, is answered as by a server of another history, and lists again for nothing
//! ([`Tried::draws_again`]). Everything else is counted as what a real server would have sent.

use std::net::Ipv4Addr;

use super::server::Keys;
use super::world::{World, compacted};
use crate::base::retry::next_random;
use crate::cluster::lease::SubnetKey;
use crate::cluster::lease::etcd::rpc::{Failure, KeyValue, Range, Ranged};

/// What a node last tried to write as its lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Tried {
    key: Vec<u8>,
    /// How often another was faster since it last succeeded or listed all leases.
    lost_races: u32,
    /// Whether it was shown only some of the subnets that are free.
    is_thinned: bool,
    /// Whether its next list is for nothing.
    draws_again: bool,
    /// The revision of its last list for nothing, and of the one before it that was none.
    drawn: i64,
    listed: i64,
}

/// One of so many free subnets is shown where few are enough: a power of two.
const THINNED: usize = 32;

/// How many of them a node must still have to choose from.
const FEWEST: usize = 64;

impl Tried {
    /// The node wrote this key, or another was faster.
    pub(super) fn wrote(&mut self, key: &[u8], succeeded: bool) {
        key.clone_into(&mut self.key);
        self.lost_races = match succeeded {
            true => 0,
            false => self.lost_races + 1,
        };
        self.is_thinned &= !succeeded;
    }

    /// The node begins a list of all leases at this revision, and chooses as at first.
    pub(super) fn lists(&mut self, revision: i64) {
        *self = Self {
            key: std::mem::take(&mut self.key),
            listed: revision,
            ..Self::default()
        };
    }

    /// The answer to its refresh, which has no header, has arrived.
    pub(super) fn has_no_view(&mut self) {
        self.draws_again = true;
    }

    /// Where a watch of this node begins that asks for everything from a revision on: after what a real server listed.
    pub(super) fn watched_from(&self, from: i64) -> i64 {
        match from == self.drawn + 1 {
            true => self.listed + 1,
            false => from,
        }
    }

    /// Among how many free subnets the node will choose (`allocate::choose`). One more, since the lowest of a network is
    /// none of them.
    fn candidates(&self) -> usize {
        100 * 10_usize.pow(self.lost_races.min(2)) + 1
    }

    /// Whether the node will choose among as many at each further attempt.
    fn is_widest(&self) -> bool {
        self.lost_races >= 2
    }
}

/// One page of the leases for a node that `owner` names, and what a server would have had to send. All that is shown is
/// on the first page.
pub(super) fn page(
    owner: &str,
    tried: &mut Tried,
    world: &World,
    range: &Range,
) -> Result<(Ranged, Keys), Failure> {
    let all = world.taken.count();
    if range.revision != 0 && (range.count_only || range.revision < world.compacted) {
        // What such a node was shown is not what the cluster has, so the numbers would not match.
        return Err(compacted());
    }
    let mut ranged = Ranged {
        header: world.header(),
        kvs: Vec::new(),
        more: false,
        count: i64::try_from(all).unwrap(),
    };
    if range.count_only {
        let keys = Keys {
            counted: all,
            ..Keys::default()
        };
        return Ok((ranged, keys));
    }
    let begun = begun(world, &range.key);
    if range.min_modified != 0 && tried.is_thinned {
        ranged.header = None;
    } else if begun == 0 {
        ranged.kvs = shown(owner, tried, world);
    }
    if range.min_modified != 0 {
        let sent = world.changes_since(range.min_modified).min(all);
        let keys = Keys {
            sent,
            left_out: all - sent,
            counted: all,
        };
        return Ok((ranged, keys));
    }
    let limit = usize::try_from(range.limit).unwrap();
    let rest = all.saturating_sub(begun);
    let sent = rest.min(limit);
    ranged.more = rest > limit;
    if ranged.more {
        ranged.kvs.push(end_of_page(world, begun + sent));
    }
    let keys = Keys {
        sent,
        left_out: 0,
        counted: rest,
    };
    Ok((ranged, keys))
}

/// The whole list for a node whose view could not be refreshed, if it is such a one.
pub(super) fn drawn_again(owner: &str, tried: &mut Tried, world: &World) -> Option<Ranged> {
    if !std::mem::take(&mut tried.draws_again) {
        return None;
    }
    tried.drawn = world.revision;
    tried.is_thinned = false;
    Some(Ranged {
        header: world.header(),
        kvs: shown(owner, tried, world),
        more: false,
        count: i64::try_from(world.taken.count()).unwrap(),
    })
}

/// A key at the end of a page that tells how many leases came before: a subnet outside the network, as a host of the
/// network would have it.
fn end_of_page(world: &World, so_far: usize) -> KeyValue {
    let number = u32::try_from(so_far).unwrap();
    let address = Ipv4Addr::from(0xc000_0000 | number << 2);
    merged(&world.subnets, &format!("{address}-30"), world.revision)
}

/// How many leases were on earlier pages.
fn begun(world: &World, start: &[u8]) -> usize {
    let name = std::str::from_utf8(&start[world.subnets.len()..]).unwrap();
    let Some((address, _)) = name.split_once('-') else {
        return 0;
    };
    let number = u32::from(address.parse::<Ipv4Addr>().unwrap());
    usize::try_from((number & 0x3fff_ffff) >> 2).unwrap()
}

fn shown(owner: &str, tried: &mut Tried, world: &World) -> Vec<KeyValue> {
    let own: Vec<KeyValue> = world.leases_of(owner).map(|kv| (**kv).clone()).collect();
    if !own.is_empty() {
        return own;
    }
    // The node may want the same subnet again, wherever it is.
    let before = world.current(&tried.key).map(|kv| (**kv).clone());
    let prefix = world.subnets.len();
    let named = before.iter().map(|kv| &kv.key[prefix..]);
    let (mut rest, is_thinned) = world.taken.shown_to(owner, tried);
    tried.is_thinned = is_thinned;
    for name in named {
        rest.set(name, false);
    }
    let blocks = rest.blocks(&world.subnets, world.revision);
    before.into_iter().chain(blocks).collect()
}

/// A lease that stands for those of others: as a key that was just changed, so that it is no contradiction to anything
/// that the node has seen.
fn merged(prefix: &[u8], name: &str, revision: i64) -> KeyValue {
    KeyValue {
        key: [prefix, name.as_bytes()].concat(),
        value: br#"{"PublicIP":"192.0.2.1"}"#.to_vec(),
        created: 1,
        modified: revision + 1,
        version: 1,
        lease: 0,
    }
}

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

    /// As few aligned blocks as cover what is taken.
    fn blocks(&self, prefix: &[u8], revision: i64) -> Vec<KeyValue> {
        let mut found = Vec::new();
        self.cover(0, self.bits.len() * 64, &mut found);
        let kv = |(index, len): (usize, usize)| {
            let address = Ipv4Addr::from(self.first + (u32::try_from(index).unwrap() << 8));
            let name = format!("{address}-{}", 24 - len.ilog2());
            merged(prefix, &name, revision)
        };
        found.into_iter().map(kv).collect()
    }

    /// What counts as taken for a node that chooses, and whether it is more than what is taken.
    fn shown_to(&self, owner: &str, tried: &Tried) -> (Self, bool) {
        let mut shown = self.clone();
        let (end, free) = self.first_free(tried.candidates());
        let is_thinned = tried.is_widest() && free >= FEWEST * THINNED;
        if is_thinned {
            shown.thin(owner);
        }
        shown.fill(end, is_thinned);
        (shown, is_thinned)
    }

    fn is_taken(&self, index: usize) -> bool {
        self.bits[index / 64] & (1 << (index % 64)) != 0
    }

    /// Where the first free ones of this number end, and how many there are up to there.
    fn first_free(&self, most: usize) -> (usize, usize) {
        let mut free = 0;
        for (index, word) in self.bits.iter().enumerate() {
            let here = usize::try_from(word.count_zeros()).unwrap();
            if free + here <= most {
                free += here;
                continue;
            }
            let mut zeros = (0..64).filter(|bit| *word & (1 << bit) == 0);
            let end = zeros.nth(most - free).unwrap();
            return (index * 64 + end, most);
        }
        (self.bits.len() * 64, free)
    }

    /// Frees, or takes, all from there on.
    fn fill(&mut self, from: usize, taken: bool) {
        for (index, word) in self.bits.iter_mut().enumerate().skip(from / 64) {
            let mask = match index == from / 64 {
                true => u64::MAX << (from % 64),
                false => u64::MAX,
            };
            match taken {
                true => *word |= mask,
                false => *word &= !mask,
            }
        }
    }

    /// Takes all but one of [`THINNED`] free subnets: others for each owner, and the same ones whenever it is asked.
    fn thin(&mut self, owner: &str) {
        let mut seed = u64::from_str_radix(&owner[owner.len() - 16..], 16).unwrap();
        for word in &mut self.bits {
            let drawn =
                (0..THINNED.ilog2()).fold(u64::MAX, |drawn, _| drawn & next_random(&mut seed));
            *word |= !drawn;
        }
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
    assert_eq!(taken.count(), 97);
    let names = |free| -> Vec<_> {
        let mut rest = taken.clone();
        rest.fill(taken.first_free(free).0, false);
        rest.set(b"10.0.5.0-24", false);
        let blocks = rest.blocks(b"/", 1);
        let names = blocks
            .iter()
            .map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
        names.collect()
    };
    assert_eq!(
        names(1000),
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
    // 10.0.200.0 lies after the first six free ones, all of them after the first two.
    assert_eq!(names(6), names(1000)[..7]);
    assert_eq!(names(2), [""; 0]);
}

/// Where a node may choose among thousands, each of them is shown to as many nodes as any other, and nothing else is.
#[test]
fn candidates_are_shown_to_one_node_as_often_as_to_another() {
    const NODES: usize = 100 * THINNED;
    let mut taken = Taken::new(Ipv4Addr::new(10, 0, 0, 0), 16);
    for subnet in (1..10_000_u32).step_by(2) {
        let address = Ipv4Addr::from(0x0a00_0000 | subnet << 8);
        taken.set(format!("{address}-24").as_bytes(), true);
    }
    let tried = Tried {
        key: Vec::new(),
        lost_races: 2,
        ..Tried::default()
    };
    let shown: Vec<Taken> = (0..NODES)
        .map(|node| taken.shown_to(&super::fleet::owner(node), &tried).0)
        .collect();
    for subnet in 0..1 << 16 {
        let nodes = shown.iter().filter(|it| !it.is_taken(subnet)).count();
        // 5,000 of the first 10,000 are free, and all that follow.
        match subnet < 15_001 && !taken.is_taken(subnet) {
            true => assert!((50..200).contains(&nodes), "{subnet}: {nodes}"),
            false => assert_eq!(nodes, 0, "{subnet}"),
        }
    }
}
