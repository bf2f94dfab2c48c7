//! A proxy between a store and etcd that loses replies, as broken networks and deposed leaders do.
//!
//! ```text
//!  store ──► proxy ──► etcd
//!        ◄─?──     ◄──
//! ```
//!
//! It takes part in gRPC, so a call as a whole is what is refused, lost, late or sent twice, and the store cannot tell which
//! of these it was. Dice decide, and only a number of times; then all passes, so that whoever goes on trying succeeds.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri, client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use crate::authority::loopback;
use crate::dice::Dice;

type Failed = Box<dyn std::error::Error + Send + Sync>;
type Payload = UnsyncBoxBody<Bytes, Failed>;
type Reply = Result<Response<Payload>, Failed>;

/// How calls are spoilt, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// How many calls are spoilt at the most.
    pub(crate) most: u64,
    /// Whether some are never answered, so that the store waits until its own deadline.
    pub(crate) silence: bool,
    /// Calls of this name are held up for so long.
    pub(crate) slow: Option<(&'static str, Duration)>,
}

/// Listens until it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    etcd: SocketAddr,
    state: Mutex<State>,
}

struct State {
    dice: Dice,
    left: u64,
    silence: bool,
    slow: Option<(&'static str, Duration)>,
    late_one: Option<(&'static str, Duration)>,
    calls: u32,
    /// What was done to which call.
    log: Vec<String>,
    /// The etcd leases that were granted through this proxy, whether or not anybody heard of it.
    granted: BTreeSet<i64>,
    /// Calls that were answered before they are forwarded.
    late: JoinSet<()>,
}

/// What is done to a call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Pass,
    /// It does not reach etcd.
    Refuse(Ending),
    /// etcd does it, and nobody hears of it.
    Swallow(Ending),
    /// It ends at once, and etcd does it all the same, later.
    Late(Ending, Duration),
    /// etcd does it twice; the second reply is the answer.
    Twice,
    Delay {
        before: Duration,
        after: Duration,
    },
    /// A stream breaks in the middle.
    Cut(Duration),
}

/// How a call ends without etcd's reply.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// etcd's words for a leader that was deposed.
    Unavailable,
    /// The call's stream is reset.
    Stream,
    /// The connection breaks, with every other call on it.
    Connection,
    /// Nothing comes.
    Silence,
}

