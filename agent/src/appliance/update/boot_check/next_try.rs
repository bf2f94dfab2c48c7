//! The end of a boot that failed, or whose check does not end: the next try, or the boot loader's fall-back.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use tracing::{info, warn};

use super::{BAD, GOOD, UNDECIDED, change, on_trial};
use crate::appliance::systemd::Systemd;
use crate::appliance::update::running::{self, Counter};
use crate::appliance::update::state::{FailureCode, Finding, State, StateFile};
use crate::base::boot;
use crate::telemetry::status::now;

/// Exists once a check of this boot has come to its end; in the `RuntimeDirectory=` of its unit. The deadline's unit
/// looks for it.
const ENDED: &str = "run/selvage-boot-check/ended";

/// Notes that a check of this boot came to an end, whatever its verdict: the deadline is for boots in which none does.
pub(super) fn note_end(root: &Path) {
    let path = root.join(ENDED);
    let directory = path.parent().unwrap_or(root);
    if let Err(error) = fs::create_dir_all(directory).and_then(|()| fs::write(&path, "")) {
        warn!("failed to write {}: {error}", path.display());
    }
}

/// What is done when a boot has failed: when the check found the version bad or could not run, and in emergency mode.
/// Returns the exit status; other than 0, systemd reboots.
///
/// # Errors
/// The output cannot be written.
pub async fn next_try(root: &Path, output: &mut impl Write) -> io::Result<u8> {
    let Some(counter) = counter(root) else {
        return Ok(GOOD);
    };
    // systemd names the unit whose OnFailure= this is, even if emergency.target started this; its result tells the two
    // apart (systemd.exec(5), MONITOR_SERVICE_RESULT).
    let monitored = |name: &str| std::env::var(format!("MONITOR_{name}")).ok();
    let result = monitored("SERVICE_RESULT").filter(|result| result != "success");
    // Between two runs, a unit counts as failed and its OnFailure= is started (systemd 254 and later).
    if result.as_deref() == Some("exit-code")
        && monitored("EXIT_STATUS").as_deref() == Some(&UNDECIDED.to_string())
    {
        info!("the boot check is undecided and looks again: no reboot");
        return Ok(GOOD);
    }
    let failed = result.and_then(|_| monitored("UNIT"));
    let (code, reason) = match &failed {
        Some(unit) => (FailureCode::FailedUnit, format!("{unit} failed")),
        None => (
            FailureCode::Emergency,
            "systemd started emergency mode: something that every boot needs failed".to_owned(),
        ),
    };
    give_up(root, counter, bad(code, failed, reason), output).await
}

/// What is done when a boot on trial has come to no verdict in time: neither good nor bad, nor undecided, which may
/// last. Returns the exit status; other than 0, systemd reboots.
///
/// # Errors
/// The output cannot be written.
pub async fn deadline(root: &Path, output: &mut impl Write) -> io::Result<u8> {
    if root.join(ENDED).exists() {
        info!("the boot check has come to a verdict in this boot");
        return Ok(GOOD);
    }
    let Some(counter) = counter(root) else {
        return Ok(GOOD);
    };
    let reason = "the boot check had come to no verdict when its deadline passed: something in this boot hangs";
    let finding = bad(FailureCode::CutShort, None, reason.to_owned());
    give_up(root, counter, finding, output).await
}

fn counter(root: &Path) -> Option<Counter> {
    let counter = Counter::of_this_boot(root);
    if counter.is_none() {
        info!("the boot loader does not count this boot, so a reboot would not help");
    }
    counter
}

fn bad(code: FailureCode, object: Option<String>, reason: String) -> Finding {
    Finding {
        at: now(),
        bad: true,
        code,
        object,
        reason,
    }
}

/// Records why, and reboots if that leads anywhere.
async fn give_up(
    root: &Path,
    counter: Counter,
    finding: Finding,
    output: &mut impl Write,
) -> io::Result<u8> {
    let reason = finding.reason.clone();
    if let Some(version) = running::version(root) {
        let note = |state: &mut State| {
            let Some(pending) = on_trial(state, &version) else {
                return;
            };
            // The check's own reason says more.
            let of_this_boot = pending.last_boot == boot::id();
            if pending.finding.is_none() || !of_this_boot || finding.object.is_none() {
                pending.finding = Some(finding);
            }
        };
        // Without /var the reason is lost, but not the reboot.
        change(&StateFile::of(root), note);
    }
    if !counter.reboot_helps() {
        writeln!(
            output,
            "this boot failed and no other version works either: this machine stays up for repair ({reason})"
        )?;
        return Ok(GOOD);
    }
    writeln!(output, "this boot failed, the next try follows: {reason}")?;
    match Systemd::of(root).reboot().await {
        Ok(()) => Ok(GOOD),
        Err(error) => {
            warn!("failed to reboot: {error}");
            Ok(BAD)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::state::Health;

    const COUNTED: &str =
        "sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

    /// A machine that runs version 2 after version 1, in a boot that is counted like this.
    fn machine(entry: &str) -> (tempfile::TempDir, StateFile) {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("usr/lib/os-release", b"IMAGE_ID=selvage\nIMAGE_VERSION=2\n");
        let mut value = vec![6, 0, 0, 0];
        value.extend(entry.encode_utf16().flat_map(u16::to_le_bytes));
        write(COUNTED, &value);
        let state = StateFile::of(root.path());
        state
            .change(|state| state.begin("2", "1", Health::default(), 1))
            .unwrap();
        (root, state)
    }

    async fn after_deadline(root: &Path) -> (u8, String) {
        let mut output = Vec::new();
        let status = deadline(root, &mut output).await.unwrap();
        (status, String::from_utf8(output).unwrap())
    }

    #[tokio::test]
    async fn a_check_that_ended_is_left_alone_by_the_deadline() {
        let (root, state) = machine("\\EFI\\Linux\\selvage_2+0-4.efi");
        note_end(root.path());
        assert_eq!(after_deadline(root.path()).await, (GOOD, String::new()));
        assert_eq!(state.read().pending.unwrap().finding, None);
    }

    #[tokio::test]
    async fn a_boot_without_verdict_is_recorded_but_one_that_leads_nowhere_else_stays_up() {
        let (root, state) = machine("\\EFI\\Linux\\selvage_2+0-4.efi");
        let (status, said) = after_deadline(root.path()).await;
        assert_eq!(status, GOOD);
        assert!(said.contains("stays up for repair"), "{said}");
        let finding = state.read().pending.unwrap().finding.unwrap();
        assert!(finding.bad);
        assert_eq!(finding.code, FailureCode::CutShort);
        assert!(finding.reason.contains("deadline"), "{}", finding.reason);
    }

    #[tokio::test]
    async fn a_boot_that_nobody_counts_has_no_deadline() {
        let (root, state) = machine("");
        assert_eq!(after_deadline(root.path()).await, (GOOD, String::new()));
        assert_eq!(state.read().pending.unwrap().finding, None);
    }
}
