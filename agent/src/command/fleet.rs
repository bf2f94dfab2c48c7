//! `selvage fleet`: how the machines of a fleet take turns at updates, for administrators.

use std::io::{self, Write};

use thiserror::Error;

use crate::appliance::fleet::FleetError;
use crate::appliance::fleet::etcd::{Admin, Status};
use crate::appliance::fleet::records::Config;
use crate::base::terminal::{self, Style};
use crate::command::cli::FleetCommand;
use crate::settings::Etcd;
use crate::settings::fleet::{Fleet, Lock};
use crate::telemetry::status::now;

mod text;

/// A version is stopped.
const STOPPED: u8 = 2;

/// `selvage fleet` failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The fleet.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// There is nothing in etcd to show or change.
    #[error(
        "fleet.lock is {lock}: the machines of this fleet take turns without etcd, so that there is nothing to show or change here"
    )]
    NotInEtcd {
        /// What is set.
        lock: String,
    },
    /// JSON cannot be made.
    #[error("failed to print JSON")]
    Json(#[from] serde_json::Error),
    /// The output cannot be written.
    #[error("failed to write the output")]
    Write(#[from] io::Error),
}

/// Runs a command. Returns the exit status.
///
/// # Errors
/// Whatever did not work; the exit status is then 1.
pub async fn run(
    command: &FleetCommand,
    settings: &Fleet,
    etcd: &Etcd,
    output: &mut impl Write,
) -> Result<u8, Error> {
    let lock = match &settings.lock {
        Lock::Etcd => None,
        Lock::Server(address) => Some(address.to_string()),
        Lock::None => Some("none".to_owned()),
    };
    if let Some(lock) = lock {
        return Err(Error::NotInEtcd { lock });
    }
    let group = command.flags().group.as_ref().unwrap_or(&settings.group);
    let admin = Admin::new(etcd.clone(), group)?;
    match command {
        FleetCommand::Status { json, color, .. } => {
            let status = admin.status().await?;
            match json {
                true => writeln!(output, "{}", serde_json::to_string_pretty(&status)?)?,
                false => {
                    let width = terminal::size().map(|(columns, _)| columns);
                    let text = text::render(&status, now(), width, Style::choose(*color));
                    output.write_all(text.as_bytes())?;
                }
            }
            return Ok(exit_status(&status));
        }
        FleetCommand::Unlock { node, .. } => {
            let held = admin.unlock(node).await?;
            writeln!(
                output,
                "{} ({}) has the lock no more; it was {} for version {}",
                held.node, held.machine_id, held.state, held.version
            )?;
        }
        FleetCommand::Reset { version, .. } => {
            let count = admin.reset(version).await?;
            match count {
                0 => writeln!(output, "version {version} failed on no machine of {group}")?,
                _ => writeln!(
                    output,
                    "version {version} may start again; it had failed on {count} of the machines of {group}"
                )?,
            }
        }
        FleetCommand::Set {
            holders, breaker, ..
        } => {
            let Config { holders, breaker } = admin.set(*holders, *breaker).await?;
            writeln!(output, "{group}: holders {holders}, breaker {breaker}")?;
        }
    }
    Ok(0)
}

fn exit_status(status: &Status) -> u8 {
    match status.failed.iter().any(|failed| failed.stopped) {
        true => STOPPED,
        false => 0,
    }
}
