//! What the timer does: one look at everything, and then as much as settings, windows and the fleet allow.
//!
//! Every run decides anew from what is on disk. So it does not matter where the one before was cut off, or that the
//! settings have changed since.

use std::fmt;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::process::Command;
use tracing::warn;

use super::Error;
use super::progress::Shown;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::index::Release;
use crate::appliance::update::machine::{FAILED, Machine, seconds};
use crate::appliance::update::state::{Health, State};
use crate::appliance::update::turn::{Leave, Turn};
use crate::appliance::update::version::Version;
use crate::appliance::update::windows;
use crate::base::logging;
use crate::base::service::Service;
use crate::base::time;
use crate::settings::update::{Auto, Severity, Update};

/// How soon a failed check is repeated, at the latest.
const AFTER_FAILURE: Duration = Duration::from_secs(15 * 60);

/// Where a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stop {
    /// Nothing to do.
    Idle(String),
    /// Something is to be done later.
    Waits(String),
    /// The machine reboots.
    Reboots(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(text) | Self::Waits(text) | Self::Reboots(text) => f.write_str(text),
        }
    }
}

/// One run.
pub(super) async fn run(
    machine: &Machine,
    root: &Path,
    turn: &mut impl Turn,
    health: &impl AsyncFn() -> Health,
    now: SystemTime,
) -> Result<Stop, Error> {
    let settings = machine.settings();
    if settings.auto == Auto::Off || settings.server.is_none() {
        let why = if settings.auto == Auto::Off {
            "auto is off"
        } else {
            "server is not set"
        };
        return Ok(Stop::Idle(format!("no updates: update.{why}")));
    }
    let _lock = machine.lock()?;
    let mut state = machine.state();
    // The lock of who cannot tell stays where it is, and the next steps ask again.
    if let Err(error) = turn.settle(&state, machine.running()).await {
        warn!(
            "the fleet was not told of this machine: {}",
            logging::chain(&*error)
        );
    }
    let index = match is_due(&state, settings.check_interval, now) {
        true => Some(machine.check().await?),
        false => None,
    };
    let Some(index) = index.or_else(|| machine.known_index()) else {
        return Ok(Stop::Idle(
            "no index is known: the next check brings one".to_owned(),
        ));
    };
    state = machine.state();
    match choose(&index, machine.running(), &state) {
        Choice::UpToDate => Ok(Stop::Idle(format!(
            "version {} is the newest",
            machine.running()
        ))),
        Choice::Blocked { release, why } => {
            let version = &release.version;
            Ok(Stop::Idle(format!(
                "version {version} is available, but {why}"
            )))
        }
        Choice::Update { release, severity } => {
            let found = Found {
                release,
                severity,
                channel: &index.channel,
            };
            go_on(machine, root, turn, health, now, found).await
        }
    }
}

/// What is done once a boot check has ended: tells the fleet what it found, and gives the lock back. A fleet that does not
/// answer is told by the next run of the timer.
pub(super) async fn settle(machine: &Machine, turn: &mut impl Turn) -> Result<Stop, Error> {
    if machine.settings().server.is_none() {
        return Ok(Stop::Idle(
            "no updates: update.server is not set".to_owned(),
        ));
    }
    let _lock = machine.lock()?;
    Ok(
        match turn.settle(&machine.state(), machine.running()).await {
            Ok(()) => Stop::Idle("the fleet knows how far this machine is".to_owned()),
            Err(error) => Stop::Waits(format!(
                "the fleet was not told of this machine, and will be by the next run of selvage-update.timer: {}",
                logging::chain(&*error)
            )),
        },
    )
}

/// A release that may be taken.
struct Found<'a> {
    release: &'a Release,
    severity: Severity,
    channel: &'a str,
}

/// What is done about it.
async fn go_on(
    machine: &Machine,
    root: &Path,
    turn: &mut impl Turn,
    health: &impl AsyncFn() -> Health,
    now: SystemTime,
    found: Found<'_>,
) -> Result<Stop, Error> {
    let settings = machine.settings();
    let Found {
        release,
        severity,
        channel,
    } = found;
    let version = &release.version;
    if settings.auto == Auto::Check {
        return Ok(Stop::Waits(format!(
            "version {version} is available in the channel {channel}"
        )));
    }
    let mut shown = Shown::new(Service::from_environment(), std::io::stderr().is_terminal());
    let is_installed = machine.is_installed(version)?;
    if !is_installed {
        machine
            .download(release, &mut |step| shown.step(&step))
            .await?;
    }
    if settings.auto == Auto::Download {
        return Ok(Stop::Waits(format!("version {version} is downloaded")));
    }
    if let Some(failed) = machine.is_judging()? {
        return Ok(Stop::Waits(format!(
            "version {version} waits until the boot check has judged the failure of {failed}"
        )));
    }
    if machine.is_on_trial()? {
        return Ok(Stop::Waits(format!(
            "version {version} waits until {} has passed its boot check",
            machine.running()
        )));
    }
    if let Some(wait) = waits_for_window(settings, severity, seconds_signed(now)) {
        return Ok(Stop::Waits(format!("version {version} {wait}")));
    }
    if let Some(wait) = refused(turn.may_start(release).await.map_err(Error::Turn)?) {
        return Ok(Stop::Waits(format!("version {version} {wait}")));
    }
    if !is_installed {
        machine
            .install(release, &mut |step| shown.step(&step))
            .await?;
    }
    take_turn(machine, root, turn, health, version).await
}