impl Proxy {
    /// Starts a proxy to an etcd server.
    pub(crate) async fn start(etcd: SocketAddr, dice: Dice, faults: Faults) -> Self {
        let listener = TcpListener::bind((loopback(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            etcd,
            state: Mutex::new(State {
                dice,
                left: faults.most,
                silence: faults.silence,
                slow: faults.slow,
                late_one: None,
                calls: 0,
                log: Vec::new(),
                granted: BTreeSet::new(),
                late: JoinSet::new(),
            }),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, Arc::clone(&shared)));
        Self {
            address,
            shared,
            _accepting: accepting,
        }
    }

    /// The address for clients.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Spoils nothing more, and waits until etcd has all that it was late for.
    pub(crate) async fn calm(&self) {
        let late = {
            let mut state = self.shared.state();
            state.left = 0;
            std::mem::take(&mut state.late)
        };
        late.join_all().await;
    }

    /// Ends the next call of this name at once, and has etcd do it all the same, later.
    pub(crate) fn make_late(&self, call: &'static str, after: Duration) {
        self.shared.state().late_one = Some((call, after));
    }

    pub(crate) fn granted(&self) -> Vec<i64> {
        self.shared.state().granted.iter().copied().collect()
    }

    /// What was done, one line for each call that was spoilt.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.state().log.clone()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides what is done to the next call.
    fn fate(&self, call: &str) -> Fate {
        let mut state = self.state();
        state.calls += 1;
        if let Some((name, before)) = state.slow
            && name == call
        {
            let after = Duration::ZERO;
            return Fate::Delay { before, after };
        }
        if let Some((_, after)) = state.late_one.take_if(|(name, _)| *name == call) {
            return Fate::Late(Ending::Unavailable, after);
        }
        // Reads are many, and a read that fails changes nothing.
        let often = match call {
            "Range" | "LeaseTimeToLive" | "Watch" => 6,
            _ => 2,
        };
        if state.left == 0 || state.dice.roll(often) != 0 {
            return Fate::Pass;
        }
        let fate = match call {
            "Watch" | "LeaseKeepAlive" => state.fate_of_stream(),
            _ => state.fate_of_call(call),
        };
        state.left -= 1;
        let line = format!("call {}, {call}: {fate:?}", state.calls);
        state.log.push(line);
        fate
    }
}

impl State {
    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.dice.roll(most))
    }

    fn ending(&mut self) -> Ending {
        match self.dice.roll(40) {
            0 if self.silence => Ending::Silence,
            0..20 => Ending::Unavailable,
            20..30 => Ending::Stream,
            _ => Ending::Connection,
        }
    }

    fn fate_of_call(&mut self, call: &str) -> Fate {
        match self.dice.roll(10) {
            0 | 1 => Fate::Refuse(self.ending()),
            2..6 => Fate::Swallow(self.ending()),
            // Who asks for a grant that comes when he is gone can do nothing about it.
            6 if call == "Txn" => match self.ending() {
                Ending::Silence => Fate::Late(Ending::Unavailable, self.millis(300)),
                ending => Fate::Late(ending, self.millis(300)),
            },
            6 | 7 => Fate::Twice,
            _ => Fate::Delay {
                before: self.millis(100),
                after: self.millis(100),
            },
        }
    }

    fn fate_of_stream(&mut self) -> Fate {
        match self.dice.roll(10) {
            0 | 1 => Fate::Refuse(self.ending()),
            2..6 => Fate::Swallow(self.ending()),
            6 | 7 => Fate::Delay {
                before: self.millis(100),
                after: Duration::ZERO,
            },
            _ => Fate::Cut(self.millis(1000)),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
            }
        }
    }
}

/// Forwards the calls of one connection over one to etcd.
async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let Ok(etcd) = TcpStream::connect(shared.etcd).await else {
        return;
    };
    for stream in [&stream, &etcd] {
        stream.set_nodelay(true).unwrap();
    }
    let shaken = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(etcd)).await;
    let Ok((etcd, driver)) = shaken else {
        return;
    };
    // Ends when nobody sends any more.
    tokio::spawn(driver);
    let broken = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let call = Call {
            shared: Arc::clone(&shared),
            etcd: etcd.clone(),
            broken: Arc::clone(&broken),
        };
        call.answer(request)
    });
    let served = server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = served => {}
        () = broken.notified() => {}
    }
}

/// One call and the connection that it came over.
struct Call {
    shared: Arc<Shared>,
    etcd: SendRequest<Payload>,
    broken: Arc<Notify>,
}

impl Call {
    async fn answer(self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let fate = self.shared.fate(&name);
        match name.as_str() {
            "Watch" | "LeaseKeepAlive" => self.stream(request, fate).await,
            _ => {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                self.unary(Unary { name, head, body }, fate).await
            }
        }
    }

    async fn unary(self, unary: Unary, fate: Fate) -> Reply {
        let shared = Arc::clone(&self.shared);
        let etcd = self.etcd.clone();
        // A task of its own, since the store may give up waiting when etcd has begun.
        let forward = async |unary: &Unary| {
            let forwarding = unary.clone().forward(etcd.clone(), Arc::clone(&shared));
            tokio::spawn(forwarding).await?
        };
        match fate {
            Fate::Refuse(ending) => self.end(ending).await,
            Fate::Swallow(ending) => {
                forward(&unary).await?;
                self.end(ending).await
            }
            Fate::Late(ending, after) => {
                let forwarding = unary.forward(etcd.clone(), Arc::clone(&shared));
                self.shared.state().late.spawn(async move {
                    sleep(after).await;
                    let _ = forwarding.await;
                });
                self.end(ending).await
            }
            Fate::Twice => {
                forward(&unary).await?;
                forward(&unary).await
            }
            Fate::Delay { before, after } => {
                sleep(before).await;
                let reply = forward(&unary).await;
                sleep(after).await;
                reply
            }
            Fate::Pass | Fate::Cut(_) => forward(&unary).await,
        }
    }

