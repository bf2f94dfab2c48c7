//! The two places of versions on this disk: the boot entries in the ESP, and the partitions of `/usr`.
//!
//! systemd-boot starts the newest entry that has tries left or needs none. One that has none left, `+0-DONE`, comes after
//! all others, but still is started if no other is any better. So one rename decides which version the next boot starts, and a power cut leaves either the old or the new
//! name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::appliance::update::running::{Counter, TRIES};
use crate::appliance::update::version::Version;

/// Where the ESP is mounted, below the root.
pub(crate) const ENTRIES: &str = "efi/EFI/Linux";

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
        self.counter.is_some_and(|counter| counter.left == 0)
    }

    /// Gives the entry another name, which systemd-boot counts by.
    fn rename(&self, counter: &str) -> Result<(), SlotError> {
        let name = format!("selvage_{}{counter}.efi", self.version);
        let to = self.path.with_file_name(name);
        let renamed = fs::rename(&self.path, &to).and_then(|()| match to.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        });
        renamed.map_err(|source| SlotError::Rename {
            path: self.path.clone(),
            source,
        })
    }

    /// Makes it the last choice of the boot loader.
    fn set_bad(&self) -> Result<(), SlotError> {
        let done = self.counter.map_or(1, |counter| counter.done.max(1));
        self.rename(&format!("+0-{done}"))
    }

    /// Gives it all tries again.
    pub(crate) fn set_untried(&self) -> Result<(), SlotError> {
        self.rename(&format!("+{TRIES}-0"))
    }
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

/// The boot entries of this image's versions, oldest first.
///
/// # Errors
/// [`SlotError::Read`].
pub fn entries(root: &Path) -> Result<Vec<Entry>, SlotError> {
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

/// The version in the name of an entry, and its counter if it has one. A counter that cannot be read is no entry of ours,
/// nor is what sysupdate has not finished: that begins with `.#`.
fn read_name(name: &str) -> Option<(Version, Option<Counter>)> {
    let stem = name.strip_prefix("selvage_")?.strip_suffix(".efi")?;
    match stem.split_once('+') {
        None => Some((stem.parse().ok()?, None)),
        Some((version, _)) => Some((version.parse().ok()?, Some(Counter::of_name(name)?))),
    }
}

/// Makes a version the last choice of the boot loader, if it has an entry.
///
/// # Errors
/// The entries cannot be read or renamed.
pub(crate) fn set_bad(root: &Path, version: &Version) -> Result<(), SlotError> {
    let entries = entries(root)?;
    let entry = entries.iter().find(|entry| entry.version == *version);
    entry.map_or(Ok(()), Entry::set_bad)
}

/// The partitions of `/usr`, by device. `root` has `/sys`.
pub fn slots(root: &Path) -> Vec<Slot> {
    let Ok(devices) = fs::read_dir(root.join("sys/class/block")) else {
        return Vec::new();
    };
    let mut slots: Vec<Slot> = devices
        .filter_map(|device| slot(&device.ok()?.path()))
        .collect();
    slots.sort_by(|a, b| a.device.cmp(&b.device));
    // The empty slot of hashes has the same label, and a small part of the size.
    let largest = slots.iter().map(|slot| slot.size).max().unwrap_or(0);
    slots.retain(|slot| slot.version.is_some() || slot.size > largest / 2);
    slots
}

fn slot(device: &Path) -> Option<Slot> {
    let event = fs::read_to_string(device.join("uevent")).ok()?;
    let label = event
        .lines()
        .find_map(|line| line.strip_prefix("PARTNAME="))?;
    let version = match label {
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

/// Has the next boot start the other version. Returns which one that is.
///
/// Refuses where that boot would not come up: an entry that has used up its tries failed before, and without the other
/// entry the machine would only try the same version again.
///
/// # Errors
/// [`SlotError`].
pub fn roll_back(root: &Path, running: &Version) -> Result<Version, SlotError> {
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
        own.set_bad()?;
        return Ok(other.version.clone());
    }
    let Some(other) = others.next_back() else {
        return refused(
            "the other slot is empty: no update was installed on this machine yet".to_owned(),
        );
    };
    let version = &other.version;
    refused(match other.is_bad() {
        true => format!(
            "the other version {version} has used up its tries: it failed, or was rolled back from (selvage update apply \
             --version {version} tries it again)"
        ),
        // If it failed, too, the boot loader would try the newest of two bad ones for ever.
        false => format!(
            "the other version {version} is installed and not proven yet: the next boot tries it, and falls back to {} if it \
             fails",
            own.version
        ),
    })
}

#[cfg(test)]
mod tests;
