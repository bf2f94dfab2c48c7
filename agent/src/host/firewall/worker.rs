//! Runs firewall passes outside of the agent's loop.
//!
//! A pass runs programs, each of which may hang or take seconds while another program holds the lock. Peers, health and
//! status requests must not wait for that. Only one pass runs at a time; of several requests in the meantime, the last
//! one counts.

use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Error, Firewall, Mode, Rules};

/// Deadline of a pass. Each of its programs has a deadline of its own, and there may be more than ten of them.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
struct Job {
    rules: Rules,
    mode: Mode,
    number: u64,
}

/// Outcome of one pass.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Whether anything was changed.
    pub(crate) result: Result<bool, Error>,
    /// The mode of the pass: never [`Mode::Auto`].
    pub(crate) effective: Option<Mode>,
    number: u64,
}

/// Works on requests until it is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: watch::Sender<Option<Job>>,
    outcomes: Mutex<mpsc::UnboundedReceiver<Outcome>>,
    number: u64,
    /// Aborted together with its programs when dropped.
    _task: JoinSet<()>,
}

impl Worker {
    /// Waits for requests. `mode` is the one that `firewall` was created with.
    pub(crate) fn start(firewall: Firewall, mode: Mode) -> Self {
        let (jobs, receiver) = watch::channel(None);
        let (sender, outcomes) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(work(firewall, mode, receiver, sender));
        Self {
            jobs,
            outcomes: Mutex::new(outcomes),
            number: 0,
            _task: task,
        }
    }

    /// Requests a pass with `rules` and `mode`. [`Self::passed`] reports its end.
    pub(crate) fn submit(&mut self, rules: Rules, mode: Mode) {
        let same = |job: &Job| job.rules == rules && job.mode == mode;
        if !self.jobs.borrow().as_ref().is_some_and(same) {
            self.number += 1;
        }
        self.jobs.send_replace(Some(Job {
            rules,
            mode,
            number: self.number,
        }));
    }

    /// Waits for the end of a pass. Cancel-safe.
    pub(crate) async fn outcome(&self) -> Outcome {
        match self.outcomes.lock().await.recv().await {
            Some(outcome) => outcome,
            // The other end lives as long as this one.
            None => std::future::pending().await,
        }
    }

    /// Whether the last pass used the rules that are wanted now.
    pub(crate) fn is_last(&self, outcome: &Outcome) -> bool {
        outcome.number == self.number
    }
}

async fn work(
    mut firewall: Firewall,
    mut mode: Mode,
    mut jobs: watch::Receiver<Option<Job>>,
    outcomes: mpsc::UnboundedSender<Outcome>,
) {
    while jobs.changed().await.is_ok() {
        let Some(job) = jobs.borrow_and_update().clone() else {
            continue;
        };
        if job.mode != mode {
            mode = job.mode;
            firewall.set_mode(mode, firewall.resync_interval());
        }
        let result = timeout(DEADLINE, firewall.ensure(&job.rules))
            .await
            .unwrap_or(Err(Error::Late { deadline: DEADLINE }));
        let outcome = Outcome {
            result,
            effective: firewall.effective(),
            number: job.number,
        };
        if outcomes.send(outcome).is_err() {
            return;
        }
    }
}
