//! The own lease: kept alive, defended, and given up when it is somebody else's.

use selvage::cluster::lease::DEADLINE;

use crate::server::Server;
use crate::*;

/// So short that a test sees it end, and long enough for a machine that is held up for some seconds. etcd grants one and a
/// half election time-outs at least.
const SHORT: Duration = Duration::from_secs(5);

fn short_lived(server: &Server, owner: &str) -> EtcdStore {
    server.store_with(owner, |settings| settings.lease_ttl = SHORT)
}

async fn renewed(store: &mut EtcdStore) -> Duration {
    wait_for(store, "renewal", |event| match event {
        StoreEvent::Renewed { ttl } => Some(ttl),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn the_lease_is_kept_alive_without_writing_its_key() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = short_lived(&server, "machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let begin = Instant::now();
    while begin.elapsed() < SHORT * 2 {
        assert_eq!(renewed(&mut store).await, SHORT);
    }
    let answer = client
        .get(format!("{SUBNETS}{}", own.key.name()), None)
        .await
        .unwrap();
    assert_eq!(answer.kvs()[0].version(), 1);

    // And it expires when nobody keeps it.
    drop(store);
    let mut other = server.store("machine-b");
    acquire(&mut other, "10.0.0.2").await.unwrap();
    assert_eq!(change_of(&mut other, &own.key.name()).await, None);
}

#[tokio::test]
async fn an_older_etcd_lease_is_taken_up_and_kept_alive() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let first = acquire(&mut short_lived(&server, "machine-a"), "10.0.0.1")
        .await
        .unwrap();
    let mut store = short_lived(&server, "machine-a");
    assert_eq!(acquire(&mut store, "10.0.0.1").await.unwrap(), first);
    let begin = Instant::now();
    while begin.elapsed() < SHORT * 2 {
        renewed(&mut store).await;
    }
    assert!(stored(&mut client, &first.key.name()).await.is_some());
}

#[tokio::test]
async fn a_deleted_key_is_written_again() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    let name = own.key.name();
    let (value, id) = stored(&mut client, &name).await.unwrap();
    client
        .delete(format!("{SUBNETS}{name}"), None)
        .await
        .unwrap();
    let again = younger(&mut store, &own).await;
    assert_eq!(again.attrs, own.attrs);
    let (now, other) = stored(&mut client, &name).await.unwrap();
    assert_eq!(now, value);
    assert_ne!(other, id);
    store.update(&attrs("10.0.0.1")).await.unwrap();
    // The former etcd lease is not left behind.
    let one = async || client.leases().await.unwrap().leases().len() == 1;
    until(one).await;
}

#[tokio::test]
async fn a_lease_whose_etcd_lease_was_revoked_is_written_again() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let (_, id) = stored(&mut client, &own.key.name()).await.unwrap();
    client.lease_revoke(id).await.unwrap();
    younger(&mut store, &own).await;
}

/// Another length, so another key: only its name tells that it is in the way.
#[tokio::test]
async fn a_lease_that_is_gone_is_lost_if_another_overlaps_it() {
    for theirs in ["10.5.0.0-16", "OWN.64-26", "10.0.0.0-8&fd00:1::-64"] {
        let server = Server::start().await;
        let mut client = server.client().await;
        let mut store = server.store("machine-a");
        let own = acquire(&mut store, "10.0.0.1").await.unwrap();
        let name = own.key.name();
        let octets = name.strip_suffix(".0-24").unwrap();
        let theirs = theirs.replace("OWN", octets);
        let put = etcd_client::TxnOp::put(format!("{SUBNETS}{theirs}"), flannels("10.0.0.7"), None);
        let delete = etcd_client::TxnOp::delete(format!("{SUBNETS}{name}"), None);
        let both = etcd_client::Txn::new().and_then([put, delete]);
        client.txn(both).await.unwrap();
        let reason = lost(&mut store).await;
        assert_eq!(
            reason,
            format!(
                "lost the lease of {}: its key was deleted or has expired",
                own.key
            )
        );
        assert!(matches!(
            store.update(&attrs("10.0.0.1")).await,
            Err(StoreError::NoLease { .. })
        ));
        assert_eq!(stored(&mut client, &name).await, None);
    }
}

#[tokio::test]
async fn a_key_that_changed_hands_is_not_written_again() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let theirs = flannels("10.0.0.7");
    put(&mut client, &own.key.name(), &theirs, 0).await;
    let outcome = store.update(&attrs("10.0.0.33")).await;
    assert!(
        matches!(outcome, Err(StoreError::NoLease { .. })),
        "{outcome:?}"
    );
    let reason = lost(&mut store).await;
    assert!(
        reason.contains("taken over by 10.0.0.7 (owner ID unknown)"),
        "{reason}"
    );
    assert_eq!(
        stored(&mut client, &own.key.name()).await.unwrap().0,
        theirs
    );
}

#[tokio::test]
async fn an_own_key_that_was_overwritten_with_nonsense_is_restored() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let name = own.key.name();
    let before = stored(&mut client, &name).await.unwrap();
    // What a flannel on the same machine would write, and what nobody would.
    for value in [flannels("10.0.0.1").as_str(), "garbage"] {
        put(&mut client, &name, value, before.1).await;
        let deadline = Instant::now() + PATIENCE;
        while stored(&mut client, &name).await.as_ref() != Some(&before) {
            assert!(Instant::now() < deadline, "{value} was not replaced");
            let _ = timeout(Duration::from_millis(50), store.next_event()).await;
        }
    }
}

#[tokio::test]
async fn an_own_key_that_an_administrator_made_a_reservation_stays_one() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = short_lived(&server, "machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let name = own.key.name();
    let (value, _) = stored(&mut client, &name).await.unwrap();
    put(&mut client, &name, &value, 0).await;
    change_of(&mut store, &name).await;
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    store.update(&changed).await.unwrap();
    assert_eq!(stored(&mut client, &name).await.unwrap().1, 0);
}

#[tokio::test]
async fn a_failed_update_is_published_when_the_server_is_back() {
    let mut server = Server::start().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let mut watcher = server.store("machine-b");
    server.down();
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    let error = store.update(&changed).await.unwrap_err();
    assert!(unreachable_error(&error), "{error}");
    server.up().await;
    wait_for(&mut watcher, "the update", |event| match event {
        StoreEvent::Peers(
            LeaseEvent::Changes { set: leases, .. } | LeaseEvent::Snapshot { leases, .. },
        ) => leases
            .iter()
            .any(|lease| lease.key == own.key && lease.attrs.backend_data.is_none())
            .then_some(()),
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn an_update_that_gets_no_answer_returns_soon_and_is_published_later() {
    let servers = Server::start_cluster().await;
    let endpoints: Vec<_> = servers.iter().map(Server::url).collect();
    let mut store = servers[0].store_with("machine-a", |s| s.endpoints = endpoints);
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    servers.iter().for_each(Server::freeze);
    for public_ip in ["10.0.0.2", "10.0.0.3"] {
        let begin = Instant::now();
        let error = store.update(&attrs(public_ip)).await.unwrap_err();
        assert!(error.to_string().contains("no answer within"), "{error}");
        assert!(unreachable_error(&error), "{error}");
        // One server's time, not that of all three.
        assert!(begin.elapsed() < DEADLINE * 2);
    }
    servers.iter().for_each(Server::thaw);
    let mut client = servers[0].client().await;
    stored_as(&mut client, &own.key.name(), |value| {
        value.contains("10.0.0.3")
    })
    .await;
}
