//! The demo of a distributed program: Spark on three hosts shuffles over the overlay, while the agent of one is killed, and
//! etcd after it. The hosts are network namespaces of this machine, so it needs root, and a minute or two.

mod contained;
pub(crate) mod expected;
mod lab;
mod namespace;
mod node;
mod preflight;
mod program;
pub(crate) mod record;
pub(crate) mod tally;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use tokio::time::{Instant, sleep, timeout};

use self::{
    expected::{Expected, Job},
    lab::Lab,
    node::Traffic,
    program::Spark,
    record::{HostRecord, Outage, Record, RoundRecord, SHUFFLE, Sample},
};
use crate::{
    fleet::history::now,
    page::spark::SparkPage,
    progress::{Progress, clock},
};

/// Both factors are prime, and no divisors of the number of rows. A round takes some ten seconds of both processors.
const JOB: Job = Job {
    rows: 500_000,
    groups: 16,
    left: 7_919,
    right: 104_729,
};
/// Between two looks at everything.
const TICK: Duration = Duration::from_secs(1);
/// How long the agent is gone, and etcd, at the least; and how many times as long at the most, should nothing be shuffled.
const AGENT_OUTAGE: Duration = Duration::from_secs(15);
const ETCD_OUTAGE: Duration = Duration::from_secs(30);
const PATIENCE: u32 = 4;
/// Until an agent has caught up, on a machine that Spark keeps busy.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// For the whole program.
const DEADLINE: Duration = Duration::from_secs(1200);
/// The host whose agent is killed, by its place.
const VICTIM: usize = 1;

/// Runs it with this agent, and the pyspark of a Python environment; all that is written is below `target`.
///
/// # Errors
/// When something is missing, the program fails, or the record of it is not as it should be.
pub(crate) async fn run(target: &Path, agent: &Path, environment: &Path) -> Result<()> {
    let progress = Progress::new();
    let agent = fs::canonicalize(agent)
        .with_context(|| format!("no agent {}; build it with `make agent`", agent.display()))?;
    let installation = preflight::check(environment)?;
    let dir = empty_dir(&target.join("demo-spark"))?;
    progress.step("join three hosts and an etcd by a switch, and start the agents");
    let mut lab = Lab::start(&dir, &agent).await?;
    lab.join(&progress).await?;
    progress.step("start Spark in a pod on each: a master, and three workers");
    let spark = Spark::start(installation, &lab, &dir).await?;
    let subnets = lab.subnets()?;
    let mut run = Run {
        before: lab.traffic()?,
        lab,
        spark,
        samples: Vec::new(),
        progress: &progress,
    };
    let watched = timeout(DEADLINE, run.watch()).await;
    let watched = watched.unwrap_or_else(|_| {
        let minutes = DEADLINE.as_secs() / 60;
        Err(anyhow::anyhow!("the program takes more than {minutes} min"))
    });
    let outages = watched.with_context(|| {
        format!(
            "the program did not end well; see the logs in {}",
            dir.display()
        )
    })?;
    progress.step("compute the same in one thread, without Spark");
    let record = run.record(&subnets, outages)?;
    let page = SparkPage {
        record: &record,
        took: progress.elapsed(),
    };
    let path = target.join("demo-spark.html");
    fs::write(&path, page.html()).with_context(|| format!("failed to write {}", path.display()))?;
    progress.line(&record.screen());
    progress.line(&format!(
        "  The same as a time line: {}\n  Logs: {}\n",
        path.display(),
        dir.display()
    ));
    progress.step("stop everything");
    drop(run);
    progress.line(&format!("  {} in all", clock(progress.elapsed()).trim()));
    record.check()
}

/// A directory, without what an earlier run left in it.
fn empty_dir(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("failed to empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    fs::canonicalize(dir).with_context(|| format!("failed to find {}", dir.display()))
}

/// The program and its surroundings. Spark ends before the hosts that it runs on.
struct Run<'a> {
    spark: Spark,
    lab: Lab,
    /// What had gone through the hosts' devices when the program was started.
    before: Vec<Traffic>,
    samples: Vec<Sample>,
    progress: &'a Progress,
}

