//! Brings the host to the wanted state and keeps it there: the difference that the [`Executor`] then makes.
//!
//! Start, restart, every event, repair and the periodic resync take the same path: observe, diff, apply. Only a change of
//! single peers skips the observation, because what the kernel has is then known from before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tracing::{trace, warn};

use crate::base::net::InterfaceName;
use crate::host::executor::Executor;
use crate::host::hooks::Ended;
use crate::host::netlink::{ChangeError, Failure, Greeting, KernelError, Watch};
use crate::plan::state::{Change, Delta, Key, Object, Route, Scope, State, diff, diff_keys};
use crate::plan::underlay::Underlay;

/// How many changes were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Objects that did not exist.
    pub created: u64,
    /// Objects that were otherwise.
    pub changed: u64,
    /// Objects that are not wanted.
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
    /// The changes that did not come about, but for those that only depend on one of them. The next
    /// [`Reconciler::resync`] tries them all again.
    pub failures: Vec<Failure>,
    /// Whether everything was seen, so that nothing is left that is not wanted. Only of a [`Reconciler::resync`].
    pub cleared: bool,
    /// Devices that did not exist.
    pub made: Vec<InterfaceName>,
    /// Whether commands of the administrator still run, and what they do is not done yet.
    pub pending: bool,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether the kernel is now as wanted. If not, resync again after a while.
    pub fn is_complete(&self) -> bool {
        self.counts.failed == 0
    }
}

/// How often a resync observes anew at most, where a device had to be recreated, or went away while it was looked at.
const PASSES: usize = 3;

/// Brings the host to the wanted state and keeps it there.
#[derive(Debug)]
pub struct Reconciler {
    executor: Executor,
    scope: Scope,
    desired: State,
    /// Whether the kernel may differ from `desired` in more than what changed since.
    unsure: bool,
    /// The wanted objects in whose place somebody else's stands, which must not be replaced.
    blocked: BTreeSet<Key>,
    totals: Counts,
}

impl Reconciler {
    /// Takes over the host's network configuration, so far as it is in `scope`. Nothing is wanted yet, and nothing
    /// happens before the first [`Self::resync`].
    pub fn new(mut executor: Executor, scope: Scope) -> Self {
        executor.remember_hooks(scope.hooks.as_deref());
        Self {
            executor,
            scope,
            desired: State::new(),
            unsure: true,
            blocked: BTreeSet::new(),
            totals: Counts::default(),
        }
    }

    /// What makes the changes.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// What makes the changes, to look at something else with it.
    pub fn executor_mut(&mut self) -> &mut Executor {
        &mut self.executor
    }

    /// Gives the executor back; nothing is changed on the host.
    pub fn into_executor(self) -> Executor {
        self.executor
    }

    /// What is wanted.
    pub fn desired(&self) -> &State {
        &self.desired
    }

    /// The changes made since the start.
    pub fn totals(&self) -> Counts {
        self.totals
    }

    /// What the monitor has to look out for.
    pub fn watch<'a>(&'a self, underlay: &'a Underlay) -> Watch<'a> {
        Watch {
            kernel: self.executor.kernel(),
            scope: &self.scope,
            desired: &self.desired,
            underlay,
        }
    }

    /// Changes what is ours. A device that no longer is, because the network config now names another, is removed by the
    /// next [`Self::resync`], and so are routes in a network that no longer is; [`Self::set_networks`] forgets that then.
    pub fn set_scope(&mut self, scope: Scope) {
        if self.scope == scope {
            return;
        }
        self.unsure = true;
        self.executor.remember_hooks(scope.hooks.as_deref());
        let former = std::mem::replace(&mut self.scope, scope);
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
    }

    /// Changes which networks routes without a mark of ours are known by. Former ones, once their routes are gone, may become
    /// another agent's on this host.
    pub fn set_networks(&mut self, networks: Vec<IpNet>) {
        self.scope.networks = networks;
    }

    /// Has all hooks run again by the next [`Self::resync`], as at a start.
    pub fn renew_hooks(&mut self) {
        self.unsure = true;
        self.executor.renew_hooks();
    }

    /// Waits until a command that failed is to be tried again, by a [`Self::resync`]; for ever when none is. Cancel-safe.
    pub(crate) async fn hooks_due(&self) {
        self.executor.hooks_due().await;
    }

