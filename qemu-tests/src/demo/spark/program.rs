//! Spark on the pods: a master and a worker on the first, a worker on each other, and the driver, which is the program.
//!
//! Each is bound to its pod's address, and has no other to be reached at.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use super::{
    contained::Contained,
    expected::{Group, Job},
    lab::Lab,
    node::{Node, Pod},
    tally::Tally,
};
use crate::wait;

/// The program.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/spark/job.py");
/// Three JVMs start at once on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// Of each process; together with what a JVM needs besides, all take about 4 GB.
const DAEMON_MEMORY: &str = "192m";
const EXECUTOR_MEMORY: &str = "640m";
/// No executor's heap is so large that more than one thread would help to collect it; and processes of several pods may have
/// the same number, which those in one `/tmp` must not.
const JAVA_OPTIONS: &str = "-XX:+UseSerialGC -XX:-UsePerfData";
/// The most rounds, should nobody say which is the last.
const ROUNDS: u32 = 200;
/// What the driver runs with: every table is shuffled, whole, and as it is; nothing is tried twice without being counted.
const SETTINGS: [&str; 16] = [
    "spark.app.name=selvage-demo",
    "spark.driver.port=7070",
    "spark.driver.blockManager.port=7071",
    "spark.blockManager.port=7072",
    "spark.ui.enabled=false",
    "spark.ui.showConsoleProgress=false",
    "spark.cores.max=3",
    "spark.executor.cores=1",
    "spark.eventLog.enabled=true",
    "spark.eventLog.compress=false",
    "spark.eventLog.rolling.enabled=false",
    "spark.shuffle.compress=false",
    "spark.sql.adaptive.enabled=false",
    "spark.sql.autoBroadcastJoinThreshold=-1",
    "spark.sql.shuffle.partitions=12",
    "spark.speculation=false",
];

/// What Spark is installed as: a Python environment with pyspark.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The environment's Python.
    pub python: PathBuf,
    /// Where pyspark is in it.
    pub home: PathBuf,
}

/// A round of the program, as it printed it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Round {
    /// When it began, in seconds since the Unix epoch.
    pub started: f64,
    /// When its result was there.
    pub ended: f64,
    /// Its result.
    pub groups: Vec<Group>,
}

/// The running program. Its processes end with it, and its scratch files go.
#[derive(Debug)]
pub(super) struct Spark {
    driver: Option<Contained>,
    daemons: Vec<Contained>,
    installation: Installation,
    dir: PathBuf,
    scratch: TempDir,
}

impl Spark {
    /// Starts master and workers in the pods, with their files below `dir`, and waits until the master knows all workers.
    ///
    /// # Errors
    /// When one of them ends, or is not there within three minutes.
    pub(super) async fn start(installation: Installation, lab: &Lab, dir: &Path) -> Result<Self> {
        for name in ["conf", "events"] {
            let path = dir.join(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("failed to create {}", path.display()))?;
        }
        let scratch = TempDir::with_prefix_in("scratch-", dir)
            .with_context(|| format!("failed to make a directory in {}", dir.display()))?;
        let mut spark = Self {
            driver: None,
            daemons: Vec::new(),
            installation,
            dir: dir.to_owned(),
            scratch,
        };
        let master = spark.start_master(first(lab)?)?;
        for node in &lab.nodes {
            spark.start_worker(node, &master)?;
        }
        let wanted = lab.nodes.len();
        let log = dir.join("master.log");
        let daemons = &mut spark.daemons;
        wait::until("Spark's master knows all workers", START_DEADLINE, || {
            let there = workers(&log);
            let alive = daemons.iter_mut().try_for_each(Contained::check_alive);
            async move {
                // What has ended will not come.
                if alive.is_err() {
                    return Ok(alive);
                }
                let there = there?;
                ensure!(there == wanted, "{there} of {wanted}");
                Ok(Ok(()))
            }
        })
        .await??;
        Ok(spark)
    }

    fn start_master(&mut self, node: &Node) -> Result<String> {
        let pod = node.pod()?;
        let address = pod.address;
        self.start_daemon("master", pod, |command| {
            command
                .arg("org.apache.spark.deploy.master.Master")
                .args(["--host", &address.to_string()])
                .args(["--port", "7077", "--webui-port", "8080"]);
        })?;
        Ok(format!("spark://{address}:7077"))
    }

    fn start_worker(&mut self, node: &Node, master: &str) -> Result<()> {
        let pod = node.pod()?;
        let work = self.dir.join(&node.name).join("work");
        self.start_daemon(&format!("worker-{}", node.name), pod, |command| {
            command
                .arg("org.apache.spark.deploy.worker.Worker")
                .args(["--host", &pod.address.to_string()])
                .args(["--port", "7078", "--webui-port", "8081"])
                .args(["--cores", "1", "--memory", "1g"])
                .arg("--work-dir")
                .arg(work)
                .arg(master);
        })
    }

