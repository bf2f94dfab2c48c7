//! The executor makes changes on this host: it has a part for each kind of object, and claims that keep two agents
//! apart.
//!
//! | part | has | its objects |
//! |---|---|---|
//! | [`Kernel`] | a netlink socket | links, addresses, neighbor and FDB entries, next hops, routes, WireGuard peers, policies of IPsec |
//! | data plane | the udp backend's threads | forwarding entries |
//! | hooks | a task that runs commands | hooks |
//! | IKE | a task that tells charon what to do | connections |
//! | claims | names of abstract sockets | none: the devices and networks of this agent |
//!
//! A backend whose objects are elsewhere, such as in a separate daemon, adds a part: its keys in [`Key`], a field of
//! [`Executor`], and its turn in [`Executor::observe`] and [`Executor::apply`].
//!
//! The packet filter is not a part: its rules are one object, updated by a separate task ([`crate::host::firewall`]). Nor
//! are a cloud provider's routes, which take seconds to look at (`cloud::worker`).

mod claims;
mod data_plane;
mod states;

use std::path::{Path, PathBuf};

pub use self::claims::ClaimError;
use self::data_plane::Slot;
use crate::base::net::InterfaceName;
use crate::base::network_name::NetworkName;
use crate::host::claim::Claims;
use crate::host::hooks::{CommandError, Ended, Runner};
use crate::host::ike;
use crate::host::netlink::{Applied, ChangeError, Kernel, KernelError, Observed, Refused};
use crate::host::udp::Counters;
use crate::plan::state::{Change, Key, Scope};

/// A change and its result.
pub(crate) type Outcome = (Change, Result<(), ChangeError>);

/// Where the IKE daemon is found, and asked for.
#[derive(Clone, Debug)]
struct IkePaths {
    /// charon's VICI socket.
    vici: PathBuf,
    /// The directory of the agent's control socket.
    runtime: PathBuf,
}

/// Makes changes on this host.
#[derive(Debug)]
pub struct Executor {
    kernel: Kernel,
    data_plane: Slot,
    hooks: Option<Runner>,
    /// Where charon is.
    ike_at: Option<IkePaths>,
    ike: Option<ike::Worker>,
    /// What other agents on this host must leave alone.
    claims: Claims,
}

