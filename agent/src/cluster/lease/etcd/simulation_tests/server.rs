//! The servers of a simulated cluster: what they answer, when, and what of it gets through.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending, ready};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep, sleep_until};

use super::load::{Kind, Load};
use super::world::{World, compacted, owner};
use crate::base::endpoint::Endpoint;
use crate::cluster::lease::etcd::rpc::{
    Committed, Connect, Event, Failure, Granted, Message, Range, Ranged, Reply, Rpc, TimeToLive,
    Txn, Watch, Watching,
};
use crate::settings::Etcd;

/// The servers' names are their numbers.
pub(super) const MEMBERS: usize = 3;

/// Half a round trip.
const HALF_TRIP: Duration = Duration::from_micros(500);

/// What a read costs a member, and each key of it: a server answers some hundred lists of 10,000 leases per second.
const READ: Duration = Duration::from_micros(30);
const KEY: Duration = Duration::from_nanos(300);

/// What a write costs the leader: some 20,000 per second.
const WRITE: Duration = Duration::from_micros(50);

/// How long a client takes to notice that a server which it has a stream with is cut off (`connect_options`).
const PING: Duration = Duration::from_secs(15);

/// The expired leases that a leader revokes at a time, and how often (`leaseRevokeRate` in server/lease/lessor.go, which
/// has no setting: etcd-io/etcd#12105).
const REVOKED: usize = 500;
const REVOKE_EVERY: Duration = Duration::from_millis(500);

/// What a lease takes in a reply, in bytes: measured with vxlan's attributes.
const LEASE_BYTES: usize = 260;

/// What becomes of requests to a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Up,
    /// Its process does not run: connections are refused.
    Down,
    /// Nothing gets through in either direction; the member runs on.
    CutOff,
}

struct Member {
    reach: Reach,
    /// Its lists of leases: one after the other, as they came.
    lists: Queue,
    /// All else that it reads: a server does much at the same time, so what is short does not wait for what is long.
    reads: Queue,
    /// How often its connections broke.
    broken: u64,
}

/// When whoever serves it is done with what has been begun. Whoever waits for a lock waits in line, and leaves it when he
/// gives up, as a request that gRPC cancels.
type Queue = Arc<tokio::sync::Mutex<Instant>>;

/// What serves a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum By {
    List,
    Read,
    Leader,
}

/// A stream of watches.
struct Stream {
    member: usize,
    owner: Arc<str>,
    is_full: bool,
    sender: UnboundedSender<Message>,
    watches: Vec<Watch>,
}

/// A cluster and its network.
pub(super) struct Cluster(Mutex<Inner>);

pub(super) struct Inner {
    pub(super) world: World,
    members: [Member; MEMBERS],
    /// All writes: the leader's.
    writes: Queue,
    streams: HashMap<u64, Stream>,
    /// The streams of the sample, and of each owner.
    full: BTreeSet<u64>,
    of_owner: HashMap<Arc<str>, BTreeSet<u64>>,
    opened: u64,
    pub(super) load: Load,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// Starts with all members up.
    pub(super) fn new(world: World) -> Arc<Self> {
        let now = Instant::now();
        let member = || Member {
            reach: Reach::Up,
            lists: Arc::new(tokio::sync::Mutex::new(now)),
            reads: Arc::new(tokio::sync::Mutex::new(now)),
            broken: 0,
        };
        let cluster = Arc::new(Self(Mutex::new(Inner {
            world,
            members: [member(), member(), member()],
            writes: Arc::new(tokio::sync::Mutex::new(now)),
            streams: HashMap::new(),
            full: BTreeSet::new(),
            of_owner: HashMap::new(),
            opened: 0,
            load: Load::new(),
        })));
        let clock = Arc::clone(&cluster);
        tokio::spawn(async move {
            loop {
                sleep(REVOKE_EVERY).await;
                clock.lock().expire();
            }
        });
        cluster
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// Stops a member, starts it, or cuts it off.
    pub(super) fn set(&self, member: usize, reach: Reach) {
        let mut inner = self.lock();
        let had_leader = inner.has_leader();
        inner.members[member].reach = reach;
        inner.members[member].broken += 1;
        if reach != Reach::CutOff {
            inner.close(member);
        }
        if inner.has_leader() && !had_leader {
            inner.world.promote(Instant::now());
        }
    }

    pub(super) fn set_all(&self, reach: Reach) {
        (0..MEMBERS).for_each(|member| self.set(member, reach));
    }

    /// Breaks all streams of clients that wait long enough for members that are cut off.
    pub(super) async fn pings_fail(&self) {
        sleep(PING).await;
        let mut inner = self.lock();
        for member in 0..MEMBERS {
            if inner.members[member].reach == Reach::CutOff {
                inner.close(member);
            }
        }
    }

    /// All members have another content from now on.
    pub(super) fn restore(&self, world: World, cluster: u64) {
        let mut inner = self.lock();
        inner.world = world;
        inner.world.cluster = cluster;
        inner.world.promote(Instant::now());
        for member in 0..MEMBERS {
            inner.members[member].broken += 1;
            inner.close(member);
        }
    }
}

impl Inner {
    /// Whether the members have a majority. Those cut off have: only the clients do not reach them.
    fn has_leader(&self) -> bool {
        let up = self.members.iter().filter(|it| it.reach != Reach::Down);
        up.count() > MEMBERS / 2
    }

