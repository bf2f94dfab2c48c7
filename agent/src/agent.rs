//! The agent's loop: join the overlay, say so, then keep the host as the cluster wants it.
//!
//! Joining waits, with the reason in the service's status, for whatever is not there yet: etcd, the network config, the
//! underlay's address, a free subnet. Nothing that was up before is taken down while it waits. Once joined, the loop
//! reacts to the lease store, the kernel and the ruleset, and looks at everything again now and then in case an event
//! was missed. What fails is tried again with growing pauses; the rest of the overlay goes on meanwhile.

mod overlay;

use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tracing::{info, warn};

use self::overlay::{Failed, Overlay};
use crate::lease::etcd::{EtcdStore, SettingsError};
use crate::lease::{LeaseEvent, LeaseStore, StoreEvent, SubnetKey};
use crate::netlink::{Kernel, KernelError, Monitor};
use crate::retry::{Backoff, Retry, random_seed};
use crate::service::Service;
use crate::settings::Settings;
use crate::{firewall, machine_id, subnet_file};

/// Why the agent ended by itself. What may heal is waited for instead.
#[derive(Debug, Error)]
pub enum Error {
    /// The machine's identity cannot be made out.
    #[error("failed to find out which machine this is")]
    Identity(#[from] machine_id::Error),
    /// The lease store's settings are wrong.
    #[error("the etcd settings are wrong")]
    Settings(#[from] SettingsError),
    /// The kernel's netlink sockets cannot be opened.
    #[error("failed to open the kernel's netlink interface")]
    Kernel(#[from] KernelError),
    /// Signals or the ruleset cannot be listened to.
    #[error("failed to listen to {what}")]
    Listen {
        /// What is listened to.
        what: &'static str,
        /// Why it cannot be.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether only changed settings help.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(self, Self::Settings(_))
    }
}

/// Runs the agent until SIGTERM or SIGINT. The data plane stays in place when it ends.
pub async fn run(settings: &Settings) -> Result<(), Error> {
    let listen = |what| move |source| Error::Listen { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(listen("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listen("SIGINT"))?;
    let owner = match &settings.agent.node_id {
        Some(id) => id.clone(),
        None => machine_id::owner("/".as_ref(), &settings.files.state_dir)?,
    };
    let store = EtcdStore::new(settings.etcd.clone().into(), owner)?;
    let service = Service::from_environment();
    let kernel = Kernel::open()?;
    let mut agent = Agent {
        settings,
        service: &service,
        store,
        monitor: Monitor::open(&kernel)?,
        ruleset: firewall::Watcher::open().map_err(listen("changes of the ruleset"))?,
        unreachable: None,
    };
    tokio::select! {
        never = agent.serve(kernel) => match never {},
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    service.stopping();
    info!("stopping; the data plane stays in place");
    Ok(())
}

/// Between the first failure and the next try.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// The longest pause: what heals by itself is noticed within this time.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often the loop turns when nothing happens and no watchdog asks for more; also how old the status may be.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The service manager's socket holds few messages, and writing to a full one blocks: while much happens at once, the
/// status is sent no more often than this.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// What [`Agent::serve`] returns: nothing, since only a signal ends it.
enum Never {}

struct Agent<'a, S> {
    settings: &'a Settings,
    service: &'a Service,
    store: S,
    monitor: Monitor,
    ruleset: firewall::Watcher,
    /// The store's complaint while it cannot be reached.
    unreachable: Option<String>,
}

impl<S: LeaseStore> Agent<'_, S> {
    async fn serve(&mut self, kernel: Kernel) -> Never {
        let mut overlay = self.join(kernel).await;
        self.service.ready(&self.status(&overlay));
        info!(subnet = %overlay.own().key, peers = overlay.peers(), "overlay ready");
        self.follow(&mut overlay).await
    }

    /// Waits for everything that joining needs, in order, and programs the host.
    async fn join(&mut self, mut kernel: Kernel) -> Overlay {
        let mut retry = new_retry();
        let config = loop {
            match self.store.network_config().await {
                Ok(config) => break config,
                Err(error) => self.wait(&mut retry, &error).await,
            }
        };
        let (underlay, backend) = loop {
            match overlay::connect(self.settings, &config, &mut kernel).await {
                Ok(found) => break found,
                Err(error) => self.wait(&mut retry, &error).await,
            }
        };
        let previous = previous_subnet(self.settings);
        let attrs = backend.lease_attrs();
        let own = loop {
            match self.store.acquire(&config, &attrs, previous).await {
                Ok(own) => break own,
                Err(error) => self.wait(&mut retry, &error).await,
            }
        };
        info!(subnet = %own.key, public_ip = %own.attrs.public_ip, "lease acquired");
        let mut overlay = Overlay::new(self.settings, config, underlay, backend, own, kernel);

        // Without the list of its peers a restarted agent would take their entries for stale ones.
        let peers = self.first_snapshot().await;
        overlay.accept(peers);
        while let Err(error) = overlay.program().await {
            if error.spares_own() {
                warn!(%error, "some peers are not programmed yet");
                break;
            }
            self.wait(&mut retry, &error).await;
        }
        overlay
    }

    /// The list of all leases that follows an acquisition.
    async fn first_snapshot(&mut self) -> LeaseEvent {
        loop {
            match self.store.next_event().await {
                StoreEvent::Peers(event @ LeaseEvent::Snapshot { .. }) => return event,
                StoreEvent::Unreachable { error } => {
                    self.service.status(&format!("waiting for {error}"))
                }
                _ => (),
            }
        }
    }

    /// Says what is waited for, and waits for the next try.
    async fn wait(&mut self, retry: &mut Retry, reason: &dyn std::error::Error) {
        let reason = crate::logging::chain(reason);
        // The journal has it once; a fault that lasts shows in the status alone.
        if self.unreachable.as_ref() != Some(&reason) {
            warn!("waiting for {reason}");
            self.unreachable = Some(reason.clone());
        }
        self.service.status(&format!("waiting for {reason}"));
        retry.schedule();
        retry.due().await;
    }

    /// Keeps the overlay as the cluster wants it.
    async fn follow(&mut self, overlay: &mut Overlay) -> Never {
        self.unreachable = None;
        let mut due = Due::default();
        let period = self.settings.agent.resync;
        let mut resync = interval_at(Instant::now() + period, period);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let period = self.service.watchdog_interval().unwrap_or(HEARTBEAT);
        let mut heartbeat = interval(period.min(HEARTBEAT));
        let mut told = Instant::now();
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let watch = overlay.watch();
            tokio::select! {
                event = self.store.next_event() => self.on_store(overlay, event, &mut due).await,
                changed = self.monitor.changed(&watch) => {
                    if changed.underlay {
                        due.underlay.now();
                    }
                    if changed.objects {
                        due.program.settle(overlay.program().await);
                    }
                }
                () = self.ruleset.changed() => due.program.settle(overlay.program_firewall().await),
                _ = resync.tick() => due.program.settle(overlay.program().await),
                () = due.program.due() => due.program.settle(overlay.program().await),
                () = due.lease.due() => self.acquire_again(overlay, &mut due).await,
                () = due.underlay.due() => self.follow_underlay(overlay, &mut due).await,
                _ = heartbeat.tick() => {
                    self.service.watchdog();
                    self.service.status(&self.status(overlay));
                }
            }
            if told.elapsed() >= STATUS_PAUSE {
                self.service.status(&self.status(overlay));
                told = Instant::now();
            }
        }
    }

    async fn on_store(&mut self, overlay: &mut Overlay, event: StoreEvent, due: &mut Due) {
        match event {
            StoreEvent::Peers(event) => due.program.settle(overlay.apply(event).await),
            StoreEvent::Renewed { .. } => (),
            StoreEvent::OwnLeaseLost { reason } => {
                warn!(subnet = %overlay.own().key, "lost the lease: {reason}");
                due.lease.now();
            }
            StoreEvent::Unreachable { error } => {
                warn!("lost the connection to {error}");
                self.unreachable = Some(error);
            }
            StoreEvent::Reachable { endpoint } => {
                info!(endpoint = endpoint, "connected to etcd");
                self.unreachable = None;
            }
        }
    }

    /// Takes a lease again after the own one was lost: the same subnet when it is still free.
    async fn acquire_again(&mut self, overlay: &mut Overlay, due: &mut Due) {
        let attrs = overlay.lease_attrs();
        match self
            .store
            .acquire(overlay.config(), &attrs, Some(overlay.own().key))
            .await
        {
            Ok(own) => {
                due.lease.done();
                info!(subnet = %own.key, "lease acquired");
                if own.key != overlay.own().key {
                    warn!(
                        old_subnet = %overlay.own().key,
                        subnet = %own.key,
                        "the host has another subnet now; containers keep the old one until Docker restarts"
                    );
                }
                overlay.set_own(own);
                due.program.settle(overlay.program().await);
            }
            Err(error) => {
                self.unreachable = Some(crate::logging::chain(&error));
                due.lease.schedule();
            }
        }
    }

    /// Looks at the underlay again, and tells kernel and peers when it is not what it was.
    async fn follow_underlay(&mut self, overlay: &mut Overlay, due: &mut Due) {
        let moved = match overlay.follow_underlay(self.settings).await {
            Ok(moved) => moved,
            Err(error) => {
                warn!(
                    "the underlay changed and is not usable yet: {}",
                    crate::logging::chain(&error)
                );
                due.underlay.schedule();
                return;
            }
        };
        if moved {
            if let Err(error) = self.store.update(&overlay.lease_attrs()).await {
                warn!(
                    "failed to publish the new underlay: {}",
                    crate::logging::chain(&error)
                );
                due.underlay.schedule();
                return;
            }
            due.program.settle(overlay.program().await);
        }
        due.underlay.done();
    }

    /// One line for `systemctl status`.
    fn status(&self, overlay: &Overlay) -> String {
        match &self.unreachable {
            Some(error) => format!("{}; {error}", overlay.summary()),
            None => overlay.summary(),
        }
    }
}

/// Pauses between tries, different on every node so that a cluster does not try in step.
fn new_retry() -> Retry {
    match Backoff::new(RETRY_MIN, RETRY_MAX, 0.3, random_seed()) {
        Ok(backoff) => Retry::new(backoff),
        Err(error) => unreachable!("the bounds above are in order: {error}"),
    }
}

/// What has to be tried again, and when.
struct Due {
    program: Retry,
    lease: Retry,
    underlay: Retry,
}

impl Default for Due {
    fn default() -> Self {
        Self {
            program: new_retry(),
            lease: new_retry(),
            underlay: new_retry(),
        }
    }
}

impl Retry {
    /// Schedules another try when programming failed, and clears it when it did not.
    fn settle(&mut self, outcome: Result<(), Failed>) {
        match outcome {
            Ok(()) => self.done(),
            Err(error) => {
                warn!("{}", crate::logging::chain(&error));
                self.schedule();
            }
        }
    }
}

/// The subnet that `subnet.env` remembers from an earlier run.
fn previous_subnet(settings: &Settings) -> Option<SubnetKey> {
    match subnet_file::read_previous(&settings.files.subnet_file) {
        Ok(previous) => previous.subnet.map(|v4| SubnetKey { v4, v6: None }),
        Err(error) => {
            warn!(
                "starting without the memory of an earlier subnet: {}",
                crate::logging::chain(&error)
            );
            None
        }
    }
}
