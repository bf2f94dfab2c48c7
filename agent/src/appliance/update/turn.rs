//! The turn of this machine among those of its fleet, as updates see it.

use std::error::Error;
use std::time::SystemTime;

use crate::appliance::fleet::{FailedVersion, Fleet, Phase, Rollout};
use crate::appliance::update::index::Release;
use crate::appliance::update::state::State;
use crate::appliance::update::version::Version;

pub use crate::appliance::fleet::Leave;

/// The fleet cannot be asked.
pub type TurnError = Box<dyn Error + Send + Sync>;

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

    /// Prepares this machine for its reboot into a version. If that fails, the lock is given back, and the machine must not
    /// reboot.
    fn drain(&mut self, version: &Version) -> impl Future<Output = Result<(), TurnError>> + Send;

    /// Gives the lock back: the reboot did not start.
    fn release(&mut self) -> impl Future<Output = Result<(), TurnError>> + Send;

    /// Tells what has become of updates, and gives the lock back unless this machine is down for one.
    fn settle(
        &mut self,
        state: &State,
        running: &Version,
    ) -> impl Future<Output = Result<(), TurnError>> + Send;
}

impl Turn for Fleet {
    async fn may_start(&mut self, release: &Release) -> Result<Leave, TurnError> {
        let rollout = Rollout {
            version: release.version.as_str(),
            date: release.date,
            over: release.roll_out,
        };
        Ok(Self::may_start(self, rollout, SystemTime::now()).await?)
    }

    async fn acquire(&mut self, version: &Version) -> Result<Leave, TurnError> {
        Ok(Self::acquire(self, version.as_str()).await?)
    }

    async fn drain(&mut self, version: &Version) -> Result<(), TurnError> {
        Ok(Self::drain(self, version.as_str()).await?)
    }

    async fn release(&mut self) -> Result<(), TurnError> {
        Ok(Self::release(self).await?)
    }

    async fn settle(&mut self, state: &State, running: &Version) -> Result<(), TurnError> {
        let failed: Vec<_> = (state.failed.iter())
            .map(|failed| FailedVersion {
                version: &failed.version,
                at: failed.at,
                reason: &failed.reason,
            })
            .collect();
        Ok(Self::settle(self, phase(state, running), &failed).await?)
    }
}

fn phase(state: &State, running: &Version) -> Phase {
    match &state.pending {
        None => Phase::Steady,
        Some(pending) if pending.version == running.as_str() => Phase::Trying,
        Some(_) => Phase::Pending,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::state::Health;

    #[test]
    fn the_state_says_how_far_an_update_is() {
        let running = "1.0".parse().unwrap();
        let mut state = State::default();
        assert_eq!(phase(&state, &running), Phase::Steady);
        state.begin("1.1", "1.0", Health::default(), 1);
        assert_eq!(phase(&state, &running), Phase::Pending);
        assert_eq!(phase(&state, &"1.1".parse().unwrap()), Phase::Trying);
        state.bless("1.1", 2);
        assert_eq!(phase(&state, &"1.1".parse().unwrap()), Phase::Steady);
    }
}
