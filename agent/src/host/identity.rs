//! What this node is known by to its peers, kept in the state directory.

pub(crate) mod vxlan;
pub(crate) mod wireguard;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::plan::wireguard_key::KeyError;

/// What the peers know this node by cannot be read, made or kept.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The file exists but does not open.
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
    /// The file that was asked for holds something else, which is not overwritten.
    #[error("the private key in {}, which {} names, is unusable", path.display(), wireguard::VARIABLE)]
    DamagedKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
    /// The kernel gives no random bytes.
    #[error("failed to make {what}: the kernel gives no random bytes")]
    Random {
        /// MAC address or key.
        what: &'static str,
    },
    /// The file cannot be written.
    #[error("failed to keep {what} in {}", path.display())]
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
