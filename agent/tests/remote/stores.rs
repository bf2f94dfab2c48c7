//! The agent's client against real servers on loopback: events, failover, certificates.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use selvage::cluster::lease::allocate::Avoid;
use selvage::cluster::lease::remote::RemoteStore;
use selvage::cluster::lease::{
    Fault, Lease, LeaseAttrs, LeaseEvent, LeaseStore, Released, StoreError, StoreEvent,
};
use selvage::cluster::network_config::NetworkConfig;
use selvage::settings::Remote;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::etcd::Server;
use crate::program::Program;
use crate::wait::{PATIENCE, wait_until};

const NETWORK: &str = r#"{"Network":"10.5.0.0/16"}"#;

pub(crate) fn settings(servers: &[String]) -> Remote {
    Remote {
        servers: servers.to_vec(),
        network: "_".to_owned(),
        listen: None,
        cafile: None,
        certfile: None,
        keyfile: None,
        insecure: false,
    }
}

fn client(servers: &[&Program], owner: &str) -> RemoteStore {
    let urls: Vec<_> = servers
        .iter()
        .map(|server| format!("http://{}", server.address))
        .collect();
    RemoteStore::new(&settings(&urls), owner.to_owned()).unwrap()
}

pub(crate) fn attrs(number: u8) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: Some(Ipv4Addr::new(10, 0, 0, number)),
        public_ipv6: None,
        backend_type: "vxlan".to_owned(),
        backend_data: None,
        backend_v6_data: None,
        owner: None,
    }
}

async fn etcd() -> Server {
    let etcd = Server::start().await;
    put_config(&etcd, NETWORK).await;
    etcd
}

async fn put_config(etcd: &Server, text: &str) {
    let mut client = etcd.client().await;
    client
        .put("/coreos.com/network/config", text, None)
        .await
        .unwrap();
}

async fn acquire(store: &mut impl LeaseStore, number: u8) -> Lease {
    let config = store.network_config().await.unwrap();
    store.acquire(&config, &attrs(number), None).await.unwrap()
}

