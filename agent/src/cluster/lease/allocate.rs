//! Choice of a free subnet: pure, with flannel's result but faster.
//!
//! flannel compares every candidate with every lease. Here leases are sorted once, and the walk over the candidates
//! skips everything that a lease covers, so sorting dominates the cost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thiserror::Error;

use crate::base::retry::next_random;
use crate::cluster::lease::SubnetKey;
use crate::cluster::network_config::{AnyRange, NetworkConfig, number};

/// Pick one of this many free subnets, counted from the lowest: flannel's number. Few enough to keep the used part of
/// the network together, many enough that nodes that choose at the same time rarely collide.
const CANDIDATES: usize = 100;

/// After this many lost races the choice is not widened further: among 10,000 subnets, nodes rarely collide.
const WIDEST: u32 = 2;

/// Every subnet of a network is leased or contains a host's address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("no free /{subnet_len} left in {network}{}", but_for(*holds))]
pub struct Exhausted {
    /// The overlay network of one family.
    pub network: IpNet,
    /// Prefix length of a node's subnet in it.
    pub subnet_len: u8,
    /// A host's address, without which a subnet would be free.
    pub holds: Option<IpAddr>,
}

fn but_for(host: Option<IpAddr>) -> String {
    host.map_or_else(String::new, |host| {
        format!(
            " without a host's address ({host}); choose a network, or SubnetMin and SubnetMax, without the hosts' addresses"
        )
    })
}

/// Addresses that a node's subnet must not cover: peers route packets for any address in it to that node's containers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Avoid {
    /// The node's own underlay addresses. A subnet that covers one of them is unusable, even if already held.
    pub underlay: Vec<IpAddr>,
    /// All known host addresses. No subnet that covers one of them is chosen.
    pub addresses: Vec<IpAddr>,
    /// The on-link prefixes of the host's interfaces: unknown hosts may be there. A subnet in one is chosen only if no
    /// other is free, for example where the whole site is one link and the overlay network a part of it.
    pub on_link: Vec<IpNet>,
}

impl Avoid {
    /// The same with more host addresses.
    pub fn and(&self, hosts: impl Iterator<Item = IpAddr>) -> Self {
        let mut avoid = self.clone();
        avoid.addresses.extend(hosts);
        avoid
    }

    /// A host address in one of the subnets.
    pub fn host_in(&self, key: &SubnetKey) -> Option<IpAddr> {
        let mut hosts = self.addresses.iter().copied();
        hosts.find(|host| key.nets().any(|net| net.contains(host)))
    }

    /// One of the node's own underlay addresses in one of the subnets.
    pub fn underlay_in(&self, key: &SubnetKey) -> Option<IpAddr> {
        let mut underlay = self.underlay.iter().copied();
        underlay.find(|address| key.nets().any(|net| net.contains(address)))
    }
}

/// A network of one family as a [`SubnetKey`], to be added to the taken ones.
fn single(net: IpNet) -> SubnetKey {
    match net {
        IpNet::V4(v4) => SubnetKey::new(Some(v4), None),
        IpNet::V6(v6) => SubnetKey::new(None, Some(v6)),
    }
}

/// Like [`choose`], but avoids the hosts' addresses and, if possible, their links.
///
/// # Errors
/// The first family with no free subnet.
pub fn choose_off(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    avoid: &Avoid,
    lost_races: u32,
    seed: u64,
) -> Result<SubnetKey, Exhausted> {
    let networks: Vec<IpNet> = config.networks().collect();
    let meets = |net: &IpNet| {
        let mut networks = networks.iter();
        networks.any(|network| network.contains(net) || net.contains(network))
    };
    let hosts = avoid.addresses.iter().map(|host| IpNet::from(*host));
    let hosts: Vec<_> = hosts.filter(meets).map(single).collect();
    let links: Vec<_> = avoid
        .on_link
        .iter()
        .copied()
        .filter(meets)
        .map(single)
        .collect();
    if hosts.is_empty() && links.is_empty() {
        return choose(config, taken, lost_races, seed);
    }
    let mut off: Vec<_> = taken.iter().chain(&hosts).copied().collect();
    let off_hosts = off.len();
    off.extend(links);
    if let Ok(key) = choose(config, &off, lost_races, seed) {
        return Ok(key);
    }
    off.truncate(off_hosts);
    choose(config, &off, lost_races, seed).map_err(|exhausted| Exhausted {
        holds: choose(config, taken, lost_races, seed)
            .ok()
            .and_then(|key| avoid.host_in(&key)),
        ..exhausted
    })
}

