//! OpenSSH public keys, parsed as far as needed to find typing mistakes.

use thiserror::Error;

use super::data_url::decode_base64;

/// Key types that OpenSSH 9 and 10 accept by default (`PubkeyAcceptedAlgorithms`); `ssh-dss` is not among them.
const KEY_TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Why a line is not an OpenSSH public key.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SshKeyError {
    /// A private key must never leave its owner's machine.
    #[error("this is a private key; give the line from the .pub file beside it")]
    Private,
    /// The line does not start with a known key type.
    #[error("{found:?} is not a key type: expected one of {}", KEY_TYPES.join(", "))]
    Type {
        /// The first word, cut after 40 characters.
        found: String,
    },
    /// The second word does not decode, or is the key of another type.
    #[error("the word after {0} is not the base64 form of such a key")]
    Blob(&'static str),
    /// Keys are written one to a line.
    #[error("a key must be one line")]
    Lines,
}

/// Checks that `line` is `TYPE BASE64 [COMMENT]` and that the encoded key is of that type (RFC 4253 §6.6: the blob
/// begins with its own type as a length-prefixed string).
pub(in crate::appliance) fn check(line: &str) -> Result<(), SshKeyError> {
    if line.contains("PRIVATE KEY") {
        return Err(SshKeyError::Private);
    }
    if line.contains(['\n', '\r', '\0']) {
        return Err(SshKeyError::Lines);
    }
    let mut words = line.split_ascii_whitespace();
    let word = words.next().unwrap_or_default();
    let kind = KEY_TYPES
        .into_iter()
        .find(|&kind| kind == word)
        .ok_or_else(|| SshKeyError::Type {
            found: word.chars().take(40).collect(),
        })?;
    let blob = decode_base64(words.next().unwrap_or_default()).unwrap_or_default();
    match fields(&blob).as_deref() {
        Some([first, _key, ..]) if *first == kind.as_bytes() => Ok(()),
        _ => Err(SshKeyError::Blob(kind)),
    }
}

/// The length-prefixed strings (RFC 4251 §5) that a key consists of; `None` when the last one is cut off.
fn fields(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut fields = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, rest) = rest.split_at_checked(length)?;
        fields.push(field);
        blob = rest;
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn public_keys_pass_with_and_without_a_comment() {
        assert_eq!(check(ED25519), Ok(()));
        assert_eq!(check(&format!("{ED25519} me@laptop and more")), Ok(()));
    }

    fn unknown_type(found: &str) -> SshKeyError {
        SshKeyError::Type {
            found: found.to_owned(),
        }
    }

    #[test]
    fn what_is_not_a_public_key_is_named() {
        for (line, error) in [
            ("", unknown_type("")),
            ("ssh-dss AAAA", unknown_type("ssh-dss")),
            ("ssh-ed25519", SshKeyError::Blob("ssh-ed25519")),
            ("ssh-ed25519 AAAA", SshKeyError::Blob("ssh-ed25519")),
            (
                &ED25519.replace("ssh-ed25519 ", "ssh-rsa "),
                SshKeyError::Blob("ssh-rsa"),
            ),
            (&ED25519[..60], SshKeyError::Blob("ssh-ed25519")),
            (&format!("{ED25519}\n"), SshKeyError::Lines),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", SshKeyError::Private),
        ] {
            assert_eq!(check(line), Err(error), "{line:?}");
        }
    }
}
