//! systemd-sysupdate, which writes a version into the free slot and its boot entry.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tracing::debug;

use crate::appliance::update::version::Version;

/// The lines that are kept for a message.
const LAST_LINES: usize = 6;

/// The longest line that is kept.
const LONGEST_LINE: usize = 200;

/// A version was not written into a slot.
#[derive(Debug, Error)]
pub enum SysupdateError {
    /// The program cannot be run.
    #[error("failed to run {program}")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program failed.
    #[error("systemd-sysupdate failed ({status}): {output}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        output: String,
    },
}

/// The program and its definitions.
#[derive(Clone, Debug)]
pub struct Sysupdate {
    program: PathBuf,
    definitions: PathBuf,
}

impl Sysupdate {
    /// The image's own, below a root. It is in no directory of `PATH`.
    pub fn new(root: &Path) -> Self {
        Self {
            program: root.join("usr/lib/systemd/systemd-sysupdate"),
            definitions: root.join("usr/lib/sysupdate.d"),
        }
    }

    /// Writes a version. `progress` hears each line of its output.
    ///
    /// A version that is installed in part is completed, one that is wholly installed left alone.
    ///
    /// # Errors
    /// [`SysupdateError`], with what the program said.
    pub(crate) async fn update(
        &self,
        version: &Version,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), SysupdateError> {
        let failed = |source| SysupdateError::Run {
            program: self.program.clone(),
            source,
        };
        // One pipe for both, so that the lines keep their order.
        let (output, input) = io::pipe().map_err(failed)?;
        let mut child = Command::new(&self.program)
            .arg(format!("--definitions={}", self.definitions.display()))
            .args(["--no-pager", "update", version.as_str()])
            .env("SYSTEMD_COLORS", "0")
            .env("SYSTEMD_EMOJI", "0")
            .env("LC_ALL", "C.UTF-8")
            // Its states are not ours.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(input.try_clone().map_err(failed)?)
            .stderr(input)
            .spawn()
            .map_err(failed)?;
        let output = Receiver::from_owned_fd(output.into()).map_err(failed)?;
        let mut output = BufReader::new(output);
        let mut last = Vec::new();
        let mut hear = |line: String| {
            debug!("systemd-sysupdate: {line}");
            progress(&line);
            if last.len() == LAST_LINES {
                last.remove(0);
            }
            last.push(line);
        };
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).await.map_err(failed)? > 0 {
            let text = String::from_utf8_lossy(&line);
            hear(text.trim().chars().take(LONGEST_LINE).collect());
            line.clear();
        }
        let status = child.wait().await.map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let output = if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            last.join("; ")
        };
        Err(SysupdateError::Failed { status, output })
    }
}

#[cfg(test)]
mod tests;
