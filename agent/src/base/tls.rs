//! The certificates of public authorities.

/// Where distributions keep them: Debian, Fedora, Alpine.
pub(crate) const SYSTEM_ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The first of [`SYSTEM_ROOTS`] that can be read (PEM).
pub(crate) fn system_roots() -> Option<Vec<u8>> {
    let mut paths = SYSTEM_ROOTS.iter();
    paths.find_map(|path| std::fs::read(path).ok())
}
