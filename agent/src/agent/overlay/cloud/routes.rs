//! The routes that this node wants of its provider, from attempt to attempt and over restarts.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::time::Instant;
use tracing::info;

use super::confirmed::Memory;
use crate::cloud::error::CloudError;
use crate::cloud::pass::{Made, Pass, Problem, SETTLE};
use crate::cloud::worker::{BELIEVED, Job, Outcome, Worker};
use crate::telemetry::status;

/// How old the last complete comparison may be while changes do not show.
const OVERDUE: Duration = Duration::from_secs(120);

/// Whether the provider's tables may have routes of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    /// It was not asked yet.
    Unknown,
    /// No table could be read, so none was changed.
    Nothing,
    Perhaps,
}

/// The routes that this node wants of its provider, and what became of them. Outlives attempts to join, so that what the
/// provider asked for, such as a pause, is still known.
#[derive(Debug)]
pub(crate) struct CloudRoutes {
    pub(super) memory: Memory,
    /// The task; `None` unless the backend, or a former one, has the provider's routes.
    pub(super) worker: Option<Worker>,
    /// What it was last asked for.
    pub(super) job: Option<Job>,
    holds: Holds,
    /// Own subnets of earlier jobs whose routes may still be there.
    former: BTreeSet<Ipv4Net>,
    /// The last pass.
    pub(super) pass: Pass,
    pub(super) next: Duration,
    /// When the provider was last seen to have all that is wanted now.
    confirmed: Option<Instant>,
    pub(super) confirmed_time: Option<u64>,
    /// Since when a table was seen without an own route.
    incomplete: Option<Instant>,
    /// What was changed since the start of the process, and how many passes failed.
    pub(super) made: Made,
    pub(super) failures: u64,
}

impl CloudRoutes {
    /// Nothing is wanted yet.
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            memory: Memory::new(state_dir),
            worker: None,
            job: None,
            holds: Holds::Unknown,
            former: BTreeSet::new(),
            pass: Pass::default(),
            next: Duration::ZERO,
            confirmed: None,
            confirmed_time: None,
            incomplete: None,
            made: Made::default(),
            failures: 0,
        }
    }

    /// Whether the provider has all that is wanted now, as far as this agent knows.
    pub(super) fn is_settled(&self) -> bool {
        self.job.is_none() || self.confirmed.is_some()
    }

    /// What keeps the routes from being as they should. While the provider does not answer, routes that it was seen to
    /// have stay in force.
    pub(super) fn trouble(&self) -> Option<Problem> {
        let is_believed = self
            .confirmed
            .is_some_and(|since| since.elapsed() < BELIEVED);
        let mut problems = self.pass.problems.iter();
        let problem = problems.find(|problem| !(is_believed && problem.is_transient()));
        problem.cloned().or_else(|| self.overdue())
    }

    /// A route that is missing although it was added: something else removes it each time.
    fn overdue(&self) -> Option<Problem> {
        let is_over = |since: Option<Instant>, most| since.is_some_and(|it| it.elapsed() >= most);
        let is_missing = is_over(self.incomplete, SETTLE);
        let is_late = self.pass.is_pending && is_over(self.confirmed, OVERDUE);
        if !is_missing && !is_late {
            return None;
        }
        let mut tables = self.pass.tables.iter();
        let table = tables.find(|table| !table.is_complete);
        let what = match table {
            Some(_) => "the route to the own subnet",
            None => "a change of the routes",
        };
        let error = CloudError::NotYet {
            what: what.to_owned(),
        };
        let table = table.map(|table| table.id.clone());
        Some(Problem::Call { table, error })
    }

    pub(super) fn submit(&mut self, mut job: Job) {
        let is_new = self.job.as_ref().is_none_or(|before| {
            !before.has_same_provider(&job) || before.wanted.own != job.wanted.own
        });
        let known = is_new.then(|| self.memory.read()).flatten();
        if is_new {
            // What an earlier run saw is believed until the provider answers.
            self.confirmed = self.memory.has(&job).then(Instant::now);
            self.pass = Pass::default();
            self.incomplete = None;
        }
        if let Some(known) = &known {
            self.holds = Holds::Perhaps;
            self.former.extend(&known.own);
        }
        if is_new && let Some(before) = &self.job {
            self.former.extend(&before.wanted.own);
        }
        self.former.retain(|net| !job.wanted.own.contains(net));
        job.wanted.former = self.former.clone();
        if known.is_some() && self.confirmed.is_none() {
            self.memory.begin(&job);
        }
        self.job = Some(job.clone());
        if self.has_nothing_to_remove() {
            self.end();
            return;
        }
        let elsewhere = known.filter(|known| !known.has_tables_of(&job));
        let left = elsewhere.and_then(|known| known.removal(job.reach.clone()));
        let worker = self.worker.get_or_insert_with(|| Worker::start(left));
        worker.submit(job);
    }

    /// Whether the job is to remove what was never made.
    fn has_nothing_to_remove(&self) -> bool {
        self.holds == Holds::Nothing && self.wants_nothing()
    }

    fn wants_nothing(&self) -> bool {
        (self.job.as_ref()).is_some_and(|job| job.wanted.own.is_empty())
    }

    /// Nothing of ours is left at the provider.
    fn end(&mut self) {
        (self.worker, self.job) = (None, None);
        (self.holds, self.incomplete) = (Holds::Unknown, None);
        self.former.clear();
        self.memory.clear();
    }

    /// Records the end of a pass.
    pub(super) fn take(&mut self, outcome: Outcome) {
        let is_last = (self.worker.as_ref()).is_some_and(|worker| worker.is_last(&outcome));
        self.count(&outcome.pass);
        if self.has_nothing_to_remove() {
            self.end();
            return;
        }
        if !is_last {
            return;
        }
        let pass = &outcome.pass;
        if pass.tables.iter().any(|table| !table.is_complete) {
            self.incomplete.get_or_insert_with(Instant::now);
        } else if !pass.tables.is_empty() {
            self.incomplete = None;
        }
        if pass.is_settled() {
            self.confirmed = Some(Instant::now());
            self.confirmed_time = Some(status::now());
        }
        if let Some(job) = &mut self.job {
            if pass.is_settled() && !job.wanted.own.is_empty() {
                self.former.clear();
                job.wanted.former.clear();
                self.memory.set(job);
            } else if !pass.tables.is_empty() && self.confirmed.is_none() {
                self.memory.begin(job);
            }
        }
        let is_done = pass.is_done();
        self.pass = outcome.pass;
        self.next = outcome.next;
        if is_done && self.wants_nothing() {
            // The last route is gone.
            self.end();
        }
    }

    /// Counts what a pass did.
    fn count(&mut self, pass: &Pass) {
        let made = pass.made;
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
        if !pass.problems.is_empty() || !pass.left.is_empty() {
            self.failures += 1;
        }
        if !pass.tables.is_empty() {
            self.holds = Holds::Perhaps;
        } else if self.holds == Holds::Unknown {
            self.holds = Holds::Nothing;
        }
    }
}
