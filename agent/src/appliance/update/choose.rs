//! Which release of an index this machine takes. Pure.

use std::fmt;

use crate::appliance::update::index::{Index, Release};
use crate::appliance::update::state::State;
use crate::appliance::update::version::Version;
use crate::settings::update::Severity;

/// What there is for a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice<'a> {
    /// Nothing newer.
    UpToDate,
    /// A release, and how much it matters to get there: the most that any release on the way does.
    Update {
        /// Which.
        release: &'a Release,
        /// The highest severity of all releases that are newer than the running version, up to this one.
        severity: Severity,
    },
    /// There is something newer, but none that is taken without being told to.
    Blocked {
        /// The newest.
        release: &'a Release,
        /// Why not.
        why: Obstacle,
    },
}

/// Why a newer release is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// It failed on this machine.
    Failed {
        /// How.
        reason: String,
    },
    /// The running version is too old for it.
    TooOld {
        /// The oldest version that can be updated to it.
        from: Version,
    },
    /// Somebody chose the running version in place of it, or of a newer one.
    ByHand {
        /// What was left.
        from: String,
        /// The release.
        version: Version,
    },
    /// Another version is pinned.
    Pinned {
        /// Which.
        version: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { reason } => write!(
                f,
                "it failed on this machine ({reason}); selvage update apply --version tries it again"
            ),
            Self::TooOld { from } => write!(
                f,
                "it can be installed from version {from} on, and the channel has none of these for this machine"
            ),
            Self::ByHand { from, version } => write!(
                f,
                "somebody had this machine go back from {from} by hand; selvage update apply --version {version} installs it"
            ),
            Self::Pinned { version } => write!(
                f,
                "this machine is pinned to {version}; selvage update unpin lets it go"
            ),
        }
    }
}

/// The newest release that this machine may take by itself.
pub fn choose<'a>(index: &'a Index, running: &Version, state: &State) -> Choice<'a> {
    let newer = || {
        let releases = index.releases.iter();
        releases.filter(|release| release.version > *running)
    };
    let Some(newest) = newer().next() else {
        return Choice::UpToDate;
    };
    // With a pin in front of it, the pinned one is what matters.
    let pinned = state.pinned.as_deref();
    let shown = newer()
        .find(|release| is_pinned(release, pinned))
        .unwrap_or(newest);
    match newer().find(|release| obstacle(release, running, state).is_none()) {
        Some(release) => {
            let way = newer().filter(|other| other.version <= release.version);
            let severity = way.map(|other| other.severity).max();
            Choice::Update {
                release,
                severity: severity.unwrap_or(release.severity),
            }
        }
        None => match obstacle(shown, running, state) {
            Some(why) => Choice::Blocked {
                release: shown,
                why,
            },
            None => Choice::UpToDate,
        },
    }
}

/// Why a release is not taken without being told to.
pub fn obstacle(release: &Release, running: &Version, state: &State) -> Option<Obstacle> {
    let pinned = state.pinned.as_deref();
    if let (false, Some(version)) = (is_pinned(release, pinned), pinned) {
        let version = version.to_owned();
        return Some(Obstacle::Pinned { version });
    }
    if let Some(from) = too_old_for(release, running) {
        return Some(Obstacle::TooOld { from });
    }
    if let Some(by_hand) = state.chosen_by_hand(running)
        && (by_hand.newest_left.parse()).is_ok_and(|newest: Version| release.version <= newest)
    {
        return Some(Obstacle::ByHand {
            from: by_hand.from.clone(),
            version: release.version.clone(),
        });
    }
    let failure = state.failure(release.version.as_str())?;
    Some(Obstacle::Failed {
        reason: failure.reason.clone(),
    })
}

/// The oldest version that can be updated to a release, if the running one is older.
pub fn too_old_for(release: &Release, running: &Version) -> Option<Version> {
    release.from.clone().filter(|from| *running < *from)
}

