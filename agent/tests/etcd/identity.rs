//! Who is who: a node is its owner id, at whatever address, with whatever MAC address; and of two that say they are the same,
//! the one that runs is right.

use futures_util::future::join;

use crate::server::Server;
use crate::*;

/// Takes a lease, as a host of another MAC address does or the same.
async fn take(
    store: &mut EtcdStore,
    public_ip: &str,
    mac: &str,
    past: impl Into<Past> + Send,
) -> Lease {
    let attrs = attrs_with(public_ip, mac);
    store.acquire(&small_network(), &attrs, past).await.unwrap()
}

const MAC: &str = "c6:d2:32:6f:8f:44";
const OTHER_MAC: &str = "c6:d2:32:6f:8f:45";

/// All lease keys with their values.
async fn leases(client: &mut Client) -> Vec<(String, String)> {
    let options = etcd_client::GetOptions::new().with_prefix();
    let answer = client.get(SUBNETS, Some(options)).await.unwrap();
    let texts = answer.kvs().iter().map(|kv| {
        let name = kv.key_str().unwrap().trim_start_matches(SUBNETS).to_owned();
        (name, kv.value_str().unwrap().to_owned())
    });
    texts.collect()
}

/// No question stays behind.
async fn nothing_is_asked_any_more(client: &mut Client) {
    let options = etcd_client::GetOptions::new().with_prefix();
    let folder = "/coreos.com/network/.challenges/";
    let answer = client.get(folder, Some(options)).await.unwrap();
    assert_eq!(answer.kvs().len(), 0);
}

#[tokio::test]
async fn a_restart_at_the_same_address_asks_nobody() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let first = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    let before = revision(&mut client).await;
    let again = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    assert_eq!(again, first);
    assert_eq!(revision(&mut client).await, before);
}

/// A reboot: the process is gone, and so may be the memory in `/run`.
#[tokio::test]
async fn a_host_that_comes_back_at_another_address_keeps_its_subnet() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut peer = server.store("machine-b");
    take(&mut peer, "10.0.0.2", OTHER_MAC, None).await;
    let first = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    let (_, etcd_lease) = stored(&mut client, &first.key.name()).await.unwrap();
    for (address, previous) in [("10.0.0.7", None), ("10.0.0.8", Some(first.key))] {
        let again = take(&mut server.store("machine-a"), address, MAC, previous).await;
        assert_eq!((again.key, again.created), (first.key, first.created));
        let (value, id) = stored(&mut client, &first.key.name()).await.unwrap();
        assert!(
            value.contains(address) && value.contains("machine-a"),
            "{value}"
        );
        assert_eq!(id, etcd_lease);
    }
    assert_eq!(leases(&mut client).await.len(), 2);
    nothing_is_asked_any_more(&mut client).await;
    // The peer hears of the new address.
    let moved = wait_for(&mut peer, "the new address", |event| match event {
        StoreEvent::Peers(event) => event
            .leases()
            .iter()
            .any(|lease| lease.attrs.public_ip == "10.0.0.8".parse().ok())
            .then_some(()),
        _ => None,
    });
    moved.await;
}

#[tokio::test]
async fn two_hosts_that_swap_addresses_keep_their_subnets() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let a = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    let b = take(&mut server.store("machine-b"), "10.0.0.2", OTHER_MAC, None).await;
    let (mut store_a, mut store_b) = (server.store("machine-a"), server.store("machine-b"));
    let (a_again, b_again) = join(
        take(&mut store_a, "10.0.0.2", MAC, None),
        take(&mut store_b, "10.0.0.1", OTHER_MAC, None),
    )
    .await;
    assert_eq!((a_again.key, b_again.key), (a.key, b.key));
    assert_eq!(leases(&mut client).await.len(), 2);
}

#[tokio::test]
async fn a_host_that_was_reinstalled_takes_over_the_lease_of_its_address() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let before = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    let after = take(&mut server.store("machine-b"), "10.0.0.1", OTHER_MAC, None).await;
    assert_eq!(after.key, before.key);
    let all = leases(&mut client).await;
    assert_eq!(all.len(), 1);
    assert!(
        all[0].1.contains("machine-b") && all[0].1.contains(OTHER_MAC),
        "{all:?}"
    );
}

/// With an address of its own and behind a NAT: who is there, keeps what it has.
#[tokio::test]
async fn another_machine_with_the_same_public_ip_keeps_its_lease_while_it_is_alive() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut a = server.store("machine-a");
    let first = take(&mut a, "10.0.2.15", MAC, None).await;
    let mut b = server.store("machine-b");
    let second = take(&mut b, "10.0.2.15", OTHER_MAC, None).await;
    assert_ne!(first.key, second.key);
    let (value, _) = stored(&mut client, &first.key.name()).await.unwrap();
    assert!(value.contains("machine-a"), "{value}");
}

