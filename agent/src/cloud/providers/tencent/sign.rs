//! Tencent Cloud's signature TC3-HMAC-SHA256: "Signature v3".

use std::time::{Duration, UNIX_EPOCH};

use super::super::access_key::AccessKey;
use crate::base::time::rfc3339;
use crate::cloud::sign::{hex, hmac_sha256, sha256_hex};

/// The name of the algorithm.
const ALGORITHM: &str = "TC3-HMAC-SHA256";

/// The content type of all calls, exactly as it is signed.
const JSON: &str = "application/json; charset=utf-8";

/// One call of an action.
pub(super) struct Call<'a> {
    pub(super) host: &'a str,
    /// The product, which is also the first part of the host's name.
    pub(super) service: &'a str,
    pub(super) action: &'a str,
    pub(super) version: &'a str,
    pub(super) region: &'a str,
    /// JSON.
    pub(super) body: &'a str,
    /// Seconds since 1970. The server refuses a call that is five minutes off its clock.
    pub(super) now: u64,
}

impl Call<'_> {
    /// The headers of the request but `Host`, the signature among them.
    pub(super) fn headers(&self, key: &AccessKey) -> Vec<(&'static str, String)> {
        let timestamp = self.now.to_string();
        let mut headers = vec![
            ("content-type", JSON.to_owned()),
            ("x-tc-action", self.action.to_owned()),
            ("x-tc-version", self.version.to_owned()),
            ("x-tc-region", self.region.to_owned()),
            ("x-tc-timestamp", timestamp.clone()),
            // Else messages are in Chinese.
            ("x-tc-language", "en-US".to_owned()),
        ];
        if let Some(token) = &key.token {
            headers.push(("x-tc-token", token.expose().to_owned()));
        }
        headers.push(("authorization", self.authorization(key, &timestamp)));
        headers
    }

    fn authorization(&self, key: &AccessKey, timestamp: &str) -> String {
        let names = "content-type;host;x-tc-action";
        let canonical = format!(
            "POST\n/\n\ncontent-type:{JSON}\nhost:{}\nx-tc-action:{}\n\n{names}\n{}",
            self.host,
            self.action.to_ascii_lowercase(),
            sha256_hex(self.body.as_bytes()),
        );
        let time = rfc3339(UNIX_EPOCH + Duration::from_secs(self.now));
        let day = time.split_once('T').map_or("", |(day, _)| day);
        let scope = format!("{day}/{}/tc3_request", self.service);
        let text = format!(
            "{ALGORITHM}\n{timestamp}\n{scope}\n{}",
            sha256_hex(canonical.as_bytes())
        );
        let first = format!("TC3{}", key.secret.expose());
        let parts = [day, self.service, "tc3_request", &text];
        let code = parts.iter().fold(first.into_bytes(), |code, part| {
            hmac_sha256(&code, part.as_bytes())
        });
        let signature = hex(&code);
        format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            key.id
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    /// The example of "Signature v3" (tencentcloud.com/document/product/267/37447 and others), which is signed with the
    /// masked key that it shows; as well in the tests of other clients.
    #[test]
    fn the_documentations_example_is_signed_alike() {
        let call = Call {
            host: "cvm.tencentcloudapi.com",
            service: "cvm",
            action: "DescribeInstances",
            version: "2017-03-12",
            region: "ap-guangzhou",
            body: r#"{"Limit": 1, "Filters": [{"Values": ["\u672a\u547d\u540d"], "Name": "instance-name"}]}"#,
            now: 1_551_113_065,
        };
        let mut key = AccessKey::new(
            "AKIDz8krbsJ5yKBZQpn74WFkmLPx3*******".to_owned(),
            "Gu5t9xGARNpq86cd98joQYCN3*******".to_owned(),
            None,
        );
        let headers = call.headers(&key);
        assert_eq!(
            headers.last().unwrap().1,
            "TC3-HMAC-SHA256 Credential=AKIDz8krbsJ5yKBZQpn74WFkmLPx3*******/2019-02-25/cvm/tc3_request, SignedHeaders=content-type;host;x-tc-action, Signature=be4f67d323c78ab9acb7395e43c0dbcf822a9cfac32fea2449a7bc7726b770a3"
        );
        assert!(headers.contains(&("x-tc-timestamp", "1551113065".to_owned())));
        key.token = Some(Secret::new("token".to_owned()));
        let headers = call.headers(&key);
        assert!(headers.contains(&("x-tc-token", "token".to_owned())));
    }
}
