//! The fleet's lock, breaker and records in a real etcd.

mod hostile;
mod races;
mod turns;

use std::path::Path;
use std::time::{Duration, SystemTime};

use etcd_client::Client;
use selvage::appliance::fleet::etcd::{Admin, EtcdFleet};
use selvage::appliance::fleet::records::NodeState;
use selvage::appliance::fleet::{FailedVersion, Fleet, FleetError, Leave, Member, Phase, Rollout};
use selvage::cluster::lease::etcd::{Condition, PlainKeys};
use selvage::settings;

use crate::server::Server;

/// The keys of the group that these tests use.
const KEYS: &str = "/selvage/fleet/default/";

fn etcd(url: String) -> settings::Etcd {
    settings::Etcd {
        endpoints: vec![url],
        ..settings::Etcd::default()
    }
}

/// A machine: `node1` has the ID `id-1`.
fn member(number: usize) -> Member {
    Member {
        node: format!("node{number}"),
        id: format!("id-{number}"),
        version: "1.0".to_owned(),
        slot: Some("a".to_owned()),
    }
}

fn machine(server: &Server, number: usize) -> EtcdFleet {
    EtcdFleet::new(etcd(server.url()), "default", member(number)).unwrap()
}

fn admin(server: &Server) -> Admin {
    Admin::new(etcd(server.url()), "default").unwrap()
}

/// A whole machine, with its settings and files below a directory.
fn whole(server: &Server, number: usize, root: &Path) -> Fleet {
    let settings = settings::fleet::Fleet::default();
    let directory = root.join("update");
    Fleet::new(
        &settings,
        &etcd(server.url()),
        member(number),
        root,
        &directory,
    )
    .unwrap()
}

/// The IDs of those that hold the lock.
async fn holders(admin: &Admin) -> Vec<String> {
    let nodes = admin.status().await.unwrap().nodes;
    let held = nodes.into_iter().filter_map(|node| node.lock);
    held.map(|lock| lock.machine_id).collect()
}

/// Whom a machine waits for.
fn waits_for(leave: &Leave) -> &str {
    match leave {
        Leave::Later { until: None, why } => why,
        leave => panic!("not waiting for the lock: {leave:?}"),
    }
}

fn failure(version: &str) -> FailedVersion<'_> {
    FailedVersion {
        version,
        at: 17,
        reason: "docker does not answer",
    }
}

/// What locksmith's semaphore does, step by step: of its documentation, its tests, and of a report that a machine which
/// holds the lock was refused it (coreos/locksmith issue 58), where we differ.
#[tokio::test]
async fn the_lock_is_a_semaphore_as_locksmiths_but_its_holder_may_take_it_again() {
    let server = Server::start().await;
    let admin = admin(&server);
    let mut machines: Vec<_> = (0..4).map(|n| machine(&server, n)).collect();
    // "By default the reboot lock only allows a single holder."
    assert_eq!(machines[1].acquire("1.1").await.unwrap(), Leave::Now);
    let leave = machines[2].acquire("1.1").await.unwrap();
    assert_eq!(
        waits_for(&leave),
        "node1 has the lock (selvage fleet status)"
    );
    assert_eq!(machines[1].acquire("1.1").await.unwrap(), Leave::Now);
    assert_eq!(holders(&admin).await, ["id-1"]);

    // More may be allowed at any time.
    admin.set(Some(2), None).await.unwrap();
    assert_eq!(machines[2].acquire("1.1").await.unwrap(), Leave::Now);
    waits_for(&machines[3].acquire("1.1").await.unwrap());

    // And fewer than there are: nobody loses the lock, and nobody gets it until there is room.
    admin.set(Some(1), None).await.unwrap();
    assert_eq!(machines[2].acquire("1.1").await.unwrap(), Leave::Now);
    machines[1].release().await.unwrap();
    let leave = machines[3].acquire("1.1").await.unwrap();
    assert_eq!(
        waits_for(&leave),
        "node2 has the lock (selvage fleet status)"
    );

    // Who gives back what it does not have does no harm.
    machines[1].release().await.unwrap();
    machines[3].release().await.unwrap();
    assert_eq!(holders(&admin).await, ["id-2"]);
    machines[2].release().await.unwrap();
    assert_eq!(machines[3].acquire("1.1").await.unwrap(), Leave::Now);

    // An administrator ends the lock of a machine that is gone.
    let held = admin.unlock("node3").await.unwrap();
    assert_eq!(
        (held.machine_id.as_str(), held.state),
        ("id-3", NodeState::Draining)
    );
    assert_eq!(machines[1].acquire("1.1").await.unwrap(), Leave::Now);
    let error = admin.unlock("node3").await.unwrap_err().to_string();
    assert_eq!(error, "node3 does not hold the lock: held by node1 (id-1)");

    // No holders at all stop the fleet.
    machines[1].release().await.unwrap();
    admin.set(Some(0), None).await.unwrap();
    let leave = machines[1].acquire("1.1").await.unwrap();
    assert!(
        waits_for(&leave).starts_with("updates of the group are stopped"),
        "{leave:?}"
    );
}

