//! When something is tried again that charon, or a peer, does not do.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::retry::Backoff;

/// How soon that is: charon gives up if the secrets differ, or if the other node was not told of this one yet.
const RETRIES: Backoff = Backoff::constant(Duration::from_secs(1), Duration::from_secs(60), 0.3);

/// When something is tried the next time.
#[derive(Debug)]
pub(super) struct Attempt {
    due: Instant,
    pauses: Backoff,
}

impl Attempt {
    /// Due at that time. The delays are random ones of the peer's own.
    pub(super) fn new(peer: Ipv4Addr, due: Instant) -> Self {
        Self {
            due,
            pauses: RETRIES.seeded(u32::from(peer).into()),
        }
    }

    /// Whether it is due now; then it is tried again later.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_due = self.due <= now;
        if is_due {
            self.due = now + self.pauses.next_delay();
        }
        is_due
    }
}
