//! The servers of a simulated cluster: what they answer, when, and what of it gets through.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{pending, ready};
use tokio::time::{Instant, sleep, sleep_until};

use super::load::{Kind, Load};
use super::streams::{self, Streams};
use super::view::{self, Tried};
use super::world::World;
use crate::base::endpoint::Endpoint;
use crate::cluster::lease::etcd::rpc::{
    Committed, Connect, Event, Failure, Granted, Range, Ranged, Reply, Rpc, TimeToLive, Txn, Watch,
    Watching,
};
use crate::settings::Etcd;

/// The servers' names are their numbers.
pub(super) const MEMBERS: usize = 3;

/// Half a round trip.
const HALF_TRIP: Duration = Duration::from_micros(500);

/// What a read costs a member that has eight cores and sends 10 Gbit/s, and each key that it sends: with etcd 3.4, 1.2 µs
/// of one core, but the network takes longer.
const READ: Duration = Duration::from_micros(30);
pub(super) const KEY: Duration = Duration::from_nanos(300);

/// What each key of the range costs, from the first one asked for to the end, however few are sent: etcd counts them for
/// every page (`rangeKeys`, server/storage/mvcc/kvstore_txn.go). 0.23 µs of one core with etcd 3.4.
const COUNTED: Duration = Duration::from_nanos(30);

/// What a key costs that the server reads and leaves out, since it was not changed (`min_mod_revision`): 0.92 µs of one
/// core with etcd 3.4.
const LEFT_OUT: Duration = Duration::from_nanos(120);

/// What a write costs the leader: some 20,000 per second.
const WRITE: Duration = Duration::from_micros(50);

/// How long a client takes to notice that a server which it has a stream with is cut off (`connect_options`).
const PING: Duration = Duration::from_secs(15);

/// The shortest time that the clock of the tests can wait for. It rounds what is shorter up to this.
const TICK: Duration = Duration::from_millis(1);

/// The expired leases that a leader revokes at a time, and how often (`leaseRevokeRate` in server/lease/lessor.go, which
/// has no setting: etcd-io/etcd#12105).
const REVOKED: usize = 500;
const REVOKE_EVERY: Duration = Duration::from_millis(500);

/// What a lease takes in a reply, in bytes: measured with vxlan's attributes.
pub(super) const LEASE_BYTES: usize = 260;

/// What becomes of requests to a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reach {
    Up,
    /// Its process does not run: connections are refused.
    Down,
    /// Nothing gets through in either direction; the member runs on.
    CutOff,
}

