//! Keeps charon's connections, secrets and tunnels as wanted, outside of the agent's loop: charon may hang, or not be
//! there.
//!
//! A pass compares all that is wanted with all that charon has, so that a charon that was restarted, an association that
//! somebody deleted and a connection of an earlier run heal alike. One pass follows each change, and one at least every
//! few seconds.

mod attempt;
mod pass;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{self, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use self::pass::Session;
use super::client::ViciError;
use super::salt::Salt;
use super::tunnels::{Tunnel, TunnelState};
use crate::base::logging::chain;
use crate::base::retry::Backoff;
use crate::host::netlink::Kernel;
use crate::plan::state::{Change, Connection, Key, Object};

/// How often charon is looked for: often at first, since it starts only when it is asked for.
const PAUSES: Backoff = Backoff::constant(Duration::from_millis(200), Duration::from_secs(5), 0.3);

/// How long charon may take to start until that is reported.
const START: Duration = Duration::from_secs(5);

/// The time between two passes, if listing the associations takes no time; else at least ten times that time.
const PAUSE: Duration = Duration::from_secs(2);

/// The file that asks the service manager for charon, beside the control socket.
const REQUEST: &str = "ipsec";

/// How often charon is asked for. The service manager starts it again by itself; where it is not installed, each request
/// makes a line in the journal.
const REQUESTS: Duration = Duration::from_secs(60);

/// The connections that are wanted, by the peer's public address.
type Wanted = BTreeMap<Ipv4Addr, Connection>;

/// What the worker is asked for.
#[derive(Clone, Debug, Default)]
struct Asked {
    wanted: Wanted,
    networks: Vec<IpNet>,
    /// Whether `wanted` is known. Until the agent has programmed its host once, it is empty because nobody has said
    /// anything, and the tunnels of an earlier run must not go for that.
    told: bool,
}

/// What the agent's loop and the worker share.
#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Asked>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How charon is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// What is wrong; `None` also if nothing is wanted of charon, or it may still start.
    pub(crate) trouble: Option<Arc<ViciError>>,
    /// The tunnels, by the peer's public address.
    pub(crate) tunnels: BTreeMap<Ipv4Addr, Tunnel>,
    /// Since when a peer has had no tunnel.
    pub(crate) without: BTreeMap<Ipv4Addr, Instant>,
}

/// Works until it is dropped. What it has loaded into charon stays.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    reports: watch::Receiver<Report>,
    news: sync::Mutex<watch::Receiver<Report>>,
    /// Aborted when dropped.
    _task: JoinSet<()>,
}

