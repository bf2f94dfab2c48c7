//! Which subnet a node gets, and what it writes for that.

use futures_util::future::join;

use crate::server::Server;
use crate::*;

/// Writes a lease that another node holds.
async fn occupy(client: &mut Client, names: &[&str]) {
    for name in names {
        put(client, name, &flannels("10.0.0.99"), 0).await;
    }
}

#[tokio::test]
async fn writes_flannels_bytes_with_a_day_to_live() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    occupy(&mut client, &["10.5.1.0-24", "10.5.3.0-24"]).await;

    let lease = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(lease.key, key("10.5.2.0-24"));
    let (value, id) = stored(&mut client, "10.5.2.0-24").await.unwrap();
    assert_eq!(
        value,
        r#"{"PublicIP":"10.0.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"SelvageOwner":"machine-a"}"#
    );
    let granted = client.lease_time_to_live(id, None).await.unwrap();
    assert_eq!(granted.granted_ttl(), 86400);
}

#[tokio::test]
async fn a_restart_writes_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let first = acquire(&mut server.store("machine-a"), "10.0.0.1")
        .await
        .unwrap();
    let before = revision(&mut client).await;
    let leases = client.leases().await.unwrap().leases().len();

    let again = acquire(&mut server.store("machine-a"), "10.0.0.1")
        .await
        .unwrap();
    assert_eq!(again, first);
    assert_eq!(revision(&mut client).await, before);
    assert_eq!(client.leases().await.unwrap().leases().len(), leases);
}

#[tokio::test]
async fn takes_over_what_a_flannel_on_this_node_left() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let flannels_lease = client.lease_grant(3600, None).await.unwrap().id();
    put(
        &mut client,
        "10.5.3.0-24",
        &flannels("10.0.0.1"),
        flannels_lease,
    )
    .await;

    let mut store = server.store("machine-a");
    let lease = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(lease.key, key("10.5.3.0-24"));
    let (value, id) = stored(&mut client, "10.5.3.0-24").await.unwrap();
    assert!(value.contains(r#""SelvageOwner":"machine-a""#));
    assert_ne!(id, flannels_lease);
}

#[tokio::test]
async fn a_reservation_is_used_and_stays_one() {
    let server = Server::start().await;
    let mut client = server.client().await;
    put(&mut client, "10.5.3.0-24", &flannels("10.0.0.1"), 0).await;
    let mut store = server.store_with("machine-a", |s| s.lease_ttl = Duration::from_secs(2));
    let lease = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(lease.key, key("10.5.3.0-24"));
    let (value, id) = stored(&mut client, "10.5.3.0-24").await.unwrap();
    assert_eq!(id, 0);
    assert!(value.contains("machine-a"));

    let mut moved = attrs("10.0.0.1");
    moved.backend_data = None;
    store.update(&moved).await.unwrap();
    let (value, id) = stored(&mut client, "10.5.3.0-24").await.unwrap();
    assert_eq!(id, 0);
    assert!(!value.contains("VtepMAC"));
}

#[tokio::test]
async fn the_previous_subnet_is_taken_if_free() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let config = small_network();
    let previous = Some(key("10.5.2.0-24"));
    let lease = store
        .acquire(&config, &attrs("10.0.0.1"), previous)
        .await
        .unwrap();
    assert_eq!(lease.key, key("10.5.2.0-24"));

    occupy(&mut client, &["10.5.1.0-24"]).await;
    let previous = Some(key("10.5.1.0-24"));
    let mut other = server.store("machine-b");
    let lease = other
        .acquire(&config, &attrs("10.0.0.2"), previous)
        .await
        .unwrap();
    assert_eq!(lease.key, key("10.5.3.0-24"));
}