pub(super) struct Member {
    pub(super) reach: Reach,
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

/// A cluster and its network.
pub(super) struct Cluster(Mutex<Inner>);

pub(super) struct Inner {
    pub(super) world: World,
    pub(super) members: [Member; MEMBERS],
    /// All writes: the leader's.
    writes: Queue,
    pub(super) streams: Streams,
    /// What the nodes outside the sample last tried to write.
    pub(super) tried: Nodes,
    pub(super) load: Load,
}

/// What nodes last tried, by owner.
#[derive(Default)]
pub(super) struct Nodes(HashMap<Arc<str>, Tried>);

impl Nodes {
    pub(super) fn of(&mut self, owner: &Arc<str>) -> &mut Tried {
        self.0.entry(Arc::clone(owner)).or_default()
    }
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
            streams: Streams::new(now),
            tried: Nodes::default(),
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
            inner.streams.close(member);
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
                inner.streams.close(member);
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
            inner.streams.close(member);
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
            // To wait for each request's end would serve one a tick, and not twenty. So work begins up to a tick early.
            if *busy > Instant::now() + TICK {
                sleep_until(*busy - TICK).await;
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

    /// The answer to a list that a node makes only because its view is not what a node would have.
    fn drawn_again(&self, range: &Range) -> Option<Ranged> {
        let Side { cluster, owner, .. } = &self.side;
        let inner = &mut *cluster.lock();
        if kind(&inner.world, range) != Kind::List {
            return None;
        }
        view::drawn_again(owner, inner.tried.of(owner), &inner.world)
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

/// The keys of a range.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Keys {
    pub(super) sent: usize,
    pub(super) left_out: usize,
    pub(super) counted: usize,
}

impl Keys {
    fn cost(self) -> Duration {
        let of = |keys: usize, cost: Duration| cost * u32::try_from(keys).unwrap();
        of(self.sent, KEY) + of(self.left_out, LEFT_OUT) + of(self.counted, COUNTED)
    }
}

fn kind(world: &World, range: &Range) -> Kind {
    let is_list = world.is_lease(&range.key) && !range.end.is_empty() && !range.count_only;
    match is_list {
        true if range.min_modified != 0 => Kind::Refresh,
        true if range.revision == 0 => Kind::List,
        true => Kind::Page,
        false => Kind::Get,
    }
}

/// A range as it is.
fn whole(world: &World, range: &Range) -> (Result<Ranged, Failure>, Keys) {
    let answer = world.range(range);
    let keys = answer.as_ref().map_or_else(
        |_| Keys::default(),
        |ranged| {
            let (sent, counted) = (ranged.kvs.len(), usize::try_from(ranged.count).unwrap());
            let left_out = match range.min_modified {
                0 => 0,
                _ => counted - sent,
            };
            Keys {
                sent,
                left_out,
                counted,
            }
        },
    );
    (answer, keys)
}

impl Rpc for Connection {
    fn range(&self, range: Range) -> Reply<Ranged> {
        if let Some(page) = self.drawn_again(&range) {
            return ready(Ok(page)).boxed();
        }
        let by = match range.end.is_empty() || range.count_only {
            true => By::Read,
            false => By::List,
        };
        let answer = self.call(by, move |side, _, inner| {
            let is_list = inner.world.is_lease(&range.key) && !range.end.is_empty();
            let kind = kind(&inner.world, &range);
            let (answer, keys) = match is_list && !side.is_full {
                true => {
                    let tried = inner.tried.of(&side.owner);
                    if kind == Kind::List {
                        tried.lists(inner.world.revision);
                    }
                    match view::page(&side.owner, tried, &inner.world, &range) {
                        Ok((page, keys)) => (Ok(page), keys),
                        Err(failure) => (Err(failure), Keys::default()),
                    }
                }
                false => whole(&inner.world, &range),
            };
            inner.load.count(kind, 1, keys.sent * LEASE_BYTES);
            (answer, READ + keys.cost())
        });
        let side = self.side.clone();
        async move {
            let page = answer.await?;
            if page.header.is_none() {
                side.cluster.lock().tried.of(&side.owner).has_no_view();
            }
            Ok(page)
        }
        .boxed()
    }

    fn txn(&self, txn: Txn) -> Reply<Committed> {
        self.call(By::Leader, move |side, _, inner| {
            inner.load.count(Kind::Txn, 1, 0);
            let answer = inner.world.txn(&txn).map(|(succeeded, events)| {
                if !side.is_full && inner.world.is_lease(&txn.key) {
                    let tried = inner.tried.of(&side.owner);
                    tried.wrote(&txn.key, succeeded);
                }
                inner.tell(&events);
                let header = inner.world.header();
                Committed { header, succeeded }
            });
            (answer, WRITE)
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
        self.call(By::Read, move |side, member, inner| {
            inner.load.count(Kind::Watch, 1, 0);
            let stream = streams::open(side, member, inner, watch);
            (Ok(Box::new(stream) as Box<dyn Watching>), READ)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_are_served_as_quickly_as_they_can_be() {
    const REQUESTS: u32 = 2000;
    let (_, world) = super::network(500);
    let connection = Connection {
        side: Side {
            cluster: Cluster::new(world),
            owner: "node".into(),
            is_full: false,
        },
        member: 0,
    };
    let begun = Instant::now();
    let requests = (0..REQUESTS).map(|_| connection.time_to_live(1, false));
    for answer in futures_util::future::join_all(requests).await {
        answer.unwrap();
    }
    let took = begun.elapsed();
    assert!(
        (WRITE * REQUESTS..2 * WRITE * REQUESTS).contains(&took),
        "{took:?}"
    );
}