#[tokio::test]
async fn a_holder_shows_what_it_is_doing_until_it_gives_the_lock_back() {
    let server = Server::start().await;
    let admin = admin(&server);
    let mut before = machine(&server, 1);
    before.is_steady().await.unwrap();
    assert_eq!(before.acquire("1.1").await.unwrap(), Leave::Now);
    before.tell("1.1", NodeState::Rebooting).await.unwrap();
    let status = admin.status().await.unwrap();
    let [node] = &status.nodes[..] else {
        panic!("{status:?}")
    };
    let since = node.lock.as_ref().unwrap().since;
    assert_eq!(
        (node.told.node.as_str(), node.told.version.as_str()),
        ("node1", "1.0")
    );
    assert_eq!(node.told.slot.as_deref(), Some("a"));
    assert_eq!(node.lock.as_ref().unwrap().version, "1.1");
    assert_eq!(node.lock.as_ref().unwrap().state, NodeState::Rebooting);

    // The reboot.
    let member = Member {
        version: "1.1".to_owned(),
        slot: Some("b".to_owned()),
        ..member(1)
    };
    let mut after = EtcdFleet::new(etcd(server.url()), "default", member).unwrap();
    after.is_trying().await.unwrap();
    let status = admin.status().await.unwrap();
    assert_eq!(status.nodes[0].told.state, NodeState::Trying);
    assert_eq!(status.nodes[0].told.slot.as_deref(), Some("b"));
    let lock = status.nodes[0].lock.as_ref().unwrap();
    assert_eq!(
        (lock.state, lock.since),
        (NodeState::Trying, since),
        "the time of a holder is its first"
    );
    after.is_steady().await.unwrap();
    let status = admin.status().await.unwrap();
    assert_eq!(status.nodes[0].lock, None);
    assert_eq!(status.nodes[0].told.state, NodeState::Steady);

    // Said once, it is not said again: etcd keeps every change.
    let revision = crate::revision(&mut server.client().await).await;
    after.is_steady().await.unwrap();
    assert_eq!(crate::revision(&mut server.client().await).await, revision);
}

