//! What the provider was seen to have, remembered over restarts: a provider's API that is away does not keep a restarted
//! agent, or a host that boots, from an overlay that works.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::base::atomic_file;
use crate::cloud::worker::Job;
use crate::plan::backend::CLOUD_MEMORY;

/// The routes that a provider had; no secrets.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Confirmed {
    backend: String,
    tables: Vec<String>,
    address: Ipv4Addr,
    own: BTreeSet<Ipv4Net>,
}

impl Confirmed {
    fn of(job: &Job) -> Self {
        Self {
            backend: job.kind.to_owned(),
            tables: job.config.tables.clone(),
            address: job.address,
            own: job.wanted.own.clone(),
        }
    }
}

/// The file of the state directory that has them.
#[derive(Debug)]
pub(super) struct Memory {
    path: PathBuf,
}

impl Memory {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(CLOUD_MEMORY),
        }
    }

    /// Whether the provider was seen to have just these routes. What cannot be read does not count.
    pub(super) fn has(&self, job: &Job) -> bool {
        let found = fs::read(&self.path).ok();
        let found = found.and_then(|text| serde_json::from_slice(&text).ok());
        found == Some(Confirmed::of(job))
    }

    /// Records that it was.
    pub(super) fn set(&self, job: &Job) {
        if self.has(job) {
            return;
        }
        let written = serde_json::to_vec(&Confirmed::of(job))
            .map_err(io::Error::from)
            .and_then(|text| atomic_file::replace(&self.path, &text, 0o600));
        self.log("write", written);
    }

    /// Forgets them: they are being changed or removed.
    pub(super) fn clear(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            removed => self.log("remove", removed),
        }
    }

    /// Without the file an agent only waits longer when it starts.
    fn log(&self, verb: &str, result: io::Result<()>) {
        if let Err(error) = result {
            warn!("failed to {verb} {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::plan::Wanted;
    use crate::cloud::worker::Reach;
    use crate::plan::backend::CloudConfig;
    use crate::settings::Secret;

    #[test]
    fn only_the_very_routes_are_remembered_and_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::new(directory.path());
        let job = Job {
            kind: "aws-vpc",
            config: CloudConfig {
                tables: vec!["rtb-1".to_owned()],
                access_key: Some(("id".to_owned(), Secret::new("hidden".to_owned()))),
            },
            address: Ipv4Addr::new(10, 77, 0, 11),
            wanted: Wanted {
                own: BTreeSet::from(["10.5.1.0/24".parse().unwrap()]),
                ..Wanted::default()
            },
            reach: Reach::default(),
        };
        assert!(!memory.has(&job));
        memory.set(&job);
        assert!(memory.has(&job));
        let text = fs::read_to_string(directory.path().join(CLOUD_MEMORY)).unwrap();
        assert!(!text.contains("hidden"), "{text}");
        let mut moved = job.clone();
        moved.address = Ipv4Addr::new(10, 77, 0, 12);
        let mut renumbered = job.clone();
        renumbered.wanted.own.clear();
        assert!(!memory.has(&moved) && !memory.has(&renumbered));
        memory.clear();
        memory.clear();
        assert!(!memory.has(&job));
        fs::write(directory.path().join(CLOUD_MEMORY), "{").unwrap();
        assert!(!memory.has(&job));
    }
}
