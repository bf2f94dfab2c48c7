//! `selvage update`: what people and the timer do about updates of the image.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use thiserror::Error;
use tracing::{info, warn};

use self::automatic::Stop;
use self::progress::Shown;
use crate::appliance::fleet::FleetError;
use crate::appliance::systemd::Systemd;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::index::{Index, Release};
use crate::appliance::update::machine::{Machine, UpdateError};
use crate::appliance::update::running;
use crate::appliance::update::state::Health;
use crate::appliance::update::turn::{Turn, TurnError};
use crate::appliance::update::version::Version;
use crate::base::logging;
use crate::base::service::Service;
use crate::base::terminal::{Colour, Style};
use crate::command::etc_diff;
use crate::settings::update::Update;

mod automatic;
pub(super) mod progress;
mod report;

/// Something newer is there, or is installed and waits for a reboot.
const NEWER: u8 = 2;

/// Something newer is there, but this machine does not take it by itself.
const BLOCKED: u8 = 3;

/// What the manual says of the settings.
pub(super) const UPDATE_HELP: &str = "\
selvage-update.timer runs this command every ten minutes as far as the table
[update] in agent.toml says; environment and flags have no such settings:

  server          http://HOST[:PORT]/PATH or https://..., where the index is
                  (default: none, no updates)
  channel         1 to 32 of a-z, 0-9 and -, the first a letter
                  (default: stable)
  auto            off, check, download or apply (default: check)
  windows         when it may install and reboot (default: at any time):
                  [\"Sat 02:00-05:00\", \"Mon..Fri 22:00-02:00\"]
  time-zone       local, or a name such as Europe/Berlin (default: local)
  skip-window     never, security or critical: the severity from which on
                  windows do not matter (default: critical)
  rate-limit      0 to 10000000 KiB per second; 0 is no limit (default: 0)
  proxy           http://[USER:PASSWORD@]HOST:PORT (default: none)
  cafile          authorities for https, PEM (default: the system's)
  check-interval  300 to 2592000 seconds (default: 21600)

Releases are signed by one of the keys in /usr/lib/selvage/update-keys.d and
/etc/selvage/update-keys.d (*.pem, Ed25519).

Exit status: 64 bad arguments, 78 a bad setting; else as each command says.";

/// What to do about updates.
#[derive(Debug, Subcommand)]
pub enum UpdateCommand {
    /// Show the version that runs, both slots, what is installed or pending, and what failed.
    ///
    /// Asks nobody. Exit status: 0 all is well, 1 the last check failed or a newer version did, 2 something newer is there
    /// or waits for a reboot.
    Status {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// When to use colours.
        #[arg(long, value_enum, default_value_t = Colour::Auto)]
        color: Colour,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Ask the release server for something newer.
    ///
    /// If it does not answer, the index of the last check does, and is named. Exit status: 0 nothing newer, 1 the server or
    /// its index is at fault, 2 something newer is there, 3 it is there but not for this machine.
    Check {
        /// Print JSON; its schema is stable.
        #[arg(long)]
        json: bool,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Download and install an update; the next boot tries it.
    ///
    /// Does not wait for a window, nor for other machines. Exit status: 0 installed, or nothing newer; 1 it did not work,
    /// and the running version is still the one that boots; 3 something newer is there but not for this machine.
    Apply {
        /// This one, also if it is older, failed here or another is pinned, or if the running one has not passed its boot
        /// check.
        #[arg(long)]
        version: Option<Version>,
        /// Download only.
        #[arg(long, conflicts_with = "reboot")]
        download: bool,
        /// Reboot into it at once.
        #[arg(long)]
        reboot: bool,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Have the next boot start the version in the other slot.
    ///
    /// The version that runs now is not installed again by itself. Refused if the other slot is empty or its version
    /// failed.
    Rollback {
        /// Reboot into it at once.
        #[arg(long)]
        reboot: bool,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Let nothing but one version be installed by itself.
    Pin {
        /// Which one [default: the one that runs].
        version: Option<Version>,
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// List what of /etc is not the image's: added (+), changed (~) and removed (-) files.
    ///
    /// An update brings new defaults to all other files.
    EtcDiff {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// End what pin began.
    Unpin {
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Tell the fleet what has become of an update, and give its lock back; the image does so after each boot check.
    #[command(hide = true)]
    Settle {
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
    /// Do what update.auto says; selvage-update.timer does so every ten minutes.
    #[command(hide = true)]
    Auto {
        /// Where the settings are.
        #[command(flatten)]
        settings: UpdateFlags,
    },
}

/// Where the settings of updates are.
#[derive(Args, Clone, Debug)]
pub struct UpdateFlags {
    /// Settings file to read in place of /etc/selvage and the like.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl UpdateCommand {
    /// The only settings file to read.
    pub fn config(&self) -> Option<&Path> {
        match self {
            Self::Status { settings, .. }
            | Self::Check { settings, .. }
            | Self::Apply { settings, .. }
            | Self::Rollback { settings, .. }
            | Self::Pin { settings, .. }
            | Self::Unpin { settings }
            | Self::Settle { settings }
            | Self::Auto { settings } => settings.config.as_deref(),
            Self::EtcDiff { .. } => None,
        }
    }
}

/// The command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// As it says.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The index has no such version.
    #[error("the channel {channel} has no version {version}: it has {known}")]
    Unknown {
        /// Which channel.
        channel: String,
        /// What was asked for.
        version: Version,
        /// What there is.
        known: String,
    },
    /// The fleet cannot be asked.
    #[error("failed to ask the fleet whether this machine may update")]
    Turn(#[source] TurnError),
    /// /etc cannot be compared.
    #[error(transparent)]
    EtcDiff(#[from] etc_diff::Error),
    /// The reboot did not start.
    #[error("failed to reboot: {0}; the next reboot starts the new version")]
    Reboot(io::Error),
    /// The reboot did not start, and no other is to start the new version.
    #[error("failed to reboot: {why}; version {version} waits for its turn again")]
    NoReboot {
        /// What was said.
        why: io::Error,
        /// Which version.
        version: Version,
    },
    /// Writing to standard output failed.
    #[error("failed to print")]
    Print(#[from] io::Error),
    /// JSON cannot be made.
    #[error("failed to print JSON")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// Whether the settings are at fault: exit status 78.
    pub fn is_bad_configuration(&self) -> bool {
        match self {
            Self::Update(error) => error.is_bad_configuration(),
            Self::Turn(error) => {
                (error.downcast_ref::<FleetError>()).is_some_and(FleetError::is_bad_configuration)
            }
            _ => false,
        }
    }
}

/// What `selvage --version` prints: our own version, and the image's if this is one.
pub fn version_text(root: &Path) -> String {
    let own = concat!("selvage ", env!("CARGO_PKG_VERSION"));
    match running::version(root) {
        Some(image) => format!("{own} (image {image})"),
        None => own.to_owned(),
    }
}

/// Runs a command below a root; `health` takes the health of this machine, with which the boot check of a new version
/// compares, and `fleet` makes what says when it may go down. Returns the exit status.
///
/// # Errors
/// Whatever did not work; the exit status is then 1.
pub async fn run<T: Turn>(
    command: &UpdateCommand,
    settings: Update,
    health: impl AsyncFn() -> Health,
    fleet: impl FnOnce(&Version) -> Result<T, TurnError>,
    root: &Path,
    output: &mut impl Write,
) -> Result<u8, Error> {
    if let UpdateCommand::EtcDiff { json } = command {
        etc_diff::run(root, *json, output)?;
        return Ok(0);
    }
    let machine = Machine::new(root, settings)?;
    match command {
        UpdateCommand::EtcDiff { .. } => Ok(0),
        UpdateCommand::Status { json, color, .. } => {
            let report = report::Report::of(&machine, root);
            match json {
                true => writeln!(output, "{}", serde_json::to_string_pretty(&report)?)?,
                false => report.print(Style::choose(*color), output)?,
            }
            Ok(report.exit_status())
        }
        UpdateCommand::Check { json, .. } => {
            let Known { index, failed } = Known::ask(&machine, is_away).await?;
            let choice = choose(&index, machine.running(), &machine.state());
            match json {
                true => {
                    let found = report::Available::of(&index, &choice, failed.is_some());
                    writeln!(output, "{}", serde_json::to_string_pretty(&found)?)?;
                }
                false => {
                    if failed.is_some() {
                        writeln!(output, "the check failed; the {} says:", index.name())?;
                    }
                    print_choice(&machine, &choice, output)?;
                }
            }
            Ok(match failed {
                None => status_of(&choice),
                Some(_) => 1,
            })
        }
        UpdateCommand::Apply {
            version,
            download,
            reboot,
            ..
        } => {
            let _lock = machine.lock()?;
            let Known { index, .. } = Known::ask(&machine, is_away).await?;
            let state = machine.state();
            let choice = choose(&index, machine.running(), &state);
            let release = match (version, &choice) {
                (Some(version), _) => known(&index, version)?,
                (None, Choice::Update { release, .. }) => release,
                (None, other) => {
                    print_choice(&machine, other, output)?;
                    return Ok(status_of(other));
                }
            };
            let mut shown = Shown::new(Service::from_environment(), io::stderr().is_terminal());
            if *download {
                machine
                    .download(release, &mut |step| shown.step(&step))
                    .await?;
                writeln!(output, "version {} is downloaded", release.version)?;
                return Ok(0);
            }
            if version.is_none() && machine.is_on_trial()? {
                return Err(UpdateError::OnTrial(machine.running().clone()).into());
            }
            machine
                .apply(release, &health, &mut |step| shown.step(&step))
                .await?;
            if *reboot {
                writeln!(
                    output,
                    "version {} is installed; rebooting",
                    release.version
                )?;
                Systemd::of(root).reboot().await.map_err(Error::Reboot)?;
            } else {
                writeln!(
                    output,
                    "version {} is installed; the next reboot starts it",
                    release.version
                )?;
            }
            Ok(0)
        }
        UpdateCommand::Rollback { reboot, .. } => {
            let _lock = machine.lock()?;
            let other = machine.roll_back()?;
            let next = if *reboot {
                "rebooting into"
            } else {
                "the next reboot starts"
            };
            writeln!(output, "{next} version {other}")?;
            if *reboot {
                Systemd::of(root).reboot().await.map_err(Error::Reboot)?;
            }
            Ok(0)
        }
        UpdateCommand::Pin { version, .. } => {
            let version = version.as_ref().unwrap_or(machine.running());
            machine.change_state(|state| state.pinned = Some(version.to_string()))?;
            writeln!(output, "pinned to version {version}")?;
            Ok(0)
        }
        UpdateCommand::Unpin { .. } => {
            machine.change_state(|state| state.pinned = None)?;
            writeln!(output, "no version is pinned")?;
            Ok(0)
        }
        UpdateCommand::Settle { .. } => {
            let mut fleet = fleet(machine.running()).map_err(Error::Turn)?;
            tell(automatic::settle(&machine, &mut fleet).await)
        }
        UpdateCommand::Auto { .. } => {
            let mut fleet = fleet(machine.running()).map_err(Error::Turn)?;
            let run = automatic::Run {
                machine: &machine,
                root,
                turn: &mut fleet,
                health: &health,
                clock: SystemTime::now,
            };
            tell(run.run().await)
        }
    }
}

/// Tells systemd and the log where a run ended that nobody watches.
fn tell(stop: Result<Stop, Error>) -> Result<u8, Error> {
    let stop = match stop {
        // Somebody is at it by hand: the timer comes again.
        Err(Error::Update(UpdateError::Busy { .. })) => {
            Stop::Idle("an update is being done by hand".to_owned())
        }
        stop => stop?,
    };
    info!("{stop}");
    Service::from_environment().status(&stop.to_string());
    Ok(0)
}

/// The index to go by.
struct Known {
    index: Index,
    /// Why it is the one of an earlier check.
    failed: Option<UpdateError>,
}

impl Known {
    /// A new index; or the one of the last check that was believed, if the server is away, or `holds` says of the error
    /// that it holds all the same. What is downloaded or installed can go on without a network.
    async fn ask(machine: &Machine, holds: impl Fn(&UpdateError) -> bool) -> Result<Self, Error> {
        let error = match machine.check().await {
            Ok(index) => {
                return Ok(Self {
                    index,
                    failed: None,
                });
            }
            Err(error) => error,
        };
        match machine.known_index().filter(|_| holds(&error)) {
            Some(index) => {
                let error_text = logging::chain(&error);
                warn!("going on with the {}: {error_text}", index.name());
                Ok(Self {
                    index,
                    failed: Some(error),
                })
            }
            None => Err(error.into()),
        }
    }
}

/// Whether the release server does not give an index. One that is not believed is no such case: a person should see it.
fn is_away(error: &UpdateError) -> bool {
    matches!(error, UpdateError::Server(error) if !error.is_bad_configuration())
}

fn known<'a>(index: &'a Index, version: &Version) -> Result<&'a Release, Error> {
    index.release(version).ok_or_else(|| {
        let known: Vec<&str> = index.releases.iter().map(|r| r.version.as_str()).collect();
        Error::Unknown {
            channel: index.channel.clone(),
            version: version.clone(),
            known: if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            },
        }
    })
}

fn status_of(choice: &Choice<'_>) -> u8 {
    match choice {
        Choice::UpToDate => 0,
        Choice::Update { .. } => NEWER,
        Choice::Blocked { .. } => BLOCKED,
    }
}

fn print_choice(machine: &Machine, choice: &Choice<'_>, output: &mut impl Write) -> io::Result<()> {
    let running = machine.running();
    match choice {
        Choice::UpToDate => writeln!(output, "version {running} is the newest"),
        Choice::Update { release, severity } => {
            let severity = format!("{severity:?}").to_lowercase();
            let (version, size) = (&release.version, report::megabytes(release.size()));
            writeln!(
                output,
                "version {version} is available ({severity}, {size}); this machine runs {running}"
            )?;
            for line in release.notes.lines().take(10) {
                writeln!(output, "  {}", printable(line))?;
            }
            Ok(())
        }
        Choice::Blocked { release, why } => {
            writeln!(
                output,
                "version {} is available, but {why}",
                release.version
            )
        }
    }
}

/// Without what would move a terminal's cursor.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
