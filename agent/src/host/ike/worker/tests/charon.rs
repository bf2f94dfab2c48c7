//! A charon that keeps what it is told, and makes associations without a peer.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::*;

/// What this charon has, and what it was told.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) connections: BTreeMap<String, Section>,
    pub(super) secrets: BTreeMap<String, String>,
    /// Associations by connection, with the state of IKE.
    pub(super) associations: BTreeMap<String, String>,
    /// Whether their tunnels name the kernel's states, which this charon does not make.
    pub(super) names_states: bool,
    /// How often they were made anew, by connection.
    pub(super) renewed: BTreeMap<String, u32>,
    /// How many attempts of it fail first, as if the peer had another secret.
    pub(super) unproved: u32,
    pub(super) orders: Vec<String>,
    /// Commands that it refuses.
    pub(super) refuses: Option<&'static str>,
    /// How often it did.
    pub(super) refusals: u32,
}

pub(super) struct Charon {
    pub(super) directory: TempDir,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) task: JoinSet<()>,
}

impl Charon {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ipsec.salt"), SALT.0).unwrap();
        Self {
            directory,
            state: Arc::default(),
            task: JoinSet::new(),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("charon.vici")
    }

    pub(super) fn start(&mut self) {
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
    pub(super) fn kill(&mut self) {
        self.task = JoinSet::new();
        *self.state() = State::default();
        fs::remove_file(self.socket()).unwrap();
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn worker(&self) -> Worker {
        let worker = Worker::start(&self.socket(), self.directory.path());
        worker.set_networks(&networks());
        worker
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
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
            "get-shared" => {
                let ids = self.secrets.keys();
                let list = ids.fold(Section::default(), |list, id| list.with_list("keys", id));
                return response(list);
            }
            "list-sas" => {
                let events = self.associations.iter().map(|(name, state)| {
                    let renewed = self.renewed.get(name).copied().unwrap_or_default();
                    let sa = Section::default()
                        .with("uniqueid", format!("{name}#{renewed}"))
                        .with("state", state);
                    let mut child = Section::default()
                        .with("uniqueid", format!("{name}+{renewed}"))
                        .with("state", "INSTALLED");
                    if self.names_states {
                        child = child.with("spi-in", "c41726d2").with("spi-out", "0a0b0c0d");
                    }
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
                let id = text("ike-id") + &text("child-id");
                let by_id = id.split_once(['#', '+']);
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
        let about = ["ike", "ike-id", "child-id", "name", "id"]
            .iter()
            .map(|key| text(key));
        let about = about.fold(String::new(), |about, text| about + &text);
        self.orders.push(format!("{command} {about}"));
        let success = if known { "yes" } else { "no" };
        response(Section::default().with("success", success))
    }
}
