//! The leases of one network as a server reports them: all, or what changed since a client last asked.
//!
//! A cursor is a point in the history of one process, `EPOCH-CHANGES-CONFIGS`. A cursor of another server or an earlier
//! process, or one older than the history, is answered with all leases. Pure, so that tests are tables.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::cluster::lease::rest::wire::EventType;
use crate::cluster::lease::{Lease, LeaseEvent, SubnetKey};

/// The number of changes to remember: a client that missed more is better served with all leases.
const HISTORY: usize = 8192;

/// The leases of one network and their latest changes.
#[derive(Debug)]
pub(super) struct Table {
    epoch: u64,
    /// The number of changes so far.
    changes: u64,
    /// The number of changes of the network config so far.
    configs: u64,
    leases: BTreeMap<SubnetKey, Lease>,
    /// Subnets that are taken although their lease cannot be parsed.
    unreadable: BTreeSet<SubnetKey>,
    history: VecDeque<Change>,
    listed: bool,
}

/// One change, with its number.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    event: EventType,
    /// As it was last, if it is gone.
    lease: Lease,
}

/// What to answer for a cursor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// Everything.
    All,
    /// Each changed lease once, with its last change.
    Changes(Vec<(EventType, Lease)>),
    /// Only the network config changed.
    Config,
    /// Nothing.
    Nothing,
}