impl Worker {
    /// Starts to keep the connections that this or an earlier run has made in charon, at that VICI socket. `directory` is
    /// where charon is asked for. Nothing happens before the first [`Self::apply`].
    pub(crate) fn start(socket: &Path, directory: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, reports) = watch::channel(Report::default());
        let keeper = Keeper {
            socket: socket.to_owned(),
            directory: directory.to_owned(),
            shared: Arc::clone(&shared),
            reports: sender,
            silent_since: None,
            has_answered: false,
            asked: None,
        };
        let mut task = JoinSet::new();
        task.spawn(keeper.work());
        Self {
            shared,
            news: sync::Mutex::new(reports.clone()),
            reports,
            _task: task,
        }
    }

    /// The connections that were asked for, as objects.
    pub(crate) fn observe(&self) -> Vec<(Key, Object)> {
        let asked = self.shared.lock();
        let object = |(peer, connection): (&Ipv4Addr, &Connection)| {
            let connection = Object::Connection(Box::new(connection.clone()));
            (Key::Connection(*peer), connection)
        };
        asked.wanted.iter().map(object).collect()
    }

    /// The networks by whose subnets charon's connections are recognised as ours.
    pub(crate) fn set_networks(&self, networks: &[IpNet]) {
        let mut asked = self.shared.lock();
        if asked.networks != networks {
            asked.networks = networks.to_vec();
            self.shared.changed.notify_one();
        }
    }

    /// Whether there is to be a connection with the node of that public address.
    pub(crate) fn has(&self, peer: Ipv4Addr) -> bool {
        self.shared.lock().wanted.contains_key(&peer)
    }

    /// Asks for changes, of connections only. No changes mean that everything is as wanted; the first call begins the work.
    pub(crate) fn apply(&self, changes: &[Change]) {
        let mut asked = self.shared.lock();
        asked.told = true;
        for change in changes {
            match change {
                Change::Set {
                    key: Key::Connection(peer),
                    object: Object::Connection(connection),
                    ..
                } => {
                    asked.wanted.insert(*peer, (**connection).clone());
                }
                Change::Del {
                    key: Key::Connection(peer),
                    ..
                } => {
                    asked.wanted.remove(peer);
                }
                Change::Set { .. } | Change::Del { .. } => {}
            }
        }
        drop(asked);
        self.shared.changed.notify_one();
    }

    /// What is known of charon.
    pub(crate) fn report(&self) -> watch::Ref<'_, Report> {
        self.reports.borrow()
    }

    /// Waits until something else is wrong, or nothing more. Cancel-safe.
    pub(crate) async fn changed(&self) {
        // The other end lives as long as this one.
        if self.news.lock().await.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// Removes the connections for these networks from charon, with their secrets and tunnels. Returns whether charon answers;
/// if not, it has none.
///
/// # Errors
///
/// charon does not do as it is told.
pub(crate) async fn remove_all(socket: &Path, networks: &[IpNet]) -> Result<bool, ViciError> {
    let mut session = match Session::open(socket, Salt::default()).await {
        Err(ViciError::Connect { .. }) => return Ok(false),
        session => session?,
    };
    let now = Instant::now();
    session.pass(&Wanted::new(), networks, None, now).await?;
    Ok(true)
}

/// The SPIs of the kernel's states; `None` if they cannot be listed.
async fn spis() -> Option<BTreeSet<u32>> {
    let listed = Kernel::spis().await;
    let listed = listed.inspect_err(|error| debug!("{}", chain(error)));
    listed.ok().flatten()
}

/// The task.
struct Keeper {
    socket: PathBuf,
    /// Where charon is asked for.
    directory: PathBuf,
    shared: Arc<Shared>,
    reports: watch::Sender<Report>,
    /// Since when charon has not answered.
    silent_since: Option<Instant>,
    /// Whether charon has answered before.
    has_answered: bool,
    /// When charon was last asked for.
    asked: Option<Instant>,
}

impl Keeper {
    async fn work(mut self) {
        let mut pauses = PAUSES;
        while !self.shared.lock().told {
            self.shared.changed.notified().await;
        }
        loop {
            let Err(error) = self.keep(&mut pauses).await;
            self.fail(error);
            // Of a charon that is not there nothing need be removed.
            let is_wanted = self.is_wanted();
            tokio::select! {
                () = sleep(pauses.next_delay()), if is_wanted => (),
                () = self.shared.changed.notified() => (),
            }
        }
    }

    /// Passes after passes over one connection to charon.
    async fn keep(&mut self, pauses: &mut Backoff) -> Result<std::convert::Infallible, ViciError> {
        if self.is_wanted() {
            self.ask_for_charon();
        }
        let salt = Salt::kept_in(&self.directory);
        let mut session = Session::open(&self.socket, salt).await?;
        info!(version = session.version(), "strongSwan's charon answers");
        loop {
            let Asked {
                wanted, networks, ..
            } = self.shared.lock().clone();
            let start = Instant::now();
            let spis = spis().await;
            let passed = session
                .pass(&wanted, &networks, spis.as_ref(), start)
                .await?;
            pauses.reset();
            self.silent_since = None;
            self.has_answered = true;
            self.report(passed.refusal, passed.tunnels);
            let pause = PAUSE.max(start.elapsed() * 10);
            tokio::select! {
                () = sleep(pause), if !wanted.is_empty() => (),
                () = self.shared.changed.notified() => (),
                error = session.closed() => return Err(error),
            }
        }
    }

    /// Whether there is any connection to have.
    fn is_wanted(&self) -> bool {
        !self.shared.lock().wanted.is_empty()
    }

    /// The path unit of charon's service waits for this file.
    fn ask_for_charon(&mut self) {
        if self.asked.is_some_and(|asked| asked.elapsed() < REQUESTS) {
            return;
        }
        self.asked = Some(Instant::now());
        let request = self.directory.join(REQUEST);
        if let Err(error) = fs::write(&request, "") {
            debug!(path = %request.display(), "failed to ask for charon: {error}");
        }
    }

    fn fail(&mut self, error: ViciError) {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        debug!("{}", chain(&error));
        let may_start = !self.has_answered && matches!(error, ViciError::Connect { .. });
        let is_late = !may_start || since.elapsed() >= START;
        let trouble = (self.is_wanted() && is_late).then_some(error);
        self.report(trouble.map(Arc::new), BTreeMap::new());
    }

    /// Tells the agent's loop, at once if it has to tell others.
    fn report(&self, trouble: Option<Arc<ViciError>>, tunnels: BTreeMap<Ipv4Addr, Tunnel>) {
        let now = Instant::now();
        self.reports.send_if_modified(|report| {
            let text = |trouble: Option<&ViciError>| trouble.map(ToString::to_string);
            let is_news = text(report.trouble.as_deref()) != text(trouble.as_deref());
            report.trouble = trouble;
            let without = tunnels.iter();
            let without = without.filter(|(_, tunnel)| tunnel.state != TunnelState::Up);
            report.without = without
                .map(|(peer, _)| (*peer, report.without.get(peer).copied().unwrap_or(now)))
                .collect();
            report.tunnels = tunnels;
            is_news
        });
    }
}
