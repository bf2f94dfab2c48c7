//! Requests to a platform's metadata service.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Method, Request, Uri};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::providers::Http;
use crate::base::http::{Connection, Stream};
use crate::cluster::lease::rest::tls::{Files, TlsError};

/// How long a connection may take to come about. The services are on the host or the next switch.
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

/// A request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// With the server.
    pub(super) url: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: Bytes,
    /// Whether the connection comes from a port that only root may use.
    pub(super) privileged: bool,
}

impl Call<'_> {
    /// Sends it over a connection of its own; returns the status and the body.
    pub(super) async fn send(&self) -> Result<(u16, Bytes), Trouble> {
        let silent = |_| Trouble::Silent {
            url: self.url.to_owned(),
            after: ANSWER_TIMEOUT,
        };
        timeout(ANSWER_TIMEOUT, self.exchange())
            .await
            .map_err(silent)?
    }

    async fn exchange(&self) -> Result<(u16, Bytes), Trouble> {
        let wrong = |problem: String| Trouble::Exchange {
            url: self.url.to_owned(),
            problem,
        };
        let url: Uri = (self.url.parse())
            .map_err(|error: hyper::http::uri::InvalidUri| wrong(error.to_string()))?;
        let (Some(host), Some(authority)) = (url.host(), url.authority()) else {
            return Err(wrong("the URL has no host".to_owned()));
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(&self.method)
            .uri(path)
            .header(HOST, without_zone(authority.as_str()))
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(self.body.clone()))
            .map_err(|error| wrong(error.to_string()))?;
        let tls = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let stream = self.connect(host, port, tls).await?;
        let mut connection = Connection::start(stream)
            .await
            .map_err(|error| wrong(error.to_string()))?;
        let answer = connection.ask(request).await;
        let answer = answer.map_err(|error| wrong(error.to_string()))?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }

    async fn connect(&self, host: &str, port: u16, tls: bool) -> Result<Box<dyn Stream>, Trouble> {
        let failed = |cause| Trouble::Connect {
            url: self.url.to_owned(),
            cause,
        };
        let host = host.trim_matches(['[', ']']);
        let connecting = async {
            match host.parse() {
                Ok(address) if self.privileged => privileged(address, port).await,
                _ => TcpStream::connect((host, port)).await,
            }
        };
        let stream = timeout(CONNECT_TIMEOUT, connecting).await;
        let stream = stream.map_err(|_| Trouble::Silent {
            url: self.url.to_owned(),
            after: CONNECT_TIMEOUT,
        })?;
        let stream = stream.map_err(failed)?;
        if !tls {
            return Ok(Box::new(stream));
        }
        let config = Files::default().client().map_err(|cause| Trouble::Tls {
            url: self.url.to_owned(),
            cause: Box::new(cause),
        })?;
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| failed(io::Error::other(error)))?;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Box::new(
            connector.connect(name, stream).await.map_err(failed)?,
        ))
    }
}

/// The host of a request: an interface says something to this machine only (RFC 6874).
fn without_zone(authority: &str) -> String {
    let zone = authority.split_once('%').and_then(|(address, rest)| {
        let (_, end) = rest.split_once(']')?;
        Some(format!("{address}]{end}"))
    });
    zone.unwrap_or_else(|| authority.to_owned())
}

/// Connects from the first free port that only root may use.
async fn privileged(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for own in PRIVILEGED_PORTS.rev() {
        let (socket, any) = match address {
            IpAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        // An earlier connection from this port may still linger.
        socket.set_reuseaddr(true)?;
        let tried = match socket.bind(SocketAddr::from((any, own))) {
            Ok(()) => socket.connect(SocketAddr::from((address, port))).await,
            Err(error) => Err(error),
        };
        match tried {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
                ) =>
            {
                last = error;
            }
            done => return done,
        }
    }
    Err(last)
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
                url: &url,
                headers: &[(wanted.lifetime, "300"), ("Accept", "text/plain")],
                body: Bytes::new(),
                privileged: false,
            };
            token = match call.send().await? {
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
        let mut headers = self.http.headers.to_vec();
        if let (Some(wanted), Some(token)) = (&self.http.token, &self.token) {
            headers.push((wanted.header, token));
        }
        let call = Call {
            method: Method::GET,
            url: &url,
            headers: &headers,
            body: Bytes::new(),
            privileged: self.http.privileged,
        };
        let document = match call.send().await? {
            (200, body) => Some(body),
            (204 | 404 | 410, _) => None,
            (status, _) => return Err(Trouble::Status { url, status }),
        };
        self.documents.insert(path.to_owned(), document.clone());
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_families_are_asked_from_a_port_of_roots() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = match TcpListener::bind(any).await {
                Ok(listener) => listener,
                Err(error) => {
                    eprintln!("skipped {any}: {error}");
                    continue;
                }
            };
            let server = listener.local_addr().unwrap();
            match privileged(server.ip(), server.port()).await {
                Ok(stream) => {
                    let own = stream.local_addr().unwrap();
                    assert!(PRIVILEGED_PORTS.contains(&own.port()), "{own}");
                    let (mut accepted, from) = listener.accept().await.unwrap();
                    assert_eq!(from, own);
                    drop(stream);
                    assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    eprintln!("skipped {any}: such a port needs root");
                }
                Err(error) => panic!("{any}: {error}"),
            }
        }
    }

    #[test]
    fn a_server_does_not_hear_of_this_machines_interfaces() {
        for (authority, expected) in [
            ("[fe80::a9fe:a9fe%eth0]", "[fe80::a9fe:a9fe]"),
            ("[fe80::1%enp1s0]:8080", "[fe80::1]:8080"),
            ("[fd00:ec2::254]", "[fd00:ec2::254]"),
            ("169.254.169.254:80", "169.254.169.254:80"),
        ] {
            assert_eq!(without_zone(authority), expected);
            let url: Uri = format!("http://{authority}/x").parse().unwrap();
            assert_eq!(url.authority().unwrap().as_str(), authority);
        }
    }
}
