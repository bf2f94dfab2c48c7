//! The output of `selvage update status`, as text and as JSON.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::automatic::shown_time;
use crate::appliance::update::boot_check;
use crate::appliance::update::choose::{Choice, choose};
use crate::appliance::update::index::Index;
use crate::appliance::update::machine::Machine;
use crate::appliance::update::slots::{self, Entry, Slot};
use crate::appliance::update::state::{ByHand, Failed, FailureCode, LastCheck, Pending};
use crate::appliance::update::sysext::Kept;
use crate::appliance::update::version::Version;
use crate::appliance::update::windows;
use crate::base::terminal::{Style, Tone};
use crate::base::time;
use crate::settings::update::{Auto, Severity};

/// Bytes for people.
pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

/// Whether the last question for the index failed.
fn has_failed(check: Option<&LastCheck>) -> bool {
    check.is_some_and(|check| check.failed)
}

/// What there is beside the running version.
#[derive(Debug, Serialize)]
pub(super) struct Available {
    /// The channel.
    channel: String,
    /// The serial of its index.
    serial: u64,
    /// When that was signed (RFC 3339).
    issued: String,
    /// Whether a later question for the index failed.
    stale: bool,
    /// The release, if there is a newer one.
    version: Option<Version>,
    /// How much it matters.
    severity: Option<Severity>,
    /// The bytes to download.
    size: Option<u64>,
    /// Why it is not taken.
    blocked: Option<String>,
}

impl Available {
    pub(super) fn of(index: &Index, choice: &Choice<'_>, stale: bool) -> Self {
        let mut found = Self {
            channel: index.channel.clone(),
            serial: index.serial,
            issued: time::rfc3339(index.issued),
            stale,
            version: None,
            severity: None,
            size: None,
            blocked: None,
        };
        let release = match choice {
            Choice::UpToDate => return found,
            Choice::Update { release, severity } => {
                found.severity = Some(*severity);
                release
            }
            Choice::Blocked { release, why } => {
                found.severity = Some(release.severity);
                found.blocked = Some(why.to_string());
                release
            }
        };
        found.version = Some(release.version.clone());
        found.size = Some(release.size());
        found
    }
}

/// A boot entry.
#[derive(Debug, Serialize)]
struct BootEntry {
    version: Version,
    /// How many tries are left; `None` once it is blessed.
    tries_left: Option<u32>,
    /// What the boot loader makes of it.
    state: EntryState,
}

/// What the boot loader makes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum EntryState {
    /// It passed its boot check.
    Good,
    /// It is tried, or will be.
    OnTrial,
    /// It is installed and waits for its turn, or somebody chose an older one.
    Aside,
    /// It has no tries left.
    Bad,
}

impl BootEntry {
    fn of(entry: Entry) -> Self {
        let state = match entry.counter {
            None => EntryState::Good,
            Some(_) if entry.is_aside() => EntryState::Aside,
            Some(_) if entry.is_bad() => EntryState::Bad,
            Some(_) => EntryState::OnTrial,
        };
        Self {
            tries_left: entry.counter.map(|counter| counter.left),
            version: entry.version,
            state,
        }
    }

