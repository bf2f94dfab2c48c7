//! Compared writes of one key, each with a definite outcome.
//!
//! A transaction has three outcomes: committed, comparison failed, or unknown because the reply was lost. Blindly
//! sending it again would mistake the comparison that our own first write made fail for another node's write. So the
//! key is read before anything is written again: it shows what became of the write.
//!
//! An outcome that is still unknown at the end is an error ([`StoreError::Unreachable`]): the write may be in etcd, or
//! may still get there.

use std::time::Duration;

use tokio::time::sleep;

use super::held::EtcdLease;
use super::listing::get;
use super::rpc::{Change, Compare, KeyValue, Range, Txn};
use super::servers::Servers;
use crate::cluster::lease::StoreError;

/// Pauses between reading what became of a write and the next write, by attempt.
const PAUSES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(400),
];

/// A write of one key that takes effect only if all comparisons hold.
pub(super) struct Write<'a> {
    key: &'a str,
    compares: Vec<Compare>,
    /// The modification revision that the comparisons require; 0 if the key must not exist.
    seen: i64,
    change: Change,
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    value: &'a [u8],
    etcd_lease: i64,
    modified: i64,
}

impl<'a> From<&'a KeyValue> for Found<'a> {
    fn from(kv: &'a KeyValue) -> Self {
        Self {
            value: &kv.value,
            etcd_lease: kv.lease,
            modified: kv.modified,
        }
    }
}

/// What a key shows about a write of unknown outcome.
#[derive(Debug, PartialEq, Eq)]
enum Trace {
    /// It was committed, at this revision.
    Done(i64),
    /// The key is as before: the write has not arrived yet, or never will.
    Untouched,
    /// Another writer was faster, or has written since.
    Other,
}

impl<'a> Write<'a> {
    /// Puts a value.
    pub(super) fn put(
        key: &'a str,
        seen: i64,
        compares: Vec<Compare>,
        value: impl Into<Vec<u8>>,
        etcd_lease: Option<EtcdLease>,
    ) -> Self {
        let etcd_lease = etcd_lease.map_or(0, |lease| lease.id);
        let value = value.into();
        Self {
            key,
            compares,
            seen,
            change: Change::Put { value, etcd_lease },
        }
    }

    /// Attaches a key to another etcd lease, or detaches it if that is 0; the value stays.
    pub(super) fn attach(key: &'a str, seen: i64, compares: Vec<Compare>, etcd_lease: i64) -> Self {
        Self {
            key,
            compares,
            seen,
            change: Change::Attach { etcd_lease },
        }
    }

    /// Deletes a key.
    pub(super) fn delete(key: &'a str, seen: i64, compares: Vec<Compare>) -> Self {
        Self {
            key,
            compares,
            seen,
            change: Change::Delete,
        }
    }

    /// Writes. Returns the revision of the write; `None` if a comparison failed.
    pub(super) async fn commit(self, servers: &Servers) -> Result<Option<i64>, StoreError> {
        let mut lost_reply = None;
        for pause in PAUSES {
            // Even a timer of no time takes a tick of tokio's clock, a millisecond.
            if !pause.is_zero() {
                sleep(pause).await;
            }
            let txn = Txn {
                when: self.compares.clone(),
                key: self.key.into(),
                change: self.change.clone(),
            };
            let answer = servers.call_once(|client| client.txn(txn.clone())).await;
            if let Ok(committed) = &answer {
                servers.history.check_cluster(committed.header);
            }
            let refused = match answer {
                Ok(committed) if committed.succeeded => {
                    return Ok(Some(committed.header.map_or(0, |header| header.revision)));
                }
                // Or this is the reply to a request that a proxy sent twice.
                Ok(_) => true,
                Err(error @ StoreError::Unreachable { .. }) => {
                    lost_reply = Some(error);
                    false
                }
                Err(error) => return Err(error),
            };
            let found = get(servers, Range::key(self.key)).await?;
            match self.trace(found.kvs.first().map(Found::from)) {
                Trace::Done(revision) => return Ok(Some(revision)),
                Trace::Untouched if !refused => {}
                // An earlier attempt may still be in flight, and be committed once the key is free again.
                Trace::Other | Trace::Untouched => return lost_reply.map_or(Ok(None), Err),
            }
        }
        Err(lost_reply.unwrap_or_else(|| servers.silence()))
    }

    fn trace(&self, found: Option<Found<'_>>) -> Trace {
        let Some(found) = found else {
            return match (&self.change, self.seen) {
                (Change::Delete, _) => Trace::Done(0),
                (_, 0) => Trace::Untouched,
                (_, _) => Trace::Other,
            };
        };
        if found.modified == self.seen {
            return Trace::Untouched;
        }
        let written = match &self.change {
            Change::Put { value, etcd_lease } => {
                found.value == value && found.etcd_lease == *etcd_lease
            }
            Change::Attach { etcd_lease } => found.etcd_lease == *etcd_lease,
            Change::Delete => false,
        };
        match written {
            true => Trace::Done(found.modified),
            false => Trace::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_what_became_of_a_write() {
        let lease = |id| EtcdLease {
            id,
            ttl: Duration::from_secs(1),
        };
        let put = |seen| Write::put("k", seen, Vec::new(), "new", Some(lease(7)));
        let attach = |seen| Write::attach("k", seen, Vec::new(), 7);
        let delete = |seen| Write::delete("k", seen, Vec::new());
        for (write, key, trace) in [
            (put(0), None, Trace::Untouched),
            (put(0), Some(("new", 7, 9)), Trace::Done(9)),
            // Another node's write, by its value or its etcd lease.
            (put(0), Some(("old", 7, 9)), Trace::Other),
            (put(0), Some(("new", 8, 9)), Trace::Other),
            (put(5), None, Trace::Other),
            (put(5), Some(("old", 7, 5)), Trace::Untouched),
            (put(5), Some(("new", 7, 5)), Trace::Untouched),
            (put(5), Some(("new", 7, 6)), Trace::Done(6)),
            (put(5), Some(("new", 0, 6)), Trace::Other),
            (attach(5), Some(("any", 0, 5)), Trace::Untouched),
            (attach(5), Some(("any", 7, 6)), Trace::Done(6)),
            (attach(5), Some(("any", 8, 6)), Trace::Other),
            (attach(5), None, Trace::Other),
            (delete(5), None, Trace::Done(0)),
            (delete(5), Some(("any", 7, 5)), Trace::Untouched),
            (delete(5), Some(("any", 7, 6)), Trace::Other),
        ] {
            let key = key.map(|(value, etcd_lease, modified): (&str, _, _)| Found {
                value: value.as_bytes(),
                etcd_lease,
                modified,
            });
            assert_eq!(write.trace(key), trace, "{key:?}");
        }
    }
}
