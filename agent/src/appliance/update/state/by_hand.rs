//! What somebody has decided about versions: an older one in place of the newest.

use serde::{Deserialize, Serialize};

use super::{Failed, FailureCode, State};
use crate::appliance::update::version::Version;
use crate::base::boot;

/// A version that somebody chose in place of the one that ran. It counts for as long as that version runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ByHand {
    /// The version that was left.
    pub from: String,
    /// The one that was chosen.
    pub to: String,
    /// When.
    pub at: u64,
    /// The kernel's ID of the boot in which that was: until the next one, the version that was left still runs.
    #[serde(default)]
    pub boot: String,
    /// Whether it was there already (`selvage update rollback`); else it was installed.
    #[serde(default)]
    pub rollback: bool,
    /// The newest version that was ever left so: neither it nor any older one replaces the chosen one by itself.
    #[serde(default)]
    pub newest_left: String,
}

impl State {
    /// Records that somebody wants an older version than the running one. [`Self::begin`] comes before.
    pub fn prefer(&mut self, to: &Version, from: &Version, at: u64) {
        self.by_hand = Some(ByHand {
            from: from.to_string(),
            to: to.to_string(),
            at,
            boot: boot::id(),
            rollback: false,
            newest_left: self.newest_left(from),
        });
    }

    /// Records that somebody goes back from the running version to another, and that it is not to come back by itself.
    pub fn roll_back(&mut self, to: &Version, from: &Version, at: u64) {
        let newest_left = self.newest_left(from);
        self.pending = None;
        self.fail(Failed {
            version: from.to_string(),
            at,
            boots: 0,
            code: FailureCode::RolledBack,
            reason: format!("rolled back by hand to {to}"),
        });
        self.prefer(to, from, at);
        if let Some(by_hand) = &mut self.by_hand {
            by_hand.rollback = true;
            by_hand.newest_left = newest_left;
        }
    }

    fn newest_left(&self, from: &Version) -> String {
        let before = self.chosen_by_hand(from);
        let before = before.and_then(|by_hand| by_hand.newest_left.parse().ok());
        before.map_or_else(
            || from.to_string(),
            |before: Version| before.max(from.clone()).to_string(),
        )
    }

    /// What was chosen by hand, if it is the version that runs.
    pub fn chosen_by_hand(&self, running: &Version) -> Option<&ByHand> {
        let by_hand = self.by_hand.as_ref();
        by_hand.filter(|by_hand| by_hand.to == running.as_str())
    }

    /// Forgets that somebody went back from a version, if that was so.
    pub fn take_back(&mut self, from: &str) {
        if (self.by_hand.take_if(|by_hand| by_hand.from == from)).is_some() {
            let is_it =
                |failed: &Failed| failed.version == from && failed.code == FailureCode::RolledBack;
            self.failed.retain(|failed| !is_it(failed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::state::Health;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// 1.0 runs, and somebody installs 0.9.
    fn older() -> State {
        let mut state = State::default();
        state.begin("0.9", "1.0", Health::default(), 1);
        state.prefer(&version("0.9"), &version("1.0"), 1);
        state
    }

    #[test]
    fn what_was_left_once_stays_left_however_far_one_goes_back() {
        let mut state = older();
        state.bless("0.9", 2);
        state.begin("0.8", "0.9", Health::default(), 3);
        state.prefer(&version("0.8"), &version("0.9"), 3);
        state.bless("0.8", 4);
        let chosen = state.chosen_by_hand(&version("0.8")).unwrap();
        assert_eq!((&*chosen.from, &*chosen.newest_left), ("0.9", "1.0"));
        assert_eq!(state.chosen_by_hand(&version("1.0")), None);
        // A newer version that works ends it, one that falls back does not.
        state.begin("1.1", "0.8", Health::default(), 5);
        let mut fell_back = state.clone();
        fell_back.drop_pending("1.1");
        assert!(fell_back.chosen_by_hand(&version("0.8")).is_some());
        state.bless("1.1", 6);
        assert_eq!(state.by_hand, None);
    }

    #[test]
    fn a_chosen_version_that_fails_is_chosen_no_more() {
        let mut state = older();
        state.fail(Failed {
            version: "0.9".to_owned(),
            at: 2,
            boots: 3,
            code: FailureCode::Docker,
            reason: "Docker does not answer".to_owned(),
        });
        assert_eq!(state.by_hand, None);
        assert!(state.failure("1.0").is_none() && state.failure("0.9").is_some());
    }

    #[test]
    fn a_rollback_that_is_taken_back_leaves_other_failures_alone() {
        let mut state = State::default();
        state.roll_back(&version("0.9"), &version("1.0"), 1);
        state.roll_back(&version("1.0"), &version("1.1"), 2);
        assert_eq!(state.failed.len(), 2);
        state.take_back("1.0");
        assert_eq!(state.failed.len(), 2, "it is 1.1 that was left");
        state.take_back("1.1");
        assert_eq!(state.by_hand, None);
        assert!(state.failure("1.1").is_none() && state.failure("1.0").is_some());
    }
}
