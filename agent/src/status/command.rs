//! `selvage status`.

use std::io::{self, Write};

use thiserror::Error;

use super::Status;
use crate::cli::StatusFlags;
use crate::control::{self, Client};
use crate::settings::Settings;

/// Why nothing was shown.
#[derive(Debug, Error)]
pub enum Error {
    /// The agent gave no answer.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// Nobody reads what is printed.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Shows what the agent knows. Returns the exit status: 0 all is well, 1 something is wrong, 3 no agent runs.
///
/// # Errors
/// The agent runs and gives no answer, or nobody reads what is printed.
pub async fn run(
    settings: &Settings,
    _flags: &StatusFlags,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let status: Status = Client::new(&settings.files.socket).status().await?;
    serde_json::to_writer_pretty(&mut *output, &status).map_err(io::Error::from)?;
    writeln!(output)?;
    Ok(u8::from(!status.health.reasons.is_empty()))
}
