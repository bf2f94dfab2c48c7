//! An Authenticode signature: PKCS #7 signed data (RFC 2315) over the digest of a program.

use ring::digest;

use super::certificate::Certificate;
use super::der::{INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, PART_0, Reader, SEQUENCE, SET};

/// 1.2.840.113549.1.7.2, `signedData`; 1.3.6.1.4.1.311.2.1.4, `SPC_INDIRECT_DATA_OBJID`; 1.2.840.113549.1.9.4,
/// `messageDigest`; 2.16.840.1.101.3.4.2.1, SHA-256.
const SIGNED_DATA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
const INDIRECT_DATA: [u8; 10] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04];
const MESSAGE_DIGEST: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
const SHA256: [u8; 9] = [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];

/// A signature of a program.
#[derive(Debug)]
pub(super) struct Signature<'a> {
    /// The digest of the program that was signed.
    pub digest: &'a [u8],
    /// All certificates that came with it.
    pub certificates: Vec<Certificate<'a>>,
    /// The one of the signer.
    pub signer: Certificate<'a>,
    /// What says the digest.
    content: &'a [u8],
    /// The attributes that were signed, with the tag under which they were; none: the content itself was signed.
    attributes: Option<Vec<u8>>,
    /// The digest of the content among the attributes.
    message_digest: Option<&'a [u8]>,
    bytes: &'a [u8],
}

impl<'a> Signature<'a> {
    /// Reads one by RSA and SHA-256; `None` if it is none.
    pub(super) fn parse(pkcs7: &'a [u8]) -> Option<Self> {
        let mut outer = Reader::new(pkcs7).enter(SEQUENCE)?;
        if outer.optional(OBJECT_IDENTIFIER)?.contents != SIGNED_DATA {
            return None;
        }
        let mut data = outer.enter(PART_0)?.enter(SEQUENCE)?;
        data.optional(INTEGER)?; // version
        data.optional(SET)?; // digest algorithms
        let mut content = data.enter(SEQUENCE)?;
        if content.optional(OBJECT_IDENTIFIER)?.contents != INDIRECT_DATA {
            return None;
        }
        let content = content.enter(PART_0)?.optional(SEQUENCE)?.contents;
        let certificates: Vec<_> = data
            .enter(PART_0)?
            .values()
            .filter_map(|value| Certificate::parse(value.whole))
            .collect();
        data.optional(PART_0 + 1); // revocations
        let mut signer = data.enter(SET)?.enter(SEQUENCE)?;
        signer.optional(INTEGER)?; // version
        let mut name = signer.enter(SEQUENCE)?;
        let (issuer, serial) = (
            name.optional(SEQUENCE)?.whole,
            name.optional(INTEGER)?.contents,
        );
        if !is_sha256(signer.enter(SEQUENCE)?) {
            return None;
        }
        let attributes = signer.optional(PART_0);
        signer.optional(SEQUENCE)?; // algorithm of the signature
        let bytes = signer.optional(OCTET_STRING)?.contents;
        let is_signers = |own: &&Certificate<'_>| own.issuer == issuer && own.serial == serial;
        Some(Self {
            digest: digest_in(content)?,
            signer: *certificates.iter().find(is_signers)?,
            certificates,
            content,
            // RFC 2315 §9.3: signed as a set, although it is written as the first part.
            attributes: attributes.map(|value| [&[SET], &value.whole[1..]].concat()),
            message_digest: attributes.and_then(|value| message_digest(value.contents)),
            bytes,
        })
    }

    /// Whether the key of this certificate made it.
    pub(super) fn is_by(&self, certificate: Certificate<'_>) -> bool {
        let Some(attributes) = &self.attributes else {
            return certificate.signed(self.content, self.bytes);
        };
        let content = digest::digest(&digest::SHA256, self.content);
        self.message_digest == Some(content.as_ref()) && certificate.signed(attributes, self.bytes)
    }
}

fn is_sha256(mut algorithm: Reader<'_>) -> bool {
    let identifier = algorithm.optional(OBJECT_IDENTIFIER);
    identifier.is_some_and(|identifier| identifier.contents == SHA256)
}

/// The digest in an `SpcIndirectDataContent`: what kind of data, then algorithm and digest.
fn digest_in(content: &[u8]) -> Option<&[u8]> {
    let mut parts = Reader::new(content);
    parts.optional(SEQUENCE)?;
    let mut digest = parts.enter(SEQUENCE)?;
    is_sha256(digest.enter(SEQUENCE)?).then_some(())?;
    Some(digest.optional(OCTET_STRING)?.contents)
}

fn message_digest(attributes: &[u8]) -> Option<&[u8]> {
    Reader::new(attributes).values().find_map(|attribute| {
        let mut parts = Reader::new(attribute.contents);
        let identifier = parts.optional(OBJECT_IDENTIFIER)?;
        (identifier.contents == MESSAGE_DIGEST).then_some(())?;
        Some(parts.enter(SET)?.optional(OCTET_STRING)?.contents)
    })
}
