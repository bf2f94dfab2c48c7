//! This node's identity on the overlay (MAC address or key), stored in the state directory.

pub(crate) mod vxlan;
pub(crate) mod wireguard;

use std::io;
use std::path::PathBuf;

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
