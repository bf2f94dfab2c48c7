//! The executor of hooks: commands of the administrator that stand where other backends have kernel objects.
//!
//! A hook counts as there once its command succeeded in this life of the agent, or failed without being required; then it
//! is tried again with growing pauses. What an earlier life did is remembered in a file: those hooks are run again, because
//! nobody knows what became of their effects, and for those that are no longer wanted the command that undoes them is run.
//!
//! Required hooks come first, and the others only once they succeeded: they may make the device that the others work on.

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

/// How long one command may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How many commands run at a time.
const AT_ONCE: usize = 8;

/// For how long commands are started in one pass. The rest waits for the next one, which goes by what is wanted then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between the failure of a command that is not required and its next try 1 s; at the most 5 minutes. All have the same
/// pauses, so that those that failed together are tried together.
const PAUSES: Backoff = match Backoff::new(Duration::from_secs(1), Duration::from_secs(300), 0.0, 0)
{
    Ok(backoff) => backoff,
    Err(_) => panic!("constant out of range"),
};

/// What is due within this time is due now.
const TOGETHER: Duration = Duration::from_millis(500);

/// How much of what a command prints is read, in bytes: as much as a lease's data may have.
const MOST_OUTPUT: u64 = 64 * 1024;

/// A command did not succeed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum CommandError {
    /// The shell cannot be started or spoken to.
    #[error("failed to run /bin/sh: {0}")]
    Run(String),
    /// It did not end in time, and was killed with all that it started.
    #[error("{command:?} did not finish within {} s", DEADLINE.as_secs())]
    Timeout {
        /// The command.
        command: String,
    },
    /// It failed.
    #[error("{command:?} ended with {status}: {output}")]
    Failed {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// What it printed.
        output: String,
    },
    /// Other commands took so long that it was not started yet.
    #[error("its turn comes when others that take long have ended")]
    Waiting,
    /// A command that comes before it failed, which is reported with that.
    #[error("its turn comes when the command before it has succeeded")]
    Behind,
}

/// Runs a command in a shell; returns what it printed on standard output and standard error, in order.
///
/// # Errors
///
/// It cannot be run, takes longer than 30 s, or ends with another status than 0.
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
    let conversation = timeout(DEADLINE, converse(&mut child, input)).await;
    let Ok(done) = conversation else {
        return Err(CommandError::Timeout {
            command: shorten(command),
        });
    };
    let (output, status) = done.map_err(failed)?;
    // What it left running is meant to run.
    group.spare();
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