fn is_pinned(release: &Release, pinned: Option<&str>) -> bool {
    pinned.is_none_or(|pinned| pinned.parse() == Ok(release.version.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::appliance::update::samples::{self, Site};
    use crate::appliance::update::state::{Failed, FailureCode};

    fn index(releases: &[(&str, &str, Option<&str>)]) -> Index {
        let mut site = Site::new();
        let releases: Vec<Value> = releases
            .iter()
            .map(|(version, severity, from)| {
                let mut release = samples::release(version, &mut Site::new());
                release["severity"] = (*severity).into();
                release["from"] = (*from).into();
                release
            })
            .collect();
        samples::publish(&mut site, 1, &releases);
        Index::parse(&site["stable.json"], "stable", 0).unwrap()
    }

    fn failed(versions: &[&str]) -> State {
        let mut state = State::default();
        for version in versions {
            state.fail(Failed {
                version: (*version).to_owned(),
                at: 1,
                boots: 3,
                code: FailureCode::Docker,
                reason: "Docker does not answer".to_owned(),
            });
        }
        state
    }

    /// As `1.2 security` or `1.2 blocked: reason` or `nothing`.
    fn chosen(index: &Index, running: &str, state: &State) -> String {
        match choose(index, &running.parse().unwrap(), state) {
            Choice::UpToDate => "nothing".to_owned(),
            Choice::Update { release, severity } => {
                format!("{} {severity:?}", release.version).to_lowercase()
            }
            Choice::Blocked { release, why } => {
                let why = why.to_string();
                format!(
                    "{} blocked: {}",
                    release.version,
                    why.split(' ').take(4).collect::<Vec<_>>().join(" ")
                )
            }
        }
    }

    #[test]
    fn the_newest_release_that_nothing_speaks_against_is_taken() {
        let three = index(&[
            ("1.1", "critical", None),
            ("1.2", "security", None),
            ("1.3", "normal", None),
        ]);
        let none = State::default();
        for (running, state, expected) in [
            ("1.3", none.clone(), "nothing"),
            ("1.4", none.clone(), "nothing"),
            ("1.2", none.clone(), "1.3 normal"),
            // What lies between comes along, with its severity.
            ("1.1", none.clone(), "1.3 security"),
            ("1.0", none.clone(), "1.3 critical"),
            ("1.0~rc1", none, "1.3 critical"),
            ("1.1", failed(&["1.3"]), "1.2 security"),
            ("1.2", failed(&["1.3"]), "1.3 blocked: it failed on this"),
            (
                "1.1",
                failed(&["1.2", "1.3"]),
                "1.3 blocked: it failed on this",
            ),
            ("1.1", failed(&["1.1"]), "1.3 security"),
        ] {
            assert_eq!(chosen(&three, running, &state), expected, "from {running}");
        }
    }

    #[test]
    fn old_versions_go_by_the_releases_that_take_them() {
        let steps = index(&[
            ("1", "normal", None),
            ("2", "normal", Some("1")),
            ("3", "critical", Some("2")),
        ]);
        let none = State::default();
        assert_eq!(chosen(&steps, "2", &none), "3 critical");
        // The severity is that of the way to 2 alone.
        assert_eq!(chosen(&steps, "1", &none), "2 normal");
        assert_eq!(chosen(&steps, "0", &none), "1 normal");
        let gap = index(&[("3", "critical", Some("2"))]);
        assert_eq!(chosen(&gap, "1", &none), "3 blocked: it can be installed");
    }

    #[test]
    fn a_pinned_machine_takes_the_pinned_version_alone() {
        let three = index(&[
            ("1.1", "normal", None),
            ("1.2", "normal", None),
            ("1.3", "normal", None),
        ]);
        let pinned = |version: &str, mut state: State| {
            state.pinned = Some(version.to_owned());
            state
        };
        for (running, pin, expected) in [
            ("1.1", "1.2", "1.2 normal"),
            ("1.2", "1.2", "1.3 blocked: this machine is pinned"),
            ("1.2", "1.1", "1.3 blocked: this machine is pinned"),
            ("1.3", "1.3", "nothing"),
            ("1.1", "1.9", "1.3 blocked: this machine is pinned"),
            ("1.1", "no version", "1.3 blocked: this machine is pinned"),
        ] {
            let state = pinned(pin, State::default());
            assert_eq!(
                chosen(&three, running, &state),
                expected,
                "{running} pinned to {pin}"
            );
        }
        let both = pinned("1.2", failed(&["1.2"]));
        assert_eq!(
            chosen(&three, "1.1", &both),
            "1.2 blocked: it failed on this"
        );
    }
}
