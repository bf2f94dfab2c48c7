//! Keeps the routes, in a task beside the agent's loop: a provider may take half a minute to answer, and peers, health and
//! status requests must not wait for that.
//!
//! A pass is made when what is wanted changes, after a while to read accepted changes back, after a failure as soon as
//! the provider allows, and otherwise once in a resync interval.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::access::{Access, variable};
use super::error::CloudError;
use super::pass::{self, Accepted, Pass, Problem, Round, Seen};
use super::plan::Wanted;
use super::provider;
use super::table::RouteTable;
use super::transport::Transport;
use crate::base::retry::{Backoff, jittered, random_seed};
use crate::plan::backend::CloudConfig;

/// Pauses after passes that left something to do; each up to 30 % shorter, so that nodes that were throttled together do
/// not come back together.
const PAUSES: Backoff = Backoff::constant(Duration::from_secs(1), Duration::from_secs(300), 0.3);

/// The shortest time between two passes that have nothing to do, however often the kernel is to be compared: calls of a
/// provider are counted by account.
const SHORTEST_RESYNC: Duration = Duration::from_secs(60);

/// The longest time that a provider may ask to wait, so that a mistake there does not stop this for days.
const LONGEST_WAIT: Duration = Duration::from_secs(900);

/// How long routes that were seen to be complete count as such while the provider does not answer: they stay in force
/// there, whatever its API does.
pub(crate) const BELIEVED: Duration = Duration::from_secs(900);

/// How long a pass may take: some hundred calls. One that takes longer is begun anew.
const PASS_TIMEOUT: Duration = Duration::from_secs(600);

/// The latest job, and its number.
type Jobs = watch::Receiver<Option<(u64, Job)>>;

/// How to reach the provider, from the settings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Reach {
    /// In place of the provider's API servers.
    pub(crate) api_url: Option<String>,
    /// In place of the metadata service.
    pub(crate) metadata_url: Option<String>,
    /// The credentials, if not the environment's or the instance's.
    pub(crate) credentials_file: Option<PathBuf>,
    /// The longest time between two passes.
    pub(crate) resync: Duration,
}

/// What a node wants of its provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Job {
    /// The backend's name.
    pub(crate) kind: &'static str,
    /// Its keys in the network config.
    pub(crate) config: CloudConfig,
    /// The underlay address.
    pub(crate) address: Ipv4Addr,
    /// The routes.
    pub(crate) wanted: Wanted,
    /// How to reach the provider.
    pub(crate) reach: Reach,
}

impl Job {
    /// Whether a provider that was opened for one job can do the other.
    pub(crate) fn has_same_provider(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.config == other.config
            && self.address == other.address
            && self.reach == other.reach
    }

    /// Whether the change from `before` calls for a pass at once. What other nodes lease matters only to the removal of
    /// what dead nodes left, which can wait.
    fn is_urgent_after(&self, before: &Self) -> bool {
        !self.has_same_provider(before)
            || self.wanted.own != before.wanted.own
            || self.wanted.network != before.wanted.network
    }
}

/// The end of a pass.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was found and done.
    pub(crate) pass: Pass,
    /// When the next one follows, unless something changes.
    pub(crate) next: Duration,
    number: u64,
}

/// Works on the latest job until it is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: watch::Sender<Option<(u64, Job)>>,
    outcomes: Mutex<mpsc::UnboundedReceiver<Outcome>>,
    number: u64,
    /// Aborted when dropped; a call that is under way may still have its effect.
    _task: JoinSet<()>,
}

impl Worker {
    /// Waits for the first job.
    ///
    /// `left` is what an earlier run may have left in tables that are not those of the job: all of it is removed.
    pub(crate) fn start(left: Option<Job>) -> Self {
        let (jobs, receiver) = watch::channel(None);
        let (sender, outcomes) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(work(receiver, sender, left));
        Self {
            jobs,
            outcomes: Mutex::new(outcomes),
            number: 0,
            _task: task,
        }
    }

    /// Sets the job; makes a pass at once if it is another one.
    pub(crate) fn submit(&mut self, job: Job) {
        let number = &mut self.number;
        self.jobs.send_if_modified(|current| {
            let urgent = match current {
                Some((_, before)) => job.is_urgent_after(before),
                None => true,
            };
            *number += u64::from(urgent);
            *current = Some((*number, job));
            urgent
        });
    }

    /// Waits for the end of a pass. Cancel-safe.
    pub(crate) async fn outcome(&self) -> Outcome {
        match self.outcomes.lock().await.recv().await {
            Some(outcome) => outcome,
            // The other end lives as long as this one.
            None => std::future::pending().await,
        }
    }

