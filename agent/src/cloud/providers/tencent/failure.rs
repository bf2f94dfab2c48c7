//! What Tencent Cloud's error codes mean: "Common error codes" and those of the VPC API's actions.

use super::wire;
use crate::cloud::providers::asked::{Asked, Meaning, Refusal};

/// A call of the VPC API.
pub(super) const fn asked<'a>(
    call: &'static str,
    permission: &'static str,
    object: &'a str,
) -> Asked<'a> {
    Asked {
        call,
        permission,
        // As the console names it; 50 unless raised.
        quota: "routing policies per route table",
        object,
    }
}

/// The refusal in an answer.
pub(super) fn refusal(error: wire::Refusal) -> Refusal {
    Refusal {
        meaning: meaning(&error.code),
        code: error.code,
        message: error.message,
        retry_after: None,
    }
}

fn meaning(code: &str) -> Meaning {
    match code {
        // Two routes to one destination are equal-cost paths, which machines cannot be.
        "InvalidParameterValue.Duplicate" | "UnsupportedOperation.Ecmp" => return Meaning::Exists,
        "AuthFailure.UnauthorizedOperation" => return Meaning::Denied,
        _ => (),
    }
    match code.split('.').next().unwrap_or_default() {
        "RequestLimitExceeded" => Meaning::Throttled,
        "InternalError"
        | "InternalServerError"
        | "ResourceInUse"
        | "ResourceUnavailable"
        | "ServiceUnavailable" => Meaning::Busy,
        "LimitExceeded" | "ResourceInsufficient" => Meaning::Quota,
        "ResourceNotFound" => Meaning::Missing,
        "UnauthorizedOperation" => Meaning::Denied,
        "AuthFailure" => Meaning::BadKey,
        _ => Meaning::Else,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From "Common error codes" and the tables of `CreateRoutes`, `DeleteRoutes` and `ReplaceRoutes`
    /// (tencentcloud.com/document/api/215), and the constants in tencentcloud-sdk-go's `vpc/v20170312/errors.go`.
    #[test]
    fn the_documented_codes_have_their_meaning() {
        for (code, expected) in [
            ("RequestLimitExceeded", Meaning::Throttled),
            ("RequestLimitExceeded.UinLimitExceeded", Meaning::Throttled),
            ("InternalError", Meaning::Busy),
            ("InternalServerError", Meaning::Busy),
            ("ResourceUnavailable", Meaning::Busy),
            ("LimitExceeded", Meaning::Quota),
            ("InvalidParameterValue.Duplicate", Meaning::Exists),
            ("UnsupportedOperation.Ecmp", Meaning::Exists),
            ("ResourceNotFound", Meaning::Missing),
            ("UnauthorizedOperation", Meaning::Denied),
            ("AuthFailure.UnauthorizedOperation", Meaning::Denied),
            ("AuthFailure.SignatureFailure", Meaning::BadKey),
            ("AuthFailure.TokenFailure", Meaning::BadKey),
            ("AuthFailure.SignatureExpire", Meaning::BadKey),
            ("AuthFailure.SecretIdNotFound", Meaning::BadKey),
            ("InvalidParameterValue.Malformed", Meaning::Else),
            ("UnsupportedOperation.SystemRoute", Meaning::Else),
        ] {
            assert_eq!(meaning(code), expected, "{code}");
        }
    }
}
