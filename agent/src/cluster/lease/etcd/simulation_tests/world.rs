//! What an etcd cluster stores: keys with all their revisions, and etcd leases. Pure; time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::view::Taken;
use crate::cluster::lease::etcd::rpc::{
    Change, Compare, Event, Failure, Header, KeyValue, Must, Range, Ranged, TimeToLive, Txn, code,
};

/// A key at one revision; `None` if it was deleted then.
#[derive(Clone)]
struct Version {
    at: i64,
    kv: Option<Arc<KeyValue>>,
}

#[derive(Clone)]
struct Lease {
    granted: Duration,
    expires: Instant,
    keys: BTreeSet<Vec<u8>>,
}

/// The content of a cluster. A clone is a backup.
#[derive(Clone)]
pub(super) struct World {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    /// Revisions below this one are gone.
    pub(super) compacted: i64,
    keys: BTreeMap<Vec<u8>, Vec<Version>>,
    /// Every change since the compaction, and the changes of each owner's leases.
    log: Vec<(i64, Vec<u8>)>,
    log_of: HashMap<String, Vec<(i64, Vec<u8>)>>,
    owned: HashMap<String, BTreeSet<Vec<u8>>>,
    leases: HashMap<i64, Lease>,
    expiries: BTreeSet<(Instant, i64)>,
    /// The key prefix of the leases, and which subnets are taken.
    pub(super) subnets: Vec<u8>,
    pub(super) taken: Taken,
}

impl World {
    pub(super) fn new(prefix: &str, taken: Taken) -> Self {
        Self {
            cluster: 0xe7cd,
            revision: 1,
            compacted: 0,
            keys: BTreeMap::new(),
            log: Vec::new(),
            log_of: HashMap::new(),
            owned: HashMap::new(),
            leases: HashMap::new(),
            expiries: BTreeSet::new(),
            subnets: format!("{prefix}/subnets/").into(),
            taken,
        }
    }

    pub(super) fn header(&self) -> Option<Header> {
        Some(Header {
            cluster: self.cluster,
            revision: self.revision,
        })
    }

    pub(super) fn is_lease(&self, key: &[u8]) -> bool {
        key.starts_with(&self.subnets)
    }

