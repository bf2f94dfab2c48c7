//! Changes at run time: the own lease, the underlay, the network config, the node's identity.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tracing::{info, warn};

use super::former_backend::FormerBackend;
use super::{ConnectError, Overlay, list, log_limits};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey, allocate};
use crate::cluster::network_config::NetworkConfig;
use crate::host::open::{self, OpenError};
use crate::host::privileges::Privileges;
use crate::host::underlay;
use crate::plan::backend::{Backend, BackendConfig, FirstCommand, Setup};
use crate::settings::Settings;
use crate::telemetry::status;

/// What a new backend is built from while another one is in use.
struct NextBackend<'a> {
    config: &'a NetworkConfig,
    /// Whether to generate a new identity.
    new_identity: bool,
    /// The output of the config's first command, if it has run.
    printed: Option<String>,
}

impl Overlay {
    /// Switches to another lease. The store's list of peers follows.
    pub(crate) fn set_own(&mut self, own: Lease) {
        self.journal.leased = status::now();
        self.own = own;
        // Former backends use addresses of the former subnet.
        self.former_backends.clear();
        self.replan();
    }

    /// Takes the own lease's age from these leases, which were just written. Returns whether a peer that peers prefer to
    /// this node has its MAC address or key.
    pub(crate) fn meets_duplicate(&mut self, written: &[Lease]) -> bool {
        let known = self.peers.others().map(AsRef::as_ref);
        meets_duplicate(&mut self.own, written, known)
    }

    /// The addresses that this host sends from.
    pub(crate) fn underlay_addresses(&self) -> [Option<IpAddr>; 2] {
        let (v4, v6) = (self.underlay.v4, self.underlay.v6);
        [
            v4.map(|face| face.address.into()),
            v6.map(|face| face.address.into()),
        ]
    }

    /// Checks the underlay again; returns whether it or another address of this host changed.
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
        // Our former address may be a peer's now.
        let backend = self.backend.over(&underlay).into();
        for former in &mut self.former_backends {
            former.follow(&underlay);
        }
        self.underlay = underlay;
        self.set_backend(backend);
        Ok(true)
    }

    /// The command to run before [`Self::follow_config`], which needs its output.
    pub(crate) fn first_command(
        &self,
        privileges: &Privileges,
        config: &NetworkConfig,
    ) -> Result<Option<FirstCommand>, ConnectError> {
        if self.suits(config) || !allocate::allows(config, &self.own.key) {
            return Ok(None);
        }
        let parsed = BackendConfig::parse(config)?;
        let command = parsed.first_command();
        if command.is_some() {
            privileges.settle(&parsed)?;
        }
        Ok(command)
    }

    /// Switches to another network config, keeping this host's subnet; returns whether anything changed for this host.
    /// Programs nothing yet. `printed` is the output of the config's first command.
    ///
    /// A config that would need another subnet is refused, and nothing changes.
    pub(crate) async fn follow_config(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
        config: NetworkConfig,
        printed: Option<String>,
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
        self.claim_network(&config)?;
        let next = NextBackend {
            config: &config,
            new_identity: false,
            printed,
        };
        let opened = match self.suits(&config) {
            true => Ok(Arc::clone(&self.backend)),
            false => self.open_backend(settings, privileges, next).await,
        };
        let backend = match opened {
            Ok(backend) => backend,
            Err(error) => {
                // The present config stays in use.
                self.claim_network(&self.config.clone())?;
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
            // Back to a former backend: it is in use again.
            self.former_backends
                .retain(|former| former.kind() != backend.kind());
            self.former_backends
                .extend(FormerBackend::new(&self.backend, &*backend, peers));
        }
        self.set_backend(backend);
        Ok(true)
    }

    /// Claims a config's networks against other agents on this host, in place of those claimed before.
    fn claim_network(&mut self, config: &NetworkConfig) -> Result<(), ConnectError> {
        let networks: Vec<IpNet> = config.networks().collect();
        let claimed = self.reconciler.executor_mut().claim_network(&networks);
        Ok(claimed.map_err(OpenError::from)?)
    }

    async fn open_backend(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
        next: NextBackend<'_>,
    ) -> Result<Arc<dyn Backend>, ConnectError> {
        let NextBackend {
            config,
            new_identity,
            printed,
        } = next;
        let parsed = BackendConfig::parse(config)?;
        privileges.settle(&parsed)?;
        let setup = Setup {
            config,
            underlay: &self.underlay,
            state_dir: &settings.files.state_dir,
            new_identity,
            printed: printed.as_deref(),
        };
        let backend = open::open(&parsed, setup, self.reconciler.executor_mut()).await?;
        if let Some(lost) = privileges.lost_for(&parsed)? {
            warn!(
                "{lost} were dropped when the agent started with another backend; if {} fails without them, restart the agent",
                parsed.kind()
            );
        }
        log_limits(&*backend, config, &self.underlay);
        // The first command may have recreated what the other hooks worked on, so run them again.
        self.reconciler.reload_hooks();
        Ok(backend.into())
    }

    /// A lease of another node with this node's MAC address or key, if this node is the one that has to change it.
    pub(crate) fn duplicate_to_yield_to(&self) -> Option<SubnetKey> {
        let others = self.peers.others().map(AsRef::as_ref);
        duplicate_to_yield_to(&self.own, others).map(|duplicate| duplicate.key)
    }

    /// Generates a new MAC address or key for this node. Programs and publishes nothing yet.
    pub(crate) async fn renew_identity(
        &mut self,
        settings: &Settings,
        privileges: &Privileges,
    ) -> Result<(), ConnectError> {
        let config = self.config.clone();
        let next = NextBackend {
            config: &config,
            new_identity: true,
            printed: None,
        };
        let backend = self.open_backend(settings, privileges, next).await?;
        self.set_backend(backend);
        Ok(())
    }

    /// Whether the backend in use fits another network config.
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
        // What is left of a former network is removed first.
        self.old_network_removed = false;
        self.replan();
    }
}

