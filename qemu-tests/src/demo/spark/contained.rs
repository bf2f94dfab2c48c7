//! A process of a pod, in a PID namespace of its own: with it everything dies that it has started.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{lab::append, namespace::Namespace};
use crate::child::Child;

/// The kernel kills all processes of a namespace before it lets their first one go.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of a log in a message.
const TAIL: usize = 12;

/// The process, and where its errors go.
#[derive(Debug)]
pub(super) struct Contained {
    name: String,
    process: Child,
    log: PathBuf,
}

impl Contained {
    /// Starts `program` in a pod; `set_up` gives it its arguments and environment. What it prints to either output goes to
    /// `log`, unless `set_up` says otherwise.
    ///
    /// # Errors
    /// When unshare(1) is missing. Whatever is wrong with the program is seen by [`Self::check_alive`].
    pub(super) fn spawn(
        name: &str,
        pod: &Namespace,
        program: &Path,
        log: PathBuf,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let file = append(&log)?;
        let mut command = pod.command("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(program)
            .stdout(file.try_clone().context("failed to share a log file")?)
            .stderr(file);
        set_up(&mut command);
        let process = Child::spawn(name, command)?;
        Ok(Self {
            name: name.to_owned(),
            process,
            log,
        })
    }

    /// Whether it has ended as it should.
    ///
    /// # Errors
    /// When it has failed; the message has the end of its log.
    pub(super) fn has_succeeded(&mut self) -> Result<bool> {
        let Some(status) = self.process.exited()? else {
            return Ok(false);
        };
        if status.success() {
            return Ok(true);
        }
        Err(self.ended(&status.to_string()))
    }

    /// Looks whether it runs.
    ///
    /// # Errors
    /// When it has ended; the message has the end of its log.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let status = self.process.exited()?;
        status.map_or(Ok(()), |status| Err(self.ended(&status.to_string())))
    }

    fn ended(&self, how: &str) -> anyhow::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        anyhow!(
            "{} ended: {how}; {} ends with:\n{tail}",
            self.name,
            self.log.display()
        )
    }
}

/// Whoever started the namespace's first process waits for it, and so for all others; hence that first one is killed.
impl Drop for Contained {
    fn drop(&mut self) {
        let id = self.process.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        for child in children.split_whitespace().flat_map(str::parse) {
            // It fails only if it is gone already.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let started = Instant::now();
        while started.elapsed() < END_DEADLINE && matches!(self.process.exited(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
