//! The overlay of this host: its state. [`program`] brings that into the kernel, the ruleset and `subnet.env`.

mod change;
mod cloud;
mod earlier_run;
mod error;
mod firewall;
mod former_backend;
mod greet;
mod ike;
mod journal;
mod program;
mod report;
mod sample;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

pub(crate) use self::change::duplicates;
pub(crate) use self::cloud::CloudRoutes;
pub(crate) use self::earlier_run::EarlierRun;
pub(crate) use self::error::{ConnectError, Failed};
pub(crate) use self::firewall::rules_of_earlier_run;
use self::former_backend::FormerBackend;
use self::greet::Greetings;
use self::journal::Journal;
pub(crate) use self::program::Programmed;
use crate::base::net::Leased;
use crate::cloud::worker::Reach;
use crate::cluster::host_nets::HostNets;
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::{Lease, LeaseAttrs, LeaseEvent, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::peers::{CheckPeer, PeerChanges, PeerTable};
use crate::cluster::refusal::PeerRefusal;
use crate::host::executor::Executor;
use crate::host::firewall::{Firewall, Mode, Worker};
use crate::host::netlink::Watch;
use crate::host::open;
use crate::host::privileges::Privileges;
use crate::host::reconcile::Reconciler;
use crate::host::underlay;
use crate::plan::backend::plan::Plan;
use crate::plan::backend::{Backend, BackendConfig, Setup};
use crate::plan::state::State;
use crate::plan::underlay::Underlay;
use crate::settings::Settings;
use crate::telemetry::status;

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

/// What the wanted state consists of, apart from the plan and the former backends.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// Whether the own subnets have blackhole routes.
    blackhole: bool,
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
    /// The wanted state of a plan just made, which nothing has changed since.
    planned: Option<State>,
    /// What the reconciler's wanted state was made for; `None` if the plan was made anew since.
    wanted: Option<Wanted>,
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
    /// The cloud provider's routes, if the backend has them there.
    cloud: CloudRoutes,
    cloud_reach: Reach,
    subnet_file: PathBuf,
    /// Whether the peers were listed.
    knows_peers: bool,
    /// Whether `subnet.env` was written before that, for the log.
    prepared: bool,
    /// Whether the kernel has been programmed once, for the log.
    programmed: bool,
    /// Whether everything made under another network config is gone.
    old_network_removed: bool,
    /// History for the status that nothing else records.
    journal: Journal,
}

impl Overlay {
    /// The overlay with the own lease and no peers yet; programs nothing.
    pub(crate) fn new(
        settings: &Settings,
        membership: Membership,
        (executor, cloud): (Executor, CloudRoutes),
    ) -> Self {
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
            plan: Plan::new(Arc::clone(&backend), &own.key, []),
            planned: None,
            wanted: None,
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
            cloud,
            cloud_reach: cloud::reach(settings),
            subnet_file: settings.files.subnet_file.clone(),
            knows_peers: false,
            prepared: false,
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
        self.knows_peers = true;
        self.make_plan();
    }

    /// What lies inside the networks but is not part of the overlay; before the peers are known, nothing that a peer may
    /// have.
    fn outside(&self) -> Vec<IpNet> {
        let own = self.own.key.nets();
        own.flat_map(|own| {
            let mut networks = self.config.networks();
            let network = networks.find(|network| network.contains(&own));
            let is_leased = |link: &IpNet| {
                let mut leased = self.peers.peers().flat_map(|peer| peer.key.nets());
                !self.knows_peers || leased.any(|net| link.contains(&net) || net.contains(link))
            };
            network.map_or_else(Vec::new, |network| {
                self.host.outside(network, own, is_leased)
            })
        })
        .collect()
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

    /// Returns the executor and the provider's routes; changes nothing.
    pub(crate) fn into_parts(self) -> (Executor, CloudRoutes) {
        (self.reconciler.into_executor(), self.cloud)
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
        let peers = self.peers.peers().cloned();
        let (plan, state) = Plan::with_state(Arc::clone(&self.backend), &self.own.key, peers);
        self.plan = plan;
        (self.planned, self.wanted) = (Some(state), None);
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
