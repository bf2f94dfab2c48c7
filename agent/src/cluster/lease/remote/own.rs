//! How the own lease is renewed and checked: a lease server's side of the
//! [keeper](crate::cluster::lease::store::keeper).

use std::sync::Arc;

use super::Shared;
use crate::cluster::lease::StoreError;
use crate::cluster::lease::store::keeper::{Outcome, OwnLease, TimeLeft};
use crate::cluster::lease::store::state::State;

/// The lease of one acquisition.
pub(super) struct Own {
    pub(super) shared: Arc<Shared>,
    pub(super) term: u64,
}

impl OwnLease for Own {
    fn state(&self) -> &State {
        &self.shared.state
    }

    /// Renewing the lease also checks it: the server compares what is in etcd.
    async fn maintain(&mut self, _renew: bool, touched: &mut bool) -> Result<Outcome, StoreError> {
        match self.shared.renew(self.term).await {
            Ok(ttl) => Ok(Outcome::Kept {
                time_left: ttl.map_or(TimeLeft::Forever, TimeLeft::FromNow),
                slow_down: *touched,
            }),
            Err(StoreError::NoLease { reason }) => Ok(Outcome::Lost {
                reason: self.lost(&reason),
            }),
            Err(error) => Err(error),
        }
    }
}

impl Own {
    /// The lease is no longer held; one of another term is left alone.
    fn lost(&self, reason: &str) -> String {
        let term = self.term;
        let lost = self.shared.held().take_if(|held| held.term == term);
        match lost {
            Some(held) => {
                self.shared.state.lost(&held.key);
                format!("lost the lease of {}: {reason}", held.key)
            }
            None => format!("lost the lease: {reason}"),
        }
    }
}
