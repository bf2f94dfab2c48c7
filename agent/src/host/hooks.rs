//! Runs hooks: commands of the extension backend, which take the place of other backends' kernel objects.
//!
//! A hook counts as done once its command has succeeded in this run of the agent, or has failed without being required;
//! a failed one is retried with exponential backoff. A file records the hooks of an earlier run: those are run again,
//! because their effects may have been lost, and for those no longer wanted the undo command is run.
//!
//! Required hooks run first, and the others only once those succeeded: a required hook may create the device that the
//! others use.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use crate::base::atomic_file;
use crate::base::retry::Backoff;
use crate::cluster::lease::SubnetKey;
use crate::plan::state::{Change, Hook, Key, Object};

mod runner;
#[cfg(test)]
mod tests;

pub(crate) use runner::{Ended, Runner};

/// Timeout of one command.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many commands run concurrently.
const MAX_CONCURRENT: usize = 8;

/// How long one pass starts commands. The rest waits for the next pass, which uses the wanted state of that time.
const START_WINDOW: Duration = Duration::from_secs(10);

/// Backoff of a failed command that is not required: from 1 s to 5 minutes. Without jitter, so that commands that
/// failed together are retried together.
const RETRY_BACKOFF: Backoff =
    match Backoff::new(Duration::from_secs(1), Duration::from_secs(300), 0.0, 0) {
        Ok(backoff) => backoff,
        Err(_) => panic!("constant out of range"),
    };

/// Retries due within this time are run now.
const RETRY_WINDOW: Duration = Duration::from_millis(500);

/// How much of a command's output is read, in bytes: the size limit of a lease's data.
const MAX_OUTPUT: u64 = 64 * 1024;

/// A command failed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CommandError {
    /// The shell cannot be started, or its pipes fail.
    #[error("failed to run /bin/sh: {0}")]
    Run(String),
    /// It exceeded the timeout and was killed with all its children.
    #[error("{command:?} timed out after {} s", DEADLINE.as_secs())]
    Timeout {
        /// The command.
        command: String,
    },
    /// It ended with an error status.
    #[error("{command:?} ended with {status}: {output}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status or signal.
        status: String,
        /// Its output.
        output: String,
    },
    /// It was not started yet because other commands took too long.
    #[error("not started yet: earlier commands are still running")]
    Waiting,
    /// A command that must run before it failed; that failure is reported separately.
    #[error("not started: a required command failed")]
    Behind,
}

