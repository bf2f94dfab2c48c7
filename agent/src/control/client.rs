//! Asking a running agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::status::{PeerDetail, Status};

/// How long an answer may take: longer than the agent is patient with itself.
const DEADLINE: Duration = Duration::from_secs(8);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// No agent listens there.
    #[error("no agent answers on {path}")]
    NotRunning {
        /// The control socket.
        path: PathBuf,
        /// What connecting met.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or took too long.
    #[error("the agent on {path} gave no answer")]
    Silent {
        /// The control socket.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The agent said that it cannot answer.
    #[error("the agent answered {status}: {reason}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// Its words.
        reason: String,
    },
    /// The answer is not what was expected; another version of the agent may run.
    #[error(
        "the agent's answer cannot be read; is the agent of another version than this command?"
    )]
    Unreadable(#[source] serde_json::Error),
}

/// Asks the agent behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Connects to nothing yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// How everything is.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if no agent runs.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/v1/status").await
    }

    /// Whose an address or subnet is, and what reaches it.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn peer(&self, asked: IpNet) -> Result<PeerDetail, Error> {
        self.get(&format!("/v1/peer?address={asked}")).await
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        let silent = |source| Error::Silent {
            path: self.path.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.path).await;
        let mut stream = stream.map_err(|source| Error::NotRunning {
            path: self.path.clone(),
            source,
        })?;
        // HTTP/1.0: the answer comes as it is and ends with the connection.
        let request = format!("GET {target} HTTP/1.0\r\n\r\n");
        let mut answer = Vec::new();
        let exchange = async {
            stream.write_all(request.as_bytes()).await?;
            stream.read_to_end(&mut answer).await
        };
        timeout(DEADLINE, exchange)
            .await
            .map_err(io::Error::from)
            .flatten()
            .map_err(silent)?;
        let (status, body) =
            split(&answer).ok_or_else(|| silent(io::ErrorKind::InvalidData.into()))?;
        if status != 200 {
            let reason = String::from_utf8_lossy(body).into_owned();
            return Err(Error::Refused { status, reason });
        }
        serde_json::from_slice(body).map_err(Error::Unreadable)
    }
}

/// The status code and the body of an answer.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    const END: &[u8] = b"\r\n\r\n";
    let end = answer.windows(END.len()).position(|part| part == END)?;
    let (head, body) = answer.split_at_checked(end)?;
    let head = std::str::from_utf8(head).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.get(END.len()..)?))
}
