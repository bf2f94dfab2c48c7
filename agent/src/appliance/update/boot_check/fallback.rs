//! What became of a version that is pending while another one runs.

use std::path::Path;

use tracing::warn;

use crate::appliance::update::running::Counter;
use crate::appliance::update::slots;
use crate::appliance::update::state::{FailureCode, Finding, Pending};
use crate::base::logging::chain;

/// The boot entry of a version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// There is none.
    Absent,
    /// It is aside: the boot loader was not to start it.
    Aside,
    /// It has a counter.
    Counted(Counter),
    /// It has none: the version passed a boot check.
    Blessed,
    /// The partition cannot be read.
    Unknown,
}

impl Entry {
    /// The boot entry of a version below a root directory. Of several, the blessed one.
    pub(super) fn find(root: &Path, version: &str) -> Self {
        let entries = match slots::entries(root) {
            Ok(entries) => entries,
            Err(error) => {
                warn!("{}", chain(&error));
                return Self::Unknown;
            }
        };
        let of_version = entries
            .iter()
            .filter(|entry| version.parse() == Ok(entry.version.clone()));
        let found = of_version.map(|entry| match entry.counter {
            None => Self::Blessed,
            Some(_) if entry.is_aside() => Self::Aside,
            Some(counter) => Self::Counted(counter),
        });
        found
            .max_by_key(|entry| matches!(entry, Self::Blessed))
            .unwrap_or(Self::Absent)
    }
}

/// What became of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// Its tries are not used up: the boot loader starts it next time.
    StillTried,
    /// This boot came before its turn.
    Waits,
    /// It was never installed completely, or was removed before it was tried.
    NotInstalled,
    /// It passed its check, and somebody chose another entry.
    Works,
    /// It failed for a reason that this version would show as well, were it no fault of the other.
    Accused(Finding),
    /// It failed for a reason that only its own boots can show.
    Failed(FailureCode, String),
    /// Its tries are used up, but it was not to blame.
    NotProven(String),
}

/// What became of a version that is pending while another runs.
pub(super) fn fate(pending: &Pending, entry: Entry) -> Fate {
    match entry {
        Entry::Counted(Counter { left: 1.., .. }) => return Fate::StillTried,
        Entry::Aside => return Fate::Waits,
        Entry::Blessed => return Fate::Works,
        Entry::Absent if pending.boots == 0 => return Fate::NotInstalled,
        // Without proof that it was tried at all.
        Entry::Unknown if pending.boots == 0 => return Fate::StillTried,
        Entry::Counted(_) | Entry::Absent | Entry::Unknown => (),
    }
    match &pending.finding {
        Some(finding) if !finding.bad => Fate::NotProven(finding.reason.clone()),
        Some(finding) => match finding.code {
            FailureCode::FailedUnit
            | FailureCode::HungUnit
            | FailureCode::Agent
            | FailureCode::Overlay
            | FailureCode::Docker
            | FailureCode::SiteCheck => Fate::Accused(finding.clone()),
            FailureCode::Emergency
            | FailureCode::CutShort
            | FailureCode::NeverCameUp
            | FailureCode::RolledBack
            | FailureCode::Unknown => Fate::Failed(finding.code, finding.reason.clone()),
        },
        None if pending.boots == 0 => Fate::Failed(
            FailureCode::NeverCameUp,
            "none of its boots came as far as the boot check: its kernel, its /usr or its early boot is broken".to_owned(),
        ),
        None => Fate::Failed(
            FailureCode::CutShort,
            format!(
                "{} before the boot check was done: the machine hung, was reset or lost power",
                match pending.boots {
                    1 => "its boot ended".to_owned(),
                    boots => format!("each of its {boots} boots ended"),
                }
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::update::samples;
    use crate::appliance::update::state::Health;

    fn pending(boots: u32, finding: Option<(bool, FailureCode)>) -> Pending {
        Pending {
            version: "2".to_owned(),
            applied_at: 1,
            from: "1".to_owned(),
            health_before: Health::default(),
            boots,
            last_boot: String::new(),
            finding: finding.map(|(bad, code)| Finding {
                at: 2,
                bad,
                code,
                object: None,
                reason: "a reason".to_owned(),
            }),
        }
    }

    fn counted(left: u32, done: u32) -> Entry {
        Entry::Counted(Counter { left, done })
    }

    #[test]
    fn a_version_has_failed_only_when_its_tries_are_used_up() {
        let bad = Some((true, FailureCode::Docker));
        for (pending, entry) in [
            (pending(0, None), counted(3, 0)),
            (pending(1, bad), counted(2, 1)),
            (pending(2, None), counted(1, 2)),
            (pending(0, None), Entry::Unknown),
        ] {
            assert_eq!(fate(&pending, entry), Fate::StillTried, "{entry:?}");
        }
        let accused = fate(&pending(3, bad), counted(0, 3));
        assert!(matches!(accused, Fate::Accused(finding) if finding.code == FailureCode::Docker));
        // Nothing can be read or is there any more, but it was tried, and does not run.
        for entry in [Entry::Unknown, Entry::Absent] {
            assert!(matches!(fate(&pending(1, bad), entry), Fate::Accused(_)));
        }
    }

    #[test]
    fn boots_that_left_no_reason_have_one() {
        let code = |boots, entry| match fate(&pending(boots, None), entry) {
            Fate::Failed(code, _) => Some(code),
            _ => None,
        };
        assert_eq!(code(0, counted(0, 3)), Some(FailureCode::NeverCameUp));
        assert_eq!(code(2, counted(0, 3)), Some(FailureCode::CutShort));
        let emergency = pending(1, Some((true, FailureCode::Emergency)));
        assert!(matches!(
            fate(&emergency, counted(0, 3)),
            Fate::Failed(FailureCode::Emergency, _)
        ));
    }

    #[test]
    fn who_was_not_to_blame_or_not_tried_is_not_failed() {
        let undecided = pending(3, Some((false, FailureCode::Agent)));
        assert_eq!(
            fate(&undecided, counted(0, 3)),
            Fate::NotProven("a reason".to_owned())
        );
        assert_eq!(fate(&pending(0, None), Entry::Absent), Fate::NotInstalled);
        assert_eq!(fate(&pending(1, None), Entry::Blessed), Fate::Works);
    }

    #[test]
    fn a_version_whose_turn_had_not_come_is_not_failed() {
        assert_eq!(fate(&pending(0, None), Entry::Aside), Fate::Waits);
    }

    #[test]
    fn the_entry_of_a_version_is_its_own() {
        for (files, expected) in [
            (&["selvage_1.efi", "selvage_2+0-3.efi"][..], counted(0, 3)),
            (&["selvage_2.1+3-0.efi", "selvage_2.efi.old"], Entry::Absent),
            (&["selvage_2+1-2.efi", "selvage_2.efi"], Entry::Blessed),
            (&["selvage_2+0-0.efi"], Entry::Aside),
            (&["selvage_2+x.efi", ".#selvage_2.efi"], Entry::Absent),
            (&[], Entry::Absent),
        ] {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(Entry::find(root.path(), "2"), Entry::Unknown);
            let directory = root.path().join(slots::ENTRIES);
            std::fs::create_dir_all(&directory).unwrap();
            for file in files {
                std::fs::write(directory.join(file), samples::uki(1, 600)).unwrap();
            }
            assert_eq!(Entry::find(root.path(), "2"), expected, "{files:?}");
            // What a power cut has left is none.
            for file in files {
                std::fs::write(directory.join(file), "").unwrap();
            }
            assert_eq!(Entry::find(root.path(), "2"), Entry::Absent);
        }
    }
}
