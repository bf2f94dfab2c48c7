//! What keeps the overlay from being connected or programmed.

use thiserror::Error;

use crate::cluster::lease::SubnetKey;
use crate::host::netlink::{Failure, KernelError};
use crate::host::open::OpenError;
use crate::host::{privileges, underlay};
use crate::plan::backend::BackendConfigError;
use crate::telemetry::status::{Code, Coded};

/// Why the underlay and the backend cannot be used yet.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// No usable interface or address.
    #[error("failed to find the underlay interface")]
    Underlay(#[from] underlay::Error),
    /// The network config has an unknown backend or unknown options.
    #[error("unsupported network config")]
    Config(#[from] BackendConfigError),
    /// The backend cannot be set up on this host.
    #[error("failed to set up the backend")]
    Backend(#[from] OpenError),
    /// The privileges that the backend does not need cannot be dropped.
    #[error("failed to set the privileges of this process")]
    Privileges(#[from] privileges::Error),
    /// The new network config does not allow the subnet that the host's containers use.
    #[error(
        "the new network config ({networks}) does not allow this host's subnet {own}; to get another subnet, restart the agent, then the containers"
    )]
    Renumbers {
        /// The host's subnets.
        own: SubnetKey,
        /// The new networks.
        networks: String,
    },
}

impl ConnectError {
    /// Whether a retry may help although the network config stays the same.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Underlay(_) | Self::Backend(_))
    }
}

/// What could not be programmed. All of it is retried.
#[derive(Debug, Error)]
pub(crate) enum Failed {
    /// The kernel could not be queried.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel refused some changes.
    #[error("{total} kernel changes failed, the first: {first}")]
    Changes {
        /// The first that failed.
        first: Box<Failure>,
        /// How many failed.
        total: usize,
        /// Whether none of them concerns the host's own device and address.
        peers_only: bool,
        /// Whether all of them are conflicts with other programs' objects.
        conflicts: bool,
    },
}

impl Failed {
    /// Whether the host itself is on the overlay, and only some peers are not reachable yet.
    pub(crate) fn peers_only(&self) -> bool {
        matches!(
            self,
            Self::Changes {
                peers_only: true,
                ..
            }
        )
    }

    /// Whether a retry is useless; the monitor and the next full pass notice when that changes.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Changes {
                conflicts: true,
                ..
            }
        )
    }
}

impl Coded for ConnectError {
    fn code(&self) -> Code {
        match self {
            Self::Underlay(error) => error.code(),
            Self::Config(error) => error.code(),
            Self::Backend(error) => error.code(),
            Self::Privileges(error) => error.code(),
            Self::Renumbers { .. } => Code::SubnetOutsideNetwork,
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Underlay(error) => error.object(),
            Self::Config(error) => error.object(),
            Self::Backend(error) => error.object(),
            Self::Privileges(error) => error.object(),
            Self::Renumbers { own, .. } => Some(own.to_string()),
        }
    }
}

impl Coded for Failed {
    fn code(&self) -> Code {
        match self {
            Self::Kernel(error) => error.code(),
            Self::Changes { first, .. } => first.code(),
        }
    }

    fn object(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => error.object(),
            Self::Changes { first, .. } => first.object(),
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Self::Kernel(error) => error.detail(),
            Self::Changes { first, .. } => first.detail(),
        }
    }
}
