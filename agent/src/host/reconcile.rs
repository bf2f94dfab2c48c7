//! Brings the host to the wanted state and keeps it there: computes the changes that the [`Executor`] makes.
//!
//! Start, restart, every event, repair and the periodic resync take the same path: observe, diff, apply. Only a change
//! of single peers skips the observation, because the kernel's state is then known from the last one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{trace, warn};

use crate::base::net::InterfaceName;
use crate::host::executor::Executor;
use crate::host::hooks::Ended;
use crate::host::netlink::{ChangeError, Failure, HandshakeRequest, KernelError, Watch};
use crate::plan::state::{Change, Delta, Key, Object, Route, Scope, State, diff, diff_keys};
use crate::plan::underlay::Underlay;

/// How many changes were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Objects that did not exist.
    pub created: u64,
    /// Objects that differed.
    pub changed: u64,
    /// Unwanted objects.
    pub removed: u64,
    /// Changes that failed.
    pub failed: u64,
}

impl Counts {
    /// The changes that were made.
    pub fn made(&self) -> u64 {
        self.created + self.changed + self.removed
    }

    fn add(&mut self, other: Self) {
        self.created += other.created;
        self.changed += other.changed;
        self.removed += other.removed;
        self.failed += other.failed;
    }
}

/// What one pass did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many changes it made.
    pub counts: Counts,
    /// The changes that failed, except those that only depend on one of them. The next [`Reconciler::resync`] tries
    /// them all again.
    pub failures: Vec<Failure>,
    /// Whether the observation was complete, so that no unwanted object is left. Only set by [`Reconciler::resync`].
    pub cleared: bool,
    /// Devices that were created.
    pub made: Vec<InterfaceName>,
    /// Whether hooks are still running, so that the state is not final.
    pub pending: bool,
    /// Its duration.
    pub took: Duration,
}

impl Report {
    /// Whether the kernel is now as wanted. If not, resync again later.
    pub fn is_complete(&self) -> bool {
        self.counts.failed == 0
    }
}

/// How many passes a resync makes at most: it observes again if a device was recreated, or was removed during the
/// observation.
const PASSES: usize = 3;

/// Brings the host to the wanted state and keeps it there.
#[derive(Debug)]
pub struct Reconciler {
    executor: Executor,
    scope: Scope,
    desired: State,
    /// Whether the kernel may differ from `desired` in more than the latest change.
    unsure: bool,
    /// Wanted objects blocked by another program's object, which must not be replaced.
    blocked: BTreeSet<Key>,
    totals: Counts,
    /// Devices that [`Self::add`] created, for the report of the next pass.
    made: Vec<InterfaceName>,
}

impl Reconciler {
    /// Takes over the part of the host's network configuration that is in `scope`. The wanted state is empty, and
    /// nothing happens before the first [`Self::resync`].
    pub fn new(mut executor: Executor, scope: Scope) -> Self {
        executor.open_hooks(scope.hooks.as_deref());
        executor.open_ike(&scope);
        Self {
            executor,
            scope,
            desired: State::new(),
            unsure: true,
            blocked: BTreeSet::new(),
            totals: Counts::default(),
            made: Vec::new(),
        }
    }

