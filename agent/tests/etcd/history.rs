//! An etcd that is restored from a backup, or made anew: what a node knows in the end is what is there, and it says so.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::authority::loopback;
use crate::server::{Server, free_port};
use crate::*;

const DEAD: &str = "10.5.9.0-24";
const GHOST: &str = "10.5.203.0-24";
const NEW: &str = "10.5.204.0-24";

/// A node that does what the agent does with the events.
struct Node {
    store: EtcdStore,
    own: Lease,
    known: BTreeMap<SubnetKey, Lease>,
    /// What showed that the history is another one, each time.
    told: Vec<String>,
}

impl Node {
    async fn join(mut store: EtcdStore) -> Self {
        let own = acquire(&mut store, "10.0.0.1").await.unwrap();
        Self {
            store,
            own,
            known: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    /// Not cancel-safe: a lost lease is taken again.
    async fn take_in(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Peers(LeaseEvent::Snapshot { leases, unreadable }) => {
                self.known.retain(|key, _| unreadable.contains(key));
                self.known
                    .extend(leases.into_iter().map(|lease| (lease.key, lease)));
            }
            StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => {
                self.known.retain(|key, _| !removed.contains(key));
                self.known
                    .extend(set.into_iter().map(|lease| (lease.key, lease)));
            }
            StoreEvent::OwnLeaseLost { .. } => {
                let own = self.own.key;
                let again = self
                    .store
                    .acquire(&small_network(), &attrs("10.0.0.1"), Some(own))
                    .await
                    .unwrap();
                assert_eq!(again.key, own, "the node got another subnet");
            }
            StoreEvent::AnotherHistory { reason } => self.told.push(reason),
            _ => {}
        }
    }

    /// Goes on until what is known is what there is, the own lease with it.
    async fn converge(&mut self, server: &Server) {
        let mut client = server.client().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let there = leases(&mut client).await;
            let known: BTreeMap<_, _> = self
                .known
                .values()
                .map(|lease| (lease.key.name(), lease.attrs.to_json().unwrap()))
                .collect();
            if known == there && there.contains_key(&self.own.key.name()) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "known is {known:#?}, and etcd has {there:#?}"
            );
            let next = self.store.next_event();
            if let Ok(event) = timeout(Duration::from_millis(100), next).await {
                self.take_in(event).await;
            }
        }
    }
}

/// All leases in etcd.
async fn leases(client: &mut Client) -> BTreeMap<String, String> {
    let all = etcd_client::GetOptions::new().with_prefix();
    let answer = client.get(SUBNETS, Some(all)).await.unwrap();
    let name = |key: &str| key.trim_start_matches(SUBNETS).to_owned();
    let pairs = answer.kvs().iter();
    pairs
        .map(|kv| {
            (
                name(kv.key_str().unwrap()),
                kv.value_str().unwrap().to_owned(),
            )
        })
        .collect()
}

/// Writes that concern no lease.
async fn go_on(client: &mut Client, writes: u32) {
    for n in 0..writes {
        client
            .put("/else/where", n.to_string(), None)
            .await
            .unwrap();
    }
}

fn node_of(server: &Server) -> EtcdStore {
    server.store_with("machine-a", |s| s.grace = Duration::from_millis(500))
}

/// A server and a node that has seen a lease come and change after a backup was made.
async fn after_a_backup() -> (Server, Node, std::path::PathBuf) {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut node = Node::join(node_of(&server)).await;
    put(&mut client, DEAD, &flannels("10.0.0.9"), 0).await;
    node.converge(&server).await;
    let backup = server.save();
    for n in 1..=6 {
        put(&mut client, GHOST, &flannels(&format!("10.0.0.{n}")), 0).await;
    }
    node.converge(&server).await;
    assert_eq!(node.told, [""; 0]);
    (server, node, backup)
}

/// Does something to the server before the node can reach it again.
async fn unseen(server: &mut Server, change: impl AsyncFnOnce(Client)) {
    let usual = server.move_to(free_port());
    server.up().await;
    change(server.client().await).await;
    server.down();
    server.move_to(usual);
    server.up().await;
}

/// What was done to the restored or new cluster: at the end it is beyond the last revision that the node has seen.
async fn other_life(mut client: Client) {
    put(&mut client, NEW, &flannels("10.0.0.44"), 0).await;
    client
        .delete(format!("{SUBNETS}{DEAD}"), None)
        .await
        .unwrap();
    go_on(&mut client, 30).await;
}

#[tokio::test]
async fn a_restored_backup_that_went_beyond_the_last_revision_seen_is_followed() {
    let (mut server, mut node, backup) = after_a_backup().await;
    server.down();
    server.restore(&backup, "another-token");
    unseen(&mut server, other_life).await;
    node.converge(&server).await;
    assert!(node.known.contains_key(&key(NEW)), "{:?}", node.known);
    assert_eq!(node.told.len(), 1, "{:?}", node.told);
    assert!(
        node.told[0].starts_with("the cluster ID is "),
        "{:?}",
        node.told
    );
}

#[tokio::test]
async fn a_restored_backup_with_the_former_cluster_id_is_followed() {
    let (mut server, mut node, backup) = after_a_backup().await;
    server.down();
    server.restore(&backup, "etcd-cluster");
    unseen(&mut server, other_life).await;
    node.converge(&server).await;
    assert_eq!(node.told.len(), 1, "{:?}", node.told);
    assert!(
        node.told[0].starts_with("it has a lease of revision "),
        "{:?}",
        node.told
    );
}

