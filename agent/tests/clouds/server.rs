//! A small HTTP server that plays a cloud provider: its API and the metadata service of its instances, on one address.
//!
//! Used by the unit tests of the providers and by the tests of the whole agent.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Who asks: the metadata service answers each instance differently.
    pub(crate) from: IpAddr,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(known, _)| known == name)?;
        Some(value)
    }

    /// Whether it is a request to a document, with or without a query.
    pub(crate) fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path() == path
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn new(status: u16, body: impl ToString) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_string(),
        }
    }

    pub(crate) fn ok(body: impl ToString) -> Self {
        Self::new(200, body)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// A provider.
pub(crate) trait Cloud: Send + 'static {
    fn answer(&mut self, request: &Request) -> Response;
}

/// A provider that is being asked. The server's threads end with the process: they hold nothing but a port.
pub(crate) struct Double<C> {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<C>>,
}

impl<C: Cloud> Double<C> {
    /// Serves in the network namespace of the calling thread.
    pub(crate) fn start(address: &str, cloud: C) -> Self {
        let listener = TcpListener::bind(address).expect("the provider's address");
        let address = listener.local_addr().expect("the provider's address");
        let state = Arc::new(Mutex::new(cloud));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The provider's state, to look at and to change.
    pub(crate) fn state(&self) -> MutexGuard<'_, C> {
        // A test that failed with the lock held has told why.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve<C: Cloud>(stream: TcpStream, state: &Mutex<C>) -> Option<()> {
    let from = stream.peer_addr().ok()?.ip();
    let mut sink = stream.try_clone().ok()?;
    let mut source = BufReader::new(stream);
    loop {
        let request = read(&mut source, from)?;
        let response = state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .answer(&request);
        let mut head = format!("HTTP/1.1 {} x\r\n", response.status);
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = &response.body;
        head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        sink.write_all(head.as_bytes()).ok()?;
    }
}

fn read(source: &mut impl BufRead, from: IpAddr) -> Option<Request> {
    let mut line = String::new();
    source.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        source.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request {
        from,
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let length = request.header("content-length");
    let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    request.body.resize(length, 0);
    source.read_exact(&mut request.body).ok()?;
    Some(request)
}
