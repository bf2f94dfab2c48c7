//! A connection to a server that speaks HTTP.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;

use crate::base::http::{Stream, secure};

/// How long sent data may stay unacknowledged (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// Seconds without data after which the server's kernel is asked whether it still knows the connection, and between two
/// such questions. Who only listens would otherwise never notice that the other side is gone.
const IDLE_SECS: u32 = 10;

/// Connects to `HOST:PORT`, with TLS if there is a config for it. `server_name` is the name in the server's certificate,
/// if that is not the host's.
pub(in crate::cluster::lease) async fn dial(
    authority: &str,
    tls: Option<ClientConfig>,
    server_name: Option<&str>,
) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(authority).await?;
    let millis = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    // All of these only detect a dead server sooner, so failures are ignored.
    let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &millis);
    let _ = setsockopt(&stream, sockopt::TcpKeepIdle, &IDLE_SECS);
    let _ = setsockopt(&stream, sockopt::TcpKeepInterval, &IDLE_SECS);
    let _ = setsockopt(&stream, sockopt::KeepAlive, &true);
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        return Ok(Box::new(stream));
    };
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    secure(Box::new(stream), Arc::new(tls), server_name.unwrap_or(host)).await
}
