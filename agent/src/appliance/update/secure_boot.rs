//! Whether this machine's firmware would start a UKI, asked before anything is written to a slot.
//!
//! With Secure Boot on, firmware starts a program only if its digest, or the certificate that signed it, or one that
//! vouches for that certificate, is in the variable `db`, and none of them in `dbx` (UEFI specification 2.10, §32.5).
//! It asks at each boot and has nothing else to start then, so a machine with such a UKI would wait for somebody until
//! its tries are used up.
//!
//! What is read here is what signing tools write (sbsign, systemd-sbsign): SHA-256 and RSA. A UKI that is signed in
//! another way counts as unsigned, although some firmware would take it. Not looked at: hashes of certificates in
//! `dbx`, and the lists of shim, which this image does not use.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use self::certificate::Certificate;
use self::database::Database;
use self::signature::Signature;

mod certificate;
mod database;
mod der;
mod program;
mod signature;

/// Directory of the firmware's variables, below the root.
const VARIABLES: &str = "sys/firmware/efi/efivars";
/// `EFI_GLOBAL_VARIABLE`, the namespace of most of them, and `EFI_IMAGE_SECURITY_DATABASE_GUID`, that of the databases.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
const DATABASE: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
/// What a variable's file begins with.
const ATTRIBUTES_BYTES: usize = 4;
/// How many certificates may vouch for each other. Firmware has no such limit; chains in the field have one or two.
const LONGEST_CHAIN: usize = 4;

/// The firmware would not start a UKI, or it cannot be found out.
#[derive(Debug, Error)]
pub enum SecureBootError {
    /// A variable or the UKI cannot be read.
    #[error("failed to read {path}, to find out whether Secure Boot would let it start")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{path} is no program that firmware could start: {fault}")]
    NoProgram {
        /// The UKI.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Refused.
    #[error(
        "Secure Boot is on, and this machine's firmware would not start {name}: it {fault}. The firmware takes what is signed by \
         {trusted}. Install a release that is signed so, or first enrol the certificate of this one in the firmware"
    )]
    Refused {
        /// The UKI.
        name: String,
        /// Why.
        fault: Fault,
        /// The subjects of the certificates that the firmware trusts.
        trusted: String,
    },
}

/// Why firmware refuses a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// No signature that can be read.
    Unsigned,
    /// The certificate with this subject is not trusted, nor is one that vouches for it.
    Untrusted(String),
    /// It is not what the holder of this certificate signed.
    Changed(String),
    /// The certificate with this subject, or the program itself where there is none, is in `dbx`.
    Revoked(Option<String>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => write!(f, "has no signature by RSA and SHA-256"),
            Self::Untrusted(subject) => write!(f, "is signed by {subject}, whom it does not trust"),
            Self::Changed(subject) => {
                write!(
                    f,
                    "was changed after {subject} signed it, or not signed by them"
                )
            }
            Self::Revoked(Some(subject)) => {
                write!(f, "is signed by {subject}, whom it no longer trusts (dbx)")
            }
            Self::Revoked(None) => write!(f, "is one of those that it no longer starts (dbx)"),
        }
    }
}

/// Checks that the firmware of the machine with this root would start the UKI `uki`. Without Secure Boot it would start
/// anything.
///
/// # Errors
/// It would not, or it cannot be found out.
pub fn check(root: &Path, uki: &Path) -> Result<(), SecureBootError> {
    if !is_on(root)? {
        return Ok(());
    }
    let trusted = Database::parse(&variable(root, "db", DATABASE)?);
    let revoked = Database::parse(&variable(root, "dbx", DATABASE)?);
    let program = program::read(uki)?;
    judge(&program, &trusted, &revoked).map_err(|fault| SecureBootError::Refused {
        name: uki
            .file_name()
            .unwrap_or(uki.as_os_str())
            .display()
            .to_string(),
        fault,
        trusted: trusted.subjects(),
    })
}

/// Whether the firmware of the machine with this root starts only what it trusts.
///
/// # Errors
/// It cannot be found out.
pub fn is_on(root: &Path) -> Result<bool, SecureBootError> {
    let on = variable(root, "SecureBoot", GLOBAL)?;
    Ok(on.first() == Some(&1))
}

/// The value of a variable; empty if there is none.
fn variable(root: &Path, name: &str, namespace: &str) -> Result<Vec<u8>, SecureBootError> {
    let path = root.join(VARIABLES).join(format!("{name}-{namespace}"));
    match fs::read(&path) {
        Ok(value) => Ok(value.get(ATTRIBUTES_BYTES..).unwrap_or(&[]).to_vec()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(SecureBootError::Read { path, source }),
    }
}

/// Whether a program may start: one good signature is enough, and the fault is that of the first.
fn judge(program: &program::Program, trusted: &Database, revoked: &Database) -> Result<(), Fault> {
    if revoked.hashes.contains(&program.digest) {
        return Err(Fault::Revoked(None));
    }
    if trusted.hashes.contains(&program.digest) {
        return Ok(());
    }
    let mut first = None;
    for bytes in &program.signatures {
        let judged = Signature::parse(bytes)
            .ok_or(Fault::Unsigned)
            .and_then(|signature| judge_signature(&signature, &program.digest, trusted, revoked));
        match judged {
            Ok(()) => return Ok(()),
            Err(fault) => {
                first.get_or_insert(fault);
            }
        }
    }
    Err(first.unwrap_or(Fault::Unsigned))
}

fn judge_signature(
    signature: &Signature<'_>,
    digest: &[u8],
    trusted: &Database,
    revoked: &Database,
) -> Result<(), Fault> {
    let signer = signature.signer;
    if signature.digest != digest || !signature.is_by(signer) {
        return Err(Fault::Changed(signer.subject()));
    }
    let chain = chain(signer, &signature.certificates, trusted)
        .ok_or_else(|| Fault::Untrusted(signer.subject()))?;
    let is_revoked = |certificate: &&Certificate<'_>| revoked.has(certificate);
    match chain.iter().find(is_revoked) {
        Some(certificate) => Err(Fault::Revoked(Some(certificate.subject()))),
        None => Ok(()),
    }
}

/// The certificates from the signer's to a trusted one, each vouched for by the next.
fn chain<'a>(
    signer: Certificate<'a>,
    others: &[Certificate<'a>],
    trusted: &'a Database,
) -> Option<Vec<Certificate<'a>>> {
    let mut chain = vec![signer];
    while chain.len() <= LONGEST_CHAIN {
        let last = *chain.last()?;
        if trusted.has(&last) {
            return Some(chain);
        }
        let next = trusted
            .certificates()
            .chain(others.iter().copied())
            .find(|issuer| last.is_issued_by(issuer) && !chain.contains(issuer))?;
        chain.push(next);
    }
    None
}

#[cfg(test)]
mod tests;
