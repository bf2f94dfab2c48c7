//! Leases that vanished while the store was unreachable.
//!
//! If etcd is unreachable for longer than the TTL, all leases are gone when it is back, and their owners take them
//! again one by one. If peers followed each list in between, the overlay would be torn down and built up again. So a
//! lease that vanished during an outage still counts for a while. In normal operation an expired lease is gone at once.

use std::collections::BTreeSet;

use tokio::time::Instant;

use crate::cluster::lease::SubnetKey;

/// The leases reported to the agent, and those of them that are missing.
#[derive(Debug, Default)]
pub(in crate::cluster::lease) struct HoldDown {
    known: BTreeSet<SubnetKey>,
    missing: BTreeSet<SubnetKey>,
    /// How many leases there were when they were last counted.
    counted: usize,
    /// Until when missing leases still count.
    until: Option<Instant>,
}

impl HoldDown {
    /// There was an outage: leases missing afterwards count until then.
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
        self.missing.clear();
        if self.until.is_some_and(|until| until > now) {
            self.missing.extend(self.known.difference(&listed));
        }
        self.known = listed;
        self.known.extend(&self.missing);
        self.missing.iter().copied().collect()
    }

    /// A lease was written.
    pub(in crate::cluster::lease) fn set(&mut self, key: SubnetKey) {
        self.known.insert(key);
        self.missing.remove(&key);
    }

    /// A lease is gone. Returns whether to report that now.
    pub(in crate::cluster::lease) fn removed(&mut self, key: SubnetKey, now: Instant) -> bool {
        if self.until.is_some_and(|until| until > now) && self.known.contains(&key) {
            self.missing.insert(key);
            return false;
        }
        self.forget(&key);
        true
    }

    /// When to call [`Self::take_gone`] next, if at all.
    pub(in crate::cluster::lease) fn due(&self) -> Option<Instant> {
        self.until.filter(|_| !self.missing.is_empty())
    }

    /// The leases that their owners did not take again in time.
    pub(in crate::cluster::lease) fn take_gone(&mut self, now: Instant) -> Vec<SubnetKey> {
        if self.until.is_some_and(|until| until > now) {
            return Vec::new();
        }
        let gone = std::mem::take(&mut self.missing);
        self.known.retain(|key| !gone.contains(key));
        gone.into_iter().collect()
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
