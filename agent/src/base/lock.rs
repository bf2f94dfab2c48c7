//! One agent per network of a host: a lock on the state directory, held while the agent runs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::base::network_name::{self, NetworkName};

/// Why the lock was not taken.
#[derive(Debug, Error)]
pub enum Error {
    /// Another agent holds it.
    #[error(
        "the agent with process ID {pid} is using {directory}: stop it first (systemctl stop {unit})", unit = unit(directory)
    )]
    Held {
        /// The content of the lock file, or "unknown".
        pid: String,
        /// The state directory.
        directory: PathBuf,
    },
    /// The lock file cannot be created or read.
    #[error("failed to lock {path}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The unit that usually uses this state directory.
fn unit(directory: &Path) -> String {
    let parent = directory.parent().and_then(Path::file_name);
    let is_named = parent.is_some_and(|parent| parent == "networks");
    let name = directory.file_name().filter(|_| is_named);
    let name: Option<NetworkName> = name.and_then(|name| name.to_str()?.parse().ok());
    network_name::unit(name.as_ref())
}

/// The lock. Dropping it, or the end of the process by any cause, releases it.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
    is_first: bool,
}

impl Lock {
    /// Locks a state directory, and creates it if necessary.
    ///
    /// Fails with [`Error::Held`] if another process still holds the lock after a second. The wait matters: a child of
    /// a killed process shares the lock from fork(2) until execve(2) closes the descriptor.
    pub fn take(directory: &Path) -> Result<Self, Error> {
        const TIMEOUT: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(10);
        let start = Instant::now();
        loop {
            match Self::try_take(directory) {
                Err(Error::Held { .. }) if start.elapsed() < TIMEOUT => sleep(PAUSE),
                result => return result,
            }
        }
    }

    /// Whether nobody has ever taken this lock before: the state directory is new.
    pub fn is_first(&self) -> bool {
        self.is_first
    }

    /// The id of the process that holds a state directory's lock, or "unknown"; `None` if nobody does, or if it cannot be
    /// seen who.
    pub fn holder(directory: &Path) -> Option<String> {
        let mut file = File::open(path(directory)).ok()?;
        let pid = read_pid(&mut file);
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Err((_, nix::Error::EWOULDBLOCK)) => Some(pid),
            Ok(_) | Err(_) => None,
        }
    }

    fn try_take(directory: &Path) -> Result<Self, Error> {
        let path = path(directory);
        let io = |source| Error::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(directory).map_err(io)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            // flock(2) needs no more than an open file, so any process that can open this one could keep the agent from
            // starting.
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let private = fs::Permissions::from_mode(0o600);
        file.set_permissions(private).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                // Whoever has taken it has written into it.
                let is_first = file.metadata().map_err(io)?.len() == 0;
                file.set_len(0).map_err(io)?;
                writeln!(file, "{}", std::process::id()).map_err(io)?;
                Ok(Self {
                    _file: file,
                    is_first,
                })
            }
            Err((mut file, nix::Error::EWOULDBLOCK)) => Err(Error::Held {
                pid: read_pid(&mut file),
                directory: directory.to_owned(),
            }),
            Err((_, error)) => Err(io(error.into())),
        }
    }
}

/// The lock of a state directory.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join("lock")
}

/// What the holder wrote into its lock.
fn read_pid(file: &mut File) -> String {
    let mut pid = String::new();
    match file.read_to_string(&mut pid) {
        Ok(length) if length > 1 => pid.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_open_the_lock() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("lock");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let _lock = Lock::take(directory.path()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn second_agent_is_told_who_runs() {
        let directory = tempfile::TempDir::new().unwrap();
        let first = Lock::take(directory.path()).unwrap();
        assert!(first.is_first());
        let error = Lock::take(directory.path()).unwrap_err();
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        assert!(error.to_string().ends_with("stop selvage)"), "{error}");
        drop(first);
        let network = directory.path().join("networks/blue");
        let _blue = Lock::take(&network).unwrap();
        let error = Lock::take(&network).unwrap_err();
        assert!(error.to_string().ends_with("stop selvage@blue)"), "{error}");
        assert!(!Lock::take(directory.path()).unwrap().is_first());
    }
}
