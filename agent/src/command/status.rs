//! `selvage status`.

use std::io::{self, Write};
use std::path::PathBuf;

use thiserror::Error;

use crate::base::atomic_file;
use crate::base::terminal::{self, Style};
use crate::command::cli::StatusFlags;
use crate::command::doctor;
use crate::settings::Settings;
use crate::telemetry::control::{self, Client};
use crate::telemetry::status::{State, Status};

pub mod graph;
mod offline;
pub(crate) mod text;
mod watch;

/// The exit status if no agent runs: LSB's for "program is not running".
pub(crate) const NOT_RUNNING: u8 = 3;

/// Why nothing was shown.
#[derive(Debug, Error)]
pub enum Error {
    /// The agent gave no answer.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The caller has no permission.
    #[error("failed to connect to the control socket {path}: run this as root")]
    NotAllowed {
        /// The control socket.
        path: PathBuf,
        /// The error of connecting.
        #[source]
        source: io::Error,
    },
    /// The picture could not be written.
    #[error("failed to write the picture to {path}")]
    Picture {
        /// The file.
        path: PathBuf,
        /// The error of writing.
        #[source]
        source: io::Error,
    },
    /// Writing to stdout failed.
    #[error("failed to write the output")]
    Output(#[from] io::Error),
}

/// Shows the agent's status; if none runs, what its files and the kernel show. Returns the exit status: 0 ready, 1
/// something is wrong, 3 no agent runs.
///
/// # Errors
/// An agent is running but does not answer, or printing failed.
pub async fn run(
    settings: &Settings,
    flags: &StatusFlags,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let style = Style::choose(flags.color);
    if let Some(seconds) = flags.watch {
        return watch::run(settings, seconds, style, output).await;
    }
    let status = look(settings).await?;
    if let Some(path) = &flags.graph {
        let asked = doctor::ask_peers(settings, &status).await;
        let picture = graph::draw(&status, asked.as_deref().map_err(String::as_str));
        if path.as_os_str() == "-" {
            print(output, &picture)?;
        } else {
            let wrong = |source| Error::Picture {
                path: path.clone(),
                source,
            };
            atomic_file::replace(path, picture.as_bytes(), 0o644).map_err(wrong)?;
        }
    } else if flags.json {
        print(output, &json(&status)?)?;
    } else {
        let width = terminal::size().map(|(columns, _)| columns);
        print(output, &text::render(&status, width, style))?;
    }
    Ok(exit_status(&status))
}

/// The agent's answer, or the offline status without one.
pub(crate) async fn look(settings: &Settings) -> Result<Status, Error> {
    match Client::new(&settings.files.socket).status().await {
        Ok(status) => Ok(status),
        Err(control::Error::NotRunning { path, source })
            if source.kind() == io::ErrorKind::PermissionDenied =>
        {
            Err(Error::NotAllowed { path, source })
        }
        Err(control::Error::NotRunning { .. }) => Ok(offline::look(settings).await),
        Err(error) => Err(error.into()),
    }
}

/// 0 ready, 1 something is wrong, 3 no agent runs.
pub(crate) fn exit_status(status: &Status) -> u8 {
    match status.health.state {
        State::Ready => 0,
        State::Joining | State::Degraded => 1,
        State::Stopped => NOT_RUNNING,
    }
}

/// JSON for people and programs alike.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::from)?;
    text.push('\n');
    Ok(text)
}

/// Prints a text in one go. A closed pipe is no error: head(1) reads only the beginning.
pub(crate) fn print(output: &mut impl Write, text: &str) -> Result<(), Error> {
    let printed = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}
