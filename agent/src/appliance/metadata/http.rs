//! Requests to a platform's metadata service.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use thiserror::Error;

use super::providers::Http;
use crate::base::http::{Call, CallError, Manner};
use crate::cluster::lease::rest::tls::{Files, TlsError};

/// How long a connection may take to come about, with TLS. The services are on the host or the next switch.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take, with the connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports that only root may use; Scaleway answers no other.
const PRIVILEGED_PORTS: std::ops::RangeInclusive<u16> = 512..=1023;

/// Why a place gave nothing.
#[derive(Debug, Error)]
pub enum Trouble {
    /// No connection.
    #[error("{url}: failed to connect: {cause}")]
    Connect {
        /// What was asked for.
        url: String,
        /// Why.
        cause: io::Error,
    },
    /// Neither an answer nor an error in time.
    #[error("{url}: no answer within {} s", after.as_secs())]
    Silent {
        /// What was asked for.
        url: String,
        /// For how long.
        after: Duration,
    },
    /// The connection broke, or what came is no HTTP.
    #[error("{url}: {problem}")]
    Exchange {
        /// What was asked for.
        url: String,
        /// What happened.
        problem: String,
    },
    /// An answer that says no.
    #[error("{url}: HTTP status {status}{}", hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The certificates of authorities cannot be used.
    #[error("{url}: {cause}")]
    Tls {
        /// What was asked for.
        url: String,
        /// Why.
        cause: Box<TlsError>,
    },
    /// A document that is not what it should be.
    #[error("{place}: {problem}")]
    Document {
        /// The URL or the file.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no such drive.
    #[error("no disk has the label {0}")]
    NoDrive(String),
    /// The drive cannot be used.
    #[error("failed to {verb} {path}: {cause}")]
    Drive {
        /// `mount` or `read`.
        verb: &'static str,
        /// The device or the file.
        path: String,
        /// Why.
        cause: io::Error,
    },
}

impl Trouble {
    /// Whether another try is in vain.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Document { .. })
    }

    /// Whether a server refuses what it is asked, and not only for now (408, 425, 429).
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Status { status, .. }
            if (400..500).contains(status) && ![408, 425, 429].contains(status))
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (is the metadata service switched off for this machine?)",
        _ => "",
    }
}

impl Trouble {
    fn of(url: &str, error: CallError) -> Self {
        let url = url.to_owned();
        match error {
            CallError::Connect(cause) => Self::Connect { url, cause },
            CallError::Slow(after) | CallError::Silent(after) => Self::Silent { url, after },
            error => Self::Exchange {
                url,
                problem: error.to_string(),
            },
        }
    }
}

/// Sends a request; returns the status and the body. With `privileged`, from a port that only root may use.
pub(super) async fn ask(call: Call, privileged: bool) -> Result<(u16, Bytes), Trouble> {
    let url = call.url.clone();
    let tls = (call.is_tls().then(|| Files::default().client()).transpose()).map_err(|cause| {
        Trouble::Tls {
            url: url.clone(),
            cause: Box::new(cause),
        }
    })?;
    let manner = Manner {
        connect: CONNECT_TIMEOUT,
        answer: ANSWER_TIMEOUT,
        from: privileged.then_some(PRIVILEGED_PORTS),
        tls: tls.map(Arc::new),
    };
    let answer = call.send(&manner).await;
    let answer = answer.map_err(|error| Trouble::of(&url, error))?;
    Ok((answer.status().as_u16(), answer.into_body()))
}

/// Questions to one server of a platform: with its token and headers, each document at most once.
pub(super) struct Session<'a> {
    http: &'a Http,
    server: String,
    token: Option<String>,
    documents: BTreeMap<String, Option<Bytes>>,
}

impl<'a> Session<'a> {
    /// Takes a token, if the service gives any. One that does not know tokens is asked without.
    pub(super) async fn open(http: &'a Http, server: String) -> Result<Self, Trouble> {
        let mut token = None;
        if let Some(wanted) = &http.token {
            let url = format!("{server}{}", wanted.path);
            let call = Call {
                method: Method::PUT,
                url: url.clone(),
                headers: vec![
                    (wanted.lifetime, "300".to_owned()),
                    ("Accept", "text/plain".to_owned()),
                ],
                body: Bytes::new(),
            };
            token = match ask(call, false).await? {
                (200, body) => Some(String::from_utf8_lossy(&body).trim().to_owned()),
                (404 | 405, _) => None,
                (status, _) => return Err(Trouble::Status { url, status }),
            };
        }
        Ok(Self {
            http,
            server,
            token,
            documents: BTreeMap::new(),
        })
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// A document's URL.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    /// A document; `None` if there is none.
    pub(super) async fn get(&mut self, path: &str) -> Result<Option<Bytes>, Trouble> {
        if let Some(known) = self.documents.get(path) {
            return Ok(known.clone());
        }
        let url = self.url(path);
        let fixed = self.http.headers.iter();
        let mut headers: Vec<_> = fixed
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        if let (Some(wanted), Some(token)) = (&self.http.token, &self.token) {
            headers.push((wanted.header, token.clone()));
        }
        let call = Call {
            method: Method::GET,
            url: url.clone(),
            headers,
            body: Bytes::new(),
        };
        let document = match ask(call, self.http.privileged).await? {
            (200, body) => Some(body),
            (204 | 404 | 410, _) => None,
            (status, _) => return Err(Trouble::Status { url, status }),
        };
        self.documents.insert(path.to_owned(), document.clone());
        Ok(document)
    }
}
