//! The REST interface: from a request to the operation in etcd and the answer.
//!
//! A write runs to its end in a task of its own: a client that disconnects or times out must not leave half of it in
//! etcd.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::{Request, Response, Uri};
use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info};

use super::LONGEST_BODY;
use super::answer::{HttpError, done, json, ready, refuse};
use super::networks::{Network, Networks};
use super::request::{Client, Target, Verb, parameter, parameters, target};
use super::table::News;
use crate::base::net::{unusable_v4, unusable_v6};
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::etcd::Granted;
use crate::cluster::lease::rest::wire::{Event, EventType, LeaseBody, Received, WatchResult};
use crate::cluster::lease::rest::{LONGEST_WAIT, MOST_AVOIDED, Reason};
use crate::cluster::lease::{Lease, LeaseAttrs, Released, StoreError, SubnetKey};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take that does not wait for news.
const WORK_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a client waits for the first list of leases.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The most concurrent requests to etcd; the others queue.
const AT_ONCE: usize = 32;

/// The most networks that `GET /v1/` lists.
const MOST_NETWORKS: usize = 1000;

/// The pause between two reads of the networks for a client that waits for a new one.
const NETWORKS_PAUSE: Duration = Duration::from_secs(5);

/// The most former addresses of a client that are considered.
const MOST_FORMER: usize = 16;

/// The service, shared by all connections.
#[derive(Debug)]
pub(super) struct LeaseService {
    networks: Networks,
    work: Arc<Semaphore>,
    /// Locked while a host gets its lease: a retry by an impatient client gets the same one. Each lock serves many
    /// hosts.
    taking: [Mutex<()>; 64],
}

type Answer = Result<Response<Full<Bytes>>, HttpError>;

impl LeaseService {
    pub(super) fn new(networks: Networks) -> Self {
        Self {
            networks,
            work: Arc::new(Semaphore::new(AT_ONCE)),
            taking: [const { Mutex::const_new(()) }; 64],
        }
    }

    pub(super) fn networks(&self) -> &Networks {
        &self.networks
    }

    /// Answers a request.
    pub(super) async fn answer(
        self: &Arc<Self>,
        client: &Client,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let answered = match target(&head.method, &head.uri) {
            None => Err(HttpError::NotFound),
            Some((Verb::Get, what)) => self.read(&head.uri, what).await,
            Some(_) => match read_body(body).await {
                Ok(body) => {
                    let late = "etcd did not answer in time".to_owned();
                    self.written(client, &head, body)
                        .await
                        .unwrap_or(Err(HttpError::Failed(Reason::Unreachable, late)))
                }
                Err(error) => Err(error),
            },
        };
        answered.unwrap_or_else(|error| {
            let (client, method, uri) = (client.address, &head.method, &head.uri);
            debug!(%client, %method, %uri, ?error, "refused");
            refuse(error)
        })
    }