    /// The executor, which makes the changes.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The executor, for other queries.
    pub fn executor_mut(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Returns the executor; changes nothing on the host.
    pub fn into_executor(self) -> Executor {
        self.executor
    }

    /// The wanted state.
    pub fn desired(&self) -> &State {
        &self.desired
    }

    /// The number of changes since the start.
    pub fn totals(&self) -> Counts {
        self.totals
    }

    /// What the monitor has to watch.
    pub fn watch<'a>(&'a self, underlay: &'a Underlay) -> Watch<'a> {
        Watch {
            kernel: self.executor.kernel(),
            scope: &self.scope,
            desired: &self.desired,
            underlay,
        }
    }

    /// Changes the scope. The next [`Self::resync`] removes devices and routes that were in scope before, for example
    /// because the network config now names another device or network; afterwards [`Self::set_networks`] drops the old
    /// networks.
    pub fn set_scope(&mut self, scope: Scope) {
        if self.scope == scope {
            return;
        }
        self.unsure = true;
        self.executor.open_hooks(scope.hooks.as_deref());
        let former = std::mem::replace(&mut self.scope, scope);
        self.scope.ipsec |= former.ipsec;
        for link in former.links {
            if !self.scope.links.contains(&link) {
                self.scope.links.push(link);
            }
        }
        for network in former.networks {
            if !self.scope.networks.contains(&network) {
                self.scope.networks.push(network);
            }
        }
        self.executor.open_ike(&self.scope);
    }

    /// Changes the networks by which our unmarked routes are recognised. Another agent on this host may use an old
    /// network once our routes in it are gone.
    pub fn set_networks(&mut self, networks: Vec<IpNet>) {
        self.scope.networks = networks;
        self.executor.open_ike(&self.scope);
    }

    /// Makes the next [`Self::resync`] run all hooks again, as at a start.
    pub fn reload_hooks(&mut self) {
        self.unsure = true;
        self.executor.reload_hooks();
    }

    /// Waits until a failed hook is due for a retry by [`Self::resync`]; forever if none is. Cancel-safe.
    pub(crate) async fn hooks_due(&self) {
        self.executor.hooks_due().await;
    }

    /// Whether hooks are running.
    pub fn is_pending(&self) -> bool {
        self.executor.is_pending()
    }

    /// Waits until the running hooks have ended; forever if none run. Cancel-safe.
    pub(crate) async fn hooks_ended(&self) -> Ended {
        self.executor.hooks_ended().await
    }

    /// Records the results of hooks. The next [`Self::resync`] finds the hooks to run now, and retries the failed ones.
    pub(crate) fn take_hooks(&mut self, ended: Ended) -> Report {
        let mut report = Report::default();
        for (change, outcome) in self.executor.take_hooks(ended) {
            trace!(%change, ?outcome, "hook");
            self.unsure |= self.note(change, outcome, &mut report);
        }
        self.totals.add(report.counts);
        report
    }

    /// Replaces the wanted state. Nothing happens before the next [`Self::resync`].
    pub fn set_desired(&mut self, desired: State) {
        self.desired = desired;
        self.unsure = true;
    }

    /// Observes the kernel and makes the changes that lead to the wanted state, if any.
    ///
    /// Cancel-safe: completed changes remain, and the next pass observes again.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed. Resync again later. Single failed changes are in the report.
    pub async fn resync(&mut self) -> Result<Report, KernelError> {
        let start = Instant::now();
        let mut report = Report::default();
        self.unsure = true;
        for pass in 1..=PASSES {
            let observed = match self.executor.observe(&self.scope).await {
                Err(error) if error.is_transient() && pass < PASSES => continue,
                observed => observed?,
            };
            let mut changes = diff(&self.desired, &observed.state);
            if !observed.complete {
                warn!(
                    "the kernel objects kept changing while they were listed; removing none until the next resync"
                );
                changes.retain(|change| matches!(change, Change::Set { .. }));
            }
            drop(observed.state);
            report.cleared = observed.complete;
            self.blocked.clear();
            report.failures.clear();
            report.counts.failed = 0;
            let recreated = self.apply(changes, &mut report).await?;
            if observed.complete && !observed.stale_next_hops.is_empty() {
                self.executor
                    .kernel_mut()
                    .delete_next_hops(&observed.stale_next_hops)
                    .await?;
            }
            if !recreated {
                break;
            }
        }
        Ok(self.finish(report, start))
    }

    /// Makes those of these objects that are missing; changes and removes nothing. Returns whether all are as given
    /// then. If one is there in another form, or where hooks or connections belong to the scope, nothing is made. The next
    /// pass reports the devices that it made.
    ///
    /// # Errors
    ///
    /// As [`Self::resync`].
    pub(crate) async fn add(&mut self, objects: &State) -> Result<bool, KernelError> {
        if self.scope.hooks.is_some() || self.scope.ipsec {
            return Ok(false);
        }
        self.unsure = true;
        let observed = self.executor.observe(&self.scope).await?.state;
        let lacking = |(key, object): &(&Key, &Object)| {
            let there = observed.get(key);
            !there.is_some_and(|there| there.satisfies(object))
        };
        let lacking: Vec<_> = objects.iter().filter(lacking).collect();
        if lacking.iter().any(|(key, _)| observed.contains_key(key)) {
            return Ok(false);
        }
        let changes = lacking.into_iter().map(|(key, object)| Change::Set {
            key: key.clone(),
            object: object.clone(),
            was: None,
        });
        let mut report = Report::default();
        let applied = self.apply(changes.collect(), &mut report).await;
        self.made.append(&mut report.made);
        self.totals.add(report.counts);
        self.unsure = true;
        Ok(!applied? && report.is_complete())
    }

    /// Applies a change of the wanted state without observing the kernel.
    ///
    /// If the last pass was incomplete for another reason than a conflicting object, or if a device changes, this is a
    /// [`Self::resync`].
    ///
    /// # Errors
    ///
    /// As [`Self::resync`], which is then needed.
    pub async fn update(&mut self, delta: Delta) -> Result<Report, KernelError> {
        let start = Instant::now();
        let mut keys = Vec::with_capacity(delta.len());
        let mut before = State::new();
        for (key, object) in delta {
            let old = match object {
                Some(object) => self.desired.insert(key.clone(), object),
                None => self.desired.remove(&key),
            };
            if !self.blocked.remove(&key) {
                before.extend(old.map(|old| (key.clone(), old)));
            }
            self.unsure |= matches!(key, Key::Link(_));
            keys.push(key);
        }
        if self.unsure {
            return self.resync().await;
        }
        let changes = diff_keys(&keys, &self.desired, &before);
        let mut report = Report::default();
        self.apply(changes, &mut report).await?;
        Ok(self.finish(report, start))
    }

    /// Starts a session with WireGuard peers without waiting for traffic. Returns whether the kernel refused something,
    /// so that a [`Self::resync`] is needed.
    ///
    /// # Errors
    ///
    /// As [`Self::resync`], which is then needed.
    pub(crate) async fn start_handshakes(
        &mut self,
        requests: &[HandshakeRequest],
    ) -> Result<bool, KernelError> {
        let unsure = std::mem::replace(&mut self.unsure, true);
        let refused = self
            .executor
            .kernel_mut()
            .start_handshakes(requests)
            .await?;
        self.unsure = unsure || refused;
        Ok(refused)
    }

    /// Removes everything that is ours: the overlay devices, and all routes and next hops with our protocol number. The
    /// wanted state is empty from then on.
    ///
    /// # Errors
    ///
    /// As [`Self::resync`].
    pub async fn remove_all(&mut self) -> Result<Report, KernelError> {
        self.set_desired(State::new());
        let mut report = self.resync().await?;
        while self.is_pending() {
            let ended = self.hooks_ended().await;
            let hooks = self.take_hooks(ended);
            report.counts.add(hooks.counts);
            report.failures.extend(hooks.failures);
        }
        report.pending = false;
        Ok(report)
    }

    /// The kernel's objects for the given keys, wanted or not. Changes nothing.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub async fn find<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Result<Vec<Option<Object>>, KernelError> {
        // If this fails halfway, device indices and next-hop IDs are unknown.
        let unsure = std::mem::replace(&mut self.unsure, true);
        let observed = self.executor.observe(&self.scope).await?.state;
        self.unsure = unsure;
        Ok(keys.map(|key| observed.get(key).cloned()).collect())
    }

