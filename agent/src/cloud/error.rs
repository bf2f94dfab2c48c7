//! Why a provider did not do what it was asked.

use std::time::Duration;

use thiserror::Error;

/// A call of a provider's API failed. No text has a secret in it.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum CloudError {
    /// No connection, or no answer in time.
    #[error("{server}: {problem}")]
    Unreachable {
        /// Scheme and host.
        server: String,
        /// Why.
        problem: String,
    },
    /// Too many calls. The worker waits as long as the provider asks, or else longer each time.
    #[error("{call}: the provider asks to slow down ({code})")]
    Throttled {
        /// The API call.
        call: &'static str,
        /// The provider's code, or the HTTP status.
        code: String,
        /// How long to wait, if the provider said.
        retry_after: Option<Duration>,
    },
    /// The provider has a fault of its own (HTTP 5xx), or is busy with another change of the same object.
    #[error("{call}: the provider cannot do this now ({code})")]
    Unavailable {
        /// The API call.
        call: &'static str,
        /// The provider's code, or the HTTP status.
        code: String,
        /// How long to wait, if the provider said.
        retry_after: Option<Duration>,
    },
    /// The role of this instance may not do this.
    #[error("{call}: not allowed; give this instance's role the permission {permission}")]
    Denied {
        /// The API call.
        call: &'static str,
        /// The permission as the provider's policies name it: `ec2:CreateRoute`.
        permission: &'static str,
    },
    /// There are no credentials, or the provider does not accept them.
    #[error("no usable credentials: {problem}")]
    Credentials {
        /// What is missing or wrong, and where it was looked for. Without the credentials themselves.
        problem: String,
    },
    /// The table is full.
    #[error(
        "{call}: {quota} is used up; remove routes that nobody needs, or ask the provider to raise it"
    )]
    Quota {
        /// The API call.
        call: &'static str,
        /// The quota as the provider names it: `routes per route table`.
        quota: &'static str,
    },
    /// A change was accepted, but does not show yet: look again before changing anything.
    #[error("{what} does not show yet")]
    NotYet {
        /// The route or the operation.
        what: String,
    },
    /// The table, the instance or the route does not exist. For a removal, that is success.
    #[error("{call}: {what} does not exist")]
    NotFound {
        /// The API call.
        call: &'static str,
        /// What was named.
        what: String,
    },
    /// Somebody else added a route to this destination since the table was listed.
    #[error("{call}: there is already a route to {destination}")]
    Exists {
        /// The API call.
        call: &'static str,
        /// The destination.
        destination: String,
    },
    /// This instance, its network or the settings do not fit the backend.
    #[error("{0}")]
    Unfit(String),
    /// The answer cannot be read.
    #[error("{call}: unexpected answer: {problem}")]
    Malformed {
        /// The API call.
        call: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Any other refusal.
    #[error("{call}: refused: {code}: {message}")]
    Refused {
        /// The API call.
        call: &'static str,
        /// The provider's code, or the HTTP status.
        code: String,
        /// The provider's sentence, shortened.
        message: String,
    },
}

impl CloudError {
    /// Whether the same call may succeed soon without anybody's doing.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Throttled { .. }
                | Self::Unavailable { .. }
                | Self::NotYet { .. }
                | Self::Exists { .. }
                | Self::Malformed { .. }
        )
    }

    /// How long the provider asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }
}

/// A provider's message as it may be shown: one line of at most 300 characters.
pub(crate) fn shown(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}
