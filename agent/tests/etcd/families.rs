//! Networks of IPv6 alone and of both families, and leases of another family under the same keys.

use std::collections::BTreeSet;

use futures_util::future::join;

use crate::server::Server;
use crate::*;

/// Subnets fd00:5:0:1::/64 to fd00:5:0:3::/64.
const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/62"}"#;
/// The same, with 10.5.1.0/24 to 10.5.3.0/24.
const DUAL: &str = r#"{"Network":"10.5.0.0/22","EnableIPv6":true,"IPv6Network":"fd00:5::/62"}"#;
const V4: &str = r#"{"Network":"10.5.0.0/22"}"#;

fn network(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

/// What a node with these addresses publishes; an empty text is none.
fn node(v4: &str, v6: &str) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: v4.parse().ok(),
        public_ipv6: v6.parse().ok(),
        ..attrs("10.0.0.1")
    }
}

async fn take(
    server: &Server,
    owner: &str,
    config: &str,
    attrs: &LeaseAttrs,
    previous: Option<SubnetKey>,
) -> Result<Lease, StoreError> {
    let mut store = server.store(owner);
    store.acquire(&network(config), attrs, previous).await
}

#[tokio::test]
async fn a_network_of_ipv6_alone_is_leased_listed_and_followed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    put(
        &mut client,
        "fd00:5:0:1::-64",
        &node("", "fd77::9").to_json().unwrap(),
        0,
    )
    .await;
    let mut store = server.store("machine-a");
    let own = store
        .acquire(&network(V6), &node("", "fd77::1"), None)
        .await
        .unwrap();
    let name = own.key.name();
    assert!(
        ["fd00:5:0:2::-64", "fd00:5:0:3::-64"].contains(&name.as_str()),
        "{name}"
    );
    let (value, _) = stored(&mut client, &name).await.unwrap();
    assert!(
        value.starts_with(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1","#),
        "{value}"
    );
    assert_eq!(snapshot(&mut store).await, ["fd00:5:0:1::-64"]);
    assert_eq!(change_of(&mut store, &name).await, Some(own.clone()));

    // Every node of such a network publishes 0.0.0.0; the IPv6 address tells them apart.
    let other = take(&server, "machine-b", V6, &node("", "fd77::2"), None)
        .await
        .unwrap();
    assert_eq!(
        change_of(&mut store, &other.key.name()).await,
        Some(other.clone())
    );
    assert_ne!(other.key, own.key);
    let error = take(&server, "machine-c", V6, &node("", "fd77::3"), None)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "out of subnets: no free /64 left in fd00:5::/62"
    );

    // A restart finds its lease by the address, and the previous subnet by its memory.
    let again = take(&server, "machine-a", V6, &node("", "fd77::1"), None)
        .await
        .unwrap();
    assert_eq!(again, own);
    client
        .delete(format!("{SUBNETS}{name}"), None)
        .await
        .unwrap();
    assert_eq!(change_of(&mut store, &name).await, None);
    let again = take(
        &server,
        "machine-a",
        V6,
        &node("", "fd77::1"),
        Some(own.key),
    )
    .await
    .unwrap();
    assert_eq!(again.key, own.key);
}

#[tokio::test]
async fn a_reservation_of_either_family_is_honoured() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let reserved = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::1"}"#;
    put(&mut client, "fd00:5:0:3::-64", reserved, 0).await;
    put(&mut client, "10.5.2.0-24&fd00:5:0:2::-64", reserved, 0).await;
    for (config, attrs, name) in [
        (V6, node("", "fd77::1"), "fd00:5:0:3::-64"),
        (
            DUAL,
            node("10.0.0.1", "fd77::1"),
            "10.5.2.0-24&fd00:5:0:2::-64",
        ),
    ] {
        let lease = take(&server, "machine-a", config, &attrs, None)
            .await
            .unwrap();
        assert_eq!(lease.key.name(), name);
        assert_eq!(stored(&mut client, name).await.unwrap().1, 0);
    }
}

