//! The overlay of this host: its state, and how that gets into the kernel, the ruleset and `subnet.env`.

mod change;
mod earlier_run;
mod firewall;
mod former_backend;
mod greet;
mod journal;
mod reload;
mod report;
mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

pub(crate) use self::change::{duplicate_to_yield_to, duplicates};
pub(crate) use self::earlier_run::EarlierRun;
pub(crate) use self::firewall::former_rules;
use self::former_backend::FormerBackend;
use self::greet::Greetings;
use self::journal::Journal;
use crate::base::net::Leased;
use crate::cluster::host_nets::HostNets;
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::{Lease, LeaseAttrs, LeaseEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::peers::{CheckPeer, PeerChanges, PeerTable};
use crate::cluster::refusal::PeerRefusal;
use crate::host::executor::Executor;
use crate::host::firewall::{Firewall, Mode, Worker};
use crate::host::hooks;
use crate::host::netlink::{Failure, KernelError, Watch};
use crate::host::open::{self, OpenError};
use crate::host::privileges::{self, Privileges};
use crate::host::reconcile::{Reconciler, Report};
use crate::host::subnet_file::{self, SubnetFile};
use crate::host::underlay;
use crate::plan::backend::plan::Plan;
use crate::plan::backend::{Backend, BackendConfig, BackendConfigError, Setup};
use crate::plan::state::{Delta, Key, Object};
use crate::plan::underlay::Underlay;
use crate::settings::Settings;
use crate::telemetry::status::{self, Cause, Coded, TaskName};

/// Why the underlay and the backend cannot be used yet.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// No usable interface or address.
    #[error("failed to find the underlay interface")]
    Underlay(#[from] underlay::Error),
    /// The network config has an unknown backend or unknown options.
    #[error("unsupported network config")]
    Config(#[from] BackendConfigError),
    /// The backend cannot be set up on this host.
    #[error("failed to set up the backend")]
    Backend(#[from] OpenError),
    /// The privileges that the backend does not need cannot be dropped.
    #[error("failed to set the privileges of this process")]
    Privileges(#[from] privileges::Error),
    /// The new network config does not allow the subnet that the host's containers use.
    #[error(
        "the new network config ({networks}) does not allow this host's subnet {own}; to get another subnet, restart the agent, then the containers"
    )]
    Renumbers {
        /// The host's subnets.
        own: SubnetKey,
        /// The new networks.
        networks: String,
    },
}

impl ConnectError {
    /// Whether a retry may help although the network config stays the same.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Underlay(_) | Self::Backend(_))
    }
}

/// What could not be programmed. All of it is retried.
#[derive(Debug, Error)]
pub(crate) enum Failed {
    /// The kernel could not be queried.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel refused some changes.
    #[error("{total} kernel changes failed, the first: {first}")]
    Changes {
        /// The first that failed.
        first: Box<Failure>,
        /// How many failed.
        total: usize,
        /// Whether none of them concerns the host's own device and address.
        peers_only: bool,
        /// Whether all of them are conflicts with other programs' objects.
        conflicts: bool,
    },
}

/// The result of a full pass.
#[derive(Debug)]
pub(crate) struct Programmed {
    /// The kernel's part.
    pub(crate) kernel: Result<(), Failed>,
    /// Whether hooks are still running; [`Overlay::commands_ended`] returns when they have ended.
    pub(crate) pending: bool,
    /// The result for `subnet.env`; `None` if even the host's own device and address are missing.
    pub(crate) subnet_file: Option<Result<(), subnet_file::Error>>,
}

impl Failed {
    /// Whether the host itself is on the overlay, and only some peers are not reachable yet.
    pub(crate) fn peers_only(&self) -> bool {
        matches!(
            self,
            Self::Changes {
                peers_only: true,
                ..
            }
        )
    }

    /// Whether a retry is useless; the monitor and the next full pass notice when that changes.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Changes {
                conflicts: true,
                ..
            }
        )
    }
}

