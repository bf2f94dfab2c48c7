//! A program that leases a subnet, programs the kernel and writes `subnet.env`, and what it costs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use tempfile::TempDir;

use crate::cluster::ETCD;
use crate::host::Host;
use crate::process::Process;

/// How long a program may take to write `subnet.env`.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A program to be measured.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    arguments: &'static [&'static str],
    /// Logs, and ours keeps its state there.
    directory: TempDir,
}

impl Program {
    /// A program with what comes before flannel's flags.
    pub(crate) fn new(
        name: &'static str,
        path: PathBuf,
        arguments: &'static [&'static str],
    ) -> Result<Self> {
        ensure!(
            path.is_file(),
            "{name}: there is no file {}",
            path.display()
        );
        // A name without a slash would be looked for in PATH.
        let path = std::path::absolute(path)?;
        let directory = TempDir::new().context("a directory for a program's state")?;
        Ok(Self {
            name,
            path,
            arguments,
            directory,
        })
    }

    /// Where it keeps its state on a host.
    fn state(&self, host: &Host) -> PathBuf {
        let [.., last] = host.address.octets();
        self.directory.path().join(format!("state{last}"))
    }

    /// Removes what it keeps on a host.
    pub(crate) fn forget(&self, host: &Host) {
        // Most programs keep nothing.
        let _ = fs::remove_dir_all(self.state(host));
    }

    /// Starts it on a host, with its leases in etcd.
    pub(crate) fn start(&self, host: &Host) -> Result<Running> {
        let etcd = [
            "--etcd-endpoints",
            ETCD,
            "--etcd-prefix",
            "/coreos.com/network",
        ];
        self.start_with(host, &etcd, None)
    }

    /// Starts it on a host, with flags that say where its leases are; in Kubernetes, as that node.
    pub(crate) fn start_with(
        &self,
        host: &Host,
        store: &[&str],
        node: Option<&str>,
    ) -> Result<Running> {
        let [.., last] = host.address.octets();
        let log = self.directory.path().join(format!("log{last}"));
        let subnet_file = host.subnet_file();
        let mut command = host
            .namespace
            .command(self.path.to_str().context("a path that is not UTF-8")?);
        command
            .args(self.arguments)
            .args(store)
            .args(["--iface", "eth0", "--ip-masq"])
            .arg("--subnet-file")
            .arg(&subnet_file)
            .env_remove("NOTIFY_SOCKET")
            .envs(node.map(|node| ("NODE_NAME", node)))
            .env("SELVAGE_STATE_DIR", self.state(host))
            .env(
                "SELVAGE_SOCKET",
                self.directory.path().join(format!("agent{last}.sock")),
            )
            .env("SELVAGE_NODE_ID", format!("bench-{}-{last}", self.name))
            .stdout(Stdio::null())
            .stderr(File::create(&log).context("a program's log")?);
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("{} did not start", self.path.display()))?;
        Ok(Running {
            child,
            started,
            subnet_file,
            log,
        })
    }
}

/// The subnet that the program on a host has leased, if it wrote `subnet.env`.
pub(crate) fn subnet_of(host: &Host) -> Option<Ipv4Net> {
    let text = fs::read_to_string(host.subnet_file()).ok()?;
    let gateway = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))?;
    Some(gateway.parse::<Ipv4Net>().ok()?.trunc())
}

/// A program that runs; it is killed when this goes.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    subnet_file: PathBuf,
    log: PathBuf,
}

impl Running {
    /// Waits for `subnet.env`; returns the time since the program's start.
    pub(crate) fn wait_subnet_env(&mut self) -> Result<Duration> {
        loop {
            let elapsed = self.started.elapsed();
            if self.subnet_file.exists() {
                return Ok(elapsed);
            }
            self.check(elapsed, START_LIMIT, "subnet.env")?;
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until the routes over the device `flannel.1` lead to exactly these subnets; returns the time since the
    /// program's start.
    pub(crate) fn wait_routes(
        &mut self,
        wanted: &HashSet<Ipv4Addr>,
        limit: Duration,
    ) -> Result<Duration> {
        /// More than a host has besides.
        const OTHERS: usize = 100;
        let begin = Instant::now();
        let mut before = None;
        loop {
            let look = Instant::now();
            let (prefixes, at) = (self.process().prefixes()?, self.started.elapsed());
            // To count routes costs little, to read them much: not before their number is right and stays as it is.
            let since = match before {
                Some((same, since)) if same == prefixes => since,
                _ => at,
            };
            if before == Some((prefixes, since))
                && prefixes.abs_diff(wanted.len()) <= OTHERS
                && self.process().routes()? == *wanted
            {
                return Ok(since);
            }
            before = Some((prefixes, since));
            let what = format!("{} routes; the host has {prefixes}", wanted.len());
            self.check(begin.elapsed(), limit, &what)?;
            // Looking costs processor time too: no more than a fifth of it.
            std::thread::sleep((look.elapsed() * 4).max(Duration::from_millis(2)));
        }
    }

    /// What the kernel tells of it.
    pub(crate) fn process(&self) -> Process {
        Process(self.child.id())
    }

    fn check(&mut self, elapsed: Duration, limit: Duration, what: &str) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "ended with {status}; its log ends with: {}",
                self.last_words()
            );
        }
        ensure!(
            elapsed < limit,
            "waited {limit:?} in vain for {what}; its log ends with: {}",
            self.last_words()
        );
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().last().unwrap_or("(nothing)").to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
