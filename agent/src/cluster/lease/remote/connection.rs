//! One HTTP connection to a server: one request at a time.

use std::io;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use thiserror::Error;

use crate::base::endpoint::Endpoint;
use crate::base::http::{self, ExchangeError, http_error_text, io_error_text};
use crate::cluster::lease::Fault;
use crate::cluster::lease::rest::tls::{Files, TlsError};
use crate::cluster::lease::rest::{JSON, OBJECT, REASON, Reason};
use crate::cluster::lease::store::dial::dial;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// No connection.
    #[error("{}", io_error_text(.0))]
    Connect(#[source] io::Error),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The connection broke, or the answer is not HTTP.
    #[error("{}", http_error_text(.0))]
    Http(#[from] hyper::Error),
    /// The request cannot be built.
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
    /// The answer is too long or ended early.
    #[error("bad answer: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer has unexpected content.
    #[error("bad answer: {0}")]
    Answer(String),
    /// The server answers, but cannot reach etcd.
    #[error("{0}")]
    NoStore(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silence(Duration),
}

impl Failure {
    /// What the operator must fix.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Tls(_) => Fault::Tls,
            failure => Fault::of(failure),
        }
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Http(error) => Self::Http(error),
            ExchangeError::Body(error) => Self::Body(error),
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// JSON; empty for none.
    pub(super) body: String,
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The kind of error, if it is one.
    pub(super) reason: Reason,
    /// What the error is about.
    pub(super) object: Option<String>,
    pub(super) body: Bytes,
}

/// A connection, closed when dropped.
pub(super) struct Connection {
    http: http::Connection,
    authority: String,
}

impl Connection {
    /// Connects to a server. Certificates are read for each connection, so renewed ones take effect.
    pub(super) async fn open(server: &Endpoint, files: &Files) -> Result<Self, Failure> {
        let authority = server.authority();
        let tls = server.tls.then(|| files.client()).transpose()?;
        let stream = dial(authority, tls, None).await;
        let stream = stream.map_err(Failure::Connect)?;
        Ok(Self {
            http: http::Connection::start(stream).await?,
            authority: authority.to_owned(),
        })
    }

    /// Whether another request can be sent.
    pub(super) fn is_usable(&self) -> bool {
        self.http.is_usable()
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn ask(&mut self, question: &Question) -> Result<Answer, Failure> {
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(&question.path)
            .header(HOST, &self.authority);
        if !question.body.is_empty() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        let request = request.body(Full::from(question.body.clone()))?;
        let response = self.http.ask(request).await?;
        let status = response.status().as_u16();
        let reason = Reason::read(response.headers().get(REASON).map(|value| value.as_bytes()));
        let object = response.headers().get(OBJECT);
        let object = object.and_then(|value| Some(value.to_str().ok()?.to_owned()));
        Ok(Answer {
            status,
            reason,
            object,
            body: response.into_body(),
        })
    }
}
