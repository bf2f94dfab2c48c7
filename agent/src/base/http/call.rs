//! One request to the server that a URL names, over a connection of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Response, Uri};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{Connection, ExchangeError, Stream, http_error_text, io_error_text};

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

/// How a server is connected to, and how long it has.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How long a connection may take to come about, with TLS.
    pub(crate) connect: Duration,
    /// How long an answer may take, with the connection.
    pub(crate) answer: Duration,
    /// The ports that a connection to an address may come from, if not any.
    pub(crate) from: Option<RangeInclusive<u16>>,
    /// TLS is spoken if this is there. [`Call::is_tls`] says whether it must be.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(crate) enum CallError {
    /// The URL or a header cannot be used in a request.
    #[error("{0}")]
    Request(hyper::http::Error),
    /// The URL names no server.
    #[error("the URL has no host")]
    NoHost,
    /// No connection.
    #[error("failed to connect: {}", io_error_text(.0))]
    Connect(io::Error),
    /// No connection in time.
    #[error("no connection within {} s", .0.as_secs())]
    Slow(Duration),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke, or what came is no HTTP.
    #[error("{}", exchange_text(.0))]
    Exchange(ExchangeError),
}

impl CallError {
    fn request(error: impl Into<hyper::http::Error>) -> Self {
        Self::Request(error.into())
    }
}

fn exchange_text(error: &ExchangeError) -> String {
    match error {
        ExchangeError::Http(error) => http_error_text(error),
        error @ ExchangeError::Body(_) => error.to_string(),
    }
}

impl Call {
    /// Whether the URL demands TLS.
    pub(crate) fn is_tls(&self) -> bool {
        let url = self.url.parse::<Uri>();
        url.is_ok_and(|url| url.scheme() == Some(&Scheme::HTTPS))
    }

    /// Sends it, and reads the answer, whatever its status.
    pub(crate) async fn send(self, manner: &Manner) -> Result<Response<Bytes>, CallError> {
        let answered = timeout(manner.answer, self.exchange(manner)).await;
        answered.unwrap_or(Err(CallError::Silent(manner.answer)))
    }

    async fn exchange(self, manner: &Manner) -> Result<Response<Bytes>, CallError> {
        let url: Uri = self.url.parse().map_err(CallError::request)?;
        let (Some(host), Some(authority)) = (url.host(), url.authority()) else {
            return Err(CallError::NoHost);
        };
        let path = url.path_and_query().map_or("", |path| path.as_str());
        // A URL may have a query without a path; a request may not.
        let path = format!("/{}", path.strip_prefix('/').unwrap_or(path));
        let mut request = Request::builder()
            .method(self.method)
            .uri(path)
            .header(HOST, without_zone(authority.as_str()))
            .header(USER_AGENT, concat!("selvage/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(self.body))
            .map_err(CallError::request)?;
        let connecting = connect(host.trim_matches(['[', ']']), url.port_u16(), manner);
        let stream = timeout(manner.connect, connecting)
            .await
            .map_err(|_| CallError::Slow(manner.connect))?
            .map_err(CallError::Connect)?;
        let mut connection = Connection::start(stream)
            .await
            .map_err(|error| CallError::Exchange(error.into()))?;
        let answer = connection.ask(request).await;
        answer.map_err(CallError::Exchange)
    }
}

async fn connect(host: &str, port: Option<u16>, manner: &Manner) -> io::Result<Box<dyn Stream>> {
    let usual = if manner.tls.is_some() { 443 } else { 80 };
    let port = port.unwrap_or(usual);
    let stream = match (host.parse(), &manner.from) {
        (Ok(address), Some(ports)) => connect_from(ports, SocketAddr::new(address, port)).await?,
        _ => TcpStream::connect((host, port)).await?,
    };
    match &manner.tls {
        Some(tls) => secure(Box::new(stream), Arc::clone(tls), host).await,
        None => Ok(Box::new(stream)),
    }
}

/// Speaks TLS over an open stream with a server whose certificate must be for this name or address.
pub(crate) async fn secure(
    stream: Box<dyn Stream>,
    tls: Arc<ClientConfig>,
    name: &str,
) -> io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(
        TlsConnector::from(tls).connect(name, stream).await?,
    ))
}

