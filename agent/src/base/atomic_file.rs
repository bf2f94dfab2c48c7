//! Replaces a file atomically: a reader, even after a power loss, sees either the old or the new contents; with
//! [`replace_soon`] except after a power loss in the next moment.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::thread;

/// Makes `contents` the contents of the file at `path`, atomically and durably.
///
/// Writes the new file next to the old one, syncs it, renames it over the old one and syncs the directory. An existing
/// file keeps its permission bits; a new one gets `mode`, whatever the umask is. Missing directories are created with
/// mode 0755 less the umask.
///
/// # Errors
/// Any error of the file system; the old contents are then still in place.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mode = kept_mode(path).unwrap_or(mode);
    write(path, mode, Durability::Now, |file| file.write_all(contents))
}

/// As [`replace`], but does not wait for the disk: another thread does. For what can be made anew, on a path that must be
/// short.
///
/// A power loss in the next moment may leave an empty file, which the reader must take for a missing one.
///
/// # Errors
/// As [`replace`], but for those of the disk.
pub fn replace_soon(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mode = kept_mode(path).unwrap_or(mode);
    write(path, mode, Durability::Soon, |file| {
        file.write_all(contents)
    })
}

/// The permission bits of an existing file.
fn kept_mode(path: &Path) -> Option<u32> {
    let metadata = fs::metadata(path).ok()?;
    metadata
        .is_file()
        .then(|| metadata.permissions().mode() & 0o7777)
}

/// As [`replace`], with the contents of `from`; the file always gets `mode`.
///
/// # Errors
/// As [`replace`], and any error of reading.
pub(crate) fn copy(path: &Path, from: &mut File, mode: u32) -> io::Result<()> {
    write(path, mode, Durability::Now, |file| {
        io::copy(from, file).map(drop)
    })
}

/// Removes what a crash of [`replace`] or [`copy`] left beside the file. Nobody may be writing it meanwhile.
///
/// # Errors
/// Any error of the file system; a missing directory is none.
pub(crate) fn remove_leftovers(path: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let hidden = hidden(name);
    for entry in entries {
        let entry = entry?;
        let found = entry.file_name();
        let random = found.as_bytes().strip_prefix(hidden.as_bytes());
        let is_random = |bytes: &[u8]| {
            bytes.len() == RANDOM_BYTES && bytes.iter().all(u8::is_ascii_alphanumeric)
        };
        if random.is_some_and(is_random) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// How many letters and digits make the name of the new file unique.
const RANDOM_BYTES: usize = 6;

/// What the name of the new file begins with.
fn hidden(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden
}

/// When the new contents are on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// Before the file has its name.
    Now,
    /// Some time after.
    Soon,
}

fn write(
    path: &Path,
    mode: u32,
    durability: Durability,
    contents: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
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
    let mut file = tempfile::Builder::new()
        .prefix(&hidden(name))
        .rand_bytes(RANDOM_BYTES)
        .tempfile_in(directory)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    contents(file.as_file_mut())?;
    if durability == Durability::Now {
        file.as_file().sync_all()?;
    }
    let file = file.persist(path).map_err(|error| error.error)?;
    let directory = File::open(directory)?;
    match durability {
        Durability::Now => directory.sync_all(),
        Durability::Soon => {
            sync_soon(file, directory);
            Ok(())
        }
    }
}

/// Has a thread of its own wait for the disk. Without one the kernel writes the file by itself, within half a minute.
fn sync_soon(file: File, directory: File) {
    /// Room for two system calls.
    const STACK: usize = 64 << 10;
    let sync = move || {
        // Nobody waits for the outcome; the file can be read in any case.
        let _ = file.sync_all().and_then(|()| directory.sync_all());
    };
    let thread = thread::Builder::new().name("sync".to_owned());
    let _ = thread.stack_size(STACK).spawn(sync);
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
    fn what_is_synced_later_is_read_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/file");
        for text in ["one", "two"] {
            replace_soon(&path, text.as_bytes(), 0o640).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(mode(&path), 0o640);
        }
        assert!(replace_soon(directory.path(), b"", 0o644).is_err());
        let left = fs::read_dir(directory.path().join("a")).unwrap().count();
        assert_eq!(left, 1, "a temporary file was left behind");
    }

    #[test]
    fn copy_always_gets_its_mode_and_a_failed_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (from, path) = (directory.path().join("from"), directory.path().join("to"));
        fs::write(&from, b"program").unwrap();
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        copy(&path, &mut File::open(&from).unwrap(), 0o755).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"program");
        assert_eq!(mode(&path), 0o755);
        // Not readable as a file.
        let unreadable = &mut File::open(directory.path()).unwrap();
        copy(&path, unreadable, 0o755).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"program");
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 2, "a temporary file was left behind");
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let kept = [
            ".file",
            ".file.abcde",
            ".fileabcdefg",
            ".filf123456",
            "file",
        ];
        for name in kept.iter().chain(&[".fileaB3dEf"]) {
            fs::write(directory.path().join(name), "").unwrap();
        }
        remove_leftovers(&path).unwrap();
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut left: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, kept);
        // As a crash leaves one.
        let file = tempfile::Builder::new()
            .prefix(&hidden(OsStr::new("file")))
            .rand_bytes(RANDOM_BYTES)
            .tempfile_in(directory.path());
        let (_, crashed) = file.unwrap().keep().unwrap();
        remove_leftovers(&path).unwrap();
        assert!(!crashed.exists());
        remove_leftovers(&directory.path().join("missing/file")).unwrap();
    }

    #[test]
    fn directory_in_the_way_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(replace(Path::new("/"), b"", 0o644).is_err());
        assert!(replace(directory.path(), b"", 0o644).is_err());
    }
}