    pub(super) fn current(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)?.last()?.kv.as_ref()
    }

    /// The keys of a range at a revision.
    fn at<'a>(
        &'a self,
        range: &'a Range,
        revision: i64,
    ) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let end = match range.end.is_empty() {
            true => Bound::Included(range.key.as_slice()),
            false => Bound::Excluded(range.end.as_slice()),
        };
        let versions = self
            .keys
            .range::<[u8], _>((Bound::Included(range.key.as_slice()), end));
        versions.filter_map(move |(_, versions)| {
            let last = versions.iter().rev().find(|it| it.at <= revision)?;
            last.kv.as_ref()
        })
    }

    pub(super) fn range(&self, range: &Range) -> Result<Ranged, Failure> {
        let revision = match range.revision {
            0 => self.revision,
            revision => revision,
        };
        if revision < self.compacted {
            return Err(compacted());
        }
        if revision > self.revision {
            let cause = "etcdserver: mvcc: required revision is a future revision";
            return Err(Failure::answer(code::OUT_OF_RANGE, cause.to_owned()));
        }
        let count = self.at(range, revision).count();
        let limit = usize::try_from(range.limit)
            .ok()
            .filter(|limit| *limit > 0)
            .unwrap_or(usize::MAX);
        let mut kvs = Vec::new();
        if !range.count_only {
            let found = self.at(range, revision);
            let found = found.filter(|kv| kv.modified >= range.min_modified);
            kvs.extend(
                found
                    .take(limit.saturating_add(1))
                    .map(|kv| match range.keys_only {
                        true => KeyValue {
                            value: Vec::new(),
                            ..KeyValue::clone(kv)
                        },
                        false => KeyValue::clone(kv),
                    }),
            );
        }
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        Ok(Ranged {
            header: self.header(),
            kvs,
            more,
            count: i64::try_from(count).unwrap(),
        })
    }

    /// The present leases of one owner.
    pub(super) fn leases_of(&self, owner: &str) -> impl Iterator<Item = &Arc<KeyValue>> {
        let keys = self.owned.get(owner).into_iter().flatten();
        keys.filter_map(|key| self.current(key))
    }

    /// Whose a lease key is and was before its last change.
    pub(super) fn owners_of(&self, key: &[u8]) -> BTreeSet<String> {
        let versions = self.keys.get(key).map_or(&[][..], Vec::as_slice);
        let last = versions.iter().rev().take(2);
        last.filter_map(|version| owner(&version.kv.as_ref()?.value))
            .collect()
    }

    /// How many changes there were from this revision on.
    pub(super) fn changes_since(&self, revision: i64) -> usize {
        self.log.len() - self.log.partition_point(|(at, _)| *at < revision)
    }

    /// The changes of a range from a revision on; only of one owner's leases if given.
    pub(super) fn events(&self, key: &[u8], end: &[u8], from: i64, of: Option<&str>) -> Vec<Event> {
        let log = match of {
            Some(owner) => self.log_of.get(owner).map_or(&[][..], Vec::as_slice),
            None => self.log.as_slice(),
        };
        let since = log.partition_point(|(at, _)| *at < from);
        let inside = |name: &[u8]| match end.is_empty() {
            true => name == key,
            false => name >= key && name < end,
        };
        log[since..]
            .iter()
            .filter(|(_, name)| inside(name))
            .filter_map(|(at, name)| self.event(*at, name))
            .collect()
    }

    fn event(&self, at: i64, name: &[u8]) -> Option<Event> {
        let versions = self.keys.get(name)?;
        let version = versions.iter().find(|version| version.at == at)?;
        Some(match &version.kv {
            Some(kv) => Event {
                kv: KeyValue::clone(kv),
                gone: false,
            },
            None => Event {
                kv: tombstone(name, at),
                gone: true,
            },
        })
    }

    fn holds(&self, compare: &Compare) -> bool {
        let range = Range {
            key: compare.key.clone(),
            end: compare.end.clone(),
            ..Range::default()
        };
        let is = |kv: Option<&Arc<KeyValue>>| match compare.must {
            Must::BeAbsent => kv.is_none(),
            Must::Exist => kv.is_some(),
            Must::BeUnchangedSince(revision) => kv.map_or(0, |kv| kv.modified) == revision,
            Must::BeCreatedUntil(revision) => kv.map_or(0, |kv| kv.created) <= revision,
        };
        let mut found = self.at(&range, self.revision).peekable();
        // etcd compares an absent key as one of revision and version 0 (`applyCompares`, server/etcdserver/txn).
        match found.peek() {
            None => is(None),
            Some(_) => found.all(|kv| is(Some(kv))),
        }
    }

    /// Carries out a transaction. Returns whether the comparisons held, and what changed.
    pub(super) fn txn(&mut self, txn: &Txn) -> Result<(bool, Vec<Event>), Failure> {
        if !txn.when.iter().all(|compare| self.holds(compare)) {
            return Ok((false, Vec::new()));
        }
        let old = self.current(&txn.key).cloned();
        let (value, lease) = match &txn.change {
            Change::Delete => {
                let gone = old.is_some();
                self.revision += i64::from(gone);
                let at = self.revision;
                return Ok((
                    true,
                    gone.then(|| self.remove(&txn.key, at))
                        .into_iter()
                        .collect(),
                ));
            }
            Change::Put { value, etcd_lease } => (value.clone(), *etcd_lease),
            Change::Attach { etcd_lease } => {
                let value = old.as_ref().map(|kv| kv.value.clone());
                (value.unwrap_or_default(), *etcd_lease)
            }
        };
        if lease != 0 && !self.leases.contains_key(&lease) {
            return Err(no_lease());
        }
        self.revision += 1;
        let kv = KeyValue {
            key: txn.key.clone(),
            value,
            created: old.as_ref().map_or(self.revision, |kv| kv.created),
            modified: self.revision,
            version: old.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
        };
        Ok((true, vec![self.write(kv)]))
    }

    fn write(&mut self, kv: KeyValue) -> Event {
        self.detach(&kv.key);
        if let Some(lease) = self.leases.get_mut(&kv.lease) {
            lease.keys.insert(kv.key.clone());
        }
        if self.is_lease(&kv.key) {
            self.taken.set(&kv.key[self.subnets.len()..], true);
            if let Some(owner) = owner(&kv.value) {
                self.owned.entry(owner).or_default().insert(kv.key.clone());
            }
        }
        self.record(&kv.key, Some(Arc::new(kv.clone())), kv.modified);
        Event { kv, gone: false }
    }

    fn remove(&mut self, key: &[u8], at: i64) -> Event {
        self.detach(key);
        if self.is_lease(key) {
            self.taken.set(&key[self.subnets.len()..], false);
        }
        self.record(key, None, at);
        Event {
            kv: tombstone(key, at),
            gone: true,
        }
    }

    /// Takes a key from its etcd lease and owner.
    fn detach(&mut self, key: &[u8]) {
        let Some(old) = self.current(key).cloned() else {
            return;
        };
        if let Some(lease) = self.leases.get_mut(&old.lease) {
            lease.keys.remove(key);
        }
        if let Some(owner) = owner(&old.value) {
            self.owned.entry(owner).or_default().remove(key);
        }
    }

    fn record(&mut self, key: &[u8], kv: Option<Arc<KeyValue>>, at: i64) {
        let old = self.current(key).and_then(|kv| owner(&kv.value));
        let new = kv.as_ref().and_then(|kv| owner(&kv.value));
        for owner in BTreeSet::from([old, new]).into_iter().flatten() {
            self.log_of
                .entry(owner)
                .or_default()
                .push((at, key.to_vec()));
        }
        self.log.push((at, key.to_vec()));
        let versions = self.keys.entry(key.to_vec()).or_default();
        versions.push(Version { at, kv });
    }

    pub(super) fn grant(&mut self, id: i64, ttl: i64, now: Instant) -> Result<(), Failure> {
        if self.leases.contains_key(&id) {
            let cause = "etcdserver: lease already exists";
            return Err(Failure::answer(code::FAILED_PRECONDITION, cause.to_owned()));
        }
        let granted = Duration::from_secs(u64::try_from(ttl).unwrap());
        let expires = now + granted;
        self.expiries.insert((expires, id));
        self.leases.insert(
            id,
            Lease {
                granted,
                expires,
                keys: BTreeSet::new(),
            },
        );
        Ok(())
    }

    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        self.expiries.remove(&(lease.expires, id));
        lease.expires = now + lease.granted;
        self.expiries.insert((lease.expires, id));
        true
    }

    pub(super) fn time_to_live(&self, id: i64, now: Instant) -> TimeToLive {
        let header = self.header();
        let lease = self.leases.get(&id);
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap();
        lease.map_or(
            TimeToLive {
                header,
                ttl: -1,
                granted: 0,
                has_keys: false,
            },
            |lease| TimeToLive {
                header,
                ttl: seconds(lease.expires.saturating_duration_since(now)),
                granted: seconds(lease.granted),
                has_keys: !lease.keys.is_empty(),
            },
        )
    }

    /// How many etcd leases there are.
    pub(super) fn etcd_leases(&self) -> usize {
        self.leases.len()
    }

    /// Revokes an etcd lease: its keys go at one revision.
    pub(super) fn revoke(&mut self, id: i64) -> Result<Vec<Event>, Failure> {
        let Some(lease) = self.leases.get(&id) else {
            return Err(no_lease());
        };
        self.expiries.remove(&(lease.expires, id));
        let keys = lease.keys.clone();
        self.revision += i64::from(!keys.is_empty());
        let at = self.revision;
        let events = keys.iter().map(|key| self.remove(key, at)).collect();
        self.leases.remove(&id);
        Ok(events)
    }

    /// Revokes at most so many expired leases.
    pub(super) fn expire(&mut self, now: Instant, most: usize) -> Vec<Event> {
        let due = self.expiries.iter().take_while(|(at, _)| *at <= now);
        let due: Vec<i64> = due.take(most).map(|(_, id)| *id).collect();
        let revoked = due.into_iter().flat_map(|id| self.revoke(id));
        revoked.flatten().collect()
    }

    /// A new leader gives every lease its whole TTL again (`lessor.Promote`, server/lease/lessor.go; etcd-io/etcd#9395).
    pub(super) fn promote(&mut self, now: Instant) {
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        for id in ids {
            self.keep_alive(id, now);
        }
    }

    /// Forgets all revisions before the present one.
    pub(super) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
        self.log_of.clear();
        self.keys.retain(|_, versions| {
            versions.drain(..versions.len() - 1);
            versions[0].kv.is_some()
        });
    }
}

fn tombstone(key: &[u8], at: i64) -> KeyValue {
    KeyValue {
        key: key.to_vec(),
        value: Vec::new(),
        created: 0,
        modified: at,
        version: 0,
        lease: 0,
    }
}

/// The owner ID in a lease's value.
pub(super) fn owner(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    let (_, rest) = text.split_once(r#""SelvageOwner":""#)?;
    Some(rest.split_once('"')?.0.to_owned())
}

pub(super) fn compacted() -> Failure {
    let cause = "etcdserver: mvcc: required revision has been compacted";
    Failure::answer(code::OUT_OF_RANGE, cause.to_owned())
}

fn no_lease() -> Failure {
    let cause = "etcdserver: requested lease not found";
    Failure::answer(code::NOT_FOUND, cause.to_owned())
}

#[test]
fn an_owner_is_found_in_a_value() {
    let value = br#"{"PublicIP":"10.0.0.1","SelvageOwner":"node-7"}"#;
    assert_eq!(owner(value).as_deref(), Some("node-7"));
    assert_eq!(owner(br#"{"PublicIP":"10.0.0.1"}"#), None);
}