/// Waits for an event that fits; none of those before may take a peer away.
pub(crate) async fn wait_for<T>(
    store: &mut impl LeaseStore,
    what: &str,
    fits: impl Fn(StoreEvent) -> Option<T>,
) -> T {
    let waiting = async {
        loop {
            if let Some(value) = fits(store.next_event().await) {
                return value;
            }
        }
    };
    timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn snapshot(event: StoreEvent) -> Option<Vec<Lease>> {
    match event {
        StoreEvent::Peers(LeaseEvent::Snapshot { leases, .. }) => Some(leases),
        _ => None,
    }
}

fn set(event: StoreEvent) -> Option<Vec<Lease>> {
    match event {
        StoreEvent::Peers(LeaseEvent::Changes { set, .. }) if !set.is_empty() => Some(set),
        _ => None,
    }
}

#[tokio::test]
async fn clients_see_what_a_node_on_etcd_sees() {
    let etcd = etcd().await;
    let program = Program::start(&etcd, &[]);
    let (mut one, mut two) = (client(&[&program], "m1"), client(&[&program], "m2"));
    let mut three = etcd.store("m3");
    let leases = [
        acquire(&mut one, 1).await,
        acquire(&mut two, 2).await,
        acquire(&mut three, 3).await,
    ];
    // The first event is a snapshot, and whatever it lacks follows.
    for store in [&mut one, &mut two] {
        let mut seen = wait_for(store, "a snapshot", snapshot).await;
        while !leases.iter().all(|lease| seen.contains(lease)) {
            seen.extend(wait_for(store, "the other leases", set).await);
        }
    }
    assert!(one.expiry().expires.is_some());
    assert_eq!(one.expiry().ttl, Some(Duration::from_secs(86_400)));

    // Its own subnet again, after a restart and in the same life.
    let mut again = client(&[&program], "m1");
    assert_eq!(acquire(&mut again, 1).await.key, leases[0].key);
    let config = again.network_config().await.unwrap();
    // After a restart also at another address, if it remembers the subnet.
    let mut moved = client(&[&program], "m1");
    let lease = moved
        .acquire(&config, &attrs(101), Some(leases[0].key))
        .await
        .unwrap();
    assert_eq!(lease.key, leases[0].key);
    drop((again, one));

    // Attributes change in place, and others are told.
    moved.update(&attrs(102)).await.unwrap();
    let changed = wait_for(&mut two, "the changed lease", |event| {
        let set = set(event)?;
        set.into_iter()
            .find(|lease| lease.attrs.public_ip == attrs(102).public_ip)
    })
    .await;
    assert_eq!(changed.key, leases[0].key);
    assert_eq!(changed.created, leases[0].created);

    // A changed network config is told.
    let other = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;
    put_config(&etcd, other).await;
    let config = wait_for(&mut two, "the network config", |event| match event {
        StoreEvent::NetworkConfig(config) => Some(config),
        _ => None,
    })
    .await;
    assert_eq!(*config.unwrap(), NetworkConfig::parse(other).unwrap());

    // What is given back is free at once.
    let released = moved.release().await.unwrap();
    assert_eq!(released, Released::Lease(leases[0].key));
    wait_for(&mut two, "the end of the lease", |event| match event {
        StoreEvent::Peers(LeaseEvent::Changes { removed, .. }) => {
            (removed == [leases[0].key]).then_some(())
        }
        _ => None,
    })
    .await;
    assert_eq!(moved.release().await.unwrap(), Released::Nothing);
    assert!(matches!(
        moved.update(&attrs(1)).await,
        Err(StoreError::NoLease { .. })
    ));
}

#[tokio::test]
async fn server_keeps_a_clients_subnet_off_what_is_on_the_client() {
    let etcd = etcd().await;
    // 10.5.1.0, 10.5.2.0 and 10.5.3.0.
    put_config(
        &etcd,
        r#"{"Network":"10.5.0.0/22","Backend":{"Type":"vxlan"}}"#,
    )
    .await;
    let program = Program::start(&etcd, &[]);
    let mut one = client(&[&program], "m1");
    one.set_avoid(Avoid {
        underlay: Vec::new(),
        addresses: vec!["10.5.1.9".parse().unwrap()],
        on_link: vec![
            "10.5.2.0/24".parse().unwrap(),
            "10.77.0.0/24".parse().unwrap(),
        ],
    });
    assert_eq!(acquire(&mut one, 1).await.key.name(), "10.5.3.0-24");
    // Only the link is left, and then nothing.
    let mut two = client(&[&program], "m2");
    two.set_avoid(Avoid {
        underlay: Vec::new(),
        addresses: vec!["10.5.1.9".parse().unwrap()],
        on_link: vec!["10.5.2.0/24".parse().unwrap()],
    });
    assert_eq!(acquire(&mut two, 2).await.key.name(), "10.5.2.0-24");
    let mut three = client(&[&program], "m3");
    three.set_avoid(Avoid {
        underlay: Vec::new(),
        addresses: vec!["10.5.1.9".parse().unwrap()],
        on_link: Vec::new(),
    });
    let config = three.network_config().await.unwrap();
    let error = three.acquire(&config, &attrs(3), None).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("without a host's address (10.5.1.9)"),
        "{error}"
    );
}

#[tokio::test]
async fn lost_lease_is_noticed_and_kept_lease_is_not_reported_lost() {
    let etcd = etcd().await;
    let program = Program::start(&etcd, &[]);
    let mut one = client(&[&program], "m1");
    let lease = acquire(&mut one, 1).await;
    wait_for(&mut one, "a snapshot", snapshot).await;
    let key = format!("/coreos.com/network/subnets/{}", lease.key.name());
    let mut meddler = etcd.client().await;

    // Somebody garbles the value: it is restored, since the server knows whose it was.
    meddler.put(key.as_str(), "garbled", None).await.unwrap();
    let restored = async {
        loop {
            let found = meddler.get(key.as_str(), None).await.unwrap();
            if found.kvs()[0].value_str().unwrap().contains("10.0.0.1") {
                return;
            }
            // A value that cannot be read is no event; the next renewal sees to it, and here a change of attributes.
            let _ = timeout(Duration::from_millis(200), one.next_event()).await;
            let _ = one.update(&attrs(1)).await;
            one.update(&LeaseAttrs {
                backend_type: "host-gw".to_owned(),
                ..attrs(1)
            })
            .await
            .unwrap();
        }
    };
    timeout(PATIENCE, restored).await.unwrap();

    meddler.delete(key.as_str(), None).await.unwrap();
    let reason = wait_for(&mut one, "the loss", |event| match event {
        StoreEvent::OwnLeaseLost { reason } => Some(reason),
        _ => None,
    })
    .await;
    assert_eq!(
        reason,
        format!(
            "lost the lease of {}: its key was deleted or has expired",
            lease.key
        )
    );
    // Taken again, it is the same subnet.
    let config = one.network_config().await.unwrap();
    let again = one
        .acquire(&config, &attrs(1), Some(lease.key))
        .await
        .unwrap();
    assert_eq!(again.key, lease.key);
    // And now somebody else takes it.
    wait_for(&mut one, "a snapshot", snapshot).await;
    let thief = r#"{"PublicIP":"10.0.0.66","PublicIPv6":null,"SelvageOwner":"m66"}"#;
    meddler.put(key.as_str(), thief, None).await.unwrap();
    let reason = wait_for(&mut one, "the loss", |event| match event {
        StoreEvent::OwnLeaseLost { reason } => Some(reason),
        _ => None,
    })
    .await;
    assert!(reason.contains("10.0.0.66 (owner ID m66)"), "{reason}");
}

