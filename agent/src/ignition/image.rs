//! What the image offers to an Ignition config, read from `agent/data/image.toml`.
//!
//! [`check`](super::check) judges by this table, and the build of the image is held to it ([`verify`]), so the two
//! cannot drift apart.

#![expect(dead_code, reason = "the checks of the sections follow")]

mod verify;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

pub use verify::{VerifyError, verify};

/// The table itself.
const TABLE: &str = include_str!("../../data/image.toml");

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
    /// User and supplementary groups.
    pub(super) members: BTreeMap<String, Vec<String>>,
    pub(super) units: Units,
    pub(super) programs: Programs,
    pub(super) etc: Etc,
    pub(super) shells: Shells,
    pub(super) paths: Paths,
    pub(super) time: Time,
}

/// The programs of Ignition's stages, each with the stage and the purpose, or the reason why it is not there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tools {
    pub(super) initrd: BTreeMap<String, String>,
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
    pub(super) links: Vec<String>,
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
}

/// Time zones.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Time {
    pub(super) zones: Vec<String>,
}
