//! A request to provision this machine again, `selvage reset`, which the next boot carries out.
//!
//! The request is a file on the root partition. It stays until provisioning is complete, so a power cut at any time only
//! means that the next boot starts the reset again.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use crate::base::atomic_file;

/// The request, relative to the root file system. The initrd's first-boot looks for it, too; finish-provisioning removes it.
pub const FILE: &str = ".selvage/reset";
/// What no reset removes, relative to the root file system: what is known of updates, as far as [`State::reset`] leaves it,
/// and which failures the fleet was told. The machine has a new identity after a reset, and would tell them a second time.
///
/// [`State::reset`]: super::update::state::State::reset
pub(super) const ALWAYS_KEPT: [&str; 2] = [
    "var/lib/selvage/update/state.json",
    "var/lib/selvage/update/fleet-reported",
];
/// The machine's layer of `/etc`, which outlives a reset only where it is asked for.
pub(super) const UPPER: &str = ".selvage/etc";

/// Why a path cannot be kept.
#[derive(Debug, Error)]
pub enum Error {
    /// Not a path from the root.
    #[error("{0} is not an absolute path")]
    Relative(PathBuf),
    /// There is no such thing.
    #[error("failed to look at {path}")]
    Missing {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not on the partition that a reset clears.
    #[error("{0} is not on the root partition; a reset leaves it alone")]
    Elsewhere(PathBuf),
    /// Everything.
    #[error("{0} is all that a reset clears; name what to keep in it")]
    Everything(PathBuf),
    /// A file of `/etc` that nobody changed.
    #[error("{0} is the image's own; there is nothing to keep")]
    OfTheImage(PathBuf),
    /// systemd applies a config's presets only to a machine without an identity.
    #[error("{0} cannot be kept: provisioning gives the machine a new identity")]
    Identity(PathBuf),
    /// A line break would end the name in the request.
    #[error("{0:?} cannot be kept: its name has a line break")]
    LineBreak(PathBuf),
}

/// Where the data of `path`, a path to be kept, is below `root`, the root file system.
///
/// Links are followed, so `/usr/local/bin` is `var/usrlocal/bin`. What is below `/etc` is in the machine's layer.
///
/// # Errors
/// When a reset would not remove it, or has to.
pub fn kept(root: &Path, path: &Path) -> Result<PathBuf, Error> {
    if !path.is_absolute() {
        return Err(Error::Relative(path.to_owned()));
    }
    if path.as_os_str().as_bytes().contains(&b'\n') {
        return Err(Error::LineBreak(path.to_owned()));
    }
    let missing = |source| Error::Missing {
        path: path.to_owned(),
        source,
    };
    let real = root
        .join(path.strip_prefix("/").unwrap_or(path))
        .canonicalize()
        .map_err(missing)?;
    let real = real
        .strip_prefix(root.canonicalize().map_err(missing)?)
        .map_err(|_| Error::Elsewhere(path.to_owned()))?
        .to_owned();
    if real.as_os_str().is_empty() {
        return Err(Error::Everything(path.to_owned()));
    }
    if real.as_os_str().as_bytes().contains(&b'\n') {
        return Err(Error::LineBreak(path.to_owned()));
    }
    if let Ok(inside) = real.strip_prefix("etc") {
        if inside.as_os_str().is_empty() {
            return Err(Error::Everything(path.to_owned()));
        }
        if inside == Path::new("machine-id") {
            return Err(Error::Identity(path.to_owned()));
        }
        let upper = Path::new(UPPER).join(inside);
        return match fs::symlink_metadata(root.join(&upper)) {
            Ok(_) => Ok(upper),
            Err(_) => Err(Error::OfTheImage(path.to_owned())),
        };
    }
    if real.starts_with(".selvage") || !on_root_partition(root, &real).map_err(missing)? {
        return Err(Error::Elsewhere(path.to_owned()));
    }
    Ok(real)
}

fn on_root_partition(root: &Path, inside: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    // The root itself may be below the mount that a program sees, its state directory is not.
    let own = fs::metadata(root.join(".selvage"))?.dev();
    Ok(fs::symlink_metadata(root.join(inside))?.dev() == own)
}

/// Asks for a reset at the next boot. `keep` is what [`kept`] gave.
///
/// # Errors
/// Any error of the file system.
pub fn request(root: &Path, keep: &[PathBuf]) -> io::Result<()> {
    let mut text = Vec::new();
    for path in keep {
        text.extend_from_slice(path.as_os_str().as_bytes());
        text.push(b'\n');
    }
    atomic_file::replace(&root.join(FILE), &text, 0o600)
}

/// What the requested reset keeps, relative to `root`; none where no reset is requested.
///
/// A line that is not the plain relative path that [`request`] writes is left out: it names nothing to keep.
///
/// # Errors
/// Any error of the file system.
pub fn requested(root: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let text = match fs::read(root.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let paths = text
        .split(|byte| *byte == b'\n')
        .map(|line| PathBuf::from(std::ffi::OsString::from_vec(line.to_vec())))
        .filter(|path| {
            let mut components = path.components().peekable();
            components.peek().is_some()
                && components.all(|part| matches!(part, Component::Normal(_)))
        });
    Ok(Some(paths.collect()))
}

/// Takes a request back; says whether there was one.
///
/// # Errors
/// Any error of the file system.
pub fn cancel(root: &Path) -> io::Result<bool> {
    match fs::remove_file(root.join(FILE)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::fleet::REPORTED;
    use crate::appliance::update::state::DIRECTORY;

    #[test]
    fn what_is_always_kept_are_the_files_of_updates() {
        let directory = DIRECTORY.trim_start_matches('/');
        let files = ["state.json", REPORTED].map(|name| format!("{directory}/{name}"));
        assert_eq!(files, ALWAYS_KEPT);
    }
}