    /// Runs a read from etcd when its turn has come; `None` on timeout.
    async fn worked<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let worked = timeout(WORK_TIMEOUT, async {
            let _turn = self.work.acquire().await;
            work.await
        });
        worked.await.ok()
    }

    /// Runs a write to etcd when its turn has come, even if the client is gone; `None` on timeout.
    async fn written(
        self: &Arc<Self>,
        client: &Client,
        head: &Parts,
        body: String,
    ) -> Option<Answer> {
        let deadline = Instant::now() + WORK_TIMEOUT;
        let turn = timeout_at(deadline, Arc::clone(&self.work).acquire_owned());
        let turn = turn.await.ok()?;
        let (site, client) = (Arc::clone(self), client.clone());
        let (method, uri) = (head.method.clone(), head.uri.clone());
        let writing = tokio::spawn(async move {
            let _turn = turn;
            match target(&method, &uri) {
                Some((verb, what)) => site.write(&client, verb, &what, &uri, &body).await,
                None => Err(HttpError::NotFound),
            }
        });
        timeout_at(deadline, writing).await.ok()?.ok()
    }

    /// Waits until no write is in flight, and lets none start any more.
    pub(super) async fn finish(&self) {
        let all = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
        if let Ok(turns) = self.work.acquire_many(all).await {
            turns.forget();
        }
    }

    async fn read(&self, uri: &Uri, what: Target<'_>) -> Answer {
        let late = || HttpError::Failed(Reason::Unreachable, "etcd did not answer in time".into());
        let name = match &what {
            Target::Networks => return self.network_names(uri).await,
            Target::Config(name)
            | Target::Leases(name)
            | Target::Lease(name, _)
            | Target::Reservations(name) => name,
        };
        let found = self.worked(self.networks.get(name)).await;
        let network = found.ok_or_else(late)??;
        match &what {
            Target::Networks | Target::Config(_) => {
                let text = self.worked(network.broker.config()).await;
                let text = text.ok_or_else(late)??;
                Ok(ready(Bytes::from(format!("{}\n", text.trim_end()))))
            }
            Target::Leases(_) => watch(&network, uri).await,
            Target::Lease(_, subnet) => {
                let key = subnet_key(subnet)?;
                self.watch_one(&network, &key, uri).await
            }
            Target::Reservations(_) => {
                let found = self.worked(network.broker.reservations()).await;
                let found = found.ok_or_else(late)??;
                json(&found.iter().map(Reservation::new).collect::<Vec<_>>())
            }
        }
    }

    async fn write(
        &self,
        client: &Client,
        verb: Verb,
        what: &Target<'_>,
        uri: &Uri,
        body: &str,
    ) -> Answer {
        match (verb, what) {
            (_, Target::Reservations(_)) => Err(HttpError::Failed(
                Reason::Refused,
                "a lease server makes no reservations; use `selvage network reserve` on a host that reaches etcd".into(),
            )),
            (Verb::Post, Target::Leases(name)) => {
                let network = self.networks.get(name).await?;
                let attrs = LeaseAttrs::parse(body.as_bytes()).map_err(unreadable)?;
                let attrs = checked(client, attrs)?;
                let previous = match parameter(uri, "previous") {
                    Some(name) => Some(subnet_key(&name)?),
                    None => None,
                };
                let restarted = parameter(uri, "restarted").is_none_or(|value| value != "false");
                let avoid = avoid(&parameters(uri, "avoid"));
                let host = (&**name, attrs.owner.as_deref(), attrs.public_address());
                let _alone = self.taking(&host).lock().await;
                let granted = network
                    .broker
                    .acquire(&attrs, previous, restarted, &avoid)
                    .await?;
                info!(
                    subnet = %granted.lease.key,
                    public_ip = %attrs.public_address(),
                    client = %client.address,
                    "lease granted"
                );
                json(&lasting(&granted))
            }
            (Verb::Put, Target::Lease(name, subnet)) => {
                let network = self.networks.get(name).await?;
                let key = subnet_key(subnet)?;
                let received = received(&key, body)?;
                let attrs = received
                    .attrs
                    .ok_or_else(|| HttpError::Unreadable("Attrs is missing".to_owned()))?;
                let attrs = checked(client, attrs)?;
                let former = parameters(uri, "former");
                let former: Vec<IpAddr> = former
                    .iter()
                    .filter_map(|address| address.parse().ok())
                    .take(MOST_FORMER)
                    .collect();
                let known = network.table().get(&key).map(|lease| lease.attrs.clone());
                let renewed = network
                    .broker
                    .renew(&key, &attrs, &former, known.as_ref())
                    .await;
                json(&lasting(&renewed?))
            }
            (Verb::Delete, Target::Lease(name, subnet)) => {
                let network = self.networks.get(name).await?;
                let key = subnet_key(subnet)?;
                let attrs = match body.trim() {
                    "" => nameless(client),
                    body => {
                        let attrs = received(&key, body)?.attrs;
                        let missing = || HttpError::Unreadable("Attrs is missing".to_owned());
                        checked(client, attrs.ok_or_else(missing)?)?
                    }
                };
                match network.broker.release(&key, &attrs).await? {
                    Released::Lease(_) => {
                        info!(subnet = %key, client = %client.address, "lease released");
                        Ok(done(""))
                    }
                    Released::Reservation(_) => Ok(done("reservation\n")),
                    Released::Nothing => Err(StoreError::NoLease {
                        reason: format!("the lease of {key} does not belong to this client"),
                    }
                    .into()),
                }
            }
            _ => Err(HttpError::NotFound),
        }
    }

    fn taking(&self, host: &impl Hash) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        let [first, ..] = hasher.finish().to_ne_bytes();
        &self.taking[usize::from(first) % self.taking.len()]
    }

    /// One lease with its expiry; with a cursor, waits until it changes.
    async fn watch_one(&self, network: &Network, key: &SubnetKey, uri: &Uri) -> Answer {
        listed(network).await?;
        let mut cursor = parameter(uri, "next");
        let deadline = wait_of(uri)?.map(|wait| Instant::now() + wait);
        let mut news = network.subscribe();
        loop {
            news.borrow_and_update();
            let (found, next) = {
                let table = network.table();
                (table.since(cursor.as_deref()), table.cursor())
            };
            let removed = match found {
                News::All => None,
                News::Changes(changes) => {
                    let own = changes.into_iter().find(|(_, lease)| lease.key == *key);
                    match own {
                        Some((EventType::Removed, lease)) => Some(LeaseBody::new(&lease)),
                        Some((EventType::Added, _)) => None,
                        None => {
                            cursor = Some(next);
                            continue;
                        }
                    }
                }
                News::Config | News::Nothing => {
                    if wait_for(&mut news, deadline).await {
                        continue;
                    }
                    return json(&nothing_new::<Event, LeaseBody>(&next));
                }
            };
            if let Some(lease) = removed {
                let event = EventType::Removed;
                return json(&WatchResult::<_, LeaseBody> {
                    events: Some(&[Event { event, lease }]),
                    ..nothing_new(&next)
                });
            }
            let granted = self.worked(network.broker.find(key)).await;
            let late = "etcd did not answer in time".to_owned();
            let granted = granted.ok_or(HttpError::Failed(Reason::Unreachable, late))??;
            let Some(granted) = granted else {
                return Err(StoreError::NoLease {
                    reason: format!("there is no lease of {key}"),
                }
                .into());
            };
            return json(&WatchResult::<Event, _> {
                snapshot: Some(&[lasting(&granted)]),
                ..nothing_new(&next)
            });
        }
    }

    /// The names of the networks below the prefix; with a cursor, waits until they change.
    async fn network_names(&self, uri: &Uri) -> Answer {
        let late = || HttpError::Failed(Reason::Unreachable, "etcd did not answer in time".into());
        let cursor = parameter(uri, "next");
        let Some(root) = self.networks.root() else {
            return Err(HttpError::NotFound);
        };
        loop {
            let names = self.worked(root.broker.networks(MOST_NETWORKS)).await;
            let names = names.ok_or_else(late)??;
            let mut hasher = DefaultHasher::new();
            names.hash(&mut hasher);
            let now = format!("{:016x}", hasher.finish());
            if cursor.as_deref() != Some(now.as_str()) {
                return json(&WatchResult::<Event, _> {
                    snapshot: Some(&names),
                    events: None,
                    cursor: &now,
                    unreadable: Vec::new(),
                    config: None,
                });
            }
            sleep(NETWORKS_PAUSE).await;
        }
    }
}

