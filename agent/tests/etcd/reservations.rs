//! `selvage network reserve|unreserve|reservations|leases`.

use selvage::command::network::{NetworkCommandError, list, reserve, unreserve};

use crate::server::Server;
use crate::*;

const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;

/// A server whose network config is the small one.
async fn start() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = server.client().await;
    let config = r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#;
    client
        .put("/coreos.com/network/config", config, None)
        .await
        .unwrap();
    (server, client)
}

fn node(v4: &str, v6: &str) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: v4.parse().ok(),
        public_ipv6: v6.parse().ok(),
        backend_type: String::new(),
        backend_data: None,
        ..attrs("10.0.0.1")
    }
}

async fn reserved(
    store: &mut EtcdStore,
    name: &str,
    node: Option<LeaseAttrs>,
) -> Result<String, NetworkCommandError> {
    let mut out = Vec::new();
    reserve(store, key(name), node.as_ref(), &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

async fn unreserved(store: &mut EtcdStore, name: &str) -> Result<String, NetworkCommandError> {
    let mut out = Vec::new();
    unreserve(store, key(name), &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

async fn listed(store: &mut EtcdStore, reservations_only: bool, json: bool) -> String {
    let mut out = Vec::new();
    list(store, reservations_only, json, &mut out)
        .await
        .unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn a_reserved_subnet_is_given_to_its_node_and_to_nobody_else() {
    let (server, mut client) = start().await;
    let mut admin = server.store("");
    let text = reserved(&mut admin, "10.5.3.0-24", Some(node("10.0.0.1", "")))
        .await
        .unwrap();
    assert_eq!(text, "10.5.3.0/24 is reserved for 10.0.0.1\n");
    // What flannel's documentation shows.
    let (value, id) = stored(&mut client, "10.5.3.0-24").await.unwrap();
    assert_eq!(
        (value.as_str(), id),
        (r#"{"PublicIP":"10.0.0.1","PublicIPv6":null}"#, 0)
    );
    let text = reserved(&mut admin, "10.5.3.0-24", Some(node("10.0.0.1", "")))
        .await
        .unwrap();
    assert_eq!(text, "10.5.3.0/24 is already reserved for 10.0.0.1\n");

    for n in 2..4 {
        let lease = acquire(
            &mut server.store(&format!("machine-{n}")),
            &format!("10.0.0.{n}"),
        )
        .await;
        assert_ne!(lease.unwrap().key, key("10.5.3.0-24"));
    }
    acquire(&mut server.store("machine-4"), "10.0.0.4")
        .await
        .unwrap_err();
    let lease = acquire(&mut server.store("machine-1"), "10.0.0.1")
        .await
        .unwrap();
    assert_eq!(lease.key, key("10.5.3.0-24"));
    assert_eq!(stored(&mut client, "10.5.3.0-24").await.unwrap().1, 0);
}

#[tokio::test]
async fn what_cannot_be_reserved_is_refused_with_the_reason() {
    let (server, mut client) = start().await;
    put(&mut client, "10.5.1.0-25", &flannels("10.0.0.9"), 0).await;
    put(&mut client, "10.5.2.0-24", "rubbish", 0).await;
    let mut admin = server.store("");
    let before = revision(&mut client).await;
    for (name, address, expected) in [
        (
            "10.6.1.0-24",
            "10.0.0.1",
            "10.6.1.0/24 is not a subnet of this network; allowed: a /24 of 10.5.0.0/22 from 10.5.1.0 to 10.5.3.0",
        ),
        (
            "10.5.0.0-24",
            "10.0.0.1",
            "10.5.0.0/24 is not a subnet of this network",
        ),
        (
            "10.5.1.0-24",
            "10.0.0.1",
            "10.5.1.0/24 overlaps 10.5.1.0/25, which 10.0.0.9 holds",
        ),
        (
            "10.5.2.0-24",
            "10.0.0.1",
            "10.5.2.0/24 overlaps 10.5.2.0/24, which an unreadable lease holds",
        ),
        (
            "10.5.3.0-24",
            "10.0.0.9",
            "10.5.1.0/25 is already reserved for 10.0.0.9; end that first: selvage network unreserve 10.5.1.0/25",
        ),
        (
            "10.5.3.0-24",
            "",
            "no node holds 10.5.3.0/24: name the node to reserve it for with --public-ip or --public-ipv6",
        ),
    ] {
        let node = Some(node(address, "")).filter(|_| !address.is_empty());
        let error = reserved(&mut admin, name, node)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(revision(&mut client).await, before);
    }
    let error = unreserved(&mut admin, "10.5.3.0-24").await.unwrap_err();
    assert_eq!(error.to_string(), "there is no reservation of 10.5.3.0/24");
}

/// A running node's lease becomes a reservation and a lease again, and the node hears of nothing.
#[tokio::test]
async fn a_lease_in_use_becomes_a_reservation_and_back_without_its_node_losing_it() {
    let (server, mut client) = start().await;
    let mut store = server.store("machine-a");
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    let name = own.key.name();
    let mut admin = server.store_with("", |s| s.lease_ttl = Duration::from_secs(6));
    let (value, _) = stored(&mut client, &name).await.unwrap();

    let error = unreserved(&mut admin, &name).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{} is not reserved: 10.0.0.1 holds it as a lease", own.key)
    );
    let text = reserved(&mut admin, &name, None).await.unwrap();
    assert_eq!(
        text,
        format!("{} is reserved for 10.0.0.1, which holds it\n", own.key)
    );
    assert_eq!(
        stored(&mut client, &name).await.unwrap(),
        (value.clone(), 0)
    );
    let text = unreserved(&mut admin, &name).await.unwrap();
    assert_eq!(
        text,
        format!(
            "{} is no longer reserved; 10.0.0.1 holds it as a lease\n",
            own.key
        )
    );
    // The node extends what it finds, however short that lasts.
    let end = Instant::now() + Duration::from_secs(13);
    while Instant::now() < end {
        if let Ok(StoreEvent::OwnLeaseLost { reason }) =
            timeout(Duration::from_millis(200), store.next_event()).await
        {
            panic!("{reason}");
        }
    }
    let (kept, id) = stored(&mut client, &name).await.unwrap();
    assert_eq!(kept, value);
    assert_ne!(id, 0);

    // One that nobody uses is just deleted.
    reserved(&mut admin, "10.5.3.0-24", Some(node("10.0.0.7", "")))
        .await
        .ok();
    reserved(&mut admin, "10.5.2.0-24", Some(node("10.0.0.8", "")))
        .await
        .ok();
    let unused = if name == "10.5.3.0-24" {
        "10.5.2.0-24"
    } else {
        "10.5.3.0-24"
    };
    unreserved(&mut admin, unused).await.unwrap();
    assert_eq!(stored(&mut client, unused).await, None);
}

#[tokio::test]
async fn both_families_and_ipv6_alone_are_reserved_as_well() {
    let (server, mut client) = start().await;
    let v6 = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
    let mut admin = server.store("");
    for (config, name, node, value) in [
        (
            DUAL,
            "10.5.7.0-24&fd00:5:0:7::-64",
            node("10.0.0.1", "fd77::1"),
            r#"{"PublicIP":"10.0.0.1","PublicIPv6":"fd77::1"}"#,
        ),
        (
            v6,
            "fd00:5:0:8::-64",
            node("", "fd77::2"),
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":"fd77::2"}"#,
        ),
    ] {
        client
            .put("/coreos.com/network/config", config, None)
            .await
            .unwrap();
        reserved(&mut admin, name, Some(node.clone()))
            .await
            .unwrap();
        assert_eq!(stored(&mut client, name).await.unwrap().0, value);
        let config = NetworkConfig::parse(config).unwrap();
        let lease = server
            .store("machine")
            .acquire(&config, &node, None)
            .await
            .unwrap();
        assert_eq!(lease.key.name(), name);
    }
}

#[tokio::test]
async fn leases_are_listed_for_people_and_for_programs() {
    let (server, mut client) = start().await;
    put(
        &mut client,
        "10.5.2.0-24",
        &flannels("10.0.0.9").replace("vxlan", "\\u001b[2J"),
        0,
    )
    .await;
    put(&mut client, "10.5.1.0-24", "rubbish", 0).await;
    let mut store = server.store("machine-a");
    acquire(&mut store, "10.0.0.1").await.unwrap();
    let mut admin = server.store("");
    let text = listed(&mut admin, false, false).await;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "SUBNET       ADDRESS     BACKEND  OWNER      LEFT",
            "10.5.1.0/24  unreadable  -        -          reserved",
            "10.5.2.0/24  10.0.0.9    \u{fffd}[2J     -          reserved",
        ]
    );
    assert!(
        lines[3].starts_with("10.5.3.0/24  10.0.0.1    vxlan    machine-a  23 h"),
        "{text}"
    );
    let json = listed(&mut admin, true, true).await;
    assert_eq!(
        json,
        "[{\"Subnet\":\"10.5.1.0/24\",\"IPv6Subnet\":null,\"PublicIP\":null,\"PublicIPv6\":null,\"BackendType\":null,\"Owner\":null,\"Reserved\":true,\"SecondsLeft\":null},\
         {\"Subnet\":\"10.5.2.0/24\",\"IPv6Subnet\":null,\"PublicIP\":\"10.0.0.9\",\"PublicIPv6\":null,\"BackendType\":\"\u{fffd}[2J\",\"Owner\":null,\"Reserved\":true,\"SecondsLeft\":null}]\n"
    );
    let json = listed(&mut admin, false, true).await;
    assert!(
        json.contains(r#""Owner":"machine-a","Reserved":false,"SecondsLeft":86"#),
        "{json}"
    );
}
