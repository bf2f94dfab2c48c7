//! Keys that requests are signed with: an ID, a secret and, for a role's, a token.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::cloud::access::Access;
use crate::cloud::error::CloudError;
use crate::settings::Secret;

/// An access key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct AccessKey {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Sent with what is signed; a role's key is nothing without it.
    pub(super) token: Option<Secret>,
}

impl AccessKey {
    pub(super) fn new(id: String, secret: String, token: Option<String>) -> Self {
        Self {
            id,
            secret: Secret::new(secret),
            token: token.map(Secret::new),
        }
    }
}

/// Where a provider's programs look for a key of the administrator's.
pub(super) struct Places {
    /// The variables with the ID, of which the first that is set counts.
    pub(super) id: &'static [&'static str],
    /// The same with the secret.
    pub(super) secret: &'static [&'static str],
    /// The same with the token.
    pub(super) token: &'static [&'static str],
    pub(super) file: Names,
}

/// The key of the network config, of the environment or of the file of the settings; `None` if they have none.
///
/// # Errors
/// The file cannot be read, or has no key.
pub(super) fn find(access: &Access, places: &Places) -> Result<Option<AccessKey>, CloudError> {
    if let Some((id, secret)) = &access.config.access_key {
        let secret = secret.expose().to_owned();
        return Ok(Some(AccessKey::new(id.clone(), secret, None)));
    }
    let (id, secret) = (access.variable(places.id), access.variable(places.secret));
    if let (Some(id), Some(secret)) = (id, secret) {
        let token = access.variable(places.token);
        return Ok(Some(AccessKey::new(id, secret, token)));
    }
    let file = access.credentials_file.as_deref();
    file.map(|path| from_file(path, &places.file)).transpose()
}

/// The error of a machine with no key at all; `role` is what the provider calls the role that could give one.
pub(super) fn no_key(role: &str) -> CloudError {
    CloudError::Credentials {
        problem: format!(
            "neither AccessKeyID and AccessKeySecret in the network config, nor ACCESS_KEY_ID and ACCESS_KEY_SECRET in \
             the environment, nor {role}"
        ),
    }
}

/// What the metadata service says of the key of a role.
///
/// # Errors
/// It cannot be read. The text has no part of the key in it, which the message of serde's error might have.
pub(super) fn of_role<T: DeserializeOwned>(role: &str, text: &str) -> Result<T, CloudError> {
    serde_json::from_str(text).map_err(|_| CloudError::Credentials {
        problem: format!("the metadata service gives no usable key of the role {role}"),
    })
}

/// The names of a key's parts in the file that a provider's own programs read.
pub(super) struct Names {
    pub(super) id: &'static str,
    pub(super) secret: &'static str,
    pub(super) token: &'static str,
}

/// The key in the section `[default]` of such a file.
///
/// # Errors
/// The file cannot be read, or has no such key. The text has no part of the file in it.
fn from_file(path: &Path, names: &Names) -> Result<AccessKey, CloudError> {
    let wrong = |problem: &str| CloudError::Credentials {
        problem: format!("{}: {problem}", path.display()),
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    in_section(&text, "default", names).ok_or_else(|| {
        wrong(&format!(
            "expected {} and {} in a section [default]",
            names.id, names.secret
        ))
    })
}

/// The key in a section of an INI file; names match in any letter case.
pub(super) fn in_section(text: &str, section: &str, names: &Names) -> Option<AccessKey> {
    let (mut id, mut secret, mut token) = (None, None, None);
    let mut is_wanted = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            is_wanted = name.trim() == section;
        } else if is_wanted && let Some((key, value)) = line.split_once('=') {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match key.trim() {
                key if key.eq_ignore_ascii_case(names.id) => id = value,
                key if key.eq_ignore_ascii_case(names.secret) => secret = value,
                key if key.eq_ignore_ascii_case(names.token) => token = value,
                _ => (),
            }
        }
    }
    Some(AccessKey::new(id?, secret?, token))
}
