//! Tasks that are retried with growing pauses until they succeed.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::overlay::{Failed, Programmed};
use crate::base::logging::Repeats;
use crate::base::retry::{Backoff, Retry, random_seed};
use crate::telemetry::status::{Cause, Coded, TaskName};

/// From 200 ms after the first failure to at most 10 s, so that a fault that heals by itself is noticed soon.
const PAUSES: Backoff = Backoff::constant(Duration::from_millis(200), Duration::from_secs(10), 0.3);

/// The retry schedule, with a jitter per node so that a cluster does not retry in step.
pub(super) fn new_retry() -> Retry {
    Retry::new(PAUSES.seeded(random_seed()))
}

/// A task and the error that blocks it.
#[derive(Debug)]
pub(super) struct Task {
    name: TaskName,
    /// The task in words that follow "failed to".
    what: &'static str,
    retry: Retry,
    trouble: Option<Cause>,
    repeats: Repeats,
    /// The number of failures since the process started.
    failures: u64,
}

impl Task {
    /// A task with nothing to do yet.
    pub(super) fn new(name: TaskName, what: &'static str) -> Self {
        Self {
            name,
            what,
            retry: new_retry(),
            trouble: None,
            repeats: Repeats::default(),
            failures: 0,
        }
    }

    /// The task's name.
    pub(super) fn name(&self) -> TaskName {
        self.name
    }

    /// The number of failures since the process started.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// What is wrong, for the status.
    pub(super) fn trouble(&self) -> Option<&Cause> {
        self.trouble.as_ref()
    }

    /// Makes it due at once.
    pub(super) fn now(&mut self) {
        self.retry.now();
    }

    /// Makes it due at a certain time.
    pub(super) fn at(&mut self, due: Instant) {
        self.retry.at(due);
    }

    /// It succeeded.
    pub(super) fn done(&mut self) {
        self.retry.done();
        self.trouble = None;
        if let Some(seen) = self.repeats.end(Instant::now()) {
            info!("recovered: can {} again; the failure was {seen}", self.what);
        }
    }

    /// It failed and is due again after a pause.
    pub(super) fn failed(&mut self, error: &impl Coded) {
        self.note(error);
        self.retry.schedule();
    }

    /// It failed, and a retry is useless until another program changes something.
    pub(super) fn stuck(&mut self, error: &impl Coded) {
        self.note(error);
        self.retry.done();
    }

    /// A part of it failed for which a retry is useless. A retry that is due for another part stays due, and its error
    /// stays the reported one until then.
    pub(super) fn partly_stuck(&mut self, error: &impl Coded) {
        let waiting = self.trouble.take().filter(|_| self.retry.is_waiting());
        self.note(error);
        self.trouble = waiting.or(self.trouble.take());
    }

    /// It runs elsewhere; its error stands until that has ended.
    pub(super) fn started(&mut self) {
        self.retry.suspend();
    }

    /// What was [started](Self::started) has ended. If the task became due again meanwhile, it was for a state that this
    /// run did not see: it stays due, and the next run decides.
    pub(super) fn ended(&mut self, outcome: Result<&(), &impl Coded>) {
        if self.is_waiting() {
            return;
        }
        match outcome {
            Ok(()) => self.done(),
            Err(error) => self.failed(error),
        }
    }

    /// Whether it is due, now or later.
    pub(super) fn is_waiting(&self) -> bool {
        self.retry.is_waiting()
    }

    /// Waits until it is due; forever if there is nothing to do. Cancel-safe.
    pub(super) async fn due(&self) {
        self.retry.due().await;
    }

    /// Logs a lasting error once and then occasionally with a count, not at every attempt.
    fn note(&mut self, error: &impl Coded) {
        self.failures += 1;
        let what = self.what;
        let trouble = error
            .to_cause()
            .of(self.name)
            .worded(|text| format!("failed to {what}: {text}"));
        if let Some(line) = self.repeats.note(&trouble.text, Instant::now()) {
            warn!(task = self.name.as_str(), "{line}");
        }
        self.trouble = Some(trouble);
    }
}

/// All tasks and when they are due.
pub(super) struct Tasks {
    /// Programming the kernel.
    pub(super) program: Task,
    /// Programming the firewall.
    pub(super) firewall: Task,
    /// Keeping the cloud provider's routes, which their own task does.
    pub(super) cloud_routes: Task,
    /// Writing `subnet.env`.
    pub(super) subnet_file: Task,
    /// Taking a lease in place of a lost one.
    pub(super) lease: Task,
    /// Renewing the lease, which the store does.
    pub(super) renewal: Task,
    /// Checking the underlay.
    pub(super) underlay: Task,
    /// Applying a changed network config.
    pub(super) config: Task,
    /// Publishing the own attributes.
    pub(super) publish: Task,
    /// Generating another MAC address or key.
    pub(super) identity: Task,
    /// Keeping the connections of the IKE daemon, which is done elsewhere.
    pub(super) ike: Task,
    /// Whether the host itself is off the overlay, not only some peers.
    pub(super) down: bool,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            program: Task::new(TaskName::Program, "program the kernel"),
            firewall: Task::new(TaskName::Firewall, "program the firewall"),
            cloud_routes: Task::new(
                TaskName::CloudRoutes,
                "have the subnet routed by the provider",
            ),
            subnet_file: Task::new(
                TaskName::SubnetFile,
                "pass the subnet to container runtimes",
            ),
            lease: Task::new(TaskName::Lease, "acquire another lease"),
            renewal: Task::new(TaskName::Renewal, "renew the lease"),
            underlay: Task::new(TaskName::Underlay, "check the underlay"),
            config: Task::new(TaskName::Config, "apply the new network config"),
            publish: Task::new(
                TaskName::Publish,
                "publish this node's address and identity",
            ),
            identity: Task::new(TaskName::Identity, "generate a new MAC address or key"),
            ike: Task::new(TaskName::Ike, "have keys of IPsec negotiated"),
            down: false,
        }
    }
}

