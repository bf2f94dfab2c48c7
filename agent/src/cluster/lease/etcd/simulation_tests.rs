//! Up to 65,000 nodes in one process, on a clock of their own, with an etcd cluster in memory.
//!
//! Real: the whole store of every node, that is, how it lists, chooses and takes a lease, keeps it, watches, reconnects
//! and waits; and in the sample the table of peers. Simulated: time, the network, the servers ([`server`]) and what they
//! store ([`world`]). Sampled: only some nodes are shown all leases; to the others they are merged ([`view`]), and events
//! of others' leases are counted, not delivered. The load counts what a real server would have sent.
//!
//! `make simulate` runs as many as wanted and prints what `agent/docs/leases.md` has a table of.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use self::fleet::{Board, Fleet, TTL};
use self::load::{Bytes, KINDS, Kind, Span};
use self::server::{Cluster, KEY, MEMBERS, Reach};
use self::view::Taken;
use self::world::World;
use super::listing::page_size;
use super::rpc::{Change, Txn};
use crate::cluster::network_config::NetworkConfig;
use crate::settings::Etcd;

mod fleet;
mod load;
mod server;
mod single;
mod streams;
mod view;
mod world;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The nodes that are shown everything.
const SAMPLE: usize = 12;

/// Renewals and signs of life of a quarter of an hour, by node.
const QUARTER_HOUR: f64 = 8.0 + 15.0;

/// One list by node, whatever happens to all of them: a lost race reads only what changed, and a list that comes too late
/// goes on. The rest is for a node that the same event reaches twice.
const ONE_LIST: f64 = 1.05;

/// A network whose subnets are nearly all needed: 65,000 of 65,535, or 1,000 of 1,023.
fn network(nodes: usize) -> (NetworkConfig, World) {
    let width = u8::try_from((nodes + 2).next_power_of_two().ilog2().max(6)).unwrap();
    let config = format!(
        r#"{{"Network":"10.0.0.0/{}","SubnetLen":24,"Backend":{{"Type":"vxlan"}}}}"#,
        24 - width
    );
    let prefix = Etcd::default().prefix;
    let mut world = World::new(&prefix, Taken::new(Ipv4Addr::new(10, 0, 0, 0), width));
    put(&mut world, &format!("{prefix}/config"), &config);
    (NetworkConfig::parse(&config).unwrap(), world)
}

fn put(world: &mut World, key: &str, value: &str) {
    let txn = Txn {
        when: Vec::new(),
        key: key.into(),
        change: Change::Put {
            value: value.into(),
            etcd_lease: 0,
        },
    };
    world.txn(&txn).unwrap();
}

/// One fleet, and what happens to it one after the other.
struct Run {
    fleet: Fleet,
    nodes: usize,
}

/// What a scenario may cost at most.
struct Most {
    /// Whole lists, by node: how many are begun, and how many are sent.
    lists: f64,
    /// All other requests, by node.
    others: f64,
    /// Writes of keys, by node.
    writes: f64,
    /// Until all agree.
    agreement: Duration,
}

impl Run {
    fn count(&self, what: impl Fn(&Board) -> &AtomicUsize) -> usize {
        what(&self.fleet.board).load(Ordering::Relaxed)
    }

    fn mark(&self) -> usize {
        self.fleet.cluster.lock().load.mark()
    }

    /// The most requests in a second that three servers should have to answer, whatever happens to all nodes at once.
    fn most_per_second(&self) -> usize {
        /// What etcd's documentation gives for three members (etcd.io/docs/v3.6/op-guide/performance).
        const SERVED: usize = 30_000;
        /// Of a node that comes back at once: the config, the list, the watch, questions to it, its own key and that key's
        /// TTL; and if its lease is gone, a new one and the key again.
        const RETURNING: usize = 8;
        SERVED.min(self.nodes * RETURNING)
    }

