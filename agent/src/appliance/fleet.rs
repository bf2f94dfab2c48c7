//! The fleet: which of many machines may update now, so that they never go down together.
//!
//! Three rules, each on its own:
//!
//! * [`wave`]: a release names the time over which it is rolled out; each machine has its place in it.
//! * The breaker: a version that failed on K machines is started on no other.
//! * The lock: at most N machines of a group are between the start of their drain and their next passed boot check. It has
//!   no TTL, since a machine that went down and does not come back is the very reason why no other should follow.
//!
//! The lock is kept in etcd ([`etcd`]), or by a server that speaks FleetLock ([`fleet_lock`]), or not at all.
//! `docs/fleet.md` explains it to operators.

use std::path::Path;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::{info, warn};

use self::drain::{Drain, DrainError};
use self::etcd::EtcdFleet;
use self::fleet_lock::{FleetLock, FleetLockError};
use self::records::NodeState;
use self::reported::Reported;
use crate::cluster::lease::{SettingsError, StoreError};
use crate::settings;

pub mod drain;
pub mod etcd;
pub mod fleet_lock;
pub mod records;
mod reported;
pub mod wave;

#[cfg(test)]
pub(super) use self::reported::FILE as REPORTED;

/// Something about the fleet did not work.
#[derive(Debug, Error)]
pub enum FleetError {
    /// etcd cannot be used as it is set.
    #[error("failed to use etcd for the fleet's lock")]
    Settings(#[from] SettingsError),
    /// etcd does not do what it is asked.
    #[error(
        "failed to ask etcd about the fleet; fleet.lock = \"none\" in agent.toml lets this machine update without asking"
    )]
    Store(#[from] StoreError),
    /// A lock server does not answer.
    #[error(transparent)]
    Server(#[from] FleetLockError),
    /// The lock was taken away.
    #[error(
        "the lock is not this machine's any more: somebody ended it by selvage fleet unlock while the machine was draining"
    )]
    Lost,
    /// A drain hook.
    #[error(transparent)]
    Drain(#[from] DrainError),
    /// The text cannot be the version of an image.
    #[error("{0:?} is no version of an image: expected letters, digits, '.', '~' and '-'")]
    BadVersion(String),
    /// The machine's ID cannot be part of a key.
    #[error("{0:?} cannot be a machine's ID: expected letters, digits, '.', '_' and '-'")]
    BadId(String),
    /// Nobody has the lock under this name.
    #[error("{name} does not hold the lock: {holders}")]
    NoHolder {
        /// What was asked for.
        name: String,
        /// Who holds it.
        holders: String,
    },
    /// Several machines have the name.
    #[error(
        "several machines that hold the lock are called {name}: name one by its machine ID: {ids}"
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// Their IDs.
        ids: String,
    },
    /// What was told the fleet cannot be remembered.
    #[error("failed to write {path}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl FleetError {
    /// Whether the settings are at fault.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(
            self,
            Self::Settings(_) | Self::Server(FleetLockError::Tls { .. })
        )
    }
}

/// Whether a machine may go on with an update.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leave {
    /// It may.
    Now,
    /// Not yet.
    Later {
        /// When to ask again, if that is known.
        until: Option<SystemTime>,
        /// Why.
        why: String,
    },
    /// This version failed on too many machines.
    Never {
        /// Why.
        why: String,
    },
}

/// A release, as far as the fleet is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rollout<'a> {
    /// Its version.
    pub version: &'a str,
    /// When it was published.
    pub date: SystemTime,
    /// Over which time the machines start it.
    pub over: Duration,
}

/// This machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its host name.
    pub node: String,
    /// Its ID: [`crate::base::machine_id::of_hardware`].
    pub id: String,
    /// The version that it runs.
    pub version: String,
    /// The slot of that, `a` or `b`, if it is known.
    pub slot: Option<String>,
}

impl Member {
    /// This host's name.
    pub fn host_name() -> String {
        let name = nix::unistd::gethostname().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// How far this machine is with an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// No update is under way.
    Steady,
    /// One is installed that does not run: it has not been booted yet, or has failed and is not judged yet.
    Pending,
    /// It runs, and has not passed its boot check.
    Trying,
}

/// A version that failed on this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FailedVersion<'a> {
    /// Which.
    pub version: &'a str,
    /// When, in seconds since the Unix epoch.
    pub at: u64,
    /// Why.
    pub reason: &'a str,
}

/// What keeps the lock, as set.
///
/// All that is asked of it may be asked again after a crash, or when it is not known whether it was done.
#[derive(Debug)]
enum Lock {
    Etcd(Box<EtcdFleet>),
    Server(FleetLock),
    None,
}

impl Lock {
    /// Takes the lock for an update to a version. [`Leave::Now`] also if this machine holds it already.
    async fn acquire(&mut self, version: &str) -> Result<Leave, FleetError> {
        match self {
            Self::Etcd(lock) => lock.acquire(version).await,
            Self::Server(lock) => lock.acquire().await,
            Self::None => Ok(Leave::Now),
        }
    }

