//! The client of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::base::http::{self, Trouble};
use crate::telemetry::status::{PeerDetail, Status};

/// Timeout of one request: longer than the agent's own.
const DEADLINE: Duration = Duration::from_secs(8);

/// How often to ask an agent that is too busy to answer: it may be programming a large cluster, or waiting for a
/// firewall reload on a slow host.
const ATTEMPTS: u32 = 3;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum Error {
    /// No agent listens there.
    #[error("no agent answers on {path}")]
    NotRunning {
        /// The control socket.
        path: PathBuf,
        /// The error of connecting.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or took too long.
    #[error("the agent on {path} did not answer")]
    Silent {
        /// The control socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The agent said that it cannot answer.
    #[error("the agent answered {status}: {reason}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// The reason that it gave.
        reason: String,
    },
    /// The answer is malformed; another version of the agent may be running.
    #[error(
        "failed to parse the agent's answer; is this command of another version than the agent?"
    )]
    Unreadable(#[source] serde_json::Error),
}

/// A client of one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client; does not connect yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The whole status.
    ///
    /// # Errors
    /// [`Error::NotRunning`] if no agent runs.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/v1/status").await
    }

    /// The owner of an address or subnet, and its kernel objects.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub async fn peer(&self, asked: IpNet) -> Result<PeerDetail, Error> {
        self.get(&format!("/v1/peer?address={asked}")).await
    }

    async fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        for _ in 1..ATTEMPTS {
            match self.ask(target).await {
                Err(Error::Refused { status: 503, .. }) => {}
                answer => return answer,
            }
        }
        self.ask(target).await
    }

    async fn ask<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        let path = self.path.clone();
        let answer = http::get(&self.path, target, DEADLINE).await;
        let (status, body) = answer.map_err(|trouble| match trouble {
            Trouble::Connect(source) => Error::NotRunning { path, source },
            Trouble::Exchange(source) => Error::Silent { path, source },
        })?;
        if status != 200 {
            let reason = String::from_utf8_lossy(&body).into_owned();
            return Err(Error::Refused { status, reason });
        }
        serde_json::from_slice(&body).map_err(Error::Unreadable)
    }
}