/// Runs a command in a shell; returns its standard output and standard error, in order.
///
/// # Errors
///
/// The command cannot be run, takes longer than 30 s, or exits with a status other than 0.
pub(crate) async fn run(
    command: &str,
    environment: &[(String, String)],
    input: Option<&str>,
) -> Result<String, CommandError> {
    let failed = |error: io::Error| CommandError::Run(error.to_string());
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("exec 2>&1\n{command}"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let group = Group::of(&child);
    let exchanged = timeout(DEADLINE, exchange(&mut child, input)).await;
    let Ok(done) = exchanged else {
        return Err(CommandError::Timeout {
            command: shorten(command),
        });
    };
    let (output, status) = done.map_err(failed)?;
    // Background processes that it left are left running on purpose.
    group.disarm();
    let output = String::from_utf8_lossy(&output).into_owned();
    if status.success() {
        return Ok(output);
    }
    Err(CommandError::Failed {
        command: shorten(command),
        status: status.to_string(),
        output: shorten(output.trim()),
    })
}

async fn exchange(
    child: &mut Child,
    input: Option<&str>,
) -> io::Result<(Vec<u8>, std::process::ExitStatus)> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let write = async {
        let (Some(mut stdin), Some(input)) = (stdin, input) else {
            return Ok(());
        };
        match stdin.write_all(input.as_bytes()).await {
            // The command did not read its input.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    };
    let read = async {
        let mut output = Vec::new();
        if let Some(mut stdout) = stdout {
            (&mut stdout)
                .take(MAX_OUTPUT)
                .read_to_end(&mut output)
                .await?;
            // Drain the rest, or the command would block on a full pipe.
            tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
        }
        Ok(output)
    };
    let (_, output) = tokio::try_join!(write, read)?;
    Ok((output, child.wait().await?))
}

/// A command's process group, killed on drop, also if the future that waits for it is cancelled.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Ignored: it may have exited by now.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The hooks that have run.
#[derive(Debug)]
pub(crate) struct Hooks {
    file: PathBuf,
    /// In this run of the agent.
    done: BTreeMap<SubnetKey, Hook>,
    /// In an earlier run, and not handled since.
    earlier: BTreeMap<SubnetKey, Hook>,
    /// Those of `done` that failed and are to be retried.
    failed: BTreeMap<SubnetKey, Failed>,
}

/// A failed hook that is not required.
#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    due: Instant,
}

impl Hooks {
    /// Reads the record of an earlier run of the agent.
    pub(crate) fn open(file: &Path) -> Self {
        let earlier = match fs::read(file) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|error| {
                warn!(path = %file.display(), "ignoring the record of commands that have run: {error}");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(path = %file.display(), "failed to read the record of commands that have run: {error}");
                BTreeMap::new()
            }
        };
        Self {
            file: file.to_owned(),
            done: BTreeMap::new(),
            earlier,
            failed: BTreeMap::new(),
        }
    }

    /// When the next retry is due.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.due).min()
    }

    /// The hooks as objects: [`Object::Odd`] for those of an earlier run and those due for a retry.
    pub(crate) fn observe(&self) -> impl Iterator<Item = (Key, Object)> {
        let soon = Instant::now() + RETRY_WINDOW;
        let earlier = self
            .earlier
            .keys()
            .map(|key| (Key::Hook(*key), Object::Odd));
        let done = self.done.iter().map(move |(key, hook)| {
            let again = self
                .failed
                .get(key)
                .is_some_and(|failed| failed.due <= soon);
            let object = match again {
                true => Object::Odd,
                false => Object::Hook(Box::new(hook.clone())),
            };
            (Key::Hook(*key), object)
        });
        earlier.chain(done)
    }

    /// Runs the commands of the changes, some concurrently; returns one result per change.
    pub(crate) async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), CommandError>> {
        self.apply_within(START_WINDOW, changes).await
    }

    async fn apply_within(
        &mut self,
        window: Duration,
        changes: &[Change],
    ) -> Vec<Result<(), CommandError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        let start = Instant::now();
        let first = |change: &&Change| is_required(change);
        let mut outcomes = BTreeMap::new();
        for required in [true, false] {
            let turn = changes.iter().filter(|change| first(change) == required);
            let turn: Vec<&Change> = turn.collect();
            let blocked = outcomes.values().any(Result::is_err);
            let tasks = turn.iter().map(|change| async {
                match blocked {
                    true => Err(CommandError::Behind),
                    false => self.run_change(change, start, window).await,
                }
            });
            let done: Vec<Result<Run, CommandError>> =
                futures_util::stream::iter(tasks.collect::<Vec<_>>())
                    .buffered(MAX_CONCURRENT)
                    .collect()
                    .await;
            for (change, outcome) in turn.into_iter().zip(done) {
                outcomes.insert(change.key(), outcome);
            }
        }
        for change in changes {
            match outcomes.get(change.key()) {
                Some(Ok(run)) => self.record(change, *run),
                // Also one that was not started, or it would be retried without a pause.
                Some(Err(_)) => self.delay(change.key()),
                None => {}
            }
        }
        self.save();
        let outcome = |change: &Change| outcomes.get(change.key()).cloned();
        changes
            .iter()
            .map(|change| outcome(change).unwrap_or(Ok(Run::Succeeded)).map(drop))
            .collect()
    }

    /// Runs the command of a change.
    async fn run_change(
        &self,
        change: &Change,
        start: Instant,
        window: Duration,
    ) -> Result<Run, CommandError> {
        let (hook, undo) = match change {
            Change::Set {
                object: Object::Hook(hook),
                ..
            } => (Some(&**hook), false),
            Change::Del {
                was: Object::Hook(hook),
                ..
            } => (Some(&**hook), true),
            Change::Del {
                key: Key::Hook(key),
                ..
            } => (self.earlier.get(key).or_else(|| self.done.get(key)), true),
            _ => (None, false),
        };
        let Some(hook) = hook else {
            return Ok(Run::Succeeded);
        };
        let command = if undo { &hook.unset } else { &hook.set };
        let Some(command) = command else {
            return Ok(Run::Succeeded);
        };
        if start.elapsed() > window {
            return Err(CommandError::Waiting);
        }
        match run(command, &hook.environment, hook.input.as_deref()).await {
            Ok(output) => {
                debug!(%change, output = shorten(output.trim()), "ran {command:?}");
                Ok(Run::Succeeded)
            }
            Err(error) if hook.required => Err(error),
            Err(error) => {
                warn!(%change, "command failed: {error}");
                Ok(Run::Failed)
            }
        }
    }

    fn record(&mut self, change: &Change, run: Run) {
        let Key::Hook(key) = change.key() else { return };
        self.earlier.remove(key);
        let Change::Set {
            object: Object::Hook(hook),
            ..
        } = change
        else {
            self.done.remove(key);
            self.failed.remove(key);
            return;
        };
        let before = self.done.insert(*key, (**hook).clone());
        let failed = self.failed.remove(key);
        if run == Run::Failed {
            let same = failed.filter(|_| before.as_ref() == Some(&**hook));
            let mut backoff = same.map_or(RETRY_BACKOFF, |failed| failed.backoff);
            let due = Instant::now() + backoff.next_delay();
            self.failed.insert(*key, Failed { backoff, due });
        }
    }

    fn delay(&mut self, key: &Key) {
        if let Key::Hook(key) = key
            && let Some(failed) = self.failed.get_mut(key)
        {
            failed.due = Instant::now() + failed.backoff.next_delay();
        }
    }

    fn save(&self) {
        let all: BTreeMap<String, &Hook> = self
            .earlier
            .iter()
            .chain(&self.done)
            .map(|(key, hook)| (key.name(), hook))
            .collect();
        let written = serde_json::to_vec(&all)
            .map_err(io::Error::from)
            .and_then(|bytes| atomic_file::replace(&self.file, &bytes, 0o600));
        if let Err(error) = written {
            warn!(path = %self.file.display(), "failed to save the record of commands that have run: {error}");
        }
    }
}

/// The result of a command that does not block the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Run {
    Succeeded,
    /// Failed, but not required.
    Failed,
}

/// Whether the change's command is required, so that the others wait for it.
fn is_required(change: &Change) -> bool {
    match change {
        Change::Set {
            object: Object::Hook(hook),
            ..
        } => hook.required,
        _ => false,
    }
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<SubnetKey, Hook>, serde_json::Error> {
    let all: BTreeMap<String, Hook> = serde_json::from_slice(bytes)?;
    let read = |(name, hook): (String, Hook)| Some((SubnetKey::parse_name(&name).ok()?, hook));
    Ok(all.into_iter().filter_map(read).collect())
}
