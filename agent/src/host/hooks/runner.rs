//! Hooks that run beside the agent's loop: a command may take half a minute, and peers, health and questions must not wait
//! for it. One list of changes is worked on at a time; whoever wants more compares again when that has ended.

use std::path::{Path, PathBuf};

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{CommandError, Hooks};
use crate::plan::state::{Change, Key, Object};

/// A list of changes that was worked on.
#[derive(Debug)]
pub(crate) struct Ended {
    hooks: Hooks,
    changes: Vec<Change>,
    outcomes: Vec<Result<(), CommandError>>,
}

/// Hooks, and the task that runs them.
#[derive(Debug)]
pub(crate) struct Runner {
    file: PathBuf,
    /// `None` while commands run.
    hooks: Option<Hooks>,
    /// Whether all are to be run again, as at a start.
    renew: bool,
    sender: mpsc::UnboundedSender<Ended>,
    ended: Mutex<mpsc::UnboundedReceiver<Ended>>,
    /// Aborted with its commands when dropped.
    task: JoinSet<()>,
}

impl Runner {
    /// Reads what an earlier life of the agent remembers.
    pub(crate) fn open(file: &Path) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        Self {
            file: file.to_owned(),
            hooks: Some(Hooks::open(file)),
            renew: false,
            sender,
            ended: Mutex::new(ended),
            task: JoinSet::new(),
        }
    }

    /// Where they are remembered.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Has all of them run again.
    pub(crate) fn renew(&mut self) {
        match &mut self.hooks {
            Some(hooks) => *hooks = Hooks::open(&self.file),
            None => self.renew = true,
        }
    }

    /// Whether commands run. What was done is not known until that has ended.
    pub(crate) fn is_busy(&self) -> bool {
        self.hooks.is_none()
    }

    /// What was done, as [`Hooks::observe`]; nothing while commands run.
    pub(crate) fn observe(&self) -> impl Iterator<Item = (Key, Object)> {
        self.hooks.iter().flat_map(Hooks::observe)
    }

    /// When the next of those that failed is to be tried again; not known while commands run.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.hooks.as_ref().and_then(Hooks::next_try)
    }

    /// Runs the commands that the changes ask for, unless some run already. [`Self::ended`] says when they have ended.
    pub(crate) fn start(&mut self, changes: Vec<Change>) {
        let Some(mut hooks) = self.hooks.take() else {
            return;
        };
        while self.task.try_join_next().is_some() {}
        let sender = self.sender.clone();
        self.task.spawn(async move {
            let outcomes = hooks.apply(&changes).await;
            // Fails only if nobody wants to know.
            let _ = sender.send(Ended {
                hooks,
                changes,
                outcomes,
            });
        });
    }

    /// Waits until commands have ended; for ever if none run. Cancel-safe.
    pub(crate) async fn ended(&self) -> Ended {
        match self.ended.lock().await.recv().await {
            Some(ended) => ended,
            // The other end lives as long as this one.
            None => std::future::pending().await,
        }
    }

    /// Takes back what was worked on; one outcome for each change.
    pub(crate) fn take(&mut self, ended: Ended) -> Vec<(Change, Result<(), CommandError>)> {
        self.hooks = Some(match std::mem::take(&mut self.renew) {
            true => Hooks::open(&self.file),
            false => ended.hooks,
        });
        ended.changes.into_iter().zip(ended.outcomes).collect()
    }
}