    /// The overlay devices.
    pub fn links(&self) -> &[InterfaceName] {
        &self.scope.links
    }

    /// Makes changes; returns whether another pass is needed. Until all are done the kernel's state is uncertain, even
    /// if the caller drops the future.
    async fn apply(
        &mut self,
        mut changes: Vec<Change>,
        report: &mut Report,
    ) -> Result<bool, KernelError> {
        if !self.executor.kernel().has_next_hops() {
            changes.retain(|change| {
                !matches!(change.key(), Key::NextHop(..)) && !only_moves_gateway(change)
            });
        }
        self.unsure = true;
        let (outcomes, recreated) = self.executor.apply(changes, &self.scope).await?;
        let mut unsure = false;
        for (change, outcome) in outcomes {
            trace!(%change, ?outcome, "change");
            unsure |= self.note(change, outcome, report);
        }
        self.unsure = unsure;
        Ok(recreated)
    }

    /// Records the result of a change. Returns whether the kernel may now differ from the wanted state.
    fn note(
        &mut self,
        change: Change,
        outcome: Result<(), ChangeError>,
        report: &mut Report,
    ) -> bool {
        match (&change, outcome) {
            // The failure that caused it is in the list already; a lost device may have tens of thousands of these.
            (_, Err(ChangeError::Dependency)) => report.counts.failed += 1,
            (_, Err(error)) => {
                report.counts.failed += 1;
                let is_conflict = matches!(error, ChangeError::Conflict { .. });
                if is_conflict {
                    self.blocked.insert(change.key().clone());
                }
                report.failures.push(Failure { change, error });
                return !is_conflict;
            }
            (Change::Set { was: None, key, .. }, Ok(())) => {
                report.counts.created += 1;
                if let Key::Link(name) = key {
                    report.made.push(name.clone());
                }
            }
            (Change::Set { .. }, Ok(())) => report.counts.changed += 1,
            (Change::Del { .. }, Ok(())) => report.counts.removed += 1,
        }
        false
    }

    fn finish(&mut self, mut report: Report, start: Instant) -> Report {
        report.made.append(&mut self.made);
        report.pending = self.is_pending();
        report.took = start.elapsed();
        self.totals.add(report.counts);
        report
    }
}

/// Whether a change only moves a route's gateway into or out of a next-hop object, which needs a kernel that has those.
fn only_moves_gateway(change: &Change) -> bool {
    let Change::Set {
        object: Object::Route(want),
        was: Some(Object::Route(was)),
        ..
    } = change
    else {
        return false;
    };
    let here = |route: &Route| Route {
        inline: true,
        ..route.clone()
    };
    here(want) == here(was)
}