#[tokio::test]
async fn outages_are_told_take_no_peer_away_and_end() {
    let mut etcd = etcd().await;
    let servers = [Program::start(&etcd, &[]), Program::start(&etcd, &[])];
    let addresses = [servers[0].address, servers[1].address];
    let mut store = client(&[&servers[0], &servers[1]], "m1");
    let mut other = etcd.store("m2");
    acquire(&mut other, 2).await;
    acquire(&mut store, 1).await;
    let url = |index: usize| format!("http://{}", addresses[index]);
    let reached = |event| match event {
        StoreEvent::Reachable { endpoint } => Some(endpoint),
        StoreEvent::Peers(LeaseEvent::Changes { removed, .. }) if !removed.is_empty() => {
            panic!("{removed:?} were removed")
        }
        StoreEvent::Unreachable { error } => panic!("{error}"),
        _ => None,
    };
    assert_eq!(
        wait_for(&mut store, "the first server", reached).await,
        url(0)
    );

    // The one dies, and the other is asked, without a word of trouble. It has heard of both leases by then.
    let [first, second] = servers;
    second.wait_listed(2);
    drop(first);
    assert_eq!(
        wait_for(&mut store, "the second server", reached).await,
        url(1)
    );
    let all = wait_for(&mut store, "all leases", snapshot).await;
    assert_eq!(all.len(), 2);

    // Both are dead: all is told, and what is known holds.
    drop(second);
    let error = wait_for(&mut store, "the outage", |event| match event {
        StoreEvent::Unreachable { error } => Some(error),
        StoreEvent::Peers(_) => panic!("{event:?}"),
        _ => None,
    })
    .await;
    for address in addresses {
        assert!(
            error
                .text
                .contains(&format!("lease server at http://{address}: ")),
            "{error}"
        );
    }
    assert!(error.text.contains("connection refused"), "{error}");
    let refused = store.network_config().await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused}"
    );

    // Leases that end during the outage count as there for a while.
    other.release().await.unwrap();
    let first = Program::start_at(addresses[0], &etcd, &[]);
    assert_eq!(
        wait_for(&mut store, "the server", |event| match event {
            StoreEvent::Reachable { endpoint } => Some(endpoint),
            _ => None,
        })
        .await,
        url(0)
    );
    let (leases, unreadable) = wait_for(&mut store, "all leases", |event| match event {
        StoreEvent::Peers(LeaseEvent::Snapshot { leases, unreadable }) => {
            Some((leases, unreadable))
        }
        _ => None,
    })
    .await;
    assert_eq!(
        (leases.len(), unreadable.len()),
        (1, 1),
        "{leases:?} {unreadable:?}"
    );
    wait_for(&mut store, "the end of the grace", |event| match event {
        StoreEvent::Peers(LeaseEvent::Changes { removed, .. }) => {
            (removed == unreadable).then_some(())
        }
        _ => None,
    })
    .await;

    // A server without etcd is as good as none, and says what is wrong.
    etcd.down();
    let error = store.network_config().await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{text}");
    assert!(
        text.contains(&format!(
            "lease server at {}: etcd at {}: ",
            url(0),
            etcd.url()
        )),
        "{text}"
    );
    wait_until("the server to tell of it", || {
        first.log().contains("lost the connection to etcd: etcd at")
    });
}

