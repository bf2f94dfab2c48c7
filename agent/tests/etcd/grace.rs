//! Leases that end while etcd is out of reach, the network config that changes, and the own lease given back.

use selvage::cluster::lease::DEADLINE;
use selvage::cluster::lease::Released;

use crate::server::{Server, free_port};
use crate::*;

const KEY: &str = "/coreos.com/network/config";
const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

async fn config_event(store: &mut EtcdStore) -> Result<Box<NetworkConfig>, String> {
    wait_for(store, "news of the config", |event| match event {
        StoreEvent::NetworkConfig(config) => Some(config.map_err(|error| error.text)),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_changed_config_is_told_once_however_it_came_about() {
    let mut server = Server::start().await;
    let mut client = server.client().await;
    client.put(KEY, NETWORK, None).await.unwrap();
    let mut store = server.store("machine-a");
    let config = store.network_config().await.unwrap();
    store
        .acquire(&config, &attrs("10.0.0.1"), None)
        .await
        .unwrap();
    snapshot(&mut store).await;

    let other = NETWORK.replace("vxlan", "host-gw");
    client.put(KEY, other.as_str(), None).await.unwrap();
    assert_eq!(
        config_event(&mut store).await.unwrap().backend.kind,
        "host-gw"
    );
    client.put(KEY, "{}", None).await.unwrap();
    let error = config_event(&mut store).await.unwrap_err();
    assert!(
        error.starts_with("bad network config at /coreos.com/network/config: "),
        "{error}"
    );
    client.delete(KEY, None).await.unwrap();
    let error = config_event(&mut store).await.unwrap_err();
    assert_eq!(error, "no network config at /coreos.com/network/config");

    // Unseen, and compacted away.
    server.down();
    let usual = server.move_to(free_port());
    server.up().await;
    let mut client = server.client().await;
    client.put(KEY, NETWORK, None).await.unwrap();
    let now = revision(&mut client).await;
    client.compact(now, None).await.unwrap();
    server.down();
    server.move_to(usual);
    server.up().await;
    assert_eq!(*config_event(&mut store).await.unwrap(), config);

    // What changes no byte of it, changes nothing.
    let mut client = server.client().await;
    put(&mut client, "10.5.9.0-24", &flannels("10.0.0.9"), 0).await;
    let told = wait_for(&mut store, "10.5.9.0/24", |event| match event {
        StoreEvent::NetworkConfig(_) => Some(true),
        StoreEvent::Peers(
            LeaseEvent::Changes { set, .. } | LeaseEvent::Snapshot { leases: set, .. },
        ) => set
            .iter()
            .any(|lease| lease.key == key("10.5.9.0-24"))
            .then_some(false),
        _ => None,
    });
    assert!(!told.await);
}

/// Both nodes lose their leases while neither hears of it, and take them again one after the other.
#[tokio::test]
async fn peers_that_take_their_leases_again_after_an_outage_were_never_away() {
    let mut server = Server::start().await;
    let node = |owner| server.store_with(owner, |s| s.grace = Duration::from_secs(8));
    let (mut a, mut b) = (node("machine-a"), node("machine-b"));
    let of_a = acquire(&mut a, "10.0.0.1").await.unwrap();
    let of_b = acquire(&mut b, "10.0.0.2").await.unwrap();
    put(
        &mut server.client().await,
        "10.5.9.0-24",
        &flannels("10.0.0.9"),
        0,
    )
    .await;
    change_of(&mut a, "10.5.9.0-24").await;

    server.down();
    let usual = server.move_to(free_port());
    server.up().await;
    let range = etcd_client::DeleteOptions::new().with_prefix();
    server
        .client()
        .await
        .delete(SUBNETS, Some(range))
        .await
        .unwrap();
    server.down();
    server.move_to(usual);
    server.up().await;

    let mut client = server.client().await;
    for own in [&of_a, &of_b] {
        let name = own.key.name();
        until(async || stored(&mut client, &name).await.is_some()).await;
    }
    let mut seen = false;
    let gone = wait_for(
        &mut a,
        "the end of the one that stays away",
        |event| match event {
            StoreEvent::Peers(LeaseEvent::Snapshot { leases, unreadable }) => {
                let theirs = |lease: &Lease| lease.key == of_b.key;
                seen = leases.iter().any(theirs);
                // Listed or not, it counts as there.
                assert!(seen || unreadable.contains(&of_b.key), "{leases:?}");
                None
            }
            StoreEvent::Peers(LeaseEvent::Changes { set, removed }) => {
                seen |= set.iter().any(|lease| lease.key == of_b.key);
                (!removed.is_empty()).then_some(removed)
            }
            StoreEvent::OwnLeaseLost { reason } => panic!("{reason}"),
            _ => None,
        },
    );
    assert_eq!(gone.await, [key("10.5.9.0-24")]);
    assert!(seen, "the other's lease was not told");
}

#[tokio::test]
async fn a_lease_is_given_back_and_a_reservation_is_not() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    assert_eq!(store.release().await.unwrap(), Released::Nothing);
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(store.release().await.unwrap(), Released::Lease(own.key));
    assert_eq!(stored(&mut client, &own.key.name()).await, None);
    assert_eq!(client.leases().await.unwrap().leases().len(), 0);

    put(&mut client, "10.5.3.0-24", &flannels("10.0.0.1"), 0).await;
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    assert_eq!(
        store.release().await.unwrap(),
        Released::Reservation(own.key)
    );
    assert!(stored(&mut client, "10.5.3.0-24").await.is_some());
    client
        .delete(format!("{SUBNETS}10.5.3.0-24"), None)
        .await
        .unwrap();

    // Another's by now, or never answered for.
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let theirs = flannels("10.0.0.7");
    put(&mut client, &own.key.name(), &theirs, 0).await;
    assert_eq!(store.release().await.unwrap(), Released::Nothing);
    assert_eq!(
        stored(&mut client, &own.key.name()).await.unwrap().0,
        theirs
    );
    acquire(&mut store, "10.0.0.1").await.unwrap();
    server.freeze();
    let begin = Instant::now();
    let error = store.release().await.unwrap_err();
    assert!(unreachable_error(&error), "{error}");
    assert!(begin.elapsed() < DEADLINE * 2);
    server.thaw();
}