    fn expire(&mut self) {
        if self.has_leader() {
            let events = self.world.expire(Instant::now(), REVOKED);
            self.tell(&events);
        }
    }

    fn close(&mut self, member: usize) {
        let of_member = self.streams.iter().filter(|(_, it)| it.member == member);
        let ids: Vec<u64> = of_member.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }

    fn remove(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.full.remove(&id);
            if let Some(ids) = self.of_owner.get_mut(&stream.owner) {
                ids.remove(&id);
            }
        }
    }

    /// Sends events to the watches that they are for.
    fn tell(&mut self, events: &[Event]) {
        for event in events {
            let bytes = event.kv.key.len() + event.kv.value.len() + 50;
            let is_lease = self.world.is_lease(&event.kv.key);
            if is_lease {
                self.load.event(bytes, self.streams.len());
            }
            let mut ids: BTreeSet<u64> = match is_lease {
                true => self.full.clone(),
                false => self.streams.keys().copied().collect(),
            };
            if is_lease {
                // Whose it was and whose it is: an owner that loses a key to another must hear of it.
                let log = self.world.owners_of(&event.kv.key);
                let of_owners = log
                    .iter()
                    .filter_map(|owner| self.of_owner.get(owner.as_str()));
                ids.extend(of_owners.flatten());
            }
            for id in ids {
                let Some(stream) = self.streams.get(&id) else {
                    continue;
                };
                let reach = self.members[stream.member].reach;
                let watch = stream.watches.iter().find(|it| covers(it, &event.kv.key));
                let watch = watch.filter(|it| it.from <= event.kv.modified);
                if let Some(watch) = watch.filter(|_| reach == Reach::Up) {
                    let _ = stream.sender.send(Message {
                        header: self.world.header(),
                        watch: watch.id,
                        events: vec![event.clone()],
                        ..Message::default()
                    });
                }
            }
        }
    }

    /// Adds a watch to a stream: confirms it, then sends what has happened since.
    fn watch(&mut self, id: u64, mut watch: Watch) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if watch.id == 0 {
            watch.id = i64::try_from(stream.watches.len()).unwrap();
        }
        if watch.from == 0 {
            watch.from = self.world.revision + 1;
        }
        let header = self.world.header();
        let message = Message {
            header,
            watch: watch.id,
            ..Message::default()
        };
        let _ = stream.sender.send(Message {
            created: true,
            ..message.clone()
        });
        if watch.from < self.world.compacted {
            let _ = stream.sender.send(Message {
                canceled: true,
                compacted: self.world.compacted,
                reason: compacted().cause,
                ..message
            });
            return;
        }
        if watch.from <= self.world.revision && self.world.is_lease(&watch.key) {
            let missed = self.world.changes_since(watch.from);
            self.load.event(LEASE_BYTES, missed);
        }
        let of = (!stream.is_full && self.world.is_lease(&watch.key)).then(|| &*stream.owner);
        let events = self.world.events(&watch.key, &watch.end, watch.from, of);
        if !events.is_empty() {
            let _ = stream.sender.send(Message { events, ..message });
        }
        stream.watches.push(watch);
    }
}

fn covers(watch: &Watch, key: &[u8]) -> bool {
    match watch.end.is_empty() {
        true => watch.key == key,
        false => watch.key.as_slice() <= key && key < watch.end.as_slice(),
    }
}

/// One node's side of the network.
#[derive(Clone)]
pub(super) struct Side {
    pub(super) cluster: Arc<Cluster>,
    pub(super) owner: Arc<str>,
    /// Whether the node is in the sample: it is shown all leases.
    pub(super) is_full: bool,
}

