//! The platform's SSH keys, for sshd: one file for each user, replaced as a whole at each boot. A key that was removed from
//! the platform is gone after the next one.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::atomic_file;

/// The directory, which only root may write to; the image's sshd has it in `AuthorizedKeysFile`.
pub const DIRECTORY: &str = "var/lib/selvage/authorized_keys";

/// Writes the keys of a user.
///
/// # Errors
/// The name cannot be that of a user, or the file cannot be written; with the path.
pub fn write(root: &Path, user: &str, keys: &[String]) -> Result<PathBuf, (PathBuf, io::Error)> {
    let path = root.join(DIRECTORY).join(user);
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if user.is_empty() || user.starts_with(['.', '-']) || !user.chars().all(is_name) {
        let error = io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is not the name of a user",
        );
        return Err((path, error));
    }
    let mut text =
        String::from("# From the platform, by selvage metadata; replaced at each boot.\n");
    for key in keys {
        text.push_str(key);
        text.push('\n');
    }
    match atomic_file::replace(&path, text.as_bytes(), 0o644) {
        Ok(()) => Ok(path),
        Err(error) => Err((path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_replaced_and_no_name_leads_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let keys = ["ssh-ed25519 A one", "ssh-ed25519 B two"].map(str::to_owned);
        write(root.path(), "core", &keys).unwrap();
        let path = write(root.path(), "core", &keys[1..]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with("boot.\nssh-ed25519 B two\n"), "{text}");
        for name in ["", "..", "../core", "a/b", "-a", "a\nb"] {
            assert!(write(root.path(), name, &keys).is_err(), "{name:?}");
        }
    }
}
