//! What a node learns of the others from a server that only the tests' own can be: one without end, one that goes back.

use std::time::Duration;

use selvage::cluster::lease::StoreEvent;

use crate::node::{acquire, changes, cluster, connected, flannel, snapshot, wait_for};
use crate::server::{ApiServer, Cluster};
use crate::wait::wait_until;

/// Waits until the cluster is as wanted.
async fn wait(
    server: ApiServer,
    what: &'static str,
    holds: impl Fn(&Cluster) -> bool + Send + 'static,
) -> ApiServer {
    let waiting = tokio::task::spawn_blocking(move || {
        wait_until(what, || server.look(&holds));
        server
    });
    waiting.await.unwrap()
}

/// One whose pages go on for ever takes neither all memory nor a peer.
#[tokio::test]
async fn a_list_without_end_is_given_up() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| cluster.put(flannel("n2", 2)));
    acquire(&mut store).await;
    snapshot(&mut store).await;
    connected(&mut store).await;
    server.change(|cluster| {
        cluster.faults.endless = true;
        cluster.faults.rubbish = Some(r#"{"type":"ERROR","object":{"code":410}}"#);
    });
    let text = wait_for(&mut store, "the end", |event| match event {
        StoreEvent::Unreachable { error } => Some(error.text),
        StoreEvent::Peers(event) => panic!("{event:?}"),
        _ => None,
    })
    .await;
    assert!(text.contains("has more than 1000 pages"), "{text}");
    server.change(|cluster| cluster.faults.endless = false);
    assert_eq!(snapshot(&mut store).await.0, ["10.244.2.0/24"]);
}

#[tokio::test]
async fn a_bookmark_moves_the_watch_past_a_compaction() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.bookmarks = Duration::from_millis(100);
    });
    acquire(&mut store).await;
    snapshot(&mut store).await;
    // Writes to other objects: nothing for a watcher of nodes.
    server.change(|cluster| cluster.revision += 500);
    let revision = server.look(|cluster| cluster.revision);
    let server = wait(server, "a bookmark", move |cluster| {
        cluster.bookmarked == revision
    })
    .await;
    server.change(|cluster| {
        cluster.compacted = revision;
        cluster.watches_end += 1;
    });
    let server = wait(server, "another watch", |cluster| {
        cluster.count("GET /api/v1/nodes?watch=true") > 1
    })
    .await;
    server.change(|cluster| cluster.annotate("n2", "public-ip", Some("10.0.0.9")));
    let (set, _) = changes(&mut store).await;
    assert_eq!(set[0].attrs.public_ip, Some([10, 0, 0, 9].into()));
    assert_eq!(
        server.look(|cluster| cluster.count("GET /api/v1/nodes?limit=250")),
        1
    );
}

#[tokio::test]
async fn a_restored_etcd_is_noticed_and_compared() {
    let (server, _files, mut store) = cluster();
    server.change(|cluster| {
        cluster.put(flannel("n2", 2));
        cluster.put(flannel("n3", 3));
    });
    acquire(&mut store).await;
    assert_eq!(snapshot(&mut store).await.0.len(), 2);
    connected(&mut store).await;
    // A backup from before n3: a watch from now on would wait for a revision that is long to come.
    server.change(|cluster| {
        cluster.nodes.remove("n3");
        cluster.put(flannel("n4", 4));
        cluster.history.clear();
        cluster.revision = 500;
        cluster.watches_end += 1;
    });
    let reason = wait_for(&mut store, "another history", |event| match event {
        StoreEvent::AnotherHistory { reason } => Some(reason),
        _ => None,
    })
    .await;
    assert!(reason.contains("went back from 100"), "{reason}");
    let (leases, kept) = snapshot(&mut store).await;
    assert_eq!(leases, ["10.244.2.0/24", "10.244.4.0/24"]);
    // Its kubelet has some seconds to register it again.
    assert_eq!(kept, ["10.244.3.0/24"]);
    server.change(|cluster| cluster.put(flannel("n5", 5)));
    assert_eq!(
        changes(&mut store).await.0[0].key.to_string(),
        "10.244.5.0/24"
    );
}