/// A reservation in flannel 0.7's form.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Reservation {
    subnet: Ipv4Net,
    #[serde(rename = "PublicIP")]
    public_ip: std::net::Ipv4Addr,
}

impl Reservation {
    fn new(lease: &Lease) -> Self {
        Self {
            subnet: lease.key.v4.unwrap_or_default(),
            public_ip: lease
                .attrs
                .public_ip
                .unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
        }
    }
}

/// The leases: all of them, or the changes after the cursor, for which it waits.
async fn watch(network: &Network, uri: &Uri) -> Answer {
    listed(network).await?;
    let cursor = parameter(uri, "next");
    let wait = wait_of(uri)?;
    let deadline = wait.map(|wait| Instant::now() + wait);
    let mut news = network.subscribe();
    loop {
        news.borrow_and_update();
        let (found, next, tag) = {
            let table = network.table();
            let found = table.since(cursor.as_deref());
            (found, table.cursor(), table.config_tag())
        };
        match found {
            News::All => return Ok(ready(network.list()?)),
            News::Changes(changes) => {
                let events: Vec<_> = changes
                    .into_iter()
                    .map(|(event, lease)| Event {
                        event,
                        lease: LeaseBody::new(&lease),
                    })
                    .collect();
                return json(&WatchResult::<_, LeaseBody> {
                    events: Some(&events),
                    config: Some(&tag),
                    ..nothing_new(&next)
                });
            }
            // flannel takes an answer without events for an empty network, so only a client that sent `wait` gets one.
            News::Config if wait.is_some() => {}
            News::Config | News::Nothing => {
                if wait_for(&mut news, deadline).await {
                    continue;
                }
            }
        }
        return json(&WatchResult::<Event, LeaseBody> {
            config: Some(&tag),
            ..nothing_new(&next)
        });
    }
}

fn nothing_new<E, S>(cursor: &str) -> WatchResult<'_, E, S> {
    WatchResult {
        events: None,
        snapshot: None,
        cursor,
        unreadable: Vec::new(),
        config: None,
    }
}

/// Waits until there may be news or the deadline passes. Returns whether there may be news.
async fn wait_for(news: &mut tokio::sync::watch::Receiver<()>, deadline: Option<Instant>) -> bool {
    let changed = news.changed();
    match deadline {
        // The sender lives as long as the network.
        None => changed.await.is_ok(),
        Some(deadline) => matches!(timeout_at(deadline, changed).await, Ok(Ok(()))),
    }
}

/// How long to hold back an answer without news; `None` means until there is some.
fn wait_of(uri: &Uri) -> Result<Option<Duration>, HttpError> {
    let Some(text) = parameter(uri, "wait") else {
        return Ok(None);
    };
    let wait = text.parse().ok().map(Duration::from_secs);
    match wait.filter(|wait| *wait <= LONGEST_WAIT) {
        Some(wait) => Ok(Some(wait)),
        None => Err(HttpError::Unreadable(format!(
            "wait={text:?}: expected 0 to {} seconds",
            LONGEST_WAIT.as_secs()
        ))),
    }
}

