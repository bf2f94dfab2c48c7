//! The overlay's part of the cloud provider's routes, which a task beside the loop keeps.

mod confirmed;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::{Instant, timeout};
use tracing::info;

use self::confirmed::Memory;
use super::Overlay;
use super::former_backend::FormerBackend;
use crate::cloud::pass::{Made, Pass, Problem};
use crate::cloud::plan::Wanted;
use crate::cloud::worker::{BELIEVED, Job, Outcome, Reach, Worker};
use crate::plan::backend::CloudConfig;
use crate::settings::Settings;
use crate::telemetry::status::{self, Cause, Coded, TaskName};

/// How long an attempt to join waits for a provider that has already failed it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The routes that this node wants of its provider, and what became of them. Outlives attempts to join, so that what the
/// provider asked for, such as a pause, is still known.
#[derive(Debug)]
pub(crate) struct CloudRoutes {
    memory: Memory,
    /// The task; `None` unless the backend, or a former one, has the provider's routes.
    worker: Option<Worker>,
    /// What it was last asked for.
    job: Option<Job>,
    /// The last pass.
    pass: Pass,
    next: Duration,
    /// When the provider was last seen to have all that is wanted now.
    confirmed: Option<Instant>,
    confirmed_time: Option<u64>,
    /// What was changed since the start of the process, and how many passes failed.
    made: Made,
    failures: u64,
}

impl CloudRoutes {
    /// Nothing is wanted yet.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            memory: Memory::new(state_dir),
            worker: None,
            job: None,
            pass: Pass::default(),
            next: Duration::ZERO,
            confirmed: None,
            confirmed_time: None,
            made: Made::default(),
            failures: 0,
        }
    }

    /// Whether the provider has all that is wanted now, as far as this agent knows.
    fn is_settled(&self) -> bool {
        self.job.is_none() || self.confirmed.is_some()
    }

    /// What keeps the routes from being as they should. While the provider does not answer, routes that it was seen to
    /// have stay in force.
    fn trouble(&self) -> Option<&Problem> {
        let is_believed = self
            .confirmed
            .is_some_and(|since| since.elapsed() < BELIEVED);
        let mut problems = self.pass.problems.iter();
        problems.find(|problem| !(is_believed && problem.is_transient()))
    }

    fn submit(&mut self, job: Job) {
        let is_new = self.job.as_ref().is_none_or(|before| {
            !before.has_same_provider(&job) || before.wanted.own != job.wanted.own
        });
        if is_new {
            // What an earlier run saw is believed until the provider answers.
            self.confirmed = self.memory.has(&job).then(Instant::now);
            self.pass = Pass::default();
            if self.confirmed.is_none() {
                self.memory.clear();
            }
        }
        self.job = Some(job.clone());
        self.worker.get_or_insert_with(Worker::start).submit(job);
    }

    /// Records the end of a pass.
    fn take(&mut self, outcome: Outcome) {
        let is_last = (self.worker.as_ref()).is_some_and(|worker| worker.is_last(&outcome));
        let made = outcome.pass.made;
        self.made.added += made.added;
        self.made.replaced += made.replaced;
        self.made.removed += made.removed;
        if made != Made::default() {
            info!(
                added = made.added,
                replaced = made.replaced,
                removed = made.removed,
                "routes of the cloud provider changed"
            );
        }
        if !outcome.pass.problems.is_empty() {
            self.failures += 1;
        }
        if !is_last {
            return;
        }
        if outcome.pass.is_settled() {
            self.confirmed = Some(Instant::now());
            self.confirmed_time = Some(status::now());
            if let Some(job) = &self.job {
                self.memory.set(job);
            }
        }
        self.pass = outcome.pass;
        self.next = outcome.next;
        let wants_nothing = |job: &Job| job.wanted.own.is_empty();
        if self.confirmed.is_some() && self.job.as_ref().is_some_and(wants_nothing) {
            // The last route is gone.
            (self.worker, self.job) = (None, None);
            self.memory.clear();
        }
    }
}

impl Overlay {
    /// Asks for the provider's routes that are wanted now.
    pub(crate) fn program_cloud(&mut self) {
        let Some((kind, config)) = self.cloud_backend() else {
            match self.cloud.job.clone() {
                Some(mut job) => {
                    job.wanted.own = BTreeSet::new();
                    self.cloud.submit(job);
                }
                None => self.cloud.memory.clear(),
            }
            return;
        };
        let Some(face) = self.underlay.v4 else {
            return;
        };
        let wanted = self.wanted_routes();
        self.cloud.submit(Job {
            kind,
            config,
            address: face.address,
            wanted,
            reach: self.cloud_reach.clone(),
        });
    }

