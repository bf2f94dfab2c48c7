//! Runs hooks outside the agent's loop: a command may take half a minute, and peers, health and the control socket must
//! not wait for it. One list of changes runs at a time; the caller compares again when it has ended.

use std::path::{Path, PathBuf};

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{CommandError, Hooks};
use crate::plan::state::{Change, Key, Object};

/// A finished list of changes.
#[derive(Debug)]
pub(crate) struct Ended {
    hooks: Hooks,
    changes: Vec<Change>,
    outcomes: Vec<Result<(), CommandError>>,
}

/// The hooks and the task that runs them.
#[derive(Debug)]
pub(crate) struct Runner {
    file: PathBuf,
    /// `None` while commands are running.
    hooks: Option<Hooks>,
    /// Whether all must run again, as at a start.
    reload: bool,
    sender: mpsc::UnboundedSender<Ended>,
    ended: Mutex<mpsc::UnboundedReceiver<Ended>>,
    /// Aborted with its commands when dropped.
    task: JoinSet<()>,
}

impl Runner {
    /// Reads the record of an earlier run of the agent.
    pub(crate) fn open(file: &Path) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        Self {
            file: file.to_owned(),
            hooks: Some(Hooks::open(file)),
            reload: false,
            sender,
            ended: Mutex::new(ended),
            task: JoinSet::new(),
        }
    }

    /// The file that records them.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Makes all hooks run again.
    pub(crate) fn reload(&mut self) {
        match &mut self.hooks {
            Some(hooks) => *hooks = Hooks::open(&self.file),
            None => self.reload = true,
        }
    }

    /// Whether commands are running. Their results are unknown until they end.
    pub(crate) fn is_busy(&self) -> bool {
        self.hooks.is_none()
    }

    /// As [`Hooks::observe`]; nothing while commands are running.
    pub(crate) fn observe(&self) -> impl Iterator<Item = (Key, Object)> {
        self.hooks.iter().flat_map(Hooks::observe)
    }

    /// When the next retry is due; unknown while commands are running.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.hooks.as_ref().and_then(Hooks::next_try)
    }

    /// Runs the commands of the changes, unless some are running already. [`Self::ended`] waits for their end.
    pub(crate) fn start(&mut self, changes: Vec<Change>) {
        let Some(mut hooks) = self.hooks.take() else {
            return;
        };
        while self.task.try_join_next().is_some() {}
        let sender = self.sender.clone();
        self.task.spawn(async move {
            let outcomes = hooks.apply(&changes).await;
            // Fails only if the receiver was dropped.
            let _ = sender.send(Ended {
                hooks,
                changes,
                outcomes,
            });
        });
    }

    /// Waits until the running commands have ended; forever if none run. Cancel-safe.
    pub(crate) async fn ended(&self) -> Ended {
        match self.ended.lock().await.recv().await {
            Some(ended) => ended,
            // Unreachable: `self` holds the sender, too.
            None => std::future::pending().await,
        }
    }

    /// Takes back the finished list; returns one result per change.
    pub(crate) fn take(&mut self, ended: Ended) -> Vec<(Change, Result<(), CommandError>)> {
        self.hooks = Some(match std::mem::take(&mut self.reload) {
            true => Hooks::open(&self.file),
            false => ended.hooks,
        });
        ended.changes.into_iter().zip(ended.outcomes).collect()
    }
}
