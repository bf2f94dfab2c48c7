//! State between ADD and DEL of an attachment: the delegate's configuration.
//!
//! flannel's plugin keeps it in `<dataDir>/<containerID>`, so a second flannel network of a container overwrites the
//! first, whose address is then never released. The specification's key is (network, container ID, interface). But a
//! node may switch between flannel's plugin and ours, in both directions, while its containers run, so each must find
//! the other's state. Hence two files per attachment:
//!
//! | file | contents |
//! |---|---|
//! | `<containerID>:<network>:<interface>` | the *record*, which is ours and authoritative. No part can contain a colon |
//! | `<containerID>` | a copy of the container's latest record, for flannel's plugin after a downgrade |
//!
//! * Upgrade: a `<containerID>` file that equals no record of that container is flannel's. A DEL uses it if its network
//!   matches; an ADD of a further network leaves it alone.
//! * Downgrade: flannel's plugin finds `<containerID>` and removes it. Its configuration is right for a container with
//!   one flannel network, and for the latest of several. The record left behind is small and harmless, and the next GC
//!   removes it. After one of our DELs, the copy is made from a remaining record.
//!
//! Both files are complete at any time, are synced before the delegate runs, and stay until its DEL succeeds: so a DEL
//! can be repeated until then. The runtime never works on one container in parallel, nor runs GC in parallel with ADD
//! or DEL (specification §2), so no lock is needed, but for the mark of a boot ([`super::reboot`]).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use serde_json::{Map, Value};

use super::environment::{Interface, is_identifier};
use super::error::Error;
use crate::base::atomic_file;

/// The interface of flannel's files, which do not name one: the default name of a container's first interface.
pub(super) const FIRST_INTERFACE: &str = "eth0";

/// The file with the ID of the boot; no container's ID begins with a dot.
const BOOT: &str = ".boot";

/// The directory of the state files.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

/// The state of one attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) interface: Interface,
    path: PathBuf,
    /// The delegate's configuration as stored.
    bytes: Vec<u8>,
}

impl Attachment {
    /// The delegate's configuration; `None` if the file is not valid, which only a crash of flannel's plugin can cause.
    pub(super) fn delegate(&self) -> Option<Map<String, Value>> {
        serde_json::from_slice(&self.bytes).ok()
    }

    /// The file, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Store {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Creates the directory if need be.
    fn create(&self) -> Result<(), Error> {
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.map_err(|source| failed("make the directory", &self.directory, source))
    }

