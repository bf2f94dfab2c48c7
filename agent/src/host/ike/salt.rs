//! What makes this host's names for secrets tell nothing to others.

use std::path::Path;

use tracing::debug;

use crate::base::atomic_file::replace_soon;
use crate::base::logging::chain;
use crate::host::identity::random;

/// The file, beside the control socket: it lives as long as charon's memory may.
const FILE: &str = "ipsec.salt";

/// Random bytes that only root can read.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Salt(pub(super) [u8; 16]);

impl Salt {
    /// The bytes in that directory, made if they are not there. If they can be neither read nor kept, a later run takes
    /// all secrets for new ones, and the nodes prove once more that they have them.
    pub(super) fn kept_in(directory: &Path) -> Self {
        let path = directory.join(FILE);
        if let Some(kept) = std::fs::read(&path).ok().and_then(|it| it.try_into().ok()) {
            return Self(kept);
        }
        let bytes = match random("the salt of IPsec secrets' names") {
            Ok(bytes) => bytes,
            Err(error) => {
                debug!("{}", chain(&error));
                return Self::default();
            }
        };
        if let Err(error) = replace_soon(&path, &bytes, 0o600) {
            debug!(path = %path.display(), "failed to keep the salt of IPsec secrets' names: {error}");
        }
        Self(bytes)
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_kept_for_root_alone_and_a_torn_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let salt = Salt::kept_in(directory.path());
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(salt == Salt::kept_in(directory.path()));
        std::fs::write(&path, "torn").unwrap();
        let other = Salt::kept_in(directory.path());
        assert!(other != salt && other == Salt::kept_in(directory.path()));
    }
}
