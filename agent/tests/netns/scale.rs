//! Ten thousand peers, with the figures printed (`--nocapture`): how long the executor takes, and how long ip(8) and
//! bridge(8) take for what flannel programs, which are the limit for one request after the other.

use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use selvage::host::reconcile::Counts;
use tempfile::NamedTempFile;

use crate::host::{Host, block_on, peer, peers};

const PEERS: u16 = 10_000;

/// Runs a program on a batch file; returns how long it took.
fn batch(program: &str, lines: &str) -> Duration {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(&file, lines).unwrap();
    let start = Instant::now();
    let status = Command::new(program)
        .arg("-batch")
        .arg(file.path())
        .status()
        .unwrap();
    assert!(status.success(), "{program} failed");
    start.elapsed()
}

/// Neighbours, forwarding entries and onlink routes for all peers, as flannel makes them.
fn as_flannel_by_tools(host: &Host) -> Duration {
    host.ns
        .ip("link add flannel.1 type vxlan id 1 dev up0 local 192.0.2.1 dstport 8472 nolearning");
    host.ns.ip("link set flannel.1 up");
    let (mut neighbors, mut entries, mut routes) = (String::new(), String::new(), String::new());
    for n in 1..=PEERS {
        let [high, low] = n.to_be_bytes();
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        let gateway = format!("10.{high}.{low}.0");
        writeln!(
            neighbors,
            "neighbor replace {gateway} lladdr {mac} dev flannel.1 nud permanent"
        )
        .unwrap();
        writeln!(
            entries,
            "fdb replace {mac} dev flannel.1 dst 198.18.{high}.{low} self permanent"
        )
        .unwrap();
        writeln!(
            routes,
            "route replace {gateway}/24 via {gateway} dev flannel.1 onlink"
        )
        .unwrap();
    }
    let _inside = host.ns.enter();
    batch("ip", &neighbors) + batch("bridge", &entries) + batch("ip", &routes)
}

#[test]
fn ten_thousand_peers() {
    let host = Host::new();
    block_on(async {
        let peers = peers(PEERS);
        let mut agent = host.agent(&peers).await;
        let first = agent.resync().await;
        assert_eq!(first.counts.created, 2 + 4 * u64::from(PEERS));
        let mut restarted = host.agent(&peers).await;
        let again = restarted.resync().await;
        assert_eq!(again.counts, Counts::default());
        let mut moved = peer(PEERS / 2);
        moved.attrs.public_ip = Some([198, 19, 0, 1].into());
        let one = restarted.set_peer(&moved).await;
        assert_eq!(one.counts.made(), 1);
        host.ns.ip("link del flannel.1");
        let healed = restarted.resync().await;
        assert_eq!(healed.counts.created, first.counts.created);
        let start = Instant::now();
        assert!(
            restarted
                .reconciler
                .remove_all()
                .await
                .unwrap()
                .is_complete()
        );
        println!(
            "{PEERS} peers, programmed from nothing     {:>8.1?}",
            first.took
        );
        println!(
            "{PEERS} peers, restart, nothing to do      {:>8.1?}",
            again.took
        );
        println!(
            "{PEERS} peers, one of them moves           {:>8.1?}",
            one.took
        );
        println!(
            "{PEERS} peers, healed after a lost device  {:>8.1?}",
            healed.took
        );
        println!(
            "{PEERS} peers, removed                     {:>8.1?}",
            start.elapsed()
        );
    });
    let tools = as_flannel_by_tools(&host);
    println!("{PEERS} peers, by ip and bridge -batch     {tools:>8.1?}");
}
