//! HTTP, for all servers and clients of the agent: one way to accept connections, and one to speak on them.
//!
//! [`serve`] is the server that health endpoints and the control socket share. It may listen on every address, so any
//! host can connect. Each connection gets one answer and a few seconds; at most [`MAX_CONNECTIONS`] are open at a time.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use self::accept::Listener;
pub(crate) use self::accept::{Limits, WhenFull, accept};
pub(crate) use self::call::{Call, CallError, Manner, secure};
pub(crate) use self::client::{
    Connection, ExchangeError, Trouble, get, http_error_text, io_error_text,
};

mod accept;
mod call;
mod client;

/// Deadline for a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// The maximum size of a request's header in bytes, far more than any client of ours sends.
const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Deadline for a connection, from accept to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long pending answers may still take when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum number of connections.
pub(crate) const MAX_CONNECTIONS: usize = 64;

/// The maximum per address.
pub(crate) const MAX_PER_ADDRESS: usize = 16;

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

/// The bytes of a connection. Boxed, so that hyper's large code exists once, not for each kind of connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Answers a request. Boxed for the same reason.
pub(crate) type Respond = Box<dyn Fn(Request<Incoming>) -> Responding + Send>;

/// A response in the making.
pub(crate) type Responding =
    Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send>>;

/// The options of all servers.
pub(crate) fn options() -> http1::Builder {
    let mut options = http1::Builder::new();
    options
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES);
    options
}

/// Answers the requests that come over a connection; once `stopped` is ready, completes the pending answer and ends.
pub(crate) async fn converse(
    options: http1::Builder,
    stream: Box<dyn Stream>,
    respond: Respond,
    stopped: impl Future<Output = ()>,
) -> Result<(), hyper::Error> {
    let service = service_fn(respond);
    let mut connection = pin!(options.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        served = connection.as_mut() => return served,
        () = stopped => (),
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Serves until `stop` is ready; then accepts no more connections and completes pending answers.
///
/// If the future is dropped instead, all connections are closed at once.
pub(crate) async fn serve<L: Listener>(
    listener: L,
    handler: impl Handler,
    stop: impl Future<Output = ()>,
) {
    let limits = Limits {
        total: MAX_CONNECTIONS,
        per_address: MAX_PER_ADDRESS,
        when_full: WhenFull::Replace,
    };
    let (stopping, stopped) = watch::channel(false);
    let serve = |stream: L::Stream, _| {
        let served = connection(Box::new(stream), handler.clone(), stopped.clone());
        async {
            match timeout(CONNECTION_TIMEOUT, served).await {
                Ok(Ok(())) => (),
                Ok(Err(error)) => debug!("connection ended: {error}"),
                Err(_) => debug!("connection took too long"),
            }
            Ok(())
        }
    };
    let mut connections = accept(&listener, limits, serve, |_, _| (), stop).await;
    drop(listener);
    // Every connection holds a receiver, so this reaches all of them.
    let _ = stopping.send(true);
    let drained = async { while connections.join_next().await.is_some() {} };
    // Dropping the set closes the rest.
    let _ = timeout(STOP_TIMEOUT, drained).await;
}

/// Serves one connection: one request, one answer.
async fn connection(
    stream: Box<dyn Stream>,
    handler: impl Handler,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), hyper::Error> {
    let respond: Respond = Box::new(move |request| {
        let handler = handler.clone();
        Box::pin(async move { Ok(respond(&handler, request.method(), request.uri()).await) })
    });
    let mut options = options();
    options.keep_alive(false);
    let stopped = async {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    converse(options, stream, respond, stopped).await
}

/// The answer to a request, whose body is never read. For HEAD, hyper omits the answer's body.
async fn respond(handler: &impl Handler, method: &Method, uri: &Uri) -> Response<Full<Bytes>> {
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
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if allow {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