#[tokio::test]
async fn a_restored_backup_that_is_behind_is_followed() {
    let (mut server, mut node, backup) = after_a_backup().await;
    server.down();
    server.restore(&backup, "etcd-cluster");
    server.up().await;
    node.converge(&server).await;
    assert_eq!(node.told.len(), 1, "{:?}", node.told);
    assert!(
        node.told[0].starts_with("the revision is "),
        "{:?}",
        node.told
    );
}

#[tokio::test]
async fn a_cluster_made_anew_gets_the_own_lease_back() {
    let (mut server, mut node, _) = after_a_backup().await;
    server.down();
    server.forget();
    server.up().await;
    node.converge(&server).await;
    assert_eq!(node.known.len(), 1);
    assert!(
        node.told[0].starts_with("the revision is "),
        "{:?}",
        node.told
    );
}

#[tokio::test]
async fn a_cluster_made_anew_that_went_further_is_followed() {
    let (mut server, mut node, _) = after_a_backup().await;
    server.down();
    server.forget();
    unseen(&mut server, async |mut client: Client| {
        go_on(&mut client, 60).await;
        put(&mut client, NEW, &flannels("10.0.0.44"), 0).await;
    })
    .await;
    node.converge(&server).await;
    assert_eq!(node.known.len(), 2);
    assert!(
        node.told[0].ends_with("it has 0 lease keys, and had 3"),
        "{:?}",
        node.told
    );
}

/// The very same revisions, and another node on the own subnet: nothing but what is there tells the two apart.
#[tokio::test]
async fn another_nodes_key_at_the_revision_of_the_own_one_is_not_taken_for_it() {
    let mut server = Server::start().await;
    let mut node = node_of(&server);
    let own = acquire(&mut node, "10.0.0.1").await.unwrap();
    change_of(&mut node, &own.key.name()).await;
    let mut client = server.client().await;
    let name = format!("{SUBNETS}{}", own.key.name());
    let before = client.get(name.as_str(), None).await.unwrap().kvs()[0].mod_revision();
    server.down();
    server.forget();
    let theirs = flannels("10.0.0.7");
    unseen(&mut server, async |mut client: Client| {
        while revision(&mut client).await < before - 1 {
            go_on(&mut client, 1).await;
        }
        let lease = client.lease_grant(3600, None).await.unwrap();
        put(&mut client, &own.key.name(), &theirs, lease.id()).await;
        assert_eq!(revision(&mut client).await, before);
    })
    .await;
    let reason = lost(&mut node).await;
    assert!(reason.contains("taken over by 10.0.0.7"), "{reason}");
    let mut client = server.client().await;
    assert_eq!(
        stored(&mut client, &own.key.name()).await.unwrap().0,
        theirs
    );
}

#[tokio::test]
async fn an_outage_is_no_other_history() {
    let mut server = Server::start().await;
    let mut node = Node::join(node_of(&server)).await;
    put(&mut server.client().await, DEAD, &flannels("10.0.0.9"), 0).await;
    node.converge(&server).await;
    for round in 0..3 {
        server.down();
        unseen(&mut server, async |mut client: Client| {
            put(&mut client, NEW, &flannels("10.0.0.44"), 0).await;
            go_on(&mut client, 5).await;
            client
                .delete(format!("{SUBNETS}{DEAD}"), None)
                .await
                .unwrap();
            if round == 1 {
                let now = revision(&mut client).await;
                client.compact(now, None).await.unwrap();
            }
        })
        .await;
        node.converge(&server).await;
        put(&mut server.client().await, DEAD, &flannels("10.0.0.8"), 0).await;
        node.converge(&server).await;
    }
    assert_eq!(node.told, [""; 0]);
}

/// Passes connections on to a server; those that there are stay where they are when it is another one.
struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
}

impl Relay {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((loopback(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let shared = Arc::clone(&target);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let target = *shared.lock().unwrap();
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, target }
    }
}

#[tokio::test]
async fn an_answer_of_another_cluster_ends_a_watch_that_still_stands() {
    let (old, new) = (Server::start().await, Server::start().await);
    let relay = Relay::start(old.address()).await;
    let store = old.store_with("machine-a", |s| {
        s.endpoints = vec![format!("http://{}", relay.address)];
        s.grace = Duration::from_millis(500);
    });
    let mut node = Node::join(store).await;
    put(&mut old.client().await, DEAD, &flannels("10.0.0.9"), 0).await;
    node.converge(&old).await;

    *relay.target.lock().unwrap() = new.address();
    put(&mut new.client().await, NEW, &flannels("10.0.0.44"), 0).await;
    // As SIGHUP does, this makes new connections for all requests but the watch.
    let settings = selvage::settings::Etcd {
        endpoints: vec![format!("http://{}", relay.address)],
        ..selvage::settings::Etcd::default()
    };
    node.store.set_access(&settings).unwrap();
    let error = node.store.network_config().await.unwrap_err();
    assert!(
        matches!(error, StoreError::NoNetworkConfig { .. }),
        "{error}"
    );
    node.converge(&new).await;
    assert!(
        node.told[0].starts_with("the cluster ID is "),
        "{:?}",
        node.told
    );
}