impl fmt::Debug for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Side").field(&self.owner).finish()
    }
}

/// A node's connection to a member.
#[derive(Clone)]
struct Connection {
    side: Side,
    member: usize,
}

impl Connect for Side {
    fn connect(&self, endpoint: &Endpoint, _: &Etcd) -> Reply<Arc<dyn Rpc>> {
        let digit = endpoint.url.bytes().find(u8::is_ascii_digit).unwrap();
        let connection = Connection {
            side: self.clone(),
            member: usize::from(digit - b'0'),
        };
        ready(Ok(Arc::new(connection) as Arc<dyn Rpc>)).boxed()
    }
}

impl Connection {
    /// Carries out a request when its turn comes. `work` returns the answer and how long it takes.
    fn call<T: Send + 'static>(
        &self,
        by: By,
        work: impl FnOnce(&Side, usize, &mut Inner) -> (Result<T, Failure>, Duration) + Send + 'static,
    ) -> Reply<T> {
        let Self { side, member } = self.clone();
        async move {
            sleep(HALF_TRIP).await;
            let Some((queue, before)) = side.reach(member, by)? else {
                return pending().await;
            };
            let mut busy = queue.lock().await;
            if *busy > Instant::now() {
                sleep_until(*busy).await;
            }
            let Some(_) = side.reach(member, by)? else {
                return pending().await;
            };
            let (answer, cost) = work(&side, member, &mut side.cluster.lock());
            let done = Instant::now().max(*busy) + cost;
            *busy = done;
            drop(busy);
            sleep_until(done + HALF_TRIP).await;
            match side.reach(member, by)? {
                None => pending().await,
                Some((_, broken)) if broken == before => answer,
                Some(_) => Err(Failure::text("connection reset".to_owned())),
            }
        }
        .boxed()
    }

    fn write<T: Send + 'static>(
        &self,
        kind: Kind,
        work: impl FnOnce(&mut World, Instant) -> Result<(T, Vec<Event>), Failure> + Send + 'static,
    ) -> Reply<T> {
        self.call(By::Leader, move |_, _, inner| {
            inner.load.count(kind, 1, 0);
            let answer = work(&mut inner.world, Instant::now()).map(|(answer, events)| {
                inner.tell(&events);
                answer
            });
            (answer, WRITE)
        })
    }
}

impl Side {
    /// The queue of a member, and how often its connections broke; `None` if nothing gets through.
    fn reach(&self, member: usize, by: By) -> Result<Option<(Queue, u64)>, Failure> {
        let inner = self.cluster.lock();
        let it = &inner.members[member];
        match it.reach {
            Reach::Down => Err(refused()),
            Reach::CutOff => Ok(None),
            Reach::Up if !inner.has_leader() => {
                Err(Failure::answer(14, "etcdserver: no leader".to_owned()))
            }
            Reach::Up => {
                let queue = match by {
                    By::List => &it.lists,
                    By::Read => &it.reads,
                    By::Leader => &inner.writes,
                };
                Ok(Some((Arc::clone(queue), it.broken)))
            }
        }
    }
}

fn refused() -> Failure {
    Failure::answer(14, "connection refused".to_owned()).before_sending()
}

/// What a node outside the sample is shown of a range of leases, and of how many keys.
fn thin(side: &Side, world: &World, range: &Range) -> (Result<Ranged, Failure>, usize) {
    let all = world.taken.count();
    if range.count_only && range.revision != 0 {
        // What such a node was shown is not what the cluster has, so the numbers would not match.
        return (Err(compacted()), 0);
    }
    if range.count_only {
        let ranged = Ranged {
            header: world.header(),
            kvs: Vec::new(),
            more: false,
            count: i64::try_from(all).unwrap(),
        };
        return (Ok(ranged), 0);
    }
    let own: Vec<_> = world.leases_of(&side.owner).cloned().collect();
    let prefix = &range.key[..];
    let names = own.iter().map(|kv| &kv.key[prefix.len()..]);
    let blocks = world.taken.blocks(prefix, names, world.revision);
    let ranged = Ranged {
        header: world.header(),
        kvs: own.iter().map(|kv| (**kv).clone()).chain(blocks).collect(),
        more: false,
        count: i64::try_from(all).unwrap(),
    };
    let shown = match range.min_modified {
        0 => all,
        since => world.changes_since(since).min(all),
    };
    (Ok(ranged), shown)
}

