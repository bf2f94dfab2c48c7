//! etcd's operations as this store uses them, without a client library's types.
//!
//! [`grpc`](super::grpc) implements them for real servers; the simulation, in tests, for a cluster in memory.
//! Names and meanings are those of etcd's API (`api/etcdserverpb/rpc.proto`). No method retries.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::base::endpoint::Endpoint;
use crate::cluster::lease::Fault;
use crate::settings::Etcd;

/// What a call returns. Cancel-safe: a dropped call may still be carried out.
pub(super) type Reply<T> = BoxFuture<'static, Result<T, Failure>>;

/// Opens connections.
pub(super) trait Connect: std::fmt::Debug + Send + Sync {
    /// Connects to one server with the login settings in `access`. May return before the server has answered; the first
    /// request does not.
    fn connect(&self, endpoint: &Endpoint, access: &Etcd) -> Reply<Arc<dyn Rpc>>;
}

/// A connection to one server.
pub(super) trait Rpc: Send + Sync {
    /// Reads keys. Linearizable.
    fn range(&self, range: Range) -> Reply<Ranged>;

    /// Writes one key if all comparisons hold.
    fn txn(&self, txn: Txn) -> Reply<Committed>;

    /// Grants an etcd lease with this ID and TTL in seconds. [`code::FAILED_PRECONDITION`]: the ID is in use.
    fn grant(&self, id: i64, ttl: i64) -> Reply<Granted>;

    /// Revokes an etcd lease and deletes its keys. [`code::NOT_FOUND`]: there is none.
    fn revoke(&self, id: i64) -> Reply<()>;

    /// Renews an etcd lease once. Returns whether it exists.
    fn keep_alive(&self, id: i64) -> Reply<bool>;

    /// The remaining time and, if wanted, the keys of an etcd lease.
    fn time_to_live(&self, id: i64, with_keys: bool) -> Reply<TimeToLive>;

    /// Opens a stream with one watch.
    fn watch(&self, watch: Watch) -> Reply<Box<dyn Watching>>;
}

/// A stream of watches.
pub(super) trait Watching: Send {
    /// Adds a watch.
    fn add(&mut self, watch: Watch) -> BoxFuture<'_, Result<(), Failure>>;

    /// Asks for a message without events.
    fn request_progress(&mut self) -> BoxFuture<'_, Result<(), Failure>>;

    /// The next message; `None` at the end. Cancel-safe.
    fn message(&mut self) -> BoxFuture<'_, Result<Option<Message>, Failure>>;
}

/// What every reply says about the server's cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) cluster: u64,
    pub(super) revision: i64,
}

/// A key as stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KeyValue {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// The revision at which it was created.
    pub(super) created: i64,
    /// The revision of its last change.
    pub(super) modified: i64,
    /// The number of changes since it was created, from 1.
    pub(super) version: i64,
    /// The etcd lease that it is attached to; 0 for none.
    pub(super) lease: i64,
}

/// Which keys to read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Range {
    pub(super) key: Vec<u8>,
    /// The end of the range, exclusive; empty for `key` alone.
    pub(super) end: Vec<u8>,
    /// The most keys to return; 0 for all.
    pub(super) limit: i64,
    /// The revision to read at; 0 for the present one.
    pub(super) revision: i64,
    /// Only keys changed at this revision or later.
    pub(super) min_modified: i64,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
}

impl Range {
    /// One key.
    pub(super) fn key(key: impl Into<Vec<u8>>) -> Self {
        Self {
            key: key.into(),
            ..Self::default()
        }
    }

    /// The keys from `key` to `end`, exclusive.
    pub(super) fn between(key: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>) -> Self {
        Self {
            end: end.into(),
            ..Self::key(key)
        }
    }

    /// All keys with a prefix that ends with a slash.
    pub(super) fn folder(prefix: &str) -> Self {
        Self::between(prefix, after(prefix))
    }
}

/// The first key that does not begin with `folder`, which ends with a slash: '0' is the byte after '/'.
pub(super) fn after(folder: &str) -> String {
    format!("{}0", folder.strip_suffix('/').unwrap_or(folder))
}

/// The keys that were read.
#[derive(Clone, Debug)]
pub(super) struct Ranged {
    pub(super) header: Option<Header>,
    pub(super) kvs: Vec<KeyValue>,
    /// Whether there are more than the limit.
    pub(super) more: bool,
    /// The number of keys in the range, whatever the limit and the least revision.
    pub(super) count: i64,
}

/// A condition of a transaction: about one key, or every key of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Compare {
    pub(super) key: Vec<u8>,
    /// The end of the range, exclusive; empty for `key` alone.
    pub(super) end: Vec<u8>,
    pub(super) must: Must,
}