/// A free subnet of each family in the config, picked at random by `seed`.
///
/// `taken` may contain overlaps and networks outside the config. Each lost race makes the choice ten times wider, so
/// that thousands of nodes that start together soon stop colliding.
///
/// # Errors
/// The first family with no free subnet.
pub fn choose(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    lost_races: u32,
    mut seed: u64,
) -> Result<SubnetKey, Exhausted> {
    let candidates = CANDIDATES * 10_usize.pow(lost_races.min(WIDEST));
    let mut key = SubnetKey { v4: None, v6: None };
    for range in config.ranges() {
        let random = next_random(&mut seed);
        let exhausted = Exhausted {
            network: range.network,
            subnet_len: range.subnet_len,
            holds: None,
        };
        match choose_in(&range, taken, candidates, random).ok_or(exhausted)? {
            IpNet::V4(v4) => key.v4 = Some(v4),
            IpNet::V6(v6) => key.v6 = Some(v6),
        }
    }
    Ok(key)
}

/// Whether the config allows this lease: the right families, lengths and bounds.
pub fn allows(config: &NetworkConfig, key: &SubnetKey) -> bool {
    let mut ranges = config.ranges();
    key.nets().count() == config.ranges().count()
        && ranges.all(|range| key.nets().any(|subnet| range.allows(subnet)))
}

/// Whether two leases overlap in either family.
pub fn overlap(a: &SubnetKey, b: &SubnetKey) -> bool {
    let v4 = match (a.v4, b.v4) {
        (Some(a), Some(b)) => a.contains(&b) || b.contains(&a),
        _ => false,
    };
    let v6 = match (a.v6, b.v6) {
        (Some(a), Some(b)) => a.contains(&b) || b.contains(&a),
        _ => false,
    };
    v4 || v6
}

/// A free subnet of one family.
fn choose_in(
    range: &AnyRange,
    taken: &[SubnetKey],
    candidates: usize,
    random: u64,
) -> Option<IpNet> {
    let bits = range.network.max_prefix_len();
    let taken = taken.iter().flat_map(SubnetKey::nets);
    let taken = taken
        .filter(|net| net.max_prefix_len() == bits)
        .map(|net| (number(net.network()), number(net.broadcast())))
        .collect();
    let step = 1 << (bits - range.subnet_len);
    let bounds = (number(range.min), number(range.max));
    let first = pick(bounds, step, taken, candidates, random)?;
    let first = match range.network {
        IpNet::V4(_) => IpAddr::from(Ipv4Addr::from(u32::try_from(first).ok()?)),
        IpNet::V6(_) => IpAddr::from(Ipv6Addr::from(first)),
    };
    IpNet::new(first, range.subnet_len).ok()
}

