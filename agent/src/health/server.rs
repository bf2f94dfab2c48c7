//! The HTTP server behind the health endpoints.
//!
//! It may listen on every address, so whoever can reach the host can talk to it. Each connection gets one answer and a
//! few seconds; there are at most [`MAX_CONNECTIONS`] at a time, and what comes above waits in the kernel's queue.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use self::body::Text;
use super::Health;

mod body;

/// How long a request's header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last, from its acceptance to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long answers that are under way may still take when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How many connections are served at a time.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long to wait when the system has no room for another connection (`EMFILE` and the like).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a request's header may be in bytes: far more than any probe sends.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The health endpoints cannot be offered.
#[derive(Debug, Error)]
#[error("failed to listen on {address} for the health endpoints")]
pub struct BindError {
    /// Where it was tried.
    pub address: SocketAddr,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A listening server; [`Self::serve`] makes it answer.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Starts to listen. Port 0 means any free one; [`Self::address`] tells which.
    ///
    /// # Errors
    /// [`BindError`], for an address that this host does not have or that is taken.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(BindError { address, source }),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What getsockname(2) answers.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop` is ready; then accepts nothing more and lets answers that are under way end.
    ///
    /// When it is dropped instead, all connections end at once.
    pub async fn serve(self, health: Health, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let (stopping, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = connections.join_next() => (),
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, peer)) => {
                        let health = health.clone();
                        let stopped = stopped.clone();
                        connections.spawn(async move {
                            let served = timeout(CONNECTION_TIMEOUT, connection(stream, health, stopped)).await;
                            match served {
                                Ok(Ok(())) => (),
                                Ok(Err(error)) => debug!(%peer, "health connection ended: {error}"),
                                Err(_) => debug!(%peer, "health connection took too long"),
                            }
                        });
                    }
                    Err(error) => {
                        warn!("failed to accept a connection for the health endpoints: {error}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        // Every connection holds a receiver, so this reaches those that there are.
        let _ = stopping.send(true);
        let drained = async { while connections.join_next().await.is_some() {} };
        // What is left is cut off when the set is dropped.
        let _ = timeout(STOP_TIMEOUT, drained).await;
    }
}

/// Serves one connection: one request, one answer.
async fn connection(
    stream: TcpStream,
    health: Health,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &health);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        served = connection.as_mut() => return served,
        _ = stopped.wait_for(|stopped| *stopped) => (),
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// What is answered to a request; its body is never read. For HEAD, hyper leaves the body out.
fn answer(method: &Method, path: &str, health: &Health) -> Response<Text> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let known = matches!(path, "/healthz" | "/readyz" | "/metrics");
    if known && !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = respond(
            StatusCode::METHOD_NOT_ALLOWED,
            PLAIN,
            "only GET and HEAD are understood",
        );
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/healthz" => respond(StatusCode::OK, PLAIN, "flanneld is running"),
        "/readyz" => match health.unreadiness() {
            None => respond(StatusCode::OK, PLAIN, "flanneld is ready"),
            Some(reasons) => respond(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reasons),
        },
        "/metrics" => respond(StatusCode::OK, METRICS, health.metrics()),
        _ => respond(
            StatusCode::NOT_FOUND,
            PLAIN,
            "there are /healthz, /readyz and /metrics",
        ),
    }
}

fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Text> {
    let mut response = Response::new(Text::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
