//! Detects jumps of the wall clock by comparing it with `CLOCK_BOOTTIME`, which also counts during suspend.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::telemetry::status;

/// Differences from this many milliseconds on are jumps; adjtime(3) slews by at most 0.05 %.
const JUMP: i64 = 2000;

/// Compares the two clocks.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The wall clock's offset from the other, in milliseconds.
    ahead: Option<i64>,
    seen: status::Clock,
}

impl Clock {
    /// Records the current offset.
    pub(crate) fn new() -> Self {
        Self {
            ahead: ahead(),
            seen: status::Clock::default(),
        }
    }

    /// The jump in seconds since the last call, if there was one.
    pub(crate) fn check(&mut self) -> Option<i64> {
        let now = ahead()?;
        let jump = jump(self.ahead.replace(now)?, now)?;
        self.seen.jumps += 1;
        self.seen.last_time = Some(status::now());
        self.seen.last_seconds = Some(jump);
        Some(jump)
    }

    /// The jumps so far.
    pub(crate) fn seen(&self) -> status::Clock {
        self.seen
    }
}

fn ahead() -> Option<i64> {
    let read = |id| clock_gettime(id).ok().map(Duration::from);
    let wall = read(ClockId::CLOCK_REALTIME)?;
    let boot = read(ClockId::CLOCK_BOOTTIME)?;
    let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Some(millis(wall) - millis(boot))
}

/// The jump in seconds, rounded: the clocks are read one after the other, and not at the start of a second.
fn jump(before: i64, now: i64) -> Option<i64> {
    let jump = now - before;
    (jump.abs() >= JUMP).then_some((jump + 500).div_euclid(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_told_to_the_nearest_second() {
        for (before, now, told) in [
            (50_756, -7_149_244, Some(-7200)),
            (50_756, -7_149_243, Some(-7200)),
            (50_756, -7_149_245, Some(-7200)),
            (50_000, 7_249_999, Some(7200)),
            (50_000, 7_250_001, Some(7200)),
            (50_756, 52_755, None),
            (50_756, 48_757, None),
            (50_756, 52_756, Some(2)),
        ] {
            assert_eq!(jump(before, now), told, "{before} {now}");
        }
    }
}