impl Run<'_> {
    /// Runs the program to its end, and has agent and etcd killed meanwhile.
    async fn watch(&mut self) -> Result<Vec<Outage>> {
        self.progress
            .step("run the program: the first round undisturbed");
        self.spark.run(&self.lab, JOB)?;
        self.sample()?;
        self.tick_until(|run| Ok(!run.spark.rounds()?.is_empty()))
            .await?;
        let what = format!("the agent of {}", self.lab.nodes[VICTIM].name);
        let kill = |lab: &mut Lab| lab.kill_agent(VICTIM);
        let start = |lab: &mut Lab| lab.start_agent(VICTIM);
        let agent = self.outage(&what, AGENT_OUTAGE, kill, start).await?;
        let kill = |lab: &mut Lab| {
            lab.kill_etcd();
            Ok(())
        };
        let etcd = self.outage("etcd", ETCD_OUTAGE, kill, Lab::start_etcd);
        let outages = vec![agent, etcd.await?];
        self.progress.step("one round more");
        self.spark.end_soon()?;
        self.tick_until(|run| run.spark.has_ended()).await?;
        Ok(outages)
    }

    /// Has something killed and, after a while, started again.
    async fn outage(
        &mut self,
        what: &str,
        length: Duration,
        kill: impl FnOnce(&mut Lab) -> Result<()>,
        start: impl FnOnce(&mut Lab) -> Result<()>,
    ) -> Result<Outage> {
        let seconds = length.as_secs();
        self.progress
            .step(format!("kill {what}; start it again after {seconds} s"));
        let before = self.sample()?;
        kill(&mut self.lab)?;
        let killed = Instant::now();
        self.tick_until(|run| {
            let sent = run.samples.last().map_or(0, |last| last.bytes);
            let since = sent.saturating_sub(before.bytes);
            let enough = killed.elapsed() >= length && since >= SHUFFLE;
            Ok(enough || killed.elapsed() >= length * PATIENCE)
        })
        .await?;
        let after = self.sample()?;
        start(&mut self.lab)?;
        let deadline = Instant::now() + READY_DEADLINE;
        self.tick_until(|run| match run.lab.check_ready() {
            Ok(()) => Ok(true),
            Err(_) if Instant::now() < deadline => Ok(false),
            Err(error) => Err(error.context(format!(
                "not all agents are ready {} s after {what} was started again",
                READY_DEADLINE.as_secs()
            ))),
        })
        .await?;
        Ok(Outage {
            what: what.to_owned(),
            from: before.at,
            until: after.at,
            ready: now(),
            bytes: after.bytes.saturating_sub(before.bytes),
        })
    }

    /// Looks at everything each second until `is_done` says so.
    async fn tick_until(
        &mut self,
        mut is_done: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        while !is_done(self)? {
            sleep(TICK).await;
            ensure_running(self)?;
            let sample = self.sample()?;
            let rounds = self.spark.rounds()?.len();
            self.progress.tell("rounds", &rounds.to_string());
            let sent = record::megabytes(sample.bytes);
            self.progress.tell("sent over the overlay", &sent);
        }
        Ok(())
    }

    /// Notes what has gone over the overlay so far.
    fn sample(&mut self) -> Result<Sample> {
        let sent = |all: &[Traffic]| all.iter().map(|one| one.overlay.sent).sum::<u64>();
        let sample = Sample {
            at: now(),
            bytes: sent(&self.lab.traffic()?).saturating_sub(sent(&self.before)),
        };
        self.samples.push(sample);
        Ok(sample)
    }

    /// What happened, with a judgement of every round.
    fn record(&mut self, subnets: &[Ipv4Net], outages: Vec<Outage>) -> Result<Record> {
        let hosts = self.hosts(subnets)?;
        let expected = Expected::of(JOB);
        let rounds = self.spark.rounds()?.into_iter().zip(1..);
        let rounds = rounds.map(|(round, number)| {
            self.progress.tell("round", &number.to_string());
            RoundRecord {
                started: round.started,
                ended: round.ended,
                is_right: round.groups == expected.round(number),
            }
        });
        Ok(Record {
            job: JOB,
            hosts,
            outages,
            rounds: rounds.collect(),
            samples: self.samples.clone(),
            tally: self.spark.tally()?,
        })
    }

    fn hosts(&self, subnets: &[Ipv4Net]) -> Result<Vec<HostRecord>> {
        let after = self.lab.subnets()?;
        let traffic = self.lab.traffic()?;
        let nodes = self.lab.nodes.iter().enumerate();
        nodes
            .map(|(place, node)| {
                Ok(HostRecord {
                    name: node.name.clone(),
                    underlay: node.address,
                    subnet: subnets[place],
                    subnet_after: after[place],
                    pod: node.pod()?.address,
                    traffic: traffic[place] - self.before[place],
                })
            })
            .collect()
    }
}

/// The program may have ended, but only well; all else must run.
fn ensure_running(run: &mut Run<'_>) -> Result<()> {
    run.lab.check_alive()?;
    run.spark.has_ended().map(drop)
}
