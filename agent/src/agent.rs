//! The agent's main loop: join the overlay, report ready, then keep the host in the state that the cluster wants.
//!
//! Joining waits for whatever is missing (etcd, the network config, an underlay address, a free subnet) and reports the
//! reason in the service's status. Nothing that is already up is taken down meanwhile, and every attempt starts over,
//! so that fixes take effect. Once joined, the loop reacts to the lease store, the kernel and the ruleset, and resyncs
//! periodically in case an event was missed. Failures are retried with growing pauses, while the rest of the overlay
//! keeps running.

mod answers;
mod cause;
mod change;
mod overlay;
mod own_lease;
mod reload;
mod sample;
mod task;

use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use self::overlay::{Former, Overlay, Place, Programmed};
pub use self::reload::Load;
use self::task::{Task, Tasks};
use crate::base::logging::{Repeats, chain};
use crate::base::machine_id;
use crate::base::retry::{Backoff, random_seed};
use crate::base::service::Service;
use crate::cluster::lease::{
    ChosenStore, LeaseEvent, LeaseStore, Past, SettingsError, StoreError, StoreErrorKind,
    StoreEvent, SubnetKey,
};
use crate::cluster::network_config::NetworkConfig;
use crate::host::claim::Claims;
use crate::host::executor::Executor;
use crate::host::firewall::{self, Rules};
use crate::host::netlink::{KernelError, Monitor};
use crate::host::open::OpenError;
use crate::host::privileges::Privileges;
use crate::host::subnet_file;
use crate::settings::Settings;
use crate::telemetry::clock::Clock;
use crate::telemetry::control::{ControlService, Questions};
use crate::telemetry::health::{BindError, Health, Running, Scrapes, Server};
use crate::telemetry::metrics::Events;
use crate::telemetry::status::{self, Cause, Code, Coded, TaskName};

