//! The release server: any static HTTP server, reached directly or through a proxy.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, HOST, HeaderValue, IF_RANGE, LOCATION, PROXY_AUTHORIZATION, RANGE, USER_AGENT,
};
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::base::http::{Connection, Stream, http_error_text, io_error_text, secure};
use crate::cluster::lease::rest::tls::{Files, TlsError};
use crate::settings::update::{Proxy, Update};

/// How many redirects are followed.
const MOST_REDIRECTS: usize = 5;

/// How long a server may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For the connection, and for an answer's head.
    pub(crate) answer: Duration,
    /// For the next bytes of its body.
    pub(crate) bytes: Duration,
}

impl Patience {
    const USUAL: Self = Self {
        answer: Duration::from_secs(30),
        bytes: Duration::from_secs(60),
    };
}

/// Why a file did not come.
#[derive(Debug, Error)]
pub enum ServerError {
    /// No connection.
    #[error("{url}: failed to connect to {to}: {}", io_error_text(.source))]
    Connect {
        /// What was asked for.
        url: String,
        /// The server or the proxy.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy refuses.
    #[error("{url}: the proxy {proxy} answers {status} for {to}")]
    Proxy {
        /// What was asked for.
        url: String,
        /// The proxy.
        proxy: String,
        /// The server behind it.
        to: String,
        /// HTTP status.
        status: u16,
    },
    /// The certificates cannot be used.
    #[error("update.cafile in agent.toml cannot be used")]
    Tls(#[source] TlsError),
    /// Nobody's certificate can be checked.
    #[error("no certificate authorities: update.cafile is not set, and the system has none")]
    NoAuthorities,
    /// The connection broke, or what came is no HTTP.
    #[error("{url}: the connection to {to} broke: {}", http_error_text(.source))]
    Http {
        /// What was asked for.
        url: String,
        /// The server.
        to: String,
        /// Why.
        source: hyper::Error,
    },
    /// Nothing came for a while.
    #[error("{url}: nothing came from {to} for {} s", .after.as_secs())]
    Silent {
        /// What was asked for.
        url: String,
        /// The server.
        to: String,
        /// For how long.
        after: Duration,
    },
    /// The server has no such file, or does not give it.
    #[error("{url}: HTTP status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The server sends us elsewhere, and it is not clear where, or too often, or to a server without TLS.
    #[error("{url}: the server redirects {problem}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The address cannot be used in a request.
    #[error("{0}: no address of a file")]
    Address(String),
    /// A file that should be small is not.
    #[error("{url} has more than {most} bytes")]
    TooLarge {
        /// Which.
        url: String,
        /// The limit.
        most: u64,
    },
}

impl ServerError {
    /// Whether the settings are at fault.
    pub fn is_bad_configuration(&self) -> bool {
        matches!(self, Self::Tls(_) | Self::NoAuthorities)
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Http { .. } | Self::Silent { .. } => true,
            Self::Status { status, .. } | Self::Proxy { status, .. } => {
                matches!(status, 408 | 425 | 429 | 500 | 502..=504)
            }
            Self::Tls(_)
            | Self::NoAuthorities
            | Self::Redirect { .. }
            | Self::Address(_)
            | Self::TooLarge { .. } => false,
        }
    }
}

/// A release server.
#[derive(Debug)]
pub struct Server {
    base: Uri,
    proxy: Option<Proxy>,
    cafile: Option<PathBuf>,
    patience: Patience,
}

/// The head of an answer; its body comes with [`Reply::next`].
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    url: String,
    to: String,
    patience: Patience,
    _connection: Connection,
}

impl Reply {
    /// The next bytes; `None` at the end. An end before what the head promised is an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ServerError> {
        loop {
            let frame = timeout(self.patience.bytes, self.body.frame()).await;
            let frame = frame.map_err(|_| ServerError::Silent {
                url: self.url.clone(),
                to: self.to.clone(),
                after: self.patience.bytes,
            })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| ServerError::Http {
                url: self.url.clone(),
                to: self.to.clone(),
                source,
            })?;
            // Trailers say nothing to us.
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

/// A place to go on from: the number of bytes that are here, and the version of the file that they are of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    pub(crate) byte: u64,
    pub(crate) tag: Option<&'a str>,
}

