//! Docker's store of networks, mended before Docker starts.
//!
//! At each start dockerd deletes the network `bridge` and creates it again. That is a record of the bridge driver's and, a
//! moment later, one of the network itself. A power cut between the two leaves the first without the second, and no
//! dockerd starts from then on: "cannot create network … (docker0): conflicts with network … (docker0): networks have same
//! bridge name" (moby/moby#49291, docker/for-linux#1512). The remedy that people find is to delete the store, with all
//! networks that they made. This removes the driver's record alone: nothing can use it, for networks are found by their own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize;
use thiserror::Error;

use self::bolt::{Bolt, Record};
use crate::base::atomic_file;

mod bolt;

/// Docker's settings.
const SETTINGS: &str = "etc/docker/daemon.json";
/// Docker's data, unless the settings have another place.
const DATA: &str = "var/lib/docker";
/// The store, below Docker's data.
const STORE: &str = "network/files/local-kv.db";
/// What the store was before it was changed.
const BACKUP: &str = "network/files/local-kv.db.before";
/// The bucket of all records (moby, `libnetwork/datastore`).
const BUCKET: &str = "libnetwork";
/// How the keys of the bridge driver's networks begin; then comes the network's ID.
const OF_DRIVER: &str = "docker/network/v1.0/bridge/";
/// The same of the networks themselves.
const OF_NETWORK: &str = "docker/network/v1.0/network/";
/// A store has some dozen KB; one of this length is left alone.
const LONGEST: u64 = 64 << 20;

/// Why the store could not be mended.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("failed to {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A record cannot be removed without the rest.
    #[error(
        "{0} has a bridge without a network and cannot be mended; if Docker does not start: move the file away, which loses the networks that were created by hand"
    )]
    Stuck(PathBuf),
}

/// Removes what has no network from the store of the machine with this root, and gives the IDs of the networks that it
/// was of. A store that is not there, or is none, or is in use, is left to Docker.
///
/// # Errors
/// The store cannot be read or replaced; it is then as it was.
pub fn mend(root: &Path) -> Result<Vec<String>, Error> {
    let data = data_directory(root);
    let path = data.join(STORE);
    let failed = |verb, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { verb, path, source }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", &path)(error)),
    };
    // A dockerd that runs has this lock (bbolt, `bolt_unix.go`) and would go on with the file that is replaced here.
    let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
        return Ok(Vec::new());
    };
    let mut contents = Vec::new();
    (&*file)
        .take(LONGEST + 1)
        .read_to_end(&mut contents)
        .map_err(failed("read", &path))?;
    let is_short = u64::try_from(contents.len()).is_ok_and(|length| length <= LONGEST);
    let Some(mut bolt) = Bolt::new(contents.clone()).filter(|_| is_short) else {
        return Ok(Vec::new());
    };
    let Some(records) = bolt.records(BUCKET) else {
        return Ok(Vec::new());
    };
    let orphans = orphans(&records);
    if orphans.is_empty() {
        return Ok(Vec::new());
    }
    // The last first: those before it stay where they are.
    for orphan in orphans.iter().rev() {
        bolt.remove(orphan)
            .ok_or_else(|| Error::Stuck(path.clone()))?;
    }
    if !differ_by(&records, &orphans, &bolt) {
        return Err(Error::Stuck(path));
    }
    let backup = data.join(BACKUP);
    atomic_file::replace(&backup, &contents, 0o600).map_err(failed("write", &backup))?;
    atomic_file::replace(&path, &bolt.into_data(), 0o600).map_err(failed("write", &path))?;
    Ok(orphans
        .iter()
        .filter_map(|record| id(record, OF_DRIVER))
        .collect())
}

/// Where Docker has its data.
fn data_directory(root: &Path) -> PathBuf {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Settings {
        data_root: Option<PathBuf>,
    }
    let settings = fs::read(root.join(SETTINGS)).ok();
    let settings = settings.and_then(|text| serde_json::from_slice::<Settings>(&text).ok());
    match settings.and_then(|settings| settings.data_root) {
        Some(data) => root.join(data.strip_prefix("/").unwrap_or(&data)),
        None => root.join(DATA),
    }
}

/// The ID in the key of a record.
fn id(record: &Record, start: &str) -> Option<String> {
    let key = std::str::from_utf8(&record.key).ok()?;
    let id = key.strip_prefix(start)?.strip_suffix('/')?;
    (!id.is_empty() && !id.contains('/')).then(|| id.to_owned())
}

/// The driver's records of networks that are none.
fn orphans(records: &[Record]) -> Vec<Record> {
    let networks: BTreeSet<_> = records
        .iter()
        .filter_map(|record| id(record, OF_NETWORK))
        .collect();
    let is_orphan =
        |record: &&Record| id(record, OF_DRIVER).is_some_and(|id| !networks.contains(&id));
    records.iter().filter(is_orphan).cloned().collect()
}

/// Whether the store has all of `records` but `removed`.
fn differ_by(records: &[Record], removed: &[Record], bolt: &Bolt) -> bool {
    let kept = records.iter().filter(|record| !removed.contains(record));
    let now = bolt.records(BUCKET).unwrap_or_default();
    kept.map(|record| &record.key)
        .eq(now.iter().map(|record| &record.key))
}

#[cfg(test)]
mod tests;