    /// The end of a pass for what is wanted now, with such a result.
    #[cfg(test)]
    pub(crate) fn ended(&self, pass: Pass) -> Outcome {
        Outcome {
            pass,
            next: Duration::ZERO,
            number: self.number,
        }
    }

    /// Whether a pass was made for what is wanted now.
    pub(crate) fn is_last(&self, outcome: &Outcome) -> bool {
        outcome.number == self.number
    }
}

/// The provider of the latest job.
struct Open {
    routes: Box<dyn RouteTable>,
    job: Job,
    accepted: Accepted,
}

impl Open {
    async fn pass(&mut self, jobs: &Jobs) -> Pass {
        let wanted = self.job.wanted.clone();
        self.run(&wanted, jobs, &[]).await
    }

    /// Removes what is ours from all tables but those that are still used.
    async fn leave(&mut self, jobs: &Jobs, used: &[Seen]) -> Pass {
        let mut nothing = self.job.wanted.clone();
        nothing.former.append(&mut nothing.own);
        self.run(&nothing, jobs, used).await
    }

    async fn run(&mut self, wanted: &Wanted, jobs: &Jobs, except: &[Seen]) -> Pass {
        let is_leased = |subnet: &Ipv4Net| {
            let latest = jobs.borrow();
            let latest = latest.as_ref().map(|(_, job)| &job.wanted);
            latest.is_some_and(|it| it.leased.contains(subnet) || it.own.contains(subnet))
        };
        let round = Round {
            wanted,
            is_leased: &is_leased,
            except,
        };
        let mut pass = Pass::default();
        let run = pass::run(&mut *self.routes, &round, &mut self.accepted, &mut pass);
        if timeout(PASS_TIMEOUT, run).await.is_err() {
            let error = CloudError::Unreachable {
                server: self.job.kind.to_owned(),
                problem: format!(
                    "the tables were not compared within {} s",
                    PASS_TIMEOUT.as_secs()
                ),
            };
            pass.failed(None, error);
        }
        pass
    }

    /// Whether another job is for other tables, not only for another way to the same ones.
    fn has_other_tables(&self, job: &Job) -> bool {
        self.job.kind != job.kind || self.job.config != job.config
    }
}

/// Removes our routes from tables that are no longer used. Trouble with them does not count as the present ones'.
async fn leave(left: &mut Vec<Open>, jobs: &Jobs, present: &mut Pass) {
    for mut open in std::mem::take(left) {
        let pass = open.leave(jobs, &present.tables).await;
        present.made.removed += pass.made.removed;
        if pass.is_done() {
            continue;
        }
        present.has_more = true;
        present.left.extend(pass.problems);
        left.push(open);
    }
}

