//! What a node learns about the others.

use crate::server::Server;
use crate::*;

#[tokio::test]
async fn peers_are_listed_and_followed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    put(&mut client, "10.5.1.0-24", &flannels("10.0.0.2"), 0).await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(snapshot(&mut store).await, ["10.5.1.0-24"]);
    // The own lease comes as a change, since it was written after the list.
    assert_eq!(change_of(&mut store, &own.key.name()).await, Some(own));

    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.9"), 0).await;
    let lease = change_of(&mut store, "10.5.9.0-24").await.unwrap();
    assert_eq!(lease.attrs, attrs("10.0.0.9"));
    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.10"), 0).await;
    let update = change_of(&mut store, "10.5.9.0-24").await.unwrap();
    assert_eq!(update.attrs.public_address().to_string(), "10.0.0.10");
    assert_eq!(update.created, lease.created);
    client
        .delete(format!("{SUBNETS}10.5.9.0-24"), None)
        .await
        .unwrap();
    assert_eq!(change_of(&mut store, "10.5.9.0-24").await, None);
}

#[tokio::test]
async fn two_stores_see_each_other_and_updates() {
    let server = Server::start().await;
    let (mut a, mut b) = (server.store("machine-a"), server.store("machine-b"));
    acquire(&mut a, "10.0.0.1").await.unwrap();
    let of_b = acquire(&mut b, "10.0.0.2").await.unwrap();
    assert_eq!(
        change_of(&mut a, &of_b.key.name()).await,
        Some(of_b.clone())
    );

    let mut changed = attrs("10.0.0.2");
    changed.backend_data = Some(RawValue::from_string(r#"{"VNI":1}"#.to_owned()).unwrap());
    b.update(&changed).await.unwrap();
    let seen = change_of(&mut a, &of_b.key.name()).await.unwrap();
    assert_eq!(seen.attrs.backend_data.unwrap().get(), r#"{"VNI":1}"#);
    assert_eq!(seen.created, of_b.created);
}

#[tokio::test]
async fn garbage_concerns_only_its_own_key() {
    let server = Server::start().await;
    let mut client = server.client().await;
    put(&mut client, "junk10.5.1.0-24", &flannels("10.0.0.2"), 0).await;
    put(&mut client, "10.5.1.0-24", "{", 0).await;
    put(&mut client, "10.5.2.0-24", &flannels("10.0.0.2"), 0).await;
    client
        .put(
            "/coreos.com/network/subnets-old/10.5.7.0-24",
            flannels("10.0.0.7"),
            None,
        )
        .await
        .unwrap();
    let mut store = server.store("machine-a");
    // The unreadable lease is a lease all the same: its subnet is not free.
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(own.key, key("10.5.3.0-24"));
    match next_leases(&mut store).await {
        LeaseEvent::Snapshot { leases, unreadable } => {
            assert_eq!(leases.len(), 1);
            assert_eq!(leases[0].key, key("10.5.2.0-24"));
            assert_eq!(unreadable, [key("10.5.1.0-24")]);
        }
        event => panic!("{event:?}"),
    }
    // Neither garbage nor a change to garbage shows; what follows does.
    put(&mut client, "10.5.2.0-24", "[]", 0).await;
    put(&mut client, "..", "\u{0}", 0).await;
    put(&mut client, "10.5.4.0-24", &flannels("10.0.0.4"), 0).await;
    wait_for(&mut store, "10.5.4.0-24", |event| match event {
        StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => {
            assert_eq!(removed, []);
            assert!(set.iter().all(|lease| lease.key != key("10.5.2.0-24")));
            set.iter()
                .any(|lease| lease.key == key("10.5.4.0-24"))
                .then_some(())
        }
        _ => None,
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_leases_are_listed_in_pages() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let value = flannels("10.0.0.2");
    for chunk in (0..11_000u32).collect::<Vec<_>>().chunks(100) {
        let puts: Vec<_> = chunk
            .iter()
            .map(|n| {
                let name = format!("{SUBNETS}10.{}.{}.0-24", 16 + n / 250, n % 250);
                etcd_client::TxnOp::put(name, value.as_str(), None)
            })
            .collect();
        client
            .txn(etcd_client::Txn::new().and_then(puts))
            .await
            .unwrap();
    }
    let mut store = server.store("machine-a");
    let begin = std::time::Instant::now();
    let leases = store.list().await.unwrap();
    println!("listed {} leases in {:?}", leases.len(), begin.elapsed());
    assert_eq!(leases.len(), 11_000);
}