impl Server {
    /// The server of the settings; `None` if there is none.
    pub fn new(settings: &Update) -> Option<Self> {
        Some(Self::at(settings.server.clone()?, settings))
    }

    /// Any directory that an HTTP server has, reached as the settings say.
    pub fn at(base: Uri, settings: &Update) -> Self {
        Self {
            base,
            proxy: settings.proxy.clone(),
            cafile: settings.cafile.clone(),
            patience: Patience::USUAL,
        }
    }

    /// With other limits.
    #[cfg(test)]
    pub(crate) fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The address of one of its files.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base.to_string().trim_end_matches('/'))
    }

    /// A whole small file.
    ///
    /// # Errors
    /// Any status but 200, and more than `most` bytes.
    pub(crate) async fn small(&self, path: &str, most: u64) -> Result<Vec<u8>, ServerError> {
        let mut reply = self.get(path, None).await?;
        let url = self.url(path);
        if reply.status != 200 {
            let status = reply.status;
            return Err(ServerError::Status { url, status });
        }
        let mut bytes = Vec::new();
        while let Some(more) = reply.next().await? {
            bytes.extend_from_slice(&more);
            if bytes.len() as u64 > most {
                return Err(ServerError::TooLarge { url, most });
            }
        }
        Ok(bytes)
    }

    /// Asks for a file, or for what comes after a part of it. Follows redirects; any other status is the caller's.
    pub(crate) async fn get(
        &self,
        path: &str,
        from: Option<From<'_>>,
    ) -> Result<Reply, ServerError> {
        let mut url = self.url(path);
        for _ in 0..=MOST_REDIRECTS {
            let address: Uri = url.parse().map_err(|_| ServerError::Address(url.clone()))?;
            let reply = self.ask(&address, from, self.url(path)).await?;
            if !matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(reply);
            }
            url = redirected(&address, reply.headers.get(LOCATION))?;
        }
        Err(ServerError::Redirect {
            url,
            problem: format!("more than {MOST_REDIRECTS} times"),
        })
    }

    /// One request over one connection. Errors name `url`, not where a redirect led: that may have a secret in its query.
    async fn ask(
        &self,
        address: &Uri,
        from: Option<From<'_>>,
        url: String,
    ) -> Result<Reply, ServerError> {
        let target = Target::of(address, url)?;
        let limit = self.patience.answer;
        let silent = |_| ServerError::Silent {
            url: target.url.clone(),
            to: target.authority.clone(),
            after: limit,
        };
        let broke = |source| ServerError::Http {
            url: target.url.clone(),
            to: target.authority.clone(),
            source,
        };
        let stream = timeout(limit, self.connect(&target))
            .await
            .map_err(silent)??;
        let mut connection = Connection::start(stream).await.map_err(broke)?;
        // A proxy is told the whole address, a server the path alone.
        let by_proxy = self.proxy.as_ref().filter(|_| !target.tls);
        let asked = match (by_proxy, address.path_and_query()) {
            (None, Some(path)) => path.to_string(),
            _ => address.to_string(),
        };
        let mut request = Request::get(asked)
            .header(HOST, &target.host_header)
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")))
            // The hashes are those of the files, not of what a server makes of them on the way.
            .header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = by_proxy.and_then(authorization) {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={}-", from.byte));
            if let Some(tag) = from.tag {
                request = request.header(IF_RANGE, tag);
            }
        }
        let request = request
            .body(Full::default())
            .map_err(|_| ServerError::Address(address.to_string()))?;
        let answer = timeout(limit, connection.send(request)).await;
        let (head, body) = answer.map_err(silent)?.map_err(broke)?.into_parts();
        Ok(Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            url: target.url,
            to: target.authority,
            patience: self.patience,
            _connection: connection,
        })
    }

    async fn connect(&self, target: &Target) -> Result<Box<dyn Stream>, ServerError> {
        let through = self
            .proxy
            .as_ref()
            .map_or(&target.authority, |proxy| &proxy.authority);
        let failed = |source| ServerError::Connect {
            url: target.url.clone(),
            to: through.clone(),
            source,
        };
        let stream = TcpStream::connect(through).await.map_err(failed)?;
        if !target.tls {
            return Ok(Box::new(stream));
        }
        let stream: Box<dyn Stream> = match &self.proxy {
            None => Box::new(stream),
            Some(proxy) => Box::new(tunnel(stream, proxy, target).await?),
        };
        let files = Files {
            cafile: self.cafile.clone(),
            ..Files::default()
        };
        let config = files.client().map_err(|error| match error {
            TlsError::NoRoots => ServerError::NoAuthorities,
            error => ServerError::Tls(error),
        })?;
        let failed = |source| ServerError::Connect {
            url: target.url.clone(),
            to: target.authority.clone(),
            source,
        };
        secure(stream, Arc::new(config), &target.host)
            .await
            .map_err(failed)
    }
}