    fn start_daemon(
        &mut self,
        name: &str,
        pod: &Pod,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<()> {
        let program = self.installation.home.join("bin/spark-class");
        let log = self.dir.join(format!("{name}.log"));
        let daemon = Contained::spawn(name, &pod.namespace, &program, log, |command| {
            self.environment(command, pod);
            set_up(command);
        })?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// What every process of Spark has; those that it starts itself inherit it.
    fn environment(&self, command: &mut Command, pod: &Pod) {
        let inherited = std::env::vars_os().map(|(name, _)| name);
        for name in inherited.filter(|name| is_settings(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        let address = pod.address.to_string();
        let scratch = self.scratch.path();
        command
            .env("SPARK_HOME", &self.installation.home)
            .env("SPARK_LOCAL_IP", &address)
            .env("SPARK_LOCAL_HOSTNAME", &address)
            .env("SPARK_LOCAL_DIRS", scratch)
            .env("SPARK_CONF_DIR", self.dir.join("conf"))
            .env("SPARK_DAEMON_MEMORY", DAEMON_MEMORY)
            .env("PYSPARK_PYTHON", &self.installation.python)
            .env("JAVA_TOOL_OPTIONS", JAVA_OPTIONS)
            .env("TMPDIR", scratch);
    }

    /// Starts the program.
    ///
    /// # Errors
    /// When its output cannot be written.
    pub(super) fn run(&mut self, lab: &Lab, job: Job) -> Result<()> {
        let pod = first(lab)?.pod()?;
        let address = pod.address;
        let path = self.rounds_file();
        let rounds =
            File::create(&path).with_context(|| format!("failed to create {}", path.display()))?;
        let submit = format!(
            "--master spark://{address}:7077 --driver-memory {EXECUTOR_MEMORY} pyspark-shell"
        );
        let python = &self.installation.python;
        let log = self.dir.join("driver.log");
        let driver = Contained::spawn("the driver", &pod.namespace, python, log, |command| {
            self.environment(command, pod);
            command
                .env("PYSPARK_SUBMIT_ARGS", submit)
                .stdout(rounds)
                .arg(PROGRAM)
                .args(["--rows", &job.rows.to_string()])
                .args(["--groups", &job.groups.to_string()])
                .args(["--left", &job.left.to_string()])
                .args(["--right", &job.right.to_string()])
                .args(["--rounds", &ROUNDS.to_string()])
                .arg("--last")
                .arg(self.last_file())
                .args(SETTINGS)
                .arg(format!("spark.driver.host={address}"))
                .arg(format!("spark.driver.bindAddress={address}"))
                .arg(format!("spark.executor.memory={EXECUTOR_MEMORY}"))
                .arg(format!("spark.eventLog.dir={}", self.events().display()));
        })?;
        self.driver = Some(driver);
        Ok(())
    }

    /// Makes the next round the last one.
    ///
    /// # Errors
    /// When the file that says so cannot be written.
    pub(super) fn end_soon(&self) -> Result<()> {
        let path = self.last_file();
        File::create(&path)
            .map(drop)
            .with_context(|| format!("failed to create {}", path.display()))
    }

    /// Looks after all processes; whether the program has come to its end.
    ///
    /// # Errors
    /// When the program has failed, or another process has ended.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        self.daemons
            .iter_mut()
            .try_for_each(Contained::check_alive)?;
        let driver = self.driver.as_mut().context("no driver")?;
        driver.has_succeeded()
    }

    /// The rounds so far.
    ///
    /// # Errors
    /// When the program has printed something else.
    pub(super) fn rounds(&self) -> Result<Vec<Round>> {
        let path = self.rounds_file();
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        // The last line may not be whole yet.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("a round: {line}")))
            .collect()
    }

    /// What Spark has noted of its own work, once the program has ended.
    ///
    /// # Errors
    /// When there is not exactly one log of events.
    pub(super) fn tally(&self) -> Result<Tally> {
        let dir = self.events();
        let entries =
            fs::read_dir(&dir).with_context(|| format!("failed to read {}", dir.display()))?;
        let paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        let logs: Vec<_> = paths
            .iter()
            .filter(|path| path.extension().is_none_or(|end| end != "crc"))
            .collect();
        let [log] = logs[..] else {
            anyhow::bail!("{} logs of events in {}", logs.len(), dir.display());
        };
        let text =
            fs::read_to_string(log).with_context(|| format!("failed to read {}", log.display()))?;
        Tally::of(&text).with_context(|| format!("in {}", log.display()))
    }

    fn rounds_file(&self) -> PathBuf {
        self.dir.join("rounds.jsonl")
    }

    fn last_file(&self) -> PathBuf {
        self.scratch.path().join("last")
    }

    fn events(&self) -> PathBuf {
        self.dir.join("events")
    }
}

/// Whether a variable of the user's changes what Spark, Python or Java does.
fn is_settings(name: &str) -> bool {
    let prefixes = ["SPARK_", "PYSPARK_", "PYTHON", "HADOOP_"];
    // Without the second, Java is that of `PATH`, which was looked for.
    let names = [
        "JAVA_TOOL_OPTIONS",
        "JAVA_HOME",
        "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS",
    ];
    prefixes.iter().any(|prefix| name.starts_with(prefix)) || names.contains(&name)
}

fn first(lab: &Lab) -> Result<&Node> {
    lab.nodes.first().context("no host")
}

/// How many workers the master says it has taken.
fn workers(log: &Path) -> Result<usize> {
    let text =
        fs::read_to_string(log).with_context(|| format!("failed to read {}", log.display()))?;
    Ok(text.matches("Registering worker ").count())
}