    /// Whether commands of the administrator run.
    pub fn is_pending(&self) -> bool {
        self.executor.is_pending()
    }

    /// Waits until commands have ended; for ever if none run. Cancel-safe.
    pub(crate) async fn hooks_ended(&self) -> Ended {
        self.executor.hooks_ended().await
    }

    /// Takes in what became of commands. The next [`Self::resync`] finds what is to be run now, and runs again what failed.
    pub(crate) fn take_hooks(&mut self, ended: Ended) -> Report {
        let mut report = Report::default();
        for (change, outcome) in self.executor.take_hooks(ended) {
            trace!(%change, ?outcome, "hook");
            self.unsure |= self.note(change, outcome, &mut report);
        }
        self.totals.add(report.counts);
        report
    }

    /// Changes the whole wanted state. Nothing happens before the next [`Self::resync`].
    pub fn set_desired(&mut self, desired: State) {
        self.desired = desired;
        self.unsure = true;
    }

    /// Observes the kernel and makes the changes that lead to the wanted state; none if it is there already.
    ///
    /// Cancel-safe: what was done stays done, and the next pass observes again.
    ///
    /// # Errors
    ///
    /// The kernel cannot be talked to. Resync again after a while. Single changes that fail are in the report.
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
                    "the kernel's configuration kept changing while it was read; removing nothing"
                );
                changes.retain(|change| matches!(change, Change::Set { .. }));
            }
            drop(observed.state);
            report.cleared = observed.complete;
            self.blocked.clear();
            report.failures.clear();
            report.counts.failed = 0;
            let recreated = self.apply(changes, &mut report).await?;
            if observed.complete && !observed.surplus.is_empty() {
                self.executor
                    .kernel_mut()
                    .delete_next_hops(&observed.surplus)
                    .await?;
            }
            if !recreated {
                break;
            }
        }
        Ok(self.finish(report, start))
    }

    /// Takes a change of the wanted state and makes only the changes that it asks for, without observing the kernel.
    ///
    /// If the last pass left something undone, other than for another program's sake, or if a device changes, this is a
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

    /// Begins a session with WireGuard peers, without a packet for them. Whether the kernel refused something, so that a
    /// [`Self::resync`] is needed.
    ///
    /// # Errors
    ///
    /// As [`Self::resync`], which is then needed.
    pub(crate) async fn greet(&mut self, greetings: &[Greeting]) -> Result<bool, KernelError> {
        let unsure = std::mem::replace(&mut self.unsure, true);
        let refused = self.executor.kernel_mut().greet(greetings).await?;
        self.unsure = unsure || refused;
        Ok(refused)
    }

    /// Removes everything that is ours: the overlay devices, and all routes and next hops with our protocol number.
    /// Nothing is wanted from then on.
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

    /// What there is in the kernel of some keys, whatever is wanted. Changes nothing.
    ///
    /// # Errors
    ///
    /// The kernel cannot be talked to.
    pub async fn find<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Result<Vec<Option<Object>>, KernelError> {
        // Where this fails halfway, the kernel's numbers for our objects are not known any more.
        let unsure = std::mem::replace(&mut self.unsure, true);
        let observed = self.executor.observe(&self.scope).await?.state;
        self.unsure = unsure;
        Ok(keys.map(|key| observed.get(key).cloned()).collect())
    }

    /// The overlay devices.
    pub fn links(&self) -> &[InterfaceName] {
        &self.scope.links
    }

    /// Makes changes; returns whether it must be done over. Until they are all done the kernel's state is uncertain,
    /// also when the caller gives up waiting.
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

    /// Notes what became of a change. Whether the kernel may now differ from what is wanted.
    fn note(
        &mut self,
        change: Change,
        outcome: Result<(), ChangeError>,
        report: &mut Report,
    ) -> bool {
        match (&change, outcome) {
            // The failure that it depends on is in the list; with a lost device there may be ten thousands of these.
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
        report.pending = self.is_pending();
        report.took = start.elapsed();
        self.totals.add(report.counts);
        report
    }
}

/// Whether a change would only say elsewhere where a route leads, which takes a kernel that has next-hop objects.
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
