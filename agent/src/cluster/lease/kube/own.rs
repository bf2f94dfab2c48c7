//! How this node's annotations are written and kept: the Kubernetes side of the
//! [keeper](crate::cluster::lease::store::keeper). Nothing expires, so nothing is renewed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tracing::debug;

use super::client::Question;
use super::node::Node;
use super::{Held, Shared};
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::store::keeper::{Outcome, OwnLease, TimeLeft};
use crate::cluster::lease::store::state::State;
use crate::cluster::lease::{LeaseAttrs, StoreError};

/// How often annotations are written that another writer changes at the same time.
const ATTEMPTS: u32 = 5;

/// Pauses between these.
const CONFLICTS: Backoff =
    Backoff::constant(Duration::from_millis(50), Duration::from_secs(1), 0.5);

/// The HTTP status for an object that was changed meanwhile.
const CONFLICT: u16 = 409;

/// The lease of one acquisition.
pub(super) struct Own {
    pub(super) shared: Arc<Shared>,
    pub(super) term: u64,
}

impl Shared {
    /// Writes those annotations of the own node that are not as `attrs` have them.
    pub(super) async fn write(&self, attrs: &LeaseAttrs, mut node: Node) -> Result<(), StoreError> {
        let mut pauses = CONFLICTS.seeded(random_seed());
        for _ in 0..ATTEMPTS {
            let wanted = self.annotations.wanted(attrs, &node);
            let missing = self.annotations.missing(wanted, &node);
            if missing.is_empty() {
                return Ok(());
            }
            let patch = json!({"metadata": {"annotations": missing}});
            let question = Question::patch_status(&node.metadata.name, &patch);
            match self.ask(&question).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.status() == Some(CONFLICT) => {
                    debug!("the node was changed meanwhile: {failure}");
                    sleep(pauses.next_delay()).await;
                    node = self.node().await?;
                }
                Err(failure) => return Err(self.node_error(failure)),
            }
        }
        Err(StoreError::LostRaces { attempts: ATTEMPTS })
    }

    /// Writes what the lease of one term should publish.
    pub(super) async fn publish(&self, term: u64, node: Node) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let Some(held) = self.held_in(term) else {
            return Err(StoreError::NoLease {
                reason: "it was released meanwhile".to_owned(),
            });
        };
        self.write(&held.wanted, node).await
    }

    /// Wakes the keeper if the own node is not as it should be; `None`: it is missing.
    pub(super) fn check_own(&self, node: Option<&Node>) {
        if let Some(node) = node {
            self.note_condition(node);
        }
        let held = self.held();
        let Some(held) = held.as_ref() else { return };
        let as_wanted = node.is_some_and(|node| {
            let wanted = self.annotations.wanted(&held.wanted, node);
            node.own_subnets(held.families)
                .is_ok_and(|key| key == held.key)
                && self.annotations.missing(wanted, node).is_empty()
        });
        if !as_wanted {
            self.state.touch();
        }
    }

    /// The held lease, if it is that of the term.
    pub(super) fn held_in(&self, term: u64) -> Option<Held> {
        self.held().clone().filter(|held| held.term == term)
    }
}

impl OwnLease for Own {
    fn state(&self) -> &State {
        &self.shared.state
    }

    async fn maintain(&mut self, _renew: bool, touched: &mut bool) -> Result<Outcome, StoreError> {
        let Some(held) = self.shared.held_in(self.term) else {
            return Ok(self.lost("it was released"));
        };
        let node = match self.shared.node().await {
            Ok(node) => node,
            Err(error @ StoreError::NoNode { .. }) => return Ok(self.lost(&error.to_string())),
            Err(error) => return Err(error),
        };
        match node.own_subnets(held.families) {
            Ok(key) if key == held.key => {}
            Ok(key) => return Ok(self.lost(&format!("the node's podCIDR is {key} now"))),
            Err(error) => return Ok(self.lost(&error.to_string())),
        }
        self.shared.publish(self.term, node).await?;
        Ok(Outcome::Kept {
            time_left: TimeLeft::Forever,
            slow_down: *touched,
        })
    }
}

impl Own {
    /// The lease is no longer held; one of another term is left alone.
    fn lost(&self, reason: &str) -> Outcome {
        let term = self.term;
        let lost = self.shared.held().take_if(|held| held.term == term);
        let reason = match lost {
            Some(held) => {
                self.shared.state.lost(&held.key);
                format!("lost the subnet {}: {reason}", held.key)
            }
            None => format!("lost the subnet: {reason}"),
        };
        Outcome::Lost { reason }
    }
}
