//! systemd-sysupdate, which writes a version into the free slot and its boot entry.

use std::fs;
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

/// Where the transfers are while a version is written, below the root: the unit of updates may write there.
const DEFINITIONS: &str = "run/selvage-update/sysupdate.d";

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
    /// What it is to do cannot be written.
    #[error("failed to copy the transfers of {from} to {to}")]
    Definitions {
        /// The image's.
        from: PathBuf,
        /// Those for this disk.
        to: PathBuf,
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
    for_disk: PathBuf,
}

impl Sysupdate {
    /// The image's own, below a root. It is in no directory of `PATH`.
    pub fn new(root: &Path) -> Self {
        Self {
            program: root.join("usr/lib/systemd/systemd-sysupdate"),
            definitions: root.join("usr/lib/sysupdate.d"),
            for_disk: root.join(DEFINITIONS),
        }
    }

    /// Writes a version onto `disk`, the device of a whole disk; systemd-sysupdate looks for it itself without one.
    /// `progress` hears each line of its output.
    ///
    /// A version that is installed in part is completed, one that is wholly installed left alone.
    ///
    /// # Errors
    /// [`SysupdateError`], with what the program said.
    pub(crate) async fn update(
        &self,
        disk: Option<&Path>,
        version: &Version,
        progress: &mut dyn FnMut(&str),
    ) -> Result<(), SysupdateError> {
        let failed = |source| SysupdateError::Run {
            program: self.program.clone(),
            source,
        };
        let definitions = match disk {
            Some(disk) => self.definitions_for(disk)?,
            None => &self.definitions,
        };
        // One pipe for both, so that the lines keep their order.
        let (output, input) = io::pipe().map_err(failed)?;
        let mut child = Command::new(&self.program)
            .arg(format!("--definitions={}", definitions.display()))
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

    /// Writes the image's transfers with this disk in them; returns their directory.
    ///
    /// `Path=auto` is the disk of `/usr`, which systemd 257 does not find while a system extension is merged: `/usr`
    /// is an overlay then (systemd issue 24562).
    fn definitions_for(&self, disk: &Path) -> Result<&Path, SysupdateError> {
        let (from, to) = (&self.definitions, &self.for_disk);
        let written = || {
            match fs::remove_dir_all(to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::create_dir_all(to)?,
            }
            let path = format!("Path={}", disk.display());
            for transfer in fs::read_dir(from)? {
                let transfer = transfer?;
                let text = fs::read_to_string(transfer.path())?;
                let lines = text.lines().map(|line| match line {
                    "Path=auto" => &path,
                    line => line,
                });
                let text: String = lines.flat_map(|line| [line, "\n"]).collect();
                fs::write(to.join(transfer.file_name()), text)?;
            }
            Ok(())
        };
        written().map_err(|source| SysupdateError::Definitions {
            from: from.clone(),
            to: to.clone(),
            source,
        })?;
        Ok(to)
    }
}

#[cfg(test)]
mod tests;
