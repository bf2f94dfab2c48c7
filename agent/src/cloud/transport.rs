//! HTTP to a provider's API and to the instance's metadata service.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use hyper::header::{HeaderMap, RETRY_AFTER};
use tokio_rustls::rustls::ClientConfig;

use super::error::CloudError;
pub(crate) use crate::base::http::Call;
use crate::base::http::Manner;
use crate::base::logging::chain;
use crate::cluster::lease::rest::tls::{Files, TlsError};

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
        let server = server(url);
        format!("{}{}", self.api(server), &url[server.len()..])
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
        let server = server(&call.url).to_owned();
        let unreachable = |problem: String| CloudError::Unreachable { server, problem };
        let manner = match self.manner(call.is_tls()) {
            Ok(manner) => manner,
            Err(error) => return Err(unreachable(chain(&error))),
        };
        let answer = call.send(&manner).await;
        let (head, body) = answer
            .map_err(|error| unreachable(error.to_string()))?
            .into_parts();
        let bytes = u64::try_from(body.len()).unwrap_or(u64::MAX);
        self.received = self.received.saturating_add(bytes);
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }

    fn manner(&mut self, is_tls: bool) -> Result<Manner, TlsError> {
        if is_tls && self.tls.is_none() {
            let files = Files {
                cafile: self.authorities.clone(),
                ..Files::default()
            };
            self.tls = Some(Arc::new(files.client()?));
        }
        Ok(Manner {
            connect: CONNECT_TIMEOUT,
            answer: ANSWER_TIMEOUT,
            from: None,
            tls: self.tls.clone().filter(|_| is_tls),
        })
    }
}

/// Scheme and host of a URL.
fn server(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?']);
    &url[..end.map_or(url.len(), |at| start + at)]
}

#[cfg(test)]
mod tests {
    use hyper::header::HOST;

    use super::*;

    #[test]
    fn secrets_do_not_show() {
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
