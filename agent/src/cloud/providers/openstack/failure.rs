//! What Neutron's errors mean: by HTTP status, and by the names of its exceptions.

use super::wire::Failed;
use crate::cloud::providers::asked::{Asked, Meaning, Refusal};
use crate::cloud::transport::Answer;

/// A call of Neutron.
pub(super) const fn asked<'a>(
    call: &'static str,
    permission: &'static str,
    object: &'a str,
) -> Asked<'a> {
    Asked {
        call,
        permission,
        // Of neutron.conf; 30 unless raised.
        quota: "max_routes, the extra routes of a router,",
        object,
    }
}

/// The refusal in an answer that is no success.
pub(super) fn refusal(answer: &Answer) -> Refusal {
    let failed: Failed = serde_json::from_slice(&answer.body).unwrap_or_default();
    let kind = failed.error.r#type;
    let meaning = meaning(answer.status, &kind);
    Refusal::of(answer, meaning, kind, failed.error.message)
}

fn meaning(status: u16, kind: &str) -> Meaning {
    match (status, kind) {
        (_, "RoutesExhausted" | "OverQuota") => Meaning::Quota,
        // Middleware for rate limits answers 413, as Nova did.
        (413 | 429, _) => Meaning::Throttled,
        (401, _) => Meaning::BadKey,
        (403, _) => Meaning::Denied,
        (404, _) => Meaning::Missing,
        // Another change was faster.
        (409 | 412, _) => Meaning::Busy,
        (500.., _) => Meaning::Busy,
        _ => Meaning::Else,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From neutron-lib's `exceptions` (`extraroute`, `allowedaddresspairs`), Neutron's `RevisionNumberConstraintFailed`,
    /// and "Networking API v2.0".
    #[test]
    fn the_documented_errors_have_their_meaning() {
        for (status, kind, expected) in [
            (400, "RoutesExhausted", Meaning::Quota),
            (409, "OverQuota", Meaning::Quota),
            (400, "InvalidRoutes", Meaning::Else),
            (400, "AddressPairsExhausted", Meaning::Else),
            (412, "RevisionNumberConstraintFailed", Meaning::Busy),
            (409, "RouterInterfaceInUseByRoute", Meaning::Busy),
            (404, "RouterNotFound", Meaning::Missing),
            (403, "PolicyNotAuthorized", Meaning::Denied),
            (401, "", Meaning::BadKey),
            (429, "", Meaning::Throttled),
            (413, "", Meaning::Throttled),
            (503, "", Meaning::Busy),
        ] {
            assert_eq!(meaning(status, kind), expected, "{status} {kind}");
        }
    }
}
