//! What Aliyun's error codes mean: "Error codes" of the VPC API's operations and the common ones.

use super::wire;
use crate::cloud::providers::asked::{Asked, Meaning, Refusal};
use crate::cloud::transport::Answer;

/// A call of the VPC API.
pub(super) const fn asked<'a>(
    call: &'static str,
    permission: &'static str,
    object: &'a str,
) -> Asked<'a> {
    Asked {
        call,
        permission,
        // As Quota Center names it; 200 unless raised.
        quota: "custom routes per route table",
        object,
    }
}

/// The refusal in an answer whose status is not 200.
pub(super) fn refusal(answer: &Answer) -> Refusal {
    let wire::Refusal { code, message } = serde_json::from_slice(&answer.body).unwrap_or_default();
    let meaning = meaning(answer.status, &code);
    Refusal::of(answer, meaning, code, message)
}

fn meaning(status: u16, code: &str) -> Meaning {
    match code {
        "InvalidCIDRBlock.Duplicate"
        | "InvalidRouteEntry.Duplicate"
        | "RouterEntryConflict.Duplicated"
        | "Duplicated.VpcNextHop" => return Meaning::Exists,
        "TaskConflict"
        | "LastTokenProcessing"
        | "OperationFailed.DistibuteLock"
        | "SignatureNonceUsed" => return Meaning::Busy,
        "InvalidRouteEntry" => return Meaning::Missing,
        _ => (),
    }
    match code.split('.').next().unwrap_or_default() {
        "Throttling" => Meaning::Throttled,
        "QuotaExceeded" | "CountLimitExceed" => Meaning::Quota,
        "Forbidden" | "NoPermission" | "UnauthorizedOperation" => Meaning::Denied,
        "InvalidAccessKeyId"
        | "InvalidAccessKeySecret"
        | "InvalidSecurityToken"
        | "MissingSecurityToken"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "InvalidTimeStamp" => Meaning::BadKey,
        // `IncorrectRouteEntryStatus`, `IncorrectStatus.CenRelation`, …
        first if first.starts_with("Incorrect") => Meaning::Busy,
        "ResourceNotFound" => Meaning::Missing,
        _ if code.ends_with(".NotFound") => Meaning::Missing,
        _ => match status {
            403 => Meaning::Denied,
            429 => Meaning::Throttled,
            500.. => Meaning::Busy,
            _ => Meaning::Else,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables of error codes of `CreateRouteEntry` and `DeleteRouteEntry`, of "Common errors", and of issues:
    /// aliyun/terraform-provider-alicloud#10092, rancher/machine's driver aliyunecs.
    #[test]
    fn the_documented_codes_have_their_meaning() {
        for (status, code, expected) in [
            (400, "Throttling.User", Meaning::Throttled),
            (400, "Throttling", Meaning::Throttled),
            (429, "Whatever", Meaning::Throttled),
            (400, "TaskConflict", Meaning::Busy),
            (400, "IncorrectRouteEntryStatus", Meaning::Busy),
            (400, "OperationFailed.DistibuteLock", Meaning::Busy),
            (500, "InternalError", Meaning::Busy),
            (503, "ServiceUnavailable", Meaning::Busy),
            (400, "QuotaExceeded", Meaning::Quota),
            (400, "InvalidCIDRBlock.Duplicate", Meaning::Exists),
            (400, "RouterEntryConflict.Duplicated", Meaning::Exists),
            (400, "Duplicated.VpcNextHop", Meaning::Exists),
            (404, "InvalidRouteTableId.NotFound", Meaning::Missing),
            (400, "InvalidRouteEntry", Meaning::Missing),
            (403, "Forbidden.RAM", Meaning::Denied),
            (403, "NoPermission", Meaning::Denied),
            (404, "InvalidAccessKeyId.NotFound", Meaning::BadKey),
            (400, "SignatureDoesNotMatch", Meaning::BadKey),
            (400, "InvalidSecurityToken.Expired", Meaning::BadKey),
            (400, "InvalidCidrBlock", Meaning::Else),
            (400, "IllegalParam.NextHopId", Meaning::Else),
        ] {
            assert_eq!(meaning(status, code), expected, "{status} {code}");
        }
    }
}