impl Tasks {
    pub(super) fn all(&self) -> [&Task; 11] {
        [
            &self.program,
            &self.firewall,
            &self.cloud_routes,
            &self.subnet_file,
            &self.lease,
            &self.renewal,
            &self.underlay,
            &self.config,
            &self.publish,
            &self.identity,
            &self.ike,
        ]
    }

    /// Records the result of a full pass.
    pub(super) fn programmed_all(&mut self, programmed: Programmed) {
        self.down = matches!(&programmed.kernel, Err(error) if !error.peers_only());
        match programmed.kernel {
            Ok(()) if programmed.pending => self.program.started(),
            Ok(()) => self.program.done(),
            Err(error) if error.is_conflict() && !programmed.pending => self.program.stuck(&error),
            Err(error) => self.program.failed(&error),
        }
        match programmed.subnet_file {
            None => (),
            Some(Ok(())) => self.subnet_file.done(),
            Some(Err(error)) => self.subnet_file.failed(&error),
        }
    }

    /// Records the result of programming a part of the kernel objects; what is due otherwise stays due.
    pub(super) fn programmed_part(&mut self, outcome: Result<(), Failed>) {
        match outcome {
            Ok(()) => (),
            Err(error) if error.is_conflict() => self.program.partly_stuck(&error),
            Err(error) => self.program.failed(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::{ChangeError, Failure};
    use crate::plan::state::{Change, Key, Object};
    use crate::telemetry::status::Code;

    /// Failed changes of one route.
    fn failed(error: ChangeError) -> Failed {
        let conflicts = matches!(error, ChangeError::Conflict { .. });
        let change = Change::Del {
            key: Key::Blackhole("10.5.1.0/24".parse().unwrap()),
            was: Object::Blackhole,
        };
        Failed::Changes {
            first: Box::new(Failure { change, error }),
            total: 1,
            peers_only: true,
            conflicts,
        }
    }

    fn conflict() -> Failed {
        failed(ChangeError::Conflict {
            existing: "10.5.1.0/24 via 10.77.0.1".to_owned(),
        })
    }

    fn busy() -> ChangeError {
        ChangeError::DataPlane {
            text: "busy".to_owned(),
            errno: None,
        }
    }

    fn whole(kernel: Result<(), Failed>) -> Programmed {
        Programmed {
            kernel,
            pending: false,
            subnet_file: Some(Ok(())),
        }
    }

    fn code(tasks: &Tasks) -> Option<Code> {
        tasks.program.trouble().map(|cause| cause.code)
    }

    #[test]
    fn a_conflict_of_one_peer_leaves_what_waits_for_another_try() {
        let mut tasks = Tasks::default();
        tasks.programmed_all(whole(Err(failed(busy()))));
        tasks.programmed_part(Err(conflict()));
        assert_eq!(code(&tasks), Some(Code::KernelRefused));
        assert!(tasks.program.retry.is_waiting());
        // After a full pass only the conflict is left.
        tasks.programmed_all(whole(Err(conflict())));
        assert_eq!(code(&tasks), Some(Code::KernelConflict));
        assert!(!tasks.program.retry.is_waiting());
        tasks.programmed_all(whole(Ok(())));
        assert_eq!(tasks.program.trouble(), None);
        tasks.programmed_part(Err(conflict()));
        assert_eq!(code(&tasks), Some(Code::KernelConflict));
        assert!(!tasks.program.retry.is_waiting());
    }

    #[test]
    fn what_became_due_during_a_run_is_not_done_with_it() {
        let mut tasks = Tasks::default();
        let publish = &mut tasks.publish;
        for outcome in [Ok(()), Err(failed(busy()))] {
            publish.now();
            publish.started();
            // Something changed while this was under way.
            publish.now();
            publish.ended(outcome.as_ref());
            assert!(publish.is_waiting(), "{outcome:?}");
            publish.started();
            publish.ended(Ok::<_, &Failed>(&()));
            assert!(!publish.is_waiting(), "{outcome:?}");
        }
        publish.started();
        publish.ended(Err(&failed(busy())));
        assert!(publish.is_waiting() && publish.trouble().is_some());
    }

    #[test]
    fn what_goes_on_elsewhere_is_not_done() {
        let mut tasks = Tasks::default();
        tasks.programmed_all(whole(Err(failed(busy()))));
        tasks.programmed_all(Programmed {
            pending: true,
            ..whole(Ok(()))
        });
        assert!(tasks.program.trouble().is_some());
        assert!(!tasks.program.retry.is_waiting());
    }
}
