//! A real etcd on this host, outside of all machines: it answers while any of them is down.

use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{self, Command},
};

use crate::{
    child::{self, Child},
    fleet::history::{Change, now},
    host::free_port,
    wait,
};

/// etcd starts at once; a busy host may not.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// For a history of a few hundred changes.
const HISTORY_DEADLINE: Duration = Duration::from_secs(60);
/// Where the keys of the fleet are.
const PREFIX: &str = "/selvage/";
/// Written last, so that the end of a history is seen.
const END: &str = "/selvage/end-of-history";

/// A server that dies with this value.
#[derive(Debug)]
pub(crate) struct Etcd {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    _server: Child,
}

impl Etcd {
    /// Starts an empty one with its files below `dir`.
    ///
    /// # Errors
    /// When etcd or etcdctl is missing, or it does not answer within a minute.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let data = dir.join("etcd");
        if data.exists() {
            fs::remove_dir_all(&data)
                .with_context(|| format!("failed to empty {}", data.display()))?;
        }
        fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        let path = dir.join("etcd.log");
        let log = fs::File::create(&path)
            .with_context(|| format!("failed to create {}", path.display()))?;
        let errors = log.try_clone().context("failed to share a log file")?;
        let (port, peers) = (free_port()?, free_port()?);
        let (client, peer) = (url(port), url(peers));
        let mut command = std::process::Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdout(log)
            .stderr(errors);
        let server = Child::spawn("etcd (package etcd-server)", command)?;
        let etcd = Self {
            port,
            _server: server,
        };
        wait::until("etcd answers", START_DEADLINE, || {
            etcd.ctl(&["endpoint", "health"])
        })
        .await
        .with_context(|| format!("see {}", path.display()))?;
        Ok(etcd)
    }

    /// Where guests find it, led there by [`crate::relay`].
    pub(crate) fn guests_url(&self) -> String {
        format!("http://{}:{}", crate::serve::ADDRESS, self.port)
    }

    /// Runs etcdctl and gives what it printed.
    ///
    /// # Errors
    /// When it fails; the message has its words.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .output()
            .await
            .context("failed to run etcdctl (package etcd-client)")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "etcdctl {}: {}",
            arguments.join(" "),
            said.trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = std::process::Command::new("etcdctl");
        command
            // Version 3.3 and older speak the second API if they are not told.
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &url(self.port)])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        child::die_with_parent(&mut command);
        let mut command = Command::from(command);
        command.kill_on_drop(true);
        command
    }

    /// Everything that changes about the fleet, from etcd's first revision on.
    fn changes(&self) -> Result<(process::Child, Changes<process::ChildStdout>)> {
        let mut process = self
            .command(&["watch", "--rev", "1", "--prefix", PREFIX])
            .spawn()
            .context("failed to run etcdctl (package etcd-client)")?;
        let output = process.stdout.take().context("etcdctl has no output")?;
        Ok((process, Changes::new(output)))
    }

    /// Starts to note what changes about the fleet, and when.
    ///
    /// # Errors
    /// When etcdctl cannot be started.
    pub(crate) fn follow(&self) -> Result<Follower> {
        let (process, mut changes) = self.changes()?;
        let noted = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&noted);
        tokio::spawn(async move {
            while let Ok(Some(change)) = changes.next().await {
                notes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(change);
            }
        });
        Ok(Follower {
            noted,
            _process: process,
        })
    }

    /// The whole history of the fleet, as etcd itself keeps it; the times are those of this reading.
    ///
    /// # Errors
    /// When it cannot be read to its end within a minute.
    pub(crate) async fn history(&self) -> Result<Vec<Change>> {
        self.ctl(&["put", END, "."]).await?;
        let (_process, mut changes) = self.changes()?;
        let read = async {
            let mut history = Vec::new();
            while let Some(change) = changes.next().await? {
                if change.key == END {
                    return Ok(history);
                }
                history.push(change);
            }
            anyhow::bail!("etcdctl watch ended before the history did")
        };
        tokio::time::timeout(HISTORY_DEADLINE, read)
            .await
            .context("the history has no end")?
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// What a watch has seen so far.
#[derive(Debug)]
pub(crate) struct Follower {
    noted: Arc<Mutex<Vec<Change>>>,
    _process: process::Child,
}

impl Follower {
    /// All changes, each with the time at which it was seen.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.clone()
    }
}

/// Reads what `etcdctl watch` prints: `PUT`, key and value, or `DELETE`, key and an empty line. Values of ours have one line.
struct Changes<R> {
    lines: Lines<BufReader<R>>,
}

impl<R: AsyncRead + Unpin> Changes<R> {
    fn new(output: R) -> Self {
        Self {
            lines: BufReader::new(output).lines(),
        }
    }

    async fn next(&mut self) -> Result<Option<Change>> {
        loop {
            let Some(kind) = self.lines.next_line().await? else {
                return Ok(None);
            };
            let is_put = match kind.as_str() {
                "PUT" => true,
                "DELETE" => false,
                // The rest of a value that somebody else wrote.
                _ => continue,
            };
            let key = self.lines.next_line().await?.context("no key")?;
            let value = self.lines.next_line().await?.context("no value")?;
            return Ok(Some(Change {
                at: now(),
                key,
                value: is_put.then_some(value),
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_history_is_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let etcd = Etcd::start(dir.path()).await.unwrap();
        let follower = etcd.follow().unwrap();
        etcd.ctl(&["put", "/elsewhere", "x"]).await.unwrap();
        etcd.ctl(&["put", "/selvage/a", "1"]).await.unwrap();
        etcd.ctl(&["put", "/selvage/a", "PUT"]).await.unwrap();
        etcd.ctl(&["del", "/selvage/a"]).await.unwrap();
        let history = etcd.history().await.unwrap();
        let told = |changes: &[Change]| -> Vec<(String, Option<String>)> {
            let told = |change: &Change| (change.key.clone(), change.value.clone());
            changes.iter().map(told).collect()
        };
        let a = |value: Option<&str>| ("/selvage/a".to_owned(), value.map(str::to_owned));
        let expected = [a(Some("1")), a(Some("PUT")), a(None)];
        assert_eq!(told(&history), expected);
        wait::until("the follower", START_DEADLINE, || async {
            let seen = follower.changes();
            ensure!(seen.len() == 4, "{seen:?}");
            assert_eq!(told(&seen[..3]), expected);
            assert!(seen.is_sorted_by_key(|change| change.at));
            Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn other_lines_are_passed_over() {
        let text = "PUT\n/a\nvalue\nits second line\nDELETE\n/a\n\nPUT\n/b\n";
        let mut changes = Changes::new(text.as_bytes());
        assert!(changes.next().await.unwrap().unwrap().value.is_some());
        assert_eq!(changes.next().await.unwrap().unwrap().value, None);
        assert!(changes.next().await.is_err());
    }
}
