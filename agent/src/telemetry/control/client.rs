//! Asking a running agent.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::base::http::{self, Trouble};
use crate::telemetry::status::{PeerDetail, Status};

/// How long an answer may take: longer than the agent is patient with itself.
const DEADLINE: Duration = Duration::from_secs(8);

/// How often an agent is asked that is too busy to answer: programming a large cluster, or waiting for a firewall that is
/// reloaded on a slow machine.
const ATTEMPTS: u32 = 3;

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