    /// Locks the directory until the lock is dropped; creates it if need be.
    pub(super) fn lock(&self) -> Result<Flock<fs::File>, Error> {
        self.create()?;
        let failed = |source| failed("lock", &self.directory, source);
        let file = fs::File::open(&self.directory).map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| failed(error.into()))
    }

    /// The ID of the boot in which an ADD last came here; `None` if that was never written down.
    pub(super) fn boot(&self) -> Result<Option<String>, Error> {
        let mark = read(&self.directory.join(BOOT))?;
        Ok(mark.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
    }

    /// Writes that ID down, durably.
    pub(super) fn set_boot(&self, id: &str) -> Result<(), Error> {
        let path = self.directory.join(BOOT);
        atomic_file::replace(&path, format!("{id}\n").as_bytes(), 0o600)
            .map_err(|source| failed("write", &path, source))
    }

    /// Our records, of all networks, of containers none of whose files is younger than this.
    pub(super) fn records_before(&self, time: SystemTime) -> Result<Vec<Attachment>, Error> {
        let container_of = |name: &str| name.split(':').next().unwrap_or(name).to_owned();
        let names = self.names()?;
        let mut young = BTreeSet::new();
        for name in &names {
            let metadata = fs::metadata(self.directory.join(name));
            let written = metadata.and_then(|metadata| metadata.modified());
            if !written.is_ok_and(|written| written < time) {
                young.insert(container_of(name));
            }
        }
        let mut records = Vec::new();
        for name in &names {
            let mut parts = name.splitn(3, ':');
            let (Some(container_id), Some(_), Some(interface)) =
                (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            let path = self.directory.join(name);
            if !young.contains(container_id)
                && let Some(bytes) = read(&path)?
            {
                let interface = Interface {
                    container_id: container_id.to_owned(),
                    name: interface.to_owned(),
                };
                records.push(Attachment {
                    interface,
                    path,
                    bytes,
                });
            }
        }
        Ok(records)
    }

    /// Stores an attachment durably.
    pub(super) fn put(
        &self,
        network: &str,
        interface: &Interface,
        delegate: &str,
    ) -> Result<(), Error> {
        self.create()?;
        let write = |path: &Path| {
            atomic_file::replace(path, delegate.as_bytes(), 0o600)
                .map_err(|source| failed("write", path, source))
        };
        let copy = self.copy_path(&interface.container_id);
        let foreign = self.foreign_copy(&interface.container_id, &self.names()?)?;
        write(&self.record_path(network, interface))?;
        match foreign {
            Some(_) => Ok(()),
            None => write(&copy),
        }
    }

    /// Finds an attachment, whichever plugin stored it.
    pub(super) fn get(
        &self,
        network: &str,
        interface: &Interface,
    ) -> Result<Option<Attachment>, Error> {
        let path = self.record_path(network, interface);
        let attachment = |path, bytes| Attachment {
            interface: interface.clone(),
            path,
            bytes,
        };
        if let Some(bytes) = read(&path)? {
            return Ok(Some(attachment(path, bytes)));
        }
        let Some(bytes) = self.foreign_copy(&interface.container_id, &self.names()?)? else {
            return Ok(None);
        };
        let copy = attachment(self.copy_path(&interface.container_id), bytes);
        // Unreadable files are returned too, for the caller to report.
        let ours = copy.delegate().is_none() || is_of(&copy.bytes, network);
        Ok(ours.then_some(copy))
    }

    /// Removes an attachment.
    pub(super) fn remove(&self, attachment: &Attachment) -> Result<(), Error> {
        let container = &attachment.interface.container_id;
        let copy = self.copy_path(container);
        // The copy first: after a crash in between, the record is still found, and DEL may be repeated.
        if copy != attachment.path && read(&copy)?.is_some_and(|bytes| bytes == attachment.bytes) {
            let records = self.records(container, &self.names()?)?;
            let mut others = records.iter().filter(|(path, _)| *path != attachment.path);
            match others.next() {
                Some((_, other)) => atomic_file::replace(&copy, other, 0o600)
                    .map_err(|source| failed("write", &copy, source))?,
                None => remove_file(&copy)?,
            }
        }
        remove_file(&attachment.path)
    }

    /// All attachments to a network.
    pub(super) fn list(&self, network: &str) -> Result<Vec<Attachment>, Error> {
        let names = self.names()?;
        let mut found = Vec::new();
        for name in &names {
            let (container, record) = match name.split_once(':') {
                None => (name.as_str(), None),
                Some((container, rest)) => (container, rest.split_once(':')),
            };
            let (interface, bytes) = match record {
                Some((of, interface)) if of == network => {
                    (interface, read(&self.directory.join(name))?)
                }
                None if is_identifier(name) => {
                    let copy = self.foreign_copy(container, &names)?;
                    (FIRST_INTERFACE, copy.filter(|bytes| is_of(bytes, network)))
                }
                _ => continue,
            };
            found.extend(bytes.map(|bytes| Attachment {
                interface: Interface {
                    container_id: container.to_owned(),
                    name: interface.to_owned(),
                },
                path: self.directory.join(name),
                bytes,
            }));
        }
        Ok(found)
    }

    /// Whether this is a file of flannel's plugin, which does not name the interface.
    pub(super) fn is_foreign(&self, attachment: &Attachment) -> bool {
        attachment.path == self.copy_path(&attachment.interface.container_id)
    }

    /// The contents of `<containerID>` if it exists and is not a copy of a record.
    fn foreign_copy(&self, container: &str, names: &[String]) -> Result<Option<Vec<u8>>, Error> {
        let Some(bytes) = read(&self.copy_path(container))? else {
            return Ok(None);
        };
        let records = self.records(container, names)?;
        let is_copy = records.iter().any(|(_, record)| *record == bytes);
        Ok((!is_copy).then_some(bytes))
    }

    /// The paths and contents of one container's records.
    fn records(&self, container: &str, names: &[String]) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        let is_record = |name: &&String| {
            let rest = name.strip_prefix(container);
            rest.is_some_and(|rest| rest.starts_with(':'))
        };
        let mut records = Vec::new();
        for name in names.iter().filter(is_record) {
            let path = self.directory.join(name);
            if let Some(bytes) = read(&path)? {
                records.push((path, bytes));
            }
        }
        Ok(records)
    }

    /// The names of all files, sorted; names that are not UTF-8 are not ours. A missing directory has none.
    fn names(&self) -> Result<Vec<String>, Error> {
        let failed = |source| failed("list", &self.directory, source);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn record_path(&self, network: &str, interface: &Interface) -> PathBuf {
        let Interface { container_id, name } = interface;
        self.directory
            .join(format!("{container_id}:{network}:{name}"))
    }

    fn copy_path(&self, container: &str) -> PathBuf {
        self.directory.join(container)
    }
}

/// Whether this is a delegate's configuration for the network.
fn is_of(bytes: &[u8], network: &str) -> bool {
    let delegate: Value = serde_json::from_slice(bytes).unwrap_or_default();
    delegate.get("name").is_some_and(|name| name == network)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::State {
        action,
        path: path.to_owned(),
        source,
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path, source)),
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("remove", path, source)),
    }
}