/// What is done with a version that is installed: lock, drain, reboot. The lock is held across the reboot, so it is taken as
/// late as possible.
async fn take_turn(
    machine: &Machine,
    root: &Path,
    turn: &mut impl Turn,
    health: &impl AsyncFn() -> Health,
    version: &Version,
) -> Result<Stop, Error> {
    if let Some(wait) = refused(turn.acquire(version).await.map_err(Error::Turn)?) {
        return Ok(Stop::Waits(format!(
            "version {version} is installed and {wait}"
        )));
    }
    // Before the drain: the boot check compares with what worked while all of it ran.
    let health_before = health().await;
    if let Err(error) = turn.drain(version).await {
        return Ok(Stop::Waits(format!(
            "version {version} is installed and waits: {}",
            logging::chain(&*error)
        )));
    }
    if let Err(error) = start(machine, root, version, health_before).await {
        if let Err(error) = turn.release().await {
            warn!("failed to give the lock back: {}", logging::chain(&*error));
        }
        return Err(error);
    }
    Ok(Stop::Reboots(format!("rebooting into version {version}")))
}

/// Makes a version the one that the next boot tries, and reboots. Until now, a chance reboot started the running one.
async fn start(
    machine: &Machine,
    root: &Path,
    version: &Version,
    health_before: Health,
) -> Result<(), Error> {
    machine.arm(version, health_before)?;
    let Err(why) = reboot(root).await else {
        return Ok(());
    };
    if let Err(error) = machine.disarm(version) {
        warn!(
            "the next reboot starts version {version}: {}",
            logging::chain(&error)
        );
        return Err(Error::Reboot(why));
    }
    let version = version.clone();
    Err(Error::NoReboot { why, version })
}

/// Whether the index is asked for again. A clock that went back is no reason to wait for its return.
fn is_due(state: &State, interval: Duration, now: SystemTime) -> bool {
    let Some(last) = &state.last_check else {
        return true;
    };
    let interval = match last.result.starts_with(FAILED) {
        true => interval.min(AFTER_FAILURE),
        false => interval,
    };
    let now = seconds(now);
    now < last.at || now - last.at >= interval.as_secs()
}

/// What is waited for, if no window is open and the update is not urgent.
fn waits_for_window(settings: &Update, severity: Severity, now: i64) -> Option<String> {
    let zone = settings.time_zone.rules.as_ref();
    let is_urgent = settings.skip_window.is_some_and(|skip| severity >= skip);
    if is_urgent || windows::is_open(&settings.windows, zone, now) {
        return None;
    }
    Some(match windows::opens(&settings.windows, zone, now) {
        Some(opens) => format!("waits for the window that opens at {}", shown_time(opens)),
        None => "waits for a window".to_owned(),
    })
}

/// A time in seconds since the Unix epoch, as people of all time zones read it.
pub(super) fn shown_time(at: i64) -> String {
    let since = Duration::from_secs(u64::try_from(at).unwrap_or(0));
    time::rfc3339(SystemTime::UNIX_EPOCH + since)
}

fn seconds_signed(time: SystemTime) -> i64 {
    i64::try_from(seconds(time)).unwrap_or(i64::MAX)
}

fn refused(leave: Leave) -> Option<String> {
    match leave {
        Leave::Now => None,
        Leave::Later { until, why } => Some(match until {
            Some(until) => format!("waits until {}: {why}", time::rfc3339(until)),
            None => format!("waits: {why}"),
        }),
        Leave::Never { why } => Some(format!("is not started: {why}")),
    }
}

/// Reboots this machine by systemd.
///
/// # Errors
/// What systemd said against it.
pub(super) async fn reboot(root: &Path) -> Result<(), String> {
    let program = root.join("usr/bin/systemctl");
    let output = Command::new(&program).arg("reboot").output().await;
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("systemctl reboot: {}", said.trim()))
}

#[cfg(test)]
mod tests;
