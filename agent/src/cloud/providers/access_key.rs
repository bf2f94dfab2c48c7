//! Keys that requests are signed with: an ID, a secret and, for a role's, a token.

use std::path::Path;

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
    /// One that lasts.
    pub(super) fn lasting(id: String, secret: String) -> Self {
        Self {
            id,
            secret: Secret::new(secret),
            token: None,
        }
    }
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
pub(super) fn from_file(path: &Path, names: &Names) -> Result<AccessKey, CloudError> {
    let wrong = |problem: &str| CloudError::Credentials {
        problem: format!("{}: {problem}", path.display()),
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
    let value = |name| in_default(&text, name).map(str::to_owned);
    let (Some(id), Some(secret)) = (value(names.id), value(names.secret)) else {
        return Err(wrong(&format!(
            "expected {} and {} in a section [default]",
            names.id, names.secret
        )));
    };
    let token = value(names.token).map(Secret::new);
    Ok(AccessKey {
        token,
        ..AccessKey::lasting(id, secret)
    })
}

/// The value of a name in the section `[default]` of an INI file.
fn in_default<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            is_inside = section.trim_end_matches(']').trim() == "default";
        } else if let (true, Some((key, value))) = (is_inside, line.split_once('='))
            && key.trim() == name
            && !value.trim().is_empty()
        {
            return Some(value.trim());
        }
    }
    None
}
