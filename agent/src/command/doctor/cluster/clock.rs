//! A wall clock that jumps.

use super::{Check, of_status};
use crate::base::words::duration;
use crate::command::doctor::{Finding, Severity};
use crate::telemetry::status::Status;

const NAME: &str = "clock-jump";

/// Jumps of the wall clock.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "a wall clock that jumped in the last day",
    run: |context| of_status(context, find),
};

/// How long a jump is reported, in seconds.
const RECENT: u64 = 86400;

/// Smaller jumps, in seconds, neither expire certificates nor confuse a comparison of two hosts' logs.
const LARGE: u64 = 30;

/// This many jumps are a persistent fault, not a correction.
const MANY: u64 = 3;

/// Shortly after the agent's start, time synchronisation may set the clock for the first time since boot, on a host
/// whose hardware clock is off.
const BOOT: u64 = 300;

fn find(status: &Status) -> Vec<Finding> {
    let clock = status.clock;
    let (Some(at), Some(by)) = (clock.last_time, clock.last_seconds) else {
        return Vec::new();
    };
    let is_recent = status.time.abs_diff(at) < RECENT;
    let is_first_setting = clock.jumps == 1 && {
        let start = status.agent.started_time;
        let before = at.saturating_add_signed(by.saturating_neg());
        before.saturating_sub(start) < BOOT && by > 0
    };
    let counts = by.unsigned_abs() >= LARGE || clock.jumps >= MANY;
    if !is_recent || is_first_setting || !counts {
        return Vec::new();
    }
    let direction = if by < 0 { "back" } else { "forward" };
    let times = match clock.jumps {
        1 => "once".to_owned(),
        jumps => format!("{jumps} times"),
    };
    vec![Finding {
        check: NAME.to_owned(),
        severity: Severity::Warning,
        subject: None,
        peers: Vec::new(),
        what: format!(
            "the wall clock jumped {times} since the agent started, last {} ago by {} {direction}",
            duration(status.time.saturating_sub(at)),
            duration(by.unsigned_abs()),
        ),
        why: "leases do not depend on it, but certificates and log times do; a forward jump may also mean that this virtual machine was paused and its lease expired meanwhile".to_owned(),
        remedy: vec![
            "see whether the clock is synchronised, and by what: timedatectl; timedatectl timesync-status".to_owned(),
            "let only one service set it: systemctl list-units '*timesync*' '*chrony*' '*ntp*' 'vmtoolsd*'".to_owned(),
        ],
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{Agent, Clock};

    fn found(jumps: u64, ago: u64, by: i64, running: u64) -> usize {
        let now = 1_700_000_000;
        let mut status = Status::joining(Agent::of_process("x", now - running), Vec::new());
        status.time = now;
        status.clock = Clock {
            jumps,
            last_time: (jumps > 0).then(|| now - ago),
            last_seconds: (jumps > 0).then_some(by),
        };
        find(&status).len()
    }

    #[test]
    fn jumps_that_matter_are_told_for_a_day() {
        let year = 365 * 86400;
        assert_eq!(found(0, 0, 0, 7200), 0);
        assert_eq!(found(1, 60, year, 2 * 31_536_000), 1);
        assert_eq!(found(1, 60, -year, 7200), 1);
        assert_eq!(found(1, 2 * 86400, -3600, 7 * 86400), 0);
        assert_eq!(found(1, 60, 5, 7200), 0);
        assert_eq!(found(3, 60, 5, 7200), 1);
        // Set for the first time since boot: 20 s after the agent's start, forward by an hour.
        assert_eq!(found(1, 10, 3600, 3600 + 30), 0);
        assert_eq!(found(2, 10, 3600, 3600 + 30), 1);
    }
}
