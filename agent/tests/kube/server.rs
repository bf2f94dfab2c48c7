//! An API server for the tests: HTTP/1.1 over a socket, with what a node's agent asks of a real one.
//!
//! It has nodes, pods, events and other objects, a revision that each write advances, lists in pages, watches with bookmarks,
//! strategic merge patches of a node's status, tokens and rights. And it fails as told: see [`Faults`].
//!
//! With a real one behind it ([`real`]) it only fails, and hands on the rest.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::objects::{self, Kind};
use crate::rbac::{self, Attributes};
use crate::real::{self, Ask, Real};
use crate::{mirror, stream};

/// The name of the thread that a server is, as far as the kernel shows it.
pub(crate) const THREAD: &str = "api-server";

/// What a response carries: a whole text, or the events of a watch.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How the server fails.
#[derive(Default)]
pub(crate) struct Faults {
    /// Requests whose line begins so, `PATCH /api`, are forbidden.
    pub(crate) forbidden: Vec<&'static str>,
    /// The verbs and resources that a review says are forbidden: `patch nodes/status`.
    pub(crate) denied: Vec<&'static str>,
    /// So many patches meet another writer.
    pub(crate) conflicts: u32,
    /// So many requests get no answer: their connection is closed.
    pub(crate) dropped: u32,
    /// So many requests are told to come back later.
    pub(crate) busy: u32,
    /// How long an answer takes.
    pub(crate) slow: Duration,
    /// Whether each page of a list names another one after it.
    pub(crate) endless: bool,
    /// What the next request gets in place of an answer, with the status 200.
    pub(crate) instead: Option<&'static str>,
    /// A line that one watcher gets in place of an event.
    pub(crate) rubbish: Option<&'static str>,
}

/// What the server has.
pub(crate) struct Cluster {
    pub(crate) revision: u64,
    /// What is older than this cannot be watched.
    pub(crate) compacted: u64,
    pub(crate) nodes: BTreeMap<String, Value>,
    pub(crate) pods: BTreeMap<String, Value>,
    pub(crate) events: Vec<Value>,
    /// All others by path, as a client asks for one of them.
    pub(crate) objects: BTreeMap<String, Value>,
    /// Each change of a node: revision, type, and the node.
    pub(crate) history: Vec<(u64, Kind, Value)>,
    /// What the test has changed, and a real server does not know yet.
    pub(crate) writes: Vec<(Kind, Value)>,
    /// Whoever has one of these is admitted; everyone if there are none.
    pub(crate) tokens: Vec<String>,
    /// Resources and verbs that the user [`rbac::LIMITED`] has a right to. A real server has its own.
    pub(crate) rights: Vec<(String, String)>,
    /// Each request: `GET /api/v1/nodes?limit=250`.
    pub(crate) asked: Vec<String>,
    pub(crate) texts: objects::Texts,
    pub(crate) faults: Faults,
    /// The time between two bookmarks.
    pub(crate) bookmarks: Duration,
    /// The revision of the last bookmark that was sent.
    pub(crate) bookmarked: u64,
    /// Changes to end all watches.
    pub(crate) watches_end: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            revision: 1000,
            compacted: 0,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            events: Vec::new(),
            objects: BTreeMap::new(),
            history: Vec::new(),
            writes: Vec::new(),
            tokens: Vec::new(),
            rights: Vec::new(),
            asked: Vec::new(),
            texts: objects::Texts::default(),
            faults: Faults::default(),
            bookmarks: Duration::from_secs(60),
            bookmarked: 0,
            watches_end: 0,
        }
    }
}

