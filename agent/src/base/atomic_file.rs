//! Replaces a file atomically: a reader, even after a power loss, sees either the old or the new contents.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes `contents` the contents of the file at `path`, atomically and durably.
///
/// Writes the new file next to the old one, syncs it, renames it over the old one and syncs the directory. An existing
/// file keeps its permission bits; a new one gets `mode`, whatever the umask is. Missing directories are created with
/// mode 0755 less the umask.
///
/// # Errors
/// Any error of the file system; the old contents are then still in place.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    };
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    let mode = match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.permissions().mode() & 0o7777,
        _ => mode,
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let mut file = tempfile::Builder::new()
        .prefix(&hidden)
        .tempfile_in(directory)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn new_file_gets_the_mode_and_an_existing_one_keeps_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/file");
        replace(&path, b"one", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(mode(&path), 0o644);
        assert_eq!(mode(&directory.path().join("a/b")), 0o755);

        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o600);
        let left = fs::read_dir(directory.path().join("a/b")).unwrap().count();
        assert_eq!(left, 1, "a temporary file was left behind");
    }

    #[test]
    fn directory_in_the_way_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(replace(Path::new("/"), b"", 0o644).is_err());
        assert!(replace(directory.path(), b"", 0o644).is_err());
    }
}
