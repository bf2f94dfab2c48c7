//! What earlier runs of the agent left on this host.

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::net::InterfaceName;

/// The overlay devices that this host has had, with the files that store their MAC addresses.
pub(crate) fn identities(state_dir: &Path) -> Vec<(InterfaceName, PathBuf)> {
    let Ok(entries) = fs::read_dir(state_dir) else {
        return Vec::new();
    };
    let identity = |path: PathBuf| {
        let name = path
            .file_name()?
            .to_str()?
            .strip_suffix(".mac")?
            .parse()
            .ok()?;
        Some((name, path))
    };
    entries
        .flatten()
        .filter_map(|entry| identity(entry.path()))
        .collect()
}
