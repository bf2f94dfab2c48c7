//! Leases that vanished while the store was unreachable.
//!
//! If etcd is unreachable for longer than the TTL, all leases are gone when it is back, and their owners take them
//! again one by one. If peers followed each list in between, the overlay would be torn down and built up again. So a
//! lease that vanished during an outage still counts for a while, and no longer however many outages follow. In normal
//! operation an expired lease is gone at once.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::cluster::lease::SubnetKey;

/// The leases reported to the agent, and those of them that are missing.
#[derive(Debug, Default)]
pub(in crate::cluster::lease) struct HoldDown {
    known: BTreeSet<SubnetKey>,
    /// With the time until when each counts: fixed when it vanished.
    missing: BTreeMap<SubnetKey, Instant>,
    /// How many leases there were when they were last counted.
    counted: usize,
    /// Until when leases that vanish from now on still count.
    until: Option<Instant>,
}

impl HoldDown {
    /// There was an outage: leases that are missing after it, and were not before, count until then.
    pub(in crate::cluster::lease) fn start(&mut self, until: Instant) {
        self.until = self.until.max(Some(until));
    }

    /// The own lease is lost for good; it must not count as a peer's.
    pub(in crate::cluster::lease) fn forget(&mut self, key: &SubnetKey) {
        self.known.remove(key);
        self.missing.remove(key);
    }

    /// A server has counted the leases; the list itself may still fail.
    pub(in crate::cluster::lease) fn counted(&mut self, leases: usize) {
        self.counted = leases;
    }

    /// The number of leases, as far as known.
    pub(in crate::cluster::lease) fn population(&self) -> usize {
        self.known.len().max(self.counted)
    }

    /// All leases were listed. Returns those that are missing but still count.
    pub(in crate::cluster::lease) fn listed(
        &mut self,
        keys: impl Iterator<Item = SubnetKey>,
        now: Instant,
    ) -> Vec<SubnetKey> {
        let listed: BTreeSet<_> = keys.collect();
        let before = std::mem::take(&mut self.missing);
        let missing = self.known.difference(&listed).filter_map(|key| {
            let until = before.get(key).copied().or(self.until)?;
            (until > now).then_some((*key, until))
        });
        self.missing = missing.collect();
        self.known = listed;
        self.known.extend(self.missing.keys());
        self.missing.keys().copied().collect()
    }

    /// A lease was written.
    pub(in crate::cluster::lease) fn set(&mut self, key: SubnetKey) {
        self.known.insert(key);
        self.missing.remove(&key);
    }

    /// A lease is gone. Returns whether to report that now.
    pub(in crate::cluster::lease) fn removed(&mut self, key: SubnetKey, now: Instant) -> bool {
        let until = self.missing.get(&key).copied().or(self.until);
        if let Some(until) = until.filter(|until| *until > now && self.known.contains(&key)) {
            self.missing.insert(key, until);
            return false;
        }
        self.forget(&key);
        true
    }

    /// When to call [`Self::take_gone`] next, if at all.
    pub(in crate::cluster::lease) fn due(&self) -> Option<Instant> {
        self.missing.values().min().copied()
    }

    /// The leases that their owners did not take again in time.
    pub(in crate::cluster::lease) fn take_gone(&mut self, now: Instant) -> Vec<SubnetKey> {
        let gone = self.missing.iter().filter(|(_, until)| **until <= now);
        let gone: Vec<_> = gone.map(|(key, _)| *key).collect();
        for key in &gone {
            self.forget(key);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keys(numbers: &[u8]) -> Vec<SubnetKey> {
        let key = |n| SubnetKey::parse_name(&format!("10.5.{n}.0-24")).unwrap();
        numbers.iter().map(key).collect()
    }

    #[test]
    fn in_quiet_times_a_lease_ends_at_once() {
        let (mut hold_down, now) = (HoldDown::default(), Instant::now());
        let all = keys(&[1, 2, 3]);
        assert_eq!(hold_down.listed(all.iter().copied(), now), []);
        assert!(hold_down.removed(all[0], now));
        assert_eq!(hold_down.listed(keys(&[3]).into_iter(), now), []);
        assert_eq!((hold_down.due(), hold_down.population()), (None, 1));
    }

    #[test]
    fn a_list_that_fails_halfway_has_told_how_large_the_cluster_is() {
        let mut hold_down = HoldDown::default();
        hold_down.counted(65_000);
        assert_eq!(hold_down.population(), 65_000);
    }

    #[test]
    fn after_an_outage_what_is_missing_counts_as_there_for_a_while() {
        let (mut hold_down, now) = (HoldDown::default(), Instant::now());
        let all = keys(&[1, 2, 3, 4]);
        hold_down.listed(all.iter().copied(), now);
        let later = now + Duration::from_secs(20);
        hold_down.start(later);
        hold_down.start(now);
        assert_eq!(hold_down.listed(keys(&[3, 4]).into_iter(), now), all[..2]);
        assert!(!hold_down.removed(all[2], now));
        // The first is taken again; an unknown one may go at once.
        hold_down.set(all[0]);
        assert!(hold_down.removed(keys(&[9])[0], now));
        assert_eq!(hold_down.due(), Some(later));
        assert_eq!(hold_down.take_gone(now), []);
        // The next list agrees.
        assert_eq!(hold_down.listed(keys(&[1, 4]).into_iter(), now), all[1..3]);
        assert_eq!(hold_down.take_gone(later), all[1..3]);
        assert_eq!((hold_down.due(), hold_down.population()), (None, 2));
        assert!(hold_down.removed(all[0], later));
    }

    /// A server that breaks its connections again and again is an outage each time.
    #[test]
    fn one_outage_after_the_other_does_not_keep_a_lease_for_ever() {
        let (mut hold_down, now) = (HoldDown::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let all = keys(&[1, 2, 3]);
        hold_down.listed(all.iter().copied(), now);
        hold_down.start(at(20));
        assert_eq!(hold_down.listed(keys(&[2, 3]).into_iter(), now), all[..1]);
        hold_down.start(at(35));
        assert_eq!(hold_down.listed(keys(&[3]).into_iter(), at(15)), all[..2]);
        assert_eq!(hold_down.due(), Some(at(20)));
        hold_down.start(at(40));
        assert_eq!(hold_down.take_gone(at(20)), all[..1]);
        assert_eq!((hold_down.due(), hold_down.population()), (Some(at(35)), 2));
        hold_down.start(at(55));
        assert_eq!(hold_down.listed(keys(&[3]).into_iter(), at(36)), []);
        // What came back in between starts anew.
        hold_down.set(all[1]);
        assert!(!hold_down.removed(all[1], at(37)));
        assert_eq!(hold_down.due(), Some(at(55)));
    }

    #[test]
    fn the_own_lease_is_never_held_down() {
        let (mut hold_down, now) = (HoldDown::default(), Instant::now());
        let own = keys(&[1])[0];
        hold_down.listed([own].into_iter(), now);
        hold_down.start(now + Duration::from_secs(20));
        hold_down.forget(&own);
        assert_eq!(hold_down.listed(std::iter::empty(), now), []);
    }
}
