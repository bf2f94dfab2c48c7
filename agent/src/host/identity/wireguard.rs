//! This node's WireGuard private key.
//!
//! It must survive restarts and reboots: with a new one, packets are dropped until every peer has learned the public
//! key. flannel keeps it in `/run`, where it is lost at a reboot, unless the environment variable `WIREGUARD_KEY_FILE`
//! names another file. That variable is honoured here, and so is a key that flannel left in `/run` on this host: the
//! peers know it.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::IdentityError;
use crate::base::atomic_file;
use crate::plan::backend::wireguard::KEY_FILE;
use crate::plan::wireguard_key::{KeyError, LEN, PrivateKey};

/// flannel's variable.
pub(super) const VARIABLE: &str = "WIREGUARD_KEY_FILE";

/// flannel's key file.
const FLANNEL_KEY_FILE: &str = "/run/flannel/wgkey";

/// Readable by root only.
const MODE: u32 = 0o600;

/// Its name in errors.
const WHAT: &str = "the private key";

/// The files that may hold the key.
#[derive(Debug)]
pub(crate) struct Files {
    /// The one named by [`VARIABLE`].
    named: Option<PathBuf>,
    own: PathBuf,
    flannel: PathBuf,
}

impl Files {
    /// From this process's environment.
    pub(crate) fn of_environment(state_dir: &Path) -> Self {
        Self::new(state_dir, std::env::var_os(VARIABLE))
    }

    /// `named` is the value of [`VARIABLE`]; an empty one counts as unset.
    fn new(state_dir: &Path, named: Option<OsString>) -> Self {
        Self {
            named: named.filter(|path| !path.is_empty()).map(PathBuf::from),
            own: state_dir.join(KEY_FILE),
            flannel: FLANNEL_KEY_FILE.into(),
        }
    }

    /// The node's key, from the file named by [`VARIABLE`]; otherwise from the state directory; otherwise flannel's;
    /// otherwise a new one. A key that was not in its file yet is stored there.
    pub(crate) fn key(&self) -> Result<PrivateKey, IdentityError> {
        if let Some(named) = &self.named {
            return match read(named)? {
                Some(Ok(key)) => Ok(key),
                Some(Err(source)) => Err(IdentityError::DamagedKey {
                    path: named.clone(),
                    source,
                }),
                None => self.create(named),
            };
        }
        match read(&self.own)? {
            Some(Ok(key)) => Ok(key),
            Some(Err(error)) => {
                let file = self.own.display();
                warn!(file = %file, "the private key is damaged ({error}); generating a new one");
                self.create(&self.own)
            }
            None => self.create(&self.own),
        }
    }

    /// Generates a new key, because an older node has the current one. A key named by [`VARIABLE`] stays: it belongs to
    /// the administrator.
    pub(crate) fn renew(&self) -> Result<PrivateKey, IdentityError> {
        if let Some(named) = &self.named {
            warn!(
                file = %named.display(),
                "another node uses this private key too, so peers reach only one of the two: put a new key into the file that {VARIABLE} names"
            );
            return self.key();
        }
        let key = random()?;
        store(&key, &self.own)?;
        Ok(key)
    }

    /// Stores a key in a file that has none: flannel's or a new one.
    fn create(&self, file: &Path) -> Result<PrivateKey, IdentityError> {
        let key = match read(&self.flannel) {
            Ok(Some(Ok(key))) => {
                info!(from = %self.flannel.display(), to = %file.display(), "took over flannel's private key");
                key
            }
            Ok(None) => random()?,
            Ok(Some(Err(_))) | Err(_) => {
                warn!(file = %self.flannel.display(), "flannel's private key is unusable; generating a new one");
                random()?
            }
        };
        store(&key, file)?;
        Ok(key)
    }
}

/// A new key, as from `wg genkey`.
fn random() -> Result<PrivateKey, IdentityError> {
    Ok(PrivateKey::new(super::random::<LEN>(WHAT)?))
}

