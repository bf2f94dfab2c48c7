//! Listing all leases page by page, and reporting keys that cannot be parsed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::history::{KeyDigest, ListedKeys};
use super::rpc::{KeyValue, Range, Ranged, code};
use super::servers::Servers;
use super::settings::Keys;
use crate::base::go_json::shorten;
use crate::cluster::lease::{Lease, LeaseAttrs, StoreError, SubnetKey};

/// Keys per page.
const PAGE: i64 = 5000;

/// All leases at one revision of the store.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) revision: i64,
    pub(super) entries: Vec<Entry>,
    /// All keys, including those that name no subnet.
    pub(super) listed: ListedKeys,
}

/// One lease key.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: SubnetKey,
    /// `None` if the value cannot be parsed; the subnet is taken all the same.
    pub(super) attrs: Option<LeaseAttrs>,
    pub(super) created: i64,
    pub(super) modified: i64,
    /// The etcd lease that the key is attached to; `None` for a reservation, which never expires.
    pub(super) etcd_lease: Option<i64>,
}

impl Entry {
    pub(super) fn into_lease(self) -> Option<Lease> {
        Some(Lease {
            key: self.key,
            attrs: self.attrs?,
            created: to_unsigned(self.created),
        })
    }
}

/// Revisions are never negative.
pub(super) fn to_unsigned(revision: i64) -> u64 {
    revision.unsigned_abs()
}

impl Listing {
    /// The readable leases, and the keys of the others.
    pub(super) fn into_leases(self) -> (Vec<Lease>, Vec<SubnetKey>) {
        let (mut leases, mut unreadable) = (Vec::with_capacity(self.entries.len()), Vec::new());
        for entry in self.entries {
            let key = entry.key;
            match entry.into_lease() {
                Some(lease) => leases.push(lease),
                None => unreadable.push(key),
            }
        }
        (leases, unreadable)
    }
}

/// Lists all leases as of one revision.
///
/// Pages shrink when a message is too long; a compaction between two pages starts the list over.
pub(super) async fn list(
    servers: &Servers,
    keys: &Keys,
    reports: &Reports,
) -> Result<Listing, StoreError> {
    const ATTEMPTS: u32 = 16;
    let mut page = PAGE;
    for _ in 1..ATTEMPTS {
        match list_by(servers, keys, reports, page).await {
            Err(StoreError::Refused {
                code: code::OUT_OF_RANGE,
                reason,
                ..
            }) => {
                if !is_compaction(&reason) {
                    page = (page / 8).max(1);
                }
            }
            result => return result,
        }
    }
    list_by(servers, keys, reports, page).await
}

/// Whether an out-of-range error is about a compacted revision (etcd: `mvcc: required revision has been compacted`),
/// not about the length of a message.
pub(super) fn is_compaction(reason: &str) -> bool {
    reason.contains("compacted")
}

async fn list_by(
    servers: &Servers,
    keys: &Keys,
    reports: &Reports,
    page: i64,
) -> Result<Listing, StoreError> {
    let mut entries = Vec::new();
    let mut listed = ListedKeys {
        asked: servers.history.mark(),
        ..ListedKeys::default()
    };
    let mut start = keys.subnets.clone().into_bytes();
    let mut revision = 0;
    loop {
        let range = Range {
            limit: page,
            revision,
            ..Range::between(start, keys.subnets_end.as_str())
        };
        let Ranged {
            header, kvs, more, ..
        } = get(servers, range).await?;
        if revision == 0 {
            revision = header.map_or(0, |header| header.revision);
            listed.cluster = header.map_or(0, |header| header.cluster);
            listed.revision = revision;
        }
        start = match kvs.last() {
            Some(last) => [&last.key[..], b"\0"].concat(),
            None => Vec::new(),
        };
        let done = kvs.is_empty() || !more;
        entries.extend(kvs.iter().filter_map(|kv| reports.entry(keys, kv)));
        listed.digests.extend(kvs.iter().map(KeyDigest::new));
        if done {
            return Ok(Listing {
                revision,
                entries,
                listed,
            });
        }
    }
}

/// One read of the store.
pub(super) async fn get(servers: &Servers, range: Range) -> Result<Ranged, StoreError> {
    let asked = servers.history.mark();
    let ranged = servers.call(|client| client.range(range.clone())).await?;
    // Reads are linearizable: a reply is never older than what any member has returned before.
    let revision = ranged.header.map(|header| header.revision);
    servers.history.check_reply(ranged.header, asked, revision);
    Ok(ranged)
}

/// Which unreadable keys were reported, so that each is reported once, and again only when its content changes.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Hash of the key → hash of the value that was reported.
    seen: Mutex<HashMap<u64, u64>>,
}

/// More unreadable keys than this are no accident; forgetting them only costs repeated messages.
const MOST_REPORTS: usize = 10_000;

impl Reports {
    /// Parses one key and value. `None` if the key names no subnet. Logs a warning once per key that cannot be parsed,
    /// or whose value cannot.
    pub(super) fn entry(&self, keys: &Keys, kv: &KeyValue) -> Option<Entry> {
        let key = keys
            .subnet(&kv.key)?
            .inspect_err(|error| self.report(kv, error))
            .ok()?;
        let attrs = match LeaseAttrs::parse(&kv.value) {
            Ok(attrs) => Some(attrs),
            Err(error) => {
                self.report(kv, &error);
                None
            }
        };
        Some(Entry {
            key,
            attrs,
            created: kv.created,
            modified: kv.modified,
            etcd_lease: Some(kv.lease).filter(|id| *id != 0),
        })
    }

    fn report(&self, kv: &KeyValue, error: &dyn std::error::Error) {
        if let Some(unreadable) = self.first_time(&kv.key, &kv.value) {
            let key = shorten(&String::from_utf8_lossy(&kv.key));
            let revision = kv.modified;
            warn!(
                key,
                revision, unreadable, "ignoring an unreadable lease: {error}"
            );
        }
    }

    /// The number of keys reported so far, if this content of this key was not among them.
    fn first_time(&self, key: &[u8], value: &[u8]) -> Option<usize> {
        let hash = |bytes: &[u8]| {
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            hasher.finish()
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST_REPORTS {
            seen.clear();
        }
        let content = hash(value);
        (seen.insert(hash(key), content) != Some(content)).then_some(seen.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_of_a_key_is_reported_once() {
        let reports = Reports::default();
        assert_eq!(reports.first_time(b"a", b"x"), Some(1));
        assert_eq!(reports.first_time(b"a", b"x"), None);
        assert_eq!(reports.first_time(b"b", b"x"), Some(2));
        assert_eq!(reports.first_time(b"a", b"y"), Some(2));
        assert_eq!(reports.first_time(b"a", b"y"), None);
    }
}
