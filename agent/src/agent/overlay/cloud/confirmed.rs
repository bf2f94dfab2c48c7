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
use crate::cloud::plan::Wanted;
use crate::cloud::provider;
use crate::cloud::worker::{Job, Reach};
use crate::plan::backend::{CLOUD_MEMORY, CloudConfig};

/// The routes that a provider had, or may have; no secrets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Confirmed {
    backend: String,
    tables: Vec<String>,
    address: Ipv4Addr,
    pub(super) own: BTreeSet<Ipv4Net>,
    /// Whether they are being changed or removed, so that the provider may have only some of them.
    #[serde(default)]
    is_changing: bool,
}

impl Confirmed {
    fn of(job: &Job) -> Self {
        Self {
            backend: job.kind.to_owned(),
            tables: job.config.tables.clone(),
            address: job.address,
            own: job.wanted.own.clone(),
            is_changing: false,
        }
    }

    /// Whether a job is for the same tables.
    pub(super) fn has_tables_of(&self, job: &Job) -> bool {
        self.backend == job.kind && self.tables == job.config.tables
    }

    /// What removes them; `None` if this agent does not know the backend. The network config's keys are not remembered.
    pub(super) fn removal(self, reach: Reach) -> Option<Job> {
        Some(Job {
            kind: provider::find(&self.backend)?.kind,
            config: CloudConfig {
                tables: self.tables,
                access_key: None,
            },
            address: self.address,
            wanted: Wanted {
                former: self.own,
                ..Wanted::default()
            },
            reach,
        })
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

    /// What is remembered. What cannot be read does not count.
    pub(super) fn read(&self) -> Option<Confirmed> {
        let text = fs::read(&self.path).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether the provider was seen to have just these routes.
    pub(super) fn has(&self, job: &Job) -> bool {
        self.read() == Some(Confirmed::of(job))
    }

    /// Records that it was.
    pub(super) fn set(&self, job: &Job) {
        self.write(&Confirmed::of(job));
    }

    /// Records that the provider may have these routes and the former ones until [`Self::set`] or [`Self::clear`].
    pub(super) fn begin(&self, job: &Job) {
        let mut changing = Confirmed::of(job);
        changing.own.extend(&job.wanted.former);
        changing.is_changing = true;
        self.write(&changing);
    }

    fn write(&self, confirmed: &Confirmed) {
        if self.read().as_ref() == Some(confirmed) {
            return;
        }
        let written = serde_json::to_vec(confirmed)
            .map_err(io::Error::from)
            .and_then(|text| atomic_file::replace(&self.path, &text, 0o600));
        self.log("write", written);
    }

    /// Forgets them: nothing of ours is left.
    pub(super) fn clear(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            removed => self.log("remove", removed),
        }
    }

    /// Without the file an agent waits longer when it starts, and leaves former routes.
    fn log(&self, verb: &str, result: io::Result<()>) {
        if let Err(error) = result {
            warn!("failed to {verb} {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        // While they are changed they do not count, but are known.
        let mut next = moved.clone();
        next.wanted.former = job.wanted.own.clone();
        memory.begin(&next);
        assert!(!memory.has(&job) && !memory.has(&next));
        let known = memory.read().unwrap();
        assert!(known.has_tables_of(&job));
        let removal = known.removal(Reach::default()).unwrap();
        assert_eq!(removal.wanted.former, job.wanted.own);
        assert!(removal.wanted.own.is_empty() && removal.kind == "aws-vpc");
        // The form of earlier versions.
        let text = r#"{"backend":"aws-vpc","tables":["rtb-1"],"address":"10.77.0.11","own":["10.5.1.0/24"]}"#;
        fs::write(directory.path().join(CLOUD_MEMORY), text).unwrap();
        assert!(memory.has(&job));
        memory.clear();
        memory.clear();
        assert!(!memory.has(&job));
        fs::write(directory.path().join(CLOUD_MEMORY), "{").unwrap();
        assert!(!memory.has(&job));
    }
}
