//! Drain hooks: the site's programs in `/etc/selvage/drain.d/`, run one after the other before this machine reboots into a
//! new version.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;
use tracing::info;

use crate::appliance::programs::{self, End, Ended, Launch};
use crate::base::words::harmless;

/// Where they are.
const DIRECTORY: &str = "etc/selvage/drain.d";

/// A drain hook stops the reboot.
#[derive(Debug, Error)]
pub enum DrainError {
    /// The directory cannot be read.
    #[error("failed to read the drain hooks in {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A hook cannot be run.
    #[error("failed to run the drain hook {name}")]
    Run {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A hook ended badly.
    #[error(
        "the drain hook {name} ended with {status}: this machine does not reboot, and tries again later"
    )]
    Failed {
        /// Which.
        name: String,
        /// How.
        status: ExitStatus,
    },
    /// A hook did not end.
    #[error(
        "the drain hook {name} was stopped (fleet.drain-timeout): {}; this machine does not reboot, and tries again later",
        Ended::hung(*.ran, .said)
    )]
    Hangs {
        /// Which.
        name: String,
        /// How long it ran.
        ran: Duration,
        /// What it printed last.
        said: String,
    },
}

/// The hooks of this machine.
#[derive(Debug)]
pub struct Drain {
    directory: PathBuf,
    launch: Launch,
}

impl Drain {
    /// The hooks below a root. Each may take so long.
    pub fn new(root: &Path, patience: Duration) -> Self {
        Self {
            directory: root.join(DIRECTORY),
            launch: Launch::new(patience),
        }
    }

    /// Runs all hooks in the order of their names, until one fails. They find the new version in `SELVAGE_VERSION`.
    ///
    /// # Errors
    /// A hook failed or took too long; those after it were not run.
    pub async fn run(&self, version: &str) -> Result<(), DrainError> {
        let failed = |source| DrainError::Read {
            path: self.directory.clone(),
            source,
        };
        let launch = Launch {
            variable: Some(format!("SELVAGE_VERSION={version}")),
            ..self.launch.clone()
        };
        for path in programs::list(&self.directory).map_err(failed)? {
            Self::run_one(&path, &launch).await?;
        }
        Ok(())
    }

    async fn run_one(path: &Path, launch: &Launch) -> Result<(), DrainError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = harmless(&name).into_owned();
        info!("running the drain hook {name}");
        let hear = |line: &str| info!("drain hook {name}: {}", harmless(line));
        match launch.run(path, hear).await {
            Ok(Ended { end, said }) => match end {
                End::Status(status) if status.success() => Ok(()),
                End::Status(status) => Err(DrainError::Failed { name, status }),
                End::Hung(ran) => Err(DrainError::Hangs { name, ran, said }),
            },
            Err(source) => Err(DrainError::Run { name, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory of hooks, and what stands in for systemd: it runs the program that follows the options. `log` in the
    /// directory tells what was run.
    fn site(hooks: &[(&str, &str)]) -> (tempfile::TempDir, Drain) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let launcher = "for one; do case $one in \
             --setenv=*) export \"${one#--setenv=}\";; \
             --property=RuntimeMaxSec=*) limit=${one#*=*=};; \
             --*) ;; *) exec timeout -k 1 \"$limit\" \"$one\";; esac; done";
        let launcher = write(root.path().join("launcher"), launcher);
        let directory = root.path().join(DIRECTORY);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in hooks {
            write(
                directory.join(name),
                &format!("cd {}; {text}", root.path().display()),
            );
        }
        let mut drain = Drain::new(root.path(), Duration::from_secs(60));
        drain.launch.launcher = launcher;
        drain.launch.grace = Duration::from_secs(5);
        (root, drain)
    }

    fn told(root: &tempfile::TempDir) -> String {
        fs::read_to_string(root.path().join("log")).unwrap_or_default()
    }

    #[tokio::test]
    async fn hooks_are_run_in_the_order_of_their_names_and_know_the_version() {
        let (root, drain) = site(&[
            ("20-second", "echo second $SELVAGE_VERSION >> log"),
            (
                "10-first",
                "echo first >> log; echo said; echo complained >&2",
            ),
            (".hidden", "echo hidden >> log"),
            ("30-copy~", "echo copy >> log"),
        ]);
        fs::write(root.path().join(DIRECTORY).join("README"), "echo readme").unwrap();
        drain.run("1.2~rc1").await.unwrap();
        assert_eq!(told(&root), "first\nsecond 1.2~rc1\n");
    }

    #[tokio::test]
    async fn no_directory_is_no_hook_and_a_file_in_its_place_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let drain = Drain::new(root.path(), Duration::from_secs(1));
        drain.run("1").await.unwrap();
        fs::create_dir_all(root.path().join("etc/selvage")).unwrap();
        fs::write(root.path().join(DIRECTORY), "").unwrap();
        let error = drain.run("1").await.unwrap_err().to_string();
        assert!(error.contains("drain.d"), "{error}");
    }

    #[tokio::test]
    async fn one_that_fails_stops_those_after_it() {
        let (root, drain) = site(&[
            ("10-first", "echo first >> log"),
            ("20-bad", "echo no place for the guests; exit 3"),
            ("30-never", "echo never >> log"),
        ]);
        let error = drain.run("1").await.unwrap_err().to_string();
        assert!(
            error.contains("20-bad") && error.contains("exit status: 3"),
            "{error}"
        );
        assert_eq!(told(&root), "first\n");
    }

    #[tokio::test]
    async fn one_that_hangs_is_stopped_and_named() {
        let (root, mut drain) = site(&[
            ("10-hangs", "echo asking the guests; sleep 600"),
            ("20-never", "echo never >> log"),
        ]);
        drain.launch.limit = Duration::from_secs(1);
        let error = drain.run("1").await.unwrap_err();
        assert!(matches!(error, DrainError::Hangs { .. }), "{error}");
        let start = "the drain hook 10-hangs was stopped (fleet.drain-timeout): it had not ended after 1 s, and printed \
                     last: asking the guests; this machine";
        assert!(error.to_string().starts_with(start), "{error}");
        assert_eq!(told(&root), "");
    }

    #[tokio::test]
    async fn one_that_cannot_be_run_is_an_error() {
        let (_root, mut drain) = site(&[("10-first", "true")]);
        drain.launch.launcher = PathBuf::from("/nowhere");
        let error = drain.run("1").await.unwrap_err();
        assert!(matches!(error, DrainError::Run { .. }), "{error}");
    }
}
