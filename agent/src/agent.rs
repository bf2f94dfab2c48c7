//! The agent's main loop: join the overlay, report ready, then keep the host in the state that the cluster wants.
//!
//! Joining waits for whatever is missing (etcd, the network config, an underlay address, a free subnet) and reports the
//! reason in the service's status. Nothing that is already up is taken down meanwhile, and every attempt starts over,
//! so that fixes take effect. Once joined, the loop reacts to the lease store, the kernel and the ruleset, and resyncs
//! periodically in case an event was missed. Failures are retried with growing pauses, while the rest of the overlay
//! keeps running.

mod answers;
mod change;
mod join;
mod overlay;
mod own_lease;
mod reload;
mod sample;
mod store;
mod task;

use std::borrow::Cow;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use self::overlay::{Overlay, Programmed};
pub use self::reload::Load;
use self::task::{Task, Tasks};
use crate::base::logging::{Repeats, chain};
use crate::base::machine_id;
use crate::base::retry::{Backoff, random_seed};
use crate::base::service::Service;
use crate::cluster::lease::{
    ChosenStore, LeaseStore, NodeFault, Prescribed, SettingsError, StoreError, SubnetKey,
};
use crate::cluster::network_config::NetworkConfig;
use crate::host::claim::Claims;
use crate::host::executor::Executor;
use crate::host::firewall::{self, Rules};
use crate::host::netlink::{KernelError, Monitor};
use crate::host::open::OpenError;
use crate::host::privileges::Privileges;
use crate::settings::Settings;
use crate::telemetry::clock::Clock;
use crate::telemetry::control::{ControlService, Questions};
use crate::telemetry::health::{BindError, Health, Running, Scrapes, Server};
use crate::telemetry::metrics::Events;
use crate::telemetry::status::{self, Cause, Code};

