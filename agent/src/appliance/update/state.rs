//! What must survive a reboot about updates: `/var/lib/selvage/update/state.json`.
//!
//! Both versions of the image read and write this file, the old one also after it has fallen back from the new one. So
//! later versions only add fields, and a field that this version does not know is kept when it writes the file.
//!
//! A file that cannot be read never stops anything: it counts as empty, and the next change moves it aside.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::metrics;
use crate::base::atomic_file;
use crate::base::codes::codes;
use crate::telemetry::metrics::METRICS_FILE;
use crate::telemetry::status::Cause;

pub use self::by_hand::ByHand;

mod by_hand;

/// The directory of updates: the state and the staged files.
pub const DIRECTORY: &str = "/var/lib/selvage/update";

/// The number in the field `format`.
const FORMAT: u32 = 1;

/// How many failed versions are kept; the oldest are dropped.
const MOST_FAILED: usize = 32;

/// Everything about updates. Times are seconds since the Unix epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Version of this format.
    pub format: u32,
    /// The highest serial of a release index that was accepted, by channel: each channel counts for itself.
    pub highest_serial: BTreeMap<String, u64>,
    /// The only version that may be installed by itself; `None` for any.
    pub pinned: Option<String>,
    /// The last look at the release index.
    pub last_check: Option<LastCheck>,
    /// The version that was installed and is not judged yet.
    pub pending: Option<Pending>,
    /// Versions that failed, oldest first. None of them is installed again by itself.
    pub failed: VecDeque<Failed>,
    /// The last version that passed its boot check.
    pub blessed: Option<Blessed>,
    /// What somebody chose in place of the newest version.
    pub by_hand: Option<ByHand>,
    /// Fields of later versions.
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// The last look at the release index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastCheck {
    /// When it was.
    pub at: u64,
    /// Whether it brought no index.
    #[serde(default)]
    pub failed: bool,
    /// A sentence about the result.
    pub result: String,
}

/// A version that was installed and is not judged yet.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// The version.
    pub version: String,
    /// When it was installed.
    pub applied_at: u64,
    /// The version that installed it, which the machine falls back to.
    pub from: String,
    /// The health of the machine just before.
    #[serde(default)]
    pub health_before: Health,
    /// How many of its boots got as far as the boot check.
    #[serde(default)]
    pub boots: u32,
    /// The kernel's ID of the last of these boots.
    #[serde(default)]
    pub last_boot: String,
    /// What the last boot check found, unless all was well.
    #[serde(default)]
    pub finding: Option<Finding>,
}

/// What a boot check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// When it was found.
    pub at: u64,
    /// Whether the version was found bad; otherwise the check was undecided.
    pub bad: bool,
    /// The kind of failure.
    pub code: FailureCode,
    /// The unit or check that failed, where there are several of a kind.
    #[serde(default)]
    pub object: Option<String>,
    /// A sentence about the failure.
    pub reason: String,
}

/// A version that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// The version.
    pub version: String,
    /// When the machine had fallen back.
    pub at: u64,
    /// How many of its boots got as far as the boot check.
    #[serde(default)]
    pub boots: u32,
    /// The kind of failure.
    pub code: FailureCode,
    /// A sentence about the failure.
    pub reason: String,
}

/// A version that passed its boot check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Blessed {
    /// The version.
    pub version: String,
    /// When it passed.
    pub at: u64,
}

codes! {
    /// How a version failed; the texts are part of the state and labels of metrics.
    pub enum FailureCode {
        /// A unit failed.
        FailedUnit = "failed-unit",
        /// A unit did not finish starting.
        HungUnit = "hung-unit",
        /// The agent is not ready.
        Agent = "agent",
        /// No peer answers over the overlay.
        Overlay = "overlay",
        /// Docker does not answer.
        Docker = "docker",
        /// A check in `boot-checks.d` failed.
        SiteCheck = "site-check",
        /// systemd started its emergency shell.
        Emergency = "emergency",
        /// Its boots ended before their check had: the machine hung, was reset or lost power.
        CutShort = "cut-short",
        /// None of its boots got as far as the check.
        NeverCameUp = "never-came-up",
        /// Somebody rolled this machine back from it.
        RolledBack = "rolled-back",
    }
}

/// The health of this machine at one time.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Whether the agent of every network holds its lease, the kernel is as planned and `subnet.env` is written; `None`
    /// if no agent is enabled.
    pub agent_ready: Option<bool>,
    /// Why the agent is not ready.
    pub causes: Vec<Cause>,
    /// Peers that answered over the overlay.
    pub peers_answering: Vec<IpAddr>,
    /// Addresses of peers on the underlay that answered.
    pub underlay_answering: Vec<IpAddr>,
    /// Whether Docker answered; `None` if it is not enabled.
    pub docker_ok: Option<bool>,
    /// Whether systemd answered, so that the next two lists are complete.
    pub units_known: bool,
    /// Units that had failed.
    pub failed_units: Vec<String>,
    /// Units that were still starting.
    pub starting_units: Vec<String>,
    /// The checks in `boot-checks.d` that passed.
    pub checks_passed: Vec<String>,
    /// The checks that failed.
    pub checks_failed: Vec<FailedCheck>,
}

/// A check in `boot-checks.d` that failed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FailedCheck {
    /// Its file name.
    pub name: String,
    /// Its exit status and output, clipped.
    pub why: String,
    /// Whether it said (by exit status 75) that the cause lies outside of this machine.
    #[serde(default)]
    pub outside: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            format: FORMAT,
            highest_serial: BTreeMap::new(),
            pinned: None,
            last_check: None,
            pending: None,
            failed: VecDeque::new(),
            blessed: None,
            by_hand: None,
            other: BTreeMap::new(),
        }
    }
}