impl Executor {
    /// Opens a socket in the current network namespace, as [`Kernel::open`].
    ///
    /// # Errors
    ///
    /// As [`Kernel::open`].
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self::new(Kernel::open()?))
    }

    /// An executor that uses this netlink socket.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            data_plane: Slot::default(),
            hooks: None,
            ike_at: None,
            ike: None,
            claims: Claims::default(),
        }
    }

    /// For the agent of a named network, as [`Kernel::of_network`].
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.kernel = self.kernel.of_network(network);
        self
    }

    /// Takes over claims that this process already holds.
    pub fn with_claims(mut self, claims: Claims) -> Self {
        self.claims = claims;
        self.update_claimed();
        self
    }

    /// Sets where charon is found, by its VICI socket, and asked for, in the directory of the agent's control socket. Without
    /// it there are no connections.
    pub fn with_charon(mut self, vici: &Path, socket: &Path) -> Self {
        self.ike_at = Some(IkePaths {
            vici: vici.to_owned(),
            runtime: socket.parent().unwrap_or(socket).to_owned(),
        });
        self
    }

    /// Starts to keep charon's connections, if the scope has any.
    pub(crate) fn open_ike(&mut self, scope: &Scope) {
        if let (true, None, Some(paths)) = (scope.ipsec, &self.ike, &self.ike_at) {
            self.ike = Some(ike::Worker::start(&paths.vici, &paths.runtime));
        }
        if let Some(ike) = &self.ike {
            ike.set_networks(&scope.networks);
        }
    }

    /// The part that keeps charon's connections, if there are any.
    pub(crate) fn ike(&self) -> Option<&ike::Worker> {
        self.ike.as_ref()
    }

    /// The netlink part.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The netlink part, for queries.
    pub fn kernel_mut(&mut self) -> &mut Kernel {
        self.update_claimed();
        &mut self.kernel
    }

    /// The counters of the udp backend's data plane, if there is one.
    pub fn data_plane_counters(&self) -> Option<Counters> {
        self.data_plane.counters()
    }

    /// Sets the file that records the peers whose hooks have run. `None` keeps the current one: hooks that ran must
    /// still be undone.
    pub(crate) fn open_hooks(&mut self, file: Option<&Path>) {
        if let Some(file) = file
            && self.hooks.as_ref().map(Runner::file) != Some(file)
        {
            self.hooks = Some(Runner::open(file));
        }
    }

    /// Makes all hooks run again, as at a start.
    pub(crate) fn reload_hooks(&mut self) {
        if let Some(hooks) = &mut self.hooks {
            hooks.reload();
        }
    }

    /// Waits until a failed hook is due for a retry; forever if none is. Cancel-safe.
    pub(crate) async fn hooks_due(&self) {
        match self.hooks.as_ref().and_then(Runner::next_try) {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Whether hooks are running.
    pub(crate) fn is_pending(&self) -> bool {
        self.hooks.as_ref().is_some_and(Runner::is_busy)
    }

    /// Waits until the running hooks have ended; forever if none run. Cancel-safe.
    pub(crate) async fn hooks_ended(&self) -> Ended {
        match &self.hooks {
            Some(hooks) => hooks.ended().await,
            None => std::future::pending().await,
        }
    }

    /// Records the results of hooks.
    pub(crate) fn take_hooks(&mut self, ended: Ended) -> Vec<Outcome> {
        let Some(hooks) = &mut self.hooks else {
            return Vec::new();
        };
        let outcome = |outcome: Result<(), CommandError>| {
            outcome.map_err(|error| match error {
                CommandError::Behind => ChangeError::Dependency,
                error => ChangeError::from(error),
            })
        };
        let ended = hooks.take(ended).into_iter();
        ended.map(|(change, of)| (change, outcome(of))).collect()
    }

    /// Observes what is ours.
    ///
    /// # Errors
    ///
    /// As [`Kernel::observe`].
    pub(crate) async fn observe(&mut self, scope: &Scope) -> Result<Observed, KernelError> {
        self.claims.answer();
        self.update_claimed();
        let mut observed = self.kernel.observe(scope).await?;
        for name in &scope.links {
            if observed.state.contains_key(&Key::Link(name.clone())) {
                observed.state.extend(self.data_plane.observe(name));
            }
        }
        let hooks = self.hooks.iter().flat_map(Runner::observe);
        observed.state.extend(hooks);
        let connections = self.ike.iter().flat_map(ike::Worker::observe);
        observed.state.extend(connections);
        Ok(observed)
    }

    /// Makes changes in order, each by its part. A failed change does not stop the others. Hooks are only started;
    /// [`Self::hooks_ended`] waits for them. Returns the results of the other changes, and whether a device was
    /// recreated on the way, so that everything on it must be programmed again.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed; the next observation shows which changes were made.
    pub(crate) async fn apply(
        &mut self,
        mut changes: Vec<Change>,
        scope: &Scope,
    ) -> Result<(impl Iterator<Item = Outcome> + use<>, bool), KernelError> {
        // Nearly all are the kernel's, at a start 40,000 for 10,000 peers: they stay where they are.
        let hooks: Vec<_> = changes
            .extract_if(.., |change| matches!(change.key(), Key::Hook(_)))
            .collect();
        let forwards: Vec<_> = changes
            .extract_if(.., |change| matches!(change.key(), Key::Forward(..)))
            .collect();
        let connections: Vec<_> = changes
            .extract_if(.., |change| matches!(change.key(), Key::Connection(_)))
            .collect();
        // Policies are there before the routes whose packets they are for, and go after them.
        let (new, old): (Vec<_>, Vec<_>) = changes
            .extract_if(.., |change| matches!(change.key(), Key::Policy(..)))
            .partition(|change| matches!(change, Change::Set { .. }));
        let of_new = self.kernel.set_policies(&new).await?;
        let mut claimed = Vec::new();
        for change in changes.extract_if(.., |change| match change.key() {
            Key::Link(name) => !self.may_have(name, change),
            _ => false,
        }) {
            if let Key::Link(name) = change.key() {
                claimed.push((name.clone(), change));
            }
        }
        let broken = claimed.iter().map(|(name, _)| name.clone()).collect();
        self.data_plane.prepare(&forwards);
        let applied = self
            .kernel
            .apply(&changes, scope, &mut self.data_plane, broken)
            .await?;
        let Applied {
            mut failures,
            recreated,
            broken,
        } = applied;
        let of_forwards = self.data_plane.finish(&forwards, &broken);
        // Before charon hears of it, and makes new ones.
        let is_kept = |peer| self.ike.as_ref().is_some_and(|ike| ike.has(peer));
        let stale = states::stale(&connections, new.iter().chain(&old), is_kept);
        self.kernel.delete_states(&stale).await?;
        if let Some(ike) = &self.ike {
            ike.apply(&connections);
        }
        let of_old = self.kernel.set_policies(&old).await?;
        if let Some(runner) = self.hooks.as_mut().filter(|_| !hooks.is_empty()) {
            runner.start(hooks);
        }
        self.release_devices();
        let claimed = claimed.into_iter();
        let claimed = claimed.map(|(name, change)| (change, Err(ChangeError::Claimed(name))));
        let of_kernel = changes.into_iter().enumerate();
        let of_kernel = of_kernel
            .map(move |(index, change)| (change, failures.remove(&index).map_or(Ok(()), Err)));
        let outcomes = claimed
            .chain(of_kernel)
            .chain(forwards.into_iter().zip(of_forwards))
            .chain(policies(new, of_new))
            .chain(policies(old, of_old))
            .chain(connections.into_iter().map(|change| (change, Ok(()))));
        Ok((outcomes, recreated))
    }

    /// Claims a device again before it is created, if its claim was released.
    fn may_have(&mut self, name: &InterfaceName, change: &Change) -> bool {
        match change {
            Change::Set { .. } => self.claim_again(name).is_ok(),
            Change::Del { .. } => true,
        }
    }

    /// Passes the claimed devices and the TUN device to the netlink part, which cannot see them.
    fn update_claimed(&mut self) {
        let claimed = claims::devices(&self.claims).collect();
        self.kernel.set_claimed(claimed, self.data_plane.device());
    }
}

/// The results of changes of policies.
fn policies(
    changes: Vec<Change>,
    outcomes: Vec<Result<(), Refused>>,
) -> impl Iterator<Item = Outcome> {
    let outcomes = outcomes.into_iter();
    let outcomes = outcomes.map(|outcome| outcome.map_err(ChangeError::from));
    changes.into_iter().zip(outcomes)
}
