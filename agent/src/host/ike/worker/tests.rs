//! The worker, against a charon of our own that has no network and no kernel.

use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::super::names;
use super::super::names::tests::wanted;
use super::super::vici::{Packet, Section};
use super::pass::Passed;
use super::*;
use crate::settings::Secret;

const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 193, 37, 216);

fn networks() -> Vec<IpNet> {
    vec!["172.17.0.0/16".parse().unwrap()]
}

/// What this charon has, and what it was told.
#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<String, Section>,
    secrets: BTreeMap<String, String>,
    /// Associations by connection, with the state of IKE.
    associations: BTreeMap<String, String>,
    /// How often they were made anew, by connection.
    renewed: BTreeMap<String, u32>,
    /// How many attempts of it fail first, as if the peer had another secret.
    unproved: u32,
    orders: Vec<String>,
    /// Commands that it refuses.
    refuses: Option<&'static str>,
    /// How often it did.
    refusals: u32,
}

struct Charon {
    directory: TempDir,
    state: Arc<Mutex<State>>,
    task: JoinSet<()>,
}

impl Charon {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            directory,
            state: Arc::default(),
            task: JoinSet::new(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("charon.vici")
    }

    fn start(&mut self) {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let state = Arc::clone(&self.state);
        self.task.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(serve(stream, Arc::clone(&state)));
            }
        });
    }

    /// Ends it, and with it all that it has in memory.
    fn kill(&mut self) {
        self.task = JoinSet::new();
        *self.state() = State::default();
        fs::remove_file(self.socket()).unwrap();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn worker(&self) -> Worker {
        let worker = Worker::start(&self.socket(), self.directory.path());
        worker.set_networks(&networks());
        worker
    }

    async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let wait = async {
            while !holds(&self.state()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(Duration::from_secs(15), wait).await.is_err() {
            panic!("{what}: {:?}", self.state());
        }
    }
}

async fn serve(mut stream: UnixStream, state: Arc<Mutex<State>>) {
    loop {
        let Ok(length) = stream.read_u32().await else {
            return;
        };
        let mut bytes = vec![0; length.try_into().unwrap()];
        stream.read_exact(&mut bytes).await.unwrap();
        let answers = match Packet::read(&bytes).unwrap() {
            Packet::Register(_) => vec![Packet::Confirm],
            Packet::Request(command, arguments) => {
                state.lock().unwrap().answer(&command, &arguments)
            }
            other => panic!("{other:?}"),
        };
        for answer in answers {
            let bytes = answer.write().unwrap();
            stream
                .write_u32(bytes.len().try_into().unwrap())
                .await
                .unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }
}

impl State {
    fn answer(&mut self, command: &str, arguments: &Section) -> Vec<Packet> {
        let text = |name: &str| arguments.text(name).unwrap_or_default().to_owned();
        let response = |section| vec![Packet::Response(section)];
        if self.refuses == Some(command) {
            self.refusals += 1;
            let refusal = Section::default()
                .with("success", "no")
                .with("errmsg", "no such luck");
            return response(refusal);
        }
        let known = match command {
            "version" => return response(Section::default().with("version", "5.9.8")),
            "get-conns" => {
                let names = self.connections.keys();
                let list = names.fold(Section::default(), |list, name| {
                    list.with_list("conns", name)
                });
                return response(list);
            }
            "list-sas" => {
                let events = self.associations.iter().map(|(name, state)| {
                    let renewed = self.renewed.get(name).copied().unwrap_or_default();
                    let sa = Section::default()
                        .with("uniqueid", format!("{name}#{renewed}"))
                        .with("state", state);
                    let child = Section::default().with("state", "INSTALLED");
                    let children = Section::default().with_section("child-1", child);
                    let sa = sa.with_section("child-sas", children);
                    let event = Section::default().with_section(name, sa);
                    Packet::Event("list-sa".to_owned(), event)
                });
                let end = Packet::Response(Section::default());
                return events.chain([end]).collect();
            }
            "load-conn" => {
                let (name, config) = arguments.sections().next().unwrap();
                self.connections.insert(name.to_owned(), config.clone());
                true
            }
            "load-shared" => {
                self.secrets.insert(text("id"), text("data"));
                true
            }
            "unload-conn" => self.connections.remove(&text("name")).is_some(),
            "unload-shared" => self.secrets.remove(&text("id")).is_some(),
            "initiate" => {
                let is_known = self.connections.contains_key(&text("ike"));
                if is_known {
                    let state = "ESTABLISHED".to_owned();
                    self.associations.insert(text("ike"), state);
                }
                is_known
            }
            "terminate" => {
                let id = text("ike-id");
                let by_id = id.split_once('#');
                let by_id = by_id
                    .and_then(|(name, _)| self.associations.remove(name))
                    .is_some();
                self.associations.remove(&text("ike")).is_some() || by_id
            }
            "rekey" => {
                match self.unproved.checked_sub(1) {
                    Some(left) => self.unproved = left,
                    None => *self.renewed.entry(text("ike")).or_default() += 1,
                }
                self.associations.contains_key(&text("ike"))
            }
            other => panic!("{other}"),
        };
        let about = ["ike", "ike-id", "name", "id"].iter().map(|key| text(key));
        let about = about.fold(String::new(), |about, text| about + &text);
        self.orders.push(format!("{command} {about}"));
        let success = if known { "yes" } else { "no" };
        response(Section::default().with("success", success))
    }
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
    assert_eq!(charon.state().secrets[&name()], "swordfish".repeat(11));
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
    charon
        .until("proof", |state| state.orders.contains(&order))
        .await;
    let state = charon.state();
    assert_eq!(state.secrets[&name()], "p".repeat(96));
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
        passed = session.pass(wanted, &networks(), now).await.unwrap();
    }
    passed
}

#[tokio::test]
async fn what_charon_refuses_is_tried_again_ever_later_and_reported_meanwhile() {
    for command in ["load-shared", "load-conn", "initiate"] {
        let mut charon = Charon::new();
        charon.state().refuses = Some(command);
        charon.start();
        let mut session = Session::open(&charon.socket()).await.unwrap();
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
        let passed = session.pass(&wanted, &networks(), now).await.unwrap();
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
    let mut session = Session::open(&charon.socket()).await.unwrap();
    let now = Instant::now();
    let wanted = Wanted::from([(REMOTE, wanted())]);
    session.pass(&wanted, &networks(), now).await.unwrap();
    assert_eq!(charon.state().secrets.len(), 1);
    let nothing = Wanted::new();
    session.pass(&nothing, &networks(), now).await.unwrap();
    assert!(charon.state().secrets.is_empty());
}

#[tokio::test]
async fn proof_of_a_new_secret_is_asked_for_until_the_peer_has_it_too() {
    let mut charon = Charon::new();
    charon.start();
    let mut session = Session::open(&charon.socket()).await.unwrap();
    let mut wanted = Wanted::from([(REMOTE, wanted())]);
    let start = Instant::now();
    session.pass(&wanted, &networks(), start).await.unwrap();
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
            let mut session = Session::open(&charon.socket()).await.unwrap();
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
                        session.pass(&wanted, &networks(), Instant::now()).await.unwrap();
                    }
                }
            }
            // The first pass notices what is gone, the second loads it, the third begins it, if that is due again.
            let mut now = Instant::now();
            for _ in 0..3 {
                now += Duration::from_secs(120);
                session.pass(&wanted, &networks(), now).await.unwrap();
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
