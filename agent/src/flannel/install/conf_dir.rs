//! The directory of CNI configs, where container runtimes take the first by name.
//!
//! | file | what |
//! |---|---|
//! | `10-flannel.conflist` | ours, under kube-flannel's name |
//! | `.10-flannel.conflist.selvage` | the SHA-256 of what we wrote there, which tells whether somebody changed it |
//! | `10-flannel.conflist.replaced` | what somebody had changed and we replaced |
//!
//! Runtimes read `.conf`, `.conflist` and `.json` only (containernetworking/cni, libcni/conf.go, `ConfFiles`).

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::conflist::{BUILT_IN, Conflist, MAX_BYTES, leads_to_flannel, plugin_types};
use super::{Error, missing_is_none};
use crate::base::atomic_file;

/// kube-flannel's name.
pub(crate) const NAME: &str = "10-flannel.conflist";

/// What we wrote last, as a hash.
const RECORD: &str = ".10-flannel.conflist.selvage";

/// What somebody had written.
pub(super) const REPLACED: &str = "10-flannel.conflist.replaced";

/// As kube-flannel's install-conf, which takes it from the ConfigMap's file.
pub(super) const MODE: u32 = 0o644;

/// What stands in our place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Missing,
    /// What is wanted, whatever its layout.
    Same,
    /// Something else, which we wrote, or kube-flannel's own.
    Ours,
    /// Something that somebody else wrote.
    Changed,
}

/// The directory.
pub(super) struct ConfDir<'a>(pub(super) &'a Path);

impl ConfDir<'_> {
    /// Where the config list is.
    pub(super) fn path(&self) -> PathBuf {
        self.0.join(NAME)
    }

    /// What stands there in place of what is wanted.
    pub(super) fn standing(&self, wanted: &Conflist) -> Result<Standing, Error> {
        let path = self.path();
        let failed = |source| Error::file("read", &path, source);
        let Some(metadata) = missing_is_none(fs::metadata(&path)).map_err(failed)? else {
            return Ok(Standing::Missing);
        };
        if metadata.len() > MAX_BYTES {
            return Ok(Standing::Changed);
        }
        let found = fs::read(&path).map_err(failed)?;
        let value: Option<Value> = serde_json::from_slice(&found).ok();
        let is = |other: &Value| value.as_ref() == Some(other);
        if found == wanted.bytes || is(&wanted.value) {
            return Ok(Standing::Same);
        }
        let is_built_in = serde_json::from_str(BUILT_IN).is_ok_and(|built_in: Value| is(&built_in));
        let is_ours = self.recorded()?.is_some_and(|hash| hash == hash_of(&found));
        Ok(if is_built_in || is_ours {
            Standing::Ours
        } else {
            Standing::Changed
        })
    }

    /// Writes the config list, and then the record of it, which [`Self::adopt`] makes up for.
    pub(super) fn write(&self, wanted: &Conflist) -> Result<(), Error> {
        write(&self.path(), &wanted.bytes)?;
        self.record(&wanted.bytes)
    }

    /// Takes what stands there for ours, if it is what we would have written.
    pub(super) fn adopt(&self, wanted: &Conflist) -> Result<(), Error> {
        let path = self.path();
        let found = fs::read(&path).map_err(|source| Error::file("read", &path, source))?;
        if found == wanted.bytes && self.recorded()?.is_none_or(|hash| hash != hash_of(&found)) {
            self.record(&found)?;
        }
        Ok(())
    }

    /// Keeps a copy of what stands there.
    pub(super) fn keep_copy(&self) -> Result<(), Error> {
        let path = self.path();
        let found = fs::read(&path).map_err(|source| Error::file("read", &path, source))?;
        write(&self.0.join(REPLACED), &found)
    }

    /// Removes the config list and the record.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for path in [self.path(), self.0.join(RECORD)] {
            missing_is_none(fs::remove_file(&path))
                .map_err(|source| Error::file("remove", &path, source))?;
        }
        Ok(())
    }

    /// The configs that runtimes take before ours, in their order, but for those that call our plugin in turn.
    pub(super) fn before(&self) -> Result<Vec<String>, Error> {
        let names = missing_is_none(configs(self.0));
        let names = names.map_err(|source| Error::file("list", self.0, source))?;
        let names = names.into_iter().flatten();
        let names = names.filter(|name| name.as_str() < NAME);
        Ok(names.filter(|name| !self.leads_here(name)).collect())
    }

    fn leads_here(&self, name: &str) -> bool {
        let path = self.0.join(name);
        let is_short = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
        let config = is_short.then(|| fs::read(&path).ok()).flatten();
        config
            .and_then(|config| plugin_types(&config).ok())
            .is_some_and(|types| leads_to_flannel(&types))
    }

    /// Removes what a crash has left of a write. Nobody may be writing meanwhile.
    pub(super) fn clear(&self) -> Result<(), Error> {
        for path in [self.path(), self.0.join(RECORD), self.0.join(REPLACED)] {
            atomic_file::remove_leftovers(&path)
                .map_err(|source| Error::file("clear", &path, source))?;
        }
        Ok(())
    }

    fn recorded(&self) -> Result<Option<String>, Error> {
        let path = self.0.join(RECORD);
        let text = missing_is_none(fs::read(&path))
            .map_err(|source| Error::file("read", &path, source))?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).trim().to_owned()))
    }

    fn record(&self, contents: &[u8]) -> Result<(), Error> {
        let line = format!("{}\n", hash_of(contents));
        write(&self.0.join(RECORD), line.as_bytes())
    }
}

/// The configs of a directory, in the order in which runtimes look at them.
///
/// # Errors
/// It cannot be listed, or is not there.
pub(crate) fn configs(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = PathBuf::from(entry.file_name());
        let extension = name.extension().and_then(|extension| extension.to_str());
        let is_config = matches!(extension, Some("conf" | "conflist" | "json"));
        if is_config && !entry.path().is_dir() {
            names.push(name.display().to_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    atomic_file::replace(path, contents, MODE)
        .map_err(|source: io::Error| Error::file("write", path, source))
}

fn hash_of(contents: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest(&SHA256, contents).as_ref() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
