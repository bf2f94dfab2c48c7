//! The image's system extensions: what they are called, and where a machine keeps them.
//!
//! An extension fits one version of the image (`SYSEXT_LEVEL`), so each version has a directory of its own. As a boot
//! begins, a drop-in of systemd-sysext.service makes that of the running version `/run/extensions`: a machine that falls
//! back finds what belongs to the older version. What people put into `/etc/extensions` and `/var/lib/extensions`
//! themselves is not touched.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ring::digest;
use serde::Serialize;
use thiserror::Error;

use crate::appliance::update::index;
use crate::appliance::update::version::Version;

/// Where they are kept: `VERSION/NAME.raw`.
pub const DIRECTORY: &str = "var/lib/selvage/sysexts";

/// Where they are before they are checked, below the root: systemd-sysext looks into the directory of a version, and
/// merges nothing at all where one file is not as it should be.
const DOWNLOADS: &str = "var/lib/selvage/sysexts/download";

/// How the names of published ones end.
pub(super) const SUFFIX: &str = ".sysext.raw";

/// The longest name of an extension.
const LONGEST: usize = 32;

/// Where people put extensions of other makers; systemd-sysext(8) has more, which do not outlast a boot or are the image's.
const BY_HAND: [&str; 2] = ["etc/extensions", "var/lib/extensions"];

/// What systemd-sysext has merged into `/usr`, a name a line.
const MERGED: &str = "usr/.systemd-sysext/extensions";

/// The name of an extension: 1 to 32 of a-z, 0-9 and `-`, the first a letter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// The text cannot be a name.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error(
    "{0:?} is no name of a system extension: expected 1 to {LONGEST} of a-z, 0-9 and '-', the first a letter"
)]
pub struct BadName(String);

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if begins && text.len() <= LONGEST && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName(text.chars().take(2 * LONGEST).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Version and name of a published extension: `selvage_VERSION_NAME.sysext.raw`.
pub fn parse_file_name(name: &str) -> Option<(Version, Name)> {
    let middle = name.strip_prefix("selvage_")?.strip_suffix(SUFFIX)?;
    let (version, name) = middle.split_once('_')?;
    Some((version.parse().ok()?, name.parse().ok()?))
}

/// An extension on this disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Kept {
    /// What it is called.
    pub name: String,
    /// The version of the image that it fits; `None` for one that somebody put there by hand.
    pub version: Option<Version>,
    /// Where it is.
    pub path: PathBuf,
}

/// An extension cannot be kept.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file cannot be read or written.
    #[error("failed to {verb} {path}")]
    File {
        /// What was to be done.
        verb: &'static str,
        /// With which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is another one.
    #[error(
        "{path}: the SHA-256 is {found}, expected {expected}: the file is damaged or was exchanged"
    )]
    Hash {
        /// Which.
        path: PathBuf,
        /// The file's hash.
        found: String,
        /// The hash that it should have.
        expected: String,
    },
}