impl State {
    /// The highest serial that was accepted of a channel's index; 0 if none was.
    pub fn highest_serial(&self, channel: &str) -> u64 {
        self.highest_serial
            .get(channel)
            .copied()
            .unwrap_or_default()
    }

    /// Forgets what a reset of the machine forgets. The serials and the failed versions stay: without them, an index of
    /// long ago would be believed once more, and a version that does not work here tried once more.
    pub fn reset(&mut self) {
        let Self {
            highest_serial,
            failed,
            other,
            ..
        } = std::mem::take(self);
        *self = Self {
            highest_serial,
            failed,
            other,
            ..Self::default()
        };
    }

    /// Records an accepted index. A lower serial changes nothing.
    pub fn accept_serial(&mut self, channel: &str, serial: u64) {
        let highest = self.highest_serial.entry(channel.to_owned()).or_default();
        *highest = serial.max(*highest);
    }

    /// How this version failed, if it did.
    pub fn failure(&self, version: &str) -> Option<&Failed> {
        self.failed.iter().find(|failed| failed.version == version)
    }

    /// Records that a version is going to be installed. Whoever installs a failed version again by hand forgives it.
    pub fn begin(&mut self, version: &str, from: &str, health_before: Health, at: u64) {
        self.failed.retain(|failed| failed.version != version);
        self.by_hand.take_if(|by_hand| by_hand.from == version);
        self.pending = Some(Pending {
            version: version.to_owned(),
            applied_at: at,
            from: from.to_owned(),
            health_before,
            boots: 0,
            last_boot: String::new(),
            finding: None,
        });
    }

    /// Records that a version is no longer going to be tried.
    pub fn drop_pending(&mut self, version: &str) {
        self.pending.take_if(|pending| pending.version == version);
        self.by_hand.take_if(|by_hand| by_hand.to == version);
    }

    /// Records a failed version, and that it is no longer pending.
    pub fn fail(&mut self, failed: Failed) {
        self.drop_pending(&failed.version);
        self.failed.retain(|known| known.version != failed.version);
        self.failed.push_back(failed);
        while self.failed.len() > MOST_FAILED {
            self.failed.pop_front();
        }
    }

    /// Records that a version passed its boot check.
    pub fn bless(&mut self, version: &str, at: u64) {
        self.pending.take_if(|pending| pending.version == version);
        self.by_hand.take_if(|by_hand| by_hand.to != version);
        self.failed.retain(|failed| failed.version != version);
        self.blessed = Some(Blessed {
            version: version.to_owned(),
            at,
        });
    }
}

/// Why the state was not changed.
#[derive(Debug, Error)]
pub enum Error {
    /// The lock cannot be taken.
    #[error("failed to lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state cannot be written.
    #[error("failed to write {path}")]
    Write {
        /// The state file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The state cannot be read.
#[derive(Debug, Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not the JSON of an update state")]
    Json(#[from] serde_json::Error),
}

/// The file that holds the state.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
    lock: PathBuf,
    metrics: PathBuf,
}

impl StateFile {
    /// The state file of the machine whose root this is.
    pub fn of(root: &Path) -> Self {
        Self::new(&root.join(DIRECTORY.trim_start_matches('/')))
    }

    /// The state file in a directory, usually [`DIRECTORY`]. Touches nothing.
    pub fn new(directory: &Path) -> Self {
        Self {
            path: directory.join("state.json"),
            lock: directory.join("state.lock"),
            metrics: directory.join(METRICS_FILE),
        }
    }

    /// The state; empty if there is none or if it cannot be read, which is logged.
    pub fn read(&self) -> State {
        match self.try_read() {
            Ok(state) => state.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(
                    "{} cannot be used and counts as empty: {error}",
                    self.path.display()
                );
                State::default()
            }
        }
    }

    /// Changes the state, and returns what `change` returns. Processes change it one after the other. A file that cannot
    /// be read is moved aside first. Nothing is written if `change` changes nothing.
    ///
    /// # Errors
    /// The file or its lock cannot be written; the old state is still in place.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let _lock = self.lock()?;
        let old = match self.try_read() {
            Ok(state) => state,
            Err(error) => {
                self.move_aside(&error);
                None
            }
        };
        let old = old.unwrap_or_default();
        let mut state = old.clone();
        let result = change(&mut state);
        if old == state {
            return Ok(result);
        }
        let failed = |source| Error::Write {
            path: self.path.clone(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(&state).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        atomic_file::replace(&self.path, &text, 0o644).map_err(failed)?;
        let metrics = metrics::text(&state);
        if let Err(error) = atomic_file::replace(&self.metrics, metrics.as_bytes(), 0o644) {
            tracing::warn!("failed to write {}: {error}", self.metrics.display());
        }
        Ok(result)
    }

    fn try_read(&self) -> Result<Option<State>, ReadError> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the latest bad file for whoever wants to know what was in it.
    fn move_aside(&self, error: &ReadError) {
        let aside = self.path.with_extension("json.damaged");
        match fs::rename(&self.path, &aside) {
            Ok(()) => tracing::warn!(
                "{} cannot be used, counts as empty and is now {}: {error}",
                self.path.display(),
                aside.display()
            ),
            Err(why) => tracing::warn!(
                "{} cannot be used ({error}), nor moved aside ({why}), and counts as empty",
                self.path.display()
            ),
        }
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        let failed = |source| Error::Lock {
            path: self.lock.clone(),
            source,
        };
        if let Some(directory) = self.lock.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let file = File::options()
            .create(true)
            .append(true)
            .open(&self.lock)
            .map_err(failed)?;
        // Whoever holds it writes one small file, so waiting for it is short.
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))
    }
}

#[cfg(test)]
mod tests;
