//! Thousands of nodes that start within a minute: what each asks of the API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use selvage::cluster::lease::{LeaseEvent, LeaseStore, StoreEvent};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::node::{Files, attrs, bare};
use crate::server::ApiServer;
use crate::wait::PATIENCE;

const NODES: u32 = 5000;
/// Every so many of them are real stores here; what the others do to the server's objects is done by the test.
const EVERY: u32 = 250;
/// Faster than in the minute that they have.
const TIME: Duration = Duration::from_secs(20);
/// What is changed at a time.
const BATCH: u32 = 20;

fn name(number: u32) -> String {
    format!("n{number}")
}

fn cidr(number: u32) -> String {
    format!("10.{}.{}.0/24", 128 + number / 256, number % 256)
}

/// What the agent of a node publishes, and its condition.
fn published(number: u32) -> Value {
    let mut node = bare(&name(number), &[&cidr(number)]);
    let [_, _, high, low] = number.to_be_bytes();
    for (suffix, value) in [
        (
            "backend-data",
            format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#),
        ),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", format!("198.18.{high}.{low}")),
    ] {
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{suffix}")] =
            json!(value);
    }
    node
}

fn is_real(number: u32) -> bool {
    number.is_multiple_of(EVERY)
}

/// The kubelets have registered all nodes; now their agents start, one batch after the other.
async fn others_start(server: Arc<ApiServer>, busy: Arc<AtomicBool>) {
    let begin = Instant::now();
    for first in (0..NODES).step_by(usize::try_from(BATCH).expect("a number")) {
        tokio::time::sleep_until(begin + TIME * first / NODES).await;
        let server = Arc::clone(&server);
        let is_busy = busy.load(Ordering::Relaxed);
        let change = move || {
            server.change(|cluster| {
                for number in (first..first + BATCH).filter(|number| !is_real(*number)) {
                    cluster.put(published(number));
                }
                // Priority and fairness sends some away.
                cluster.faults.busy = u32::from(is_busy);
            });
        };
        tokio::task::spawn_blocking(change).await.expect("a change");
    }
}

/// One node's agent: joins, follows the others until it knows them all, and says that it is up.
async fn agent_starts(url: String, number: u32) {
    sleep(TIME * number / NODES).await;
    let mut files = Files::new(&url);
    files.settings.node_name = Some(name(number));
    let config = r#"{"Network":"10.128.0.0/9","Backend":{"Type":"vxlan"}}"#;
    std::fs::write(&files.settings.net_config, config).expect("the network config");
    let mut store = files.store();
    let mut pause = Duration::from_millis(100);
    let lease = loop {
        let attempt = async {
            let config = store.network_config().await?;
            store.acquire(&config, &attrs(), None).await
        };
        match attempt.await {
            Ok(lease) => break lease,
            // As the agent's main loop.
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_secs(5));
    };
    assert_eq!(lease.key.to_string(), cidr(number));
    store.publish_health(true, Vec::new);
    let mut known = std::collections::BTreeSet::new();
    while known.len() + 1 < usize::try_from(NODES).expect("a number") {
        if let StoreEvent::Peers(event) = store.next_event().await {
            if let LeaseEvent::Snapshot { .. } = event {
                known.clear();
            }
            known.extend(event.leases().iter().map(|lease| lease.key));
        }
    }
    // What it may still have to say.
    sleep(Duration::from_secs(3)).await;
}

async fn cluster_starts(is_busy: bool) -> Vec<String> {
    let server = Arc::new(ApiServer::start());
    let url = server.url();
    let registering = Arc::clone(&server);
    let register = move || {
        registering.change(|cluster| {
            for number in 0..NODES {
                cluster.put(bare(&name(number), &[&cidr(number)]));
            }
        });
    };
    tokio::task::spawn_blocking(register).await.expect("nodes");
    let busy = Arc::new(AtomicBool::new(is_busy));
    let agents: Vec<_> = (0..NODES)
        .filter(|number| is_real(*number))
        .map(|number| tokio::spawn(agent_starts(url.clone(), number)))
        .collect();
    others_start(Arc::clone(&server), busy).await;
    for agent in agents {
        let ended = timeout(PATIENCE, agent)
            .await
            .expect("a node that knows all others");
        ended.expect("an agent");
    }
    server.look(|cluster| cluster.asked.clone())
}

/// The agents' requests that begin so, for each agent.
fn each(asked: &[String], start: &str) -> f64 {
    let count = asked.iter().filter(|line| line.starts_with(start)).count();
    // Exact for numbers of requests.
    count as f64 / f64::from(NODES / EVERY)
}

/// Each node reads itself, writes its annotations and its condition, lists all nodes in 20 pages, and watches.
#[tokio::test]
async fn five_thousand_nodes_that_start_together_ask_little_each() {
    let asked = cluster_starts(false).await;
    assert_eq!(
        each(&asked, "GET /api/v1/nodes?limit=250"),
        20.0,
        "{}",
        asked.len()
    );
    assert_eq!(each(&asked, "GET /api/v1/nodes?watch=true"), 1.0);
    assert_eq!(each(&asked, "GET /api/v1/nodes/"), 1.0);
    assert_eq!(each(&asked, "PATCH "), 2.0);
    assert_eq!(each(&asked, "POST "), 0.0);
    assert_eq!(each(&asked, ""), 24.0);
}

/// The same where one request in a few is refused for being too many.
#[tokio::test]
async fn five_thousand_nodes_ask_little_more_of_a_busy_server() {
    let asked = cluster_starts(true).await;
    let refused = f64::from(NODES / BATCH) / f64::from(NODES / EVERY);
    // A list that is refused midway begins again.
    let most = 24.0 + refused * 21.0;
    assert!(each(&asked, "") <= most, "{} of {most}", each(&asked, ""));
    assert_eq!(each(&asked, "GET /api/v1/nodes?watch=true").floor(), 1.0);
}
