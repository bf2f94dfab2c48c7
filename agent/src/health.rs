//! What monitoring sees of the agent: `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! The agent's loop writes into a [`Health`]; a [`Server`] shows it to whoever asks. The first two endpoints answer as
//! flanneld's do, except that readiness is taken back while something is wrong, and then says what.
//!
//! | path | status | body |
//! |---|---|---|
//! | `/healthz` | 200 | `flanneld is running` |
//! | `/readyz` | 200 | `flanneld is ready` |
//! | `/readyz` | 503 | `flanneld is not ready yet`, then one reason on each line |
//! | `/metrics` | 200 | Prometheus' text format |

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hyper::{StatusCode, Uri};
use thiserror::Error;
use tokio::net::TcpListener;

use crate::http::{self, Answer, Site};

/// The health endpoints cannot be offered.
#[derive(Debug, Error)]
#[error("failed to listen on {address} for the health endpoints")]
pub struct BindError {
    /// Where it was tried.
    pub address: SocketAddr,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// A listening server; [`Self::serve`] makes it answer.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Starts to listen. Port 0 means any free one; [`Self::address`] tells which.
    ///
    /// # Errors
    /// [`BindError`], for an address that this host does not have or that is taken.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(BindError { address, source }),
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What getsockname(2) answers.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop` is ready; then accepts nothing more and lets answers that are under way end.
    pub async fn serve(self, health: Health, stop: impl Future<Output = ()>) {
        http::serve(self.listener, health, stop).await;
    }
}

impl Site for Health {
    async fn answer(&self, uri: &Uri) -> Option<Answer> {
        Some(match uri.path() {
            "/healthz" => Answer::plain(StatusCode::OK, "flanneld is running"),
            "/readyz" => match self.unreadiness() {
                None => Answer::plain(StatusCode::OK, "flanneld is ready"),
                Some(reasons) => Answer::plain(StatusCode::SERVICE_UNAVAILABLE, reasons),
            },
            "/metrics" => Answer {
                status: StatusCode::OK,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.metrics().into(),
            },
            _ => return None,
        })
    }

    fn paths(&self) -> &'static str {
        "there are /healthz, /readyz and /metrics"
    }
}

/// How the agent is. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<State>);

#[derive(Debug, Default)]
struct State {
    readiness: Mutex<Readiness>,
    peers: AtomicU64,
    renumberings: AtomicU64,
    leases_lost: AtomicU64,
}

#[derive(Debug, Default)]
enum Readiness {
    /// Nobody has said anything yet.
    #[default]
    Starting,
    Ready,
    NotReady(Vec<String>),
}

impl Health {
    /// An agent that is just starting: not ready, and without a reason.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that the overlay works (no reason), or for what reasons it does not, one line each.
    ///
    /// Cheap enough to be called whenever anything may have changed.
    pub fn set_ready(&self, reasons: Vec<String>) {
        let readiness = if reasons.is_empty() {
            Readiness::Ready
        } else {
            Readiness::NotReady(reasons)
        };
        *self
            .0
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = readiness;
    }

    /// Says how many peers are programmed.
    pub fn set_peers(&self, peers: usize) {
        let peers = u64::try_from(peers).unwrap_or(u64::MAX);
        self.0.peers.store(peers, Ordering::Relaxed);
    }

    /// Counts a change of this host's subnet while it was running.
    pub fn renumbered(&self) {
        self.0.renumberings.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a lease that was lost: expired, revoked, or taken by another.
    pub fn lease_lost(&self) {
        self.0.leases_lost.fetch_add(1, Ordering::Relaxed);
    }

    /// `None` when all is well, else what `/readyz` answers.
    fn unreadiness(&self) -> Option<String> {
        const HEADLINE: &str = "flanneld is not ready yet";
        let readiness = self
            .0
            .readiness
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*readiness {
            Readiness::Ready => None,
            Readiness::Starting => Some(HEADLINE.to_owned()),
            Readiness::NotReady(reasons) => {
                let mut body = HEADLINE.to_owned();
                for reason in reasons {
                    body.push('\n');
                    // One reason is one line, whatever an error message was made of.
                    body.push_str(&reason.replace(['\n', '\r'], " "));
                }
                Some(body)
            }
        }
    }

    /// The metrics in Prometheus' text format 0.0.4.
    fn metrics(&self) -> String {
        let state = &self.0;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let metrics = [
            (
                "selvage_ready",
                "gauge",
                "Whether the overlay works: 1 or 0.",
                u64::from(self.unreadiness().is_none()),
            ),
            (
                "selvage_peers",
                "gauge",
                "Other hosts of the overlay that this one is set up to reach.",
                count(&state.peers),
            ),
            (
                "selvage_renumberings_total",
                "counter",
                "How often this host was given another subnet while running.",
                count(&state.renumberings),
            ),
            (
                "selvage_lease_lost_total",
                "counter",
                "How often the lease on this host's subnet was lost.",
                count(&state.leases_lost),
            ),
        ];
        let mut text = String::with_capacity(512);
        for (name, kind, help, value) in metrics {
            // Writing into a `String` never fails.
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        }
        text
    }
}

#[cfg(test)]
mod tests;