/// The extensions of one machine.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Of the machine whose root this is.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory of a version's.
    pub(crate) fn directory(&self, version: &Version) -> PathBuf {
        self.root.join(DIRECTORY).join(version.as_str())
    }

    /// The directory of those that are on their way.
    pub(crate) fn downloads(&self) -> PathBuf {
        self.root.join(DOWNLOADS)
    }

    /// Removes those that are on their way, and the former ones that [`Self::adopt`] has kept.
    ///
    /// # Errors
    /// They cannot be removed.
    pub(crate) fn clear_downloads(&self) -> Result<(), StoreError> {
        let path = self.downloads();
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::File {
                verb: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Where the file is that an extension has replaced.
    fn former(&self, name: &Name) -> PathBuf {
        self.downloads().join(format!("{name}.former"))
    }

    /// Where an extension is that was taken back.
    fn taken_back(&self, name: &Name) -> PathBuf {
        self.downloads().join(format!("{name}.new"))
    }

    /// Where an extension is, or belongs.
    pub fn path(&self, version: &Version, name: &Name) -> PathBuf {
        self.directory(version).join(format!("{name}.raw"))
    }

    /// All that are here: those of the image by version and name, then what somebody put there by hand.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>, StoreError> {
        let mut found = Vec::new();
        for directory in entries(&self.root.join(DIRECTORY))? {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            let Ok(version) = name.parse::<Version>() else {
                continue;
            };
            for path in entries(&directory)? {
                // Others are downloads that broke off.
                if let Some(name) = name_of(&path).filter(|name| name.parse::<Name>().is_ok()) {
                    let version = Some(version.clone());
                    found.push(Kept {
                        name,
                        version,
                        path,
                    });
                }
            }
        }
        found.sort_by(|a, b| (&a.version, &a.name).cmp(&(&b.version, &b.name)));
        for directory in BY_HAND {
            for path in entries(&self.root.join(directory))? {
                let name = name_of(&path).or_else(|| {
                    let name = path.file_name()?.to_str()?;
                    path.is_dir().then(|| name.to_owned())
                });
                found.extend(name.map(|name| Kept {
                    name,
                    version: None,
                    path,
                }));
            }
        }
        Ok(found)
    }

    /// The names of those that a version has here.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn names(&self, version: &Version) -> Result<Vec<Name>, StoreError> {
        let all = self.list()?.into_iter();
        let of = all.filter(|kept| kept.version.as_ref() == Some(version));
        Ok(of.filter_map(|kept| kept.name.parse().ok()).collect())
    }

    /// Those that another version has here and `running` has not: a machine was updated without them.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn left_behind(&self, running: &Version) -> Result<Vec<Kept>, StoreError> {
        let names = self.names(running)?;
        let mut all = self.list()?;
        all.retain(|kept| {
            let is_here = names.iter().any(|name| name.0 == kept.name);
            kept.version
                .as_ref()
                .is_some_and(|version| version < running)
                && !is_here
        });
        Ok(all)
    }

    /// Copies a file to where an extension belongs, if it has the hash.
    ///
    /// # Errors
    /// It has another, or it cannot be copied.
    pub fn copy(
        &self,
        source: &Path,
        sha256: &[u8; 32],
        version: &Version,
        name: &Name,
    ) -> Result<(), StoreError> {
        let failed = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { verb, path, source }
        };
        let directory = self.downloads();
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let unfinished = directory.join(format!("{name}.new"));
        let mut input = File::open(source).map_err(failed("read", source))?;
        let mut output = File::create(&unfinished).map_err(failed("write", &unfinished))?;
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = input.read(&mut buffer).map_err(failed("read", source))?;
            let bytes = buffer.get(..length).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            hash.update(bytes);
            output
                .write_all(bytes)
                .map_err(failed("write", &unfinished))?;
        }
        output.sync_all().map_err(failed("write", &unfinished))?;
        let found = hash.finish();
        if found.as_ref() != sha256 {
            let _ = fs::remove_file(&unfinished);
            return Err(StoreError::Hash {
                path: source.to_owned(),
                found: index::hex(found.as_ref()),
                expected: index::hex(sha256),
            });
        }
        self.adopt(&unfinished, version, name)
    }

    /// Puts a checked file to where the extension belongs. One that is there already is kept aside for
    /// [`Self::take_back`].
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(crate) fn adopt(
        &self,
        file: &Path,
        version: &Version,
        name: &Name,
    ) -> Result<(), StoreError> {
        let (path, former) = (self.path(version, name), self.former(name));
        let directory = self.directory(version);
        let moved = || {
            fs::create_dir_all(&directory)?;
            fs::create_dir_all(self.downloads())?;
            absent_is_fine(fs::remove_file(&former))?;
            absent_is_fine(fs::hard_link(&path, &former))?;
            fs::rename(file, &path)?;
            File::open(&directory)?.sync_all()?;
            File::open(self.root.join(DIRECTORY))?.sync_all()
        };
        moved().map_err(|source| StoreError::File {
            verb: "write",
            path,
            source,
        })
    }

    /// Puts the former file in place of an extension that [`Self::adopt`] brought; returns whether there was one. The
    /// extension stays aside for [`Self::give_again`].
    ///
    /// # Errors
    /// A file cannot be renamed.
    pub fn take_back(&self, version: &Version, name: &Name) -> Result<bool, StoreError> {
        let path = self.path(version, name);
        let moved = || {
            fs::rename(&path, self.taken_back(name))?;
            absent_is_fine(fs::rename(self.former(name), &path))
        };
        moved().map_err(|source| StoreError::File {
            verb: "rename",
            path: path.clone(),
            source,
        })
    }

    /// Takes [`Self::take_back`] back.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn give_again(&self, version: &Version, name: &Name) -> Result<(), StoreError> {
        let path = self.path(version, name);
        fs::rename(self.taken_back(name), &path).map_err(|source| StoreError::File {
            verb: "write",
            path,
            source,
        })
    }

    /// Removes an extension of all versions; returns whether there was one.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, name: &Name) -> Result<bool, StoreError> {
        let mut was_here = false;
        for kept in self.list()? {
            if kept.version.is_some() && kept.name == name.0 {
                remove(&kept.path)?;
                was_here = true;
            }
        }
        Ok(was_here)
    }

    /// Removes those of all other versions, and what is on its way.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn keep_only(&self, versions: &[&Version]) -> Result<(), StoreError> {
        for directory in entries(&self.root.join(DIRECTORY))? {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            if !versions.iter().any(|version| version.as_str() == name) {
                fs::remove_dir_all(&directory).map_err(|source| StoreError::File {
                    verb: "remove",
                    path: directory.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The names of all that are merged into `/usr` now.
    pub fn merged(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.join(MERGED)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Whether there was something to do it to.
fn absent_is_fine(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".raw")?;
    Some(name.to_owned())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    fs::remove_file(path).map_err(|source| StoreError::File {
        verb: "remove",
        path: path.to_owned(),
        source,
    })
}

/// What a directory has, by name; nothing if there is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    list().map_err(|source| StoreError::File {
        verb: "read",
        path: directory.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
