//! The worker, against a charon of our own that has no network and no kernel.

mod charon;

use std::sync::Arc;

use proptest::prelude::*;
use tokio::time::timeout;

use self::charon::{Charon, State};
use super::super::names;
use super::super::names::tests::wanted;
use super::super::vici::{Packet, Section};
use super::pass::Passed;
use super::*;
use crate::settings::Secret;

const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 193, 37, 216);

const SALT: Salt = Salt([7; 16]);

fn networks() -> Vec<IpNet> {
    vec!["172.17.0.0/16".parse().unwrap()]
}

fn set(peer: Ipv4Addr, connection: &Connection) -> Change {
    Change::Set {
        key: Key::Connection(peer),
        object: Object::Connection(Box::new(connection.clone())),
        was: None,
    }
}

fn del(peer: Ipv4Addr) -> Change {
    Change::Del {
        key: Key::Connection(peer),
        was: Object::Odd,
    }
}

/// Waits for a report whose trouble fits.
async fn until_trouble(worker: &Worker, what: &str, fits: impl Fn(Option<&str>) -> bool) {
    let trouble = || worker.report().trouble.as_ref().map(ToString::to_string);
    let wait = async {
        while !fits(trouble().as_deref()) {
            worker.changed().await;
        }
    };
    if timeout(Duration::from_secs(20), wait).await.is_err() {
        panic!("{what}: {:?}", trouble());
    }
}

/// charon's name for the secret of a connection with [`REMOTE`].
fn secret(connection: &Connection) -> String {
    names::secret(REMOTE, connection, &SALT)
}

fn name() -> String {
    names::connection(REMOTE, &wanted())
}

#[tokio::test]
async fn what_is_wanted_is_loaded_and_begun_and_goes_with_the_peer() {
    let mut charon = Charon::new();
    charon.start();
    let worker = charon.worker();
    worker.apply(&[set(REMOTE, &wanted())]);
    charon
        .until("a tunnel", |state| state.associations.contains_key(&name()))
        .await;
    assert_eq!(
        charon.state().secrets[&secret(&wanted())],
        "swordfish".repeat(11)
    );
    assert_eq!(worker.observe().len(), 1);
    assert!(charon.directory.path().join(REQUEST).exists());
    worker.apply(&[del(REMOTE)]);
    let is_empty = |state: &State| {
        state.connections.is_empty() && state.secrets.is_empty() && state.associations.is_empty()
    };
    charon.until("nothing left", is_empty).await;
    assert!(worker.observe().is_empty());
}

#[tokio::test]
async fn a_charon_that_comes_late_or_again_is_told_everything() {
    let mut charon = Charon::new();
    let worker = charon.worker();
    worker.apply(&[set(REMOTE, &wanted())]);
    sleep(Duration::from_millis(300)).await;
    // It may still start.
    assert!(worker.report().trouble.is_none());
    let is_absent = |trouble: Option<&str>| trouble.is_some_and(|text| text.contains("at /"));
    until_trouble(&worker, "a charon that is not there", is_absent).await;
    for _ in 0..2 {
        charon.start();
        charon
            .until("a tunnel", |state| state.associations.contains_key(&name()))
            .await;
        until_trouble(&worker, "no trouble", |trouble| trouble.is_none()).await;
        charon.kill();
        // At once, and it stays so: this one was there before.
        until_trouble(&worker, "a charon that ended", |trouble| trouble.is_some()).await;
        sleep(Duration::from_millis(500)).await;
        assert!(worker.report().trouble.is_some());
    }
}

#[tokio::test]
async fn a_tunnel_that_somebody_ended_is_begun_again() {
    let mut charon = Charon::new();
    charon.start();
    let worker = charon.worker();
    worker.apply(&[set(REMOTE, &wanted())]);
    let is_up = |state: &State| state.associations.contains_key(&name());
    charon.until("a tunnel", is_up).await;
    charon.state().associations.clear();
    charon.until("the tunnel again", is_up).await;
}