#[tokio::test]
async fn host_that_leaves_gives_its_lease_back_by_the_server() {
    let etcd = etcd().await;
    let program = Program::start(&etcd, &[]);
    let mut one = client(&[&program], "m1");
    let lease = acquire(&mut one, 1).await;
    let mut two = client(&[&program], "m2");
    let other = acquire(&mut two, 2).await;
    drop((one, two));
    program.wait_listed(2);
    let leave = || {
        let directory = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_selvage"))
            .args(["leave", "--node-id", "m1", "--remote"])
            .arg(program.address.to_string())
            .arg("--state-dir")
            .arg(directory.path().join("state"))
            .arg("--subnet-file")
            .arg(directory.path().join("subnet.env"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(leave(), format!("{} is free again\n", lease.key));
    assert_eq!(leave(), "this host holds no lease\n");
    let left = etcd.store("m3").list().await.unwrap();
    let left: Vec<_> = left.iter().map(|lease| lease.key).collect();
    assert_eq!(left, [other.key]);
}

/// Arguments and settings with the certificates of an authority.
fn with_tls(authority: &Authority, clients: bool) -> Vec<String> {
    let path = |name: &str| authority.path(name).display().to_string();
    let mut arguments = vec![
        format!("--remote-certfile={}", path("server.pem")),
        format!("--remote-keyfile={}", path("server.key")),
    ];
    if clients {
        arguments.push(format!("--remote-cafile={}", path("ca.pem")));
    }
    arguments
}

fn tls_client(
    program: &Program,
    owner: &str,
    ca: PathBuf,
    identity: Option<[PathBuf; 2]>,
) -> RemoteStore {
    let [certfile, keyfile] = identity.map_or([None, None], |files| files.map(Some));
    let settings = Remote {
        cafile: Some(ca),
        certfile,
        keyfile,
        ..settings(&[format!("https://{}", program.address)])
    };
    RemoteStore::new(&settings, owner.to_owned()).unwrap()
}

#[tokio::test]
async fn certificates_say_who_may_ask_and_whose_a_lease_is() {
    let etcd = etcd().await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.certificate("second", "leaf", Some("ca"));
    let ca = || authority.path("ca.pem");
    let files = |authority: &Authority, name: &str| {
        Some(["pem", "key"].map(|kind| authority.path(&format!("{name}.{kind}"))))
    };

    // A server that shows a certificate and asks for none.
    let open = Program::start(&etcd, &with_tls(&authority, false));
    let mut store = tls_client(&open, "m0", ca(), None);
    acquire(&mut store, 100).await;
    let wrong = tls_client(&open, "m0", stranger.path("ca.pem"), None)
        .network_config()
        .await
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("invalid peer certificate"), "{wrong}");
    wait_until("the server to tell that it asks for none", || {
        open.log().contains("serving without client certificates")
    });
    // Plain text there is no answer, and does no harm.
    let plain = client(&[&open], "m0").network_config().await.unwrap_err();
    assert!(matches!(plain, StoreError::Unreachable { .. }), "{plain}");

    // A server that asks for one.
    let closed = Program::start(&etcd, &with_tls(&authority, true));
    let refused = tls_client(&closed, "m1", ca(), None)
        .network_config()
        .await
        .unwrap_err();
    assert!(
        matches!(refused, StoreError::Unreachable { .. }),
        "{refused}"
    );
    assert_eq!(refused.fault(), Fault::Tls);
    let text = refused.to_string();
    assert!(
        text.contains(&format!("https://{}", closed.address)),
        "{text}"
    );
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let strange = tls_client(&closed, "m1", ca(), files(&stranger, "client"));
    let mut strange = strange;
    let text = strange.network_config().await.unwrap_err().to_string();
    assert!(text.contains("alert"), "{text}");
    // The client may hear of it before the server has told.
    wait_until("the server to tell whom it refused", || {
        let log = closed.log();
        log.contains("client refused: ") && log.contains("127.0.0.1")
    });

    let mut one = tls_client(&closed, "m1", ca(), files(&authority, "client"));
    let lease = acquire(&mut one, 1).await;
    // Another certificate, and the same name: it is another client.
    let mut two = tls_client(&closed, "m1", ca(), files(&authority, "second"));
    let other = acquire(&mut two, 1).await;
    assert_ne!(other.key, lease.key);
    // A renewed certificate is the same client's.
    authority.certificate("client", "leaf", Some("ca"));
    let mut renewed = tls_client(&closed, "m1", ca(), files(&authority, "client"));
    assert_eq!(acquire(&mut renewed, 1).await.key, lease.key);
    // Its own lease does not look like a stranger's to it.
    wait_for(&mut renewed, "a snapshot", snapshot).await;
    assert!(
        timeout(Duration::from_secs(2), async {
            loop {
                if let StoreEvent::OwnLeaseLost { reason } = renewed.next_event().await {
                    return reason;
                }
            }
        })
        .await
        .is_err()
    );
    // A node on etcd has an owner without a certificate; no client can take its lease.
    let mut node = etcd.store("m7");
    let node_lease = acquire(&mut node, 7).await;
    let mut thief = tls_client(&closed, "m7", ca(), files(&authority, "second"));
    assert_ne!(acquire(&mut thief, 7).await.key, node_lease.key);
}
