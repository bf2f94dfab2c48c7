//! `selvage boot-check`: whether this boot of a new version is good, so that the boot loader keeps it.
//!
//! systemd runs it in every boot, before `boot-complete.target`; the boot loader's counter is removed after that.
//!
//! | this boot | what happens |
//! |---|---|
//! | of a version on trial | waits until all holds that must, or nothing changes any more; then a verdict |
//! | of another version than the one on trial | it has fallen back: the failure is recorded with its reason |
//! | of any other version | nothing |
//!
//! Good: exit status 0, systemd blesses the boot entry. Bad: 1, `selvage-next-try.service` reboots. Undecided: 75, the
//! machine stays up, and systemd runs the check again.
//!
//! The version that runs after a fall-back runs the same checks before it records a failure. If they fail here too, the
//! cause was not the other version.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use self::fallback::{Entry, Fate, fate};
use self::health::Probe;
pub use self::next_try::{deadline, next_try};
use self::verdict::{Concern, Verdict, verdict};
use super::running::{self, Counter};
use super::state::{Failed, FailureCode, Finding, Health, Pending, State, StateFile};
use crate::appliance::systemd::Systemd;
use crate::base::boot;
use crate::base::logging::chain;
use crate::base::service::Service;
use crate::settings::Settings;
use crate::telemetry::status::now;

mod fallback;
mod health;
mod issue;
mod next_try;
mod reach;
mod site;
mod systemd;
mod verdict;

/// The version is good, or there is nothing to check.
const GOOD: u8 = 0;
/// The version is bad.
const BAD: u8 = 1;
/// `EX_TEMPFAIL` of sysexits.h: undecided.
const UNDECIDED: u8 = 75;

/// How often to look, and how often if the site's checks are all that fails: they may cost more.
const PAUSE: Duration = Duration::from_secs(1);
const SITE_PAUSE: Duration = Duration::from_secs(10);

/// How the check is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where this machine's files are: `/`, except in tests.
    pub root: PathBuf,
    /// How long to wait while nothing changes.
    pub patience: Duration,
    /// How long to wait at most.
    pub limit: Duration,
}

/// The health of a machine now; `root` is where its files are.
pub async fn health(settings: &Settings, root: &Path) -> Health {
    let probe = Probe::new(settings, root);
    let mut health = probe.look(&Health::default()).await;
    probe.add_site_checks(&mut health).await;
    health
}

/// Checks this boot. Returns the exit status.
///
/// # Errors
/// The output cannot be written.
pub async fn run(
    settings: &Settings,
    options: &Options,
    output: &mut impl Write,
) -> io::Result<u8> {
    let Some(version) = running::version(&options.root) else {
        info!("this is no Selvage image, so no version is on trial");
        return Ok(GOOD);
    };
    let check = Check {
        probe: Probe::new(settings, &options.root),
        file: StateFile::of(&options.root),
        counter: Counter::of_this_boot(&options.root),
        options,
        version,
        service: Service::from_environment(),
    };
    let status = check.run(output).await;
    next_try::note_end(&options.root);
    issue::write(&options.root, &check.file.read());
    status
}

/// What to do while a version is neither good nor bad, on a machine that would fall back to another.
pub fn advice(from: &str) -> String {
    let back = match from {
        "" => "the other slot's version".to_owned(),
        from => format!("version {from}"),
    };
    format!(
        "mend that, and the version stays: this is looked at again every two minutes. A reboot costs one of its tries; \
         selvage update rollback --reboot goes back to {back}"
    )
}

/// The version that installed the pending one; empty if nothing is known of it.
fn pending_from(state: &State, version: &str) -> String {
    let pending = state.pending.as_ref();
    pending
        .filter(|pending| pending.version == version)
        .map_or_else(String::new, |pending| pending.from.clone())
}

/// Returns when systemd stops this process.
async fn stopped() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(error) => {
            warn!("signals cannot be received: {error}");
            std::future::pending().await
        }
    }
}

/// The pending version, if it is the one that runs.
fn on_trial<'a>(state: &'a mut State, version: &str) -> Option<&'a mut Pending> {
    state
        .pending
        .as_mut()
        .filter(|pending| pending.version == version)
}

/// Changes the state. A disk that cannot be written must not keep a machine from blessing or falling back.
fn change<T>(file: &StateFile, change: impl FnOnce(&mut State) -> T) -> Option<T> {
    let changed = file.change(change);
    changed
        .inspect_err(|error| warn!("the state of updates is not kept: {}", chain(error)))
        .ok()
}

struct Check<'a> {
    probe: Probe<'a>,
    file: StateFile,
    counter: Option<Counter>,
    options: &'a Options,
    version: String,
    service: Service,
}

