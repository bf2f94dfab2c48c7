//! Waiting for a condition instead of for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Far more than anything takes that happens at once, however busy the machine is: who waits for so long waits in vain.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Polls until `ready` gives a value, and panics with `what` after `limit`.
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        // The last look comes after the limit, whatever kept this thread from looking before.
        let is_last = start.elapsed() >= limit;
        if let Some(value) = ready() {
            return value;
        }
        assert!(!is_last, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Polls until the condition holds, and panics with `what` when patience is at its end.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(PATIENCE, what, || holds().then_some(()));
}

/// Looks until what is seen fits, and panics with what was seen last when patience is at its end.
pub(crate) fn look_until<T: Debug>(
    what: &str,
    mut look: impl FnMut() -> T,
    fits: impl Fn(&T) -> bool,
) -> T {
    let start = Instant::now();
    loop {
        let is_last = start.elapsed() >= PATIENCE;
        let seen = look();
        if fits(&seen) {
            return seen;
        }
        assert!(
            !is_last,
            "waited {PATIENCE:?} in vain for {what}; seen last: {seen:#?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
