//! What happens between a machine's look at the lock and its request for it.

use super::*;
use crate::dice::Dice;
use crate::proxy::{Faults, Proxy};

/// How long a request is held up: enough for what happens meanwhile, which begins after a fifth of it.
const HELD_UP: Duration = Duration::from_secs(1);

/// A machine behind a proxy that holds up what `slow` names.
async fn behind(server: &Server, slow: Option<&'static str>) -> (EtcdFleet, Proxy) {
    let faults = Faults {
        most: 0,
        silence: false,
        slow: slow.map(|call| (call, HELD_UP)),
    };
    let proxy = Proxy::start(server.address(), Dice(1), faults).await;
    let fleet = EtcdFleet::new(etcd(proxy.url()), "default", member(1)).unwrap();
    (fleet, proxy)
}

/// Asks for the lock, and does something between the look and the request.
async fn meanwhile(machine: &mut EtcdFleet, other: impl Future<Output = ()>) -> Leave {
    let other = async {
        tokio::time::sleep(HELD_UP / 5).await;
        other.await;
    };
    let (leave, ()) = tokio::join!(machine.acquire("1.1"), other);
    leave.unwrap()
}

#[tokio::test]
async fn who_counted_before_another_machine_took_the_lock_counts_again() {
    let server = Server::start().await;
    let (mut machine, _proxy) = behind(&server, Some("Txn")).await;
    let mut faster = super::machine(&server, 2);
    let leave = meanwhile(&mut machine, async {
        assert_eq!(faster.acquire("1.1").await.unwrap(), Leave::Now);
    })
    .await;
    assert_eq!(
        waits_for(&leave),
        "node2 has the lock (selvage fleet status)"
    );
    assert_eq!(holders(&admin(&server)).await, ["id-2"]);
}

#[tokio::test]
async fn who_counted_before_updates_were_stopped_does_not_start() {
    let server = Server::start().await;
    let (mut machine, _proxy) = behind(&server, Some("Txn")).await;
    let admin = admin(&server);
    let leave = meanwhile(&mut machine, async {
        admin.set(Some(0), None).await.unwrap();
    })
    .await;
    assert!(
        waits_for(&leave).starts_with("updates of the group are stopped"),
        "{leave:?}"
    );
    assert_eq!(holders(&admin).await, [""; 0]);
}

#[tokio::test]
async fn a_request_that_comes_after_the_lock_was_given_back_takes_nothing() {
    let server = Server::start().await;
    let (mut machine, proxy) = behind(&server, None).await;
    proxy.make_late("Txn", HELD_UP);
    // The first request is on its way for long; a second one takes the lock.
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    machine.release().await.unwrap();
    // Now the first one arrives.
    proxy.calm().await;
    assert_eq!(
        holders(&admin(&server)).await,
        [""; 0],
        "held by a machine that does not know"
    );
}