impl Table {
    /// An empty table; `epoch` differs for each process of each server.
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            changes: 0,
            configs: 0,
            leases: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            history: VecDeque::new(),
            listed: false,
        }
    }

    /// Whether all leases have been listed once.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// The number of leases.
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    /// All leases, and the subnets of those that cannot be parsed.
    pub(super) fn all(&self) -> (impl Iterator<Item = &Lease>, Vec<String>) {
        let unreadable = self.unreadable.iter().map(SubnetKey::name).collect();
        (self.leases.values(), unreadable)
    }

    /// A lease, if known.
    pub(super) fn get(&self, key: &SubnetKey) -> Option<&Lease> {
        self.leases.get(key)
    }

    /// The cursor for the next request.
    pub(super) fn cursor(&self) -> String {
        format!("{:016x}-{}-{}", self.epoch, self.changes, self.configs)
    }

    /// A text that changes with the network config.
    pub(super) fn config_tag(&self) -> String {
        format!("{:016x}-{}", self.epoch, self.configs)
    }

    /// The network config changed.
    pub(super) fn config_changed(&mut self) {
        self.configs += 1;
    }

    /// Applies an event of the store. A snapshot becomes the changes that lead to it.
    pub(super) fn apply(&mut self, event: LeaseEvent) {
        match event {
            LeaseEvent::Snapshot { leases, unreadable } => {
                let mut gone: BTreeSet<_> = self.leases.keys().copied().collect();
                self.unreadable.clear();
                for lease in leases {
                    gone.remove(&lease.key);
                    if self.leases.get(&lease.key) != Some(&lease) {
                        self.set(lease);
                    }
                }
                for key in unreadable {
                    gone.remove(&key);
                    if !self.leases.contains_key(&key) {
                        self.unreadable.insert(key);
                    }
                }
                for key in gone {
                    self.remove(&key);
                }
                self.listed = true;
            }
            LeaseEvent::Changes { set, removed } => {
                for key in removed {
                    self.remove(&key);
                }
                for lease in set {
                    self.set(lease);
                }
            }
        }
    }

    /// The changes after a cursor; without one, everything.
    pub(super) fn since(&self, cursor: Option<&str>) -> News {
        let Some((changes, configs)) = cursor.and_then(|cursor| self.position(cursor)) else {
            return News::All;
        };
        let oldest = self.history.front().map_or(self.changes, |c| c.number - 1);
        if changes < oldest {
            return News::All;
        }
        let new = self.history.iter().filter(|change| change.number > changes);
        let last: BTreeMap<_, _> = new.map(|change| (change.lease.key, change)).collect();
        if !last.is_empty() {
            let changes = last.into_values();
            News::Changes(changes.map(|c| (c.event, c.lease.clone())).collect())
        } else if configs == self.configs {
            News::Nothing
        } else {
            News::Config
        }
    }

    /// Parses a cursor of this table; `None` for any other.
    fn position(&self, cursor: &str) -> Option<(u64, u64)> {
        let mut parts = cursor.split('-');
        let epoch = u64::from_str_radix(parts.next()?, 16).ok()?;
        let (changes, configs) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let good = epoch == self.epoch
            && parts.next().is_none()
            && changes <= self.changes
            && configs <= self.configs;
        good.then_some((changes, configs))
    }

    fn set(&mut self, lease: Lease) {
        self.unreadable.remove(&lease.key);
        self.leases.insert(lease.key, lease.clone());
        self.note(EventType::Added, lease);
    }

    fn remove(&mut self, key: &SubnetKey) {
        self.unreadable.remove(key);
        if let Some(lease) = self.leases.remove(key) {
            self.note(EventType::Removed, lease);
        }
    }

    fn note(&mut self, event: EventType, lease: Lease) {
        self.changes += 1;
        self.history.push_back(Change {
            number: self.changes,
            event,
            lease,
        });
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lease::LeaseAttrs;

    fn lease(number: u8, created: u64) -> Lease {
        Lease {
            key: SubnetKey::parse_name(&format!("10.5.{number}.0-24")).unwrap(),
            attrs: LeaseAttrs::parse(br#"{"PublicIP":"10.0.0.1"}"#).unwrap(),
            created,
        }
    }

    fn snapshot(leases: &[Lease], unreadable: &[Lease]) -> LeaseEvent {
        LeaseEvent::Snapshot {
            leases: leases.to_vec(),
            unreadable: unreadable.iter().map(|lease| lease.key).collect(),
        }
    }

    fn changes(set: &[Lease], removed: &[Lease]) -> LeaseEvent {
        LeaseEvent::Changes {
            set: set.to_vec(),
            removed: removed.iter().map(|lease| lease.key).collect(),
        }
    }

    use EventType::{Added, Removed};

    #[test]
    fn each_lease_that_changed_is_told_once_with_its_last_change() {
        let mut table = Table::new(7);
        assert!(!table.is_listed());
        table.apply(snapshot(&[lease(1, 1), lease(2, 1)], &[]));
        assert!(table.is_listed());
        let start = table.cursor();
        assert_eq!(table.since(Some(&start)), News::Nothing);
        table.apply(changes(&[lease(3, 2)], &[lease(1, 1)]));
        table.apply(changes(&[], &[lease(3, 2)]));
        table.apply(changes(&[lease(1, 4)], &[]));
        // The removal of an unknown lease is no news.
        table.apply(changes(&[], &[lease(9, 1)]));
        assert_eq!(
            table.since(Some(&start)),
            News::Changes(vec![(Added, lease(1, 4)), (Removed, lease(3, 2))])
        );
        assert_eq!(table.since(Some(&table.cursor())), News::Nothing);
        assert_eq!(table.since(None), News::All);
    }

    #[test]
    fn another_snapshot_is_told_as_the_changes_that_lead_to_it() {
        let mut table = Table::new(7);
        table.apply(snapshot(&[lease(1, 1), lease(2, 1), lease(3, 1)], &[]));
        let start = table.cursor();
        table.apply(snapshot(
            &[lease(1, 1), lease(4, 2)],
            &[lease(2, 1), lease(5, 1)],
        ));
        assert_eq!(
            table.since(Some(&start)),
            News::Changes(vec![(Removed, lease(3, 1)), (Added, lease(4, 2))])
        );
        let (all, unreadable) = table.all();
        assert_eq!(all.count(), 3);
        assert_eq!(unreadable, ["10.5.5.0-24"]);
    }

    #[test]
    fn a_changed_network_config_is_news_of_its_own() {
        let mut table = Table::new(7);
        table.apply(snapshot(&[], &[]));
        let (start, tag) = (table.cursor(), table.config_tag());
        table.config_changed();
        assert_eq!(table.since(Some(&start)), News::Config);
        assert_ne!(table.config_tag(), tag);
        table.apply(changes(&[lease(1, 1)], &[]));
        assert_eq!(
            table.since(Some(&start)),
            News::Changes(vec![(Added, lease(1, 1))])
        );
    }

    #[test]
    fn cursors_of_others_and_forgotten_ones_give_everything() {
        let mut table = Table::new(7);
        table.apply(snapshot(&[lease(1, 1)], &[]));
        let start = table.cursor();
        for cursor in [
            "",
            "x",
            "12345",
            "0000000000000008-1-0",
            "0000000000000007-2-0",
            "0000000000000007-1-1",
            "0000000000000007-1",
            "0000000000000007-1-0-0",
            "0000000000000007--1-0",
        ] {
            assert_eq!(table.since(Some(cursor)), News::All, "{cursor:?}");
        }
        for number in 0..=u64::try_from(HISTORY).unwrap() {
            assert_ne!(table.since(Some(&start)), News::All, "{number}");
            table.apply(changes(&[lease(2, number)], &[]));
        }
        assert_eq!(table.since(Some(&start)), News::All);
    }
}