impl Rpc for Connection {
    fn range(&self, range: Range) -> Reply<Ranged> {
        let by = match range.end.is_empty() || range.count_only {
            true => By::Read,
            false => By::List,
        };
        self.call(by, move |side, _, inner| {
            let is_list = inner.world.is_lease(&range.key) && !range.end.is_empty();
            let (answer, keys) = match is_list && !side.is_full {
                true => thin(side, &inner.world, &range),
                false => {
                    let answer = inner.world.range(&range);
                    let keys = answer.as_ref().map_or(0, |ranged| ranged.kvs.len());
                    (answer, keys)
                }
            };
            let (kind, requests) = match is_list && !range.count_only {
                true => {
                    let limit = usize::try_from(range.limit).unwrap().max(1);
                    (Kind::Page, keys.div_ceil(limit).max(1))
                }
                false => (Kind::Get, 1),
            };
            inner.load.count(kind, requests, keys * LEASE_BYTES);
            (answer, READ + KEY * u32::try_from(keys).unwrap())
        })
    }

    fn txn(&self, txn: Txn) -> Reply<Committed> {
        self.write(Kind::Txn, move |world, _| {
            let (succeeded, events) = world.txn(&txn)?;
            let header = world.header();
            Ok((Committed { header, succeeded }, events))
        })
    }

    fn grant(&self, id: i64, ttl: i64) -> Reply<Granted> {
        self.write(Kind::Grant, move |world, now| {
            world.grant(id, ttl, now)?;
            let header = world.header();
            Ok((Granted { header, id, ttl }, Vec::new()))
        })
    }

    fn revoke(&self, id: i64) -> Reply<()> {
        self.write(Kind::Revoke, move |world, _| Ok(((), world.revoke(id)?)))
    }

    fn keep_alive(&self, id: i64) -> Reply<bool> {
        self.write(Kind::KeepAlive, move |world, now| {
            Ok((world.keep_alive(id, now), Vec::new()))
        })
    }

    fn time_to_live(&self, id: i64, _: bool) -> Reply<TimeToLive> {
        self.write(Kind::TimeToLive, move |world, now| {
            Ok((world.time_to_live(id, now), Vec::new()))
        })
    }

    fn watch(&self, watch: Watch) -> Reply<Box<dyn Watching>> {
        let cluster = Arc::clone(&self.side.cluster);
        self.call(By::Read, move |side, member, inner| {
            inner.load.count(Kind::Watch, 1, 0);
            let (sender, receiver) = unbounded_channel();
            inner.opened += 1;
            let id = inner.opened;
            let stream = Stream {
                member,
                owner: Arc::clone(&side.owner),
                is_full: side.is_full,
                sender,
                watches: Vec::new(),
            };
            inner.streams.insert(id, stream);
            let of_owner = inner.of_owner.entry(Arc::clone(&side.owner));
            of_owner.or_default().insert(id);
            if side.is_full {
                inner.full.insert(id);
            }
            inner.watch(id, watch);
            let receiving = Receiving {
                cluster,
                id,
                receiver,
            };
            (Ok(Box::new(receiving) as Box<dyn Watching>), READ)
        })
    }
}

/// The node's end of a stream.
struct Receiving {
    cluster: Arc<Cluster>,
    id: u64,
    receiver: UnboundedReceiver<Message>,
}

impl Watching for Receiving {
    fn add(&mut self, watch: Watch) -> BoxFuture<'_, Result<(), Failure>> {
        self.cluster.lock().watch(self.id, watch);
        ready(Ok(())).boxed()
    }

    fn request_progress(&mut self) -> BoxFuture<'_, Result<(), Failure>> {
        let mut inner = self.cluster.lock();
        let Inner {
            world,
            members,
            streams,
            load,
            ..
        } = &mut *inner;
        if let Some(stream) = streams.get(&self.id)
            && members[stream.member].reach == Reach::Up
        {
            load.count(Kind::Progress, 1, 0);
            let _ = stream.sender.send(Message {
                header: world.header(),
                watch: -1,
                ..Message::default()
            });
        }
        ready(Ok(())).boxed()
    }

    fn message(&mut self) -> BoxFuture<'_, Result<Option<Message>, Failure>> {
        async move { Ok(self.receiver.recv().await) }.boxed()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.cluster.lock().remove(self.id);
    }
}

#[test]
fn an_owner_is_found_in_a_value() {
    let value = br#"{"PublicIP":"10.0.0.1","SelvageOwner":"node-7"}"#;
    assert_eq!(owner(value).as_deref(), Some("node-7"));
    assert_eq!(owner(br#"{"PublicIP":"10.0.0.1"}"#), None);
}
