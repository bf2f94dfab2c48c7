//! Drain hooks: the site's programs in `/etc/selvage/drain.d/`, run one after the other before this machine reboots into a
//! new version.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::time::timeout;
use tracing::info;

use crate::appliance::programs;
use crate::base::words::harmless;

/// Where they are.
const DIRECTORY: &str = "etc/selvage/drain.d";

/// The most bytes of a line of output that are logged at once.
const LONGEST_LINE: u64 = 2048;

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
        "the drain hook {name} was not done after {} s (fleet.drain-timeout): this machine does not reboot, and tries again later",
        .patience.as_secs()
    )]
    Hangs {
        /// Which.
        name: String,
        /// How long it was waited for.
        patience: Duration,
    },
}

/// The hooks of this machine.
#[derive(Debug)]
pub struct Drain {
    directory: PathBuf,
    patience: Duration,
    grace: Duration,
    /// What runs a program with the arguments that follow its own.
    launcher: PathBuf,
}

impl Drain {
    /// The hooks below a root. Each may take so long.
    pub fn new(root: &Path, patience: Duration) -> Self {
        Self {
            directory: root.join(DIRECTORY),
            patience,
            grace: programs::GRACE,
            launcher: PathBuf::from("systemd-run"),
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
        for path in programs::list(&self.directory).map_err(failed)? {
            self.run_one(&path, version).await?;
        }
        Ok(())
    }

    async fn run_one(&self, path: &Path, version: &str) -> Result<(), DrainError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = harmless(&name).into_owned();
        info!("running the drain hook {name}");
        let failed = |source| DrainError::Run {
            name: name.clone(),
            source,
        };
        let variable = format!("SELVAGE_VERSION={version}");
        let mut child = programs::command(&self.launcher, path, self.patience, Some(variable))
            .spawn()
            .map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let started = tokio::time::Instant::now();
        let ended = async { tokio::join!(child.wait(), log(&name, stdout), log(&name, stderr)) };
        let hangs = || DrainError::Hangs {
            name: name.clone(),
            patience: self.patience,
        };
        let Ok((status, ..)) = timeout(self.patience + self.grace, ended).await else {
            return Err(hangs());
        };
        let status = status.map_err(failed)?;
        match status.success() {
            true => Ok(()),
            // systemd has stopped it.
            false if started.elapsed() >= self.patience => Err(hangs()),
            false => Err(DrainError::Failed { name, status }),
        }
    }
}

/// Logs what a hook prints, line by line.
async fn log(name: &str, stream: Option<impl AsyncRead + Unpin>) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut rest = (&mut lines).take(LONGEST_LINE);
        match rest.read_until(b'\n', &mut line).await {
            Ok(1..) => {
                let text = String::from_utf8_lossy(&line);
                info!("drain hook {name}: {}", harmless(text.trim_end()));
            }
            Ok(0) | Err(_) => return,
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
        let drain = Drain {
            launcher,
            grace: Duration::from_secs(5),
            ..Drain::new(root.path(), Duration::from_secs(60))
        };
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
        let (root, mut drain) =
            site(&[("10-hangs", "sleep 600"), ("20-never", "echo never >> log")]);
        drain.patience = Duration::from_secs(1);
        let error = drain.run("1").await.unwrap_err();
        assert!(matches!(error, DrainError::Hangs { .. }), "{error}");
        assert!(error.to_string().contains("10-hangs"), "{error}");
        assert_eq!(told(&root), "");
    }

    #[tokio::test]
    async fn one_that_cannot_be_run_is_an_error() {
        let (_root, mut drain) = site(&[("10-first", "true")]);
        drain.launcher = PathBuf::from("/nowhere");
        let error = drain.run("1").await.unwrap_err();
        assert!(matches!(error, DrainError::Run { .. }), "{error}");
    }
}