#[tokio::test]
async fn the_node_with_the_higher_address_leaves_it_to_the_other_to_begin() {
    let mut charon = Charon::new();
    charon.start();
    let worker = charon.worker();
    let remote = Ipv4Addr::new(10, 193, 37, 1);
    let start = Instant::now();
    worker.apply(&[set(remote, &wanted())]);
    charon
        .until("a tunnel all the same", |state| {
            !state.associations.is_empty()
        })
        .await;
    assert!(start.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn a_new_secret_is_loaded_and_both_prove_that_they_have_it() {
    let mut charon = Charon::new();
    charon.start();
    let worker = charon.worker();
    worker.apply(&[set(REMOTE, &wanted())]);
    charon
        .until("a tunnel", |state| !state.associations.is_empty())
        .await;
    let renewed = Connection {
        psk: Secret::new("p".repeat(96)),
        ..wanted()
    };
    worker.apply(&[set(REMOTE, &renewed)]);
    let order = format!("rekey {}", name());
    let id = secret(&renewed);
    charon
        .until("proof", |state| {
            state.orders.contains(&order) && state.secrets.keys().eq([&id])
        })
        .await;
    let state = charon.state();
    let secrets: Vec<_> = state.secrets.iter().collect();
    assert_eq!(secrets, [(&id, &"p".repeat(96))]);
    // The tunnel stays meanwhile.
    assert!(
        !state
            .orders
            .iter()
            .any(|order| order.starts_with("terminate"))
    );
}

#[tokio::test]
async fn what_an_earlier_run_left_goes_and_what_others_have_stays() {
    let mut charon = Charon::new();
    let old = "10.193.37.153-172.17.96.0/24-172.17.1.0/24-10.193.37.5";
    for name in [old, "office"] {
        let mut state = charon.state();
        state
            .connections
            .insert(name.to_owned(), Section::default());
        let is_up = "ESTABLISHED".to_owned();
        state.associations.insert(name.to_owned(), is_up);
    }
    charon.start();
    assert!(remove_all(&charon.socket(), &networks()).await.unwrap());
    let state = charon.state();
    let left: Vec<_> = state.connections.keys().collect();
    assert_eq!(left, ["office"]);
    assert_eq!(state.associations.keys().collect::<Vec<_>>(), ["office"]);
}

/// The agent lists its host's objects and its peers before it says what it wants, and meanwhile the worker waits.
#[tokio::test]
async fn an_earlier_runs_tunnels_stay_until_it_is_known_what_is_wanted() {
    let mut charon = Charon::new();
    let gone = "10.193.37.153-172.17.96.0/24-172.17.1.0/24-10.193.37.5";
    for name in [name().as_str(), gone] {
        let mut state = charon.state();
        state
            .connections
            .insert(name.to_owned(), Section::default());
        let is_up = "ESTABLISHED".to_owned();
        state.associations.insert(name.to_owned(), is_up);
    }
    charon.start();
    let worker = charon.worker();
    sleep(Duration::from_millis(500)).await;
    assert!(charon.state().orders.is_empty(), "{:?}", charon.state());
    worker.apply(&[set(REMOTE, &wanted())]);
    let is_gone = |state: &State| !state.associations.contains_key(gone);
    charon.until("the end of what is not wanted", is_gone).await;
    sleep(Duration::from_millis(300)).await;
    let state = charon.state();
    let ends = |order: &&String| order.starts_with("unload") || order.starts_with("terminate");
    let ended: Vec<_> = state.orders.iter().filter(ends).collect();
    assert!(ended.iter().all(|order| order.contains(gone)), "{ended:?}");
    assert!(state.associations.contains_key(&name()));
}

#[tokio::test]
async fn an_agent_that_wants_no_connection_clears_what_an_earlier_run_left() {
    let mut charon = Charon::new();
    charon
        .state()
        .connections
        .insert(name(), Section::default());
    charon.start();
    let worker = charon.worker();
    worker.apply(&[]);
    charon
        .until("nothing left", |state| state.connections.is_empty())
        .await;
    assert!(worker.observe().is_empty());
}

#[tokio::test]
async fn what_charon_refuses_is_reported_in_its_words_and_hinders_no_other() {
    let mut charon = Charon::new();
    charon.state().refuses = Some("load-conn");
    charon.start();
    let worker = charon.worker();
    worker.apply(&[set(REMOTE, &wanted())]);
    let expected = format!(
        "strongSwan's charon refuses load-conn of {}: no such luck",
        name()
    );
    until_trouble(&worker, "a refusal", |trouble| trouble == Some(&expected)).await;
    charon.state().refuses = None;
    charon
        .until("a tunnel", |state| !state.associations.is_empty())
        .await;
    until_trouble(&worker, "no trouble", |trouble| trouble.is_none()).await;
}

/// The sessions of ten minutes, with a pass every two seconds as the worker makes them.
async fn ten_minutes(session: &mut Session, wanted: &Wanted, start: Instant) -> Passed {
    let mut passed = Passed::default();
    for second in (0..600).step_by(2) {
        let now = start + Duration::from_secs(second);
        passed = session.pass(wanted, &networks(), None, now).await.unwrap();
    }
    passed
}

#[tokio::test]
async fn what_charon_refuses_is_tried_again_ever_later_and_reported_meanwhile() {
    for command in ["load-shared", "load-conn", "initiate"] {
        let mut charon = Charon::new();
        charon.state().refuses = Some(command);
        charon.start();
        let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
        let mut wanted = Wanted::from([(REMOTE, wanted())]);
        let start = Instant::now();
        let passed = ten_minutes(&mut session, &wanted, start).await;
        let refusals = charon.state().refusals;
        // At 0, 1, 3, 7, 15, 31, 63 seconds or somewhat earlier, then about every minute.
        assert!((8..=25).contains(&refusals), "{command}: {refusals}");
        // What charon does not take is told in between, too.
        assert!(passed.refusal.is_some() || command == "initiate");
        // Another connection is tried at once.
        if let Some(connection) = wanted.get_mut(&REMOTE) {
            connection.esp_proposal = "aes256gcm16-ecp384".to_owned();
        }
        charon.state().refuses = None;
        let now = start + Duration::from_secs(600);
        let passed = session.pass(&wanted, &networks(), None, now).await.unwrap();
        assert!(passed.refusal.is_none(), "{command}");
        assert!(
            charon.state().associations.contains_key(&name()),
            "{command}"
        );
    }
}

#[tokio::test]
async fn of_a_connection_that_charon_refused_no_secret_is_left() {
    let mut charon = Charon::new();
    charon.state().refuses = Some("load-conn");
    charon.start();
    let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
    let now = Instant::now();
    let wanted = Wanted::from([(REMOTE, wanted())]);
    session.pass(&wanted, &networks(), None, now).await.unwrap();
    assert_eq!(charon.state().secrets.len(), 1);
    let nothing = Wanted::new();
    session
        .pass(&nothing, &networks(), None, now)
        .await
        .unwrap();
    assert!(charon.state().secrets.is_empty());
}

#[tokio::test]
async fn proof_of_a_new_secret_is_asked_for_until_the_peer_has_it_too() {
    let mut charon = Charon::new();
    charon.start();
    let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
    let mut wanted = Wanted::from([(REMOTE, wanted())]);
    let start = Instant::now();
    session
        .pass(&wanted, &networks(), None, start)
        .await
        .unwrap();
    if let Some(connection) = wanted.get_mut(&REMOTE) {
        connection.psk = Secret::new("p".repeat(96));
    }
    charon.state().unproved = 4;
    ten_minutes(&mut session, &wanted, start).await;
    let state = charon.state();
    let count = |what: &str| {
        let orders = state.orders.iter().filter(|order| order.starts_with(what));
        orders.count()
    };
    assert_eq!((count("rekey"), state.renewed[&name()]), (5, 1));
    assert_eq!((count("terminate"), count("initiate")), (0, 1));
}

/// The peer gets it later, and meanwhile this node's agent is restarted.
#[tokio::test]
async fn proof_of_a_new_secret_is_asked_for_by_the_next_run_too() {
    let mut charon = Charon::new();
    charon.start();
    let mut wanted = Wanted::from([(REMOTE, wanted())]);
    let start = Instant::now();
    charon.state().unproved = u32::MAX;
    for psk in [None, Some("p"), None, None] {
        if let (Some(psk), Some(connection)) = (psk, wanted.get_mut(&REMOTE)) {
            connection.psk = Secret::new(psk.repeat(96));
        }
        let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
        for second in [0, 2] {
            let now = start + Duration::from_secs(second);
            session.pass(&wanted, &networks(), None, now).await.unwrap();
        }
    }
    assert_eq!(charon.state().renewed.get(&name()), None);
    let id = names::unproved(&secret(&wanted[&REMOTE]));
    assert_eq!(charon.state().secrets.keys().collect::<Vec<_>>(), [&id]);
    charon.state().unproved = 0;
    let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
    ten_minutes(&mut session, &wanted, start).await;
    let state = charon.state();
    assert_eq!(state.renewed[&name()], 1);
    let id = secret(&wanted[&REMOTE]);
    assert_eq!(state.secrets.keys().collect::<Vec<_>>(), [&id]);
}

/// The agent was stopped or killed meanwhile.
#[tokio::test]
async fn a_secret_that_changed_between_two_runs_is_proved_too() {
    let mut charon = Charon::new();
    charon.start();
    let mut wanted = Wanted::from([(REMOTE, wanted())]);
    let now = Instant::now();
    for (psk, renewals) in [
        (None, 0),
        (None, 0),
        (Some("p"), 1),
        (None, 0),
        (Some("q"), 1),
    ] {
        if let (Some(psk), Some(connection)) = (psk, wanted.get_mut(&REMOTE)) {
            connection.psk = Secret::new(psk.repeat(96));
        }
        charon.state().orders.clear();
        let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
        for _ in 0..3 {
            session.pass(&wanted, &networks(), None, now).await.unwrap();
        }
        let state = charon.state();
        let orders = state.orders.iter();
        let rekeys = orders.filter(|order| order.starts_with("rekey"));
        assert_eq!(rekeys.count(), renewals, "{psk:?}: {state:?}");
        let ids: Vec<_> = state.secrets.keys().cloned().collect();
        assert_eq!(ids, [secret(&wanted[&REMOTE])]);
    }
    // Nobody else's.
    charon
        .state()
        .secrets
        .insert("office".to_owned(), String::new());
    assert!(remove_all(&charon.socket(), &networks()).await.unwrap());
    assert_eq!(
        charon.state().secrets.keys().collect::<Vec<_>>(),
        ["office"]
    );
}

#[tokio::test]
async fn a_tunnel_whose_states_somebody_deleted_is_made_again() {
    let mut charon = Charon::new();
    charon.state().names_states = true;
    charon.start();
    let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
    let wanted = Wanted::from([(REMOTE, wanted())]);
    let now = Instant::now();
    let both = BTreeSet::from([0xc417_26d2, 0x0a0b_0c0d, 7]);
    let one = BTreeSet::from([0x0a0b_0c0d]);
    let end = format!("terminate {}+0", name());
    // Once it may be that the keys were being renewed.
    for (spis, ended) in [
        (Some(&both), false),
        (Some(&one), false),
        (Some(&both), false),
        (Some(&one), false),
        (None, false),
        (Some(&one), false),
        (Some(&one), true),
    ] {
        session.pass(&wanted, &networks(), spis, now).await.unwrap();
        let orders = charon.state().orders.clone();
        assert_eq!(orders.contains(&end), ended, "{orders:?}");
    }
    session
        .pass(&wanted, &networks(), Some(&both), now)
        .await
        .unwrap();
    assert!(charon.state().associations.contains_key(&name()));
}

/// A change of what is wanted, or of what charon has.
#[derive(Clone, Debug)]
enum Step {
    Set(u8, u8),
    Del(u8),
    /// Somebody removes a connection.
    Unload(u8),
    /// An association is gone.
    End(u8),
    Pass,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 0..3u8).prop_map(|(peer, subnet)| Step::Set(peer, subnet)),
        (0..4u8).prop_map(Step::Del),
        (0..4u8).prop_map(Step::Unload),
        (0..4u8).prop_map(Step::End),
        Just(Step::Pass),
    ]
}

