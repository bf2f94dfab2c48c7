//! This machine's `/etc` beside the image's: what differs, and what only looks as if it did.
//!
//! `/etc` is an overlay. A file of the image is copied to the machine's layer when a program opens it for writing or changes
//! its mode, even if nothing changes in the end. Such a copy would hide the defaults of every later image.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// The image's defaults for `/etc`, relative to the root file system.
pub const DEFAULTS: &str = "usr/share/selvage/etc";

/// How a path of `/etc` differs from the image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The image has nothing of this name.
    Added,
    /// Another kind of file, other contents, owner or mode.
    Changed,
    /// Removed on this machine.
    Removed,
}

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Relative to `/etc`.
    pub path: PathBuf,
    /// How.
    pub change: Change,
}

/// What is always another than the image's, and nobody's choice: systemd's record of its last update.
const BOOKKEEPING: &str = ".updated";

/// Compares `etc` with `defaults`, the image's. An added or removed directory is one difference.
///
/// # Errors
/// When a directory or file cannot be read.
pub fn differences(defaults: &Path, etc: &Path) -> io::Result<Vec<Difference>> {
    let mut found = Vec::new();
    compare(defaults, etc, Path::new(""), &mut found)?;
    Ok(found)
}

fn compare(
    defaults: &Path,
    etc: &Path,
    directory: &Path,
    found: &mut Vec<Difference>,
) -> io::Result<()> {
    let mut names = names(&defaults.join(directory))?;
    names.append(&mut self::names(&etc.join(directory))?);
    for name in names {
        let path = directory.join(name);
        if path == Path::new(BOOKKEEPING) {
            continue;
        }
        let image = existing(&defaults.join(&path))?;
        let machine = existing(&etc.join(&path))?;
        let change = match (image, machine) {
            (None, None) => continue,
            (None, Some(_)) => Change::Added,
            (Some(_), None) => Change::Removed,
            (Some(image), Some(machine)) => {
                if image.is_dir() && machine.is_dir() {
                    compare(defaults, etc, &path, found)?;
                }
                if is_same(
                    (&defaults.join(&path), &image),
                    (&etc.join(&path), &machine),
                )? {
                    continue;
                }
                Change::Changed
            }
        };
        found.push(Difference { path, change });
    }
    Ok(())
}

/// Removes from `upper`, the machine's layer, the files and links that are the image's own, and says which. Neither is
/// mounted as an overlay meanwhile.
///
/// # Errors
/// When a directory or file cannot be read or removed.
pub fn drop_unchanged(defaults: &Path, upper: &Path) -> io::Result<Vec<PathBuf>> {
    let mut dropped = Vec::new();
    drop_in(defaults, upper, Path::new(""), &mut dropped)?;
    Ok(dropped)
}

fn drop_in(
    defaults: &Path,
    upper: &Path,
    directory: &Path,
    dropped: &mut Vec<PathBuf>,
) -> io::Result<()> {
    for name in names(&upper.join(directory))? {
        let path = directory.join(name);
        let (theirs, ours) = (defaults.join(&path), upper.join(&path));
        let (Some(image), Some(machine)) = (existing(&theirs)?, existing(&ours)?) else {
            continue;
        };
        if machine.is_dir() {
            // An opaque directory hides the image's; a file in it is there by choice.
            if image.is_dir() && !has_attributes(&ours, &[b"trusted.overlay.opaque"])? {
                drop_in(defaults, upper, &path, dropped)?;
            }
            continue;
        }
        let is_copy = machine.nlink() == 1
            && is_same((&theirs, &image), (&ours, &machine))?
            && !has_other_attributes(&ours)?;
        if is_copy {
            fs::remove_file(&ours)?;
            dropped.push(path);
        }
    }
    Ok(())
}

/// Whether two paths are alike in kind, contents, owner and mode. Of directories, what they hold is not compared.
fn is_same(one: (&Path, &Metadata), other: (&Path, &Metadata)) -> io::Result<bool> {
    let ((one, a), (other, b)) = (one, other);
    if (a.mode(), a.uid(), a.gid()) != (b.mode(), b.uid(), b.gid()) {
        return Ok(false);
    }
    if a.is_symlink() {
        return Ok(fs::read_link(one)? == fs::read_link(other)?);
    }
    if !a.is_file() {
        return Ok(a.rdev() == b.rdev());
    }
    Ok(a.len() == b.len() && has_same_contents(one, other)?)
}

fn has_same_contents(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut a, mut b) = ([0; 8192], [0; 8192]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(other.read(&mut b)? == 0);
        }
        // The files are as long as each other, unless one is written to just now.
        match other.read_exact(&mut b[..length]) {
            Ok(()) if a[..length] == b[..length] => (),
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Extended attributes that overlayfs gives a copy by itself (Documentation/filesystems/overlayfs.rst).
const COPY_UP: [&[u8]; 3] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.uuid",
    b"trusted.overlay.impure",
];

fn has_other_attributes(path: &Path) -> io::Result<bool> {
    Ok(attributes(path)?
        .split(|byte| *byte == 0)
        .any(|name| !name.is_empty() && !COPY_UP.contains(&name)))
}

fn has_attributes(path: &Path, wanted: &[&[u8]]) -> io::Result<bool> {
    Ok(attributes(path)?
        .split(|byte| *byte == 0)
        .any(|name| wanted.contains(&name)))
}

/// The names of extended attributes, each ended by a zero byte; none where the file system has no such thing.
fn attributes(path: &Path) -> io::Result<Vec<u8>> {
    // XATTR_LIST_MAX (linux/limits.h).
    let mut names = vec![0; 65536];
    match rustix::fs::llistxattr(path, &mut names) {
        Ok(length) => {
            names.truncate(length);
            Ok(names)
        }
        Err(rustix::io::Errno::NOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<OsString>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

fn existing(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
