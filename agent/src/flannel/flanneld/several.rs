//! Whether a flanneld is one of several on this host.
//!
//! Each of several daemons has a prefix and a subnet file of its own; but so has many a single one. A single one goes by
//! no name, so that what a real flannel left is its own, and what it leaves a real flannel's. The first that starts is
//! taken for single; one that finds it running is another network, and remembers that it is.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::base::atomic_file;
use crate::base::network_name::NetworkName;
use crate::host::claim::{Claims, Error};

/// The file in the state directory of one that is another network.
pub(crate) const MEMORY: &str = "network";

/// The claim of the default network's agent.
const UNNAMED: &str = "network/";

/// Answers, always the same, whether this flanneld is one of several on this host.
#[derive(Debug, Default)]
pub struct Several {
    answer: Cell<Option<bool>>,
    /// Which network it is, and its state directory, if it is one of several.
    named: RefCell<Option<(NetworkName, PathBuf)>>,
    claims: RefCell<Claims>,
}

impl Several {
    /// Whether the flanneld that would be the network `name`, and have this state directory then, is one of several.
    pub fn has(&self, name: &NetworkName, state_dir: &Path) -> bool {
        if let Some(answer) = self.answer.get() {
            return answer;
        }
        let answer = is_remembered(state_dir) || self.others_run(name);
        self.answer.set(Some(answer));
        if answer {
            *self.named.borrow_mut() = Some((name.clone(), state_dir.to_owned()));
        }
        answer
    }

    /// Whether the default network is another daemon's; if not, it is ours from now on.
    fn others_run(&self, name: &NetworkName) -> bool {
        let mut claims = self.claims.borrow_mut();
        // Whoever is in the default network by this name's subnet file is this daemon, about to end.
        let same = claims.take(&format!("unnamed/{name}"));
        match (claims.take(UNNAMED), same) {
            (Err(Error::Taken(holder)), Err(Error::Taken(same))) => holder != same,
            (Err(Error::Taken(_)), _) => {
                claims.retain(|_| false);
                true
            }
            _ => false,
        }
    }

    /// Remembers the answer, and says so in the log; returns what this process has claimed, for the agent to go on holding.
    pub fn settle(&self) -> Claims {
        if let Some((name, state_dir)) = &*self.named.borrow() {
            info!(network = %name, "this host runs, or ran, another flanneld in the default network");
            let memory = state_dir.join(MEMORY);
            if let Err(error) = atomic_file::replace(&memory, name.as_str().as_bytes(), 0o644) {
                warn!(path = %memory.display(), "failed to write the file that names this flanneld's network: {error}");
            }
        }
        self.claims.take()
    }
}

/// Whether it was another network before. A version that did not remember it has left other files.
fn is_remembered(state_dir: &Path) -> bool {
    if state_dir.join(MEMORY).exists() {
        return true;
    }
    let of_a_network = state_dir
        .parent()
        .is_some_and(|parent| parent.ends_with("networks"));
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    of_a_network && entries.into_iter().any(|entry| entry.file_name() != "lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NetworkName {
        NetworkName::derive("several")
    }

    #[test]
    fn what_was_another_network_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(MEMORY), "several").unwrap();
        let several = Several::default();
        assert!(several.has(&name(), directory.path()));
        fs::remove_file(directory.path().join(MEMORY)).unwrap();
        assert!(several.has(&name(), directory.path()), "it is settled");
        several.settle();
        assert!(is_remembered(directory.path()));
        fs::remove_file(directory.path().join(MEMORY)).unwrap();

        let former = directory.path().join("networks/several");
        fs::create_dir_all(&former).unwrap();
        fs::write(former.join("lock"), "1").unwrap();
        assert!(!is_remembered(&former));
        fs::write(former.join("flannel.1.mac"), "").unwrap();
        assert!(is_remembered(&former));
    }
}
