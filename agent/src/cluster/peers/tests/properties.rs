//! What holds for any history of leases.

use proptest::prelude::*;

use super::*;
use crate::cluster::lease::allocate;

/// A step of a history, over few and often overlapping subnets.
#[derive(Clone, Debug)]
enum Step {
    Set {
        low: u8,
        len: u8,
        created: u64,
        ip: u8,
    },
    Remove {
        index: usize,
    },
    Snapshot,
    Rejudge,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..16, 20u8..=26, 1u64..60, 0u8..8)
            .prop_map(|(low, len, created, ip)| Step::Set { low, len, created, ip }),
        2 => any::<prop::sample::Index>().prop_map(|i| Step::Remove { index: i.index(1000) }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Rejudge),
    ]
}

proptest! {
    /// For any history: the peers are those that a greedy choice by age among the existing leases gives, and the
    /// reported changes add up to them.
    #[test]
    fn history_does_not_matter(steps in prop::collection::vec(step(), 1..60)) {
        let mut table = table();
        // The existing leases with their last good attributes, and the sum of the reports.
        let mut exists: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        let mut reported: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        for step in steps {
            let changes = match step {
                Step::Set { low, len, created, ip } => {
                    let v4 = Ipv4Net::new(Ipv4Addr::new(10, 5, low, 64), len).unwrap().trunc();
                    let mut new = lease(&SubnetKey::new(Some(v4), None).name(), "10.0.0.2", created);
                    // Number 1 is our own address, which makes the update a bad one.
                    new.attrs.public_ip = Some(Ipv4Addr::new(10, 0, 0, ip));
                    let bad = ip == 1 || allocate::overlap(&new.key, &key(OWN));
                    let same = exists.get(&new.key).is_some_and(|old| old.created == created);
                    match (bad, same) {
                        (true, true) => {}
                        (true, false) => { exists.remove(&new.key); }
                        (false, _) => { exists.insert(new.key, new.clone()); }
                    }
                    table.apply(set([new]))
                }
                Step::Remove { index } => {
                    let gone = exists.keys().nth(index % exists.len().max(1)).copied();
                    gone.map(|key| exists.remove(&key));
                    table.apply(LeaseEvent::Changes { set: vec![], removed: gone.into_iter().collect() })
                }
                Step::Rejudge => {
                    let refused: BTreeSet<_> = table.refusals().map(|(key, _)| *key).collect();
                    let changes = table.rejudge(&config(), &lease(OWN, "10.0.0.1", 100), check("bad"));
                    // With two reasons, either may be reported.
                    prop_assert!(changes.refused.iter().all(|(key, _)| refused.contains(key)));
                    changes
                }
                Step::Snapshot => table.apply(snapshot(exists.values().cloned().collect::<Vec<_>>(), &[])),
            };

            let mut by_age: Vec<_> = exists.values().collect();
            by_age.sort_by_key(|lease| (lease.created, lease.key));
            let mut expected: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
            for lease in by_age {
                if !expected.keys().any(|key| allocate::overlap(key, &lease.key)) {
                    expected.insert(lease.key, lease.clone());
                }
            }
            let actual: BTreeMap<_, _> = table.peers().map(|l| (l.key, (**l).clone())).collect();
            prop_assert_eq!(&actual, &expected);
            prop_assert_eq!(table.len(), expected.len());

            for lease in &changes.added {
                prop_assert!(reported.insert(lease.key, (**lease).clone()).is_none());
            }
            for update in &changes.changed {
                let old = reported.insert(update.new.key, (*update.new).clone());
                prop_assert_eq!(old.as_ref(), Some(&*update.old));
            }
            for lease in &changes.removed {
                let old = reported.remove(&lease.key);
                prop_assert_eq!(old.as_ref(), Some(&**lease));
            }
            prop_assert_eq!(&reported, &expected);
        }
    }
}

proptest! {
    /// For any history of leases whose public addresses lie inside the network: no peer's subnet covers another's
    /// public address, every waiting lease is blocked by an older one, and the reported changes add up to the peers.
    #[test]
    fn no_subnet_in_use_holds_a_public_address_in_use(
        steps in prop::collection::vec((2u8..8, 23u8..=25, 0u8..10, 1u64..60, any::<bool>()), 1..60)
    ) {
        let mut table = table();
        let mut reported: BTreeSet<SubnetKey> = BTreeSet::new();
        for (low, len, ip, created, gone) in steps {
            let v4 = Ipv4Net::new(Ipv4Addr::new(10, 5, low, 0), len).unwrap().trunc();
            let name = SubnetKey::new(Some(v4), None).name();
            let changes = match gone {
                true => table.apply(removed(&[&name])),
                false => table.apply(set([lease(&name, &format!("10.5.{ip}.200"), created)])),
            };
            for lease in changes.removed {
                prop_assert!(reported.remove(&lease.key));
            }
            for lease in changes.added {
                prop_assert!(reported.insert(lease.key));
            }
            let peers: Vec<_> = table.peers().collect();
            prop_assert_eq!(&peers.iter().map(|peer| peer.key).collect::<BTreeSet<_>>(), &reported);
            for (one, other) in peers.iter().flat_map(|one| peers.iter().map(move |other| (one, other))) {
                let public = one.attrs.public_ip.unwrap();
                prop_assert!(!other.key.v4.unwrap().contains(&public), "{one:?} {other:?}");
            }
            for (key, refusal) in table.refusals() {
                if let PeerRefusal::MeetsOlder(older) | PeerRefusal::OverlapsOlder(older) = refusal {
                    let in_the_way = table.get(older);
                    prop_assert!(in_the_way.is_some(), "{key} waits for {older}");
                }
            }
        }
    }
}

