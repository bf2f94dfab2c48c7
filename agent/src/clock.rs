//! Whether the wall clock jumps: it is compared with the clock that counts from boot, also through a suspend.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::status;

/// From this many seconds on, a difference is a jump and not the work of adjtime(3), which slews by 0.05 % at the most.
const JUMP: i64 = 2;

/// Compares the two clocks.
#[derive(Debug)]
pub(crate) struct Clock {
    /// How far the wall clock was ahead of the other, in seconds.
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
        let jump = now - self.ahead.replace(now)?;
        (jump.abs() >= JUMP).then(|| {
            self.seen.jumps += 1;
            self.seen.last_time = Some(status::now());
            self.seen.last_seconds = Some(jump);
            jump
        })
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
    let seconds =
        |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX) / 1000;
    Some(seconds(wall) - seconds(boot))
}
