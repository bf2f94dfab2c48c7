//! The contents of the image that matter to an Ignition config, read from `agent/data/image.toml`.
//!
//! [`check`](super::check) uses this table, and the image build compares it with the image ([`verify`]), so the two
//! cannot drift apart.

mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

pub use verify::{VerifyError, verify};

/// The table itself, of an image for x86-64.
const TABLE: &str = include_str!("../../../data/image.toml");

static IMAGE: LazyLock<Image> = LazyLock::new(|| {
    // A program and a file have the machine's name in theirs.
    let table = TABLE.replace("x86_64", std::env::consts::ARCH);
    // By way of a table: straight from the text, every type is compiled for three forms of a TOML table.
    let table = table.parse().and_then(toml::Table::try_into);
    #[expect(
        clippy::expect_used,
        reason = "the table is part of the program; a test reads it"
    )]
    table.expect("agent/data/image.toml is readable")
});

/// The table for the image of this version.
pub(super) fn image() -> &'static Image {
    &IMAGE
}

/// The whole table; the comments in the file explain the sections.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "a test holds it to the programs")
    )]
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

/// The programs of Ignition's stages, each with stage and purpose.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(not(test), expect(dead_code, reason = "the initrd's build reads it"))]
pub(super) struct Tools {
    pub(super) initrd: BTreeMap<String, String>,
    pub(super) usr: BTreeMap<String, String>,
    pub(super) sysroot: BTreeMap<String, String>,
}

/// Unit files and templates by the effect of enabling them, and aliases.
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

/// Programs that a unit can run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Programs {
    /// Names in `/usr/bin` and `/usr/sbin`.
    pub(super) path: Vec<String>,
    /// Paths elsewhere.
    pub(super) other: Vec<String>,
}

/// The contents of `/etc` before Ignition runs.
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

/// Read-only directories, and directories that do not survive a reboot.
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

/// Files of other systems, with the reason why they have no effect here or with their replacement.
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
    /// Whether the image has a unit, or an alias, of exactly this name.
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

    /// The image's read-only directory that contains `path`.
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

    /// The directory that contains `path` and does not survive a reboot.
    pub(super) fn covered(&self, path: &str) -> Option<&str> {
        let mut tops = self.paths.covered.iter().filter(|top| is_in(path, top));
        tops.next().map(String::as_str)
    }

    /// Why `path` has no effect here, if the table knows.
    pub(super) fn foreign_path(&self, path: &str) -> Option<&str> {
        let mut paths = self.foreign.paths.iter();
        let (_, why) = paths.find(|(foreign, _)| is_in(path, foreign))?;
        Some(why)
    }
}