/// What is connected to.
struct Target {
    /// What was asked for, before redirects.
    url: String,
    tls: bool,
    /// Without brackets.
    host: String,
    /// `HOST:PORT`.
    authority: String,
    /// Without the port if it is the usual one.
    host_header: String,
}

impl Target {
    fn of(address: &Uri, url: String) -> Result<Self, ServerError> {
        let bad = || ServerError::Address(address.to_string());
        let tls = match address.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let host = address
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(bad)?;
        let usual = if tls { 443 } else { 80 };
        let port = address.port_u16().unwrap_or(usual);
        let authority = format!("{host}:{port}");
        Ok(Self {
            url,
            tls,
            host: host.trim_matches(['[', ']']).to_owned(),
            host_header: if port == usual {
                host.to_owned()
            } else {
                authority.clone()
            },
            authority,
        })
    }
}

/// Has the proxy connect us to the server.
async fn tunnel(
    stream: TcpStream,
    proxy: &Proxy,
    target: &Target,
) -> Result<impl Stream + use<>, ServerError> {
    let broke = |source| ServerError::Http {
        url: target.url.clone(),
        to: proxy.authority.clone(),
        source,
    };
    let mut connection = Connection::start(Box::new(stream)).await.map_err(broke)?;
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(&target.authority)
        .header(HOST, &target.authority);
    if let Some(authorization) = authorization(proxy) {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    let request = request
        .body(Full::default())
        .map_err(|_| ServerError::Address(target.authority.clone()))?;
    let answer = connection.send(request).await.map_err(broke)?;
    if !answer.status().is_success() {
        return Err(ServerError::Proxy {
            url: target.url.clone(),
            proxy: proxy.authority.clone(),
            to: target.authority.clone(),
            status: answer.status().as_u16(),
        });
    }
    let stream = hyper::upgrade::on(answer).await.map_err(broke)?;
    Ok(TokioIo::new(stream))
}

fn authorization(proxy: &Proxy) -> Option<HeaderValue> {
    let credentials = proxy.credentials.as_ref()?;
    let value = format!("Basic {}", STANDARD.encode(credentials.expose()));
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where a redirect leads to.
fn redirected(from: &Uri, location: Option<&HeaderValue>) -> Result<String, ServerError> {
    let wrong = |problem: &str| ServerError::Redirect {
        url: from.to_string(),
        problem: problem.to_owned(),
    };
    let location = location
        .and_then(|location| location.to_str().ok())
        .ok_or_else(|| wrong("without saying where"))?;
    let scheme = from.scheme_str().unwrap_or_default();
    let authority = from.authority().map_or("", |authority| authority.as_str());
    let to = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = from
            .path()
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    // The files are signed, but who reads along need not know which version comes.
    if scheme == "https" && !to.to_ascii_lowercase().starts_with("https://") {
        return Err(wrong("from https to a server without TLS"));
    }
    Ok(to)
}

#[cfg(test)]
mod tests;
