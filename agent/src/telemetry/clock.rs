//! Whether the wall clock jumps: it is compared with the clock that counts from boot, also through a suspend.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::telemetry::status;

/// From this many milliseconds on, a difference is a jump and not the work of adjtime(3), which slews by 0.05 % at the most.
const JUMP: i64 = 2000;

/// Compares the two clocks.
#[derive(Debug)]
pub(crate) struct Clock {
    /// How far the wall clock was ahead of the other, in milliseconds.
    ahead: Option<i64>,
    seen: status::Clock,
}

impl Clock {
    /// Notes how the clocks stand.
    pub(crate) fn new() -> Self {
        Self {
            ahead: ahead(),
            seen: status::Clock::default(),
        }
    }

    /// By how many seconds the wall clock jumped since the last look, if it did.
    pub(crate) fn look(&mut self) -> Option<i64> {
        let now = ahead()?;
        let jump = jump(self.ahead.replace(now)?, now)?;
        self.seen.jumps += 1;
        self.seen.last_time = Some(status::now());
        self.seen.last_seconds = Some(jump);
        Some(jump)
    }

    /// What was seen so far.
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

/// By how many seconds the wall clock jumped, to the nearest: the clocks are read one after the other, and neither at the
/// border of a second.
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