/// See [`Overlay::meets_duplicate`]. `known`: the peers before.
fn meets_duplicate<'a>(
    own: &mut Lease,
    written: &[Lease],
    known: impl IntoIterator<Item = &'a Lease>,
) -> bool {
    let has_other_age = follow_own_age(own, written);
    duplicate_to_yield_to(own, written).is_some()
        // Who has been known all along may be the older one only now.
        || has_other_age && duplicate_to_yield_to(own, known).is_some()
}

/// The store may have written the own lease again after it had expired; then it is younger than before. Returns whether
/// its age changed.
fn follow_own_age(own: &mut Lease, written: &[Lease]) -> bool {
    let as_stored = written
        .iter()
        .find(|lease| lease.key == own.key && lease.attrs.owner == own.attrs.owner);
    let created = as_stored.map_or(own.created, |lease| lease.created);
    std::mem::replace(&mut own.created, created) != created
}

/// The first of these leases that has the own MAC address or key and makes this node generate another. Peers use the
/// older lease. A lease without an owner ID is a real flannel's: flannel never generates another, and flannel nodes
/// send to the host that published last.
fn duplicate_to_yield_to<'a>(
    own: &Lease,
    others: impl IntoIterator<Item = &'a Lease>,
) -> Option<&'a Lease> {
    duplicates(own, others).find(|lease| lease.created < own.created || lease.attrs.owner.is_none())
}

/// The leases among these that have the own MAC address or key.
pub(crate) fn duplicates<'a>(
    own: &Lease,
    others: impl IntoIterator<Item = &'a Lease>,
) -> impl Iterator<Item = &'a Lease> {
    let identities = own.attrs.identities();
    others.into_iter().filter(move |lease| {
        !identities.is_empty()
            && lease.key != own.key
            && lease.attrs.backend_type == own.attrs.backend_type
            && lease
                .attrs
                .identities()
                .iter()
                .any(|theirs| identities.contains(theirs))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(subnet: &str, owner: &str, mac: &str, created: u64) -> Lease {
        let value = format!(
            r#"{{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"SelvageOwner":"{owner}"}}"#
        );
        Lease {
            key: SubnetKey::parse_name(subnet).unwrap(),
            attrs: LeaseAttrs::parse(value.as_bytes()).unwrap(),
            created,
        }
    }

    /// A node was cut off until its lease expired; meanwhile a clone of its disk took another subnet.
    #[test]
    fn who_takes_a_lease_again_yields_to_the_clone_that_it_knew_already() {
        let mac = "02:00:00:00:00:01";
        let mut own = lease("10.5.1.0-24", "original", mac, 50);
        let clone = lease("10.5.2.0-24", "clone", mac, 100);
        let other = lease("10.5.3.0-24", "other", "02:00:00:00:00:02", 10);
        let known = [other.clone(), clone.clone()];
        // Its own lease is older still, as far as it knows.
        assert!(!meets_duplicate(&mut own, &known, &[]));
        assert!(!meets_duplicate(&mut own, &[other], &known));
        let again = lease("10.5.1.0-24", "original", mac, 120);
        assert!(meets_duplicate(&mut own, &[again], &known));
        assert_eq!(own.created, 120);
        // Told once, it need not be told with every change of its lease.
        let published = own.clone();
        assert!(!meets_duplicate(&mut own, &[published], &known));
        assert!(meets_duplicate(&mut own, &[clone], &[]));
        let taken_over = lease("10.5.1.0-24", "clone", mac, 200);
        assert!(!meets_duplicate(&mut own, &[taken_over], &[]));
        assert_eq!(own.created, 120);
    }
}
