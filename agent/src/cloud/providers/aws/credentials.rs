//! Where AWS's credentials come from: environment, shared file, the instance's role.

use std::path::{Path, PathBuf};

use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;

use super::METADATA;
use crate::base::time::parse_rfc3339;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::CloudError;
use crate::cloud::providers::access_key::{AccessKey, Names, in_section};
use crate::cloud::transport::Call;

/// How long a token of the metadata service (IMDSv2) is good, in seconds. The service allows up to six hours.
const TOKEN_SECS: &str = "300";

/// The names in the shared file.
const FILE: Names = Names {
    id: "aws_access_key_id",
    secret: "aws_secret_access_key",
    token: "aws_session_token",
};

/// The current credentials, in the order of AWS's own programs.
///
/// # Errors
/// [`CloudError::Credentials`] says where there are none; else the metadata service could not be asked.
pub(super) async fn find(access: &mut Access) -> Result<Kept<AccessKey>, CloudError> {
    if let Some(keys) = of_environment(access)? {
        return Ok(Kept {
            value: keys,
            ends: None,
        });
    }
    if let Some(keys) = of_file(access)? {
        return Ok(Kept {
            value: keys,
            ends: None,
        });
    }
    of_instance(access).await
}

fn of_environment(access: &Access) -> Result<Option<AccessKey>, CloudError> {
    let id = access.variable(&["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"]);
    let secret = access.variable(&["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"]);
    match (id, secret) {
        (Some(id), Some(secret)) => {
            let session = access.variable(&["AWS_SESSION_TOKEN"]);
            Ok(Some(AccessKey::new(id, secret, session)))
        }
        (None, None) => Ok(None),
        (Some(_), None) => Err(missing(
            "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not",
        )),
        (None, Some(_)) => Err(missing(
            "AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not",
        )),
    }
}

fn missing(problem: impl Into<String>) -> CloudError {
    CloudError::Credentials {
        problem: problem.into(),
    }
}

/// The file of the settings must exist; the usual one need not.
fn of_file(access: &Access) -> Result<Option<AccessKey>, CloudError> {
    let named = access.credentials_file.clone().or_else(|| {
        let path = access.variable(&["AWS_SHARED_CREDENTIALS_FILE"]);
        path.map(PathBuf::from)
    });
    let usual = || Some(PathBuf::from(access.variable(&["HOME"])?).join(".aws/credentials"));
    let (path, must_exist) = match named {
        Some(path) => (path, true),
        None => match usual() {
            Some(path) => (path, false),
            None => return Ok(None),
        },
    };
    let profile = access.variable(&["AWS_PROFILE"]);
    let profile = profile.as_deref().unwrap_or("default");
    match std::fs::read_to_string(&path) {
        Ok(text) => match in_section(&text, profile, &FILE) {
            Some(keys) => Ok(Some(keys)),
            None if must_exist => Err(missing(format!(
                "{} has no aws_access_key_id and aws_secret_access_key under [{profile}]",
                path.display()
            ))),
            None => Ok(None),
        },
        Err(error) if must_exist => Err(unreadable(&path, &error)),
        Err(_) => Ok(None),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CloudError {
    missing(format!("failed to read {}: {error}", path.display()))
}

/// What the metadata service answers for a role.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RoleKeys {
    code: String,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
    expiration: Option<String>,
}

/// The header that a token of the metadata service is shown in; none for a service that does not know tokens.
pub(super) async fn metadata_token(
    access: &mut Access,
) -> Result<Vec<(&'static str, String)>, CloudError> {
    let url = access.transport.metadata(METADATA);
    let answer = access.transport.send(Call {
        method: Method::PUT,
        url: format!("{url}/latest/api/token"),
        headers: vec![(
            "x-aws-ec2-metadata-token-ttl-seconds",
            TOKEN_SECS.to_owned(),
        )],
        body: Bytes::new(),
    });
    let answer = answer.await?;
    match answer.status {
        200 => {
            let token = String::from_utf8_lossy(&answer.body).trim().to_owned();
            Ok(vec![("x-aws-ec2-metadata-token", token)])
        }
        404 | 405 => Ok(Vec::new()),
        403 => Err(missing(
            "the metadata service is switched off for this instance (HttpEndpoint)",
        )),
        status => Err(CloudError::Unavailable {
            call: "metadata service",
            code: status.to_string(),
            retry_after: answer.retry_after(),
        }),
    }
}

async fn of_instance(access: &mut Access) -> Result<Kept<AccessKey>, CloudError> {
    const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
    let token = metadata_token(access).await?;
    let roles = access.metadata(METADATA, ROLES, token.clone()).await?;
    let roles = roles.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
    let role = roles.as_deref().and_then(|roles| roles.lines().next());
    let Some(role) = role.map(str::trim).filter(|role| !role.is_empty()) else {
        return Err(missing(
            "AWS_ACCESS_KEY_ID is not set, there is no file with credentials, and this instance has no role; attach an instance profile",
        ));
    };
    let path = format!("{ROLES}{}", crate::cloud::sign::percent(role));
    let answer = access.metadata(METADATA, &path, token).await?;
    let answer = answer.ok_or_else(|| missing(format!("the role {role} has no credentials")))?;
    let keys: RoleKeys = answer.secret_json("metadata service")?;
    let (Some(id), Some(secret)) = (keys.access_key_id, keys.secret_access_key) else {
        return Err(missing(format!(
            "the metadata service has no credentials for the role {role}: {}",
            crate::cloud::error::shown(&keys.code)
        )));
    };
    let ends = keys.expiration.as_deref().and_then(parse_rfc3339);
    let ends = ends.and_then(|ends| ends.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(Kept {
        value: AccessKey::new(id, secret, keys.token),
        ends: ends.map(|ends| ends.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of *Configuration and credential file settings* of the AWS CLI's User Guide.
    #[test]
    fn a_profiles_keys_are_read_from_the_shared_file() {
        let text = "# ours\n[default]\naws_access_key_id=AKIAIOSFODNN7EXAMPLE\naws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n\n[user1]\nAWS_ACCESS_KEY_ID = AKIAI44QH8DHBEXAMPLE\naws_secret_access_key = je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY\naws_session_token = IQoJb3Jp=\nregion = eu-west-1\n";
        let keys = in_section(text, "default", &FILE).unwrap();
        assert_eq!(keys.id, "AKIAIOSFODNN7EXAMPLE");
        assert!(keys.token.is_none());
        let keys = in_section(text, "user1", &FILE).unwrap();
        assert_eq!(keys.id, "AKIAI44QH8DHBEXAMPLE");
        assert_eq!(
            keys.secret.expose(),
            "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"
        );
        assert_eq!(keys.token.unwrap().expose(), "IQoJb3Jp=");
        assert!(in_section(text, "user2", &FILE).is_none());
        assert!(in_section("[default]\naws_access_key_id = A\n", "default", &FILE).is_none());
    }

    #[test]
    fn secrets_do_not_show() {
        let keys = AccessKey::new("A".into(), "secret1".into(), Some("secret2".into()));
        assert!(!format!("{keys:?}").contains("secret1"));
        assert!(!format!("{keys:?}").contains("secret2"));
    }
}