    fn shown(&self) -> (Tone, String) {
        match self.state {
            EntryState::Good => (Tone::Plain, "good".to_owned()),
            EntryState::OnTrial => {
                let left = self.tries_left.unwrap_or(0);
                (Tone::Warn, format!("on trial, {left} tries left"))
            }
            EntryState::Aside => (Tone::Warn, "aside".to_owned()),
            EntryState::Bad => (Tone::Bad, "bad: no tries left".to_owned()),
        }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    running: Version,
    blessed: bool,
    /// Whether this machine runs the version that it was installed with: no update has passed here yet.
    as_installed: bool,
    slots: Vec<Slot>,
    /// `None` if the ESP cannot be read, which only root may.
    boot_entries: Option<Vec<BootEntry>>,
    server: Option<String>,
    channel: String,
    auto: &'static str,
    windows: Vec<String>,
    time_zone: String,
    /// When a window closes, if one is open, in seconds since the Unix epoch.
    window_closes: Option<i64>,
    /// When a window opens next.
    window_opens: Option<i64>,
    pinned: Option<String>,
    last_check: Option<LastCheck>,
    available: Option<Available>,
    /// The version that is installed and that no reboot starts before its turn.
    waiting: Option<Version>,
    pending: Option<Pending>,
    /// What somebody chose in place of the newest version.
    by_hand: Option<ByHand>,
    failed: Vec<Failed>,
    /// System extensions that an earlier version had and this one has not.
    sysexts_left_behind: Vec<Kept>,
    /// Whether a newer version than the running one failed here.
    fell_back: bool,
}

impl Report {
    pub(super) fn of(machine: &Machine, root: &Path) -> Self {
        let (settings, state) = (machine.settings(), machine.state());
        let running = machine.running().clone();
        let index = machine.known_index();
        let available = index.as_ref().map(|index| {
            let choice = choose(index, &running, &state);
            Available::of(index, &choice, has_failed(state.last_check.as_ref()))
        });
        let entries = slots::entries(root).ok();
        let entries: Option<Vec<_>> =
            entries.map(|entries| entries.into_iter().map(BootEntry::of).collect());
        let waits = |entry: &&BootEntry| {
            let is_left = |by_hand: &ByHand| by_hand.from == entry.version.as_str();
            entry.state == EntryState::Aside && !state.by_hand.as_ref().is_some_and(is_left)
        };
        let waiting = entries.iter().flatten().find(waits);
        let zone = settings.time_zone.rules.as_ref();
        let now = std::time::SystemTime::now();
        let now = i64::try_from(crate::appliance::update::machine::seconds(now)).unwrap_or(0);
        let is_newer = |failed: &Failed| {
            failed
                .version
                .parse()
                .is_ok_and(|version: Version| version > running)
        };
        let is_counted = |entry: &BootEntry| entry.version == running && entry.tries_left.is_some();
        let is_on_trial = (state.pending.as_ref())
            .is_some_and(|pending| pending.version == running.as_str())
            || entries.iter().flatten().any(is_counted);
        Self {
            blessed: (state.blessed.as_ref())
                .is_some_and(|blessed| blessed.version == running.as_str()),
            as_installed: state.blessed.is_none() && !is_on_trial,
            slots: slots::slots(root),
            waiting: waiting.map(|entry| entry.version.clone()),
            by_hand: state.by_hand.clone(),
            boot_entries: entries,
            server: settings.server.as_ref().map(ToString::to_string),
            channel: settings.channel.clone(),
            auto: match settings.auto {
                Auto::Off => "off",
                Auto::Check => "check",
                Auto::Download => "download",
                Auto::Apply => "apply",
            },
            windows: settings.windows.iter().map(ToString::to_string).collect(),
            time_zone: settings.time_zone.name.clone(),
            window_closes: windows::closes(&settings.windows, zone, now),
            window_opens: windows::opens(&settings.windows, zone, now),
            fell_back: state.failed.iter().any(is_newer),
            pinned: state.pinned.clone(),
            last_check: state.last_check.clone(),
            available,
            pending: state.pending.clone(),
            failed: state.failed.iter().cloned().collect(),
            sysexts_left_behind: machine.sysexts().left_behind(&running).unwrap_or_default(),
            running,
        }
    }

    /// See the help of `status`.
    pub(super) fn exit_status(&self) -> u8 {
        let check_failed = has_failed(self.last_check.as_ref());
        let newer = self
            .available
            .as_ref()
            .is_some_and(|found| found.version.is_some());
        match check_failed || self.fell_back {
            true => 1,
            false if newer || self.pending.is_some() || self.waiting.is_some() => super::NEWER,
            false => 0,
        }
    }

