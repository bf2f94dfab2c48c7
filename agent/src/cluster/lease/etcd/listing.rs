//! Listing all leases page by page, and reporting keys that cannot be parsed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use etcd_client::{GetOptions, GetResponse, KeyValue};
use tracing::warn;

use super::history::{KeyDigest, ListedKeys};
use super::servers::{Servers, code};
use super::settings::Keys;
use crate::base::go_json::shorten;
use crate::cluster::lease::{Lease, LeaseAttrs, StoreError, SubnetKey};

/// The longest message accepted from a server, in bytes. The client library's default of 4 MiB holds some 12,000
/// leases, and a watch that catches up may deliver more than that at once.
pub(super) const LONGEST_MESSAGE: usize = 64 * 1024 * 1024;

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
        let options = GetOptions::new()
            .with_range(keys.subnets_end.as_str())
            .with_limit(page)
            .with_revision(revision);
        let mut response = get(servers, &start, options).await?;
        if revision == 0 {
            let header = response.header();
            revision = header.map_or(0, |header| header.revision());
            listed.cluster = header.map_or(0, |header| header.cluster_id());
            listed.revision = revision;
        }
        let (more, kvs) = (response.more(), response.take_kvs());
        if let Some(last) = kvs.last() {
            start = last.key().to_vec();
            start.push(0);
        }
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
pub(super) async fn get(
    servers: &Servers,
    key: &[u8],
    options: GetOptions,
) -> Result<GetResponse, StoreError> {
    let asked = servers.history.mark();
    let response = servers
        .call(|client| {
            let (key, options) = (key.to_vec(), options.clone());
            async move {
                let client = client.kv_client();
                let mut client = client.max_decoding_message_size(LONGEST_MESSAGE);
                client.get(key, Some(options)).await
            }
        })
        .await?;
    let header = response.header();
    // Reads are linearizable: a reply is never older than what any member has returned before.
    let revision = header.map(|header| header.revision());
    servers.history.check_reply(header, asked, revision);
    Ok(response)
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
            .subnet(kv.key())?
            .inspect_err(|error| self.report(kv, error))
            .ok()?;
        let attrs = match LeaseAttrs::parse(kv.value()) {
            Ok(attrs) => Some(attrs),
            Err(error) => {
                self.report(kv, &error);
                None
            }
        };
        Some(Entry {
            key,
            attrs,
            created: kv.create_revision(),
            modified: kv.mod_revision(),
            etcd_lease: Some(kv.lease()).filter(|id| *id != 0),
        })
    }

    fn report(&self, kv: &KeyValue, error: &dyn std::error::Error) {
        if let Some(unreadable) = self.first_time(kv.key(), kv.value()) {
            let key = shorten(&String::from_utf8_lossy(kv.key()));
            let revision = kv.mod_revision();
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
