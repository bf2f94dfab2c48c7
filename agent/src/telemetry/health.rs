//! The endpoints for monitoring: `/healthz`, `/readyz` and `/metrics` over HTTP.
//!
//! The agent's loop writes into a [`Health`]; a [`Server`] serves it. The first two endpoints answer as flanneld's do,
//! except that the agent is not ready while something is wrong, and then reports the reasons.
//!
//! | path | status | body |
//! |---|---|---|
//! | `/healthz` | 200 | `flanneld is running` |
//! | `/readyz` | 200 | `flanneld is ready` |
//! | `/readyz` | 503 | `flanneld is not ready yet`, then one reason on each line, with its code in brackets |
//! | `/metrics` | 200 | Prometheus' text format |

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::{StatusCode, Uri};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::base::http::{self, Answer, Handler};
use crate::telemetry::metrics::Sample;
use crate::telemetry::status::{Agent, Cause, Status};

/// Maximum age of the metrics: the loop is asked no more often than this, however many clients scrape.
const SAMPLE_AGE: Duration = Duration::from_secs(1);

/// How long a scrape waits for the loop; then it serves the last sample.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The health endpoints cannot listen.
#[derive(Debug, Error)]
#[error("failed to listen on {address} for the health endpoints")]
pub struct BindError {
    /// The address.
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
    /// Listens on an address. Port 0 means any free port, see [`Self::address`].
    ///
    /// # Errors
    /// [`BindError`], if the address is not this host's or is in use.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        match TcpListener::bind(address).await {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(BindError { address, source }),
        }
    }

    /// The address it listens on.
    ///
    /// # Errors
    /// The error of getsockname(2).
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready; then accepts no more connections and lets pending responses finish.
    pub async fn serve(self, health: Health, stop: impl Future<Output = ()>) {
        http::serve(self.listener, health, stop).await;
    }

    /// Serves in a separate task, until that is stopped or dropped.
    pub(crate) fn start(self, health: Health) -> Running {
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(self.serve(health, async {
            let _ = stopped.await;
        }));
        Running { stop, served }
    }
}

/// A running server. Dropping it stops it without waiting.
#[derive(Debug)]
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Running {
    /// Stops it and waits until its address is free.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        // Ignored: the only error is the task's panic, and it has ended either way.
        let _ = self.served.await;
    }
}

impl Handler for Health {
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
                body: self.metrics().await.into(),
            },
            _ => return None,
        })
    }

    fn paths(&self) -> &'static str {
        "no such path; try /healthz, /readyz or /metrics"
    }
}

/// The agent's health. Clones share one state.
#[derive(Clone, Debug)]
pub struct Health(Arc<State>);

/// The scrapes; each holds the channel for its answer.
pub(crate) type Scrapes = mpsc::Receiver<oneshot::Sender<Sample>>;

#[derive(Debug)]
struct State {
    readiness: Mutex<Readiness>,
    /// The loop's last sample and its time.
    sample: Mutex<(Arc<Sample>, Instant)>,
    scrapes: mpsc::Sender<oneshot::Sender<Sample>>,
    /// Held while the loop is asked, so that concurrent scrapes share the answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
enum Readiness {
    /// The initial state.
    #[default]
    Starting,
    Ready,
    NotReady(Vec<Cause>),
}

impl Health {
    /// The health of a starting agent: not ready, without a reason. Scrapes arrive at the receiver once the agent has
    /// joined.
    pub(crate) fn new() -> (Self, Scrapes) {
        let (scrapes, receiver) = mpsc::channel(1);
        let sample = Sample::joining(Status::joining(Agent::of_process("", 0), Vec::new()));
        let state = State {
            readiness: Mutex::default(),
            sample: Mutex::new((Arc::new(sample), Instant::now())),
            scrapes,
            asking: tokio::sync::Mutex::new(()),
        };
        (Self(Arc::new(state)), receiver)
    }

    /// Sets the overlay as ready (no reasons), or not ready for these reasons.
    ///
    /// Cheap enough to call whenever anything may have changed.
    pub fn set_ready(&self, reasons: Vec<Cause>) {
        let readiness = if reasons.is_empty() {
            Readiness::Ready
        } else {
            Readiness::NotReady(reasons)
        };
        *self.readiness() = readiness;
    }

    fn readiness(&self) -> MutexGuard<'_, Readiness> {
        let lock = self.0.readiness.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the sample that `/metrics` serves while the loop is not asked.
    pub(crate) fn set_sample(&self, sample: Sample) {
        *self.sample() = (Arc::new(sample), Instant::now());
    }

    fn sample(&self) -> MutexGuard<'_, (Arc<Sample>, Instant)> {
        self.0.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of `/readyz` if not ready; `None` if ready.
    fn unreadiness(&self) -> Option<String> {
        const HEADLINE: &str = "flanneld is not ready yet";
        match &*self.readiness() {
            Readiness::Ready => None,
            Readiness::Starting => Some(HEADLINE.to_owned()),
            Readiness::NotReady(reasons) => {
                let mut body = HEADLINE.to_owned();
                for reason in reasons {
                    body.push('\n');
                    // Each reason must be one line, even if an error message has several.
                    let text = reason.text.replace(['\n', '\r'], " ");
                    body.push_str(&format!("{text} [{}]", reason.code));
                }
                Some(body)
            }
        }
    }

    /// The metrics in Prometheus' text format 0.0.4.
    async fn metrics(&self) -> String {
        let _one_at_a_time = self.0.asking.lock().await;
        let (mut sample, at) = self.sample().clone();
        if !sample.is_joining() && at.elapsed() >= SAMPLE_AGE {
            let asked = async {
                let (answer, answered) = oneshot::channel();
                self.0.scrapes.send(answer).await.ok()?;
                answered.await.ok()
            };
            if let Some(fresh) = timeout(TIMEOUT, asked).await.ok().flatten() {
                sample = Arc::new(fresh);
                *self.sample() = (Arc::clone(&sample), Instant::now());
            }
        }
        sample.text(self.unreadiness().is_none())
    }
}

#[cfg(test)]
mod tests;
