//! TLS around the HTTP of [`super`], and the certificates for it.

use std::{fs, io::Write as _, path::Path, process::Command, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::{ADDRESS, http::Stream};

/// A name by which the server may be called, too.
pub(crate) const NAME: &str = "releases.example";

/// Certificate and key of the server, in the directory of its notes.
pub(crate) const IDENTITY: &str = "server.pem";
/// The authority's certificate, beside it.
pub(crate) const AUTHORITY: &str = "authority.pem";

/// Makes an authority and a certificate of [`NAME`] and [`ADDRESS`] in `dir`.
///
/// # Errors
/// When openssl is missing or refuses.
pub(crate) fn certify(dir: &Path) -> Result<()> {
    const EC: [&str; 5] = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let names = format!("subjectAltName=DNS:{NAME},IP:{ADDRESS}\nbasicConstraints=CA:FALSE\n");
    let write = |name: &str, text: &[u8]| {
        fs::write(dir.join(name), text).with_context(|| format!("failed to write {name}"))
    };
    write("extensions", names.as_bytes())?;
    let mut authority = openssl(dir, &["req", "-x509", "-days", "30"]);
    authority
        .args(EC)
        .args(["-subj", "/CN=Selvage test authority"]);
    run(authority.args(["-keyout", "authority.key", "-out", AUTHORITY]))?;
    let mut request = openssl(dir, &["req", "-subj", "/CN=Selvage test server"]);
    run(request
        .args(EC)
        .args(["-keyout", "server.key", "-out", "server.csr"]))?;
    let mut certificate = openssl(dir, &["x509", "-req", "-in", "server.csr", "-days", "30"]);
    certificate.args([
        "-CA",
        AUTHORITY,
        "-CAkey",
        "authority.key",
        "-CAcreateserial",
    ]);
    run(certificate.args(["-extfile", "extensions", "-out", IDENTITY]))?;
    let read =
        |name: &str| fs::read(dir.join(name)).with_context(|| format!("failed to read {name}"));
    write(IDENTITY, &[read(IDENTITY)?, read("server.key")?].concat())
}

fn openssl(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(dir).args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .context("failed to run openssl (package openssl)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

/// Runs `body` on what the client says within TLS. `identity` has certificate and key in PEM form.
///
/// # Errors
/// When the file cannot be used, the client does not agree, or as `body`.
pub(super) fn within(
    identity: &Path,
    stream: &mut dyn Stream,
    body: impl FnOnce(&mut dyn Stream) -> Result<()>,
) -> Result<()> {
    let failed = || format!("failed to use {}", identity.display());
    let certificates = CertificateDer::pem_file_iter(identity)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(failed)?;
    let key = PrivateKeyDer::from_pem_file(identity).with_context(failed)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("failed to set up TLS")?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .with_context(failed)?;
    let session = ServerConnection::new(Arc::new(config)).context("failed to set up TLS")?;
    let mut tls = StreamOwned::new(session, stream);
    body(&mut tls)?;
    tls.conn.send_close_notify();
    tls.flush().context("failed to end TLS")
}
