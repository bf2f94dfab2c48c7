//! Where Google's access tokens come from: a service account's key, or the instance's service account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use hyper::body::Bytes;
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;

use super::api::metadata;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::{CloudError, shown};
use crate::cloud::sign::form;
use crate::cloud::transport::Call;
use crate::settings::Secret;

/// What the token is for.
const SCOPE: &str = "https://www.googleapis.com/auth/compute";

/// How long a token of a key lasts, in seconds; the most that Google gives.
const LIFETIME_SECS: u64 = 3600;

/// An OAuth access token.
pub(super) type Token = Secret;

/// A service account's key, as the console gives it.
#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key: String,
    #[serde(default)]
    token_uri: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: u64,
}

fn missing(problem: impl Into<String>) -> CloudError {
    CloudError::Credentials {
        problem: problem.into(),
    }
}

/// A token, as Google's own programs look for one: by the key in the file of the settings or of
/// `GOOGLE_APPLICATION_CREDENTIALS`, else the instance's.
///
/// # Errors
/// [`CloudError::Credentials`] says what is wrong; else a server could not be asked.
pub(super) async fn find(access: &mut Access) -> Result<Kept<Token>, CloudError> {
    let file = access.credentials_file.clone().or_else(|| {
        let path = access.variable(&["GOOGLE_APPLICATION_CREDENTIALS"]);
        path.map(PathBuf::from)
    });
    match file {
        Some(path) => of_key(access, &path).await,
        None => of_instance(access).await,
    }
}

async fn of_instance(access: &mut Access) -> Result<Kept<Token>, CloudError> {
    let now = access.transport.now();
    let answer = metadata(access, "instance/service-accounts/default/token").await?;
    let answer = answer.ok_or_else(|| {
        missing("this instance has no service account; stop it and give it one, or set cloud.credentials-file")
    })?;
    let token: TokenAnswer = answer.secret_json("metadata service")?;
    let lasts = Duration::from_secs(token.expires_in);
    Ok(Kept::lasting(Secret::new(token.access_token), now, lasts))
}

async fn of_key(access: &mut Access, path: &Path) -> Result<Kept<Token>, CloudError> {
    let wrong = |problem: &str| missing(format!("{}: {problem}", path.display()));
    let text = std::fs::read(path).map_err(|error| wrong(&error.to_string()))?;
    // The parser's message may quote the file.
    let file: KeyFile = serde_json::from_slice(&text)
        .map_err(|error| wrong(&format!("bad JSON in line {}", error.line())))?;
    if file.kind != "service_account" {
        let kind = shown(&file.kind);
        return Err(wrong(&format!(
            "the type is {kind:?}: expected \"service_account\""
        )));
    }
    let key = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes());
    let key = key.map_err(|_| wrong("private_key is no PKCS#8 key in PEM form"))?;
    let key = KeyPair::from_pkcs8(key.secret_pkcs8_der())
        .map_err(|error| wrong(&format!("private_key cannot be used: {error}")))?;
    let now = access.transport.now();
    let assertion = assertion(&file, &key, now).ok_or_else(|| wrong("failed to sign"))?;
    let body = form([
        ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
        ("assertion", &assertion),
    ]);
    let (server, path_of_url) = split(&file.token_uri).ok_or_else(|| wrong("bad token_uri"))?;
    let server = access.transport.api(server);
    let answer = access
        .transport
        .send(Call {
            method: Method::POST,
            url: format!("{server}{path_of_url}"),
            headers: vec![(
                "content-type",
                "application/x-www-form-urlencoded".to_owned(),
            )],
            body: Bytes::from(body),
        })
        .await?;
    match answer.status {
        200 => {
            let token: TokenAnswer = answer.secret_json("token")?;
            let lasts = Duration::from_secs(token.expires_in);
            Ok(Kept::lasting(Secret::new(token.access_token), now, lasts))
        }
        429 | 500.. => Err(CloudError::Unavailable {
            call: "token",
            code: answer.status.to_string(),
            retry_after: answer.retry_after(),
        }),
        status => Err(wrong(&format!(
            "the key is not accepted (HTTP status {status})"
        ))),
    }
}

/// `https://host` and `/path` of a URL.
fn split(url: &str) -> Option<(&str, &str)> {
    let host = url.strip_prefix("https://")?;
    let at = url.len() - host.len() + host.find('/')?;
    Some(url.split_at(at))
}

/// A signed claim of who asks and for what (RFC 7523 §2.1, in the compact form of RFC 7515).
fn assertion(file: &KeyFile, key: &KeyPair, now: u64) -> Option<String> {
    let claims = serde_json::json!({
        "iss": file.client_email,
        "scope": SCOPE,
        "aud": file.token_uri,
        "iat": now,
        "exp": now.saturating_add(LIFETIME_SECS),
    });
    sign(key, r#"{"alg":"RS256","typ":"JWT"}"#, &claims.to_string())
}

/// RS256 (RFC 7518 §3.3) over header and claims.
fn sign(key: &KeyPair, header: &str, claims: &str) -> Option<String> {
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let signed = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(claims.as_bytes())
    );
    let mut signature = vec![0; key.public().modulus_len()];
    let random = SystemRandom::new();
    key.sign(
        &RSA_PKCS1_SHA256,
        &random,
        signed.as_bytes(),
        &mut signature,
    )
    .ok()?;
    Some(format!("{signed}.{}", encode(&signature)))
}

#[cfg(test)]
mod tests {
    use ring::rsa::{KeyPairComponents, PublicKeyComponents};

    use super::*;

    /// RFC 7515 appendix A.2.
    #[test]
    fn the_rfcs_example_is_signed_alike() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let components = KeyPairComponents {
            public_key: PublicKeyComponents {
                n: decode(
                    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
                ),
                e: decode("AQAB"),
            },
            d: decode(
                "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
            ),
            p: decode(
                "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
            ),
            q: decode(
                "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
            ),
            dP: decode(
                "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
            ),
            dQ: decode(
                "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
            ),
            qInv: decode(
                "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
            ),
        };
        let key = KeyPair::from_components(&components).unwrap();
        let claims =
            "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}";
        assert_eq!(
            sign(&key, r#"{"alg":"RS256"}"#, claims).unwrap(),
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
        );
    }

    #[test]
    fn token_urls_are_split_at_the_path() {
        assert_eq!(
            split("https://oauth2.googleapis.com/token"),
            Some(("https://oauth2.googleapis.com", "/token"))
        );
        for wrong in ["http://oauth2.googleapis.com/token", "https://x", ""] {
            assert_eq!(split(wrong), None);
        }
    }
}