impl Cluster {
    /// Creates a node or puts another in its place.
    pub(crate) fn put(&mut self, mut node: Value) {
        self.revision += 1;
        node["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let name = node["metadata"]["name"].as_str().expect("a name");
        let former = self.nodes.insert(name.to_owned(), node.clone());
        let kind = former.map_or(Kind::Added, |_| Kind::Modified);
        self.record(kind, node);
    }

    fn record(&mut self, kind: Kind, node: Value) {
        self.writes.push((kind, node.clone()));
        self.history.push((self.revision, kind, node));
    }

    /// Deletes a node.
    pub(crate) fn delete(&mut self, name: &str) {
        let mut node = self.nodes.remove(name).expect("a node");
        self.revision += 1;
        node["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.record(Kind::Deleted, node);
    }

    /// Changes a node.
    pub(crate) fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut node = self.nodes[name].clone();
        edit(&mut node);
        self.put(node);
    }

    /// Sets an annotation of flannel's, or removes it.
    pub(crate) fn annotate(&mut self, name: &str, suffix: &str, value: Option<&str>) {
        self.edit(name, |node| {
            let annotations = &mut node["metadata"]["annotations"];
            let key = format!("flannel.alpha.coreos.com/{suffix}");
            match value {
                Some(value) => annotations[key] = json!(value),
                None => {
                    annotations
                        .as_object_mut()
                        .expect("annotations")
                        .remove(&key);
                }
            }
        });
    }

    pub(crate) fn annotation(&self, name: &str, suffix: &str) -> Option<String> {
        let key = format!("flannel.alpha.coreos.com/{suffix}");
        let value = &self.nodes[name]["metadata"]["annotations"][key];
        value.as_str().map(str::to_owned)
    }

    /// A node's condition `NetworkUnavailable`: status and reason.
    pub(crate) fn condition(&self, name: &str) -> Option<(String, String)> {
        let conditions = self.nodes[name]["status"]["conditions"].as_array()?;
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == "NetworkUnavailable")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason")))
    }

    /// How many requests had a line that begins so.
    pub(crate) fn count(&self, start: &str) -> usize {
        let asked = self.asked.iter();
        asked.filter(|line| line.starts_with(start)).count()
    }
}

/// A running server. It ends with this.
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    /// What accepts connections, if that takes TLS.
    tls: Arc<Mutex<Option<TlsAcceptor>>>,
    stop: watch::Sender<bool>,
}

/// What its connections share.
pub(crate) struct Shared {
    cluster: Mutex<Cluster>,
    real: Option<Real>,
    /// Tells watches to look again.
    pub(crate) changed: watch::Sender<u64>,
}

impl Shared {
    /// What the server has, for its own use.
    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().expect("a server that works")
    }

    pub(crate) fn real(&self) -> Option<&Real> {
        self.real.as_ref()
    }

    /// What the server has, for a test to look at.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Cluster> {
        let mut cluster = self.cluster();
        if let Some(real) = &self.real {
            mirror::read(real, &mut cluster);
        }
        cluster
    }
}

impl ApiServer {
    /// Serves on loopback.
    pub(crate) fn start() -> Self {
        Self::serve("127.0.0.1:0".parse().expect("an address"), None, None)
    }

    /// The same with TLS.
    pub(crate) fn start_with_tls(address: SocketAddr, tls: TlsAcceptor) -> Self {
        Self::serve(address, Some(tls), None)
    }

    /// Serves inside a network namespace.
    pub(crate) fn start_in(namespace: &impl AsFd, address: &str) -> Self {
        Self::start_in_with(namespace, address, None)
    }

    /// The same, with TLS if there is an acceptor.
    pub(crate) fn start_in_with(
        namespace: &impl AsFd,
        address: &str,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let namespace = namespace.as_fd().try_clone_to_owned().expect("a file");
        Self::serve(address.parse().expect("an address"), tls, Some(namespace))
    }

