//! AWS Signature Version 4, as *Create a signed AWS API request* of the IAM User Guide specifies it.

use crate::cloud::providers::access_key::AccessKey;
use crate::cloud::sign::{hex, hmac_sha256, sha256_hex};

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// Percent-encoded.
    pub(super) path: &'a str,
    /// Percent-encoded pairs, sorted by name and value; empty for none.
    pub(super) query: &'a str,
    /// All headers that are signed, with lower-case names, sorted by them. `host` must be among them.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

/// Where a signature is good.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    /// `20150830T123600Z`, also in the header `x-amz-date`.
    pub(super) time: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Scope<'_> {
    fn text(&self) -> String {
        format!(
            "{}/{}/{}/aws4_request",
            self.date(),
            self.region,
            self.service
        )
    }

    fn date(&self) -> &str {
        self.time
            .split_once('T')
            .map_or(self.time, |(date, _)| date)
    }
}

/// The value of the header `Authorization`.
pub(super) fn authorization(signed: Signed<'_>, scope: Scope<'_>, keys: &AccessKey) -> String {
    let names: Vec<&str> = signed.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let canonical = canonical_request(signed, &names);
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{}\n{}\n{}",
        scope.time,
        scope.text(),
        sha256_hex(canonical.as_bytes())
    );
    let signature = hex(&hmac_sha256(&signing_key(scope, keys), to_sign.as_bytes()));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={signature}",
        keys.id,
        scope.text()
    )
}

fn canonical_request(signed: Signed<'_>, names: &str) -> String {
    let mut text = format!("{}\n{}\n{}\n", signed.method, signed.path, signed.query);
    for (name, value) in signed.headers {
        // Sequences of blanks count as one.
        let value: Vec<&str> = value.split_whitespace().collect();
        text.push_str(&format!("{name}:{}\n", value.join(" ")));
    }
    text.push_str(&format!("\n{names}\n{}", sha256_hex(signed.body)));
    text
}

fn signing_key(scope: Scope<'_>, keys: &AccessKey) -> Vec<u8> {
    let secret = format!("AWS4{}", keys.secret.expose());
    let mut key = secret.into_bytes();
    for part in [scope.date(), scope.region, scope.service, "aws4_request"] {
        key = hmac_sha256(&key, part.as_bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Secret;

    /// The credentials of AWS's documentation and of its test suite.
    fn keys() -> AccessKey {
        AccessKey {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            token: None,
        }
    }

    const SCOPE: Scope<'static> = Scope {
        time: "20150830T123600Z",
        region: "us-east-1",
        service: "service",
    };

    fn signature(signed: Signed<'_>, scope: Scope<'_>) -> String {
        let text = authorization(signed, scope, &keys());
        text.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    const HOST: (&str, &str) = ("host", "example.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");

    /// The suite `aws-sig-v4-test-suite` that AWS publishes; the names are its folders'.
    #[test]
    fn the_published_suite_is_signed_alike() {
        let plain = Signed {
            method: "GET",
            path: "/",
            query: "",
            headers: &[HOST, DATE],
            body: b"",
        };
        let post = Signed {
            method: "POST",
            ..plain
        };
        let form = ("content-type", "application/x-www-form-urlencoded");
        let cases = [
            (
                "get-vanilla",
                plain,
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key-case",
                Signed {
                    query: "Param1=value1&Param2=value2",
                    ..plain
                },
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "post-vanilla",
                post,
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                Signed {
                    headers: &[form, HOST, DATE],
                    body: b"Param1=value1",
                    ..post
                },
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ];
        for (name, signed, expected) in cases {
            assert_eq!(signature(signed, SCOPE), expected, "{name}");
        }
    }

    /// The example of the IAM User Guide: `ListUsers`.
    #[test]
    fn the_documentations_example_is_signed_alike() {
        let signed = Signed {
            method: "GET",
            path: "/",
            query: "Action=ListUsers&Version=2010-05-08",
            headers: &[
                (
                    "content-type",
                    "application/x-www-form-urlencoded; charset=utf-8",
                ),
                ("host", "iam.amazonaws.com"),
                DATE,
            ],
            body: b"",
        };
        let scope = Scope {
            service: "iam",
            ..SCOPE
        };
        assert_eq!(
            authorization(signed, scope, &keys()),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
        assert_eq!(
            hex(&signing_key(scope, &keys())),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }
}