/// Why the agent ended by itself. Errors that may heal are retried instead.
#[derive(Debug, Error)]
pub enum Error {
    /// The node's identity cannot be determined.
    #[error("failed to find out which machine this is")]
    Identity(#[from] machine_id::Error),
    /// The lease store's settings are wrong.
    #[error("the settings of the lease store are wrong")]
    Settings(#[from] SettingsError),
    /// The kernel's netlink sockets cannot be opened.
    #[error("failed to open the kernel's netlink interface")]
    Kernel(#[from] KernelError),
    /// The health endpoints cannot be served.
    #[error(transparent)]
    Health(#[from] BindError),
    /// Cannot install a signal handler.
    #[error("failed to listen to {what}")]
    Listen {
        /// The signal.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether only a changed configuration helps.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(self, Self::Settings(_))
    }
}

/// Runs the agent until SIGTERM or SIGINT, with the names and locks claimed for it. The data plane stays in place when
/// it ends. On SIGHUP `load` reloads the settings.
pub async fn run(
    settings: Settings,
    privileges: Privileges,
    claims: Claims,
    load: Load<'_>,
) -> Result<(), Error> {
    let listen = |what| move |source| Error::Listen { what, source };
    let hangup = signal(SignalKind::hangup()).map_err(listen("SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(listen("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(listen("SIGINT"))?;
    let owner = match &settings.agent.node_id {
        Some(id) => id.clone(),
        None => machine_id::owner("/".as_ref(), &settings.files.state_dir)?,
    };
    let process = status::Agent {
        network: settings.agent.network.as_ref().map(ToString::to_string),
        ..status::Agent::of_process(&owner, status::now())
    };
    let store = ChosenStore::new(&settings, owner)?;
    let service = Service::from_environment();
    let (health, scrapes) = Health::new();
    let mut server_task = None;
    if let Some(address) = settings.health.listen() {
        let server = Server::bind(address).await?;
        info!(%address, "answering /healthz, /readyz and /metrics");
        server_task = Some(server.start(health.clone()));
    }
    let (control, questions) = ControlService::new(health.clone());
    // The control socket is optional: an overlay without status commands is better than none.
    if let Err(error) = control
        .clone()
        .listen(&settings.files.socket, std::future::pending())
    {
        warn!("{}", chain(&error));
    }
    let network = settings.agent.network.clone();
    let executor = Executor::open()?
        .of_network(network.as_ref())
        .with_claims(claims);
    let mut agent = Agent {
        settings,
        privileges,
        load,
        hangup,
        service: &service,
        health,
        scrapes,
        server_task,
        control,
        questions,
        process,
        clock: Clock::new(),
        docker: None,
        server: None,
        store,
        monitor: Monitor::open(executor.kernel())?,
        ruleset: firewall::Watcher::idle().of_network(network.as_ref()),
        deaf: None,
        lease: None,
        acquiring: JoinSet::new(),
        preparing: JoinSet::new(),
        publishing: JoinSet::new(),
        publish_again: false,
        reloading: false,
        waiting: None,
        waits: Repeats::default(),
        store_trouble: None,
        history: status::History::default(),
        new_config: None,
        has_joined: false,
        to_hand_over: None,
        events: sample::no_events(),
        identity_pauses: IDENTITY_PAUSES.seeded(random_seed()),
        next_identity: Instant::now(),
    };
    agent.listen_to_ruleset();
    tokio::select! {
        never = agent.serve(executor) => match never {},
        () = service.stay_alive() => (),
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    service.stopping();
    if agent.settings.agent.leave_on_stop {
        agent.leave().await;
    }
    if let Some(rules) = agent.rules_to_hand_over().await
        && let Err(error) = firewall::hand_over(&rules).await
    {
        warn!("{}", chain(&error));
    }
    info!("stopping; the data plane stays in place");
    Ok(())
}

/// The longest interval between two turns of the loop; also the maximum age of the status.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The shortest interval between status messages. The service manager's socket queues few messages, and writing to a
/// full one blocks.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

/// The result of [`Agent::serve`], which never returns: only a signal ends it.
enum Never {}

struct Agent<'a, S: LeaseStore> {
    settings: Settings,
    privileges: Privileges,
    load: Load<'a>,
    hangup: Signal,
    service: &'a Service,
    health: Health,
    scrapes: Scrapes,
    /// The HTTP server of the health endpoints, if configured.
    server_task: Option<Running>,
    control: ControlService,
    questions: Questions,
    process: status::Agent,
    clock: Clock,
    /// Docker's bridge, as last seen.
    docker: Option<status::Docker>,
    /// The lease store's server in use.
    server: Option<String>,
    store: S,
    monitor: Monitor,
    ruleset: firewall::Watcher,
    /// Why ruleset changes cannot be monitored.
    deaf: Option<String>,
    /// The lease last logged.
    lease: Option<SubnetKey>,
    /// Takes a lease: the first one, or a replacement for a lost one.
    acquiring: JoinSet<Result<S::Taken, StoreError>>,
    /// Runs the first command of a changed network config.
    preparing: JoinSet<(NetworkConfig, Result<String, OpenError>)>,
    /// Publishes the own attributes.
    publishing: JoinSet<Result<(), StoreError>>,
    /// Whether to publish again, because something changed meanwhile.
    publish_again: bool,
    /// Whether the end of a reload still has to be reported.
    reloading: bool,
    /// What joining waits for: code and object.
    waiting: Option<(Code, Option<String>)>,
    waits: Repeats,
    /// What is wrong with the store while it is unreachable.
    store_trouble: Option<Cause>,
    /// Whether the store's content was replaced.
    history: status::History,
    /// The latest network config, until it is applied.
    new_config: Option<NetworkConfig>,
    /// Whether this run has programmed the firewall rules.
    has_joined: bool,
    /// The rules to hand over to flannel's chains when the agent stops.
    to_hand_over: Option<Rules>,
    events: Events,
    /// Pauses between new identities, so that a node that copies each of them cannot keep this one busy.
    identity_pauses: Backoff,
    /// The earliest time for another new identity.
    next_identity: Instant,
}

/// Pauses between new identities.
const IDENTITY_PAUSES: Backoff =
    match Backoff::new(Duration::from_secs(1), Duration::from_secs(600), 0.3, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

impl<S: LeaseStore> Agent<'_, S> {
    async fn serve(&mut self, executor: Executor) -> Never {
        let (mut overlay, programmed) = self.join(executor).await;
        self.control.set_joining(None);
        if let Some(seen) = self.waits.end(Instant::now()) {
            info!("joined the overlay; the failure was {seen}");
        }
        self.service.ready(&overlay.summary());
        info!(subnet = %overlay.own().key, peers = overlay.peers(), "overlay ready");
        self.follow(&mut overlay, programmed).await
    }

    /// Joins the overlay, however long that takes, and programs the host. Some peers may still have to be programmed.
    async fn join(&mut self, mut executor: Executor) -> (Overlay, Programmed) {
        self.tell_joining(Cause::new(Code::Starting, "starting"));
        let mut retry = task::new_retry();
        loop {
            let reason = match self.find_place(&mut executor).await {
                Ok((place, leases)) => {
                    let mut overlay = Overlay::new(&self.settings, place, executor);
                    overlay.begin(leases);
                    match overlay.join().await {
                        Ok(programmed) => return (overlay, programmed),
                        Err(reason) => {
                            executor = overlay.into_executor();
                            reason
                        }
                    }
                }
                Err(reason) => reason,
            };
            if let Some(line) = self.waits.note(&reason.text, Instant::now()) {
                warn!("waiting for {line}");
            }
            // Compare code and object, not the text: a hook's output may differ each time.
            let what = (reason.code, reason.object.clone());
            self.tell_waiting(reason);
            if self.waiting.as_ref() != Some(&what) {
                self.waiting = Some(what);
                retry.done();
            }
            retry.schedule();
            tokio::select! {
                () = retry.due() => (),
                Some(()) = self.hangup.recv() => self.reload().await,
            }
        }
    }

    /// Reports what joining waits for.
    fn tell_waiting(&self, reason: Cause) {
        let reason = reason.worded(|text| format!("waiting for {text}"));
        self.service.status(&reason.text);
        self.health.set_ready(vec![reason.clone()]);
        self.tell_joining(reason);
    }

    /// Attempts once everything that comes before programming; the error says what is missing.
    async fn find_place(&mut self, executor: &mut Executor) -> Result<(Place, LeaseEvent), Cause> {
        let failed = |events: &mut Events, error: StoreError| {
            sample::count(events, error.kind());
            error.to_cause()
        };
        let config = self.store.network_config().await;
        let config = config.map_err(|error| failed(&mut self.events, error))?;
        let (underlay, host, backend) =
            overlay::connect(&self.settings, &self.privileges, &config, false, executor)
                .await
                .map_err(|error| error.to_cause())?;
        let former = Former::find(&self.settings, executor.kernel_mut())
            .await
            .map_err(|error| error.to_cause())?;
        let attrs = backend.lease_attrs();
        let past = Past {
            previous: previous_subnet(&self.settings),
            has_own_address: underlay.has_own_address(),
        };
        self.store.set_avoid(host.avoid());
        let own = self.acquire(&config, &attrs, past).await;
        let own = own.map_err(|error| failed(&mut self.events, error))?;
        self.log_lease(own.key, own.attrs.public_address());
        let mut place = Place {
            config,
            underlay,
            host,
            backend,
            own,
            former,
        };

        // Wait for the list of peers: without it, a restarted agent would treat their kernel objects as stale.
        loop {
            match self.store.next_event().await {
                StoreEvent::Peers(event @ LeaseEvent::Snapshot { .. }) => {
                    // Yield even to younger leases: peers that already use such a lease keep it, while no peer knows
                    // this node's yet.
                    let duplicate = overlay::duplicates(&place.own, event.leases()).next();
                    if let Some(duplicate) = duplicate.map(|lease| lease.key) {
                        self.differ(&mut place, duplicate, executor).await?;
                    }
                    return Ok((place, event));
                }
                StoreEvent::Peers(LeaseEvent::Changes { .. })
                | StoreEvent::Renewed { .. }
                | StoreEvent::RenewalFailed { .. } => (),
                StoreEvent::NetworkConfig(Ok(config)) if *config == place.config => (),
                StoreEvent::NetworkConfig(_) => {
                    return Err(Cause::new(
                        Code::NetworkConfigChanged,
                        "the network config, which changed just now",
                    ));
                }
                StoreEvent::OwnLeaseLost { reason } => {
                    return Err(Cause::new(Code::LeaseLost, format!("a lease: {reason}")));
                }
                StoreEvent::AnotherHistory { reason } => self.note_history(reason),
                StoreEvent::Unreachable { error } => self.tell_waiting(error.to_cause()),
                StoreEvent::Reachable { endpoint } => self.server = Some(endpoint),
            }
        }
    }

    /// Keeps the overlay in the state that the cluster wants.
    async fn follow(&mut self, overlay: &mut Overlay, programmed: Programmed) -> Never {
        let mut tasks = Tasks::default();
        tasks.programmed_all(programmed);
        self.health.set_sample(self.sample(overlay, &tasks).await);
        let mut resync = every(self.settings.agent.resync);
        let mut heartbeat = every(HEARTBEAT);
        // Report the status at once, not only after the first period.
        heartbeat.reset_immediately();
        let mut firewall = every(overlay.firewall_resync());
        let mut told = Instant::now();
        loop {
            self.tell_health(&tasks);
            self.has_joined = true;
            self.to_hand_over = overlay.rules_to_hand_over();
            let watch = overlay.watch();
            tokio::select! {
                () = self.service.rest() => (),
                event = self.store.next_event() => self.on_store(overlay, event, &mut tasks).await,
                changed = self.monitor.changed(&watch) => {
                    if changed.underlay {
                        tasks.underlay.now();
                    }
                    if changed.objects {
                        tasks.programmed_all(overlay.program().await);
                    }
                }
                () = self.ruleset.changed() => overlay.program_firewall(),
                _ = firewall.tick() => {
                    self.listen_to_ruleset();
                    // While another program is changing rules, wait until it is done.
                    if !self.ruleset.is_gathering() {
                        overlay.program_firewall();
                    }
                }
                () = tasks.firewall.due() => {
                    tasks.firewall.goes_on();
                    overlay.program_firewall();
                }
                outcome = overlay.firewall_passed() => {
                    if let Some(outcome) = overlay.take_firewall(outcome) {
                        match outcome {
                            Ok(()) => tasks.firewall.done(),
                            Err(error) => tasks.firewall.failed(&error),
                        }
                        self.end_reload(overlay, &tasks);
                    }
                }
                ended = overlay.commands_ended() => match overlay.take_commands(ended) {
                    Ok(()) => tasks.programmed_all(overlay.program().await),
                    Err(error) => tasks.programmed_part(Err(error)),
                },
                () = tasks.subnet_file.due() => match overlay.write_subnet_file() {
                    Ok(()) => tasks.subnet_file.done(),
                    Err(error) => tasks.subnet_file.failed(&error),
                },
                _ = resync.tick() => {
                    tasks.underlay.now();
                    tasks.programmed_all(overlay.program().await);
                }
                // If a full pass is due for retry, it runs the hooks as well.
                () = overlay.hooks_due(), if !tasks.program.is_waiting() => {
                    tasks.programmed_all(overlay.program().await);
                }
                () = tasks.program.due() => tasks.programmed_all(overlay.program().await),
                () = overlay.greetings_due() => {
                    let greeted = overlay.greet().await;
                    tasks.programmed_part(greeted);
                }
                () = overlay.leaving_ended() => tasks.programmed_all(overlay.program().await),
                () = tasks.lease.due() => self.acquire_again(overlay, &mut tasks),
                Some(Ok(outcome)) = self.acquiring.join_next() => {
                    self.acquired(overlay, outcome, &mut tasks).await;
                }
                () = tasks.underlay.due() => self.follow_underlay(overlay, &mut tasks).await,
                () = tasks.config.due() => self.follow_config(overlay, &mut tasks).await,
                Some(Ok(prepared)) = self.preparing.join_next() => {
                    self.prepared(overlay, prepared, &mut tasks).await;
                }
                () = tasks.publish.due() => self.publish(overlay, &mut tasks),
                Some(Ok(outcome)) = self.publishing.join_next() => {
                    self.published(outcome, &mut tasks);
                }
                () = tasks.identity.due() => self.renew_identity(overlay, &mut tasks).await,
                // Never `None`: this struct owns the control service.
                Some(question) = self.questions.recv() => {
                    self.look_at_docker(overlay).await;
                    self.answer(question, overlay, &tasks).await;
                }
                Some(scrape) = self.scrapes.recv() => {
                    // The client may have disconnected.
                    let _ = scrape.send(self.sample(overlay, &tasks).await);
                }
                Some(()) = self.hangup.recv() => {
                    self.on_hangup(overlay, &mut tasks).await;
                    resync = every(self.settings.agent.resync);
                    firewall = every(overlay.firewall_resync());
                }
                _ = heartbeat.tick() => {
                    self.look_at_clock();
                    self.look_at_docker(overlay).await;
                    self.service.status(&self.status(overlay, &tasks));
                }
            }
            if told.elapsed() >= STATUS_PAUSE {
                self.service.status(&self.status(overlay, &tasks));
                told = Instant::now();
            }
        }
    }

    /// The rules that a flannel started next must find where it expects them: those of this run, or those of an earlier
    /// run that was killed, as far as `subnet.env` and the settings show them. `None` for a named network, whose names
    /// flannel does not use.
    async fn rules_to_hand_over(&mut self) -> Option<Rules> {
        match self.settings.agent.network {
            Some(_) => None,
            None if self.has_joined => self.to_hand_over.take(),
            None => overlay::former_rules(&self.settings).await,
        }
    }

    /// Starts to monitor ruleset changes unless that runs already. If it cannot, for example without nftables in the
    /// kernel, the rules are only checked periodically.
    fn listen_to_ruleset(&mut self) {
        match self.ruleset.listen() {
            Ok(false) => (),
            Ok(true) => {
                if self.deaf.take().is_some() {
                    info!("the kernel announces changes of the firewall's rules now");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.deaf.as_ref() != Some(&error) {
                    warn!(
                        "the kernel does not announce changes of the firewall's rules ({error}); they are looked at every {} s",
                        self.settings.firewall.resync.as_secs()
                    );
                }
                self.deaf = Some(error);
            }
        }
    }

    async fn on_store(&mut self, overlay: &mut Overlay, event: StoreEvent, tasks: &mut Tasks) {
        match event {
            StoreEvent::Peers(event) => {
                if overlay::duplicate_to_yield_to(overlay.own(), event.leases()).is_some() {
                    tasks.identity.at(self.next_identity);
                }
                tasks.programmed_part(overlay.apply(event).await);
            }
            StoreEvent::Renewed { .. } => {
                self.events.renewals += 1;
                tasks.renewal.done();
            }
            StoreEvent::RenewalFailed { error, .. } => {
                self.events.renewal_failures += 1;
                // The store retries by itself.
                tasks.renewal.stuck(&error);
            }
            StoreEvent::NetworkConfig(Ok(config)) => {
                self.new_config = Some(*config);
                tasks.config.now();
            }
            StoreEvent::NetworkConfig(Err(error)) => {
                self.new_config = None;
                self.events.configs_rejected += 1;
                // A retry is useless until the config changes again.
                tasks.config.stuck(&error);
            }
            StoreEvent::OwnLeaseLost { reason } => {
                warn!(subnet = %overlay.own().key, "lost the lease: {reason}");
                self.events.leases_lost += 1;
                self.lease = None;
                tasks.lease.now();
            }
            StoreEvent::AnotherHistory { reason } => self.note_history(reason),
            StoreEvent::Unreachable { error } => {
                warn!("lost the connection to {error}");
                self.server = None;
                sample::count(&mut self.events, StoreErrorKind::Unreachable);
                self.store_trouble = Some(error.to_cause().of(TaskName::Store));
            }
            StoreEvent::Reachable { endpoint } => {
                info!(endpoint, "connected to the lease store");
                self.server = Some(endpoint);
                self.store_trouble = None;
            }
        }
    }

    fn note_history(&mut self, reason: String) {
        warn!(
            "the lease store was restored from a backup or made anew, and all leases were listed again: {reason}"
        );
        self.history.changed(reason);
    }

    /// One line for `systemctl status`: the state, and what is wrong.
    fn status(&self, overlay: &Overlay, tasks: &Tasks) -> String {
        let mut status = overlay.summary();
        let rejected = self.process.settings_rejected.as_deref();
        let troubles = self.troubles(tasks);
        let troubles = troubles.iter().map(|cause| cause.text.as_str());
        for trouble in troubles.chain(rejected) {
            status.push_str("; ");
            status.push_str(trouble);
        }
        status
    }

    /// What is wrong, in the order of the report.
    fn troubles(&self, tasks: &Tasks) -> Vec<Cause> {
        let tasks = tasks.all().into_iter().filter_map(Task::trouble);
        let store = self.store_trouble.iter().chain(tasks).cloned();
        store.chain(answers::trouble(&self.docker)).collect()
    }

    fn tell_health(&self, tasks: &Tasks) {
        self.health.set_ready(self.troubles(tasks));
    }
}

/// Ticks after each period; after a missed tick the next one is a full period later.
fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The subnet in `subnet.env` from an earlier run.
fn previous_subnet(settings: &Settings) -> Option<SubnetKey> {
    match subnet_file::read_previous(&settings.files.subnet_file) {
        Ok(previous) => {
            let key = SubnetKey::new(previous.subnet, previous.subnet_v6);
            key.nets().next().is_some().then_some(key)
        }
        Err(error) => {
            warn!("ignoring the previous subnet file: {}", chain(&error));
            None
        }
    }
}