    fn serve(address: SocketAddr, tls: Option<TlsAcceptor>, namespace: Option<OwnedFd>) -> Self {
        let shared = Arc::new(Shared {
            cluster: Mutex::default(),
            real: real::program().map(Real::start),
            changed: watch::Sender::new(0),
        });
        let (stop, mut stopped) = watch::channel(false);
        let (tell, told) = std::sync::mpsc::channel();
        let serving = Arc::clone(&shared);
        let tls = Arc::new(Mutex::new(tls));
        let accepting = Arc::clone(&tls);
        let thread = std::thread::Builder::new().name(THREAD.to_owned());
        let run = move || {
            if let Some(namespace) = namespace {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("the namespace");
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await.expect("an address");
                tell.send(listener.local_addr().expect("an address"))
                    .expect("a test");
                loop {
                    let stream = tokio::select! {
                        accepted = listener.accept() => accepted.expect("a connection").0,
                        _ = stopped.changed() => return,
                    };
                    let shared = Arc::clone(&serving);
                    let tls = accepting.lock().expect("a server that works").clone();
                    tokio::spawn(async move {
                        match tls {
                            None => converse(stream, shared).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    converse(stream, shared).await;
                                }
                            }
                        }
                    });
                }
            });
        };
        thread.spawn(run).expect("a thread");
        Self {
            address: told.recv().expect("a server"),
            shared,
            tls,
            stop,
        }
    }

    /// Has another certificate for connections from now on.
    pub(crate) fn set_tls(&self, tls: TlsAcceptor) {
        *self.tls.lock().expect("a server that works") = Some(tls);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Looks at what the server has.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Cluster) -> T) -> T {
        look(&self.shared.seen())
    }

    /// The real server behind this one, if there is one.
    pub(crate) fn real(&self) -> Option<&Real> {
        self.shared.real()
    }

    /// Changes what the server has, and tells its watchers.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = self.shared.seen();
        change(&mut cluster);
        if let Some(real) = self.shared.real() {
            mirror::write(real, &mut cluster);
        }
        drop(cluster);
        self.shared.changed.send_modify(|times| *times += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(|request| answer(Arc::clone(&shared), request));
    // Clients come and go.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A whole object.
pub(crate) fn whole(status: u16, value: &Value) -> Response<Body> {
    written(status, value.to_string())
}

/// The same, of an object that is text already.
pub(crate) fn written(status: u16, text: String) -> Response<Body> {
    let body = http_body_util::Full::from(text);
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(body.map_err(|never| match never {}).boxed_unsync())
        .expect("a response")
}

/// An error in Kubernetes' form.
pub(crate) fn status(code: u16, message: &str) -> Response<Body> {
    let value = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code});
    whole(code, &value)
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let slow = {
        let mut cluster = shared.cluster();
        cluster.asked.push(line.clone());
        cluster.faults.slow
    };
    tokio::time::sleep(slow).await;
    if let Some(fault) = fault(&mut shared.cluster().faults, &line) {
        return fault;
    }
    if !is_admitted(&shared, &request) {
        return Ok(status(401, "Unauthorized"));
    }
    // Only this one's rights are of interest.
    let is_limited = bearer(&request).is_some_and(|token| token == rbac::LIMITED);
    let token = if is_limited { rbac::LIMITED } else { "admin" }.to_owned();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let content_type = request.headers().get("content-type").cloned();
    let content_type = content_type.map_or(String::new(), |value| {
        value.to_str().expect("text").to_owned()
    });
    let asks_for = Attributes::of(&method, uri.path(), uri.query().unwrap_or_default());
    if shared.real.is_none()
        && let Some(refused) = asks_for.filter(|it| !it.are_allowed(&shared.cluster(), &token))
    {
        return Ok(refused.refusal(&token));
    }
    let query = objects::query(uri.query().unwrap_or_default());
    let is_watch = uri.path() == "/api/v1/nodes" && query.contains_key("watch");
    if query.contains_key("sendInitialEvents") {
        // As a real server without that feature; clients then list first.
        let words =
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Ok(status(422, words));
    }
    if is_watch && let Some(gone) = stream::gone(&shared, &query) {
        return Ok(gone);
    }
    let body = request.into_body().collect().await;
    let body = body.map_err(std::io::Error::other)?.to_bytes();
    let is_denied = objects::is_denied(&shared.cluster(), uri.path(), &body);
    if is_denied || shared.real.is_none() && uri.path() == objects::REVIEWS {
        return Ok(objects::review(&shared.cluster(), &token, &body));
    }
    if shared.real.is_some() {
        let ask = Ask {
            method,
            path: uri.to_string(),
            content_type,
            token,
            body,
        };
        return stream::forward(shared, ask).await;
    }
    if is_watch {
        return Ok(stream::watch(shared, &query));
    }
    let answer = handle(&mut shared.cluster(), &method, &uri, &content_type, &body);
    shared.changed.send_modify(|times| *times += 1);
    Ok(answer)
}

