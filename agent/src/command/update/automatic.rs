//! What the timer does: one look at everything, and then as much as settings, windows and the fleet allow.
//!
//! Every run decides anew from what is on disk. So it does not matter where the one before was cut off, or that the
//! settings have changed since.

use std::fmt;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tracing::warn;

use super::progress::Shown;
use super::{Error, Known};
use crate::appliance::systemd::Systemd;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::index::Release;
use crate::appliance::update::machine::{Machine, Step, seconds};
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

impl Stop {
    /// With more words.
    fn and(self, more: &str) -> Self {
        match self {
            Self::Idle(text) => Self::Idle(text + more),
            Self::Waits(text) => Self::Waits(text + more),
            Self::Reboots(text) => Self::Reboots(text + more),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(text) | Self::Waits(text) | Self::Reboots(text) => f.write_str(text),
        }
    }
}

/// What a run works with.
pub(super) struct Run<'a, T, H, C> {
    /// The machine that is updated.
    pub(super) machine: &'a Machine,
    /// Its root directory.
    pub(super) root: &'a Path,
    /// Who says when it may go down.
    pub(super) turn: &'a mut T,
    /// Takes the health of the machine.
    pub(super) health: &'a H,
    /// Tells the time. Asked at each step, for a download or a drain may take hours.
    pub(super) clock: C,
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