async fn converse(
    child: &mut Child,
    input: Option<&str>,
) -> io::Result<(Vec<u8>, std::process::ExitStatus)> {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let write = async {
        let (Some(mut stdin), Some(input)) = (stdin, input) else {
            return Ok(());
        };
        match stdin.write_all(input.as_bytes()).await {
            // It did not want to know.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    };
    let read = async {
        let mut output = Vec::new();
        if let Some(mut stdout) = stdout {
            (&mut stdout)
                .take(MOST_OUTPUT)
                .read_to_end(&mut output)
                .await?;
            // Whoever prints more shall not wait for ever for a reader.
            tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
        }
        Ok(output)
    };
    let (_, output) = tokio::try_join!(write, read)?;
    Ok((output, child.wait().await?))
}

/// A command with all that it started, which is killed when this is dropped: also where nobody waits for its end any more.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.map(Pid::from_raw))
    }

    fn spare(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself since.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(200).collect()
}

/// The hooks that were run.
#[derive(Debug)]
pub(crate) struct Hooks {
    file: PathBuf,
    /// In this life.
    done: BTreeMap<SubnetKey, Hook>,
    /// In an earlier one, and not seen to since.
    former: BTreeMap<SubnetKey, Hook>,
    /// Those of `done` that failed, and are to be tried again.
    failed: BTreeMap<SubnetKey, Failed>,
}

/// What failed without being required.
#[derive(Debug)]
struct Failed {
    pauses: Backoff,
    due: Instant,
}

impl Hooks {
    /// Reads what an earlier life of the agent remembers.
    pub(crate) fn open(file: &Path) -> Self {
        let former = match fs::read(file) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|error| {
                warn!(path = %file.display(), "forgetting for whom commands were run: {error}");
                BTreeMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                warn!(path = %file.display(), "cannot read for whom commands were run: {error}");
                BTreeMap::new()
            }
        };
        Self {
            file: file.to_owned(),
            done: BTreeMap::new(),
            former,
            failed: BTreeMap::new(),
        }
    }

    /// When the next of those that failed is to be tried again.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.due).min()
    }

    /// What was done, as objects: [`Object::Odd`] what only an earlier life did, or is to be tried again.
    pub(crate) fn observe(&self) -> impl Iterator<Item = (Key, Object)> {
        let soon = Instant::now() + TOGETHER;
        let former = self.former.keys().map(|key| (Key::Hook(*key), Object::Odd));
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
        former.chain(done)
    }

    /// Runs the commands that the changes ask for, some at a time; one outcome for each change.
    pub(crate) async fn apply(&mut self, changes: &[Change]) -> Vec<Result<(), CommandError>> {
        self.apply_within(PATIENCE, changes).await
    }

    async fn apply_within(
        &mut self,
        patience: Duration,
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
            let behind = outcomes.values().any(Result::is_err);
            let tasks = turn.iter().map(|change| async {
                match behind {
                    true => Err(CommandError::Behind),
                    false => self.carry_out(change, start, patience).await,
                }
            });
            let done: Vec<Result<Run, CommandError>> =
                futures_util::stream::iter(tasks.collect::<Vec<_>>())
                    .buffered(AT_ONCE)
                    .collect()
                    .await;
            for (change, outcome) in turn.into_iter().zip(done) {
                outcomes.insert(change.key(), outcome);
            }
        }
        for change in changes {
            if let Some(Ok(run)) = outcomes.get(change.key()) {
                self.note(change, *run);
            }
        }
        // What was not started is due later as well, or it would be tried again without a pause.
        for (key, outcome) in &outcomes {
            if outcome.is_err()
                && let Key::Hook(key) = key
                && let Some(failed) = self.failed.get_mut(key)
            {
                failed.due = Instant::now() + failed.pauses.next_delay();
            }
        }
        self.remember();
        let outcome = |change: &Change| outcomes.get(change.key()).cloned();
        changes
            .iter()
            .map(|change| outcome(change).unwrap_or(Ok(Run::Succeeded)).map(drop))
            .collect()
    }

    /// Runs the command that a change asks for.
    async fn carry_out(
        &self,
        change: &Change,
        start: Instant,
        patience: Duration,
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
            } => (self.former.get(key).or_else(|| self.done.get(key)), true),
            _ => (None, false),
        };
        let Some(hook) = hook else {
            return Ok(Run::Succeeded);
        };
        let command = if undo { &hook.unset } else { &hook.set };
        let Some(command) = command else {
            return Ok(Run::Succeeded);
        };
        if start.elapsed() > patience {
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

    fn note(&mut self, change: &Change, run: Run) {
        let Key::Hook(key) = change.key() else { return };
        self.former.remove(key);
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
            let mut pauses = same.map_or(PAUSES, |failed| failed.pauses);
            let due = Instant::now() + pauses.next_delay();
            self.failed.insert(*key, Failed { pauses, due });
        }
    }

    fn remember(&self) {
        let all: BTreeMap<String, &Hook> = self
            .former
            .iter()
            .chain(&self.done)
            .map(|(key, hook)| (key.name(), hook))
            .collect();
        let written = serde_json::to_vec(&all)
            .map_err(io::Error::from)
            .and_then(|bytes| atomic_file::replace(&self.file, &bytes, 0o600));
        if let Err(error) = written {
            warn!(path = %self.file.display(), "failed to remember for whom commands were run: {error}");
        }
    }
}

/// How a command ended that did not keep the others waiting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Run {
    Succeeded,
    /// Without being required.
    Failed,
}

/// Whether a change asks for a command that others wait for.
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