    /// The backend that has the provider's routes: the present one, or a former one that peers still use.
    fn cloud_backend(&self) -> Option<(&'static str, CloudConfig)> {
        let present = self
            .backend
            .cloud()
            .map(|config| (self.backend.kind(), config));
        let former = || {
            self.former_backends
                .iter()
                .rev()
                .find_map(FormerBackend::cloud)
        };
        let (kind, config) = present.or_else(former)?;
        Some((kind, config.clone()))
    }

    fn wanted_routes(&self) -> Wanted {
        let own = self.own.key.v4;
        let network = self.config.ipv4.zip(own);
        let leased = self.peers.others().filter_map(|lease| lease.key.v4);
        Wanted {
            own: own.into_iter().collect(),
            network: network.map(|(range, own)| (range.network, own.prefix_len())),
            leased: leased.collect(),
        }
    }

    /// Waits for the end of a pass over the provider's tables; forever if there is none. Cancel-safe.
    pub(crate) async fn cloud_passed(&self) -> Outcome {
        match &self.cloud.worker {
            Some(worker) => worker.outcome().await,
            None => std::future::pending().await,
        }
    }

    /// Records the result of a pass; the trouble that is left, and whether peers can be reached by the provider now that
    /// could not before.
    pub(crate) fn take_cloud(&mut self, outcome: Outcome) -> (Result<(), Problem>, bool) {
        let was_settled = self.cloud.is_settled();
        self.cloud.take(outcome);
        let result = self.cloud.trouble().cloned().map_or(Ok(()), Err);
        (result, !was_settled && self.cloud.is_settled())
    }

    /// Whether the provider has all routes that are wanted now.
    pub(super) fn cloud_is_settled(&self) -> bool {
        self.cloud.is_settled()
    }

    /// Whether peers may be told to send by the present backend; until then they send by the former one.
    pub(crate) fn may_publish(&self) -> bool {
        self.former_backends.is_empty() || self.cloud.is_settled()
    }

    /// Waits until the provider routes the own subnet to this instance, as flannel does when it starts; the error says
    /// why it does not.
    pub(super) async fn join_cloud(&mut self) -> Result<(), Cause> {
        let cause = |problem: &Problem| {
            let cause = problem.to_cause();
            cause.worded(|text| format!("failed to have the subnet routed by the provider: {text}"))
        };
        while !self.cloud.is_settled() {
            let outcome = match self.cloud.trouble().map(cause) {
                None => self.cloud_passed().await,
                Some(cause) => match timeout(PATIENCE, self.cloud_passed()).await {
                    Ok(outcome) => outcome,
                    Err(_) => return Err(cause),
                },
            };
            if let (Err(problem), _) = self.take_cloud(outcome) {
                return Err(cause(&problem));
            }
        }
        Ok(())
    }

    /// The provider's routes, for the status; `None` if the backend has none.
    pub(crate) fn cloud_status(&self) -> Option<status::Cloud> {
        let job = self.cloud.job.as_ref()?;
        let pass = &self.cloud.pass;
        let tables = pass.tables.iter().map(|table| status::CloudTable {
            id: table.id.clone(),
            routes: table.routes,
            complete: table.is_complete,
        });
        Some(status::Cloud {
            provider: job.kind.to_owned(),
            wanted: job.wanted.own.iter().copied().map(IpNet::V4).collect(),
            tables: tables.collect(),
            settled_time: self.cloud.confirmed_time,
            next_seconds: self.cloud.next.as_secs(),
            added: self.cloud.made.added,
            replaced: self.cloud.made.replaced,
            removed: self.cloud.made.removed,
            failures: self.cloud.failures,
            causes: (pass.problems.iter())
                .map(|problem| problem.to_cause().of(TaskName::CloudRoutes))
                .collect(),
        })
    }
}

/// How to reach the provider, as the settings say.
pub(super) fn reach(settings: &Settings) -> Reach {
    Reach {
        api_url: settings.cloud.api_url.clone(),
        metadata_url: settings.cloud.metadata_url.clone(),
        credentials_file: settings.cloud.credentials_file.clone(),
        resync: settings.agent.resync,
    }
}
