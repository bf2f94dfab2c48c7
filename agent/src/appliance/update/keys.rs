//! The keys that releases are signed with, and the check of a signature.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use thiserror::Error;

/// The image's keys, then the administrator's; a file replaces its namesake, and an empty one or a link to `/dev/null`
/// takes that key away.
const DIRECTORIES: [&str; 2] = ["usr/lib/selvage/update-keys.d", "etc/selvage/update-keys.d"];

/// What comes before the 32 bytes of an Ed25519 key in its DER form (RFC 8410 §4).
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The length of an Ed25519 signature in bytes.
pub const SIGNATURE_BYTES: usize = 64;

/// Why a release is not believed.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A directory or file cannot be read.
    #[error("failed to read the update key {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no key.
    #[error("{path} is no Ed25519 public key in PEM form (openssl pkey -pubout)")]
    NoKey {
        /// Which.
        path: PathBuf,
    },
    /// There is no key.
    #[error(
        "no update keys: put the public key of your release server into /etc/selvage/update-keys.d/NAME.pem"
    )]
    None,
    /// None of the keys made the signature.
    #[error("the signature of {what} is not by one of the keys {keys}")]
    Signature {
        /// What was signed.
        what: String,
        /// The keys that were tried.
        keys: String,
    },
    /// The signature is no signature.
    #[error("the signature of {what} has {length} bytes, not {SIGNATURE_BYTES}")]
    Length {
        /// What was signed.
        what: String,
        /// Its length.
        length: usize,
    },
}

/// The keys by the names of their files.
#[derive(Debug)]
pub struct Keys(BTreeMap<String, [u8; 32]>);

impl Keys {
    /// Reads the keys below a root.
    ///
    /// # Errors
    /// [`KeyError::Read`], [`KeyError::NoKey`] and [`KeyError::None`]. One bad file is an error, so that a key that is
    /// missed by mistake is not found at the first release which it signed.
    pub fn load(root: &Path) -> Result<Self, KeyError> {
        let mut files = BTreeMap::new();
        for directory in DIRECTORIES {
            let directory = root.join(directory);
            let failed = |source| KeyError::Read {
                path: directory.clone(),
                source,
            };
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let path = entry.map_err(failed)?.path();
                let name = path.file_name().and_then(|name| name.to_str());
                if let Some(name) =
                    name.filter(|name| name.ends_with(".pem") && !name.starts_with('.'))
                {
                    files.insert(name.to_owned(), path);
                }
            }
        }
        let mut keys = BTreeMap::new();
        for (name, path) in files {
            let text = fs::read(&path).map_err(|source| KeyError::Read {
                path: path.clone(),
                source,
            })?;
            if text.is_empty() {
                continue;
            }
            let key = parse(&text).ok_or(KeyError::NoKey { path })?;
            keys.insert(name, key);
        }
        if keys.is_empty() {
            return Err(KeyError::None);
        }
        Ok(Self(keys))
    }

    /// Checks that one of the keys signed these bytes; `what` is their name in messages.
    ///
    /// # Errors
    /// [`KeyError::Length`] and [`KeyError::Signature`].
    pub fn verify(&self, what: &str, bytes: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        if signature.len() != SIGNATURE_BYTES {
            return Err(KeyError::Length {
                what: what.to_owned(),
                length: signature.len(),
            });
        }
        let good = |key: &[u8; 32]| {
            let key = UnparsedPublicKey::new(&ED25519, key);
            key.verify(bytes, signature).is_ok()
        };
        if self.0.values().any(good) {
            return Ok(());
        }
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        Err(KeyError::Signature {
            what: what.to_owned(),
            keys: names.join(", "),
        })
    }
}

fn parse(pem: &[u8]) -> Option<[u8; 32]> {
    let info = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
    info.as_ref().strip_prefix(&ED25519_PREFIX)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::appliance::update::samples::{public_pem, signer};

    fn put(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        fs::write(path, text).unwrap();
    }

    #[test]
    fn any_key_will_do_and_the_administrators_replace_the_images() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert!(matches!(Keys::load(root), Err(KeyError::None)));
        let (one, two) = (signer(1), signer(2));
        put(
            root,
            "usr/lib/selvage/update-keys.d/release.pem",
            &public_pem(&one),
        );
        put(root, "usr/lib/selvage/update-keys.d/README", "no key");
        put(
            root,
            "etc/selvage/update-keys.d/site.pem",
            &public_pem(&two),
        );
        let by = |key: &ring::signature::Ed25519KeyPair| key.sign(b"text").as_ref().to_vec();
        let keys = Keys::load(root).unwrap();
        keys.verify("it", b"text", &by(&one)).unwrap();
        keys.verify("it", b"text", &by(&two)).unwrap();
        let error = keys.verify("it", b"text", &by(&signer(3))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the signature of it is not by one of the keys release.pem, site.pem"
        );
        assert!(keys.verify("it", b"texT", &by(&one)).is_err());
        for signature in [&b""[..], &[0; 63], &[0; 65], &[0; 64]] {
            assert!(keys.verify("it", b"text", signature).is_err());
        }

        let replaced = root.join("etc/selvage/update-keys.d/release.pem");
        symlink("/dev/null", &replaced).unwrap();
        assert!(
            Keys::load(root)
                .unwrap()
                .verify("it", b"text", &by(&one))
                .is_err()
        );
        put(
            root,
            "etc/selvage/update-keys.d/release.pem",
            &public_pem(&signer(3)),
        );
        let keys = Keys::load(root).unwrap();
        keys.verify("it", b"text", &by(&signer(3))).unwrap();
        keys.verify("it", b"text", &by(&one)).unwrap_err();
    }

    #[test]
    fn a_file_that_is_no_key_is_named() {
        for text in [
            "x",
            "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n",
            "-----BEGIN PUBLIC KEY-----\n!!!!\n-----END PUBLIC KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----\n",
        ] {
            let root = tempfile::tempdir().unwrap();
            put(root.path(), "etc/selvage/update-keys.d/a.pem", text);
            let error = Keys::load(root.path()).unwrap_err().to_string();
            assert!(
                error.contains("etc/selvage/update-keys.d/a.pem"),
                "{text}: {error}"
            );
        }
    }

    /// The key and the signature of RFC 8032 §7.1, test 3, as `openssl pkey -pubout` writes that key.
    #[test]
    fn a_signature_by_another_program_is_taken() {
        let root = tempfile::tempdir().unwrap();
        put(
            root.path(),
            "etc/selvage/update-keys.d/a.pem",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA/FHNjmIYoaONpH7QAjDwWAgW7RO6MwOsXeuRFUiQgCU=\n-----END PUBLIC KEY-----\n",
        );
        let signature = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659\
             4a7c15e9716ed28dc027beceea1ec40a";
        let signature: Vec<u8> = (0..signature.len() / 2)
            .map(|i| u8::from_str_radix(&signature[2 * i..2 * i + 2], 16).unwrap())
            .collect();
        let keys = Keys::load(root.path()).unwrap();
        keys.verify("it", &[0xaf, 0x82], &signature).unwrap();
    }
}
