//! The streams of watches of a simulated cluster: whom an event is sent to, and when it arrives.
//!
//! Every change of a lease is sent to every node, so that 65,000 nodes that start take four billion events. A member
//! sends them to one node after the other, in rounds: what changes during a round is sent in the next, all of it in one
//! message per node. Who follows a busy member hears late. An etcd server does much the same: watches that are too slow
//! for single events get what they missed in batches (`syncWatchers`, server/storage/mvcc/watchable_store.go).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::load::Kind;
use super::server::{Cluster, Inner, KEY, LEASE_BYTES, MEMBERS, Reach, Side};
use super::world::compacted;
use crate::cluster::lease::etcd::rpc::{Event, Failure, Message, Watch, Watching};
use crate::cluster::lease::store::until;

/// What a message with events costs a member, beside the events: 57 µs of one core with etcd 3.4 on a slow machine.
const MESSAGE: Duration = Duration::from_micros(7);

/// What an event takes beside its key and value, in bytes.
const EVENT_BYTES: usize = 50;

/// A message, and when it arrives.
type Sent = (Instant, Message);

/// A stream of watches.
struct Stream {
    member: usize,
    owner: Arc<str>,
    is_full: bool,
    sender: UnboundedSender<Sent>,
    watches: Vec<Watch>,
    /// Whether a watch of all leases is among them.
    has_leases: bool,
}

/// All streams.
pub(super) struct Streams {
    open: HashMap<u64, Stream>,
    opened: u64,
    /// The streams of the sample, and of each owner.
    full: BTreeSet<u64>,
    of_owner: HashMap<Arc<str>, BTreeSet<u64>>,
    /// How many nodes follow all leases at each member.
    followers: [usize; MEMBERS],
    rounds: [Round; MEMBERS],
}

/// The last round of a member.
#[derive(Clone, Copy)]
struct Round {
    begins: Instant,
    ends: Instant,
}

impl Round {
    /// So many nodes are sent one event each.
    fn add(&mut self, nodes: usize) {
        let now = Instant::now();
        let nodes = u32::try_from(nodes).unwrap();
        if now >= self.begins {
            self.begins = self.ends.max(now);
            self.ends = self.begins + MESSAGE * nodes;
        }
        self.ends += KEY * nodes;
    }

    /// One node is sent so many events.
    fn catch_up(&mut self, events: usize) {
        let cost = KEY * u32::try_from(events).unwrap();
        self.ends = self.ends.max(Instant::now()) + cost;
    }
}

impl Streams {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            open: HashMap::new(),
            opened: 0,
            full: BTreeSet::new(),
            of_owner: HashMap::new(),
            followers: [0; MEMBERS],
            rounds: [Round {
                begins: now,
                ends: now,
            }; MEMBERS],
        }
    }

    /// All connections of a member broke.
    pub(super) fn close(&mut self, member: usize) {
        let of_member = self.open.iter().filter(|(_, it)| it.member == member);
        let ids: Vec<u64> = of_member.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.remove(id));
        let now = Instant::now();
        self.rounds[member] = Round {
            begins: now,
            ends: now,
        };
    }

    fn remove(&mut self, id: u64) {
        let Some(stream) = self.open.remove(&id) else {
            return;
        };
        self.full.remove(&id);
        self.followers[stream.member] -= usize::from(stream.has_leases);
        if let Some(ids) = self.of_owner.get_mut(&stream.owner) {
            ids.remove(&id);
        }
    }

    fn add(&mut self, stream: Stream) -> u64 {
        self.opened += 1;
        let id = self.opened;
        let of_owner = self.of_owner.entry(Arc::clone(&stream.owner));
        of_owner.or_default().insert(id);
        if stream.is_full {
            self.full.insert(id);
        }
        self.open.insert(id, stream);
        id
    }

    /// The streams that are shown a change: of a lease, the sample's and those of its owners.
    fn shown(&self, owners: Option<&BTreeSet<String>>) -> BTreeSet<u64> {
        let Some(owners) = owners else {
            return self.open.keys().copied().collect();
        };
        let of_owners = owners
            .iter()
            .filter_map(|owner| self.of_owner.get(owner.as_str()));
        self.full
            .iter()
            .chain(of_owners.flatten())
            .copied()
            .collect()
    }
}

impl Inner {
    /// Sends events to the watches that they are for.
    pub(super) fn tell(&mut self, events: &[Event]) {
        for event in events {
            let key = &event.kv.key;
            let is_lease = self.world.is_lease(key);
            if is_lease {
                self.send_to_followers(key.len() + event.kv.value.len() + EVENT_BYTES);
            }
            // Whose it was and whose it is: an owner that loses a key to another must hear of it.
            let owners = is_lease.then(|| self.world.owners_of(key));
            for id in self.streams.shown(owners.as_ref()) {
                let Some(stream) = self.streams.open.get(&id) else {
                    continue;
                };
                let reach = self.members[stream.member].reach;
                let watch = stream.watches.iter().find(|it| covers(it, key));
                let watch = watch.filter(|it| it.from <= event.kv.modified);
                if let Some(watch) = watch.filter(|_| reach == Reach::Up) {
                    let message = Message {
                        header: self.world.header(),
                        watch: watch.id,
                        events: vec![event.clone()],
                        ..Message::default()
                    };
                    let at = self.streams.rounds[stream.member].ends;
                    let _ = stream.sender.send((at, message));
                }
            }
        }
    }