#[tokio::test]
async fn a_version_that_fails_on_two_machines_is_stopped_until_it_is_reset() {
    let server = Server::start().await;
    let admin = admin(&server);
    let mut machines: Vec<_> = (0..4).map(|n| machine(&server, n)).collect();
    for _ in 0..3 {
        machines[1].report_failure(failure("1.1")).await.unwrap();
    }
    assert_eq!(
        machines[3].may_start("1.1").await.unwrap(),
        Leave::Now,
        "one machine counts once"
    );
    assert_eq!(machines[3].acquire("1.1").await.unwrap(), Leave::Now);
    machines[2].report_failure(failure("1.1")).await.unwrap();
    // Who has the lock and has not gone down yet stays up, and lets others go.
    for _ in 0..2 {
        let leave = machines[3].acquire("1.1").await.unwrap();
        let Leave::Never { why } = leave else {
            panic!("{leave:?}")
        };
        assert!(
            why.contains("node1, node2") && why.contains("docker does not answer"),
            "{why}"
        );
    }
    assert!(matches!(
        machines[3].may_start("1.1").await.unwrap(),
        Leave::Never { .. }
    ));
    assert_eq!(holders(&admin).await, [""; 0]);
    // Other versions are others, also such as begin like it.
    for other in ["1.10", "1.1.0", "1.2"] {
        assert_eq!(
            machines[3].may_start(other).await.unwrap(),
            Leave::Now,
            "{other}"
        );
    }
    let status = admin.status().await.unwrap();
    assert_eq!(status.failed.len(), 1);
    assert!(status.failed[0].stopped && status.failed[0].machines.len() == 2);

    admin.set(None, Some(3)).await.unwrap();
    assert_eq!(machines[3].may_start("1.1").await.unwrap(), Leave::Now);
    admin.set(None, Some(2)).await.unwrap();
    assert_eq!(admin.reset("1.1").await.unwrap(), 2);
    assert_eq!(machines[3].may_start("1.1").await.unwrap(), Leave::Now);
    assert_eq!(admin.reset("1.1").await.unwrap(), 0);
    let error = admin.reset("../1.1").await.unwrap_err();
    assert!(matches!(error, FleetError::BadVersion(_)), "{error}");
}

#[tokio::test]
async fn a_failure_is_told_before_the_lock_is_given_back_and_told_once() {
    let server = Server::start().await;
    let admin = admin(&server);
    let root = tempfile::tempdir().unwrap();
    assert_eq!(
        whole(&server, 1, root.path()).acquire("1.1").await.unwrap(),
        Leave::Now
    );
    // It has fallen back. A failure whose report fails keeps the lock, so that nobody else follows.
    let bad = FailedVersion {
        version: "1/1",
        ..failure("")
    };
    let mut machine = whole(&server, 1, root.path());
    machine
        .settle(Phase::Steady, &[failure("1.1"), bad])
        .await
        .unwrap_err();
    assert_eq!(holders(&admin).await, ["id-1"]);
    machine
        .settle(Phase::Steady, &[failure("1.1")])
        .await
        .unwrap();
    assert_eq!(holders(&admin).await, [""; 0]);
    assert_eq!(admin.reset("1.1").await.unwrap(), 1);
    // The machine remembers its failed versions for good, and says so in every boot. The reset lasts all the same.
    whole(&server, 1, root.path())
        .settle(Phase::Steady, &[failure("1.1")])
        .await
        .unwrap();
    assert_eq!(admin.status().await.unwrap().failed, []);
}

#[tokio::test]
async fn who_went_down_keeps_the_lock_until_it_is_judged_and_who_only_crashed_gives_it_back() {
    let server = Server::start().await;
    let admin = admin(&server);
    let root = tempfile::tempdir().unwrap();
    let mut machine = whole(&server, 1, root.path());
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    // It crashed before it was drained; its window may have closed meanwhile.
    machine = whole(&server, 1, root.path());
    machine.settle(Phase::Pending, &[]).await.unwrap();
    assert_eq!(holders(&admin).await, [""; 0]);
    // It went down, and has fallen back.
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    machine.drain("1.1").await.unwrap();
    machine = whole(&server, 1, root.path());
    machine.settle(Phase::Pending, &[]).await.unwrap();
    assert_eq!(holders(&admin).await, ["id-1"]);
    machine
        .settle(Phase::Steady, &[failure("1.1")])
        .await
        .unwrap();
    assert_eq!(holders(&admin).await, [""; 0]);
    assert_eq!(admin.status().await.unwrap().failed.len(), 1);
}

#[tokio::test]
async fn a_wave_that_has_not_come_is_waited_for_and_then_the_breaker_is_asked() {
    let server = Server::start().await;
    let root = tempfile::tempdir().unwrap();
    let mut machine = whole(&server, 1, root.path());
    let now = SystemTime::now();
    let rollout = |date| Rollout {
        version: "1.1",
        date,
        over: Duration::ZERO,
    };
    let tomorrow = now + Duration::from_secs(86_400);
    let leave = machine.may_start(rollout(tomorrow), now).await.unwrap();
    assert!(
        matches!(leave, Leave::Later { until: Some(until), .. } if until == tomorrow),
        "{leave:?}"
    );
    assert_eq!(
        machine.may_start(rollout(now), now).await.unwrap(),
        Leave::Now
    );
    admin(&server).set(None, Some(1)).await.unwrap();
    super::fleet::machine(&server, 2)
        .report_failure(failure("1.1"))
        .await
        .unwrap();
    let leave = machine.may_start(rollout(now), now).await.unwrap();
    assert!(matches!(leave, Leave::Never { .. }), "{leave:?}");
}

