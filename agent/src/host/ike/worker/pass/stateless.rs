//! Tunnels that are in charon's memory alone.

use std::collections::BTreeSet;

use tracing::debug;

use super::super::super::client::ViciError;
use super::super::super::tunnels::Association;
use super::super::super::vici::Section;
use super::{Session, ended};

impl Session {
    /// Ends the tunnels whose states somebody has deleted: charon does not look for them before the keys are to be renewed.
    /// As states come and go when that happens, only those that two passes have seen in this condition.
    pub(super) async fn end_stateless(
        &mut self,
        associations: &[Association],
        spis: Option<&BTreeSet<u32>>,
    ) -> Result<(), ViciError> {
        let before = std::mem::take(&mut self.stateless);
        let Some(spis) = spis else {
            return Ok(());
        };
        for association in associations {
            for id in association.stateless(spis) {
                if !before.contains(id) {
                    self.stateless.insert(id.to_owned());
                    continue;
                }
                debug!(
                    connection = association.connection,
                    "its tunnel has no states in the kernel"
                );
                let order = ended(Section::default().with("child-id", id));
                let name = &association.connection;
                self.try_order("terminate", name, order).await?;
            }
        }
        Ok(())
    }
}
