//! What is in the partitions and the boot entry of a version, compared with what its index says.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ring::digest;

use super::{SlotError, entries, gpt, remove};
use crate::appliance::update::index::{self, Part, Release};
use crate::appliance::update::version::Version;

/// How much is read at a time.
const BLOCK: usize = 256 << 10;

/// A part of a release that is not in its place as the index says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::appliance::update) struct Fault<'a> {
    /// Which.
    pub(in crate::appliance::update) file: &'a index::File,
    /// Where it is, with another content; `None` if it is nowhere.
    pub(in crate::appliance::update) at: Option<PathBuf>,
}

impl Fault<'_> {
    /// Makes room or writes: a partition gets the content that `unpacked` has, a boot entry is removed. Returns whether
    /// systemd-sysupdate has to bring the part.
    ///
    /// sysupdate goes by labels alone and leaves a partition alone that has the label of the version.
    ///
    /// # Errors
    /// It cannot be written.
    pub(in crate::appliance::update) fn mend(&self, unpacked: &Path) -> Result<bool, SlotError> {
        match &self.at {
            None => Ok(true),
            Some(path) if self.file.part == Part::Uki => remove(path).map(|()| true),
            Some(path) => {
                let written = || {
                    let mut source = File::open(unpacked.join(self.file.unpacked_name()))?;
                    let mut target = File::options().write(true).open(path)?;
                    io::copy(&mut source, &mut target)?;
                    target.sync_all()
                };
                written().map_err(|source| SlotError::Content {
                    verb: "write",
                    path: path.clone(),
                    source,
                })?;
                Ok(false)
            }
        }
    }
}

/// What of a release is not in its place; empty if it is installed as the index says. Reads all of it.
///
/// # Errors
/// The ESP or a partition cannot be read, or several have the label of one.
pub(in crate::appliance::update) fn faults<'a>(
    root: &Path,
    running: &Version,
    release: &'a Release,
) -> Result<Vec<Fault<'a>>, SlotError> {
    let mut faults = Vec::new();
    // An image without keys has no place for the signature.
    let is_signed = one(root, &format!("selvage_{running}_verity_sig"))?.is_some();
    for file in &release.files {
        let at = match file.part {
            Part::UsrVeritySig if !is_signed => continue,
            // In no slot, and not among the files.
            Part::Sysext => continue,
            Part::Uki => {
                let mut entries = entries(root)?.into_iter();
                let entry = entries.find(|entry| entry.version == release.version);
                entry.map(|entry| entry.path().to_owned())
            }
            Part::Usr => find(root, running, &release.version, "")?,
            Part::UsrVerity => find(root, running, &release.version, "_verity")?,
            Part::UsrVeritySig => find(root, running, &release.version, "_verity_sig")?,
        };
        let is_right = match &at {
            None => false,
            Some(path) => has(path, file).map_err(|source| SlotError::Content {
                verb: "read",
                path: path.clone(),
                source,
            })?,
        };
        if !is_right {
            faults.push(Fault { file, at });
        }
    }
    Ok(faults)
}

/// Whether a partition begins with a file, or a boot entry is it.
fn has(path: &Path, file: &index::File) -> io::Result<bool> {
    let source = File::open(path)?;
    if file.part == Part::Uki && source.metadata()?.len() != file.unpacked_size {
        return Ok(false);
    }
    let mut source = source.take(file.unpacked_size);
    let (mut hash, mut buffer) = (digest::Context::new(&digest::SHA256), vec![0; BLOCK]);
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(hash.finish().as_ref() == file.unpacked_sha256)
}

/// The device of a version's partition, on the disk that the running version is on.
fn find(
    root: &Path,
    running: &Version,
    version: &Version,
    suffix: &str,
) -> Result<Option<PathBuf>, SlotError> {
    let own = one(root, &format!("selvage_{running}"))?;
    let found = one(root, &format!("selvage_{version}{suffix}"))?;
    Ok(found
        .filter(|found| own.is_none_or(|own| gpt::disk(&own) == gpt::disk(found)))
        .and_then(|found| Some(root.join("dev").join(found.file_name()?))))
}

/// The device of the disk that the running version is on; `None` where that is no disk of its own.
///
/// # Errors
/// Several partitions have the label of the running version.
pub(in crate::appliance::update) fn own_disk(
    root: &Path,
    running: &Version,
) -> Result<Option<PathBuf>, SlotError> {
    let own = one(root, &format!("selvage_{running}"))?;
    let disk = own.and_then(|own| Some(gpt::disk(&own)?.file_name()?.to_owned()));
    let is_there = |name: &OsString| root.join("sys/class/block").join(name).exists();
    Ok(disk
        .filter(is_there)
        .map(|name| root.join("dev").join(name)))
}

/// The only partition with a label: its directory in `/sys`.
fn one(root: &Path, wanted: &str) -> Result<Option<PathBuf>, SlotError> {
    let Ok(devices) = fs::read_dir(root.join("sys/class/block")) else {
        return Ok(None);
    };
    let devices = devices.filter_map(|device| Some(device.ok()?.path()));
    let mut found: Vec<_> = devices
        .filter(|device| label(root, device).as_deref() == Some(wanted))
        .collect();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        count => Err(SlotError::Ambiguous {
            label: wanted.to_owned(),
            count,
        }),
    }
}

/// The label of a partition, whose directory in `/sys` this is. Where the partition table cannot be read, as by somebody
/// who only looks at the status, it is the one that the kernel found at boot.
pub(super) fn label(root: &Path, device: &Path) -> Option<String> {
    gpt::label(root, device).or_else(|| label_at_boot(device))
}

fn label_at_boot(device: &Path) -> Option<String> {
    let event = fs::read_to_string(device.join("uevent")).ok()?;
    let mut lines = event.lines();
    lines.find_map(|line| line.strip_prefix("PARTNAME=").map(str::to_owned))
}
