//! What changes while the agent runs: the own lease, the underlay, the network config, the node's identity.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tracing::{info, warn};

use super::leaving::Leaving;
use super::{ConnectError, Overlay, list, log_uncarried};
use crate::backend::{self, Backend, BackendConfig, OpenError, Setup};
use crate::lease::{Lease, LeaseAttrs, SubnetKey, allocate};
use crate::network_config::NetworkConfig;
use crate::privileges::Privileges;
use crate::settings::Settings;
use crate::status;
use crate::underlay;

impl Overlay {
    /// Takes over another lease. The list of peers follows from the store.
    pub(crate) fn set_own(&mut self, own: Lease) {
        self.journal.leased = status::now();
        self.own = own;
        // It had addresses of the former subnet.
        self.leaving.clear();
        self.replan();
    }

    /// The addresses that this host sends from.
    pub(crate) fn underlay_addresses(&self) -> [Option<IpAddr>; 2] {
        let (v4, v6) = (self.underlay.v4, self.underlay.v6);
        [
            v4.map(|face| face.address.into()),
            v6.map(|face| face.address.into()),
        ]
    }

    /// Looks at the underlay again; says whether it, or another address of this host, is not what it was.
    pub(crate) async fn follow_underlay(
        &mut self,
        settings: &Settings,
    ) -> Result<bool, underlay::Error> {
        let families = self.config.families();
        let current = Some(&self.underlay);
        let (underlay, host) = underlay::survey(&settings.underlay, families, current).await?;
        let has_other_addresses = host != self.host;
        if has_other_addresses {
            self.peers.set_host(host.clone());
            self.host = host;
        }
        if underlay == self.underlay {
            if has_other_addresses {
                self.replan();
            }
            return Ok(has_other_addresses);
        }
        info!(
            iface = %underlay.name,
            public_ip = %underlay,
            mtu = underlay.mtu,
            "the underlay changed"
        );
        // What used to be our address may be a peer's now.
        let backend = self.backend.over(&underlay).into();
        self.underlay = underlay;
        self.leaving.clear();
        self.set_backend(backend);
        Ok(true)
    }

    /// Takes over another network config, with the subnet that this host has; says whether anything in it matters here.
    /// Nothing is programmed yet.
    ///
    /// What cannot be done without giving the host another subnet is refused, and nothing changes.
    pub(crate) async fn follow_config(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
        config: NetworkConfig,
    ) -> Result<bool, ConnectError> {
        if config == self.config {
            return Ok(false);
        }
        if !allocate::allows(&config, &self.own.key) {
            return Err(ConnectError::Renumbers {
                own: self.own.key,
                networks: list(config.networks()),
            });
        }
        let networks: Vec<IpNet> = config.networks().collect();
        let kernel = self.reconciler.kernel_mut();
        kernel.claim_network(&networks).map_err(OpenError::from)?;
        let backend = match self.backend_for(settings, privileges, &config).await {
            Ok(backend) => backend,
            Err(error) => {
                let networks: Vec<IpNet> = self.config.networks().collect();
                let kernel = self.reconciler.kernel_mut();
                kernel.claim_network(&networks).map_err(OpenError::from)?;
                return Err(error);
            }
        };
        info!(
            backend = backend.kind(),
            networks = list(config.networks()),
            "the network config changed"
        );
        self.config = config;
        if backend.kind() != self.backend.kind() {
            let programmed = |lease: &&Arc<Lease>| self.plan.refusal(&lease.key).is_none();
            let peers = self.peers.peers().filter(programmed).cloned();
            // Back to a former one: it is not leaving any more.
            self.leaving
                .retain(|former| former.kind() != backend.kind());
            self.leaving
                .extend(Leaving::new(&self.backend, &*backend, peers));
        }
        self.set_backend(backend);
        Ok(true)
    }

    /// The back end for another network config: the one in use, if that suits it.
    async fn backend_for(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
        config: &NetworkConfig,
    ) -> Result<Arc<dyn Backend>, ConnectError> {
        if self.suits(config) {
            return Ok(Arc::clone(&self.backend));
        }
        self.open_backend(settings, privileges, config, false).await
    }

    async fn open_backend(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
        config: &NetworkConfig,
        new_identity: bool,
    ) -> Result<Arc<dyn Backend>, ConnectError> {
        let parsed = BackendConfig::parse(config)?;
        privileges.settle(&parsed)?;
        let setup = Setup {
            config,
            underlay: &self.underlay,
            state_dir: &settings.files.state_dir,
            new_identity,
        };
        let backend = backend::open(&parsed, setup, self.reconciler.kernel_mut()).await?;
        if let Some(lost) = privileges.lost_for(&parsed)? {
            warn!(
                "{lost} were given up when the agent started with another back end; where {} fails for want of them, restart the agent",
                parsed.kind()
            );
        }
        log_uncarried(&*backend, config);
        // Its first command may have made anew what the others worked on.
        self.reconciler.renew_hooks();
        Ok(backend.into())
    }

    /// An older lease of another node with this node's MAC address or key, if there is one.
    pub(crate) fn elder_twin(&self) -> Option<SubnetKey> {
        let others = self.peers.others().map(AsRef::as_ref);
        elder_twin(&self.own, others).map(|twin| twin.key)
    }

    /// Makes this node a new MAC address or key. Nothing is programmed or published yet.
    pub(crate) async fn renew_identity(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
    ) -> Result<(), ConnectError> {
        let config = self.config.clone();
        let backend = self
            .open_backend(settings, privileges, &config, true)
            .await?;
        self.set_backend(backend);
        Ok(())
    }

    /// Whether the back end in use is what another network config asks for.
    fn suits(&self, config: &NetworkConfig) -> bool {
        config.backend == self.config.backend && config.families() == self.config.families()
    }

    fn set_backend(&mut self, backend: Arc<dyn Backend>) {
        self.backend = backend;
        self.own.attrs = LeaseAttrs {
            owner: self.own.attrs.owner.take(),
            ..self.backend.lease_attrs()
        };
        self.reconciler.set_scope(self.backend.scope());
        // What is left in a former network is removed first.
        self.alone = false;
        self.replan();
    }
}

/// The lease among these that is older than a node's own and has its MAC address or key. Peers believe the older one, so the
/// younger node has to make itself another.
pub(crate) fn elder_twin<'a>(
    own: &Lease,
    others: impl IntoIterator<Item = &'a Lease>,
) -> Option<&'a Lease> {
    let identities = own.attrs.identities();
    if identities.is_empty() {
        return None;
    }
    let mut elders = others
        .into_iter()
        .filter(|lease| lease.key != own.key && lease.created < own.created);
    elders.find(|lease| {
        lease.attrs.backend_type == own.attrs.backend_type
            && lease
                .attrs
                .identities()
                .iter()
                .any(|theirs| identities.contains(theirs))
    })
}