#[tokio::test]
async fn both_families_are_leased_in_one_key_as_flannel_names_it() {
    let server = Server::start().await;
    let mut client = server.client().await;
    // One family each, which leaves one subnet of each.
    for name in [
        "10.5.1.0-24",
        "10.5.3.0-24",
        "fd00:5:0:1::-64",
        "fd00:5:0:2::-64",
    ] {
        put(&mut client, name, &flannels("10.0.0.9"), 0).await;
    }
    let mut store = server.store("machine-a");
    let attrs = node("10.0.0.1", "fd77::1");
    let own = store.acquire(&network(DUAL), &attrs, None).await.unwrap();
    assert_eq!(own.key.name(), "10.5.2.0-24&fd00:5:0:3::-64");
    let (value, _) = stored(&mut client, &own.key.name()).await.unwrap();
    assert!(
        value.starts_with(r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd77::1","#),
        "{value}"
    );
    assert_eq!(snapshot(&mut store).await.len(), 4);
    let error = take(
        &server,
        "machine-b",
        DUAL,
        &node("10.0.0.2", "fd77::2"),
        None,
    )
    .await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "out of subnets: no free /24 left in 10.5.0.0/22"
    );
    client
        .delete(format!("{SUBNETS}10.5.1.0-24"), None)
        .await
        .unwrap();
    let error = take(
        &server,
        "machine-b",
        DUAL,
        &node("10.0.0.2", "fd77::2"),
        None,
    )
    .await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "out of subnets: no free /64 left in fd00:5::/62"
    );
}

/// While a network gains or loses a family, some nodes have the new config already and some the old one.
#[tokio::test]
async fn nodes_of_different_families_never_share_an_address() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for round in 0..10 {
        for (one, other) in [(V4, DUAL), (DUAL, V6)] {
            // One subnet of each family is left.
            for name in [
                "10.5.1.0-24",
                "10.5.2.0-24",
                "fd00:5:0:1::-64",
                "fd00:5:0:2::-64",
            ] {
                put(&mut client, name, &flannels("10.0.0.9"), 0).await;
            }
            let (a, b) = (node("10.0.0.1", "fd77::1"), node("10.0.0.2", "fd77::2"));
            let results = join(
                take(&server, "machine-a", one, &a, None),
                take(&server, "machine-b", other, &b, None),
            )
            .await;
            match results {
                (Ok(_), Err(error)) | (Err(error), Ok(_)) => {
                    assert!(error.to_string().starts_with("out of subnets"), "{error}");
                }
                both => panic!("round {round}: {both:?}"),
            }
            let range = etcd_client::DeleteOptions::new().with_prefix();
            client.delete(SUBNETS, Some(range)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn many_nodes_that_start_together_in_ipv6_alone_all_get_a_subnet() {
    let server = Server::start().await;
    let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 1..=40 {
        let mut store = server.store(&format!("machine-{n}"));
        tasks.spawn(async move {
            let attrs = node("", &format!("fd77::{n}"));
            store
                .acquire(&network(config), &attrs, None)
                .await
                .unwrap()
                .key
        });
    }
    let keys: BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    assert_eq!(keys.len(), 40);
}

#[tokio::test]
async fn a_node_whose_network_gains_a_family_gives_its_old_lease_up() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut store = server.store("machine-a");
    let attrs = node("10.0.0.1", "fd77::1");
    let mut last = None;
    for config in [V4, DUAL, V6, DUAL] {
        let lease = store.acquire(&network(config), &attrs, last).await.unwrap();
        last = Some(lease.key);
        assert_eq!(snapshot_of(&mut client).await, [lease.key.name()]);
    }
}

/// The names of all lease keys.
async fn snapshot_of(client: &mut Client) -> Vec<String> {
    let range = etcd_client::GetOptions::new().with_prefix();
    let answer = client.get(SUBNETS, Some(range)).await.unwrap();
    let name = |kv: &etcd_client::KeyValue| kv.key_str().unwrap().replace(SUBNETS, "");
    answer.kvs().iter().map(name).collect()
}