/// What must hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Must {
    /// There is no such key.
    BeAbsent,
    /// The key exists.
    Exist,
    /// The key was last changed at this revision; 0 if it must not exist.
    BeUnchangedSince(i64),
    /// No such key was created after this revision.
    BeCreatedUntil(i64),
}

impl Compare {
    /// About one key.
    pub(super) fn key(key: impl Into<Vec<u8>>, must: Must) -> Self {
        Self {
            key: key.into(),
            end: Vec::new(),
            must,
        }
    }

    /// About all keys from `key` to `end`, exclusive.
    pub(super) fn range(key: impl Into<Vec<u8>>, end: impl Into<Vec<u8>>, must: Must) -> Self {
        Self {
            end: end.into(),
            ..Self::key(key, must)
        }
    }
}

/// A write with conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Txn {
    pub(super) when: Vec<Compare>,
    pub(super) key: Vec<u8>,
    pub(super) change: Change,
}

/// What to do with a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Put a value.
    Put {
        value: Vec<u8>,
        /// 0 for none.
        etcd_lease: i64,
    },
    /// Put the same value with another etcd lease, or with none if that is 0.
    Attach {
        etcd_lease: i64,
    },
    Delete,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) header: Option<Header>,
    /// Whether all comparisons held.
    pub(super) succeeded: bool,
}

/// An etcd lease was granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) header: Option<Header>,
    pub(super) id: i64,
    /// In seconds; the server may lengthen what was asked for.
    pub(super) ttl: i64,
}

/// How long an etcd lease lasts.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeToLive {
    pub(super) header: Option<Header>,
    /// The remaining seconds; negative if there is no such lease.
    pub(super) ttl: i64,
    /// The seconds that it was granted for.
    pub(super) granted: i64,
    /// Whether keys are attached; `false` unless asked for.
    pub(super) has_keys: bool,
}

/// What to watch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Watch {
    /// 0 lets the server choose, from 0 upwards.
    pub(super) id: i64,
    pub(super) key: Vec<u8>,
    /// The end of the range, exclusive; empty for `key` alone.
    pub(super) end: Vec<u8>,
    /// The first revision to report; 0 for the next one.
    pub(super) from: i64,
    /// Whether the server reports its revision when nothing happens.
    pub(super) progress: bool,
    /// Whether deletions are reported.
    pub(super) deletions: bool,
}

/// A message of a stream of watches.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    pub(super) header: Option<Header>,
    pub(super) watch: i64,
    /// The watch was created.
    pub(super) created: bool,
    /// The watch ended, or was not created.
    pub(super) canceled: bool,
    pub(super) reason: String,
    /// The first revision that is not compacted, if the watch ended because of that; else 0.
    pub(super) compacted: i64,
    pub(super) events: Vec<Event>,
}

/// A key changed.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// The key as written; if it is gone, its name and the revision of the deletion.
    pub(super) kv: KeyValue,
    pub(super) gone: bool,
}

/// gRPC status codes (grpc/doc/statuscodes.md).
pub(super) mod code {
    /// A revision was compacted, or a message is too long.
    pub(in super::super) const OUT_OF_RANGE: i32 = 11;
    /// The server answered, but the key or lease asked for does not exist.
    pub(in super::super) const NOT_FOUND: i32 = 5;
    /// The user may not read or write a key.
    pub(in super::super) const PERMISSION_DENIED: i32 = 7;
    /// Among others: an etcd lease with that ID exists already.
    pub(in super::super) const FAILED_PRECONDITION: i32 = 9;
    /// Codes about one server or the path to it: cancelled, unknown (broken transport), deadline exceeded, internal
    /// (broken HTTP/2), unavailable (no connection, no leader), data loss (corrupt member).
    pub(in super::super) const OF_ONE_SERVER: [i32; 6] = [1, 2, 4, 13, 14, 15];
}

/// Why a request got no usable answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) cause: String,
    /// What the operator must fix.
    pub(super) fault: Fault,
    /// The status code, if a server answered.
    pub(super) code: Option<i32>,
    /// Another server may answer.
    pub(super) of_one_server: bool,
    /// Nothing came in time.
    pub(super) silent: bool,
    /// The request cannot have reached a server.
    pub(super) unsent: bool,
}

impl Failure {
    /// A failure of one server without a status code.
    pub(super) fn text(cause: String) -> Self {
        Self {
            cause,
            fault: Fault::Other,
            code: None,
            of_one_server: true,
            silent: false,
            unsent: false,
        }
    }

    /// A server's answer.
    pub(super) fn answer(code: i32, cause: String) -> Self {
        Self {
            fault: Fault::of_answer(code, &cause),
            code: Some(code),
            of_one_server: code::OF_ONE_SERVER.contains(&code),
            ..Self::text(cause)
        }
    }

    pub(super) fn before_sending(self) -> Self {
        Self {
            unsent: true,
            ..self
        }
    }
}
