//! `db` and `dbx`: lists of certificates and of digests (UEFI specification 2.10, §32.4.1).
//!
//! ```text
//!  0               16        20        24        28
//! | type (GUID)   | list    | header  | entry   | header, then entries: | owner (GUID) | data ...
//! |               | bytes   | bytes   | bytes   |
//! ```

use super::certificate::Certificate;

/// `EFI_CERT_X509_GUID` and `EFI_CERT_SHA256_GUID`, as they lie in memory.
const X509: [u8; 16] = [
    0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72,
];
const SHA256: [u8; 16] = [
    0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
];
/// What comes before the header of a list, and before the data of an entry.
const LIST_BYTES: usize = 28;
const OWNER_BYTES: usize = 16;

/// What such a variable names.
#[derive(Debug, Default)]
pub(super) struct Database {
    certificates: Vec<Vec<u8>>,
    /// Digests of programs.
    pub hashes: Vec<Vec<u8>>,
}

impl Database {
    /// Reads the value of a variable, up to the first list that is none.
    pub(super) fn parse(mut bytes: &[u8]) -> Self {
        let mut found = Self::default();
        while let Some((list, rest)) = split_list(bytes) {
            found.add(list);
            bytes = rest;
        }
        found
    }

    fn add(&mut self, list: &[u8]) {
        let entries = || {
            let (header, size) = (number(list, 20)?, number(list, 24)?);
            let entries = list.get(LIST_BYTES.checked_add(header)?..)?;
            (size > OWNER_BYTES).then(|| entries.chunks_exact(size))
        };
        let into = match list.first_chunk() {
            Some(&X509) => &mut self.certificates,
            Some(&SHA256) => &mut self.hashes,
            _ => return,
        };
        for entry in entries().into_iter().flatten() {
            into.push(entry[OWNER_BYTES..].to_vec());
        }
    }

    /// The certificates.
    pub(super) fn certificates(&self) -> impl Iterator<Item = Certificate<'_>> {
        let certificates = self.certificates.iter();
        certificates.filter_map(|der| Certificate::parse(der))
    }

    /// Whether this very certificate is among them.
    pub(super) fn has(&self, certificate: &Certificate<'_>) -> bool {
        self.certificates().any(|own| own.der == certificate.der)
    }

    /// The subjects of the certificates, for messages.
    pub(super) fn subjects(&self) -> String {
        let subjects: Vec<_> = self.certificates().map(|own| own.subject()).collect();
        match subjects.is_empty() {
            true => "nobody (its db has no certificate)".to_owned(),
            false => subjects.join(" or "),
        }
    }
}

/// A list, and what follows it.
fn split_list(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = number(bytes, 16)?;
    (LIST_BYTES..=bytes.len())
        .contains(&size)
        .then(|| bytes.split_at(size))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}
