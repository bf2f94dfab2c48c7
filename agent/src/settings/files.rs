//! The settings files to read, and their order.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::base::network_name::NetworkName;

/// The directories of settings: the image's, the running system's, the administrator's; later ones win.
const DIRECTORIES: [&str; 3] = ["usr/lib/selvage", "run/selvage", "etc/selvage"];

/// The main file of each directory. All of them are read, so that the image's defaults apply until overridden.
const MAIN: &str = "agent.toml";

/// The directory of drop-ins beside each main file.
const DROP_INS: &str = "agent.d";

/// The files to read, weakest first: the main files by directory, then the drop-ins of all directories by file name. As
/// everywhere in systemd, a drop-in hides those with the same name in weaker directories, even if it is empty or a link
/// to `/dev/null`.
pub(super) fn list(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut drop_ins: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in DIRECTORIES {
        let directory = root.join(directory);
        let main = directory.join(MAIN);
        // A broken link is not skipped but reported when it is read: it was meant to be a file.
        if fs::symlink_metadata(&main).is_ok() {
            files.push(main);
        }
        for path in toml_files(&directory.join(DROP_INS))? {
            if let Some(name) = path.file_name() {
                drop_ins.insert(name.to_owned(), path);
            }
        }
    }
    files.extend(drop_ins.into_values());
    Ok(files)
}

/// The directory of the files for single named networks, beside each main file.
const NETWORKS: &str = "networks";

/// The files to read for one named network after those of [`list`], weakest first.
pub(super) fn list_of_network(root: &Path, network: &NetworkName) -> Vec<PathBuf> {
    let name = format!("{network}.toml");
    let file = |directory: &str| root.join(directory).join(NETWORKS).join(&name);
    DIRECTORIES
        .into_iter()
        .map(file)
        .filter(|file| fs::symlink_metadata(file).is_ok())
        .collect()
}

/// The `*.toml` files in a directory, without hidden ones (left by editors); none if the directory does not exist.
fn toml_files(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
    }
    Ok(files)
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}