async fn work(mut jobs: Jobs, outcomes: mpsc::UnboundedSender<Outcome>, left: Option<Job>) {
    let mut pauses = Pauses::new(random_seed());
    let mut open: Option<Open> = None;
    // Tables that the network config no longer names, until nothing of ours is left in them.
    let mut left: Vec<Open> = left.as_ref().and_then(open_provider).into_iter().collect();
    let mut due = None;
    loop {
        tokio::select! {
            changed = jobs.changed() => if changed.is_err() {
                return;
            },
            () = wait(due) => (),
        }
        let Some((number, job)) = jobs.borrow_and_update().clone() else {
            continue;
        };
        let former = open.take();
        let kept = former.and_then(|open| match open.job.has_same_provider(&job) {
            true => Some(open),
            false => {
                left.extend(Some(open).filter(|open| open.has_other_tables(&job)));
                None
            }
        });
        let Some(mut current) = kept.or_else(|| open_provider(&job)) else {
            continue;
        };
        // What is wanted when these tables are left.
        current.job = job;
        let mut pass = current.pass(&jobs).await;
        if pass.is_settled() {
            leave(&mut left, &jobs, &mut pass).await;
        }
        let next = pauses.after(&pass, current.job.reach.resync);
        open = Some(current);
        due = Some(Instant::now() + next);
        let outcome = Outcome { pass, next, number };
        if outcomes.send(outcome).is_err() {
            return;
        }
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn open_provider(job: &Job) -> Option<Open> {
    let provider = provider::find(job.kind)?;
    let access = Access {
        transport: Transport::new(job.reach.api_url.clone(), job.reach.metadata_url.clone()),
        config: job.config.clone(),
        address: job.address,
        credentials_file: job.reach.credentials_file.clone(),
        variable,
    };
    Some(Open {
        routes: (provider.open)(access),
        job: job.clone(),
        accepted: Accepted::seeded(random_seed()),
    })
}

/// When to look again.
struct Pauses {
    pauses: Backoff,
    seed: u64,
}

impl Pauses {
    fn new(seed: u64) -> Self {
        Self {
            pauses: PAUSES.seeded(seed),
            seed,
        }
    }

    fn after(&mut self, pass: &Pass, resync: Duration) -> Duration {
        let resync = resync.max(SHORTEST_RESYNC);
        if pass.is_done() {
            self.pauses.reset();
            // Nodes that were started together do not list together for ever.
            return jittered(resync, 0.2, &mut self.seed);
        }
        if pass.is_settled() && pass.made.removed > 0 {
            // One by one, each by a list of its own.
            self.pauses.reset();
        }
        let problems = pass.problems.iter().chain(&pass.left);
        let asked = problems.filter_map(Problem::retry_after).max();
        let asked = asked.unwrap_or_default().min(LONGEST_WAIT);
        self.pauses.next_delay().min(resync).max(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::table::{Forwarding, Later, Route, TableId};

    fn throttled(secs: u64) -> Pass {
        let error = CloudError::Throttled {
            call: "CreateRoute",
            code: "RequestLimitExceeded".to_owned(),
            retry_after: Some(Duration::from_secs(secs)),
        };
        Pass {
            problems: vec![Problem::Call { table: None, error }],
            ..Pass::default()
        }
    }

    #[test]
    fn it_waits_as_long_as_the_provider_asks_and_longer_each_time() {
        let resync = Duration::from_secs(300);
        let mut pauses = Pauses::new(1);
        assert_eq!(pauses.after(&throttled(40), resync).as_secs(), 40);
        // Not for days, whatever it says.
        assert_eq!(pauses.after(&throttled(1 << 40), resync), LONGEST_WAIT);
        let mut last = Duration::ZERO;
        for _ in 0..12 {
            last = pauses.after(&throttled(0), resync);
        }
        assert!(last >= resync.mul_f64(0.69) && last <= resync, "{last:?}");
        let settled = pauses.after(&Pass::default(), resync);
        assert!(settled >= resync.mul_f64(0.79) && settled <= resync);
        assert!(pauses.after(&throttled(0), resync) <= Duration::from_secs(1));
        // However often the kernel is looked at.
        let often = Pauses::new(1).after(&Pass::default(), Duration::from_secs(1));
        assert!(often >= SHORTEST_RESYNC.mul_f64(0.79), "{often:?}");
    }

    #[test]
    fn what_others_lease_is_no_reason_to_look_at_once() {
        let job = Job {
            kind: "gce",
            config: CloudConfig::default(),
            address: Ipv4Addr::LOCALHOST,
            wanted: Wanted::default(),
            reach: Reach::default(),
        };
        let mut next = job.clone();
        next.wanted.leased.insert("10.5.2.0/24".parse().unwrap());
        assert!(!next.is_urgent_after(&job));
        next.wanted.own.insert("10.5.1.0/24".parse().unwrap());
        assert!(next.is_urgent_after(&job));
    }

    /// A provider that never answers.
    struct Stuck;

    impl RouteTable for Stuck {
        fn tables(&mut self) -> Later<'_, Vec<TableId>> {
            Box::pin(std::future::pending())
        }

        fn list<'a>(&'a mut self, _: &'a TableId) -> Later<'a, Vec<Route>> {
            Box::pin(std::future::pending())
        }

        fn add<'a>(&'a mut self, _: &'a TableId, _: Ipv4Net) -> Later<'a, ()> {
            Box::pin(std::future::pending())
        }

        fn replace<'a>(&'a mut self, _: &'a TableId, _: &'a Route) -> Later<'a, ()> {
            Box::pin(std::future::pending())
        }

        fn remove<'a>(&'a mut self, _: &'a TableId, _: &'a Route) -> Later<'a, ()> {
            Box::pin(std::future::pending())
        }

        fn allow_forwarding<'a>(&'a mut self, _: &'a [Ipv4Net]) -> Later<'a, Forwarding> {
            Box::pin(async { Ok(Forwarding::SwitchedOn) })
        }

        fn take_over_command(&self, _: &TableId, _: &Route) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_ends() {
        let mut wanted = Wanted::default();
        wanted.own.insert("10.5.1.0/24".parse().unwrap());
        let mut open = Open {
            routes: Box::new(Stuck),
            job: Job {
                kind: "gce",
                config: CloudConfig::default(),
                address: Ipv4Addr::LOCALHOST,
                wanted,
                reach: Reach::default(),
            },
            accepted: Accepted::default(),
        };
        let (_sender, jobs) = watch::channel(None);
        let pass = open.pass(&jobs).await;
        let told: Vec<String> = pass.problems.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["gce: the tables were not compared within 600 s"]);
        // What was done until then is known.
        assert!(pass.is_pending);
    }
}