/// The host of a request: an interface says something to this machine only (RFC 6874).
fn without_zone(authority: &str) -> String {
    let zone = authority.split_once('%').and_then(|(address, rest)| {
        let (_, end) = rest.split_once(']')?;
        Some(format!("{address}]{end}"))
    });
    zone.unwrap_or_else(|| authority.to_owned())
}

/// Connects from the last of these ports that is free.
async fn connect_from(ports: &RangeInclusive<u16>, server: SocketAddr) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for own in ports.clone().rev() {
        let (socket, any) = match server {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
        };
        // An earlier connection from this port may still linger.
        socket.set_reuseaddr(true)?;
        let tried = match socket.bind(SocketAddr::from((any, own))) {
            Ok(()) => socket.connect(server).await,
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Ports that only root may use.
    const PRIVILEGED: RangeInclusive<u16> = 512..=1023;

    fn get(url: String) -> Call {
        Call {
            method: Method::GET,
            url,
            headers: vec![("X-Token", "hidden1".to_owned())],
            body: Bytes::new(),
        }
    }

    fn manner() -> Manner {
        Manner {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            from: None,
            tls: None,
        }
    }

    #[test]
    fn secrets_do_not_show() {
        let call = Call {
            method: Method::POST,
            url: "https://api.example/routes?Signature=hidden1".to_owned(),
            headers: vec![("authorization", "Bearer hidden2".to_owned())],
            body: Bytes::from_static(b"assertion=hidden3"),
        };
        assert_eq!(format!("{call:?}"), "POST https://api.example/routes");
    }

    #[test]
    fn tls_is_demanded_by_the_scheme() {
        for (url, expected) in [
            ("https://a/", true),
            ("HTTPS://a:1/?b", true),
            ("http://a:443/https://b", false),
            ("a", false),
            (" https://a/", false),
        ] {
            assert_eq!(get(url.to_owned()).is_tls(), expected, "{url}");
        }
    }

    #[tokio::test]
    async fn a_server_is_asked_and_what_it_says_is_read_whatever_the_status() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut asked).await.unwrap();
            }
            let answer = b"HTTP/1.1 418 No\r\nContent-Length: 2\r\n\r\nno";
            stream.write_all(answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        let call = get(format!("http://{address}?a=b"));
        let answer = call.send(&manner()).await.unwrap();
        assert_eq!(answer.status(), 418);
        assert_eq!(answer.into_body(), "no");
        let asked = server.await.unwrap();
        assert!(asked.starts_with("GET /?a=b HTTP/1.1\r\n"), "{asked}");
        for header in [
            format!("host: {address}\r\n"),
            "x-token: hidden1\r\n".to_owned(),
        ] {
            assert!(asked.contains(&header), "{header} in {asked}");
        }
    }

    #[tokio::test]
    async fn what_has_no_answer_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let impatient = Manner {
            answer: Duration::from_millis(50),
            ..manner()
        };
        let silent = get(format!("http://{address}/")).send(&impatient).await;
        assert!(matches!(silent, Err(CallError::Silent(_))), "{silent:?}");
        // Whoever waits in the queue of a listener that is closed is reset.
        drop(listener);
        for (url, expected) in [
            (
                format!("http://{address}/"),
                "failed to connect: connection refused",
            ),
            ("/path".to_owned(), "the URL has no host"),
            ("http://a b/".to_owned(), "invalid uri character"),
        ] {
            let error = get(url).send(&manner()).await.unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }

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
            match connect_from(&PRIVILEGED, server).await {
                Ok(stream) => {
                    let own = stream.local_addr().unwrap();
                    assert!(PRIVILEGED.contains(&own.port()), "{own}");
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
