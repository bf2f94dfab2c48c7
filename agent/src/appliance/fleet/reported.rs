//! Which failures the fleet has been told: once each, so that `selvage fleet reset` lasts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::appliance::fleet::{FailedVersion, FleetError};
use crate::base::atomic_file;

/// The file in the directory of updates, with a line `VERSION AT` for each failure.
pub(in crate::appliance) const FILE: &str = "fleet-reported";

/// How many are kept: more than a machine remembers failed versions.
const MOST: usize = 64;

/// The file.
#[derive(Debug)]
pub(super) struct Reported(PathBuf);

impl Reported {
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.join(FILE))
    }

    /// A file that cannot be read is as good as none: a failure that is told twice does no harm.
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(super) fn has(&self, failure: FailedVersion<'_>) -> bool {
        self.lines().contains(&line(failure))
    }

    pub(super) fn add(&self, failure: FailedVersion<'_>) -> Result<(), FleetError> {
        let mut lines = self.lines();
        lines.push(line(failure));
        let excess = lines.len().saturating_sub(MOST);
        let text = lines.split_off(excess).join("\n") + "\n";
        atomic_file::replace(&self.0, text.as_bytes(), 0o644).map_err(|source| FleetError::File {
            path: self.0.clone(),
            source,
        })
    }
}

fn line(failure: FailedVersion<'_>) -> String {
    format!("{} {}", failure.version, failure.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(version: &str, at: u64) -> FailedVersion<'_> {
        FailedVersion {
            version,
            at,
            reason: "docker does not answer",
        }
    }

    #[test]
    fn a_failure_is_known_for_good_and_another_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let reported = Reported::new(&directory.path().join("update"));
        assert!(!reported.has(failure("1.1", 5)));
        reported.add(failure("1.1", 5)).unwrap();
        let reported = Reported::new(&directory.path().join("update"));
        assert!(reported.has(failure("1.1", 5)));
        // The same version tried again by hand, and another one.
        assert!(!reported.has(failure("1.1", 6)) && !reported.has(failure("1.1.0", 5)));
        for at in 0..200 {
            reported.add(failure("1.2", at)).unwrap();
        }
        assert!(reported.has(failure("1.2", 199)));
        assert_eq!(reported.lines().len(), MOST);
    }
}
