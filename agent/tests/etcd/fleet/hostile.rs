//! Keys and values that no machine of ours has written.

use super::*;

#[tokio::test]
async fn whatever_others_write_nothing_panics_and_the_lock_goes_on() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let admin = admin(&server);
    for name in [
        "holders/",
        "holders/a/b",
        "holders/\u{1b}[2J",
        "nodes/x y",
        "nodes//",
        "failed/1.1/",
        "failed/1.1",
        "failed//id-9",
        "failed/1 1/id-9",
        "other",
    ] {
        put(&mut client, name, "{}").await;
    }
    put(&mut client, "config", r#"{"holders":"many"}"#).await;
    // A name that is no text can be read, but not be written or deleted by its text.
    for folder in ["holders/", "failed/1.1/"] {
        let folder = format!("/selvage/fleet/default/{folder}");
        let name = [folder.as_bytes(), &[0xff, 0xfe]].concat();
        client.put(name, "x", None).await.unwrap();
    }
    put(&mut client, "nodes/id-7", vec![0xff, b'{', 0]).await;
    put(&mut client, "nodes/id-8", r#"{"node":"n\u001b[31m\u202e","machine_id":"id-1","version":"1","slot":"\u0007","state":"dancing","at":18446744073709551615}"#).await;
    put(&mut client, "failed/1.1/id-9", "[[[[").await;

    // None of these names is a machine's, so none of them holds the lock; and a config that cannot be read is the default.
    let mut machine = machine(&server, 1);
    assert_eq!(machine.may_start("1.1").await.unwrap(), Leave::Now);
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    let status = admin.status().await.unwrap();
    assert_eq!((status.config.holders, status.config.breaker), (1, 2));
    let text = serde_json::to_string(&status).unwrap();
    assert!(
        !text.contains("\\u001b") && !text.contains('\u{202e}') && !text.contains("\\u0007"),
        "{text}"
    );
    let ids: Vec<&str> = status
        .nodes
        .iter()
        .map(|node| node.told.machine_id.as_str())
        .collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(
        status
            .nodes
            .iter()
            .all(|node| node.lock.is_some() == (node.told.machine_id == "id-1")),
        "{status:?}"
    );
    machine.release().await.unwrap();

    // A machine's key with a value that cannot be read holds the lock: the careful choice. By its ID it can be unlocked.
    put(&mut client, "holders/id-2", "\u{1b}[2J").await;
    let leave = machine.acquire("1.1").await.unwrap();
    assert!(
        waits_for(&leave).starts_with("unreadable has the lock"),
        "{leave:?}"
    );
    assert_eq!(admin.unlock("id-2").await.unwrap().machine_id, "id-2");
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);

    // A failure that cannot be read is one, too.
    put(&mut client, "failed/1.1/id-8", "").await;
    assert!(matches!(
        machine.acquire("1.1").await.unwrap(),
        Leave::Never { .. }
    ));
    admin.reset("1.1").await.unwrap();

    // A bad config is replaced by what an administrator sets.
    admin.set(Some(2), None).await.unwrap();
    let status = admin.status().await.unwrap();
    assert_eq!((status.config.holders, status.config.breaker), (2, 2));
}

#[tokio::test]
async fn own_values_that_others_spoilt_are_written_anew() {
    let server = Server::start().await;
    let mut client = server.client().await;
    put(&mut client, "holders/id-1", "not ours").await;
    put(&mut client, "nodes/id-1", "not ours").await;
    put(&mut client, "failed/1.1/id-1", "not ours").await;
    let mut machine = machine(&server, 1);
    machine.report_failure(failure("1.1")).await.unwrap();
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    let status = admin(&server).status().await.unwrap();
    assert_eq!(status.nodes[0].lock.as_ref().unwrap().node, "node1");
    assert_eq!(status.nodes[0].told.state, NodeState::Draining);
    assert_eq!(
        status.failed[0].machines[0].reason,
        "docker does not answer"
    );
    machine.release().await.unwrap();
}

#[tokio::test]
async fn of_two_machines_of_one_name_the_id_says_which_is_unlocked() {
    let server = Server::start().await;
    let admin = admin(&server);
    admin.set(Some(3), None).await.unwrap();
    for number in [1, 2] {
        let member = Member {
            node: "twin".to_owned(),
            ..member(number)
        };
        let mut machine = EtcdFleet::new(etcd(server.url()), "default", member).unwrap();
        assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    }
    let error = admin.unlock("twin").await.unwrap_err().to_string();
    assert!(error.contains("id-1, id-2"), "{error}");
    assert_eq!(holders(&admin).await, ["id-1", "id-2"]);
    admin.unlock("id-2").await.unwrap();
    admin.unlock("twin").await.unwrap();
    assert_eq!(holders(&admin).await, [""; 0]);
}

#[tokio::test]
async fn ids_that_would_be_other_keys_are_refused() {
    for id in ["", "a/b", "../config", "a b", "\u{e9}"] {
        let member = Member {
            id: id.to_owned(),
            ..member(1)
        };
        let error =
            EtcdFleet::new(etcd("http://127.0.0.1:1".to_owned()), "default", member).unwrap_err();
        assert!(matches!(error, FleetError::BadId(_)), "{id:?}: {error}");
    }
    let mut machine =
        EtcdFleet::new(etcd("http://127.0.0.1:1".to_owned()), "default", member(1)).unwrap();
    let error = machine.acquire("1/1").await.unwrap_err();
    assert!(matches!(error, FleetError::BadVersion(_)), "{error}");
}
