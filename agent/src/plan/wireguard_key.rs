//! WireGuard's keys: 32 bytes each, written in base64 as `wg` writes them.
//!
//! Two of the three kinds are secret. They have no `Display`, and their `Debug` shows nothing, so that no log line or
//! error can contain one.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;
use x25519_dalek::StaticSecret;

/// The length of every key in bytes (`WG_KEY_LEN`).
pub const LEN: usize = 32;

/// The text is not a key. The text is left out, because it may be a mistyped secret.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("not 32 bytes in base64 (44 characters, the last of them '=')")]
pub struct KeyError;

/// A node's public key. Ordered by bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct PublicKey([u8; LEN]);

/// A node's private key. Always clamped (RFC 7748 §5), as the kernel stores it.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; LEN]);

/// A pre-shared key of two peers, in addition to their key pairs. Never all zeros, which means none to the kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; LEN]);

impl PublicKey {
    /// The key of these bytes; `None` for all zeros, which is no valid key.
    pub fn new(bytes: [u8; LEN]) -> Option<Self> {
        (bytes != [0; LEN]).then_some(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl PrivateKey {
    /// The key of these bytes.
    pub fn new(bytes: [u8; LEN]) -> Self {
        let mut bytes = bytes;
        bytes[0] &= 0b1111_1000;
        bytes[31] = bytes[31] & 0b0111_1111 | 0b0100_0000;
        Self(bytes)
    }

    /// The corresponding public key (`wg pubkey`).
    pub fn public(&self) -> PublicKey {
        let secret = StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }

    /// The bytes, for the kernel and for nothing else.
    pub fn expose(&self) -> &[u8; LEN] {
        &self.0
    }

    /// The text, for the key's file and for nothing else.
    pub fn expose_text(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl PresharedKey {
    /// The key of these bytes; `None` for all zeros.
    pub fn new(bytes: [u8; LEN]) -> Option<Self> {
        (bytes != [0; LEN]).then_some(Self(bytes))
    }

    /// The bytes, for the kernel and for nothing else.
    pub fn expose(&self) -> &[u8; LEN] {
        &self.0
    }
}

fn decode(text: &str) -> Result<[u8; LEN], KeyError> {
    let bytes = STANDARD.decode(text).map_err(|_| KeyError)?;
    bytes.try_into().map_err(|_| KeyError)
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(decode(text)?).ok_or(KeyError)
    }
}

/// White space around the key, such as the file's last newline, is skipped.
impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match decode(text.trim())? {
            // No key generator returns all zeros.
            bytes if bytes == [0; LEN] => Err(KeyError),
            bytes => Ok(Self::new(bytes)),
        }
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(decode(text)?).ok_or(KeyError)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7748 §6.1: Alice's keys.
    #[test]
    fn the_public_key_follows_from_the_private_one() {
        let private = PrivateKey::new([
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2,
            0x66, 0x45, 0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5,
            0x1d, 0xb9, 0x2c, 0x2a,
        ]);
        assert_eq!(
            private.public().to_string(),
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
        );
    }

    #[test]
    fn a_private_key_is_kept_as_the_kernel_keeps_it() {
        let key = PrivateKey::new([0xff; LEN]);
        assert_eq!(key.expose()[0], 0xf8);
        assert_eq!(key.expose()[31], 0x7f);
        assert_eq!(key.expose_text().parse(), Ok(key));
    }

    #[test]
    fn secrets_show_nothing() {
        let private = PrivateKey::new([9; LEN]);
        let preshared = PresharedKey::new([7; LEN]).unwrap();
        let text = format!("{private:?} {preshared:?}");
        assert_eq!(text, "(redacted) (redacted)");
        let text = STANDARD.encode([0; LEN - 1]);
        let error = text.parse::<PrivateKey>().unwrap_err();
        assert!(!error.to_string().contains("AAA"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        for text in [
            "",
            "=",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTm==",
            "hSDwCYkwp1R0i33ctD73Wg2_Og0mOBr066SpjqqbTmo=",
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmoA",
            // A non-canonical encoding of the valid one.
            "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmp=",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        ] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError), "{text:?}");
            assert_eq!(text.parse::<PrivateKey>(), Err(KeyError), "{text:?}");
            assert_eq!(text.parse::<PresharedKey>(), Err(KeyError), "{text:?}");
        }
        assert!(good.parse::<PublicKey>().is_ok());
        assert!(format!("{good}\r\n").parse::<PrivateKey>().is_ok());
        assert!(format!("{good}\n").parse::<PublicKey>().is_err());
    }

    proptest! {
        #[test]
        fn keys_read_back(bytes: [u8; LEN]) {
            let private = PrivateKey::new(bytes);
            prop_assert_eq!(private.expose_text().parse(), Ok(private));
            if let Some(public) = PublicKey::new(bytes) {
                prop_assert_eq!(public.to_string().parse(), Ok(public));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}") {
            let _ = (text.parse::<PublicKey>(), text.parse::<PrivateKey>());
        }
    }
}
