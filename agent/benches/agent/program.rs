//! A program that leases a subnet, programs the kernel and writes `subnet.env`, and what it costs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::Ipv4Net;
use tempfile::TempDir;

use crate::cluster::ETCD;
use crate::host::Host;

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
            .env(
                "SELVAGE_STATE_DIR",
                self.directory.path().join(format!("state{last}")),
            )
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

/// Processor time, user and system, of all programs that this one has waited for.
pub(crate) fn cpu_of_children() -> Result<Duration> {
    cpu_fields("self", 13..15)
}

/// Sums up times of `/proc/PID/stat`. After the process's name, `utime`, `stime`, `cutime` and `cstime` are the fields 11
/// to 14, counted from 0 (proc(5)).
fn cpu_fields(process: &str, fields: Range<usize>) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name may hold anything.
    let (_, rest) = text.rsplit_once(')').context("a process without a name")?;
    let mut ticks = 0;
    for field in rest
        .split_whitespace()
        .skip(fields.start)
        .take(fields.len())
    {
        ticks += field.parse::<u64>().with_context(|| path.clone())?;
    }
    // `USER_HZ` is 100 on every machine that flannel runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// A program that runs; it is killed when this goes.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    subnet_file: PathBuf,
    log: PathBuf,
}

/// Resident memory in bytes.
pub(crate) struct Memory {
    pub(crate) now: u64,
    pub(crate) peak: u64,
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
        let begin = Instant::now();
        loop {
            let look = Instant::now();
            let routes = self.routes()?;
            if routes == *wanted {
                return Ok(self.started.elapsed());
            }
            let what = format!("{} routes, has {}", wanted.len(), routes.len());
            self.check(begin.elapsed(), limit, &what)?;
            // Looking costs processor time too: no more than a fifth of it.
            std::thread::sleep((look.elapsed() * 4).max(Duration::from_millis(5)));
        }
    }

    /// Destinations of the routes over `flannel.1` in the program's namespace.
    fn routes(&self) -> Result<HashSet<Ipv4Addr>> {
        let path = format!("/proc/{}/net/route", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut routes = HashSet::new();
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            if let (Some("flannel.1"), Some(hex)) = (fields.next(), fields.next()) {
                // The address as the machine's integer, of which the first byte is the first octet on any machine.
                let bits = u32::from_str_radix(hex, 16).with_context(|| path.clone())?;
                routes.insert(Ipv4Addr::from(bits.to_ne_bytes()));
            }
        }
        Ok(routes)
    }

    /// Processor time so far, user and system, of the program and the programs that it ran.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu_fields(&self.child.id().to_string(), 11..15)
    }

    /// Resident memory.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let number: u64 = kibibytes
                .with_context(|| format!("{path} has no {name}"))?
                .parse()?;
            anyhow::Ok(number * 1024)
        };
        Ok(Memory {
            now: field("VmRSS:")?,
            peak: field("VmHWM:")?,
        })
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
