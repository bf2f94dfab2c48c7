//! The two places of versions on this disk: the boot entries in the ESP, and the partitions of `/usr`.
//!
//! systemd-boot starts the newest entry that has tries left or needs none. One that has none left, `+0-DONE`, comes after
//! all others, but still is started if no other is any better. So renames decide which version the next boot starts, and a
//! power cut leaves either the old or the new name:
//!
//! | name | the version | `DONE` |
//! |---|---|---|
//! | `selvage_V.efi` | is good: it passed a boot check | |
//! | `selvage_V+LEFT-DONE.efi` | is on trial | tries |
//! | `selvage_V+0-DONE.efi` | is bad: its tries are used up, or it was rolled back from | 1 and more |
//! | `selvage_V+0-0.efi` | is aside: it waits for its turn, or was left by hand for an older one | |
//!
//! An entry whose content is not all there is none: see [`uki`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tracing::warn;

use crate::appliance::update::running::{Counter, TRIES};
use crate::appliance::update::version::Version;

mod gpt;
pub(super) mod partition;
pub(super) mod uki;

/// Where the ESP is mounted, below the root.
pub(crate) const ENTRIES: &str = "efi/EFI/Linux";

/// The counter of an entry that is aside: `TriesLeft=` and `TriesDone=` of the transfer that writes it.
const ASIDE: Counter = Counter { left: 0, done: 0 };

/// The boot entries cannot be read or changed.
#[derive(Debug, Error)]
pub enum SlotError {
    /// The directory cannot be read.
    #[error(
        "failed to read the boot entries in {path}: is the ESP mounted (systemctl status efi.automount)?"
    )]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be renamed.
    #[error("failed to rename the boot entry {path}")]
    Rename {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be removed.
    #[error("failed to remove the boot entry {path}, which is damaged")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A partition cannot be told from another.
    #[error(
        "{count} partitions of this disk or of others have the label {label}: remove the copy of this disk, or change the \
         label (sfdisk --part-label)"
    )]
    Ambiguous {
        /// Their label.
        label: String,
        /// How many.
        count: usize,
    },
    /// A partition or an entry cannot be read or written.
    #[error("failed to {verb} {path}")]
    Content {
        /// The operation.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// All was said to have gone well, but there is no boot entry.
    #[error("there is no boot entry of version {0}, although it was installed")]
    NoEntry(Version),
    /// There is nothing to roll back to, or nothing to roll back from.
    #[error("cannot roll back: {0}")]
    NoRollback(String),
}

/// A version that can be booted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Which.
    pub version: Version,
    /// Its tries; `None` once it is blessed.
    pub counter: Option<Counter>,
    path: PathBuf,
}

impl Entry {
    /// Whether the boot loader takes it for bad: it has used up its tries.
    pub fn is_bad(&self) -> bool {
        let counter = self.counter;
        counter.is_some_and(|counter| counter.left == 0 && counter.done > 0)
    }

    /// Whether it was put aside before it was ever tried: the boot loader starts it only if nothing else is there.
    pub fn is_aside(&self) -> bool {
        self.counter == Some(ASIDE)
    }

    /// Whether the boot loader tries it.
    pub fn is_on_trial(&self) -> bool {
        self.counter.is_some_and(|counter| counter.left > 0)
    }