    /// Makes sure that the machine still holds the lock, and tells that it reboots. [`FleetError::Lost`] if it does not
    /// hold it.
    async fn tell_reboot(&mut self, version: &str) -> Result<(), FleetError> {
        match self {
            Self::Etcd(lock) => lock.tell(version, NodeState::Rebooting).await,
            Self::Server(lock) => lock.confirm().await,
            Self::None => Ok(()),
        }
    }

    /// Gives the lock back, if this machine holds it. No request to take it that is still under way succeeds afterwards.
    async fn release(&mut self) -> Result<(), FleetError> {
        match self {
            Self::Etcd(lock) => lock.release().await,
            Self::Server(lock) => lock.release().await,
            Self::None => Ok(()),
        }
    }
}

/// This machine among those of its fleet.
#[derive(Debug)]
pub struct Fleet {
    lock: Lock,
    id: String,
    drain: Drain,
    reported: Reported,
}

impl Fleet {
    /// The fleet of a machine whose root and directory of updates these are. Connects to nothing yet.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(
        settings: &settings::fleet::Fleet,
        etcd: &settings::Etcd,
        member: Member,
        root: &Path,
        directory: &Path,
    ) -> Result<Self, FleetError> {
        let id = member.id.clone();
        let lock = match &settings.lock {
            settings::fleet::Lock::Etcd => Lock::Etcd(Box::new(EtcdFleet::new(
                etcd.clone(),
                &settings.group,
                member,
            )?)),
            settings::fleet::Lock::Server(address) => {
                Lock::Server(FleetLock::new(address, settings, &member.id)?)
            }
            settings::fleet::Lock::None => Lock::None,
        };
        Ok(Self {
            lock,
            id,
            drain: Drain::new(root, settings.drain_timeout),
            reported: Reported::new(directory),
        })
    }

    /// Whether this machine may install a release now: its wave has come, and the breaker has not stopped the version.
    /// Takes nothing.
    ///
    /// # Errors
    /// The fleet cannot be asked.
    pub async fn may_start(
        &mut self,
        rollout: Rollout<'_>,
        now: SystemTime,
    ) -> Result<Leave, FleetError> {
        let start = wave::start(&self.id, rollout.version, rollout.date, rollout.over);
        if now < start {
            return Ok(Leave::Later {
                until: Some(start),
                why: "other machines of the fleet start this version first".to_owned(),
            });
        }
        match &mut self.lock {
            Lock::Etcd(fleet) => fleet.may_start(rollout.version).await,
            Lock::Server(_) | Lock::None => Ok(Leave::Now),
        }
    }

    /// Takes the lock under which this machine reboots into a version.
    ///
    /// # Errors
    /// The fleet cannot be asked.
    pub async fn acquire(&mut self, version: &str) -> Result<Leave, FleetError> {
        self.lock.acquire(version).await
    }

    /// Runs the drain hooks, and makes sure that the lock is still this machine's. If anything fails, the machine must not
    /// reboot, and the lock is given back.
    ///
    /// # Errors
    /// A hook failed, the lock was lost, or the fleet cannot be asked.
    pub async fn drain(&mut self, version: &str) -> Result<(), FleetError> {
        let drained = async {
            self.drain.run(version).await?;
            self.lock.tell_reboot(version).await
        };
        let Err(error) = drained.await else {
            return Ok(());
        };
        if let Err(error) = self.lock.release().await {
            warn!("failed to give the lock back; it is tried again: {error}");
        }
        Err(error)
    }

    /// What is to be done by each run of the timer, the first of them soon after each boot: tells the fleet which versions
    /// failed here, and gives the lock back unless this machine is down for an update.
    ///
    /// The failures come first: whoever waits for the lock must know of them when it gets it.
    ///
    /// # Errors
    /// The fleet cannot be asked. Then do it again later; until then the lock stays.
    pub async fn settle(
        &mut self,
        phase: Phase,
        failed: &[FailedVersion<'_>],
    ) -> Result<(), FleetError> {
        for failure in failed {
            self.report_failure(*failure).await?;
        }
        match (&mut self.lock, phase) {
            (Lock::Etcd(fleet), Phase::Steady) => fleet.is_steady().await,
            (Lock::Etcd(fleet), Phase::Pending) => fleet.is_pending().await,
            (Lock::Etcd(fleet), Phase::Trying) => fleet.is_trying().await,
            (Lock::Server(_) | Lock::None, Phase::Trying) => Ok(()),
            (lock, _) => lock.release().await,
        }
    }

    /// Gives the lock back: this machine does not reboot.
    ///
    /// # Errors
    /// The fleet cannot be asked.
    pub async fn release(&mut self) -> Result<(), FleetError> {
        self.lock.release().await
    }

    /// Tells the fleet, once, that a version failed on this machine.
    ///
    /// # Errors
    /// The fleet cannot be told, or that it was told cannot be remembered.
    pub async fn report_failure(&mut self, failure: FailedVersion<'_>) -> Result<(), FleetError> {
        let Lock::Etcd(fleet) = &mut self.lock else {
            return Ok(());
        };
        if self.reported.has(failure) {
            return Ok(());
        }
        fleet.report_failure(failure).await?;
        info!(
            version = failure.version,
            "told the fleet that this version failed here"
        );
        self.reported.add(failure)
    }
}
