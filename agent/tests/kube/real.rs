//! A kube-apiserver of a test's own, with an etcd of its own: `KUBE_APISERVER=/path/to/kube-apiserver` and, if the one in
//! `PATH` is too old, `ETCD=/path/to/etcd`.
//!
//! The tests' server is in front of it then. It still counts requests, and still drops, delays and refuses them; what it
//! lets pass is answered by the real one, and the objects that a test puts are in the real one, too.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc as channel, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::authority::{Authority, loopback};
use crate::etcd::Server;

/// A busy machine takes half a minute to start one.
const START: Duration = Duration::from_secs(180);
/// Who may do everything, and who may do nothing unless a role says so.
const TOKENS: &str = "admin,admin,admin,system:masters\nflannel,flannel,flannel\n";

/// The program, if the tests are to use it.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::var_os("KUBE_APISERVER").map(PathBuf::from)
}

/// A request to it.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    /// With the query.
    pub(crate) path: String,
    pub(crate) content_type: String,
    pub(crate) token: String,
    pub(crate) body: Bytes,
}

impl Ask {
    /// A request of the test itself.
    pub(crate) fn new(method: Method, path: &str, body: Option<&Value>) -> Self {
        Self {
            method,
            path: path.to_owned(),
            content_type: "application/json".to_owned(),
            token: "admin".to_owned(),
            body: body.map_or(Bytes::new(), |body| Bytes::from(body.to_string())),
        }
    }
}

/// What comes back: the status, then the body as it arrives.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: channel::Receiver<Bytes>,
}

enum Reply {
    Whole(mpsc::Sender<(u16, Vec<u8>)>),
    Stream(oneshot::Sender<Answer>),
}

/// Both servers. They end with this.
pub(crate) struct Real {
    asks: Option<channel::UnboundedSender<(Ask, Reply)>>,
    /// In the namespace that the test began in, wherever the tests' server is.
    worker: Option<JoinHandle<()>>,
}

impl Real {
    /// Starts both and waits until they answer.
    pub(crate) fn start(program: PathBuf) -> Self {
        let (asks, mut asked) = channel::unbounded_channel::<(Ask, Reply)>();
        let (tell, told) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let running = Running::start(program).await;
                tell.send(()).expect("a test");
                while let Some((ask, reply)) = asked.recv().await {
                    tokio::spawn(converse(running.address, running.tls.clone(), ask, reply));
                }
            });
        });
        told.recv().expect("a server that starts");
        Self {
            asks: Some(asks),
            worker: Some(worker),
        }
    }

    fn send(&self, ask: Ask, reply: Reply) {
        let asks = self.asks.as_ref().expect("a worker");
        asks.send((ask, reply)).expect("a server that runs");
    }

    /// Asks, and waits for the whole answer.
    pub(crate) fn ask(&self, ask: Ask) -> (u16, Value) {
        let (tell, told) = mpsc::channel();
        self.send(ask, Reply::Whole(tell));
        let (status, body) = told.recv().expect("an answer");
        let value = serde_json::from_slice(&body);
        (
            status,
            value.unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned())),
        )
    }

    /// The same, of what must be done.
    pub(crate) fn must(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let words = format!("{method} {path}");
        let (status, value) = self.ask(Ask::new(method, path, body));
        assert!((200..300).contains(&status), "{words}: {status}: {value}");
        value
    }

    /// Asks, and gives the answer as it begins.
    pub(crate) async fn forward(&self, ask: Ask) -> Option<Answer> {
        let (tell, told) = oneshot::channel();
        self.send(ask, Reply::Stream(tell));
        told.await.ok()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

struct Running {
    address: SocketAddr,
    tls: TlsConnector,
    api_server: Child,
    authority: Authority,
    _etcd: Server,
}

impl Running {
    async fn start(program: PathBuf) -> Self {
        let etcd = Server::start().await;
        let authority = Authority::new();
        std::fs::write(authority.path("tokens"), TOKENS).expect("a file");
        let free = TcpListener::bind((loopback(), 0)).expect("a port");
        let address = free.local_addr().expect("a port");
        drop(free);
        let file = |name: &str| authority.path(name).display().to_string();
        let log = std::fs::File::create(authority.path("log")).expect("a log");
        let api_server = Command::new(&program)
            .args([
                format!("--etcd-servers={}", etcd.url()),
                format!("--bind-address={}", address.ip()),
                format!("--secure-port={}", address.port()),
                format!("--tls-cert-file={}", file("server.pem")),
                format!("--tls-private-key-file={}", file("server.key")),
                format!("--token-auth-file={}", file("tokens")),
                // Of a key in PKCS #8 it reads no public half.
                format!("--service-account-key-file={}", file("server.pem")),
                format!("--service-account-signing-key-file={}", file("server.key")),
                format!("--cert-dir={}", file("")),
            ])
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=RBAC",
                // As Canal's pods are, and an old flannel's.
                "--allow-privileged=true",
                "--service-cluster-ip-range=10.96.0.0/16",
                // Nobody makes service accounts here: that is the controller manager's.
                "--disable-admission-plugins=ServiceAccount",
                // It would write its own address, which loopback is not allowed to be.
                "--endpoint-reconciler-type=none",
                "--advertise-address=192.0.2.1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut running = Self {
            address,
            tls: connector(&authority),
            api_server: api_server.unwrap_or_else(|error| panic!("{}: {error}", program.display())),
            authority,
            _etcd: etcd,
        };
        running.wait().await;
        running
    }

    async fn wait(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            let ended = self.api_server.try_wait().expect("a child");
            let ask = Ask::new(Method::GET, "/readyz", None);
            if let Ok(response) = request(self.address, &self.tls, ask).await
                && response.status() == 200
            {
                return;
            }
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.authority.path("log")).unwrap_or_default();
                panic!("kube-apiserver is not ready ({ended:?}); its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.api_server.kill();
        let _ = self.api_server.wait();
    }
}

fn connector(authority: &Authority) -> TlsConnector {
    let certificate = std::fs::read(authority.path("ca.pem")).expect("a certificate");
    let certificate = CertificateDer::from_pem_slice(&certificate).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Sends a request on a connection of its own.
async fn request(
    address: SocketAddr,
    tls: &TlsConnector,
    ask: Ask,
) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
    let stream = TcpStream::connect(address).await?;
    let stream = tls.connect(address.ip().into(), stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header("host", address.to_string())
        .header("authorization", format!("Bearer {}", ask.token))
        .header("content-type", ask.content_type)
        .body(Full::new(ask.body))?;
    Ok(sender.send_request(request).await?)
}

async fn converse(address: SocketAddr, tls: TlsConnector, ask: Ask, reply: Reply) {
    let words = format!("{} {}", ask.method, ask.path);
    let response = match request(address, &tls, ask).await {
        Ok(response) => response,
        Err(error) => {
            eprintln!("{words}: {error}");
            return;
        }
    };
    let status = response.status().as_u16();
    let mut body = response.into_body();
    match reply {
        Reply::Whole(tell) => {
            let Ok(body) = body.collect().await else {
                return;
            };
            let _ = tell.send((status, body.to_bytes().to_vec()));
        }
        Reply::Stream(tell) => {
            let (give, frames) = channel::channel(64);
            let _ = tell.send(Answer {
                status,
                body: frames,
            });
            // A reader that is gone ends the request.
            while let Some(Ok(frame)) = body.frame().await {
                if let Ok(data) = frame.into_data()
                    && give.send(data).await.is_err()
                {
                    return;
                }
            }
        }
    }
}