    async fn stream(mut self, request: Request<Incoming>, fate: Fate) -> Reply {
        let mut until = None;
        match fate {
            Fate::Refuse(ending) | Fate::Late(ending, _) => return self.end(ending).await,
            Fate::Delay { before, .. } => sleep(before).await,
            Fate::Cut(after) => until = Some(Box::pin(sleep(after))),
            Fate::Pass | Fate::Swallow(_) | Fate::Twice => {}
        }
        let (head, body) = request.into_parts();
        let body = body.map_err(Failed::from).boxed_unsync();
        let request = Request::from_parts(towards(&self.shared, head)?, body);
        let reply = self.etcd.send_request(request).await?;
        let (head, mut body) = reply.into_parts();
        if let Fate::Swallow(ending) = fate {
            // With its first word etcd has done what was asked.
            let _ = body.frame().await;
            return self.end(ending).await;
        }
        let body = Cut { body, until };
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// Ends a call without etcd's reply.
    async fn end(&self, ending: Ending) -> Reply {
        match ending {
            Ending::Unavailable => {
                let mut reply = Response::new(Empty::new().map_err(Failed::from).boxed_unsync());
                let headers = reply.headers_mut();
                for (name, value) in [
                    (CONTENT_TYPE.as_str(), "application/grpc"),
                    ("grpc-status", "14"),
                    ("grpc-message", "etcdserver: request timed out"),
                ] {
                    headers.insert(name, HeaderValue::from_static(value));
                }
                Ok(reply)
            }
            Ending::Stream => Err("reset".into()),
            Ending::Connection => {
                self.broken.notify_one();
                std::future::pending().await
            }
            Ending::Silence => std::future::pending().await,
        }
    }
}

/// A call with one question and one reply.
#[derive(Clone)]
struct Unary {
    name: String,
    head: Parts,
    body: Bytes,
}

impl Unary {
    /// Has etcd do it.
    async fn forward(self, mut etcd: SendRequest<Payload>, shared: Arc<Shared>) -> Reply {
        let body = Full::new(self.body).map_err(Failed::from).boxed_unsync();
        let request = Request::from_parts(towards(&shared, self.head)?, body);
        let (head, body) = etcd.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        let body = body.to_bytes();
        if self.name == "LeaseGrant"
            && let Some(id) = granted(&body)
        {
            shared.state().granted.insert(id);
        }
        let body = Full::new(body).map_err(Failed::from);
        let trailers = async move { trailers.map(Ok::<HeaderMap, Failed>) };
        let body = body.with_trailers(trailers).boxed_unsync();
        Ok(Response::from_parts(head, body))
    }
}

/// The head of a request as etcd is to see it.
fn towards(shared: &Shared, mut head: Parts) -> Result<Parts, Failed> {
    let path = head.uri.path();
    head.uri = format!("http://{}{path}", shared.etcd).parse::<Uri>()?;
    Ok(head)
}

/// The body of a stream that may break.
struct Cut {
    body: Incoming,
    until: Option<Pin<Box<Sleep>>>,
}

impl Body for Cut {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        if let Some(until) = &mut self.until
            && until.as_mut().poll(cx).is_ready()
        {
            self.until = None;
            return Poll::Ready(Some(Err("cut".into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(Failed::from)))
    }
}

/// The id in a `LeaseGrantResponse`: field 2, a number. The message comes after a flag and its length in four bytes.
pub(crate) fn granted(body: &[u8]) -> Option<i64> {
    let mut rest = body.get(5..)?;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let value = varint(&mut rest)?;
        match (tag >> 3, tag & 7) {
            (2, 0) => return i64::try_from(value).ok(),
            (_, 0) => {}
            // The value is the length of what follows.
            (_, 2) => rest = rest.get(usize::try_from(value).ok()?..)?,
            _ => return None,
        }
    }
    None
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