/// Why the agent ended by itself. Errors that may heal are retried instead.
#[derive(Debug, Error)]
pub enum Error {
    /// The node's identity cannot be determined.
    #[error("failed to determine the owner ID of this node")]
    Identity(#[from] machine_id::Error),
    /// The lease store's settings are wrong.
    #[error("invalid lease store settings")]
    Settings(#[from] SettingsError),
    /// The kernel's netlink sockets cannot be opened.
    #[error("failed to open the kernel's netlink interface")]
    Kernel(#[from] KernelError),
    /// The health endpoints cannot be served.
    #[error(transparent)]
    Health(#[from] BindError),
    /// Cannot install a signal handler.
    #[error("failed to install the handler for {what}")]
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
/// it ends. On SIGHUP `load` reloads the settings. `is_first`: no agent has run with this state directory before.
pub async fn run(
    settings: Settings,
    is_first: bool,
    privileges: Privileges,
    claims: Claims,
    load: Load<'_>,
) -> Result<(), Error> {
    let hangup = handle(SignalKind::hangup(), "SIGHUP")?;
    let mut terminate = handle(SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = handle(SignalKind::interrupt(), "SIGINT")?;
    let (mut store, owner) = ChosenStore::new(&settings, || match &settings.agent.node_id {
        Some(id) => Ok(id.clone()),
        None => Ok::<_, Error>(machine_id::owner("/".as_ref(), &settings.files.state_dir)?),
    })?;
    if is_first {
        store.expect_no_lease();
    }
    let process = status::Agent {
        network: settings.agent.network.as_ref().map(ToString::to_string),
        ..status::Agent::of_process(&owner, status::now())
    };
    let service = Service::from_environment();
    let (health, scrapes) = Health::new();
    let mut server_task = None;
    if let Some(address) = settings.health.listen() {
        let server = Server::bind(address).await?;
        info!(%address, "serving /healthz, /readyz and /metrics");
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
        .with_claims(claims)
        .with_charon(&settings.ipsec.vici, &settings.files.socket);
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
        ruleset_error: None,
        lease: None,
        acquiring: JoinSet::new(),
        preparing: JoinSet::new(),
        publishing: JoinSet::new(),
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
        () = service.feed_watchdog() => (),
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    agent.stop().await;
    Ok(())
}

fn handle(kind: SignalKind, what: &'static str) -> Result<Signal, Error> {
    signal(kind).map_err(|source| Error::Listen { what, source })
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
    ruleset_error: Option<String>,
    /// The lease last logged.
    lease: Option<SubnetKey>,
    /// Takes a lease: the first one, or a replacement for a lost one.
    acquiring: JoinSet<Result<S::Taken, StoreError>>,
    /// Runs the first command of a changed network config.
    preparing: JoinSet<(NetworkConfig, Result<String, OpenError>)>,
    /// Publishes the own attributes.
    publishing: JoinSet<Result<(), StoreError>>,
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
    Backoff::constant(Duration::from_secs(1), Duration::from_secs(600), 0.3);

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
        let mut reported = Instant::now();
        loop {
            self.report_health(&tasks);
            self.has_joined = true;
            self.to_hand_over = overlay.rules_to_hand_over();
            let watch = overlay.watch();
            tokio::select! {
                () = self.service.idle() => (),
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
                    if !self.ruleset.is_pending() {
                        overlay.program_firewall();
                    }
                }
                () = tasks.firewall.due() => {
                    tasks.firewall.started();
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
                outcome = overlay.cloud_passed() => {
                    let (outcome, opened) = overlay.take_cloud(outcome);
                    match outcome {
                        Ok(()) => tasks.cloud_routes.done(),
                        // It repeats itself.
                        Err(problem) => tasks.cloud_routes.stuck(&problem),
                    }
                    if opened {
                        tasks.programmed_all(overlay.program().await);
                    }
                }
                () = overlay.ike_changed() => match overlay.ike_trouble() {
                    None => tasks.ike.done(),
                    Some(error) => tasks.ike.stuck(&*error),
                },
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
                () = overlay.former_backend_ended() => tasks.programmed_all(overlay.program().await),
                () = tasks.lease.due() => self.acquire_again(overlay, &mut tasks),
                Some(Ok(outcome)) = self.acquiring.join_next() => {
                    self.acquired(overlay, outcome, &mut tasks).await;
                }
                () = tasks.underlay.due() => self.follow_underlay(overlay, &mut tasks).await,
                () = tasks.config.due() => self.follow_config(overlay, &mut tasks).await,
                Some(Ok(prepared)) = self.preparing.join_next() => {
                    self.prepared(overlay, prepared, &mut tasks).await;
                }
                // One at a time, so that the latest attributes are also written last; and after the provider has the
                // routes that peers are then to use.
                () = tasks.publish.due(), if self.publishing.is_empty() && overlay.may_publish() => {
                    self.publish(overlay, &mut tasks);
                }
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
            if reported.elapsed() >= STATUS_PAUSE {
                self.service.status(&self.status(overlay, &tasks));
                reported = Instant::now();
            }
        }
    }

    /// Gives the lease back if configured, and leaves the data plane to the next agent or flannel.
    async fn stop(&mut self) {
        self.service.stopping();
        if self.settings.agent.leave_on_stop {
            self.leave().await;
        }
        if let Some(rules) = self.rules_to_hand_over().await
            && let Err(error) = firewall::hand_over(&rules).await
        {
            warn!("{}", chain(&error));
        }
        info!("stopping; the data plane stays in place");
    }

    /// The rules that a flannel started next must find where it expects them: those of this run, or those of an earlier
    /// run that was killed, as far as `subnet.env` and the settings show them. `None` for a named network, whose names
    /// flannel does not use.
    async fn rules_to_hand_over(&mut self) -> Option<Rules> {
        match self.settings.agent.network {
            Some(_) => None,
            None if self.has_joined => self.to_hand_over.take(),
            None => overlay::rules_of_earlier_run(&self.settings).await,
        }
    }

    /// Starts to monitor ruleset changes unless that runs already. If it cannot, for example without nftables in the
    /// kernel, the rules are only checked periodically.
    fn listen_to_ruleset(&mut self) {
        match self.ruleset.listen() {
            Ok(false) => (),
            Ok(true) => {
                if self.ruleset_error.take().is_some() {
                    info!("monitoring changes of the firewall rules again");
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.ruleset_error.as_ref() != Some(&error) {
                    warn!(
                        "failed to monitor changes of the firewall rules: {error}; checking the rules every {} s instead",
                        self.settings.firewall.resync.as_secs()
                    );
                }
                self.ruleset_error = Some(error);
            }
        }
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

    fn report_health(&mut self, tasks: &Tasks) {
        let troubles = self.troubles(tasks);
        self.store
            .publish_health(!tasks.down, || node_faults(&troubles));
        self.health.set_ready(troubles);
    }

    /// The settings, with the public addresses that the store prescribes for this node in place of the configured ones.
    fn prescribed_settings(&self) -> Cow<'_, Settings> {
        let prescribed = self.store.prescribed();
        if prescribed == Prescribed::default() {
            return Cow::Borrowed(&self.settings);
        }
        let mut settings = self.settings.clone();
        let underlay = &mut settings.underlay;
        underlay.public_ip = prescribed.public_ip.or(underlay.public_ip);
        underlay.public_ipv6 = prescribed.public_ipv6.or(underlay.public_ipv6);
        Cow::Owned(settings)
    }
}

/// What is wrong, for others to see in the store.
fn node_faults(causes: &[Cause]) -> Vec<NodeFault> {
    let fault = |cause: &Cause| NodeFault {
        code: cause.code.as_str(),
        text: cause.text.clone(),
    };
    causes.iter().map(fault).collect()
}

/// Ticks after each period; after a missed tick the next one is a full period later.
fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
