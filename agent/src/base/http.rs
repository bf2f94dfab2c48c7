//! The HTTP server that health endpoints and the control socket share.
//!
//! It may listen on every address, so any host can connect. Each connection gets one answer and a few seconds; at most
//! [`MAX_CONNECTIONS`] are open at a time. A connection above the limit replaces the oldest one of the address with the
//! most connections: a slow client harms only itself.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::body::Text;
pub(crate) use self::client::{Connection, ExchangeError, Trouble, get};
use crate::base::logging::Repeats;
use crate::base::net::address_block;

mod body;
mod client;

/// Deadline for a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Deadline for a connection, from accept to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long pending answers may still take when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum number of connections.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// The maximum per address; an IPv6 /64 counts as one address.
pub(crate) const MAX_PER_ADDRESS: usize = 16;

/// Pause after a failed accept, for example out of file descriptors (`EMFILE`).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The maximum size of a request's header in bytes, far more than any probe sends.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// The content type of plain texts.
pub(crate) const PLAIN: &str = "text/plain; charset=utf-8";

/// What answers requests.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    /// Answers a request for a path and query; `None` if the path does not exist.
    ///
    /// Requests have neither body nor side effect: only GET and HEAD arrive here.
    fn answer(&self, uri: &Uri) -> impl Future<Output = Option<Answer>> + Send;

    /// The text for an unknown path.
    fn paths(&self) -> &'static str;
}

/// What is answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A text, of the type [`PLAIN`].
    pub(crate) fn plain(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            content_type: PLAIN,
            body: body.into(),
        }
    }
}

/// A source of connections.
pub(crate) trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next connection; also returns the peer's address, if there is one. Cancel-safe.
    fn accept(&mut self)
    -> impl Future<Output = io::Result<(Self::Stream, Option<IpAddr>)>> + Send;
}

impl Listener for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Stream, Option<IpAddr>)> {
        let (stream, from) = TcpListener::accept(self).await?;
        Ok((stream, Some(from.ip())))
    }
}

impl Listener for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&mut self) -> io::Result<(Self::Stream, Option<IpAddr>)> {
        Ok((UnixListener::accept(self).await?.0, None))
    }
}

/// Serves until `stop` is ready; then accepts no more connections and completes pending answers.
///
/// If the future is dropped instead, all connections are closed at once.
pub(crate) async fn serve(
    mut listener: impl Listener,
    handler: impl Handler,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let (stopping, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut crowd = Crowd::default();
    let mut refused = Repeats::default();
    loop {
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => (),
            accepted = listener.accept(), if crowd.has_place(connections.len()) => match accepted {
                Ok((stream, from)) => {
                    if let Some(seen) = refused.end(Instant::now()) {
                        info!("accepting connections again; the failure was {seen}");
                    }
                    let handler = handler.clone();
                    let stopped = stopped.clone();
                    let connection = connections.spawn(async move {
                        let served = timeout(CONNECTION_TIMEOUT, connection(stream, handler, stopped)).await;
                        match served {
                            Ok(Ok(())) => (),
                            Ok(Err(error)) => debug!("connection ended: {error}"),
                            Err(_) => debug!("connection took too long"),
                        }
                    });
                    if let Some(from) = from {
                        crowd.add(from, connection, connections.len());
                    }
                }
                Err(error) => {
                    let fault = format!("failed to accept a connection: {error}");
                    if let Some(line) = refused.note(&fault, Instant::now()) {
                        warn!("{line}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // Every connection holds a receiver, so this reaches all of them.
    let _ = stopping.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    // Dropping the set closes the rest.
    let _ = timeout(STOP_TIMEOUT, drained).await;
}

/// Connections with a known address, oldest first per address.
#[derive(Default)]
struct Crowd(HashMap<IpAddr, VecDeque<AbortHandle>>);

impl Crowd {
    /// Whether another connection can be accepted, possibly by closing one of these.
    fn has_place(&self, served: usize) -> bool {
        served < MAX_CONNECTIONS || !self.0.is_empty()
    }

    /// Adds a connection. If now `served` exceeds the limit, closes the one that it replaces.
    fn add(&mut self, from: IpAddr, connection: AbortHandle, served: usize) {
        self.0.retain(|_, those| {
            those.retain(|connection| !connection.is_finished());
            !those.is_empty()
        });
        let own = self.0.entry(address_block(from)).or_default();
        own.push_back(connection);
        let crowded = if own.len() > MAX_PER_ADDRESS {
            Some(own)
        } else if served > MAX_CONNECTIONS {
            self.0.values_mut().max_by_key(|those| those.len())
        } else {
            None
        };
        if let Some(oldest) = crowded.and_then(VecDeque::pop_front) {
            oldest.abort();
        }
    }
}

/// Serves one connection: one request, one answer.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: impl Handler,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(respond(&handler, request.method(), request.uri()).await) }
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

/// The answer to a request, whose body is never read. For HEAD, hyper omits the answer's body.
async fn respond(handler: &impl Handler, method: &Method, uri: &Uri) -> Response<Text> {
    let readable = matches!(*method, Method::GET | Method::HEAD);
    let answer = match handler.answer(uri).await {
        None => Answer::plain(StatusCode::NOT_FOUND, handler.paths()),
        Some(_) if !readable => Answer::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and HEAD are understood",
        ),
        Some(answer) => answer,
    };
    let allow = answer.status == StatusCode::METHOD_NOT_ALLOWED;
    let mut response = Response::new(Text::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if allow {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
