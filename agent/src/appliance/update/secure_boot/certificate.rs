//! A certificate (RFC 5280), as far as firmware looks at it: names, key and signature. It does not look at dates.

use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use x509_cert::der::Decode;
use x509_cert::name::Name;

use super::der::{BIT_STRING, INTEGER, PART_0, Reader, SEQUENCE};

/// A certificate in DER form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Certificate<'a> {
    /// All of it.
    pub der: &'a [u8],
    /// Its serial number.
    pub serial: &'a [u8],
    /// Who signed it, in DER form.
    pub issuer: &'a [u8],
    subject: &'a [u8],
    key: &'a [u8],
    /// What its issuer signed.
    signed: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Certificate<'a> {
    /// Reads one; `None` if it is none.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let whole = Reader::new(der).optional(SEQUENCE)?;
        let mut parts = Reader::new(whole.contents);
        let signed = parts.optional(SEQUENCE)?;
        parts.optional(SEQUENCE)?; // algorithm
        let signature = bits(parts.optional(BIT_STRING)?.contents)?;
        let mut parts = Reader::new(signed.contents);
        parts.optional(PART_0); // version
        let serial = parts.optional(INTEGER)?.contents;
        parts.optional(SEQUENCE)?; // algorithm
        let issuer = parts.optional(SEQUENCE)?.whole;
        parts.optional(SEQUENCE)?; // validity
        let subject = parts.optional(SEQUENCE)?.whole;
        let mut key = parts.enter(SEQUENCE)?;
        key.optional(SEQUENCE)?; // algorithm
        Some(Self {
            der: whole.whole,
            serial,
            issuer,
            subject,
            key: bits(key.optional(BIT_STRING)?.contents)?,
            signed: signed.whole,
            signature,
        })
    }

    /// Its subject, for messages.
    pub(super) fn subject(&self) -> String {
        Name::from_der(self.subject).map_or_else(
            |_| "somebody without a name".to_owned(),
            |name| name.to_string(),
        )
    }

    /// Whether its key made this signature, by RSA and SHA-256.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key)
            .verify(message, signature)
            .is_ok()
    }

    /// Whether another certificate vouches for it.
    pub(super) fn is_issued_by(&self, issuer: &Self) -> bool {
        self.issuer == issuer.subject && issuer.signed(self.signed, self.signature)
    }
}

/// The bytes of a bit string: the first says how many bits of the last are none.
fn bits(contents: &[u8]) -> Option<&[u8]> {
    contents.split_first().map(|(_, bytes)| bytes)
}
