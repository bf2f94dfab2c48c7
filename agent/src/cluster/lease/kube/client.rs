//! Requests to the API server, over HTTP/1.1 with what the agent links already.

use std::fmt;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::timeout;

use super::access::{Access, AccessError, Token};
use crate::base::go_json::shorten;
use crate::base::http::{self, ExchangeError, http_error_text, io_error_text};
use crate::base::logging::chain;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::dial::dial;
use crate::cluster::lease::{Fault, StoreError};

/// The longest event of a watch that is read, in bytes. etcd stores no object above 1.5 MiB; JSON is larger than that.
const LONGEST_EVENT: usize = 8 << 20;

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    /// Path and query, below the server's own path.
    pub(super) path: String,
    pub(super) content_type: &'static str,
    /// JSON; empty for none.
    pub(super) body: String,
}

impl Question {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            content_type: "",
            body: String::new(),
        }
    }

    /// A change of a node's status, where annotations may be written as well: the right to patch `nodes/status` is all
    /// that flannel has.
    pub(super) fn patch_status(node: &str, patch: &serde_json::Value) -> Self {
        Self {
            method: Method::PATCH,
            path: format!("/api/v1/nodes/{node}/status"),
            content_type: "application/strategic-merge-patch+json",
            body: patch.to_string(),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// It is not known where to connect, or how.
    #[error("{}", chain(.0))]
    Access(#[from] AccessError),
    /// No connection.
    #[error("{}", io_error_text(.0))]
    Connect(#[source] io::Error),
    /// The connection broke, or the answer is not HTTP.
    #[error("{}", http_error_text(.0))]
    Http(#[from] hyper::Error),
    /// The request cannot be built.
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    /// The answer is too long, ended early, or is no JSON of the expected form.
    #[error("bad answer: {0}")]
    Answer(String),
    /// The server is overloaded, starting, or cannot reach etcd.
    #[error("HTTP status {status}: {text}")]
    Busy {
        /// The HTTP status, 429 or 5xx.
        status: u16,
        /// The server's words.
        text: String,
        /// How long it wants to be left alone.
        pause: Option<Duration>,
    },
    /// The server answered with an error.
    #[error("{text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's words.
        text: String,
    },
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silence(Duration),
}

impl Failure {
    /// The HTTP status, if the server gave one.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Busy { status, .. } | Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// How long the server wants to be left alone.
    pub(super) fn pause(&self) -> Option<Duration> {
        match self {
            Self::Busy { pause, .. } => *pause,
            _ => None,
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Access(AccessError::Tls(_)) => Fault::Tls,
            Self::Access(
                AccessError::Kubeconfig { .. } | AccessError::Token { .. } | AccessError::Clear(_),
            ) => Fault::Login,
            failure => Fault::of(failure),
        }
    }

    /// The store's error; `server` is what messages call the server.
    pub(super) fn of_store(self, server: &str) -> StoreError {
        let server = format!("API server at {server}");
        match self {
            Self::Refused { status, text } => StoreError::Refused {
                server,
                reason: text,
                code: status.into(),
            },
            failure => StoreError::Unreachable {
                attempts: format!("{server}: {failure}"),
                fault: failure.fault(),
            },
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Http(error) => Self::Http(error),
            ExchangeError::Body(error) => Self::Answer(error.to_string()),
        }
    }
}

/// A connection, closed when dropped.
pub(super) struct Connection {
    http: http::Connection,
    authority: String,
    /// What its paths begin with.
    base: String,
    /// What the server is called.
    url: String,
    token: Option<Token>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects; certificates and settings are read anew.
    async fn open(access: &Access) -> Result<Self, Failure> {
        let grant = access.load()?;
        let authority = grant.url.endpoint.authority().to_owned();
        let stream = dial(&authority, grant.tls, grant.server_name.as_deref()).await;
        let stream = stream.map_err(Failure::Connect)?;
        Ok(Self {
            http: http::Connection::start(stream).await?,
            authority,
            base: grant.url.path,
            url: grant.url.endpoint.url,
            token: grant.token,
        })
    }

    fn request(&self, question: &Question) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(format!("{}{}", self.base, question.path))
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            let token = token.read()?;
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(hyper::http::Error::from)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if !question.body.is_empty() {
            request = request.header(CONTENT_TYPE, question.content_type);
        }
        Ok(request.body(Full::from(question.body.clone()))?)
    }

    /// Sends a request and reads the whole answer.
    async fn ask(&mut self, question: &Question) -> Result<Bytes, Failure> {
        let request = self.request(question)?;
        let response = self.http.ask(request).await?;
        match response.status().as_u16() {
            200..=299 => Ok(response.into_body()),
            _ => Err(self.refusal(&response)),
        }
    }

    /// What an error of the server says.
    fn refusal(&self, response: &Response<Bytes>) -> Failure {
        #[derive(Deserialize)]
        struct Status {
            message: String,
        }
        let status = response.status().as_u16();
        let said = serde_json::from_slice::<Status>(response.body());
        let mut text = match said {
            Ok(said) => said.message.replace(['\n', '\r'], " "),
            Err(_) => shorten(String::from_utf8_lossy(response.body()).trim()),
        };
        if text.is_empty() {
            text = format!("HTTP status {status}");
        }
        if let (401, Some(token)) = (status, &self.token) {
            text = format!("{text}: the token in {} is not accepted", token.place());
        }
        let pause = response.headers().get(RETRY_AFTER);
        let pause = pause.and_then(|secs| secs.to_str().ok()?.parse().ok());
        match status {
            429 | 500..=599 => Failure::Busy {
                status,
                text,
                pause: pause.map(Duration::from_secs),
            },
            _ => Failure::Refused { status, text },
        }
    }
}

/// The client: where to connect, and the name of the server in use.
#[derive(Debug)]
pub(super) struct Client {
    access: Access,
    server: std::sync::Mutex<String>,
}

impl Client {
    pub(super) fn new(access: Access) -> Self {
        let server = std::sync::Mutex::new(access.describe());
        Self { access, server }
    }

    /// What messages call the server.
    pub(super) fn server(&self) -> String {
        let server = self.server.lock();
        server
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// The store's error for a failure.
    pub(super) fn error(&self, failure: Failure) -> StoreError {
        failure.of_store(&self.server())
    }

    async fn open(&self) -> Result<Connection, Failure> {
        let open = Connection::open(&self.access).await?;
        let server = self.server.lock();
        let mut server = server.unwrap_or_else(std::sync::PoisonError::into_inner);
        server.clone_from(&open.url);
        Ok(open)
    }

    /// Sends a request over `connection` if that is still usable; afterwards `connection` holds one that can be
    /// reused, if any. A request may be sent twice, so it must be idempotent.
    pub(super) async fn ask(
        &self,
        question: &Question,
        connection: &mut Option<Connection>,
        limit: Duration,
    ) -> Result<Bytes, Failure> {
        let mut usable = connection.take().filter(|open| open.http.is_usable());
        let answered = timeout(limit, async {
            loop {
                let old = usable.is_some();
                let mut open = match usable.take() {
                    Some(open) => open,
                    None => self.open().await?,
                };
                match open.ask(question).await {
                    // A server may close an idle connection at any time: retry over a new one.
                    Err(Failure::Http(_)) if old => {}
                    answer => return Ok((answer, open)),
                }
            }
        });
        let (answer, open) = match answered.await {
            Ok(Ok(answered)) => answered,
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(Failure::Silence(limit)),
        };
        // Who is not accepted reads certificates and settings anew.
        let is_known = !matches!(&answer, Err(failure) if failure.status() == Some(401));
        *connection = Some(open).filter(|open| is_known && open.http.is_usable());
        answer
    }

    /// Asks for a stream of events, over `connection` if that is still usable.
    pub(super) async fn watch(
        &self,
        path: &str,
        connection: &mut Option<Connection>,
        limit: Duration,
    ) -> Result<Stream, Failure> {
        let usable = connection.take().filter(|open| open.http.is_usable());
        let question = Question::get(path);
        let begun = timeout(limit, async {
            let mut open = match usable {
                Some(open) => open,
                None => self.open().await?,
            };
            let request = open.request(&question)?;
            let response = open.http.send(request).await?;
            if response.status().is_success() {
                return Ok(Stream {
                    _connection: open,
                    body: response.into_body(),
                    read: Vec::new(),
                });
            }
            let (head, body) = response.into_parts();
            let body = http_body_util::Limited::new(body, 1 << 20).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            Err(open.refusal(&Response::from_parts(head, body)))
        });
        begun.await.unwrap_or(Err(Failure::Silence(limit)))
    }
}

/// A client with one connection, which all its requests share.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    connection: tokio::sync::Mutex<Option<Connection>>,
}

impl Session {
    pub(super) fn new(access: Access) -> Self {
        Self {
            client: Client::new(access),
            connection: tokio::sync::Mutex::new(None),
        }
    }

    /// Sends a request over the shared connection.
    pub(super) async fn ask(&self, question: &Question) -> Result<Bytes, Failure> {
        let asked = async {
            let mut connection = self.connection.lock().await;
            self.client.ask(question, &mut connection, DEADLINE).await
        };
        // Others may be waiting for the connection as well.
        let answered = timeout(DEADLINE * 2, asked).await;
        answered.unwrap_or(Err(Failure::Silence(DEADLINE * 2)))
    }

    /// The same, with the store's error.
    pub(super) async fn get(&self, path: impl Into<String>) -> Result<Bytes, StoreError> {
        let answer = self.ask(&Question::get(path)).await;
        answer.map_err(|failure| self.client.error(failure))
    }

    /// What an answer says.
    pub(super) fn parse<T: DeserializeOwned>(&self, answer: &Bytes) -> Result<T, StoreError> {
        serde_json::from_slice(answer).map_err(|error| self.bad_answer(error.to_string()))
    }

    /// The error of an answer that makes no sense.
    pub(super) fn bad_answer(&self, what: String) -> StoreError {
        self.client.error(Failure::Answer(what))
    }

    /// Connects anew for the next request; one that is under way fails by its deadline.
    pub(super) fn reconnect(&self) {
        if let Ok(mut connection) = self.connection.try_lock() {
            *connection = None;
        }
    }
}

/// The events of a watch, each a line of JSON.
pub(super) struct Stream {
    _connection: Connection,
    body: Incoming,
    /// What was read of the next lines.
    read: Vec<u8>,
}

impl Stream {
    /// The next line; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut searched = 0;
        loop {
            let end = self.read[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let rest = self.read.split_off(searched + end + 1);
                return Ok(Some(std::mem::replace(&mut self.read, rest)));
            }
            searched = self.read.len();
            if searched > LONGEST_EVENT {
                let text = format!("an event has more than {LONGEST_EVENT} bytes");
                return Err(Failure::Answer(text));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.into()),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
