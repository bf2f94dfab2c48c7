//! The agent's control socket, on which operators' commands query the running agent.
//!
//! It speaks HTTP over a Unix socket, so that any client works (`curl --unix-socket /run/selvage/agent.sock
//! http://agent/v1/status`). It is read-only and reveals no secrets: every local user may ask.
//!
//! | path | answer |
//! |---|---|
//! | `/v1/status` | [`Status`] as JSON |
//! | `/v1/peer?address=ADDRESS` | [`PeerDetail`] as JSON; also a subnet, as `10.5.1.0/24` |
//! | `/healthz`, `/readyz`, `/metrics` | as over TCP |
//!
//! While the agent joins, the answers come from [`ControlService::set_joining`]; afterwards its loop answers from its
//! working state.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::{StatusCode, Uri};
use ipnet::IpNet;
use serde::Serialize;
use thiserror::Error;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::base::http::{self, Answer, Handler};
use crate::telemetry::health::Health;
use crate::telemetry::status::{PeerDetail, Status};

mod client;

pub use client::{Client, Error};

/// Length of the question queue; further clients wait.
const QUESTIONS: usize = 16;

/// How long to wait for the agent's loop before answering that it is busy.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Every local user may ask as often as they like; at most one part in this many of the loop's time goes into answers.
const SHARE: u32 = 4;

/// A question for the agent's loop, with the channel for the answer; dropping the channel means no answer.
#[derive(Debug)]
pub enum Question {
    /// The whole status.
    Status(oneshot::Sender<Status>),
    /// The owner of an address or subnet, and its kernel objects.
    Peer(IpNet, oneshot::Sender<PeerDetail>),
}

/// The receiving end of the questions.
pub type Questions = mpsc::Receiver<Question>;

/// The service on the socket. Clones share one state.
#[derive(Clone, Debug)]
pub struct ControlService {
    health: Health,
    questions: mpsc::Sender<Question>,
    joining: Arc<Mutex<Option<Box<Status>>>>,
    /// When the loop may be asked again.
    next: Arc<tokio::sync::Mutex<Instant>>,
}

/// The control socket cannot be opened.
#[derive(Debug, Error)]
#[error("failed to listen on the control socket {path}")]
pub struct BindError {
    /// The socket's path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl ControlService {
    /// A service with nothing known yet; questions for the loop arrive at the receiver.
    pub fn new(health: Health) -> (Self, Questions) {
        let (sender, receiver) = mpsc::channel(QUESTIONS);
        let control = Self {
            health,
            questions: sender,
            joining: Arc::default(),
            next: Arc::new(tokio::sync::Mutex::new(Instant::now())),
        };
        (control, receiver)
    }

    /// Sets the answer while the agent joins; `None` once it has joined and its loop answers.
    pub fn set_joining(&self, status: Option<Status>) {
        *self.joining() = status.map(Box::new);
    }

    fn joining(&self) -> MutexGuard<'_, Option<Box<Status>>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens on a path until `stop` is ready. A stale socket of an earlier agent is replaced.
    ///
    /// # Errors
    /// The directory or the socket cannot be created, another agent listens there, or the path is not a socket.
    pub fn listen(
        self,
        path: &Path,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), BindError> {
        let failed = |source| BindError {
            path: path.to_owned(),
            source,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        remove_stale(path).map_err(failed)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Set explicitly, because the umask may be stricter.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        tokio::spawn(http::serve(listener, self, stop));
        Ok(())
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let asked = async {
            let mut next = self.next.lock().await;
            sleep_until(*next).await;
            let begin = Instant::now();
            // Takes effect if the client times out: the loop is busy.
            *next = begin + TIMEOUT / 2;
            let (sender, answer) = oneshot::channel();
            self.questions.send(question(sender)).await.ok()?;
            let answer = answer.await.ok();
            *next = Instant::now() + begin.elapsed() * (SHARE - 1);
            answer
        };
        timeout(TIMEOUT, asked).await.ok().flatten()
    }

    async fn status(&self) -> Answer {
        let joining = self.joining().clone();
        match joining {
            Some(mut status) => {
                status.time = crate::telemetry::status::now();
                json(&*status)
            }
            None => answer(self.ask(Question::Status).await.as_ref()),
        }
    }

    async fn peer(&self, uri: &Uri) -> Answer {
        let Some(asked) = uri.query().and_then(asked) else {
            return Answer::plain(
                StatusCode::BAD_REQUEST,
                "expected ?address= with an address such as 10.5.1.2 or a subnet such as 10.5.1.0/24",
            );
        };
        answer(
            self.ask(|sender| Question::Peer(asked, sender))
                .await
                .as_ref(),
        )
    }
}

/// Removes the socket of an agent that no longer runs.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the path exists and is not a socket",
            ));
        }
        Ok(_) => (),
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another agent is listening on it",
        ));
    }
    fs::remove_file(path)
}

/// The value of `address=…`.
fn asked(query: &str) -> Option<IpNet> {
    let text = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("address="))?;
    // A client may percent-encode characters that need no encoding in a query.
    parse_asked(
        &text
            .replace("%2F", "/")
            .replace("%2f", "/")
            .replace("%3A", ":")
            .replace("%3a", ":"),
    )
}

/// An address, or a subnet.
pub(crate) fn parse_asked(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().or_else(address)
}

fn answer(known: Option<&impl Serialize>) -> Answer {
    match known {
        Some(known) => json(known),
        None => Answer::plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is busy joining or programming; try again",
        ),
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => Answer {
            status: StatusCode::OK,
            content_type: "application/json",
            body: body.into(),
        },
        Err(error) => Answer::plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Handler for ControlService {
    async fn answer(&self, uri: &Uri) -> Option<Answer> {
        match uri.path() {
            "/v1/status" => Some(self.status().await),
            "/v1/peer" => Some(self.peer(uri).await),
            _ => self.health.answer(uri).await,
        }
    }

    fn paths(&self) -> &'static str {
        "no such path; try /v1/status, /v1/peer, /healthz, /readyz or /metrics"
    }
}

#[cfg(test)]
mod tests;
