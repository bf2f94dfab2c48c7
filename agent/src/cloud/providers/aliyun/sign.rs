//! Aliyun's signature ACS3-HMAC-SHA256: "V3 request structure and signature", RPC style, where an operation is a header
//! and its parameters are the query.

use std::time::{Duration, UNIX_EPOCH};

use super::super::access_key::AccessKey;
use crate::base::time::rfc3339;
use crate::cloud::sign::{form, hex, hmac_sha256, sha256_hex};

/// The name of the algorithm.
const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// One call of an operation.
pub(super) struct Call<'a> {
    pub(super) host: &'a str,
    pub(super) action: &'a str,
    pub(super) version: &'a str,
    /// As [`query`] writes it.
    pub(super) query: &'a str,
    /// Seconds since 1970. The server refuses a call that is 15 minutes off its clock.
    pub(super) now: u64,
    /// Never the same twice: the server refuses a repetition.
    pub(super) nonce: &'a str,
}

impl Call<'_> {
    /// The headers of the request but `Host`, the signature among them.
    pub(super) fn headers(&self, key: &AccessKey) -> Vec<(&'static str, String)> {
        let nothing = sha256_hex(b"");
        // The names are signed in alphabetical order.
        let mut headers = vec![
            ("x-acs-action", self.action.to_owned()),
            ("x-acs-content-sha256", nothing.clone()),
            (
                "x-acs-date",
                rfc3339(UNIX_EPOCH + Duration::from_secs(self.now)),
            ),
        ];
        if let Some(token) = &key.token {
            headers.push(("x-acs-security-token", token.expose().to_owned()));
        }
        headers.push(("x-acs-signature-nonce", self.nonce.to_owned()));
        headers.push(("x-acs-version", self.version.to_owned()));
        let mut lines = format!("host:{}\n", self.host);
        let mut names = "host".to_owned();
        for (name, value) in &headers {
            lines += &format!("{name}:{value}\n");
            names += &format!(";{name}");
        }
        let canonical = format!("POST\n/\n{}\n{lines}\n{names}\n{nothing}", self.query);
        let text = format!("{ALGORITHM}\n{}", sha256_hex(canonical.as_bytes()));
        let signature = hex(&hmac_sha256(
            key.secret.expose().as_bytes(),
            text.as_bytes(),
        ));
        let authorization = format!(
            "{ALGORITHM} Credential={},SignedHeaders={names},Signature={signature}",
            key.id
        );
        headers.push(("authorization", authorization));
        headers
    }
}

/// The parameters as a query, in the order in which they are signed.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let mut parameters = parameters.to_vec();
    parameters.sort_unstable();
    form(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    /// The example of "V3 request structure and signature" (alibabacloud.com/help/en/sdk, as of 2025-02-05).
    #[test]
    fn the_documentations_example_is_signed_alike() {
        let parameters = [
            ("RegionId", "cn-shanghai"),
            (
                "ImageId",
                "win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd",
            ),
        ];
        let query = query(&parameters);
        let call = Call {
            host: "ecs.cn-shanghai.aliyuncs.com",
            action: "RunInstances",
            version: "2014-05-26",
            query: &query,
            // 2023-10-26T10:22:32Z
            now: 1_698_315_752,
            nonce: "3156853299f313e23d1673dc12e1703d",
        };
        let mut key = AccessKey::new(
            "YourAccessKeyId".to_owned(),
            "YourAccessKeySecret".to_owned(),
            None,
        );
        let headers = call.headers(&key);
        assert_eq!(
            headers.last().unwrap().1,
            "ACS3-HMAC-SHA256 Credential=YourAccessKeyId,SignedHeaders=host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"
        );
        // A role's token is sent and signed.
        key.token = Some(Secret::new("token".to_owned()));
        let headers = call.headers(&key);
        assert!(headers.contains(&("x-acs-security-token", "token".to_owned())));
        assert!(headers.last().unwrap().1.contains(";x-acs-security-token;"));
    }

    #[test]
    fn parameters_are_sorted_and_encoded_as_rfc_3986_says() {
        let parameters = [
            ("RouteTableId", "vtb-1"),
            ("DestinationCidrBlock", "10.5.1.0/24"),
            ("A~b", "a b*ü+"),
        ];
        assert_eq!(
            query(&parameters),
            "A~b=a%20b%2A%C3%BC%2B&DestinationCidrBlock=10.5.1.0%2F24&RouteTableId=vtb-1"
        );
    }
}