impl Check<'_> {
    async fn run(&self, output: &mut impl Write) -> io::Result<u8> {
        let state = self.file.read();
        if state.pending.is_none() && self.is_being_left(&state) {
            // To find it good would have systemd make its boot entry the one that is started.
            self.service
                .status("this version was left by hand; the next boot starts the other");
            return Ok(UNDECIDED);
        }
        match state.pending {
            Some(pending) if pending.version == self.version => {
                let is_first = self.count_boot();
                self.judge(&pending.health_before, is_first, output).await
            }
            Some(pending) => self.fallen_back(pending, output).await,
            // The state was lost, or somebody else installed this version. Nothing is known to compare with.
            None if self.counter.is_some() => self.judge(&Health::default(), true, output).await,
            None => {
                self.service.status("no version is on trial");
                Ok(GOOD)
            }
        }
    }

    /// Whether somebody goes back from this version in this boot. What was chosen in an earlier one was cut off before it
    /// was done, or undone in the boot menu, since this version runs still: it is forgotten.
    fn is_being_left(&self, state: &State) -> bool {
        let by_hand = state.by_hand.as_ref();
        let Some(by_hand) = by_hand.filter(|by_hand| by_hand.from == self.version) else {
            return false;
        };
        if by_hand.boot == boot::id() {
            return true;
        }
        info!(
            "version {} runs, although {} was chosen by hand: the choice is forgotten",
            by_hand.from, by_hand.to
        );
        change(&self.file, |state| state.take_back(&self.version));
        false
    }

    /// Counts this boot, once however often the check runs. Returns whether this is its first run.
    fn count_boot(&self) -> bool {
        let boot = boot::id();
        let is_first = change(&self.file, |state| {
            let pending = on_trial(state, &self.version)?;
            let is_first = pending.last_boot != boot;
            if is_first {
                pending.boots += 1;
                pending.last_boot = boot;
            }
            Some(is_first)
        });
        is_first.flatten().unwrap_or(true)
    }

    async fn judge(
        &self,
        before: &Health,
        is_first: bool,
        output: &mut impl Write,
    ) -> io::Result<u8> {
        let version = &self.version;
        let title = format!("checking {version}");
        let verdict = tokio::select! {
            // Listen to the signal before anything else.
            biased;
            () = stopped() => {
                self.note_stop();
                return Ok(UNDECIDED);
            }
            verdict = self.wait(before, &title) => verdict,
        };
        let all = sentences(verdict.concerns());
        let (status, text) = match &verdict {
            Verdict::Good => {
                change(&self.file, |state| state.bless(version, now()));
                info!(version, "this version works");
                self.service.status(&format!("{version} works"));
                if self.counter.is_some() {
                    self.bless().await;
                }
                return Ok(GOOD);
            }
            Verdict::Bad(_) => {
                let end = match self.counter.map(Counter::reboot_helps) {
                    Some(true) => "the next try follows",
                    Some(false) => {
                        "this machine stays up for repair, as no other version works either"
                    }
                    None => {
                        "this machine stays up for repair, as the boot loader does not count this boot"
                    }
                };
                let text = format!("{version} failed its boot check: {all}; {end}");
                (BAD, text)
            }
            Verdict::Undecided(_) => {
                let from = pending_from(&self.file.read(), version);
                let advice = advice(&from);
                let text = format!("{version} is not proven to work: {all}; {advice}");
                (UNDECIDED, text)
            }
        };
        self.service.status(&text);
        // Undecided runs follow each other for as long as an outage lasts; the console shows what is new.
        if self.note(&verdict, status == BAD, all) || is_first {
            writeln!(output, "{text}")?;
        } else {
            info!("{text}");
        }
        Ok(status)
    }

    /// Whoever reboots before the check has ended does not condemn the version.
    fn note_stop(&self) {
        info!("stopped before there was a verdict");
        change(&self.file, |state| {
            if let Some(pending) = on_trial(state, &self.version) {
                pending.finding.get_or_insert_with(|| Finding {
                    at: now(),
                    bad: false,
                    code: FailureCode::CutShort,
                    object: None,
                    reason: "the machine was shut down before the boot check had ended".to_owned(),
                });
            }
        });
    }

    /// Keeps what was found. Returns whether it is anything else than the last time.
    fn note(&self, verdict: &Verdict, bad: bool, reason: String) -> bool {
        let Some(first) = verdict.concerns().first() else {
            return false;
        };
        let finding = Finding {
            at: now(),
            bad,
            code: first.code,
            object: first.object.clone(),
            reason,
        };
        let kind = |finding: &Finding| (finding.bad, finding.code, finding.object.clone());
        let changed = change(&self.file, |state| {
            let pending = on_trial(state, &self.version)?;
            let last = pending.finding.replace(finding.clone());
            Some(last.as_ref().map(kind) != Some(kind(&finding)))
        });
        changed.flatten().unwrap_or(true)
    }

    /// Has systemd remove the counter. In the first run it waits for this check anyway; after an undecided run it has
    /// given up.
    async fn bless(&self) {
        let systemd = Systemd::of(&self.options.root);
        if let Err(error) = systemd.start("systemd-bless-boot.service").await {
            warn!("failed to have the boot entry blessed: {error}");
        }
    }

    async fn fallen_back(&self, pending: Pending, output: &mut impl Write) -> io::Result<u8> {
        let failed = &pending.version;
        let (code, reason) = match fate(&pending, Entry::find(&self.options.root, failed)) {
            Fate::StillTried => {
                info!(version = failed, "installed, and tried at the next boot");
                return Ok(GOOD);
            }
            Fate::Waits => {
                info!(
                    version = failed,
                    "installed, and this boot came before its turn"
                );
                self.drop_pending(failed);
                return Ok(GOOD);
            }
            Fate::NotInstalled => {
                info!(version = failed, "was not installed completely");
                self.drop_pending(failed);
                return Ok(GOOD);
            }
            Fate::Works => {
                info!(version = failed, "works, although it does not run");
                self.drop_pending(failed);
                return Ok(GOOD);
            }
            Fate::NotProven(reason) => {
                self.drop_pending(failed);
                writeln!(
                    output,
                    "this machine runs {} again: {failed} was not proven to work, nor to be at fault: {reason}",
                    self.version
                )?;
                return Ok(GOOD);
            }
            Fate::Failed(code, reason) => (code, reason),
            Fate::Accused(finding) => {
                let title = format!("fell back from {failed}, checking {}", self.version);
                let verdict = self.wait(&pending.health_before, &title).await;
                if excuses(&verdict, &finding) {
                    self.drop_pending(failed);
                    writeln!(
                        output,
                        "this machine runs {} again: {failed} failed its boot check, but so does {0}: {reason}",
                        self.version,
                        reason = finding.reason
                    )?;
                    return Ok(GOOD);
                }
                (finding.code, finding.reason)
            }
        };
        let text = format!(
            "{failed} failed, and this machine runs {} again: {reason}",
            self.version
        );
        let failure = Failed {
            version: failed.clone(),
            at: now(),
            boots: pending.boots,
            code,
            reason,
        };
        change(&self.file, |state| state.fail(failure));
        self.service.status(&text);
        writeln!(output, "{text}")?;
        Ok(GOOD)
    }

    fn drop_pending(&self, version: &str) {
        change(&self.file, |state| state.drop_pending(version));
    }

    /// Looks until everything holds, or until nothing changes any more.
    async fn wait(&self, before: &Health, title: &str) -> Verdict {
        let begin = Instant::now();
        let mut progress = begin;
        let mut last = None;
        loop {
            let mut health = self.probe.look(before).await;
            let seen = fingerprint(&health);
            if last.as_ref() != Some(&seen) {
                progress = Instant::now();
                last = Some(seen);
            }
            let mut found = verdict(before, &health);
            let is_stuck = progress.elapsed() >= self.options.patience && !found.only_hangs();
            let is_over = is_stuck || begin.elapsed() >= self.options.limit;
            // The site's checks need what the others check.
            let has_site_checks = found == Verdict::Good || is_over;
            if has_site_checks {
                self.service.status(&format!("{title}: the site's checks"));
                self.probe.add_site_checks(&mut health).await;
                found = verdict(before, &health);
            }
            if found == Verdict::Good || is_over {
                return found;
            }
            self.service
                .status(&format!("{title}: {}", sentences(found.concerns())));
            let pause = match has_site_checks {
                true => SITE_PAUSE.min(self.options.patience),
                false => PAUSE,
            };
            sleep(pause).await;
        }
    }
}

/// Whether the old version fails the same check: then the new one was not to blame.
fn excuses(verdict: &Verdict, finding: &Finding) -> bool {
    let is_same =
        |concern: &Concern| (concern.code, &concern.object) == (finding.code, &finding.object);
    verdict.concerns().iter().any(is_same)
}

/// What has to change for a boot to count as going on. Not the sentences, which may count retries, nor which peers
/// answer: they come and go without this host.
fn fingerprint(health: &Health) -> Health {
    let mut health = health.clone();
    for cause in &mut health.causes {
        cause.text.clear();
        cause.detail = None;
    }
    for answering in [&mut health.peers_answering, &mut health.underlay_answering] {
        answering.truncate(1);
        answering.fill(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    }
    health
}

fn sentences(concerns: &[Concern]) -> String {
    let texts: Vec<String> = concerns.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests;
