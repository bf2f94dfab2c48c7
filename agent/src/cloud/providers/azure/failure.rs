//! What the resource manager's error codes mean: "Resolve common errors", "Throttling Resource Manager requests", and
//! Microsoft.Network's.

use super::wire::{self, Failed};
use crate::cloud::providers::asked::{Asked, Meaning, Refusal};
use crate::cloud::transport::Answer;

/// A call of the resource manager.
pub(super) const fn asked<'a>(
    call: &'static str,
    permission: &'static str,
    object: &'a str,
) -> Asked<'a> {
    Asked {
        call,
        permission,
        // As `az network list-usages` names it.
        quota: "RoutesPerRouteTable",
        object,
    }
}

/// The refusal in an answer that is no success.
pub(super) fn refusal(answer: &Answer) -> Refusal {
    let Failed { error } = serde_json::from_slice(&answer.body).unwrap_or_default();
    let meaning = meaning(answer.status, &error.code);
    Refusal::of(answer, meaning, error.code, error.message)
}

/// The refusal of an operation that went on after it was accepted.
pub(super) fn refused(status: u16, error: wire::Refusal) -> Refusal {
    let meaning = meaning(status, &error.code);
    Refusal::with_status(status, meaning, error.code, error.message)
}

fn meaning(status: u16, code: &str) -> Meaning {
    let has = |part: &str| code.contains(part);
    match code {
        "AnotherOperationInProgress"
        | "RetryableError"
        | "RetryableErrorDueToAnotherOperation"
        | "OperationPreempted"
        | "ReferencedResourceNotProvisioned"
        | "Canceled"
        | "CanceledAndSupersededDueToAnotherOperation" => return Meaning::Busy,
        "TooManyRequests" => return Meaning::Throttled,
        "AuthorizationFailed" | "LinkedAuthorizationFailed" => return Meaning::Denied,
        _ => (),
    }
    match status {
        401 => Meaning::BadKey,
        403 => Meaning::Denied,
        404 => Meaning::Missing,
        429 => Meaning::Throttled,
        500.. => Meaning::Busy,
        // By resource: `…LimitReached`, `…ExceedsLimit…`, `QuotaExceeded`.
        _ if has("Limit") || has("Quota") => Meaning::Quota,
        409 | 412 => Meaning::Busy,
        _ if has("Conflict") || has("Duplicate") || has("AlreadyExist") => Meaning::Exists,
        _ => Meaning::Else,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From "Resolve common errors" of the resource manager, "Throttling Resource Manager requests", and issues:
    /// kubernetes/kubernetes#41671, hashicorp/terraform-provider-azurerm#3213.
    #[test]
    fn the_documented_codes_have_their_meaning() {
        for (status, code, expected) in [
            (429, "TooManyRequests", Meaning::Throttled),
            (429, "SubscriptionRequestsThrottled", Meaning::Throttled),
            (429, "RetryableErrorDueToAnotherOperation", Meaning::Busy),
            (409, "AnotherOperationInProgress", Meaning::Busy),
            (409, "Conflict", Meaning::Busy),
            (412, "PreconditionFailed", Meaning::Busy),
            (500, "InternalServerError", Meaning::Busy),
            (
                400,
                "ResourceCountExceedsLimitDueToTemplate",
                Meaning::Quota,
            ),
            (400, "QuotaExceeded", Meaning::Quota),
            (403, "AuthorizationFailed", Meaning::Denied),
            (403, "LinkedAuthorizationFailed", Meaning::Denied),
            (401, "ExpiredAuthenticationToken", Meaning::BadKey),
            (404, "ResourceNotFound", Meaning::Missing),
            (400, "InvalidRequestFormat", Meaning::Else),
        ] {
            assert_eq!(meaning(status, code), expected, "{status} {code}");
        }
    }
}
