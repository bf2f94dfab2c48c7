//! This node's identity on the overlay (MAC address or key), stored in the state directory.

pub(crate) mod vxlan;
pub(crate) mod wireguard;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use crate::plan::wireguard_key::KeyError;

/// The MAC address or key cannot be read, generated or stored.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file exists but cannot be read.
    #[error("failed to read {what} from {}", path.display())]
    Read {
        /// MAC address or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file named by the administrator holds no valid key; it is not overwritten.
    #[error("failed to use the private key in {}, set by {}", path.display(), wireguard::VARIABLE)]
    DamagedKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The kernel returned no random bytes.
    #[error("failed to generate {what}: the kernel returned no random bytes")]
    Random {
        /// MAC address or key.
        what: &'static str,
    },
    /// The file cannot be written.
    #[error("failed to save {what} in {}", path.display())]
    Write {
        /// MAC address or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The text of a file; `None` if there is no file.
fn read(what: &'static str, file: &Path) -> Result<Option<String>, IdentityError> {
    match fs::read(file) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Read {
            what,
            path: file.to_owned(),
            source,
        }),
    }
}

fn write_error(what: &'static str, file: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = file.to_owned();
    move |source| IdentityError::Write { what, path, source }
}

/// The kernel's random numbers (`getrandom()`).
pub(super) fn random<const LEN: usize>(what: &'static str) -> Result<[u8; LEN], IdentityError> {
    let mut bytes = [0; LEN];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| IdentityError::Random { what })?;
    Ok(bytes)
}
