//! Choice of a free subnet: pure, and the same as flannel's but for the speed.
//!
//! flannel compares every candidate with every lease. Here leases are sorted once, and the walk over the candidates
//! skips all that a lease covers, so the cost is that of sorting.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::lease::SubnetKey;
use crate::network_config::{Ipv4Range, Ipv6Range, NetworkConfig};
use crate::retry::next_random;

/// From how many free subnets one is picked, counted from the lowest: flannel's number. Few enough to keep the used part
/// of the network together, many enough that nodes which choose at once seldom meet.
const CANDIDATES: usize = 100;

/// After so many lost races the choice is not widened further: among 10,000 subnets, nodes seldom meet.
const WIDEST: u32 = 2;

/// Every subnet of a network is leased.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("no free /{subnet_len} left in {network}")]
pub struct Exhausted {
    /// The overlay network of one family.
    pub network: IpNet,
    /// Prefix length of a node's subnet in it.
    pub subnet_len: u8,
}

/// A free subnet of each family that the config has, picked at random by `seed`.
///
/// `taken` may overlap itself and lie anywhere. With each lost race the choice is among ten times as many subnets, so that
/// thousands of nodes which start together do not go on meeting.
///
/// # Errors
/// The first family that has none left.
pub fn choose(
    config: &NetworkConfig,
    taken: &[SubnetKey],
    lost_races: u32,
    mut seed: u64,
) -> Result<SubnetKey, Exhausted> {
    let candidates = CANDIDATES * 10_usize.pow(lost_races.min(WIDEST));
    let v4 = match &config.ipv4 {
        Some(range) => Some(
            choose_ipv4(range, taken, candidates, next_random(&mut seed)).ok_or(Exhausted {
                network: range.network.into(),
                subnet_len: range.subnet_len,
            })?,
        ),
        None => None,
    };
    let v6 = match &config.ipv6 {
        Some(range) => Some(
            choose_ipv6(range, taken, candidates, next_random(&mut seed)).ok_or(Exhausted {
                network: range.network.into(),
                subnet_len: range.subnet_len,
            })?,
        ),
        None => None,
    };
    Ok(SubnetKey { v4, v6 })
}

/// Whether a node may hold this lease under the config: the right families, lengths and bounds.
pub fn allows(config: &NetworkConfig, key: &SubnetKey) -> bool {
    let v4 = match (&config.ipv4, key.v4) {
        (Some(range), Some(v4)) => range.allows(v4),
        (range, subnet) => range.is_none() && subnet.is_none(),
    };
    let v6 = match (&config.ipv6, key.v6) {
        (Some(range), Some(v6)) => range.allows(v6),
        (range, subnet) => range.is_none() && subnet.is_none(),
    };
    v4 && v6
}

/// Whether two leases have an address in common, in either family.
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

fn choose_ipv4(
    range: &Ipv4Range,
    taken: &[SubnetKey],
    candidates: usize,
    random: u64,
) -> Option<Ipv4Net> {
    let number = |address: Ipv4Addr| u128::from(u32::from(address));
    let taken = taken
        .iter()
        .filter_map(|key| key.v4)
        .map(|v4| (number(v4.network()), number(v4.broadcast())))
        .collect();
    let step = 1 << (32 - range.subnet_len);
    let bounds = (number(range.min), number(range.max));
    let first = pick(bounds, step, taken, candidates, random)?;
    Ipv4Net::new(u32::try_from(first).ok()?.into(), range.subnet_len).ok()
}

fn choose_ipv6(
    range: &Ipv6Range,
    taken: &[SubnetKey],
    candidates: usize,
    random: u64,
) -> Option<Ipv6Net> {
    let number = |address: Ipv6Addr| u128::from(address);
    let taken = taken
        .iter()
        .filter_map(|key| key.v6)
        .map(|v6| (number(v6.network()), number(v6.broadcast())))
        .collect();
    let step = 1 << (128 - range.subnet_len);
    let bounds = (number(range.min), number(range.max));
    let first = pick(bounds, step, taken, candidates, random)?;
    Ipv6Net::new(first.into(), range.subnet_len).ok()
}

/// Picks one of the first free multiples of `step` from `min` to `max`; `taken` are first and last addresses.
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
        // Candidates only grow, so what ends before this one is done with.
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
            // All of them choose by one list; of those who meet, one wins.
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
        /// Compares with flannel's way: try every candidate against every lease.
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