    /// Waits until all agree, and at least for a time; then prints and judges what it took since a second of the load.
    async fn judge(&self, name: &str, mark: usize, at_least: Duration, most: Most) {
        let begun = Instant::now();
        let agreement = self.fleet.agreement(most.agreement).await;
        sleep_until(begun + at_least).await;
        self.fleet.agreement(SECOND).await;
        let span = self.fleet.cluster.lock().load.since(mark);
        self.print(name, agreement, &span);
        let board = &self.fleet.board;
        assert_eq!(self.count(|it| &it.renumbered), 0, "{name}: {board:?}");
        assert_eq!(self.count(|it| &it.removed), 0, "{name}: {board:?}");
        let by_node = |number: usize| number as f64 / self.nodes as f64;
        let pages = span.of(Kind::List) + span.of(Kind::Page);
        let judged = [
            ("lists begun", by_node(span.of(Kind::List)), most.lists),
            (
                "lists sent",
                by_node(pages) / self.pages() as f64,
                most.lists,
            ),
            (
                "other requests",
                by_node(span.requests() - pages),
                most.others,
            ),
            ("writes", by_node(span.of(Kind::Txn)), most.writes),
        ];
        for (what, found, most) in judged {
            assert!(
                found <= most,
                "{name}: {found} {what} by node, at most {most}"
            );
        }
        let (peak, most) = (span.peak_of_all, self.most_per_second());
        assert!(
            peak <= most,
            "{name}: {peak} requests in a second, at most {most}"
        );
    }

    fn print(&self, name: &str, agreement: Duration, span: &Span) {
        let seconds = span.seconds;
        println!(
            "{name}: agreed after {} s; {} s in all; {} peers removed, {} nodes renumbered, {} leases lost, {} attempts failed",
            agreement.as_secs(),
            seconds,
            self.count(|it| &it.removed),
            self.count(|it| &it.renumbered),
            self.count(|it| &it.lost),
            self.count(|it| &it.failed),
        );
        println!("    {:<10} by node     mean/s     peak/s", "");
        let line = |name: &str, total: usize, peak: usize| {
            println!(
                "    {name:<10} {:>7.2} {:>10.0} {peak:>10}",
                total as f64 / self.nodes as f64,
                total as f64 / seconds as f64
            );
        };
        line("all", span.requests(), span.peak_of_all);
        for (kind, kind_name) in KINDS {
            if let Some(total) = span.total.get(&kind) {
                line(kind_name, *total, span.peak[&kind]);
            }
        }
        let sent = |what: &str, Bytes { total, peak }: Bytes| {
            let giga = |bytes: u64| bytes as f64 / 1e9;
            println!(
                "    {what:<10} {:.2} GB, {:.3} GB/s mean, {:.3} GB/s peak",
                giga(total),
                giga(total) / seconds as f64,
                giga(peak)
            );
        };
        sent("lists", span.read);
        sent("events", span.watched);
        println!("    {:<10} {} million", "events", span.events / 1_000_000);
    }

    /// The requests for one whole list.
    fn pages(&self) -> usize {
        let page = |count| usize::try_from(page_size(count)).unwrap();
        1 + self
            .nodes
            .saturating_sub(page(0))
            .div_ceil(page(self.nodes))
    }

    /// How long the members take to send every lease to every node, whether in lists or as events.
    fn all_to_all(&self) -> Duration {
        let each = u32::try_from(self.nodes).unwrap();
        KEY * each * each / u32::try_from(MEMBERS).unwrap()
    }
}

async fn simulate(nodes: usize) {
    let (config, world) = network(nodes);
    let cluster = Cluster::new(world);
    let fleet = Fleet::start(
        Arc::clone(&cluster),
        config,
        nodes,
        SAMPLE.min(nodes),
        MINUTE,
    );
    let run = Run { fleet, nodes };
    let backup = start(&run).await;
    quiet(&run).await;
    compaction(&run).await;
    outage(&run).await;
    rolling_restart(&run).await;
    restored_backup(&run, backup).await;
    cut_off(&run).await;
}

/// Returns a backup of when three quarters of the nodes had a lease.
async fn start(run: &Run) -> World {
    let (cluster, begun) = (&run.fleet.cluster, Instant::now());
    while cluster.lock().world.taken.count() < run.nodes * 3 / 4 {
        sleep(SECOND).await;
    }
    let backup = cluster.lock().world.clone();
    println!(
        "three quarters have a lease after {} s",
        begun.elapsed().as_secs()
    );
    let most = Most {
        lists: ONE_LIST,
        others: 12.0,
        writes: 1.5,
        agreement: 20 * MINUTE + run.all_to_all(),
    };
    run.judge("start within a minute", 0, SECOND, most).await;
    println!(
        "    all agree {} s after the first start; {:?}",
        begun.elapsed().as_secs(),
        run.fleet.board
    );
    backup
}