fn numbered(peer: u8, subnet: u8) -> (Ipv4Addr, Connection) {
    let connection = Connection {
        peer_subnet: format!("172.17.{}.0/24", peer * 4 + subnet)
            .parse()
            .unwrap(),
        ..wanted()
    };
    (Ipv4Addr::new(10, 200, 0, peer), connection)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happened in between, the session ends in exactly what is wanted.
    #[test]
    fn every_history_ends_as_wanted(steps in proptest::collection::vec(step(), 0..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut charon = Charon::new();
            charon.start();
            let mut session = Session::open(&charon.socket(), SALT).await.unwrap();
            let mut wanted = Wanted::new();
            let name_of = |wanted: &Wanted, peer: u8| {
                let (address, _) = numbered(peer, 0);
                wanted.get(&address).map(|found| names::connection(address, found))
            };
            for step in steps {
                match step {
                    Step::Set(peer, subnet) => {
                        let (address, connection) = numbered(peer, subnet);
                        wanted.insert(address, connection);
                    }
                    Step::Del(peer) => {
                        wanted.remove(&numbered(peer, 0).0);
                    }
                    Step::Unload(peer) => if let Some(name) = name_of(&wanted, peer) {
                        charon.state().connections.remove(&name);
                        charon.state().associations.remove(&name);
                    },
                    Step::End(peer) => if let Some(name) = name_of(&wanted, peer) {
                        charon.state().associations.remove(&name);
                    },
                    Step::Pass => {
                        session.pass(&wanted, &networks(), None, Instant::now()).await.unwrap();
                    }
                }
            }
            // The first pass notices what is gone, the second loads it, the third begins it, if that is due again.
            let mut now = Instant::now();
            for _ in 0..3 {
                now += Duration::from_secs(120);
                session.pass(&wanted, &networks(), None, now).await.unwrap();
            }
            let expected: Vec<String> =
                wanted.iter().map(|(peer, found)| names::connection(*peer, found)).collect();
            let state = charon.state();
            let mut expected = expected;
            expected.sort();
            assert_eq!(state.connections.keys().cloned().collect::<Vec<_>>(), expected);
            assert_eq!(state.associations.keys().cloned().collect::<Vec<_>>(), expected);
        });
    }
}
