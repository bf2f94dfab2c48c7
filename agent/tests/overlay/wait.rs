//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

/// Polls until `ready` gives a value, and panics with `what` after `limit`.
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Polls until the condition holds, and panics with `what` after 15 seconds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(Duration::from_secs(15), what, || holds().then_some(()));
}