async fn quiet(run: &Run) {
    let mark = run.mark();
    let most = Most {
        lists: 0.0,
        // Renewals, and a sign of life every minute.
        others: 5.0 + 10.0,
        writes: 0.0,
        agreement: SECOND,
    };
    run.judge("ten quiet minutes", mark, 10 * MINUTE, most)
        .await;
}

/// All streams break, and what they would go on from is compacted. A flannel node then opened one watch after the other
/// at the same revision, for ever (flannel-io/flannel#2470).
async fn compaction(run: &Run) {
    let cluster = &run.fleet.cluster;
    let mark = run.mark();
    {
        let mut inner = cluster.lock();
        for _ in 0..2 {
            put(&mut inner.world, "/other", "x");
        }
        inner.world.compact();
    }
    cluster.set_all(Reach::Up);
    let heard = run.fleet.change_heard(20 * MINUTE).await;
    println!(
        "a change after the compaction is known to all after {} s",
        heard.as_secs()
    );
    let most = Most {
        lists: ONE_LIST,
        others: 12.0 + QUARTER_HOUR,
        writes: 0.1,
        agreement: MINUTE,
    };
    run.judge("compaction under every watch", mark, 15 * MINUTE, most)
        .await;
}

/// All members stop for longer than a keepalive interval.
async fn outage(run: &Run) {
    let cluster = &run.fleet.cluster;
    cluster.set_all(Reach::Down);
    sleep(10 * MINUTE).await;
    let mark = run.mark();
    cluster.set_all(Reach::Up);
    let most = Most {
        lists: ONE_LIST,
        others: 12.0 + QUARTER_HOUR,
        writes: 0.0,
        agreement: MINUTE,
    };
    run.judge("etcd down for ten minutes", mark, 15 * MINUTE, most)
        .await;
}

/// Each member is restarted, one after the other.
async fn rolling_restart(run: &Run) {
    let cluster = &run.fleet.cluster;
    let mark = run.mark();
    for member in 0..MEMBERS {
        cluster.set(member, Reach::Down);
        sleep(20 * SECOND).await;
        cluster.set(member, Reach::Up);
        sleep(40 * SECOND).await;
    }
    let most = Most {
        // A small cluster lists at each of the two restarts that a node may come upon, a large one once.
        lists: 2.5,
        others: 24.0 + QUARTER_HOUR,
        writes: 0.0,
        agreement: MINUTE,
    };
    run.judge("rolling restart", mark, 15 * MINUTE, most).await;
}

/// A backup from the start is restored, as another cluster: a quarter of the leases is missing, and the watches would go
/// on from a revision that is yet to come, which etcd allows (etcd-io/etcd#9775).
async fn restored_backup(run: &Run, backup: World) {
    let cluster = &run.fleet.cluster;
    let mark = run.mark();
    cluster.restore(backup, 0xbac);
    let most = Most {
        lists: ONE_LIST,
        others: 24.0 + QUARTER_HOUR,
        writes: 0.5,
        agreement: 2 * MINUTE + run.all_to_all(),
    };
    run.judge("restored backup", mark, 16 * MINUTE, most).await;
    assert_eq!(run.count(|it| &it.other_history), SAMPLE.min(run.nodes));
}

/// Nobody reaches etcd, which runs on, until all leases have expired.
async fn cut_off(run: &Run) {
    let cluster = &run.fleet.cluster;
    cluster.set_all(Reach::CutOff);
    cluster.pings_fail().await;
    let begun = Instant::now();
    while cluster.lock().world.taken.count() > 0 {
        sleep(SECOND).await;
        assert!(begun.elapsed() < 2 * TTL, "the leases do not expire");
    }
    let mark = run.mark();
    cluster.set_all(Reach::Up);
    let most = Most {
        lists: ONE_LIST,
        others: 24.0 + QUARTER_HOUR,
        writes: 1.1,
        agreement: 2 * MINUTE + run.all_to_all(),
    };
    run.judge(
        "cut off until all leases had expired",
        mark,
        16 * MINUTE,
        most,
    )
    .await;
    assert_eq!(run.count(|it| &it.lost), 0);
}

#[tokio::test(start_paused = true)]
async fn five_hundred_nodes_come_through_everything() {
    simulate(500).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes and gigabytes: `make simulate`"]
async fn as_many_nodes_as_wanted_come_through_everything() {
    let nodes = std::env::var("NODES").ok();
    simulate(nodes.and_then(|text| text.parse().ok()).unwrap_or(65_000)).await;
}
