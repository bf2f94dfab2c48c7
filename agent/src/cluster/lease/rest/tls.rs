//! TLS for client and server of the REST interface, with rustls, which etcd's client links already.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{ClientConfig, Error as RustlsError, RootCertStore, ServerConfig};

use crate::base::tls::system_roots;

/// Certificates or keys cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file has unexpected content.
    #[error("{path} has no {expected} in PEM form")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is expected.
        expected: &'static str,
    },
    /// The CA certificates cannot be used.
    #[error("failed to use the CA certificates in {path}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: VerifierBuilderError,
    },
    /// Certificate and key do not match, or are of an unknown kind.
    #[error("failed to use the certificate {certfile} with the key {keyfile}")]
    Identity {
        /// The certificate.
        certfile: PathBuf,
        /// The key.
        keyfile: PathBuf,
        /// The cause.
        #[source]
        source: RustlsError,
    },
    /// rustls does not support the protocol versions.
    #[error("failed to set up TLS")]
    Protocol(#[source] RustlsError),
    /// There is no CA certificate.
    #[error("no CA certificates: none are configured, and the system has none")]
    NoRoots,
}

/// Text in PEM form, and where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Pem {
    /// The file, for messages.
    pub(crate) path: PathBuf,
    pub(crate) text: Vec<u8>,
}

impl Pem {
    pub(crate) fn read(path: &Path) -> Result<Self, TlsError> {
        let text = std::fs::read(path).map_err(|source| TlsError::Read {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }
}

/// A client's TLS config: it verifies the server against these CA certificates, or else the system's, and presents its
/// certificate with its key if it has one.
pub(crate) fn client(
    authorities: Option<&Pem>,
    identity: Option<&(Pem, Pem)>,
) -> Result<ClientConfig, TlsError> {
    let roots = match authorities {
        Some(pem) => roots(pem)?,
        None => {
            let text = system_roots().ok_or(TlsError::NoRoots)?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(
                CertificateDer::pem_slice_iter(&text).filter_map(Result::ok),
            );
            roots
        }
    };
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Authorities {
                path: authorities.map(|pem| pem.path.clone()).unwrap_or_default(),
                source,
            })?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Protocol)?
        .with_webpki_verifier(verifier);
    match identity {
        Some((certificate, private)) => config
            .with_client_auth_cert(certificates(certificate)?, key(private)?)
            .map_err(|source| TlsError::Identity {
                certfile: certificate.path.clone(),
                keyfile: private.path.clone(),
                source,
            }),
        None => Ok(config.with_no_client_auth()),
    }
}

/// The files that authenticate one side and verify the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    pub(crate) cafile: Option<PathBuf>,
    pub(crate) certfile: Option<PathBuf>,
    pub(crate) keyfile: Option<PathBuf>,
}

impl Files {
    /// The client's TLS config: it verifies the server, and presents its certificate if it has one. Reads the files
    /// each time.
    pub(crate) fn client(&self) -> Result<ClientConfig, TlsError> {
        let authorities = self.cafile.as_deref().map(Pem::read).transpose()?;
        let identity = match (&self.certfile, &self.keyfile) {
            (Some(certfile), Some(keyfile)) => Some((Pem::read(certfile)?, Pem::read(keyfile)?)),
            _ => None,
        };
        client(authorities.as_ref(), identity.as_ref())
    }

    /// The server's TLS config: it presents its certificate; with a CA file it requires a client certificate from that
    /// CA. `None` without a certificate: no TLS.
    pub(crate) fn server(&self) -> Result<Option<ServerConfig>, TlsError> {
        let (Some(certfile), Some(keyfile)) = (&self.certfile, &self.keyfile) else {
            return Ok(None);
        };
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Protocol)?;
        let config = match &self.cafile {
            None => config.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots(&Pem::read(path)?)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|source| TlsError::Authorities {
                        path: path.clone(),
                        source,
                    })?;
                config.with_client_cert_verifier(verifier)
            }
        };
        config
            .with_single_cert(
                certificates(&Pem::read(certfile)?)?,
                key(&Pem::read(keyfile)?)?,
            )
            .map(Some)
            .map_err(|source| TlsError::Identity {
                certfile: certfile.clone(),
                keyfile: keyfile.clone(),
                source,
            })
    }
}

fn roots(pem: &Pem) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A bundle may contain certificates that rustls cannot parse; use the rest.
    let (good, _) = roots.add_parsable_certificates(certificates(pem)?);
    if good == 0 {
        return Err(TlsError::Pem {
            path: pem.path.clone(),
            expected: "CA certificate",
        });
    }
    Ok(roots)
}

fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&pem.text).collect();
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError::Pem {
            path: pem.path.clone(),
            expected: "certificate",
        }),
    }
}

fn key(pem: &Pem) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&pem.text).map_err(|_| TlsError::Pem {
        path: pem.path.clone(),
        expected: "private key",
    })
}