/// Picks one of the first free multiples of `step` from `min` to `max`; `taken` holds first and last addresses.
fn pick(
    (min, max): (u128, u128),
    step: u128,
    mut taken: Vec<(u128, u128)>,
    candidates: usize,
    random: u64,
) -> Option<u128> {
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut free = Vec::new();
    let mut candidate = min;
    while candidate <= max && free.len() < candidates {
        // Candidates only grow, so a range that ends before this one is never needed again.
        while taken.next_if(|(_, last)| *last < candidate).is_some() {}
        let next = match taken.peek() {
            Some((first, last)) if *first <= candidate + (step - 1) => {
                // The first multiple of `step` beyond the lease.
                (*last & !(step - 1)).checked_add(step)
            }
            _ => {
                free.push(candidate);
                candidate.checked_add(step)
            }
        };
        match next {
            Some(next) => candidate = next,
            None => break,
        }
    }
    let count = u64::try_from(free.len()).ok().filter(|count| *count > 0)?;
    let index = usize::try_from(random % count).ok()?;
    free.get(index).copied()
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use proptest::prelude::*;

    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).unwrap()
    }

    fn keys(names: &[&str]) -> Vec<SubnetKey> {
        names
            .iter()
            .map(|name| SubnetKey::parse_name(name).unwrap())
            .collect()
    }

    #[test]
    fn picks_the_only_free_subnet_and_then_none() {
        let config = config(r#"{"Network":"10.5.0.0/22"}"#); // .1, .2 and .3
        let taken = keys(&["10.5.1.0-24", "10.5.3.128-25", "9.0.0.0-8"]);
        for seed in 0..10 {
            assert_eq!(
                choose(&config, &taken, 0, seed).unwrap().to_string(),
                "10.5.2.0/24"
            );
        }
        assert!(choose(&config, &keys(&["10.5.0.0-16"]), 0, 1).is_err());
        let mut full = taken;
        full.extend(keys(&["10.5.2.6-31"]));
        assert_eq!(
            choose(&config, &full, 0, 1).unwrap_err().to_string(),
            "no free /24 left in 10.5.0.0/22"
        );
    }

    #[test]
    fn picks_among_the_first_hundred_and_reaches_all_of_them() {
        let config = config(r#"{"Network":"10.5.0.0/16"}"#);
        let seen: std::collections::BTreeSet<_> = (0..5000)
            .map(|seed| choose(&config, &[], 0, seed).unwrap())
            .collect();
        assert_eq!(seen.len(), 100);
        assert_eq!(seen.first().unwrap().to_string(), "10.5.1.0/24");
        assert_eq!(seen.last().unwrap().to_string(), "10.5.100.0/24");
    }

    #[test]
    fn two_thousand_nodes_that_start_together_need_few_rounds() {
        let config = config(r#"{"Network":"10.0.0.0/8"}"#);
        let (mut taken, mut waiting) = (Vec::new(), 2_000_usize);
        let mut seed = 1;
        for round in 0..6 {
            // All choose from the same list; of those that collide, one wins.
            let chosen: std::collections::BTreeSet<_> = (0..waiting)
                .map(|_| choose(&config, &taken, round, next_random(&mut seed)).unwrap())
                .collect();
            waiting -= chosen.len();
            taken.extend(chosen);
            if waiting == 0 {
                return;
            }
        }
        panic!("{waiting} nodes are still without a subnet after six rounds");
    }

    #[test]
    fn chooses_both_families_up_to_the_very_last_address() {
        let config = config(
            r#"{"Network":"255.255.0.0/16","SubnetMin":"255.255.255.0","EnableIPv6":true,
                "IPv6Network":"ffff::/16","IPv6SubnetLen":18,"IPv6SubnetMin":"ffff:c000::"}"#,
        );
        let key = choose(&config, &[], 0, 7).unwrap();
        assert_eq!(key.name(), "255.255.255.0-24&ffff:c000::-18");
        assert!(allows(&config, &key));
        let v6_only = keys(&["ffff:c000::-18"]);
        let exhausted = [
            (vec![key], "/24 left in 255"),
            (v6_only, "/18 left in ffff"),
        ];
        for (taken, what) in exhausted {
            let error = choose(&config, &taken, 0, 7).unwrap_err().to_string();
            assert!(error.starts_with(&format!("no free {what}")), "{error}");
        }
        assert!(!allows(&config, &SubnetKey { v6: None, ..key }));
    }

    #[test]
    fn subnets_keep_off_hosts_and_if_they_can_off_their_links() {
        let config = config(r#"{"Network":"10.5.0.0/22"}"#); // .1, .2 and .3
        let avoid = |addresses: &[&str], on_link: &[&str]| Avoid {
            underlay: Vec::new(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            on_link: on_link.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let chosen = |taken: &[&str], avoid: &Avoid| {
            let mut chosen: Vec<_> = (0..50)
                .map(|seed| choose_off(&config, &keys(taken), avoid, 0, seed))
                .map(|key| key.map_or_else(|error| error.to_string(), |key| key.to_string()))
                .collect();
            chosen.sort_unstable();
            chosen.dedup();
            chosen
        };
        let (all, two) = (["10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24"], "10.5.2.0/24");
        assert_eq!(
            chosen(&[], &avoid(&["10.9.1.1", "fd00::1"], &["10.9.0.0/16"])),
            all
        );
        assert_eq!(chosen(&["10.5.1.0-24"], &avoid(&["10.5.3.9"], &[])), [two]);
        // A link with room for several subnets, and one wider than the network.
        let link = avoid(&["10.5.3.9"], &["10.5.3.0/24", "10.5.1.0/24"]);
        assert_eq!(chosen(&[], &link), [two]);
        assert_eq!(chosen(&["10.5.2.0-24"], &link), ["10.5.1.0/24"]);
        assert_eq!(
            chosen(&[], &avoid(&["10.5.3.9"], &["10.0.0.0/8"])),
            all[..2]
        );
        let held = avoid(&["10.5.1.1", "10.5.3.9"], &[]);
        assert_eq!(
            chosen(&["10.5.2.0-24"], &held)[0],
            "no free /24 left in 10.5.0.0/22 without a host's address (10.5.1.1); choose a network, or SubnetMin and SubnetMax, without the hosts' addresses"
        );
        // With no other subnet free, only the leases count.
        let full = chosen(&["10.5.0.0-16"], &held);
        assert_eq!(full, ["no free /24 left in 10.5.0.0/22"]);
    }

    #[test]
    fn overlap_is_by_either_family() {
        let keys = keys(&[
            "10.5.0.0-16&fd00:1::-64",
            "10.5.1.0-24&fd00:2::-64",
            "10.6.1.0-24&fd00:1::-80",
            "10.6.2.0-24",
        ]);
        let table: Vec<_> = (1..4).map(|i| overlap(&keys[0], &keys[i])).collect();
        assert_eq!(table, [true, true, false]);
        assert!(!overlap(&keys[1], &keys[2]));
    }

    proptest! {
        /// Compares with flannel's algorithm: try every candidate against every lease.
        #[test]
        fn agrees_with_trying_them_all(
            subnet_len in 18u8..=30,
            leases in prop::collection::vec((any::<u16>(), 15u8..=31), 0..40),
            seed: u64,
        ) {
            let config = config(&format!(r#"{{"Network":"10.5.0.0/16","SubnetLen":{subnet_len}}}"#));
            let taken: Vec<_> = leases
                .iter()
                .map(|(low, len)| {
                    let address = Ipv4Addr::from(0x0a05_0000 | u32::from(*low));
                    SubnetKey::new(Some(Ipv4Net::new(address, *len).unwrap()), None)
                })
                .collect();
            let range = config.ipv4.unwrap();
            let free: Vec<_> = (u32::from(range.min)..=u32::from(range.max))
                .step_by(1 << (32 - subnet_len))
                .map(|a| SubnetKey::new(Some(Ipv4Net::new(a.into(), subnet_len).unwrap()), None))
                .filter(|c| !taken.iter().any(|t| overlap(c, t)))
                .take(100)
                .collect();
            match choose(&config, &taken, 0, seed) {
                Ok(key) => prop_assert!(free.contains(&key)),
                Err(_) => prop_assert!(free.is_empty()),
            }
        }
    }
}
