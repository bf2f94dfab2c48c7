//! Accepting connections, within limits in total and per address: any host may be able to connect.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::base::logging::Repeats;
use crate::base::net::address_block;

/// Pause after a failed accept, for example out of file descriptors (`EMFILE`).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How many connections a server has at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) total: usize,
    /// The maximum per address; an IPv6 /64 counts as one address.
    pub(crate) per_address: usize,
    pub(crate) when_full: WhenFull,
}

/// What happens to a connection above a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhenFull {
    /// It replaces the oldest one of its address, or of the address with the most connections: a slow client harms only
    /// itself. For connections that nobody minds to repeat.
    Replace,
    /// It is closed if its address has too many, else it waits in the kernel's accept queue (listen(2)). For
    /// connections that are meant to last.
    Wait,
}

/// A source of connections.
pub(crate) trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The peer's address; optional where not every peer has one.
    type Address: Copy + Into<Option<IpAddr>> + Send;

    /// Waits for the next connection. Cancel-safe.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Address)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Address = IpAddr;

    async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        // On a dual-stack socket an IPv4 client is ::ffff:A.B.C.D (ipv6(7), IPV6_V6ONLY).
        Ok((stream, from.ip().to_canonical()))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    type Address = Option<IpAddr>;

    async fn accept(&self) -> io::Result<(UnixStream, Option<IpAddr>)> {
        Ok((UnixListener::accept(self).await?.0, None))
    }
}

/// The connections that are being served, with the address by which each is counted, and why one was not admitted.
type Connections = JoinSet<(Option<IpAddr>, Result<(), String>)>;

/// Accepts connections until `stop` is ready, and serves each in its own task by the future that `serve` returns, whose
/// error says why the client was not admitted; `refused` is told. Returns what is still being served.
pub(crate) async fn accept<L: Listener, F>(
    listener: &L,
    limits: Limits,
    mut serve: impl FnMut(L::Stream, L::Address) -> F,
    mut refused: impl FnMut(IpAddr, &str),
    stop: impl Future<Output = ()>,
) -> Connections
where
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut stop = pin!(stop);
    let mut connections = Connections::new();
    let mut crowd = Crowd::new(limits);
    let mut failures = Repeats::default();
    loop {
        tokio::select! {
            () = &mut stop => return connections,
            Some(ended) = connections.join_next() => {
                // One that was replaced has no outcome.
                let Ok((Some(address), outcome)) = ended else { continue };
                crowd.ended(address);
                if let Err(why) = outcome {
                    refused(address, &why);
                }
            }
            accepted = listener.accept(), if crowd.has_place(connections.len()) => match accepted {
                Ok((stream, from)) => {
                    if let Some(seen) = failures.end(Instant::now()) {
                        info!("accepting connections again; the failure was {seen}");
                    }
                    let address: Option<IpAddr> = from.into().map(address_block);
                    if let Some(address) = address && !crowd.admits(address) {
                        refused(address, "it has too many connections already");
                        continue;
                    }
                    let served = serve(stream, from);
                    let connection = connections.spawn(async move { (address, served.await) });
                    if let Some(address) = address {
                        crowd.add(address, connection, connections.len());
                    }
                }
                Err(error) => pause(&error, &mut failures).await,
            },
        }
    }
}

/// Reports a failed accept and waits.
async fn pause(error: &io::Error, failures: &mut Repeats) {
    let fault = format!("failed to accept a connection: {error}");
    if let Some(line) = failures.note(&fault, Instant::now()) {
        warn!("{line}");
    }
    sleep(ACCEPT_PAUSE).await;
}

/// Connections with a known address, oldest first per address.
struct Crowd {
    limits: Limits,
    by_address: HashMap<IpAddr, VecDeque<AbortHandle>>,
}

impl Crowd {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            by_address: HashMap::new(),
        }
    }

    /// Whether another connection can be accepted, possibly by closing one of these.
    fn has_place(&self, served: usize) -> bool {
        let replaces = self.limits.when_full == WhenFull::Replace && !self.by_address.is_empty();
        served < self.limits.total || replaces
    }

    /// Whether an address may have another connection, possibly by closing its oldest one.
    fn admits(&self, address: IpAddr) -> bool {
        let own = self.by_address.get(&address).map_or(0, VecDeque::len);
        self.limits.when_full == WhenFull::Replace || own < self.limits.per_address
    }

    /// Adds a connection. If there are now too many, `served` in total, closes the one that it replaces.
    fn add(&mut self, address: IpAddr, connection: AbortHandle, served: usize) {
        self.by_address
            .entry(address)
            .or_default()
            .push_back(connection);
        if self.limits.when_full == WhenFull::Wait {
            return;
        }
        if served > self.limits.total {
            self.by_address.retain(|_, those| forget_ended(those));
        } else {
            self.ended(address);
        }
        let own = self.by_address.get_mut(&address);
        let crowded = match own.filter(|own| own.len() > self.limits.per_address) {
            Some(own) => Some(own),
            None if served > self.limits.total => {
                self.by_address.values_mut().max_by_key(|those| those.len())
            }
            None => None,
        };
        if let Some(oldest) = crowded.and_then(VecDeque::pop_front) {
            oldest.abort();
        }
    }

    /// One of the address's connections has ended.
    fn ended(&mut self, address: IpAddr) {
        if let Entry::Occupied(mut own) = self.by_address.entry(address)
            && !forget_ended(own.get_mut())
        {
            own.remove();
        }
    }
}

/// Drops the connections that have ended; returns whether any is left.
fn forget_ended(connections: &mut VecDeque<AbortHandle>) -> bool {
    connections.retain(|connection| !connection.is_finished());
    !connections.is_empty()
}