#[tokio::test]
async fn a_drain_that_fails_gives_the_lock_back_and_so_does_a_lock_that_was_ended() {
    let server = Server::start().await;
    let admin = admin(&server);
    let root = tempfile::tempdir().unwrap();
    let mut machine = whole(&server, 1, root.path());
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    machine.drain("1.1").await.unwrap();
    let status = admin.status().await.unwrap();
    assert_eq!(
        status.nodes[0].lock.as_ref().unwrap().state,
        NodeState::Rebooting
    );

    // Hooks that cannot be read could be any.
    std::fs::create_dir_all(root.path().join("etc/selvage")).unwrap();
    std::fs::write(root.path().join("etc/selvage/drain.d"), "").unwrap();
    let error = machine.drain("1.1").await.unwrap_err();
    assert!(matches!(error, FleetError::Drain(_)), "{error}");
    assert_eq!(holders(&admin).await, [""; 0]);

    std::fs::remove_file(root.path().join("etc/selvage/drain.d")).unwrap();
    assert_eq!(machine.acquire("1.1").await.unwrap(), Leave::Now);
    admin.unlock("id-1").await.unwrap();
    let error = machine.drain("1.1").await.unwrap_err();
    assert!(matches!(error, FleetError::Lost), "{error}");
    let status = admin.status().await.unwrap();
    assert_eq!(status.nodes[0].told.state, NodeState::Steady);
}

#[tokio::test]
async fn conditions_are_what_they_say() {
    let server = Server::start().await;
    let keys = PlainKeys::new(etcd(server.url())).unwrap();
    assert!(keys.put("/f/a", 0, "1", &[]).await.unwrap());
    let list = keys.list("/f/").await.unwrap();
    let none_since = Condition::NoneCreatedSince("/f/", list.revision);
    // A change and a deletion create nothing; nor does a key beside the folder.
    let a = list.keys[0].modified;
    assert!(keys.put("/f/a", a, "2", &[none_since]).await.unwrap());
    assert!(keys.put("/f0", 0, "1", &[]).await.unwrap());
    assert!(keys.put("/f", 0, "1", &[]).await.unwrap());
    let a = keys.read("/f/a").await.unwrap().unwrap();
    assert!(keys.delete("/f/a", a.modified).await.unwrap());
    assert!(keys.put("/f/b", 0, "1", &[none_since]).await.unwrap());
    // Now there is one.
    assert!(!keys.put("/f/c", 0, "1", &[none_since]).await.unwrap());
    assert_eq!(keys.read("/f/c").await.unwrap(), None);
    // An empty folder.
    let empty = Condition::NoneCreatedSince("/g/", list.revision);
    assert!(keys.put("/h", 0, "1", &[empty]).await.unwrap());
    let h = keys.read("/h").await.unwrap().unwrap().modified;
    assert!(
        !keys
            .put("/i", 0, "1", &[Condition::Unchanged("/h", 0)])
            .await
            .unwrap()
    );
    assert!(
        !keys
            .put("/i", 0, "1", &[Condition::Unchanged("/h", h - 1)])
            .await
            .unwrap()
    );
    assert!(
        keys.put("/i", 0, "1", &[Condition::Unchanged("/h", h)])
            .await
            .unwrap()
    );
    assert!(!keys.put("/i", 0, "2", &[]).await.unwrap());
    assert!(!keys.delete("/i", h).await.unwrap());
}

/// Writes as anybody could.
async fn put(client: &mut Client, name: &str, value: impl Into<Vec<u8>>) {
    client
        .put(format!("{KEYS}{name}"), value, None)
        .await
        .unwrap();
}