    pub(super) fn print(&self, style: Style, output: &mut impl Write) -> io::Result<()> {
        let mut line = |name: &str, tone: Tone, text: &str| {
            writeln!(
                output,
                "{:<10} {}",
                style.bold(name),
                style.tone(tone, text)
            )
        };
        let blessed = match (self.blessed, self.as_installed) {
            (true, _) => "passed its boot check",
            (false, true) => "as installed",
            (false, false) => "not blessed",
        };
        line(
            "running",
            Tone::Plain,
            &format!("{} ({blessed})", self.running),
        )?;
        for slot in &self.slots {
            let version = slot.version.as_ref().map_or("empty", Version::as_str);
            let text = format!("{} {version} ({})", slot.device, megabytes(slot.size));
            line("slot", Tone::Plain, &text)?;
        }
        for entry in self.boot_entries.iter().flatten() {
            let (tone, state) = entry.shown();
            line("boots", tone, &format!("{} ({state})", entry.version))?;
        }
        self.print_update(&mut line)?;
        for failed in self.failed.iter().rev() {
            let at = shown_time(i64::try_from(failed.at).unwrap_or(0));
            let code = match failed.code {
                FailureCode::Unknown => String::new(),
                code => format!(" ({code})"),
            };
            let text = format!("{} on {at}: {}{code}", failed.version, failed.reason);
            line("failed", Tone::Bad, &text)?;
        }
        for kept in &self.sysexts_left_behind {
            let version = kept.version.as_ref().map_or("", Version::as_str);
            let name = &kept.name;
            let text = format!("{name} is here for {version} only: selvage sysext add {name}");
            line("sysext", Tone::Warn, &text)?;
        }
        if let Some(pinned) = &self.pinned {
            line("pinned", Tone::Warn, pinned)?;
        }
        let server = self.server.as_deref().unwrap_or("none");
        line(
            "server",
            Tone::Plain,
            &format!("{server}, channel {}, auto {}", self.channel, self.auto),
        )?;
        self.print_window(&mut line)?;
        match &self.last_check {
            None => line("checked", Tone::Dim, "never")?,
            Some(check) => {
                let at = shown_time(i64::try_from(check.at).unwrap_or(0));
                let bad = has_failed(Some(check));
                let tone = if bad { Tone::Bad } else { Tone::Plain };
                let failed = if bad { "failed: " } else { "" };
                line("checked", tone, &format!("{at}: {failed}{}", check.result))?;
            }
        }
        match &self.available {
            Some(Available {
                version: Some(version),
                blocked,
                size,
                serial,
                issued,
                stale,
                ..
            }) => {
                let size = megabytes(size.unwrap_or(0));
                let by = match stale {
                    true => format!(", by the index {serial} of {issued}"),
                    false => String::new(),
                };
                let (tone, text) = match blocked {
                    Some(why) => (Tone::Warn, format!("{version}, but {why}{by}")),
                    None => (Tone::Good, format!("{version} ({size}){by}")),
                };
                line("available", tone, &text)
            }
            _ => Ok(()),
        }
    }

    /// What is under way, and what somebody has decided.
    fn print_update(
        &self,
        line: &mut impl FnMut(&str, Tone, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(pending) = &self.pending {
            let version = &pending.version;
            let is_entry = |entry: &BootEntry| entry.version.as_str() == version;
            let text = if *version == self.running.as_str() {
                format!("{version} is judged by its boot check")
            } else if (self.boot_entries.as_ref()).is_some_and(|all| !all.iter().any(is_entry)) {
                format!("{version} is installed in part; selvage update apply goes on")
            } else {
                format!("{version} is installed; the next reboot starts it")
            };
            line("pending", Tone::Warn, &text)?;
            if let Some(finding) = &pending.finding {
                line(
                    "finding",
                    Tone::Bad,
                    &format!("{}: {}", finding.code, finding.reason),
                )?;
                let is_undecided = !finding.bad && finding.code != FailureCode::CutShort;
                if is_undecided && *version == self.running.as_str() {
                    line("to do", Tone::Warn, &boot_check::advice(&pending.from))?;
                }
            }
        }
        if let Some(version) = &self.waiting {
            let text = format!(
                "{version} is installed and waits for its turn; no reboot starts it before (selvage update apply --version \
                 {version} does)"
            );
            line("waiting", Tone::Warn, &text)?;
        }
        if let Some(ByHand {
            from,
            to,
            at,
            rollback,
            ..
        }) = &self.by_hand
        {
            let at = shown_time(i64::try_from(*at).unwrap_or(0));
            let text = match rollback {
                true => format!(
                    "rolled back from {from} to {to} on {at} ({})",
                    FailureCode::RolledBack
                ),
                false => format!("{to} was chosen in place of {from} on {at}"),
            };
            line("by hand", Tone::Warn, &text)?;
        }
        Ok(())
    }

    fn print_window(
        &self,
        line: &mut impl FnMut(&str, Tone, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.windows.is_empty() {
            return Ok(());
        }
        let state = match (self.window_closes, self.window_opens) {
            (Some(closes), _) => format!("open until {}", shown_time(closes)),
            (None, Some(opens)) => format!("opens at {}", shown_time(opens)),
            (None, None) => "never opens".to_owned(),
        };
        let windows = self.windows.join(", ");
        line(
            "windows",
            Tone::Plain,
            &format!("{windows} ({}); {state}", self.time_zone),
        )
    }
}
