//! Certificates for the lease store that are no longer, or not yet, valid.

use std::cmp::Reverse;
use std::fs;
use std::future::ready;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::{Check, Context};
use crate::base::words::duration;
use crate::command::doctor::{Finding, NotChecked, Outcome, Severity};

const NAME: &str = "certificates";

/// Certificates that are invalid by this host's clock, or expire soon.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "lease store certificates that expired, expire soon or are not valid yet",
    run: |context| Box::pin(ready(check(context))),
};

/// Remaining validity, in seconds, below which a certificate is reported.
const SOON: u64 = 7 * 86400;

/// A certificate's validity, as Unix times.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Term {
    subject: String,
    from: u64,
    until: u64,
}

/// The fault of a validity period, the worst last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    /// It expires in this many seconds.
    EndsIn(Reverse<u64>),
    /// It becomes valid in this many seconds.
    BeginsIn(u64),
    /// It expired this many seconds ago.
    EndedBefore(u64),
}

fn check(context: &Context<'_>) -> Outcome {
    let (etcd, remote) = (&context.settings.etcd, &context.settings.remote);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let mut findings = Vec::new();
    for (path, setting, is_bundle) in [
        (&etcd.certfile, "etcd.certfile", false),
        (&etcd.cafile, "etcd.cafile", true),
        (&remote.certfile, "remote.certfile", false),
        (&remote.cafile, "remote.cafile", true),
    ] {
        let Some(path) = path else { continue };
        let terms = match read(path) {
            Ok(terms) => terms,
            Err(Unread::File(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(NotChecked(format!(
                    "failed to read {}: {error}",
                    path.display()
                )));
            }
            Err(Unread::File(error)) => {
                findings.push(unreadable(path, setting, &error));
                continue;
            }
            // Not a finding: the agent's TLS library may accept what this parser does not.
            Err(Unread::Form(error)) => {
                return Err(NotChecked(format!(
                    "failed to parse {}: {error}",
                    path.display()
                )));
            }
        };
        if let Some((term, fault)) = worst(&terms, is_bundle, now) {
            findings.push(finding(path, setting, term, fault));
        }
    }
    Ok(findings)
}

/// Why a file's certificates cannot be read.
enum Unread {
    File(io::Error),
    Form(String),
}

fn read(path: &Path) -> Result<Vec<Term>, Unread> {
    let text = fs::read(path).map_err(Unread::File)?;
    CertificateDer::pem_slice_iter(&text)
        .map(|der| {
            let der = der.map_err(|error| Unread::Form(error.to_string()))?;
            let certificate =
                Certificate::from_der(&der).map_err(|error| Unread::Form(error.to_string()))?;
            let validity = certificate.tbs_certificate().validity();
            Ok(Term {
                subject: certificate.tbs_certificate().subject().to_string(),
                from: validity.not_before.to_unix_duration().as_secs(),
                until: validity.not_after.to_unix_duration().as_secs(),
            })
        })
        .collect()
}

/// The fault of a file: a chain is as good as its worst certificate, a bundle of authorities as its best one.
fn worst(terms: &[Term], is_bundle: bool, now: u64) -> Option<(&Term, Fault)> {
    let mut faults: Vec<_> = terms.iter().map(|term| (term, term.fault(now))).collect();
    faults.sort_by_key(|(_, fault)| *fault);
    let (term, fault) = if is_bundle {
        faults.first()?
    } else {
        faults.last()?
    };
    Some((term, (*fault)?))
}

impl Term {
    fn fault(&self, now: u64) -> Option<Fault> {
        if now > self.until {
            return Some(Fault::EndedBefore(now - self.until));
        }
        if now < self.from {
            return Some(Fault::BeginsIn(self.from - now));
        }
        // Short-lived certificates are renewed late on purpose, usually when a third is left.
        let (left, whole) = (self.until - now, self.until.saturating_sub(self.from));
        (left < SOON && left < whole / 5).then_some(Fault::EndsIn(Reverse(left)))
    }
}

fn finding(path: &Path, setting: &str, term: &Term, fault: Fault) -> Finding {
    let (severity, state) = match fault {
        Fault::EndedBefore(ago) => (Severity::Error, format!("expired {} ago", duration(ago))),
        Fault::BeginsIn(ahead) => (
            Severity::Error,
            format!("is not valid for another {}", duration(ahead)),
        ),
        Fault::EndsIn(Reverse(left)) => {
            (Severity::Warning, format!("expires in {}", duration(left)))
        }
    };
    Finding {
        check: NAME.to_owned(),
        severity,
        subject: Some(path.display().to_string()),
        peers: Vec::new(),
        what: format!("the certificate {} in {} ({setting}) {state}", term.subject, path.display()),
        why: "the agent and the lease store refuse new connections with it: an open connection may continue, but once it closes the lease is no longer renewed".to_owned(),
        remedy: vec![
            format!("write a new certificate to {}; the next connection uses it, without a restart", path.display()),
            "compare this host's clock with others: timedatectl".to_owned(),
        ],
    }
}

fn unreadable(path: &Path, setting: &str, error: &io::Error) -> Finding {
    let path = path.display();
    Finding {
        check: NAME.to_owned(),
        severity: Severity::Error,
        subject: Some(path.to_string()),
        peers: Vec::new(),
        what: format!("failed to read {path} ({setting}): {error}"),
        why: "the agent reads it for each connection to the lease store, so the next one fails"
            .to_owned(),
        remedy: vec![format!(
            "restore the file, or correct {setting}: ls -l {path}"
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86400;

    fn term(from: u64, until: u64) -> Term {
        Term {
            subject: "CN=x".to_owned(),
            from,
            until,
        }
    }

    #[test]
    fn only_what_is_not_renewed_in_time_is_told() {
        let now = 1000 * DAY;
        for (from, until, fault) in [
            (now - 300 * DAY, now + 65 * DAY, None),
            (
                now - 360 * DAY,
                now + 5 * DAY,
                Some(Fault::EndsIn(Reverse(5 * DAY))),
            ),
            // A one-day certificate with a third of its validity left.
            (now - 2 * DAY / 3, now + DAY / 3, None),
            (
                now - 9 * DAY / 10,
                now + DAY / 10,
                Some(Fault::EndsIn(Reverse(DAY / 10))),
            ),
            (now - 300 * DAY, now - DAY, Some(Fault::EndedBefore(DAY))),
            (now + DAY, now + 300 * DAY, Some(Fault::BeginsIn(DAY))),
        ] {
            assert_eq!(term(from, until).fault(now), fault);
        }
        let (good, bad) = (
            term(now - DAY, now + 300 * DAY),
            term(now - 300 * DAY, now - DAY),
        );
        let both = [good, bad.clone()];
        assert_eq!(worst(&both, true, now), None);
        assert_eq!(
            worst(&both, false, now),
            Some((&bad, Fault::EndedBefore(DAY)))
        );
        assert_eq!(worst(&[], true, now), None);
    }
}