impl<T: Turn, H: AsyncFn() -> Health, C: Fn() -> SystemTime> Run<'_, T, H, C> {
    /// One run.
    ///
    /// # Errors
    /// The index, the download, the installation, the fleet or the reboot.
    pub(super) async fn run(mut self) -> Result<Stop, Error> {
        let settings = self.machine.settings();
        if settings.auto == Auto::Off || settings.server.is_none() {
            let why = if settings.auto == Auto::Off {
                "auto is off"
            } else {
                "server is not set"
            };
            return Ok(Stop::Idle(format!("no updates: update.{why}")));
        }
        let _lock = self.machine.lock()?;
        let running = self.machine.running();
        // The lock of who cannot tell stays where it is, and the next steps ask again.
        if let Err(error) = self.turn.settle(&self.machine.state(), running).await {
            warn!(
                "the fleet was not told of this machine: {}",
                logging::chain(&*error)
            );
        }
        let Some(Known { index, failed }) = self.index().await? else {
            return Ok(Stop::Idle(
                "no index is known: the next check brings one".to_owned(),
            ));
        };
        let stop = match choose(&index, running, &self.machine.state()) {
            Choice::UpToDate => Stop::Idle(format!("version {running} is the newest")),
            Choice::Blocked { release, why } => Stop::Idle(format!(
                "version {} is available, but {why}",
                release.version
            )),
            Choice::Update { release, severity } => {
                let channel = &index.channel;
                self.take(Found {
                    release,
                    severity,
                    channel,
                })
                .await?
            }
        };
        Ok(match failed {
            None => stop,
            Some(_) => stop.and(&format!(" (by the {}: the check failed)", index.name())),
        })
    }

    /// The index to go by. What was believed once is worth as much when the server is away or sends nonsense: whoever
    /// can do that could keep it from answering as well.
    async fn index(&self) -> Result<Option<Known>, Error> {
        let is_due = is_due(
            &self.machine.state(),
            self.machine.settings().check_interval,
            (self.clock)(),
        );
        if is_due {
            return Ok(Some(
                Known::ask(self.machine, |error| !error.is_bad_configuration()).await?,
            ));
        }
        let index = self.machine.known_index();
        Ok(index.map(|index| Known {
            index,
            failed: None,
        }))
    }

    /// Goes as far with a release as settings, trial, windows and fleet allow.
    async fn take(&mut self, found: Found<'_>) -> Result<Stop, Error> {
        let (machine, auto) = (self.machine, self.machine.settings().auto);
        let (release, version) = (found.release, &found.release.version);
        if auto == Auto::Check {
            let channel = found.channel;
            return Ok(Stop::Waits(format!(
                "version {version} is available in the channel {channel}"
            )));
        }
        // Before a byte is downloaded: that would take the place of what the machine may still need.
        if let Some(wait) = self.waits_for_judgement()? {
            return Ok(Stop::Waits(format!("version {version} {wait}")));
        }
        let mut shown = Shown::new(Service::from_environment(), std::io::stderr().is_terminal());
        let is_installed = machine.is_installed(version)?;
        if !is_installed {
            let mut hear = |step: Step<'_>| shown.step(&step);
            machine.download(release, &mut hear).await?;
        }
        if auto == Auto::Download {
            return Ok(Stop::Waits(format!("version {version} is downloaded")));
        }
        if let Some(wait) = self.waits_for_window(found.severity) {
            return Ok(Stop::Waits(format!("version {version} {wait}")));
        }
        if let Some(wait) = refused(self.turn.may_start(release).await.map_err(Error::Turn)?) {
            return Ok(Stop::Waits(format!("version {version} {wait}")));
        }
        if !is_installed {
            let mut hear = |step: Step<'_>| shown.step(&step);
            machine.install(release, &mut hear).await?;
        }
        self.go_down(version, found.severity).await
    }

    /// Why nothing may be put into the other slot.
    fn waits_for_judgement(&self) -> Result<Option<String>, Error> {
        if let Some(failed) = self.machine.is_judging()? {
            return Ok(Some(format!(
                "waits until the boot check has judged the failure of {failed}"
            )));
        }
        let running = self.machine.running();
        let is_on_trial = self.machine.is_on_trial()?;
        Ok(is_on_trial.then(|| format!("waits until {running} has passed its boot check")))
    }

    /// Takes the lock, drains the machine, and reboots it into a version that is installed.
    async fn go_down(&mut self, version: &Version, severity: Severity) -> Result<Stop, Error> {
        let waits = |why| {
            Ok(Stop::Waits(format!(
                "version {version} is installed and {why}"
            )))
        };
        // The window may have closed since the installation began.
        if let Some(wait) = self.waits_for_window(severity) {
            return waits(wait);
        }
        // The lock is held across the reboot, so it is taken as late as possible.
        if let Some(wait) = refused(self.turn.acquire(version).await.map_err(Error::Turn)?) {
            return waits(wait);
        }
        // Before the drain: the boot check compares with what worked while all of it ran.
        let health_before = (self.health)().await;
        if let Err(error) = self.turn.drain(version).await {
            return waits(format!("waits: {}", logging::chain(&*error)));
        }
        // As after a hook that took too long: nobody expects a reboot now, and the next window drains once more.
        if let Some(wait) = self.waits_for_window(severity) {
            self.give_back().await;
            return waits(format!("{wait}: the drain took longer than the window"));
        }
        if let Err(error) = self.start(version, health_before).await {
            self.give_back().await;
            return Err(error);
        }
        Ok(Stop::Reboots(format!("rebooting into version {version}")))
    }

    /// Makes a version the one that the next boot tries, and reboots. Until now, a chance reboot started the running one.
    async fn start(&self, version: &Version, health_before: Health) -> Result<(), Error> {
        self.machine.arm(version, health_before)?;
        let Err(why) = Systemd::of(self.root).reboot().await else {
            return Ok(());
        };
        if let Err(error) = self.machine.disarm(version) {
            warn!(
                "the next reboot starts version {version}: {}",
                logging::chain(&error)
            );
            return Err(Error::Reboot(why));
        }
        let version = version.clone();
        Err(Error::NoReboot { why, version })
    }

    async fn give_back(&mut self) {
        if let Err(error) = self.turn.release().await {
            warn!("failed to give the lock back: {}", logging::chain(&*error));
        }
    }

    /// What is waited for, if no window is open and the update is not urgent.
    fn waits_for_window(&self, severity: Severity) -> Option<String> {
        waits_for_window(
            self.machine.settings(),
            severity,
            seconds_signed((self.clock)()),
        )
    }
}

/// Whether the index is asked for again. A clock that went back is no reason to wait for its return.
fn is_due(state: &State, interval: Duration, now: SystemTime) -> bool {
    let Some(last) = &state.last_check else {
        return true;
    };
    let interval = match last.failed {
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

#[cfg(test)]
mod tests;
