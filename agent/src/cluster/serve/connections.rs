//! The connections of a server: how many there may be, TLS, and the client's identity.
//!
//! Any host that reaches the address can connect, so everything is bounded: connections in total and per address, the
//! time for a TLS handshake and for a header, the length of header and body. A watch may wait for news as long as
//! allowed; its connection ends when the client is gone, which TCP keepalive detects.

use std::future::pending;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use ring::digest::{SHA256, digest};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{ServerConfig, ServerConnection};
use tracing::{debug, warn};

use super::request::Client;
use super::site::Shared;
use crate::base::http::{self, Limits, Respond, Stream, WhenFull};
use crate::base::logging::chain;
use crate::cluster::lease::rest::tls::{Files, TlsError};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most fields of a request's header.
const MAX_HEADERS: usize = 64;

/// The most connections at a time, if the file limit allows: each host of a large cluster has one or two.
const MAX_CONNECTIONS: usize = 16 * 1024;

/// The most connections per address, or per /64 for IPv6: hosts behind one NAT share an address.
const MAX_PER_ADDRESS: usize = 256;

/// File descriptors reserved for everything else.
const OTHER_FILES: u64 = 128;

/// TCP keepalive: probe a connection after this long without data, and drop it after this long without an
/// acknowledgment (`TCP_USER_TIMEOUT`).
const IDLE_SECS: u32 = 30;
const UNACKNOWLEDGED_MILLIS: u32 = 30_000;

/// The age at which certificates are read again.
const CERTIFICATES_AGE: Duration = Duration::from_secs(60);

/// The shortest interval between reports of failed handshakes.
const REPORT_PAUSE: Duration = Duration::from_secs(10);

/// The server's certificates, as last read.
pub(super) struct Tls {
    files: Files,
    config: Option<Arc<ServerConfig>>,
    loaded: Instant,
}

impl Tls {
    /// Reads the files; without a certificate there is no TLS.
    pub(super) fn new(files: Files) -> Result<Self, TlsError> {
        let config = files.server()?.map(Arc::new);
        Ok(Self {
            files,
            config,
            loaded: Instant::now(),
        })
    }

    /// Whether connections are encrypted.
    pub(super) fn is_on(&self) -> bool {
        self.config.is_some()
    }

    /// The TLS config for the next connection. Files that cannot be read just now leave it unchanged.
    fn current(&mut self) -> Option<Arc<ServerConfig>> {
        if self.config.is_some() && self.loaded.elapsed() > CERTIFICATES_AGE {
            self.loaded = Instant::now();
            match self.files.server() {
                Ok(config) => self.config = config.map(Arc::new),
                Err(error) => warn!(
                    "failed to reload the certificates, keeping the old ones: {}",
                    chain(&error)
                ),
            }
        }
        self.config.clone()
    }
}

/// The most connections that the limit of open files allows; raises the soft limit as needed.
fn most_connections() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 256;
    };
    let wanted = (u64::try_from(MAX_CONNECTIONS).unwrap_or(u64::MAX) + OTHER_FILES).min(hard);
    let raised = soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok();
    let limit = if raised { wanted } else { soft };
    usize::try_from(limit.saturating_sub(OTHER_FILES))
        .unwrap_or(MAX_CONNECTIONS)
        .clamp(16, MAX_CONNECTIONS)
}

/// Serves connections forever. All of them end when this is dropped.
pub(super) async fn serve(listener: TcpListener, mut tls: Tls, site: Shared) {
    let limits = Limits {
        total: most_connections(),
        per_address: MAX_PER_ADDRESS,
        when_full: WhenFull::Wait,
    };
    let mut refusals = Refusals::default();
    let serve = |stream, from| connection(stream, from, tls.current(), Arc::clone(&site));
    let refused = |address, why: &str| refusals.report(address, why);
    http::accept(&listener, limits, serve, refused, pending()).await;
}

/// Serves one connection. The error is about a client that was not admitted.
async fn connection(
    stream: TcpStream,
    address: IpAddr,
    tls: Option<Arc<ServerConfig>>,
    site: Shared,
) -> Result<(), String> {
    // Without keepalive, a client that vanished silently stays until TCP gives up.
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &IDLE_SECS);
    let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MILLIS);
    let _ = stream.set_nodelay(true);
    let Some(config) = tls else {
        let identity = None;
        talk(Box::new(stream), Client { address, identity }, site).await;
        return Ok(());
    };
    let accepted = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
    let stream = match accepted {
        Ok(Ok(stream)) => stream,
        // Port scanners and health checks of load balancers.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("the TLS handshake took too long".to_owned()),
    };
    let identity = identity(stream.get_ref().1);
    talk(Box::new(stream), Client { address, identity }, site).await;
    Ok(())
}

async fn talk(stream: Box<dyn Stream>, client: Client, site: Shared) {
    let address = client.address;
    let respond: Respond = Box::new(move |request| {
        let (client, site) = (client.clone(), Arc::clone(&site));
        Box::pin(async move { Ok(site.answer(&client, request).await) })
    });
    let mut options = http::options();
    options.max_headers(MAX_HEADERS);
    if let Err(error) = http::converse(options, stream, respond, pending()).await {
        debug!(client = %address, "connection ended: {error}");
    }
}

/// A client's identity from its certificate: a digest of the subject, which survives renewal of the certificate, or of
/// the key if there is no subject.
fn identity(connection: &ServerConnection) -> Option<String> {
    let certificate = connection.peer_certificates()?.first()?;
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let named = parsed.subject();
    let hash = if named.is_empty() {
        digest(&SHA256, &parsed.subject_public_key_info())
    } else {
        digest(&SHA256, named)
    };
    let bytes = hash.as_ref().iter().take(8);
    Some(bytes.map(|byte| format!("{byte:02x}")).collect())
}

/// Reports clients that were not admitted, at a limited rate.
#[derive(Default)]
struct Refusals {
    last: Option<Instant>,
    more: u64,
}

impl Refusals {
    fn report(&mut self, address: IpAddr, why: &str) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < REPORT_PAUSE) {
            self.more += 1;
            return;
        }
        let unreported = std::mem::take(&mut self.more);
        warn!(client = %address, unreported, "client refused: {why}");
        self.last = Some(now);
    }
}
