//! Servers that die, freeze, forget and change.

use selvage::cluster::peers::PeerTable;

use crate::server::{Server, free_port};
use crate::*;

async fn unreachable(store: &mut EtcdStore) -> String {
    wait_for(store, "report of unreachability", |event| match event {
        StoreEvent::Unreachable { error } => Some(error.text),
        _ => None,
    })
    .await
}

async fn reachable(store: &mut EtcdStore) -> String {
    wait_for(store, "report of reachability", |event| match event {
        StoreEvent::Reachable { endpoint } => Some(endpoint),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn errors_say_what_to_look_at() {
    let mut server = Server::start().await;
    let mut store = server.store("machine-a");
    let error = store.network_config().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no network config at /coreos.com/network/config"
    );
    assert!(matches!(error, StoreError::NoNetworkConfig { .. }));
    let mut client = server.client().await;
    client
        .put("/coreos.com/network/config", "{}", None)
        .await
        .unwrap();
    let error = store.network_config().await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("bad network config at /coreos.com/network/config: Network is missing")
    );

    server.down();
    let error = store.network_config().await.unwrap_err();
    let expected = format!("etcd at {}: connection refused", server.url());
    assert_eq!(error.to_string(), expected);
    assert!(unreachable_error(&error));
    // A store that never had a connection says the same.
    let error = server.store("b").network_config().await.unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn the_watch_survives_a_restart_and_brings_what_happened_meanwhile() {
    let mut server = Server::start().await;
    let mut store = server.store("machine-a");
    acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    assert_eq!(reachable(&mut store).await, server.url());

    server.down();
    let error = unreachable(&mut store).await;
    assert_eq!(
        error,
        format!("etcd at {}: connection refused", server.url())
    );
    server.up().await;
    let mut client = server.client().await;
    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.9"), 0).await;
    lease_of(&mut store, "10.5.9.0-24").await;
    // The lease survived as well.
    store.update(&attrs("10.0.0.1")).await.unwrap();
}

#[tokio::test]
async fn a_frozen_server_is_noticed_and_the_lease_is_kept() {
    let server = Server::start().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    reachable(&mut store).await;
    server.freeze();
    let error = unreachable(&mut store).await;
    assert!(
        error.starts_with(&format!("etcd at {}: ", server.url())),
        "{error}"
    );
    server.thaw();
    reachable(&mut store).await;
    let mut client = server.client().await;
    assert!(stored(&mut client, &own.key.name()).await.is_some());
}

#[tokio::test]
async fn after_a_compaction_everything_is_listed_again() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.9"), 0).await;
    let mut store = server.store_with("machine-a", |s| s.grace = Duration::from_secs(1));
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
    let mut table = PeerTable::new(&config, &own, Box::new(|_| Ok(())));
    table.apply(next_leases(&mut store).await);
    assert_eq!(table.len(), 1);
    reachable(&mut store).await;

    // The store must not catch up before the compaction, so all that happens on another port.
    server.down();
    unreachable(&mut store).await;
    let usual = server.move_to(free_port());
    server.up().await;
    let mut client = server.client().await;
    client
        .delete(format!("{SUBNETS}10.5.9.0-24"), None)
        .await
        .unwrap();
    put(&mut client, "10.5.8.0-24", &flannels("10.0.0.8"), 0).await;
    let revision = revision(&mut client).await;
    client.compact(revision, None).await.unwrap();
    server.down();
    server.move_to(usual);
    server.up().await;

    let changes = wait_for(&mut store, "snapshot", |event| match event {
        StoreEvent::Peers(event @ LeaseEvent::Snapshot { .. }) => Some(table.apply(event)),
        _ => None,
    })
    .await;
    assert_eq!(changes.added.len(), 1);
    // Whoever vanished during the outage may be about to come back.
    assert_eq!((changes.removed.len(), table.len()), (0, 2));
    table.apply(next_leases(&mut store).await);
    assert_eq!(table.len(), 1);
    put(
        &mut server.client().await,
        "10.5.7.0-24",
        &flannels("10.0.0.7"),
        0,
    )
    .await;
    lease_of(&mut store, "10.5.7.0-24").await;
}

#[tokio::test]
async fn a_server_that_went_back_in_time_is_listed_again() {
    let mut server = Server::start().await;
    let mut store = server.store_with("machine-a", |s| s.grace = Duration::ZERO);
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    for n in 1..20 {
        put(
            &mut server.client().await,
            "10.5.9.0-24",
            &flannels(&format!("10.0.0.{n}")),
            0,
        )
        .await;
    }
    change_of(&mut store, "10.5.9.0-24").await;
    server.down();
    unreachable(&mut store).await;
    server.forget();
    server.up().await;
    assert_eq!(snapshot(&mut store).await, Vec::<String>::new());
    lease_of(&mut store, &own.key.name()).await;
}

#[tokio::test]
async fn dead_endpoints_are_passed_over() {
    let (mut server, mut dead) = (Server::start().await, Server::start().await);
    dead.down();
    let mut store = server.store_with("machine-a", |s| {
        s.endpoints = vec![dead.url(), server.url()]
    });
    for _ in 0..50 {
        let error = store.network_config().await.unwrap_err();
        assert!(
            matches!(error, StoreError::NoNetworkConfig { .. }),
            "{error}"
        );
    }
    acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(reachable(&mut store).await, server.url());
    server.down();
    let error = unreachable(&mut store).await;
    for url in [server.url(), dead.url()] {
        assert!(
            error.contains(&format!("etcd at {url}: connection refused")),
            "{error}"
        );
    }
    // The other one takes over; it has other data here, which is as good as a restored backup.
    dead.up().await;
    assert_eq!(reachable(&mut store).await, dead.url());
}

#[tokio::test]
async fn a_cluster_that_loses_members_is_used_for_as_long_as_it_has_a_leader() {
    let mut members = Server::start_cluster().await;
    let endpoints: Vec<_> = members.iter().map(Server::url).collect();
    let mut store = members[0].store_with("machine-a", |s| s.endpoints = endpoints);
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    // The first, unless it took too long to answer.
    let used = reachable(&mut store).await;
    let is_used = |member: &Server| member.url() == used;
    let first = members.iter().position(is_used).expect("a member");
    members.swap(0, first);

    members[0].down();
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    // What was sent to the member that did not know yet of its leader's death is lost, which only time tells.
    let outcome = store.update(&changed).await;
    assert!(
        outcome.as_ref().err().is_none_or(unreachable_error),
        "{outcome:?}"
    );
    members[1].wait_until_it_answers().await;
    put(
        &mut members[1].client().await,
        "10.5.9.0-24",
        &flannels("10.0.0.9"),
        0,
    )
    .await;
    lease_of(&mut store, "10.5.9.0-24").await;
    let name = own.key.name();
    let published = |value: &str| !value.contains("VtepMAC");
    stored_as(&mut members[1].client().await, &name, published).await;

    // The last member answers, but without a leader it may be behind, so what it says does not count.
    members[1].down();
    // Which servers an event names depends on which of them had been tried when it was sent.
    loop {
        let error = unreachable(&mut store).await;
        if members.iter().all(|member| error.contains(&member.url())) {
            break;
        }
    }
    members[1].up().await;
    put(
        &mut members[1].client().await,
        "10.5.8.0-24",
        &flannels("10.0.0.8"),
        0,
    )
    .await;
    lease_of(&mut store, "10.5.8.0-24").await;
}