    /// Whether its content is not all there. One that cannot be read cannot be started either.
    fn is_damaged(&self) -> bool {
        !uki::is_whole(&self.path).unwrap_or(false)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the entry another counter. Its content is on the disk before its name is.
    fn rename(&self, counter: Option<Counter>) -> Result<Self, SlotError> {
        let counted = counter.map(|Counter { left, done }| format!("+{left}-{done}"));
        let name = format!(
            "selvage_{}{}.efi",
            self.version,
            counted.unwrap_or_default()
        );
        let path = self.path.with_file_name(name);
        let renamed = || {
            fs::File::open(&self.path)?.sync_all()?;
            fs::rename(&self.path, &path)?;
            sync_directory(&path)
        };
        renamed().map_err(|source| SlotError::Rename {
            path: self.path.clone(),
            source,
        })?;
        Ok(Self {
            version: self.version.clone(),
            counter,
            path,
        })
    }

    /// Makes it the last choice of the boot loader.
    fn set_bad(&self) -> Result<Self, SlotError> {
        let done = self.counter.map_or(1, |counter| counter.done.max(1));
        self.rename(Some(Counter { left: 0, done }))
    }

    /// Has the boot loader leave it alone.
    pub(super) fn set_aside(&self) -> Result<Self, SlotError> {
        self.rename(Some(ASIDE))
    }

    /// Gives it all tries.
    fn set_untried(&self) -> Result<Self, SlotError> {
        self.rename(Some(Counter {
            left: TRIES,
            done: 0,
        }))
    }

    /// Removes it.
    pub(super) fn remove(self) -> Result<(), SlotError> {
        remove(&self.path)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), SlotError> {
    let removed = fs::remove_file(path).and_then(|()| sync_directory(path));
    removed.map_err(|source| SlotError::Remove {
        path: path.to_owned(),
        source,
    })
}

/// A partition of `/usr`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Slot {
    /// The device, `vda2`.
    pub device: String,
    /// The version in it; `None` if it is empty or half written.
    pub version: Option<Version>,
    /// Its size in bytes.
    pub size: u64,
}

/// The boot entries of this image's versions, oldest first. Those that are damaged are left out.
///
/// # Errors
/// [`SlotError::Read`].
pub fn entries(root: &Path) -> Result<Vec<Entry>, SlotError> {
    let mut entries = named(root)?;
    entries.retain(|entry| !entry.is_damaged());
    Ok(entries)
}

/// All entries, by their names.
fn named(root: &Path) -> Result<Vec<Entry>, SlotError> {
    let directory = root.join(ENTRIES);
    let failed = |source| SlotError::Read {
        path: directory.clone(),
        source,
    };
    let mut entries = Vec::new();
    for found in fs::read_dir(&directory).map_err(failed)? {
        let path = found.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if let Some((version, counter)) = read_name(name) {
            entries.push(Entry {
                version,
                counter,
                path,
            });
        }
    }
    entries.sort_by(|a, b| a.version.cmp(&b.version));
    Ok(entries)
}

/// Removes what a power cut has left of entries: the boot loader cannot start them, and systemd-sysupdate takes them for
/// installed. That of the running version stays, since the boot loader has just started it.
///
/// # Errors
/// The entries cannot be read or removed.
pub(super) fn clear_damaged(root: &Path, running: &Version) -> Result<(), SlotError> {
    for entry in named(root)? {
        if entry.version != *running && entry.is_damaged() {
            warn!("{} is damaged and removed", entry.path.display());
            entry.remove()?;
        }
    }
    Ok(())
}

/// The version in the name of an entry, and its counter if it has one. A counter that cannot be read is no entry of ours,
/// nor is what sysupdate has not finished: that begins with `.#`.
fn read_name(name: &str) -> Option<(Version, Option<Counter>)> {
    let stem = name.strip_prefix("selvage_")?.strip_suffix(".efi")?;
    match stem.split_once('+') {
        None => Some((stem.parse().ok()?, None)),
        Some((version, _)) => Some((version.parse().ok()?, Some(Counter::of_name(name)?))),
    }
}

/// Has the next boot try a version. A newer one that runs is put aside, since the boot loader takes the newest: it is
/// started again if the other uses up its tries.
///
/// The running one goes first: a power cut between the two leaves it the newest of those without tries, which is started,
/// and blessed again.
///
/// # Errors
/// The entries cannot be read or renamed, or the version has none. All names are then as before, as far as they can be.
pub(super) fn try_next(root: &Path, running: &Version, version: &Version) -> Result<(), SlotError> {
    let entries = entries(root)?;
    let of = |version: &Version| entries.iter().find(|entry| entry.version == *version);
    let entry = of(version).ok_or_else(|| SlotError::NoEntry(version.clone()))?;
    let newer = of(running).filter(|own| own.version > *version);
    let aside = newer.map(Entry::set_aside).transpose()?;
    let tried = entry.set_untried();
    if let (Err(_), Some(aside), Some(newer)) = (&tried, aside, newer) {
        // The first error says more than a second.
        let _ = aside.rename(newer.counter);
    }
    tried.map(drop)
}

/// Takes back that the next boot tries a version.
///
/// # Errors
/// The entries cannot be read or renamed.
pub(super) fn put_aside(root: &Path, version: &Version) -> Result<(), SlotError> {
    for entry in entries(root)? {
        if entry.version == *version && entry.is_on_trial() {
            entry.set_aside()?;
        }
    }
    Ok(())
}

/// The partitions of `/usr`, by device. `root` has `/sys`.
pub fn slots(root: &Path) -> Vec<Slot> {
    let Ok(devices) = fs::read_dir(root.join("sys/class/block")) else {
        return Vec::new();
    };
    let mut slots: Vec<Slot> = devices
        .filter_map(|device| slot(root, &device.ok()?.path()))
        .collect();
    slots.sort_by(|a, b| a.device.cmp(&b.device));
    // The empty slot of hashes has the same label, and a small part of the size.
    let largest = slots.iter().map(|slot| slot.size).max().unwrap_or(0);
    slots.retain(|slot| slot.version.is_some() || slot.size > largest / 2);
    slots
}

fn slot(root: &Path, device: &Path) -> Option<Slot> {
    let label = partition::label(root, device)?;
    let version = match &*label {
        "_empty" => None,
        label => Some(label.strip_prefix("selvage_")?.parse().ok()?),
    };
    let sectors: u64 = fs::read_to_string(device.join("size"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let name = device.file_name()?.to_str()?.to_owned();
    Some(Slot {
        device: name,
        version,
        size: sectors * 512,
    })
}

/// A rollback that can be done.
#[derive(Debug)]
pub(super) struct Rollback {
    own: Entry,
    /// The version that the next boot starts.
    pub(super) to: Version,
}

impl Rollback {
    /// Has the next boot start the other version: one rename.
    ///
    /// # Errors
    /// [`SlotError::Rename`].
    pub(super) fn run(&self) -> Result<(), SlotError> {
        self.own.set_bad().map(drop)
    }
}

/// How to have the next boot start the other version.
///
/// Refuses where that boot would not come up: an entry that has used up its tries failed before, and without the other
/// entry the machine would only try the same version again.
///
/// # Errors
/// [`SlotError`].
pub(super) fn rollback(root: &Path, running: &Version) -> Result<Rollback, SlotError> {
    let entries = entries(root)?;
    let refused = |why: String| Err(SlotError::NoRollback(why));
    let Some(own) = entries.iter().find(|entry| entry.version == *running) else {
        return refused(format!(
            "there is no boot entry of the running version {running}"
        ));
    };
    let mut others = entries.iter().filter(|entry| entry.version != *running);
    // The newest proven one.
    if let Some(other) = others.clone().rfind(|entry| entry.counter.is_none()) {
        return Ok(Rollback {
            own: own.clone(),
            to: other.version.clone(),
        });
    }
    let Some(other) = others.next_back() else {
        return refused(
            "the other slot is empty: no update was installed on this machine yet".to_owned(),
        );
    };
    let version = &other.version;
    // If one that is not proven failed, too, the boot loader would try the newest of two bad ones for ever.
    refused(if other.is_bad() {
        format!(
            "the other version {version} has used up its tries: it failed, or was rolled back from (selvage update apply \
             --version {version} tries it again)"
        )
    } else if other.is_aside() {
        format!(
            "the other version {version} is aside and not proven: selvage update apply --version {version} tries it, and \
             falls back to {} if it fails",
            own.version
        )
    } else {
        format!(
            "the other version {version} is installed and not proven yet: the next boot tries it, and falls back to {} if it \
             fails",
            own.version
        )
    })
}

#[cfg(test)]
mod tests;
