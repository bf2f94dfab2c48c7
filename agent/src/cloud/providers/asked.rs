//! What a provider was asked for, and the errors that its codes mean.

use std::time::Duration;

use crate::cloud::error::{CloudError, shown};
use crate::cloud::transport::Answer;

/// A call, for messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The API call.
    pub(super) call: &'static str,
    /// The permission as the provider's policies name it.
    pub(super) permission: &'static str,
    /// The quota that it may exceed, as the provider names it.
    pub(super) quota: &'static str,
    /// The table, the route or the destination.
    pub(super) object: &'a str,
}

/// A refusal in the provider's words.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) meaning: Meaning,
    pub(super) code: String,
    pub(super) message: String,
    /// How long the provider asks to wait.
    pub(super) retry_after: Option<Duration>,
}

impl Refusal {
    /// An answer's refusal. One without a code has its HTTP status instead.
    pub(super) fn of(answer: &Answer, meaning: Meaning, code: String, message: String) -> Self {
        Self {
            retry_after: answer.retry_after(),
            ..Self::with_status(answer.status, meaning, code, message)
        }
    }

    /// The same where there is no answer of its own.
    pub(super) fn with_status(
        status: u16,
        meaning: Meaning,
        code: String,
        message: String,
    ) -> Self {
        let code = match code {
            none if none.is_empty() => status.to_string(),
            code => code,
        };
        Self {
            meaning,
            code,
            message,
            retry_after: None,
        }
    }
}

/// What a provider's code means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// Too many calls.
    Throttled,
    /// Not now: another change is under way, or the provider has a fault.
    Busy,
    /// The table is full.
    Quota,
    /// There is such a route already.
    Exists,
    /// What was named does not exist.
    Missing,
    /// The role lacks a permission.
    Denied,
    /// The credentials are not accepted.
    BadKey,
    /// Anything else.
    Else,
}

impl Asked<'_> {
    /// The error that a refusal is.
    pub(super) fn error(&self, refusal: Refusal) -> CloudError {
        let Self {
            call,
            permission,
            quota,
            object,
        } = *self;
        let Refusal {
            meaning,
            code,
            message,
            retry_after,
        } = refusal;
        let code = shown(&code);
        match meaning {
            Meaning::Throttled => CloudError::Throttled {
                call,
                code,
                retry_after,
            },
            Meaning::Busy => CloudError::Unavailable {
                call,
                code,
                retry_after,
            },
            Meaning::Quota => CloudError::Quota { call, quota },
            Meaning::Exists => CloudError::Exists {
                call,
                destination: object.to_owned(),
            },
            Meaning::Missing => CloudError::NotFound {
                call,
                what: object.to_owned(),
            },
            Meaning::Denied => CloudError::Denied { call, permission },
            Meaning::BadKey => CloudError::Credentials {
                problem: format!("{call} does not accept them: {code}"),
            },
            Meaning::Else => CloudError::Refused {
                call,
                code,
                message: shown(&message),
            },
        }
    }
}

/// Success for a removal: what is not there need not be removed.
pub(super) fn gone<T>(removed: Result<T, CloudError>) -> Result<(), CloudError> {
    match removed {
        Ok(_) | Err(CloudError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_providers_code_is_one_short_line() {
        let asked = Asked {
            call: "CreateRoute",
            permission: "p",
            quota: "q",
            object: "10.5.1.0/24",
        };
        for meaning in [
            Meaning::Throttled,
            Meaning::Busy,
            Meaning::BadKey,
            Meaning::Else,
        ] {
            let refusal = Refusal {
                meaning,
                code: format!("Bad\nREADY=1 {}", "x".repeat(10_000)),
                message: String::new(),
                retry_after: None,
            };
            let told = asked.error(refusal).to_string();
            assert!(told.contains("Bad READY=1"), "{told}");
            assert!(!told.contains('\n') && told.len() < 500, "{told}");
        }
    }
}
