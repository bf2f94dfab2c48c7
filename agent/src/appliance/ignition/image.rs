//! What the image offers to an Ignition config, read from `agent/data/image.toml`.
//!
//! [`check`](super::check) judges by this table, and the build of the image is held to it ([`verify`]), so the two
//! cannot drift apart.

mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

pub use verify::{VerifyError, verify};

/// The table itself.
const TABLE: &str = include_str!("../../../data/image.toml");

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "the table is part of the program; a test reads it"
    )]
    toml::from_str(TABLE).expect("agent/data/image.toml is readable")
});

/// The table of the image that this program belongs to.
pub(super) fn image() -> &'static Image {
    &IMAGE
}

/// The whole table; its file explains the sections.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    pub(super) tools: Tools,
    /// Name and uid.
    pub(super) users: BTreeMap<String, u32>,
    /// Name and gid.
    pub(super) groups: BTreeMap<String, u32>,
    pub(super) units: Units,
    pub(super) programs: Programs,
    pub(super) etc: Etc,
    pub(super) shells: Shells,
    pub(super) paths: Paths,
    pub(super) time: Time,
    pub(super) foreign: Foreign,
}

/// The programs of Ignition's stages, each with the stage and the purpose, or the reason why it is not there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tools {
    #[cfg_attr(not(test), expect(dead_code, reason = "the initrd's build reads it"))]
    pub(super) initrd: BTreeMap<String, String>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "a test holds it to the programs")
    )]
    pub(super) sysroot: BTreeMap<String, String>,
    pub(super) refused: BTreeMap<String, String>,
}

/// Unit files and templates by what enabling them does, and their other names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Units {
    pub(super) enabled: Vec<String>,
    pub(super) available: Vec<String>,
    #[serde(rename = "static")]
    pub(super) static_: Vec<String>,
    pub(super) masked: Vec<String>,
    pub(super) aliases: BTreeMap<String, String>,
    pub(super) enabled_by_alias: BTreeMap<String, Vec<String>>,
}

/// What a unit can run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Programs {
    /// Names in `/usr/bin` and `/usr/sbin`.
    pub(super) path: Vec<String>,
    /// Paths elsewhere.
    pub(super) other: Vec<String>,
}

/// What is in `/etc` before Ignition writes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Etc {
    pub(super) files: Vec<String>,
    /// Path and target.
    pub(super) links: BTreeMap<String, String>,
}

/// Login shells.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shells {
    pub(super) login: Vec<String>,
    pub(super) none: Vec<String>,
}

/// Where nothing can be written, or nothing stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paths {
    pub(super) read_only: Vec<String>,
    pub(super) covered: Vec<String>,
    /// Link and target.
    pub(super) elsewhere: BTreeMap<String, String>,
}

/// Time zones.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Time {
    pub(super) zones: Vec<String>,
}

/// What other systems have, with the reason why it does nothing here or what takes its place.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Foreign {
    pub(super) paths: BTreeMap<String, String>,
    pub(super) units: BTreeMap<String, String>,
    pub(super) programs: BTreeMap<String, String>,
}

/// Whether `path` is `directory` or below it.
pub(super) fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Image {
    /// Whether a unit of this very name, alias or not, is in the image.
    pub(super) fn has_unit(&self, name: &str) -> bool {
        let units = &self.units;
        let lists = [
            &units.enabled,
            &units.available,
            &units.static_,
            &units.masked,
        ];
        let is_listed = |list: &&Vec<String>| list.iter().any(|unit| unit == name);
        lists.iter().any(is_listed) || units.aliases.contains_key(name)
    }

    /// The directory of the image that `path` is in, where nothing can be written.
    pub(super) fn read_only(&self, path: &str) -> Option<&str> {
        let Paths {
            read_only,
            elsewhere,
            ..
        } = &self.paths;
        if elsewhere
            .keys()
            .any(|link| is_in(path, link) && path != link)
        {
            return None;
        }
        let mut tops = read_only.iter().filter(|top| is_in(path, top));
        tops.next().map(String::as_str)
    }

    /// The directory that `path` is in, which does not stay from boot to boot.
    pub(super) fn covered(&self, path: &str) -> Option<&str> {
        let mut tops = self.paths.covered.iter().filter(|top| is_in(path, top));
        tops.next().map(String::as_str)
    }

    /// Why `path` does nothing here, when the table knows.
    pub(super) fn foreign_path(&self, path: &str) -> Option<&str> {
        let mut paths = self.foreign.paths.iter();
        let (_, why) = paths.find(|(foreign, _)| is_in(path, foreign))?;
        Some(why)
    }
}
