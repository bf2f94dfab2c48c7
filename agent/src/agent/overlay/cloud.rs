//! The overlay's part of the cloud provider's routes, which a task beside the loop keeps.

mod confirmed;
mod routes;

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::time::timeout;

pub(crate) use self::routes::CloudRoutes;
use super::Overlay;
use super::former_backend::FormerBackend;
use crate::cloud::pass::Problem;
use crate::cloud::plan::Wanted;
use crate::cloud::worker::{Job, Outcome, Reach};
use crate::plan::backend::CloudConfig;
use crate::settings::Settings;
use crate::telemetry::status::{self, Cause, Coded, TaskName};

/// How long an attempt to join waits for a provider that has already failed it.
const PATIENCE: Duration = Duration::from_secs(5);

impl Overlay {
    /// Asks for the provider's routes that are wanted now.
    pub(crate) fn program_cloud(&mut self) {
        let Some((kind, config)) = self.cloud_backend() else {
            // What an earlier run may have left goes as well.
            let known = || self.cloud.memory.read()?.removal(self.cloud_reach.clone());
            match self.cloud.job.clone().or_else(known) {
                Some(mut job) => {
                    job.wanted.own = BTreeSet::new();
                    job.wanted.leased = self.leased_by_others().collect();
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

    fn leased_by_others(&self) -> impl Iterator<Item = Ipv4Net> {
        self.peers.others().filter_map(|lease| lease.key.v4)
    }

    fn wanted_routes(&self) -> Wanted {
        let own = self.own.key.v4;
        let network = self.config.ipv4.zip(own);
        Wanted {
            own: own.into_iter().collect(),
            network: network.map(|(range, own)| (range.network, own.prefix_len())),
            leased: self.leased_by_others().collect(),
            former: BTreeSet::new(),
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
        let was_settled = self.cloud_is_settled();
        self.cloud.take(outcome);
        let is_settled = self.cloud_is_settled();
        (self.cloud_trouble(), !was_settled && is_settled)
    }

    /// What keeps the provider from delivering packets of the present backend. That routes of a former one cannot be
    /// removed is only told in the status.
    pub(crate) fn cloud_trouble(&self) -> Result<(), Problem> {
        let present = self.backend.cloud().and_then(|_| self.cloud.trouble());
        present.map_or(Ok(()), Err)
    }

    /// Whether the provider has all routes that the present backend wants.
    pub(super) fn cloud_is_settled(&self) -> bool {
        self.backend.cloud().is_none() || self.cloud.is_settled()
    }

    /// Whether peers may be told to send by the present backend; until then they send by the former one.
    pub(crate) fn may_publish(&self) -> bool {
        self.former_backends.is_empty() || self.cloud_is_settled()
    }

    /// Waits until the provider routes the own subnet to this instance, as flannel does when it starts; the error says
    /// why it does not.
    pub(super) async fn join_cloud(&mut self) -> Result<(), Cause> {
        let cause = |problem: &Problem| {
            let cause = problem.to_cause();
            cause.worded(|text| format!("failed to have the subnet routed by the provider: {text}"))
        };
        while !self.cloud_is_settled() {
            let outcome = match self.cloud_trouble() {
                Ok(()) => self.cloud_passed().await,
                Err(problem) => match timeout(PATIENCE, self.cloud_passed()).await {
                    Ok(outcome) => outcome,
                    Err(_) => return Err(cause(&problem)),
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
            causes: (pass.problems.iter().chain(&pass.left))
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
