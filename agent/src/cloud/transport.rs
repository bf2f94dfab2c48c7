//! HTTP to a provider's API and to the instance's metadata service.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderMap, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Uri};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::error::CloudError;
use crate::base::http::{Connection, ExchangeError, Stream, http_error_text, io_error_text};
use crate::base::logging::chain;
use crate::cluster::lease::rest::tls::Files;

/// How long a connection may take to come about, with TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take, with the connection. Providers' front ends give up after some 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends requests; knows where to, if the settings say so, and what time it is.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    /// In place of every API server of the provider: `http://HOST:PORT` or `https://HOST[:PORT]`, without a trailing
    /// slash; paths stay.
    api: Option<String>,
    /// In place of the metadata service, in the same form.
    metadata: Option<String>,
    /// The clock that requests are signed by.
    clock: fn() -> SystemTime,
    /// The certificates of authorities, if not the system's.
    authorities: Option<PathBuf>,
    /// Read at the first use.
    tls: Option<Arc<ClientConfig>>,
    received: u64,
}

/// A request. Headers, query and body may have secrets, and do not show in its debug form.
pub(crate) struct Call {
    pub(crate) method: Method,
    /// With scheme, host, path and query; all of it percent-encoded.
    pub(crate) url: String,
    /// Besides `Host` and `User-Agent`, which are set here.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (url, _) = self.url.split_once('?').unwrap_or((&self.url, ""));
        write!(f, "{} {url}", self.method)
    }
}

/// What was answered. Headers and body may have secrets, and do not show in its debug form.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} bytes", self.status, self.body.len())
    }
}

impl Answer {
    /// How long the server asks to wait (RFC 9110 §10.2.3, in seconds).
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        text.trim().parse().ok().map(Duration::from_secs)
    }

    /// The body as JSON; `call` is for the message.
    pub(crate) fn json<'a, T: serde::Deserialize<'a>>(
        &'a self,
        call: &'static str,
    ) -> Result<T, CloudError> {
        serde_json::from_slice(&self.body).map_err(|error| CloudError::Malformed {
            call,
            problem: error.to_string(),
        })
    }

    /// The same for one that has a secret in it, which the parser's message might quote.
    pub(crate) fn secret_json<'a, T: serde::Deserialize<'a>>(
        &'a self,
        call: &'static str,
    ) -> Result<T, CloudError> {
        serde_json::from_slice(&self.body).map_err(|error| CloudError::Malformed {
            call,
            problem: format!("not the expected JSON in line {}", error.line()),
        })
    }
}

impl Transport {
    /// To the provider's own servers, or to these.
    pub(crate) fn new(api: Option<String>, metadata: Option<String>) -> Self {
        Self {
            api,
            metadata,
            clock: SystemTime::now,
            authorities: None,
            tls: None,
            received: 0,
        }
    }

    /// Trusts the authorities of this file instead of the system's.
    pub(crate) fn trust(&mut self, authorities: PathBuf) {
        if self.authorities.as_ref() != Some(&authorities) {
            self.authorities = Some(authorities);
            self.tls = None;
        }
    }

    /// With another clock, for tests.
    #[cfg(test)]
    pub(crate) fn with_clock(self, clock: fn() -> SystemTime) -> Self {
        Self { clock, ..self }
    }

    /// An API server's base URL: the one of the settings, else the provider's.
    pub(crate) fn api(&self, providers: &str) -> String {
        self.api.clone().unwrap_or_else(|| providers.to_owned())
    }

    /// A URL, or the same path and query at the API server of the settings.
    pub(crate) fn at(&self, url: &str) -> String {
        let start = url.find("://").map_or(0, |at| at + 3);
        let path = url[start..].find('/').map_or(url.len(), |at| start + at);
        format!("{}{}", self.api(&url[..path]), &url[path..])
    }

    /// The metadata service's base URL: the one of the settings, else the provider's.
    pub(crate) fn metadata(&self, providers: &str) -> String {
        let set = self.metadata.clone();
        set.unwrap_or_else(|| providers.to_owned())
    }