/// Finds the underlay and sets up the backend of the network config, with a new MAC address or key if requested.
/// Creates nothing in the kernel.
pub(crate) async fn connect(
    settings: &Settings,
    privileges: &Privileges,
    config: &NetworkConfig,
    new_identity: bool,
    executor: &mut Executor,
) -> Result<(Underlay, HostNets, Arc<dyn Backend>), ConnectError> {
    let families = config.families();
    let (underlay, host) = underlay::survey(&settings.underlay, families, None).await?;
    let backend = BackendConfig::parse(config)?;
    privileges.settle(&backend)?;
    let setup = Setup {
        config,
        underlay: &underlay,
        state_dir: &settings.files.state_dir,
        new_identity,
        printed: None,
    };
    let backend = open::open(&backend, setup, executor).await?;
    Ok((underlay, host, backend.into()))
}

/// This host's place in the cluster: lease, config, underlay and backend.
pub(crate) struct Membership {
    pub(crate) config: NetworkConfig,
    pub(crate) underlay: Underlay,
    /// The host's addresses, which subnets must avoid.
    pub(crate) host: HostNets,
    pub(crate) backend: Arc<dyn Backend>,
    /// The own lease.
    pub(crate) own: Lease,
    pub(crate) earlier_run: EarlierRun,
}

/// The overlay of this host.
pub(crate) struct Overlay {
    config: NetworkConfig,
    underlay: Underlay,
    /// The host's addresses, which subnets must avoid.
    host: HostNets,
    backend: Arc<dyn Backend>,
    own: Lease,
    peers: PeerTable,
    plan: Plan,
    /// Refusals that were logged.
    refused: BTreeMap<SubnetKey, PeerRefusal>,
    /// Former backends, while they are still needed.
    former_backends: Vec<FormerBackend>,
    /// The WireGuard peers to start a session with.
    greetings: Greetings,
    reconciler: Reconciler,
    firewall: Worker,
    /// The firewall backend that was last used.
    firewall_mode: Option<Mode>,
    firewall_settings: crate::settings::Firewall,
    subnet_file: PathBuf,
    /// Whether the kernel has been programmed once, for the log.
    programmed: bool,
    /// Whether everything made under another network config is gone.
    old_network_removed: bool,
    /// History for the status that nothing else records.
    journal: Journal,
}

impl Overlay {
    /// The overlay with the own lease and no peers yet; programs nothing.
    pub(crate) fn new(settings: &Settings, membership: Membership, executor: Executor) -> Self {
        let Membership {
            config,
            underlay,
            host,
            backend,
            own,
            earlier_run,
        } = membership;
        log_limits(&*backend, &config, &underlay);
        let mut peers = PeerTable::new(&config, &own, check_peer(&backend));
        peers.set_host(host.clone());
        Self {
            peers,
            plan: Plan::new(&*backend, &own.key, []),
            refused: BTreeMap::new(),
            former_backends: Vec::new(),
            greetings: Greetings::default(),
            reconciler: Reconciler::new(executor, earlier_run.widen(backend.scope())),
            firewall: Worker::start(
                Firewall::new(settings.firewall.mode, settings.firewall.resync)
                    .of_network(settings.agent.network.as_ref()),
                settings.firewall.mode,
            ),
            firewall_mode: None,
            firewall_settings: settings.firewall.clone(),
            subnet_file: settings.files.subnet_file.clone(),
            programmed: false,
            old_network_removed: false,
            journal: Journal {
                leased: status::now(),
                joined: status::now(),
                ..Journal::default()
            },
            config,
            underlay,
            host,
            backend,
            own,
        }
    }

    /// What this host's subnet must not cover.
    pub(crate) fn avoid(&self) -> Avoid {
        self.host.avoid()
    }

    pub(crate) fn own(&self) -> &Lease {
        &self.own
    }

    pub(crate) fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The number of programmed peers.
    pub(crate) fn peers(&self) -> usize {
        self.plan.accepted()
    }

    /// What this node publishes.
    pub(crate) fn lease_attrs(&self) -> LeaseAttrs {
        self.backend.lease_attrs()
    }