fn store(key: &PrivateKey, file: &Path) -> Result<(), IdentityError> {
    // Replacing a file keeps its permissions, and a damaged key's file may have any.
    let close = || match fs::set_permissions(file, Permissions::from_mode(MODE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    close()
        .and_then(|()| atomic_file::replace(file, key.expose_text().as_bytes(), MODE))
        .map_err(super::write_error(WHAT, file))
}

/// The key in a file, or why it is unusable; `None` if there is no file.
fn read(file: &Path) -> Result<Option<Result<PrivateKey, KeyError>>, IdentityError> {
    let Some(text) = super::read(WHAT, file)? else {
        return Ok(None);
    };
    let others = fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode() & 0o077);
    if others != 0 {
        warn!(file = %file.display(), "users other than root can read the private key; run chmod 600 on it");
    }
    Ok(Some(text.parse()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, named: Option<&str>) -> Files {
        Files {
            flannel: dir.join("run/wgkey"),
            ..Files::new(&dir.join("state"), named.map(|name| dir.join(name).into()))
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn no_two_keys_are_alike() {
        assert_ne!(random().unwrap(), random().unwrap());
    }

    #[test]
    fn the_key_survives_and_is_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = files(dir.path(), None).key().unwrap();
        assert_eq!(files(dir.path(), None).key().unwrap(), key);
        let file = dir.path().join("state/wireguard.key");
        assert_eq!(mode(&file), 0o600);
        // As `wg genkey` and flannel write it, but for the newline of the former.
        assert_eq!(fs::read_to_string(&file).unwrap(), key.expose_text());
    }

    #[test]
    fn a_new_key_is_kept_unless_the_administrator_chose_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let first = files(dir.path(), None).key().unwrap();
        let second = files(dir.path(), None).renew().unwrap();
        assert_ne!(second, first);
        assert_eq!(files(dir.path(), None).key().unwrap(), second);
        let named = files(dir.path(), Some("named")).key().unwrap();
        assert_eq!(files(dir.path(), Some("named")).renew().unwrap(), named);
    }

    #[test]
    fn flannels_key_is_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = random().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        let file = dir.path().join("run/wgkey");
        fs::write(&file, theirs.expose_text() + "\n").unwrap();
        assert_eq!(files(dir.path(), None).key().unwrap(), theirs);
        // A reboot empties /run, and flannel may create a new key there.
        fs::remove_file(&file).unwrap();
        assert_eq!(files(dir.path(), None).key().unwrap(), theirs);
        fs::write(&file, random().unwrap().expose_text()).unwrap();
        assert_eq!(files(dir.path(), None).key().unwrap(), theirs);
    }

    #[test]
    fn the_file_that_is_asked_for_comes_first_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let own = files(dir.path(), None).key().unwrap();
        let named = files(dir.path(), Some("etc/key")).key().unwrap();
        assert_ne!(named, own);
        let file = dir.path().join("etc/key");
        assert_eq!(mode(&file), 0o600);
        assert_eq!(files(dir.path(), Some("etc/key")).key().unwrap(), named);

        fs::write(&file, "no key").unwrap();
        let error = files(dir.path(), Some("etc/key")).key().unwrap_err();
        assert!(error.to_string().contains("etc/key"), "{error}");
        assert!(!format!("{error:?}").contains("no key"), "{error:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "no key");

        let empty = Files::new(&dir.path().join("state"), Some(OsString::new()));
        assert_eq!(empty.key().unwrap(), own, "an empty variable is none");
    }

    #[test]
    fn a_damaged_key_is_replaced_and_closed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/wireguard.key");
        fs::create_dir(dir.path().join("state")).unwrap();
        for damage in ["", "AAAA", "\u{fffd}"] {
            fs::write(&file, damage).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
            let key = files(dir.path(), None).key().unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), key.expose_text());
            assert_eq!(mode(&file), 0o600);
        }
        // So is flannel's key in our file.
        fs::remove_file(&file).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/wgkey"), "damage").unwrap();
        assert!(files(dir.path(), None).key().is_ok());
    }

    #[test]
    fn an_unusable_directory_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state"), "").unwrap();
        let error = files(dir.path(), None).key().unwrap_err();
        assert!(error.to_string().contains("state/wireguard.key"), "{error}");
    }
}
