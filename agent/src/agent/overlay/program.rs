//! How the overlay's state gets into the kernel, the ruleset and `subnet.env`.

use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::former_backend::FormerBackend;
use super::{Failed, Overlay, Wanted};
use crate::base::logging::chain;
use crate::cluster::lease::LeaseEvent;
use crate::host::hooks;
use crate::host::netlink::{Failure, KernelError};
use crate::host::reconcile::Report;
use crate::host::subnet_file::{self, SubnetFile};
use crate::plan::state::{Delta, Key, Object};
use crate::telemetry::status::{self, Cause, Coded, TaskName};

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

impl Overlay {
    /// Applies a lease event, without programming it.
    fn accept(&mut self, event: LeaseEvent) -> Delta {
        let changes = self.peers.apply(event);
        self.log(&changes);
        self.journal.note_peers(&changes, &self.peers);
        self.planned = None;
        let mut delta = Delta::new();
        for peer in &changes.removed {
            delta.extend(self.plan.remove_peer(&peer.key));
        }
        for peer in &changes.added {
            delta.extend(self.plan.set_peer(peer));
        }
        for peer in changes.changed.iter().map(|update| &update.new) {
            let before = self.plan.peer(&peer.key);
            delta.extend(self.plan.set_peer(peer));
            let had = |key: &&Key| before.iter().any(|(had, _)| had == *key);
            let now = self.plan.peer(&peer.key);
            let now = now.iter().map(|(key, _)| key);
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
        self.program_cloud();
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

    /// Makes the host's own device and addresses and writes `subnet.env` while the list of peers is on its way, so that
    /// containers need not wait for it. Only adds: what an earlier run left for peers stays as it is. Where that does
    /// not suffice, nothing is written: the pass with all peers does the whole work. Nor where an earlier run has left
    /// `subnet.env`: containers have what they need, and if its network was another one, it is the only record of that.
    pub(crate) async fn prepare(&mut self) {
        if self.subnet_file.exists() {
            return;
        }
        let own = self.backend.own(&self.own.key);
        match self.reconciler.add(&own).await {
            Ok(true) => (),
            Ok(false) => {
                info!("the host's own part is programmed when the peers are known");
                return;
            }
            Err(error) => {
                debug!("failed to program the host's own part: {}", chain(&error));
                return;
            }
        }
        self.program_firewall();
        match self.write_subnet_file() {
            Ok(()) => self.prepared = true,
            Err(error) => debug!("{}", chain(&error)),
        }
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
                Some(Ok(())) => break,
                Some(Err(error)) => {
                    return Err(error
                        .to_cause()
                        .worded(|text| format!("failed to program the firewall: {text}")));
                }
            }
        }
        self.join_cloud().await?;
        Ok(programmed)
    }

    pub(super) async fn program_kernel(&mut self) -> Result<Report, KernelError> {
        self.set_desired();
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

    /// Passes the wanted state to the reconciler, unless it has that already: changes of single peers reach it by
    /// [`Self::apply`].
    fn set_desired(&mut self) {
        let blackhole = self.firewall_settings.blackhole_route;
        let is_known = self.wanted.replace(Wanted { blackhole }) == Some(Wanted { blackhole });
        if is_known && self.former_backends.is_empty() {
            return;
        }
        let mut desired = match self.planned.take() {
            Some(planned) => planned,
            None => self.plan.state(),
        };
        self.settle_former_backends();
        for former in self.former_backends.iter().rev() {
            former.add_to(&self.own.key, &mut desired);
        }
        if blackhole {
            let nets = self.own.key.nets();
            desired.extend(nets.map(|net| (Key::Blackhole(net), Object::Blackhole)));
        }
        self.reconciler.set_desired(desired);
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
        let is_next_ready = self.cloud_is_settled();
        self.former_backends.retain_mut(|former| {
            let is_over = former.settle(peers, is_next_ready, now);
            if is_over {
                info!(
                    backend = former.kind(),
                    "all peers use the new backend; removing what is left of the former one"
                );
            }
            !is_over
        });
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
        if written || !(self.programmed || self.prepared) {
            info!(path = %self.subnet_file.display(), "subnet file written");
        }
        Ok(())
    }

    /// Turns the failed kernel changes into an error.
    pub(super) fn check(&mut self, report: Report) -> Result<(), Failed> {
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
