//! The turn of this machine among those of its fleet, as updates see it.

use std::error::Error;
use std::time::SystemTime;

use crate::appliance::update::index::Release;
use crate::appliance::update::version::Version;

/// The fleet cannot be asked.
pub type TurnError = Box<dyn Error + Send + Sync>;

/// Whether this machine may start an update.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leave {
    /// It may.
    Now,
    /// Not yet: its wave has not come, or another machine has the lock.
    Later {
        /// When to ask again, if that is known.
        until: Option<SystemTime>,
        /// Why.
        why: String,
    },
    /// This version failed on too many machines.
    Never {
        /// Why.
        why: String,
    },
}

/// Who says when this machine may go down.
///
/// Only updates that start by themselves ask; a person who says `apply --reboot` is obeyed.
pub trait Turn {
    /// Whether this machine may install a release now. Takes nothing.
    fn may_start(
        &mut self,
        release: &Release,
    ) -> impl Future<Output = Result<Leave, TurnError>> + Send;

    /// Takes the lock under which this machine reboots. It is given back by the boot that is blessed.
    fn acquire(
        &mut self,
        version: &Version,
    ) -> impl Future<Output = Result<Leave, TurnError>> + Send;

    /// Prepares this machine for its reboot: hooks, and containers that are stopped in order.
    fn drain(&mut self) -> impl Future<Output = Result<(), TurnError>> + Send;
}

/// A machine on its own.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Turn for Alone {
    async fn may_start(&mut self, _: &Release) -> Result<Leave, TurnError> {
        Ok(Leave::Now)
    }

    async fn acquire(&mut self, _: &Version) -> Result<Leave, TurnError> {
        Ok(Leave::Now)
    }

    async fn drain(&mut self) -> Result<(), TurnError> {
        Ok(())
    }
}
