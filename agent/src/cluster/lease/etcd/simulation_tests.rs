//! Up to 65,000 nodes in one process, on a clock of their own, with an etcd cluster in memory.
//!
//! Real: the whole store of every node, that is, how it lists, chooses and takes a lease, keeps it, watches, reconnects
//! and waits; and in the sample the table of peers. Simulated: time, the network, the servers ([`server`]) and what they
//! store ([`world`]). Sampled: only some nodes are shown all leases; to the others they are merged ([`view`]), and events
//! of others' leases are counted, not delivered. The load counts what a real server would have sent.
//!
//! `make simulate` runs all 65,000 and prints the table in `agent/docs/leases.md`.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::fleet::{Fleet, TTL};
use self::load::{KINDS, Span};
use self::server::{Cluster, MEMBERS, Reach};
use self::view::Taken;
use self::world::World;
use super::rpc::{Change, Txn};
use crate::cluster::network_config::NetworkConfig;
use crate::settings::Etcd;

mod fleet;
mod load;
mod server;
mod view;
mod world;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// The nodes that are shown everything.
const SAMPLE: usize = 12;

/// What a scenario showed.
struct Outcome {
    name: &'static str,
    /// From the event that it is about until all nodes agreed.
    agreement: Duration,
    load: Span,
}

impl Outcome {
    fn print(&self, nodes: usize) {
        let (span, requests) = (&self.load, self.load.requests());
        let per_node = |number: usize| number as f64 / nodes as f64;
        println!(
            "{}: agreed after {} s; {:.1} requests per node, {}/s on average, {}/s at most; read {:.2} GB, {:.2} GB/s at most; events {:.2} GB",
            self.name,
            self.agreement.as_secs(),
            per_node(requests),
            requests / span.seconds.max(1),
            span.peak_of_all,
            span.read as f64 / 1e9,
            span.peak_read as f64 / 1e9,
            span.watched as f64 / 1e9,
        );
        for (kind, name) in KINDS {
            if let Some(total) = span.total.get(&kind) {
                println!(
                    "    {name:<10} {:>9.2} per node {:>9}/s at most",
                    per_node(*total),
                    span.peak[&kind]
                );
            }
        }
    }
}

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

impl Run {
    fn count(&self, what: impl Fn(&fleet::Board) -> &AtomicUsize) -> usize {
        what(&self.fleet.board).load(Ordering::Relaxed)
    }

    /// Nobody lost a subnet or a peer so far.
    fn nobody_lost(&self, name: &str) {
        let board = &self.fleet.board;
        assert_eq!(self.count(|it| &it.renumbered), 0, "{name}: {board:?}");
        assert_eq!(self.count(|it| &it.removed), 0, "{name}: {board:?}");
    }

    /// From now on, until all agree.
    async fn until_agreed(&self, name: &'static str, mark: usize, within: Duration) -> Outcome {
        let agreement = self.fleet.agreement(within).await;
        let outcome = self.outcome(name, mark, agreement);
        outcome.print(self.nodes);
        outcome
    }

    fn outcome(&self, name: &'static str, mark: usize, agreement: Duration) -> Outcome {
        Outcome {
            name,
            agreement,
            load: self.fleet.cluster.lock().load.since(mark),
        }
    }

    fn mark(&self) -> usize {
        self.fleet.cluster.lock().load.mark()
    }
}

async fn simulate(nodes: usize) {
    let (config, world) = network(nodes);
    let cluster = Cluster::new(world);
    let sample = SAMPLE.min(nodes);
    let fleet = Fleet::start(Arc::clone(&cluster), config, nodes, sample, MINUTE);
    let run = Run { fleet, nodes };

    // The backup has some of the leases only.
    while cluster.lock().world.taken.count() < nodes * 3 / 4 {
        sleep(SECOND).await;
    }
    let backup = cluster.lock().world.clone();
    run.until_agreed("start within a minute", 0, 30 * MINUTE)
        .await;
    run.nobody_lost("start");

    let mark = run.mark();
    sleep(10 * MINUTE).await;
    run.until_agreed("ten quiet minutes", mark, SECOND).await;

    compact(&run).await;
    outage(&run).await;
    rolling_restart(&run).await;
    restored(&run, backup).await;
    cut_off(&run).await;
}

/// All streams break, and what they would go on from is compacted.
async fn compact(run: &Run) {
    let cluster = &run.fleet.cluster;
    let mark = run.mark();
    {
        let mut inner = cluster.lock();
        put(&mut inner.world, "/other", "x");
        inner.world.compact();
    }
    cluster.set_all(Reach::Up);
    sleep(15 * MINUTE).await;
    run.until_agreed("compaction under every watch", mark, SECOND)
        .await;
    run.nobody_lost("compaction");
}

/// All members stop for longer than a keepalive interval.
async fn outage(run: &Run) {
    let cluster = &run.fleet.cluster;
    cluster.set_all(Reach::Down);
    sleep(10 * MINUTE).await;
    let mark = run.mark();
    cluster.set_all(Reach::Up);
    sleep(10 * MINUTE).await;
    run.until_agreed("etcd down for ten minutes", mark, SECOND)
        .await;
    run.nobody_lost("outage");
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
    sleep(10 * MINUTE).await;
    run.until_agreed("rolling restart", mark, SECOND).await;
    run.nobody_lost("rolling restart");
}

/// A backup from the start is restored: a quarter of the leases is missing.
async fn restored(run: &Run, backup: World) {
    let cluster = &run.fleet.cluster;
    let mark = run.mark();
    cluster.restore(backup, 0xbac);
    run.until_agreed("restored backup", mark, 30 * MINUTE).await;
    run.nobody_lost("restored backup");
    sleep(15 * MINUTE).await;
    assert_eq!(run.count(|it| &it.other_history), SAMPLE.min(run.nodes));
}

/// Nobody reaches etcd, which runs on, until all leases have expired.
async fn cut_off(run: &Run) {
    let cluster = &run.fleet.cluster;
    cluster.set_all(Reach::CutOff);
    cluster.pings_fail().await;
    let start = Instant::now();
    while cluster.lock().world.taken.count() > 0 {
        sleep(SECOND).await;
        assert!(start.elapsed() < 2 * TTL, "the leases do not expire");
    }
    let mark = run.mark();
    cluster.set_all(Reach::Up);
    run.until_agreed("cut off until all leases expired", mark, 30 * MINUTE)
        .await;
    run.nobody_lost("cut off");
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