#[tokio::test]
async fn behind_a_nat_a_lease_of_the_same_address_stays_its_owners() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let away = take(&mut server.store("machine-a"), "203.0.113.1", MAC, None).await;
    let behind_nat = Past {
        previous: None,
        has_own_address: false,
    };
    let mut b = server.store("machine-b");
    let other = take(&mut b, "203.0.113.1", OTHER_MAC, behind_nat).await;
    assert_ne!(other.key, away.key);
    let (value, _) = stored(&mut client, &away.key.name()).await.unwrap();
    assert!(value.contains("machine-a"), "{value}");
}

/// A copy of disk and state directory; with subnet.env, and without.
#[tokio::test]
async fn a_clone_takes_a_subnet_of_its_own_while_the_original_runs() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut original = server.store("machine-a");
    let first = take(&mut original, "10.0.0.1", MAC, None).await;
    let (value, _) = stored(&mut client, &first.key.name()).await.unwrap();
    let mut clones = Vec::new();
    for (address, previous) in [("10.0.0.2", None), ("10.0.0.3", Some(first.key))] {
        let mut clone = server.store("machine-a");
        let lease = take(&mut clone, address, MAC, previous).await;
        assert_ne!(lease.key, first.key);
        clones.push((clone, lease));
    }
    assert_ne!(clones[0].1.key, clones[1].1.key);
    let unchanged = stored(&mut client, &first.key.name()).await.unwrap();
    assert_eq!(unchanged.0, value);
    nothing_is_asked_any_more(&mut client).await;
}

#[tokio::test]
async fn a_clone_started_while_the_original_is_off_takes_over_and_the_original_is_the_newcomer() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let first = take(&mut server.store("machine-a"), "10.0.0.1", MAC, None).await;
    let mut clone = server.store("machine-a");
    let taken = take(&mut clone, "10.0.0.2", MAC, None).await;
    assert_eq!(taken.key, first.key);
    let mut original = server.store("machine-a");
    let back = take(&mut original, "10.0.0.1", MAC, Some(first.key)).await;
    assert_ne!(back.key, first.key);
    let (value, _) = stored(&mut client, &first.key.name()).await.unwrap();
    assert!(value.contains("10.0.0.2"), "{value}");
}

/// Cut off from etcd, the original cannot answer.
#[tokio::test]
async fn of_two_that_run_only_one_has_the_subnet_and_the_other_learns_of_it() {
    let mut server = Server::start().await;
    let mut original = server.store("machine-a");
    let first = take(&mut original, "10.0.0.1", MAC, None).await;
    // For the original alone the server is away.
    server.down();
    let usual = server.move_to(server::free_port());
    server.up().await;
    let mut clone = server.store("machine-a");
    let taken = take(&mut clone, "10.0.0.2", MAC, Some(first.key)).await;
    assert_eq!(taken.key, first.key);
    drop(clone);
    server.down();
    server.move_to(usual);
    server.up().await;
    let reason = lost(&mut original).await;
    assert!(reason.contains("taken over by 10.0.0.2"), "{reason}");
    // The clone is gone meanwhile: the subnet is free to be had again.
    let again = take(&mut original, "10.0.0.1", MAC, Some(first.key)).await;
    assert_eq!(again.key, first.key);
}

#[tokio::test]
async fn a_lease_that_ended_is_taken_again_if_it_is_free_still() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let first = take(&mut store, "10.0.0.1", MAC, None).await;
    client
        .delete(format!("{SUBNETS}{}", first.key.name()), None)
        .await
        .unwrap();
    younger(&mut store, &first).await;
    // A start finds it.
    let again = take(&mut store, "10.0.0.1", MAC, Some(first.key)).await;
    assert_eq!(again.key, first.key);
}

/// Whoever asks waits for seconds, and a node that connects again may have had no watch meanwhile.
#[tokio::test]
async fn a_question_put_while_a_node_was_cut_off_is_answered_when_it_is_back() {
    let mut server = Server::start().await;
    let mut store = server.store("machine-a");
    take(&mut store, "10.0.0.1", MAC, None).await;
    // For this node alone the server is away.
    server.down();
    let usual = server.move_to(server::free_port());
    server.up().await;
    let question = "/coreos.com/network/.challenges/machine-a/1";
    let mut client = server.client().await;
    client.put(question, "10.0.0.2", None).await.unwrap();
    server.down();
    server.move_to(usual);
    server.up().await;

    let mut client = server.client().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = client.get(format!("{question}/alive"), None).await.unwrap();
        if let Some(kv) = answer.kvs().first() {
            assert_eq!(kv.value_str().unwrap(), "10.0.0.1");
            return;
        }
        assert!(Instant::now() < deadline, "nobody answers");
        sleep(Duration::from_millis(50)).await;
    }
}