/// Does what is asked, of one whose request has neither failed nor been refused.
fn handle(
    cluster: &mut Cluster,
    method: &Method,
    uri: &Uri,
    content_type: &str,
    body: &[u8],
) -> Response<Body> {
    let query = objects::query(uri.query().unwrap_or_default());
    if let Some(answer) = objects::other(cluster, method, uri.path(), &query) {
        return answer;
    }
    let path = uri.path().trim_start_matches("/api/v1/");
    let parts: Vec<_> = path.split('/').collect();
    match (method.as_str(), parts.as_slice()) {
        ("GET", ["nodes"]) => objects::list(cluster, &query),
        ("GET", ["nodes", name]) => match cluster.nodes.get(*name) {
            Some(node) => whole(200, node),
            None => status(404, &format!("nodes \"{name}\" not found")),
        },
        ("PATCH", ["nodes", name, "status"]) => objects::patch(cluster, name, content_type, body),
        ("GET", ["namespaces", namespace, "pods", name]) => {
            match cluster.pods.get(&format!("{namespace}/{name}")) {
                Some(pod) => whole(200, pod),
                None => status(404, &format!("pods \"{name}\" not found")),
            }
        }
        ("POST", ["namespaces", "default", "events"]) => objects::create_event(cluster, body),
        _ => status(404, &format!("the server does not know {method} {uri}")),
    }
}

/// The failure that is due, if any.
fn fault(faults: &mut Faults, line: &str) -> Option<Result<Response<Body>, std::io::Error>> {
    if faults.dropped > 0 {
        faults.dropped -= 1;
        return Some(Err(std::io::Error::other("dropped as the test wants")));
    }
    if let Some(instead) = faults.instead.take() {
        let value = serde_json::from_str(instead).expect("JSON");
        return Some(Ok(whole(200, &value)));
    }
    if faults.busy > 0 {
        faults.busy -= 1;
        return Some(Ok(status(429, "too many requests")));
    }
    if line.starts_with("PATCH ") && faults.conflicts > 0 {
        faults.conflicts -= 1;
        let words = "the object has been modified; please apply your changes";
        return Some(Ok(status(409, words)));
    }
    let is_forbidden = faults.forbidden.iter().any(|start| line.starts_with(start));
    is_forbidden.then(|| Ok(forbidden(line)))
}

/// The refusal of a request whose line this is.
fn forbidden(line: &str) -> Response<Body> {
    let (method, uri) = line.split_once(' ').expect("a request's line");
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let method = method.parse().expect("a method");
    match Attributes::of(&method, path, query) {
        Some(asks_for) => asks_for.refusal(rbac::LIMITED),
        None => status(
            403,
            &format!(
                "forbidden: User \"{}\" cannot get path \"{path}\"",
                rbac::LIMITED
            ),
        ),
    }
}

fn is_admitted(shared: &Shared, request: &Request<Incoming>) -> bool {
    let tokens = &shared.cluster().tokens;
    tokens.is_empty()
        || bearer(request).is_some_and(|given| tokens.iter().any(|token| token == given))
}

fn bearer(request: &Request<Incoming>) -> Option<&str> {
    let given = request.headers().get("authorization")?;
    given.to_str().ok()?.strip_prefix("Bearer ")
}