    /// Whether peers send to the interface's own addresses, not to those of a NAT.
    pub(crate) fn has_own_address(&self) -> bool {
        self.underlay.has_own_address()
    }

    /// What the kernel monitor watches.
    pub(crate) fn watch(&self) -> Watch<'_> {
        self.reconciler.watch(&self.underlay)
    }

    /// Waits until a failed hook is due for a retry, by [`Self::program`].
    pub(crate) async fn hooks_due(&self) {
        self.reconciler.hooks_due().await;
    }

    /// One line for the service's status.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{} by {} over {} ({}), {} peers",
            self.own.key,
            self.backend.kind(),
            self.underlay.name,
            self.underlay,
            self.peers()
        )
    }

    /// Applies the leases that exist when the agent joins. They are planned all at once: the incremental plan changes
    /// would not be used, and with ten thousand peers they are many.
    pub(crate) fn begin(&mut self, leases: LeaseEvent) {
        self.peers.apply(leases).log(|_| false);
        self.make_plan();
    }

    /// Applies a lease event, without programming it.
    fn accept(&mut self, event: LeaseEvent) -> Delta {
        let changes = self.peers.apply(event);
        self.log(&changes);
        self.journal.note_peers(&changes, &self.peers);
        let mut delta = Delta::new();
        for peer in &changes.removed {
            delta.extend(self.plan.remove_peer(&peer.key));
        }
        for peer in &changes.added {
            delta.extend(self.plan.set_peer(&*self.backend, peer));
        }
        for peer in changes.changed.iter().map(|update| &update.new) {
            let before = self.plan.peer(&peer.key).to_vec();
            delta.extend(self.plan.set_peer(&*self.backend, peer));
            let had = |key: &&Key| before.iter().any(|(had, _)| had == *key);
            let now = self.plan.peer(&peer.key).iter().map(|(key, _)| key);
            self.greetings
                .add(now.filter(|key| !had(key)), Instant::now());
        }
        self.log_refusals();
        delta
    }

    /// Applies a lease event, and programs only what it changed.
    pub(crate) async fn apply(&mut self, event: LeaseEvent) -> Result<(), Failed> {
        let delta = self.accept(event);
        if delta.is_empty() && self.former_backends.is_empty() {
            return Ok(());
        }
        if !self.former_backends.is_empty() {
            let report = self.program_kernel().await?;
            return self.check(report);
        }
        for key in delta.keys() {
            self.journal.failed_objects.remove(key);
        }
        let report = self.reconciler.update(delta).await?;
        self.greet_peers_of(&report.made);
        self.check(report)
    }

    /// Brings the kernel and `subnet.env` into the wanted state, whatever their present one, and starts a pass over the
    /// ruleset.
    pub(crate) async fn program(&mut self) -> Programmed {
        let (kernel, cleared) = match self.program_kernel().await {
            Ok(report) => {
                let cleared = report.cleared && !report.pending;
                (self.check(report), cleared)
            }
            Err(error) => (Err(error.into()), false),
        };
        let mut programmed = Programmed {
            pending: self.reconciler.is_pending(),
            kernel,
            subnet_file: None,
        };
        if let Err(error) = &programmed.kernel
            && !error.peers_only()
        {
            return programmed;
        }
        self.program_firewall();
        // Write the subnet file even if the firewall fails: containers must not stay on a subnet that may already
        // belong to another node.
        let written = self.write_subnet_file();
        // Only now is nothing of a former network left.
        if !self.old_network_removed && cleared && programmed.kernel.is_ok() && written.is_ok() {
            self.reconciler.set_networks(self.backend.scope().networks);
            self.old_network_removed = true;
        }
        self.programmed = true;
        programmed.subnet_file = Some(written);
        programmed
    }

    /// Programs everything that the host needs to be on the overlay, and waits until it is in place; the error says
    /// what is missing. Some peers may still have to be programmed.
    pub(crate) async fn join(&mut self) -> Result<Programmed, Cause> {
        let mut programmed = self.program().await;
        loop {
            if let Err(error) = &programmed.kernel
                && !error.peers_only()
            {
                return Err(error.to_cause());
            }
            if let Some(Err(error)) = &programmed.subnet_file {
                return Err(error.to_cause());
            }
            if !programmed.pending {
                break;
            }
            let ended = self.commands_ended().await;
            programmed = match self.take_commands(ended) {
                Ok(()) => self.program().await,
                Err(error) => Programmed {
                    kernel: Err(error),
                    pending: false,
                    ..programmed
                },
            };
        }
        loop {
            let outcome = self.firewall_passed().await;
            match self.take_firewall(outcome) {
                None => (),
                Some(Ok(())) => return Ok(programmed),
                Some(Err(error)) => {
                    return Err(error
                        .to_cause()
                        .worded(|text| format!("failed to program the firewall: {text}")));
                }
            }
        }
    }

    async fn program_kernel(&mut self) -> Result<Report, KernelError> {
        let mut desired = self.plan.state();
        self.settle_former_backends();
        for former in self.former_backends.iter().rev() {
            former.add_to(&self.own.key, &mut desired);
        }
        if self.firewall_settings.blackhole_route {
            let nets = self.own.key.nets();
            desired.extend(nets.map(|net| (Key::Blackhole(net), Object::Blackhole)));
        }
        self.reconciler.set_desired(desired);
        let report = self.reconciler.resync().await?;
        self.greet_peers_of(&report.made);
        let still_runs = |key: &Key| report.pending && matches!(key, Key::Hook(_));
        self.journal.failed_objects.retain(|key, _| still_runs(key));
        self.journal.resync = Some((status::now(), report.took));
        self.journal.resyncs += 1;
        self.journal.resync_total += report.took;
        if !self.programmed || report.counts.made() > 0 {
            info!(
                created = report.counts.created,
                changed = report.counts.changed,
                removed = report.counts.removed,
                failed = report.counts.failed,
                took_usec = report.took.as_micros(),
                "kernel programmed"
            );
        }
        Ok(report)
    }

    /// Waits until a former backend is no longer needed; forever if there is none.
    pub(crate) async fn former_backend_ended(&self) {
        match self
            .former_backends
            .iter()
            .filter_map(FormerBackend::end)
            .min()
        {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    fn settle_former_backends(&mut self) {
        let (now, peers) = (Instant::now(), &self.peers);
        self.former_backends.retain_mut(|former| {
            let is_over = former.settle(peers, now);
            if is_over {
                info!(
                    backend = former.kind(),
                    "all peers use the new backend; removing what is left of the former one"
                );
            }
            !is_over
        });
    }

    /// What lies inside the networks but is not part of the overlay.
    fn outside(&self) -> Vec<IpNet> {
        let own = self.own.key.nets();
        own.flat_map(|own| {
            let mut networks = self.config.networks();
            let network = networks.find(|network| network.contains(&own));
            let is_leased = |link: &IpNet| {
                let mut leased = self.peers.peers().flat_map(|peer| peer.key.nets());
                leased.any(|net| link.contains(&net) || net.contains(link))
            };
            network.map_or_else(Vec::new, |network| {
                self.host.outside(network, own, is_leased)
            })
        })
        .collect()
    }

    /// Waits until hooks have ended; forever if none run. Cancel-safe.
    pub(crate) async fn commands_ended(&self) -> hooks::Ended {
        self.reconciler.hooks_ended().await
    }

    /// Records the results of hooks. A full pass then finds what to run next.
    pub(crate) fn take_commands(&mut self, ended: hooks::Ended) -> Result<(), Failed> {
        let report = self.reconciler.take_hooks(ended);
        self.check(report)
    }

    /// The own subnets, each with its network.
    fn leased(&self) -> (Option<Leased<Ipv4Net>>, Option<Leased<Ipv6Net>>) {
        let (config, own) = (&self.config, &self.own.key);
        let v4 = config.ipv4.zip(own.v4).map(|(range, subnet)| Leased {
            network: range.network,
            subnet,
        });
        let v6 = config.ipv6.zip(own.v6).map(|(range, subnet)| Leased {
            network: range.network,
            subnet,
        });
        (v4, v6)
    }

    /// Writes `subnet.env` if its content differs.
    pub(crate) fn write_subnet_file(&mut self) -> Result<(), subnet_file::Error> {
        let (v4, v6) = self.leased();
        let file = SubnetFile {
            v4,
            v6,
            mtu: self.backend.mtu(),
            masquerade: self.firewall_settings.masquerade,
        };
        let written = file.write(&self.subnet_file)?;
        if written {
            self.journal.written = Some(status::now());
        }
        if written || !self.programmed {
            info!(path = %self.subnet_file.display(), "subnet file written");
        }
        Ok(())
    }

    /// Returns the executor; changes nothing on the host.
    pub(crate) fn into_executor(self) -> Executor {
        self.reconciler.into_executor()
    }

    /// Judges and plans all peers again, after the own lease or the backend changed.
    fn replan(&mut self) {
        let check = check_peer(&self.backend);
        let changes = self.peers.rejudge(&self.config, &self.own, check);
        self.log(&changes);
        self.journal.note_peers(&changes, &self.peers);
        self.make_plan();
    }

    fn log(&self, changes: &PeerChanges) {
        changes.log(|key| {
            self.peers.get(key).is_some()
                || self.former_backends.iter().any(|former| former.has(key))
        });
    }

    fn make_plan(&mut self) {
        let peers = self.peers.peers().map(AsRef::as_ref);
        self.plan = Plan::new(&*self.backend, &self.own.key, peers);
        self.log_refusals();
    }

    /// Logs the peers that the backend cannot reach, once for each reason.
    fn log_refusals(&mut self) {
        let refused: BTreeMap<_, _> = self
            .plan
            .refused()
            .map(|(key, why)| (*key, why.clone()))
            .collect();
        for (subnet, why) in &refused {
            if self.refused.get(subnet) != Some(why) {
                warn!(subnet = %subnet, "peer is not programmed: {why}");
            }
        }
        self.refused = refused;
    }

    /// Turns the failed kernel changes into an error.
    fn check(&mut self, report: Report) -> Result<(), Failed> {
        for failure in &report.failures {
            let key = failure.change.key().clone();
            let cause = failure.to_cause().of(TaskName::Program);
            self.journal.failed_objects.insert(key, cause);
        }
        let total = report.failures.len();
        let own = self.backend.own(&self.own.key);
        let peers_only = report
            .failures
            .iter()
            .all(|f| !own.contains_key(f.change.key()));
        let conflicts = report.failures.iter().all(Failure::is_conflict);
        match report.failures.into_iter().next() {
            None => Ok(()),
            Some(first) => Err(Failed::Changes {
                first: Box::new(first),
                total,
                peers_only,
                conflicts,
            }),
        }
    }
}

/// Logs what the backend cannot do here, and which networks it leaves to other agents.
fn log_limits(backend: &dyn Backend, config: &NetworkConfig, underlay: &Underlay) {
    if let Some(caution) = backend.caution() {
        warn!(iface = %underlay.name, "{caution}");
    }
    let carried = backend.scope().networks;
    for network in config
        .networks()
        .filter(|network| !carried.contains(network))
    {
        warn!(
            backend = backend.kind(),
            %network,
            "this backend carries only IPv4: nodes lease subnets of this network, but no packets pass between them; another backend, such as vxlan, carries both"
        );
    }
}

fn list(networks: impl Iterator<Item = IpNet>) -> String {
    let texts: Vec<String> = networks.map(|network| network.to_string()).collect();
    texts.join(" and ")
}

/// The backend's check of peers' leases.
fn check_peer(backend: &Arc<dyn Backend>) -> CheckPeer {
    let backend = Arc::clone(backend);
    Box::new(move |peer| backend.peer(peer).map(drop))
}