    fn send_to_followers(&mut self, bytes: usize) {
        for member in 0..MEMBERS {
            let followers = self.streams.followers[member];
            if self.members[member].reach == Reach::Up && followers > 0 {
                let round = &mut self.streams.rounds[member];
                round.add(followers);
                let ends = round.ends;
                self.load.event(ends, bytes * followers, followers);
            }
        }
    }

    /// Adds a watch to a stream: confirms it, then sends what has happened since.
    fn watch(&mut self, id: u64, mut watch: Watch) {
        let Some(stream) = self.streams.open.get_mut(&id) else {
            return;
        };
        if watch.id == 0 {
            watch.id = i64::try_from(stream.watches.len()).unwrap();
        }
        if watch.from == 0 {
            watch.from = self.world.revision + 1;
        }
        let message = Message {
            header: self.world.header(),
            watch: watch.id,
            ..Message::default()
        };
        let created = Message {
            created: true,
            ..message.clone()
        };
        let _ = stream.sender.send((Instant::now(), created));
        if watch.from < self.world.compacted {
            let canceled = Message {
                canceled: true,
                compacted: self.world.compacted,
                reason: compacted().cause,
                ..message
            };
            let _ = stream.sender.send((Instant::now(), canceled));
            return;
        }
        let is_lease = self.world.is_lease(&watch.key);
        let of = (!stream.is_full && is_lease).then(|| Arc::clone(&stream.owner));
        stream.watches.push(watch.clone());
        let (sender, member) = (stream.sender.clone(), stream.member);
        let owner = Arc::clone(&stream.owner);
        let mut at = Instant::now();
        if is_lease {
            stream.has_leases = true;
            self.streams.followers[member] += 1;
            let from = self.tried.of(&owner).watched_from(watch.from);
            let missed = match from <= self.world.revision {
                true => self.world.changes_since(from),
                false => 0,
            };
            if missed > 0 {
                let round = &mut self.streams.rounds[member];
                round.catch_up(missed);
                at = round.ends;
                self.load.event(at, LEASE_BYTES * missed, missed);
            }
        }
        let of = of.as_deref();
        let events = self.world.events(&watch.key, &watch.end, watch.from, of);
        if !events.is_empty() {
            let _ = sender.send((at, Message { events, ..message }));
        }
    }
}

fn covers(watch: &Watch, key: &[u8]) -> bool {
    match watch.end.is_empty() {
        true => watch.key == key,
        false => watch.key.as_slice() <= key && key < watch.end.as_slice(),
    }
}

/// Opens a stream with one watch.
pub(super) fn open(side: &Side, member: usize, inner: &mut Inner, watch: Watch) -> Receiving {
    let (sender, receiver) = unbounded_channel();
    let id = inner.streams.add(Stream {
        member,
        owner: Arc::clone(&side.owner),
        is_full: side.is_full,
        sender,
        watches: Vec::new(),
        has_leases: false,
    });
    inner.watch(id, watch);
    Receiving {
        cluster: Arc::clone(&side.cluster),
        id,
        receiver,
        coming: VecDeque::new(),
        progress: None,
    }
}

/// The node's end of a stream.
pub(super) struct Receiving {
    cluster: Arc<Cluster>,
    id: u64,
    receiver: UnboundedReceiver<Sent>,
    /// What is on its way.
    coming: VecDeque<Sent>,
    /// The reply to a request for progress, which overtakes events (etcd-io/etcd#15220).
    progress: Option<Message>,
}

impl Receiving {
    async fn next(&mut self) -> Option<Message> {
        if let Some(reply) = self.progress.take() {
            return Some(reply);
        }
        loop {
            let due = self.coming.front().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = until(due), if due.is_some_and(|due| due <= Instant::now()) => {}
                sent = self.receiver.recv() => {
                    // A stream that breaks loses what has not come yet.
                    self.coming.push_back(sent?);
                    continue;
                }
                () = until(due) => {}
            }
            return self.coming.pop_front().map(|(_, message)| message);
        }
    }
}

impl Watching for Receiving {
    fn add(&mut self, watch: Watch) -> BoxFuture<'_, Result<(), Failure>> {
        self.cluster.lock().watch(self.id, watch);
        ready(Ok(())).boxed()
    }

    fn request_progress(&mut self) -> BoxFuture<'_, Result<(), Failure>> {
        let mut inner = self.cluster.lock();
        let member = inner.streams.open.get(&self.id).map(|it| it.member);
        if member.is_some_and(|member| inner.members[member].reach == Reach::Up) {
            inner.load.count(Kind::Progress, 1, 0);
            self.progress = Some(Message {
                header: inner.world.header(),
                watch: -1,
                ..Message::default()
            });
        }
        ready(Ok(())).boxed()
    }

    fn message(&mut self) -> BoxFuture<'_, Result<Option<Message>, Failure>> {
        async move { Ok(self.next().await) }.boxed()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.cluster.lock().streams.remove(self.id);
    }
}
