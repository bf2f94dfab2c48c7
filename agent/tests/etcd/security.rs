//! TLS, client certificates, and users with passwords.

use std::path::Path;

use etcd_client::{Permission, PermissionType};
use selvage::settings::Secret;

use crate::authority::Authority;
use crate::server::{Server, StoreSettings};
use crate::*;

/// Waits until the server answers.
async fn network_config_error(store: &mut EtcdStore) -> StoreError {
    let asking = async {
        loop {
            let error = store.network_config().await.unwrap_err();
            if !error.to_string().contains("connection refused") {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the server answers")
}

fn with_ca(settings: &mut StoreSettings, ca: &Path) {
    settings.cafile = Some(ca.to_owned());
}

#[tokio::test]
async fn a_ca_file_is_enough_for_tls() {
    let authority = Authority::new();
    let server = Server::start_with_tls(authority.server_args());
    let ca = authority.path("ca.pem");
    let mut store = server.store_with("machine-a", |s| with_ca(s, &ca));
    let error = network_config_error(&mut store).await;
    assert!(
        matches!(error, StoreError::NoNetworkConfig { .. }),
        "{error}"
    );
    acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;

    // Without a scheme, a CA file means TLS.
    let bare = server.url().replace("https://", "");
    let mut store = server.store_with("machine-a", |s| {
        with_ca(s, &ca);
        s.endpoints = vec![bare];
    });
    acquire(&mut store, "10.0.0.1").await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_trusted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::start_with_tls(theirs.server_args());
    let mut store = server.store_with("machine-a", |s| with_ca(s, &ours.path("ca.pem")));
    let error = network_config_error(&mut store).await.to_string();
    let expected = format!("etcd at {}: invalid peer certificate", server.url());
    assert!(error.starts_with(&expected), "{error}");
    // Nor is it with the system's authorities.
    let error = network_config_error(&mut server.store("machine-a")).await;
    assert_eq!(error.fault(), Fault::Tls, "{error}");
    let error = error.to_string();
    assert!(error.starts_with(&expected), "{error}");
}

#[tokio::test]
async fn client_certificates_are_shown_to_servers_that_want_them() {
    let authority = Authority::new();
    let ca = authority.path("ca.pem");
    let mut args = authority.server_args();
    args.extend([
        format!("--trusted-ca-file={}", ca.display()),
        "--client-cert-auth".to_owned(),
    ]);
    let server = Server::start_with_tls(args);
    let mut store = server.store_with("machine-a", |s| {
        with_ca(s, &ca);
        s.certfile = Some(authority.path("client.pem"));
        s.keyfile = Some(authority.path("client.key"));
    });
    let error = network_config_error(&mut store).await;
    assert!(
        matches!(error, StoreError::NoNetworkConfig { .. }),
        "{error}"
    );
    let mut store = server.store_with("machine-a", |s| with_ca(s, &ca));
    let error = network_config_error(&mut store).await;
    assert!(unreachable_error(&error), "{error}");
}

async fn told_unreachable(store: &mut EtcdStore, fits: impl Fn(&StoreTrouble) -> bool) {
    wait_for(store, "report of what is wrong", |event| match event {
        StoreEvent::Unreachable { error } => fits(&error).then_some(()),
        StoreEvent::Peers(LeaseEvent::Changes { removed, .. }) if !removed.is_empty() => {
            panic!("{removed:?} were removed")
        }
        _ => None,
    })
    .await;
}

async fn told_reachable(store: &mut EtcdStore) {
    wait_for(store, "report of reachability", |event| {
        matches!(event, StoreEvent::Reachable { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn expired_certificates_are_named_and_new_ones_are_taken_up_without_a_restart() {
    let authority = Authority::new();
    let ca = authority.path("ca.pem");
    let mut args = authority.server_args();
    args.extend([
        format!("--trusted-ca-file={}", ca.display()),
        "--client-cert-auth".to_owned(),
    ]);
    let mut server = Server::start_with_tls(args);
    let mut store = server.store_with("machine-a", |s| {
        with_ca(s, &ca);
        s.certfile = Some(authority.path("client.pem"));
        s.keyfile = Some(authority.path("client.key"));
    });
    network_config_error(&mut store).await;
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    told_reachable(&mut store).await;

    // Connections outlive the certificates that they were made with, so the server has to go first. Either side reads its
    // files for each connection.
    for name in ["server", "client"] {
        authority.shorten(name, -1);
    }
    server.down();
    server.up_without_waiting();
    told_unreachable(&mut store, |error| {
        error.text.contains("certificate expired") && error.fault == Fault::Tls
    })
    .await;
    authority.certificate("server", "leaf", Some("ca"));
    server.down();
    server.up_without_waiting();
    // What the server thinks of ours comes after the handshake, as a broken connection.
    told_unreachable(&mut store, |error| {
        !error.text.contains("certificate expired") && !error.text.contains("connection refused")
    })
    .await;
    authority.certificate("client", "leaf", Some("ca"));
    told_reachable(&mut store).await;
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    store.update(&changed).await.unwrap();
    assert!(change_of(&mut store, &own.key.name()).await.is_some());
}

#[tokio::test]
async fn a_user_with_rights_to_the_prefix_only_is_enough() {
    const PASSWORD: &str = "correct horse";
    let mut server = Server::start().await;
    let mut client = server.client().await;
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("selvage").await.unwrap();
    let mut permission = Permission::new(PermissionType::Readwrite, "/coreos.com/network/");
    permission = permission.with_prefix();
    client
        .role_grant_permission("selvage", permission)
        .await
        .unwrap();
    client.user_add("agent", PASSWORD, None).await.unwrap();
    client.user_grant_role("agent", "selvage").await.unwrap();
    client.auth_enable().await.unwrap();

    let with_password = |password: &str| {
        let password = Secret::new(password.to_owned());
        server.store_with("machine-a", |s| {
            s.username = Some("agent".to_owned());
            s.password = Some(password);
            // Renewed soon, and not over before the server is back.
            s.lease_ttl = Duration::from_secs(12);
        })
    };
    let error = with_password("wrong").network_config().await.unwrap_err();
    assert_eq!(error.fault(), Fault::Login, "{error}");
    let error = error.to_string();
    assert!(
        error.ends_with("authentication failed, invalid user ID or password"),
        "{error}"
    );
    let error = server
        .store("machine-a")
        .network_config()
        .await
        .unwrap_err();
    assert_eq!(error.fault(), Fault::Login, "{error}");
    let error = error.to_string();
    assert!(error.contains("user name is empty"), "{error}");

    let mut store = with_password(PASSWORD);
    assert!(!format!("{store:?}").contains(PASSWORD));
    let own = acquire(&mut store, "10.0.0.1").await.unwrap();
    snapshot(&mut store).await;
    wait_for(&mut store, "renewal", |event| {
        matches!(event, StoreEvent::Renewed { .. }).then_some(())
    })
    .await;

    // Tokens do not survive the server.
    server.down();
    server.up().await;
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    store.update(&changed).await.unwrap();
    wait_for(&mut store, "own update", |event| match event {
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

/// A role that was made for flannel, with rights to its two keys: it cannot ask, nor be asked.
#[tokio::test]
async fn a_user_with_rights_to_config_and_leases_alone_gets_by_with_what_it_remembers() {
    const PASSWORD: &str = "correct horse";
    let server = Server::start().await;
    let mut client = server.client().await;
    client.user_add("root", "secret", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("flannel").await.unwrap();
    let config = Permission::new(PermissionType::Readwrite, "/coreos.com/network/config");
    let leases = Permission::new(PermissionType::Readwrite, SUBNETS).with_prefix();
    for permission in [config, leases] {
        client
            .role_grant_permission("flannel", permission)
            .await
            .unwrap();
    }
    client.user_add("agent", PASSWORD, None).await.unwrap();
    client.user_grant_role("agent", "flannel").await.unwrap();
    client.auth_enable().await.unwrap();
    let store = || {
        server.store_with("machine-a", |s| {
            s.username = Some("agent".to_owned());
            s.password = Some(Secret::new(PASSWORD.to_owned()));
        })
    };
    let mut first = store();
    let own = acquire(&mut first, "10.0.0.1").await.unwrap();
    // The watch of the leases stands, though that of the questions was refused.
    let mut changed = attrs("10.0.0.1");
    changed.backend_data = None;
    first.update(&changed).await.unwrap();
    assert!(change_of(&mut first, &own.key.name()).await.is_some());
    drop(first);

    let remembered = store()
        .acquire(&small_network(), &attrs("10.0.0.7"), Some(own.key))
        .await
        .unwrap();
    assert_eq!(remembered.key, own.key);
    let forgotten = acquire(&mut store(), "10.0.0.8").await.unwrap();
    assert_ne!(forgotten.key, own.key);
}
