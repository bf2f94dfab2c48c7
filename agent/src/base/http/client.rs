//! Asking a server: requests over one connection, and a whole exchange with one behind a Unix socket, our own agent or
//! Docker.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Stream;

/// The longest answer that is read, in bytes: some 200,000 leases. Docker tells some kilobytes of each container.
const MAX_ANSWER: usize = 64 << 20;

/// A request got no answer, or none that can be read.
#[derive(Debug, Error)]
pub(crate) enum ExchangeError {
    /// The connection broke, or what came is no HTTP.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// The answer is too long, or ended early.
    #[error("bad answer: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Why a connection failed, without the error number that the system's message ends with.
pub(crate) fn io_error_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => error.kind().to_string(),
        None => error.to_string(),
    }
}

/// The cause below hyper's own message: `connection reset`, or the TLS error.
pub(crate) fn http_error_text(error: &hyper::Error) -> String {
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.downcast_ref::<io::Error>()
        .map_or_else(|| root.to_string(), io_error_text)
}

/// An HTTP/1.1 connection, closed when it is dropped: one request after the other.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// The task that moves the bytes ends with it.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Speaks HTTP over an open stream.
    pub(crate) async fn start(stream: Box<dyn Stream>) -> Result<Self, hyper::Error> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Whoever waits for an answer is told what is wrong as well.
            let _ = driver.with_upgrades().await;
        });
        Ok(Self {
            sender,
            _driver: tasks,
        })
    }

    /// Whether another request may be sent.
    pub(crate) fn is_usable(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads the answer, whole. The request must have a `Host`.
    pub(crate) async fn ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let (head, body) = self.send(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = body.map_err(ExchangeError::Body)?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

impl Connection {
    /// Sends a request and reads the head of the answer; its body comes while this connection lives. The request must have
    /// a `Host`.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Nobody listens there, or not to us.
    Connect(io::Error),
    /// The connection broke, took too long, or what came was no HTTP.
    Exchange(io::Error),
}

/// The status code and the body of the answer to `GET target` from the server behind a Unix socket.
pub(crate) async fn get(
    path: &Path,
    target: &str,
    deadline: Duration,
) -> Result<(u16, Bytes), Trouble> {
    let stream = UnixStream::connect(path).await.map_err(Trouble::Connect)?;
    let request = Request::get(target)
        .header(HOST, "localhost")
        .body(Full::default())
        .map_err(|error| Trouble::Exchange(io::Error::other(error)))?;
    let exchange = async {
        let mut connection = Connection::start(Box::new(stream))
            .await
            .map_err(ExchangeError::from)?;
        connection.ask(request).await
    };
    let answer = timeout(deadline, exchange)
        .await
        .map_err(|elapsed| Trouble::Exchange(elapsed.into()))?
        .map_err(|error| Trouble::Exchange(io::Error::other(error)))?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// What [`get`] makes of a server that answers so and closes the connection.
    async fn answered(answer: &'static str) -> Result<(u16, Bytes), Trouble> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let got = get(&path, "/v1/status", Duration::from_secs(10)).await;
        server.await.unwrap();
        got
    }

    #[tokio::test]
    async fn answers_are_read_and_rubbish_is_refused() {
        for (answer, status, body) in [
            (
                "HTTP/1.1 404 Not Found\r\nA: b\r\n\r\nno\r\n\r\n",
                404,
                "no\r\n\r\n",
            ),
            ("HTTP/1.0 200 OK\r\n\r\n", 200, ""),
            // As Docker sends what is long.
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n",
                200,
                "[1]",
            ),
        ] {
            let got = answered(answer).await.unwrap();
            assert_eq!(
                got,
                (status, Bytes::from_static(body.as_bytes())),
                "{answer:?}"
            );
        }
        for rubbish in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "\r\n\r\n",
            "HTTP/1.1 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        ] {
            let got = answered(rubbish).await;
            assert!(
                matches!(got, Err(Trouble::Exchange(_))),
                "{rubbish:?}: {got:?}"
            );
        }
    }
}
