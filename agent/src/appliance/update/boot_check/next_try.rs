//! What follows a boot that has failed: the next try, or the fall-back.

use std::io::{self, Write};
use std::path::Path;

use tracing::{info, warn};

use super::{BAD, Counter, GOOD, UNDECIDED, boot_id, change, on_trial, state_file};
use crate::appliance::systemd::Systemd;
use crate::appliance::update::running;
use crate::appliance::update::state::{FailureCode, Finding, State};
use crate::telemetry::status::now;

/// What is done when a boot has failed: when the check found the version bad or could not run, and in emergency mode.
/// Returns the exit status; other than 0, systemd reboots.
///
/// # Errors
/// The output cannot be written.
pub async fn next_try(root: &Path, output: &mut impl Write) -> io::Result<u8> {
    let Some(counter) = Counter::of_this_boot(root) else {
        info!("the boot loader does not count this boot, so a reboot would not help");
        return Ok(GOOD);
    };
    // systemd names the unit whose OnFailure= this is, even if emergency.target started this; its result tells the two apart
    // (systemd.exec(5), MONITOR_SERVICE_RESULT).
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
    if let Some(version) = running::version(root) {
        let note = |state: &mut State| {
            let Some(pending) = on_trial(state, &version) else {
                return;
            };
            // The check's own reason says more.
            let of_this_boot = pending.last_boot == boot_id();
            if pending.finding.is_none() || !of_this_boot || failed.is_none() {
                pending.finding = Some(Finding {
                    at: now(),
                    bad: true,
                    code,
                    object: failed.clone(),
                    reason: reason.clone(),
                });
            }
        };
        // Without /var the reason is lost, but not the reboot.
        change(&state_file(root), note);
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