proptest! {
    /// For any input: an update takes nothing from another lease, and a claim that no other lease has is accepted.
    #[test]
    fn an_update_removes_and_changes_nobody_else(
        steps in prop::collection::vec((0u8..6, 0u8..7, 0u8..12, 0u8..8), 1..60)
    ) {
        let mut table = table();
        let mut exists: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        for (revision, (n, mac, ip, what)) in (1u64..).zip(steps) {
            let name = format!("10.5.{}.0-24", 2 + n);
            let known = exists.get(&key(&name)).map(|lease| lease.created);
            if what == 0 {
                exists.remove(&key(&name));
                table.apply(removed(&[&name]));
            } else {
                let new = with_mac(&name, &public_ip(ip), known.unwrap_or(revision), mac);
                exists.insert(new.key, new.clone());
                let changes = table.apply(set([new.clone()]));
                if known.is_some() {
                    // It may have released a claim that blocked an older lease.
                    let came = |gone: &Lease| changes.added.iter().any(|lease| lease.created < gone.created);
                    prop_assert!(
                        changes.removed.iter().all(|gone| gone.key == new.key || came(gone)),
                        "{}", shown(&changes)
                    );
                }
            }
            expect_all_if_nobody_claims_the_same(&table, &exists)?;
        }
    }

    /// The same where several leases change in one event, as after a lost connection.
    #[test]
    fn several_changes_in_one_event_leave_nobody_refused(
        events in prop::collection::vec(prop::collection::vec((0u8..7, 0u8..7, 0u8..12, 0u8..8), 1..5), 1..30)
    ) {
        let mut table = table();
        let mut exists: BTreeMap<SubnetKey, Lease> = BTreeMap::new();
        let mut revision = 0;
        for event in events {
            for (n, mac, ip, what) in event {
                revision += 1;
                let name = match n {
                    6 => "10.5.2.0-23".to_owned(),
                    n => format!("10.5.{}.0-24", 2 + n),
                };
                let known = exists.get(&key(&name)).map(|lease| lease.created);
                match what {
                    0 => drop(exists.remove(&key(&name))),
                    // Created again.
                    1 => drop(exists.insert(key(&name), with_mac(&name, &public_ip(ip), revision, mac))),
                    _ => {
                        let lease = with_mac(&name, &public_ip(ip), known.unwrap_or(revision), mac);
                        exists.insert(lease.key, lease);
                    }
                }
            }
            let all: Vec<Lease> = exists.values().cloned().collect();
            table.apply(snapshot(all, &[]));
            expect_all_if_nobody_claims_the_same(&table, &exists)?;
        }
    }
}

/// Inside the network or outside.
fn public_ip(ip: u8) -> String {
    match ip < 8 {
        true => format!("10.5.{}.9", 2 + ip),
        false => format!("10.0.0.{}", 2 + ip),
    }
}

/// If no two leases claim the same, all are in use as they are, and none is refused.
fn expect_all_if_nobody_claims_the_same(
    table: &PeerTable,
    exists: &BTreeMap<SubnetKey, Lease>,
) -> Result<(), TestCaseError> {
    let is_claimed = |lease: &Lease| {
        exists.values().any(|other| {
            let holds =
                |a: &Lease, b: &Lease| a.key.v4.unwrap().contains(&b.attrs.public_ip.unwrap());
            holds(lease, other)
                || holds(other, lease)
                || other.key != lease.key
                    && (other.attrs.shares_identity(&lease.attrs)
                        || allocate::overlap(&other.key, &lease.key))
        })
    };
    if exists.values().any(is_claimed) {
        return Ok(());
    }
    let in_use: Vec<Lease> = table.peers().map(|lease| (**lease).clone()).collect();
    let all: Vec<Lease> = exists.values().cloned().collect();
    prop_assert_eq!(in_use, all);
    prop_assert_eq!(table.refusals().count(), 0);
    Ok(())
}
