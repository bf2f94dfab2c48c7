//! Real servers: etcd's gRPC API through the client library.

use std::io;
use std::sync::Arc;

use etcd_client::{
    self as etcd, Client, CompareOp, Error, EventType, GetOptions, LeaseGrantOptions,
    LeaseTimeToLiveOptions, PutOptions, ResponseHeader, TxnOp, WatchFilterType, WatchOptions,
    WatchResponse, WatchStream,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::rpc::{
    Change, Committed, Compare, Connect, Event, Failure, Granted, Header, KeyValue, Message, Must,
    Range, Ranged, Reply, Rpc, TimeToLive, Txn, Watch, Watching,
};
use crate::base::endpoint::Endpoint;
use crate::base::logging::chain;
use crate::cluster::lease::Fault;
use crate::settings::Etcd;

/// The longest message accepted from a server, in bytes. The client library's default of 4 MiB holds some 12,000
/// leases, and a watch that catches up may deliver more than that at once.
const LONGEST_MESSAGE: usize = 64 * 1024 * 1024;

/// Connects to real servers.
#[derive(Debug)]
pub(super) struct Grpc;

/// A connection to a real server.
#[derive(Clone)]
struct Server {
    client: Client,
    has_user: bool,
}

impl Connect for Grpc {
    /// Without a user this does not connect yet; the first request does.
    fn connect(&self, endpoint: &Endpoint, access: &Etcd) -> Reply<Arc<dyn Rpc>> {
        // The only thing that can fail here is reading the certificate files.
        let options = access.connect_options(endpoint).map_err(|error| Failure {
            fault: Fault::Tls,
            ..Failure::text(chain(&error))
        });
        let (url, has_user) = (endpoint.url.clone(), access.username.is_some());
        async move {
            let client = Client::connect([&url], Some(options?)).await?;
            Ok(Arc::new(Server { client, has_user }) as Arc<dyn Rpc>)
        }
        .boxed()
    }
}

impl Rpc for Server {
    fn range(&self, range: Range) -> Reply<Ranged> {
        let client = self.client.kv_client();
        let mut client = client.max_decoding_message_size(LONGEST_MESSAGE);
        async move {
            let mut options = GetOptions::new()
                .with_limit(range.limit)
                .with_revision(range.revision)
                .with_min_mod_revision(range.min_modified);
            if !range.end.is_empty() {
                options = options.with_range(range.end);
            }
            if range.keys_only {
                options = options.with_keys_only();
            }
            if range.count_only {
                options = options.with_count_only();
            }
            let mut response = client.get(range.key, Some(options)).await?;
            Ok(Ranged {
                header: response.header().map(Header::from),
                more: response.more(),
                count: response.count(),
                kvs: response.take_kvs().into_iter().map(Into::into).collect(),
            })
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> Reply<Committed> {
        let mut client = self.client.clone();
        async move {
            let compares: Vec<_> = txn.when.into_iter().map(Into::into).collect();
            let change = txn.change.on(txn.key);
            let txn = etcd::Txn::new().when(compares).and_then([change]);
            let response = client.txn(txn).await?;
            Ok(Committed {
                header: response.header().map(Header::from),
                succeeded: response.succeeded(),
            })
        }
        .boxed()
    }

    fn grant(&self, id: i64, ttl: i64) -> Reply<Granted> {
        let mut client = self.client.clone();
        async move {
            let options = LeaseGrantOptions::new().with_id(id);
            let response = client.lease_grant(ttl, Some(options)).await?;
            Ok(Granted {
                header: response.header().map(Header::from),
                id: response.id(),
                ttl: response.ttl(),
            })
        }
        .boxed()
    }

    fn revoke(&self, id: i64) -> Reply<()> {
        let mut client = self.client.clone();
        async move {
            client.lease_revoke(id).await?;
            Ok(())
        }
        .boxed()
    }

    fn keep_alive(&self, id: i64) -> Reply<bool> {
        let mut client = self.client.clone();
        async move {
            match client.lease_keep_alive(id).await {
                // The call waits for the first reply; the stream is not needed any further.
                Ok(_) => Ok(true),
                // The client library's error for a reply with TTL 0: the lease is gone.
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        .boxed()
    }

    fn time_to_live(&self, id: i64, with_keys: bool) -> Reply<TimeToLive> {
        let mut client = self.client.clone();
        async move {
            let options = with_keys.then(|| LeaseTimeToLiveOptions::new().with_keys());
            let response = client.lease_time_to_live(id, options).await?;
            Ok(TimeToLive {
                header: response.header().map(Header::from),
                ttl: response.ttl(),
                granted: response.granted_ttl(),
                has_keys: !response.keys().is_empty(),
            })
        }
        .boxed()
    }

    fn watch(&self, watch: Watch) -> Reply<Box<dyn Watching>> {
        let Self { client, has_user } = self.clone();
        async move {
            // etcd refuses a watch with an expired token inside the stream, where the client library does not notice
            // it.
            if has_user {
                client.refresh_token().await?;
            }
            let watcher = client.watch_client();
            let mut watcher = watcher.max_decoding_message_size(LONGEST_MESSAGE);
            let (key, options) = watch.into_options();
            let stream = watcher.watch(key, Some(options)).await?;
            Ok(Box::new(Stream(stream)) as Box<dyn Watching>)
        }
        .boxed()
    }
}

/// A stream of watches of a real server.
struct Stream(WatchStream);

impl Watching for Stream {
    fn add(&mut self, watch: Watch) -> BoxFuture<'_, Result<(), Failure>> {
        let (key, options) = watch.into_options();
        async move { Ok(self.0.watch(key, Some(options)).await?) }.boxed()
    }

    fn request_progress(&mut self) -> BoxFuture<'_, Result<(), Failure>> {
        async move { Ok(self.0.request_progress().await?) }.boxed()
    }

    fn message(&mut self) -> BoxFuture<'_, Result<Option<Message>, Failure>> {
        async move { Ok(self.0.message().await?.map(Message::from)) }.boxed()
    }
}

impl Watch {
    /// The key, and the rest in the client library's form.
    fn into_options(self) -> (Vec<u8>, WatchOptions) {
        let mut options = WatchOptions::new()
            .with_start_revision(self.from)
            .with_watch_id(self.id);
        if !self.end.is_empty() {
            options = options.with_range(self.end);
        }
        if self.progress {
            options = options.with_progress_notify();
        }
        if !self.deletions {
            options = options.with_filters([WatchFilterType::NoDelete]);
        }
        (self.key, options)
    }
}

impl From<WatchResponse> for Message {
    fn from(response: WatchResponse) -> Self {
        let events = response.events().iter();
        Self {
            header: response.header().map(Header::from),
            watch: response.watch_id(),
            created: response.created(),
            canceled: response.canceled(),
            reason: response.cancel_reason().to_owned(),
            compacted: response.compact_revision(),
            events: events
                .filter_map(|event| {
                    Some(Event {
                        kv: event.kv()?.clone().into(),
                        gone: event.event_type() == EventType::Delete,
                    })
                })
                .collect(),
        }
    }
}

impl From<etcd::KeyValue> for KeyValue {
    fn from(kv: etcd::KeyValue) -> Self {
        let (created, modified) = (kv.create_revision(), kv.mod_revision());
        let (version, lease) = (kv.version(), kv.lease());
        let (key, value) = kv.into_key_value();
        Self {
            key,
            value,
            created,
            modified,
            version,
            lease,
        }
    }
}

impl From<&ResponseHeader> for Header {
    fn from(header: &ResponseHeader) -> Self {
        Self {
            cluster: header.cluster_id(),
            revision: header.revision(),
        }
    }
}

impl From<Compare> for etcd::Compare {
    fn from(compare: Compare) -> Self {
        let Compare { key, end, must } = compare;
        let compare = match must {
            // Version 0: the key does not exist.
            Must::BeAbsent => Self::version(key, CompareOp::Equal, 0),
            Must::Exist => Self::version(key, CompareOp::Greater, 0),
            Must::BeUnchangedSince(revision) => Self::mod_revision(key, CompareOp::Equal, revision),
            Must::BeCreatedUntil(revision) => {
                Self::create_revision(key, CompareOp::Less, revision.saturating_add(1))
            }
        };
        match end.is_empty() {
            true => compare,
            false => compare.with_range(end),
        }
    }
}

impl Change {
    fn on(self, key: Vec<u8>) -> TxnOp {
        match self {
            Self::Put { value, etcd_lease } => {
                let options = (etcd_lease != 0).then(|| PutOptions::new().with_lease(etcd_lease));
                TxnOp::put(key, value, options)
            }
            Self::Attach { etcd_lease } => {
                let options = PutOptions::new().with_ignore_value().with_lease(etcd_lease);
                TxnOp::put(key, Vec::new(), Some(options))
            }
            Self::Delete => TxnOp::delete(key, None),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let Error::GRpcStatus(status) = &error else {
            return Self {
                fault: Fault::of(&error),
                ..Self::text(match &error {
                    Error::TransportError(error) => chain(error),
                    error => error.to_string(),
                })
            };
        };
        let code = i32::from(status.code());
        let answer = Self::answer(code, status.message().to_owned());
        Self {
            fault: Fault::of(status).max(answer.fault),
            cause: root_cause(status).unwrap_or(answer.cause),
            unsent: is_failed_connection(status),
            ..answer
        }
    }
}

/// Whether a request failed for lack of a connection, before any of it was sent: an unconnected client holds requests
/// until it connects.
fn is_failed_connection(error: &(dyn std::error::Error + 'static)) -> bool {
    const KINDS: [io::ErrorKind; 4] = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::NetworkUnreachable,
        io::ErrorKind::AddrNotAvailable,
    ];
    std::iter::successors(error.source(), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| KINDS.contains(&error.kind()))
}

/// The root cause of a failed connection: `connection refused`, or the TLS error. `None` for an error that the server
/// answered with.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut root = error.source()?;
    while let Some(source) = root.source() {
        root = source;
    }
    // The system's message ends with an error number that adds nothing; the kind's does not.
    let kind = root
        .downcast_ref::<io::Error>()
        .filter(|error| error.raw_os_error().is_some())
        .map(|error| error.kind().to_string())
        .filter(|text| text != "other error" && text != "uncategorized error");
    Some(kind.unwrap_or_else(|| root.to_string()))
}