#[tokio::test]
async fn an_own_lease_that_the_config_no_longer_allows_is_replaced() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let old = acquire(&mut store, "10.0.0.1").await.unwrap();
    let config = NetworkConfig::parse(r#"{"Network":"10.9.0.0/16"}"#).unwrap();
    let lease = store
        .acquire(&config, &attrs("10.0.0.1"), Some(old.key))
        .await
        .unwrap();
    assert!(lease.key.name().starts_with("10.9."));
    assert_eq!(stored(&mut client, &old.key.name()).await, None);
}

/// Many rounds, since a race that one side wins by far proves little.
#[tokio::test]
async fn of_two_nodes_racing_for_the_last_subnet_one_wins_and_the_other_is_told_why() {
    let server = Server::start().await;
    let mut client = server.client().await;
    occupy(&mut client, &["10.5.1.0-24", "10.5.2.0-24"]).await;
    for _ in 0..20 {
        let (mut a, mut b) = (server.store("machine-a"), server.store("machine-b"));
        let results = join(acquire(&mut a, "10.0.0.1"), acquire(&mut b, "10.0.0.2")).await;
        let (won, lost) = match results {
            (Ok(lease), Err(error)) | (Err(error), Ok(lease)) => (lease, error),
            both => panic!("{both:?}"),
        };
        assert_eq!(won.key, key("10.5.3.0-24"));
        assert_eq!(
            lost.to_string(),
            "out of subnets: no free /24 left in 10.5.0.0/22"
        );
        client
            .delete(format!("{SUBNETS}10.5.3.0-24"), None)
            .await
            .unwrap();
    }
    // The loser gives back what it was granted; the winner's etcd leases outlive their keys here.
    assert_eq!(client.leases().await.unwrap().leases().len(), 20);
}

#[tokio::test]
async fn nodes_that_start_together_all_get_a_subnet_of_their_own() {
    let server = Server::start().await;
    for config in [
        r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.14.0"}"#,
        r#"{"Network":"10.6.0.0/16","SubnetMax":"10.6.14.0","EnableIPv6":true,
            "IPv6Network":"fd00::/48","IPv6SubnetMax":"fd00:0:0:e::"}"#,
    ] {
        let config = NetworkConfig::parse(config).unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..12u8 {
            let (config, mut store) = (config.clone(), server.store(&format!("machine-{n}")));
            tasks.spawn(async move {
                let attrs = attrs(&format!("10.0.0.{}", n + 1));
                loop {
                    match store.acquire(&config, &attrs, None).await {
                        // A busy host's etcd may need longer than the store waits; the agent tries again too.
                        Err(error) if unreachable_error(&error) => {}
                        result => return result.unwrap().key,
                    }
                }
            });
        }
        let keys = tasks.join_all().await;
        let v4: std::collections::BTreeSet<_> = keys.iter().map(|key| key.v4).collect();
        let v6: std::collections::BTreeSet<_> = keys.iter().map(|key| key.v6).collect();
        assert_eq!(v4.len(), 12);
        assert_eq!(v6.len(), if config.ipv6.is_some() { 12 } else { 1 });
    }
}

/// The agent was killed, or told to stop, after its lease was written and before it knew: nothing on the host names it.
#[tokio::test]
async fn a_lease_that_was_taken_and_never_held_is_taken_up_by_the_next_start() {
    for address in ["10.0.0.1", "10.0.0.61"] {
        let server = Server::start().await;
        let mut client = server.client().await;
        let mut store = server.store("machine-a");
        let taking = store.take(&small_network(), &attrs("10.0.0.1"), None.into());
        drop(taking.await.unwrap());
        let before = store.list().await.unwrap();
        assert_eq!(before.len(), 1);
        drop(store);
        let leases = client.leases().await.unwrap().leases().len();

        // Even after a reboot at another address.
        let mut next = server.store("machine-a");
        let lease = acquire(&mut next, address).await.unwrap();
        assert_eq!(
            (lease.key, lease.created),
            (before[0].key, before[0].created)
        );
        assert_eq!(next.list().await.unwrap(), [lease]);
        assert_eq!(client.leases().await.unwrap().leases().len(), leases);
    }
}