/// Waits until the leases have been listed once.
async fn listed(network: &Network) -> Result<(), HttpError> {
    let deadline = Instant::now() + LIST_TIMEOUT;
    let mut news = network.subscribe();
    loop {
        news.borrow_and_update();
        if network.table().is_listed() {
            return Ok(());
        }
        let trouble = network.trouble();
        if trouble.is_some() || !wait_for(&mut news, Some(deadline)).await {
            let text = trouble.unwrap_or_else(|| "the leases are not listed yet".to_owned());
            return Err(HttpError::Failed(Reason::Unreachable, text));
        }
    }
}

async fn read_body(body: Incoming) -> Result<String, HttpError> {
    // Refuse a body at once if its announced length is too long.
    if body.size_hint().lower() > u64::try_from(LONGEST_BODY).unwrap_or(u64::MAX) {
        return Err(HttpError::TooLong);
    }
    let collected = timeout(BODY_TIMEOUT, Limited::new(body, LONGEST_BODY).collect()).await;
    match collected {
        Err(_) => Err(HttpError::TooSlow),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(HttpError::TooLong),
        Ok(Err(error)) => Err(HttpError::Unreadable(error.to_string())),
        // Go's JSON decoder also replaces invalid UTF-8.
        Ok(Ok(body)) => Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned()),
    }
}

fn unreadable(error: impl std::error::Error) -> HttpError {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text.push_str(&format!(": {source}"));
    }
    HttpError::Unreadable(text)
}

fn subnet_key(name: &str) -> Result<SubnetKey, HttpError> {
    SubnetKey::parse_name(name)
        .map_err(|error| HttpError::Failed(Reason::Refused, error.to_string()))
}

/// Parses a lease, which must be the one in the path.
fn received(key: &SubnetKey, body: &str) -> Result<Received, HttpError> {
    let received = Received::parse(body).map_err(unreadable)?;
    if received.key == *key {
        return Ok(received);
    }
    let text = format!("the path names {key}, but the body names {}", received.key);
    Err(HttpError::Failed(Reason::Refused, text))
}

/// A client that sends no attributes: only its address is known.
fn nameless(client: &Client) -> LeaseAttrs {
    let (public_ip, public_ipv6) = match client.address.to_canonical() {
        IpAddr::V4(v4) => (Some(v4), None),
        IpAddr::V6(v6) => (None, Some(v6)),
    };
    LeaseAttrs {
        public_ip,
        public_ipv6,
        backend_type: String::new(),
        backend_data: None,
        backend_v6_data: None,
        owner: client.owner(None),
    }
}

/// Checks the attributes that a client wants to publish: addresses must be a host's, the owner ID valid; binds that to
/// the client.
fn checked(client: &Client, attrs: LeaseAttrs) -> Result<LeaseAttrs, HttpError> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if let Some(owner) = &attrs.owner
        && (!(1..=64).contains(&owner.len()) || !owner.bytes().all(good))
    {
        return Err(HttpError::Unreadable(
            "SelvageOwner: expected 1 to 64 letters, digits, '.', '_' or '-'".to_owned(),
        ));
    }
    let unusable = match (attrs.public_ip, attrs.public_ipv6) {
        (None, None) => Some("0.0.0.0 is not a host address"),
        (v4, v6) => v4.and_then(unusable_v4).or(v6.and_then(unusable_v6)),
    };
    if let Some(why) = unusable {
        let text = format!("PublicIP {}: {why}", attrs.public_address());
        return Err(HttpError::Failed(Reason::Refused, text));
    }
    let owner = client.owner(attrs.owner.as_deref());
    Ok(LeaseAttrs { owner, ..attrs })
}

fn lasting(granted: &Granted) -> LeaseBody {
    LeaseBody::new(&granted.lease).lasting(granted.ttl, granted.modified, SystemTime::now())
}

/// Shared by all connections.
pub(super) type Shared = Arc<LeaseService>;

/// What a client's subnet must not cover: addresses as host prefixes, and links. Malformed values are ignored.
fn avoid(parameters: &[impl AsRef<str>]) -> Avoid {
    let nets = parameters.iter().take(MOST_AVOIDED);
    let nets = nets.filter_map(|net| net.as_ref().parse::<IpNet>().ok());
    let (hosts, links): (Vec<_>, Vec<_>) =
        nets.partition(|net| net.prefix_len() == net.max_prefix_len());
    Avoid {
        underlay: Vec::new(),
        addresses: hosts.iter().map(IpNet::addr).collect(),
        on_link: links,
    }
}