    /// The time, in seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let since = (self.clock)().duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs()
    }

    /// How many bytes all bodies of answers had until now.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Sends a request over a connection of its own, and reads the answer, whatever its status.
    ///
    /// # Errors
    /// [`CloudError::Unreachable`] without an answer.
    pub(crate) async fn send(&mut self, call: Call) -> Result<Answer, CloudError> {
        let uri: Uri = (call.url.parse()).map_err(|_| CloudError::Unreachable {
            server: call.url.clone(),
            problem: "this is no URL".to_owned(),
        })?;
        let scheme = uri.scheme_str().unwrap_or("http");
        let server = format!("{scheme}://{}", uri.authority().map_or("", |a| a.as_str()));
        let unreachable = |problem: String| CloudError::Unreachable { server, problem };
        match timeout(ANSWER_TIMEOUT, self.exchange(&uri, call)).await {
            Ok(Ok(answer)) => {
                let bytes = u64::try_from(answer.body.len()).unwrap_or(u64::MAX);
                self.received = self.received.saturating_add(bytes);
                Ok(answer)
            }
            Ok(Err(problem)) => Err(unreachable(problem)),
            Err(_) => Err(unreachable(format!(
                "no answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            ))),
        }
    }

    async fn exchange(&mut self, uri: &Uri, call: Call) -> Result<Answer, String> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(call.method)
            .uri(path)
            .header(HOST, authority)
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(call.body))
            .map_err(|error| error.to_string())?;
        let tls = match uri.scheme_str() {
            Some("https") => Some(self.tls()?),
            _ => None,
        };
        let stream = timeout(CONNECT_TIMEOUT, connect(host, uri.port_u16(), tls))
            .await
            .map_err(|_| format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))?
            .map_err(|error| format!("failed to connect: {}", io_error_text(&error)))?;
        let mut connection = Connection::start(stream)
            .await
            .map_err(|error| http_error_text(&error))?;
        let answer = connection.ask(request).await;
        let (head, body) = answer
            .map_err(|error| match error {
                ExchangeError::Http(error) => http_error_text(&error),
                error @ ExchangeError::Body(_) => error.to_string(),
            })?
            .into_parts();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    fn tls(&mut self) -> Result<Arc<ClientConfig>, String> {
        if let Some(tls) = &self.tls {
            return Ok(Arc::clone(tls));
        }
        let files = Files {
            cafile: self.authorities.clone(),
            ..Files::default()
        };
        let config = files.client().map_err(|error| chain(&error))?;
        Ok(Arc::clone(self.tls.insert(Arc::new(config))))
    }
}

async fn connect(
    host: &str,
    port: Option<u16>,
    tls: Option<Arc<ClientConfig>>,
) -> io::Result<Box<dyn Stream>> {
    let usual = if tls.is_some() { 443 } else { 80 };
    let stream = TcpStream::connect((host, port.unwrap_or(usual))).await?;
    let Some(config) = tls else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_show() {
        let call = Call {
            method: Method::POST,
            url: "https://api.example/routes?Signature=hidden1".to_owned(),
            headers: vec![("authorization", "Bearer hidden2".to_owned())],
            body: Bytes::from_static(b"assertion=hidden3"),
        };
        assert_eq!(format!("{call:?}"), "POST https://api.example/routes");
        let answer = Answer {
            status: 201,
            headers: [(HOST, "hidden4".parse().unwrap())].into_iter().collect(),
            body: Bytes::from_static(b"\"hidden5\""),
        };
        assert_eq!(format!("{answer:?}"), "201 with 9 bytes");
        // Serde quotes a string that it did not expect.
        let error = answer.secret_json::<u64>("token").unwrap_err().to_string();
        assert_eq!(
            error,
            "token: unexpected answer: not the expected JSON in line 1"
        );
        assert!(
            answer
                .json::<u64>("list")
                .unwrap_err()
                .to_string()
                .contains("hidden5")
        );
    }
}
