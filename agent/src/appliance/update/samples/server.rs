//! An HTTP server of static files, with faults. Also a proxy that knows one server only: itself.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use ring::digest::{SHA256, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::{Site, hex};

/// What goes wrong with one request for a file.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The same, but the answer has no length: its end is the connection's.
    EndlessCut(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
    /// This status, with more header lines.
    Status(u16, &'static str),
    /// A range from another byte than was asked for.
    WrongRange,
    /// All is well.
    None,
}

/// What the server knows.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) site: Site,
    /// For the next requests for files below a release's directory, one each.
    pub(crate) faults: VecDeque<Fault>,
    /// Whether ranges are never answered.
    pub(crate) no_ranges: bool,
    /// Whether answers have no `ETag`.
    pub(crate) no_tags: bool,
    /// Whether it is a proxy that connects nobody.
    pub(crate) refuses_tunnels: bool,
    /// The heads of all requests.
    pub(crate) requests: Vec<String>,
    /// The bytes of all bodies.
    pub(crate) sent: usize,
}

/// A server that ends with it.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    pub(crate) async fn start(site: Site) -> Self {
        Self::start_with(site, None).await
    }

    /// With TLS, if there is an acceptor.
    pub(crate) async fn start_with(site: Site, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Mutex::new(Shared {
            site,
            ..Shared::default()
        }));
        let task = tokio::spawn(accept(listener, Arc::clone(&shared), tls));
        Self {
            address,
            shared,
            task,
        }
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    /// The next requests for files of a release go so.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared().faults.extend(faults);
    }

    /// The heads of the requests whose path ends so.
    pub(crate) fn requests(&self, end: &str) -> Vec<String> {
        let asked = |head: &&String| {
            let path = head.split(' ').nth(1).unwrap_or_default();
            path.ends_with(end)
        };
        self.shared()
            .requests
            .iter()
            .filter(asked)
            .cloned()
            .collect()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<Shared>>, tls: Option<TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, &shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, &shared).await;
                    }
                }
            }
        });
    }
}

/// Up to the end of a head.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find_map(|(found, value)| found.eq_ignore_ascii_case(name).then_some(value))
}

/// One request, one answer, and the end of the connection.
async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Mutex<Shared>) {
    let Some(head) = head(&mut stream).await else {
        return;
    };
    let mut words = head.split(' ');
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    shared.lock().unwrap().requests.push(head.clone());
    if method == "CONNECT" {
        if shared.lock().unwrap().refuses_tunnels {
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.write_all(answer).await;
            return;
        }
        let Ok(mut server) = TcpStream::connect(target).await else {
            return;
        };
        let _ = stream
            .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await;
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
        return;
    }
    // A proxy is asked for http://HOST:PORT/PATH.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.split_once('/').map_or("", |(_, path)| path),
        None => target.trim_start_matches('/'),
    };
    let path = path.strip_prefix("releases/").unwrap_or(path).to_owned();
    let (answer, body, stalls) = answer(&path, &head, &mut shared.lock().unwrap());
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.write_all(&body).await;
    let _ = stream.flush().await;
    if stalls {
        std::future::pending::<()>().await;
    }
    let _ = stream.shutdown().await;
}

/// The head, the body, and whether the connection stays open after it.
fn answer(path: &str, head: &str, shared: &mut Shared) -> (String, Vec<u8>, bool) {
    let fault = match path.contains('/') {
        true => shared.faults.pop_front().unwrap_or(Fault::None),
        false => Fault::None,
    };
    if let Fault::Status(status, headers) = fault {
        let answer = format!("HTTP/1.1 {status} No\r\n{headers}Content-Length: 2\r\n\r\n");
        return (answer, b"no".to_vec(), false);
    }
    let Some(file) = shared.site.get(path) else {
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned();
        return (answer, Vec::new(), false);
    };
    let file = file.clone();
    let tag = format!("\"{}\"", hex(digest(&SHA256, &file).as_ref()));
    let range = header(head, "range").and_then(|range| {
        let start = range.strip_prefix("bytes=")?.strip_suffix('-')?;
        start.parse::<usize>().ok()
    });
    let fits = header(head, "if-range").is_none_or(|asked| asked == tag);
    let range = range.filter(|_| fits && !shared.no_ranges);
    let size = file.len();
    let (status, mut start) = match range {
        Some(start) if start >= size => {
            let answer = format!(
                "HTTP/1.1 416 No\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
            );
            return (answer, Vec::new(), false);
        }
        Some(start) => ("206 Partial Content", start),
        None => ("200 OK", 0),
    };
    let mut answer = format!("HTTP/1.1 {status}\r\n");
    if !shared.no_tags {
        answer.push_str(&format!("ETag: {tag}\r\n"));
    }
    if range.is_some() {
        if matches!(fault, Fault::WrongRange) {
            start /= 2;
        }
        answer.push_str(&format!(
            "Content-Range: bytes {start}-{}/{size}\r\n",
            size - 1
        ));
    }
    let mut body = file[start..].to_vec();
    if !matches!(fault, Fault::EndlessCut(_)) {
        answer.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    answer.push_str("Connection: close\r\n\r\n");
    if let Fault::Cut(length) | Fault::EndlessCut(length) | Fault::Stall(length) = fault {
        body.truncate(length);
    }
    shared.sent += body.len();
    (answer, body, matches!(fault, Fault::Stall(_)))
}
