//! The client of FleetLock: a small HTTP protocol that Zincati speaks with lock servers such as airlock.
//!
//! | request | asks |
//! |---|---|
//! | `POST BASE/v1/pre-reboot` | to take the lock, also if this machine has it |
//! | `POST BASE/v1/steady-state` | to give it back, also if this machine does not have it |
//!
//! Both have the header `fleet-lock-protocol: true` and the body `{"client_params":{"id":ID,"group":GROUP}}`. Status 200 is
//! yes. All else is no, with a reason: `{"kind":CODE,"value":SENTENCE}` if the server keeps to the protocol, any text
//! otherwise. <https://coreos.github.io/zincati/development/fleetlock/protocol/>
//!
//! The protocol leaves the codes to the servers. What matters is told apart by those that servers are known to use: the lock
//! is held by others, or this machine does not hold it. A server that fails (5xx), or does not speak the protocol, has not
//! decided anything: that is an error.
//!
//! The server counts, and knows nobody but holders. So there is no status, no breaker, and no fence here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::{Method, Uri};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::appliance::fleet::records::{foreign, is_id};
use crate::appliance::fleet::{FleetError, Leave};
use crate::base::http::{Call, CallError, Manner};
use crate::cluster::lease::rest::tls::{Files, TlsError};
use crate::settings;

/// How long one request may take. A server may itself be asking etcd.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lock server cannot be asked.
#[derive(Debug, Error)]
pub enum FleetLockError {
    /// There is no connection.
    #[error("failed to connect to the lock server {server}")]
    Connect {
        /// Which.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(
        "failed to speak TLS with the lock server {server} (fleet.cafile is the authority to trust, or else the system's are)"
    )]
    Tls {
        /// Which.
        server: String,
        /// Why.
        #[source]
        source: Box<TlsError>,
    },
    /// The answer is none.
    #[error("failed to ask the lock server {server}")]
    Exchange {
        /// Which.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There was no answer in time.
    #[error("no answer from the lock server {server} within {} s", PATIENCE.as_secs())]
    Silence {
        /// Which.
        server: String,
    },
    /// It does not take the lock back.
    #[error("the lock server {server} does not take the lock back: {why}")]
    Refused {
        /// Which.
        server: String,
        /// Why.
        why: String,
    },
    /// What it says is no decision.
    #[error(
        "the lock server {server} does not do its work: {why}; see its log, and fleet.lock and fleet.group in agent.toml"
    )]
    Broken {
        /// Which.
        server: String,
        /// What it says.
        why: String,
    },
}

#[derive(Serialize)]
struct Body<'a> {
    client_params: Parameters<'a>,
}

#[derive(Serialize)]
struct Parameters<'a> {
    id: &'a str,
    group: &'a str,
}

/// Why a server says no.
#[derive(Deserialize)]
struct Rejection {
    kind: String,
    value: String,
}

/// What a server says. The texts are its reasons.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Yes,
    /// As many machines as may hold the lock do.
    Held(String),
    /// This machine does not hold the lock.
    NotHeld(String),
    /// No, for another reason.
    No(String),
    /// Nothing: it is broken, or is no lock server.
    Broken(String),
}

/// One machine of a fleet whose lock is kept by a server.
#[derive(Debug)]
pub struct FleetLock {
    /// The base address, without a trailing slash.
    server: String,
    files: Files,
    body: Bytes,
}

impl FleetLock {
    /// A client of the server at a checked address; connects to nothing yet.
    ///
    /// # Errors
    /// The machine's ID is none.
    pub fn new(
        address: &Uri,
        settings: &settings::fleet::Fleet,
        id: &str,
    ) -> Result<Self, FleetError> {
        if !is_id(id) {
            return Err(FleetError::BadId(id.to_owned()));
        }
        let body = Body {
            client_params: Parameters {
                id,
                group: &settings.group,
            },
        };
        Ok(Self {
            server: address.to_string().trim_end_matches('/').to_owned(),
            files: Files {
                cafile: settings.cafile.clone(),
                ..Files::default()
            },
            body: serde_json::to_vec(&body).unwrap_or_default().into(),
        })
    }

    /// Asks once.
    async fn ask(&self, what: &str) -> Result<Answer, FleetLockError> {
        let server = || self.server.clone();
        let call = Call {
            method: Method::POST,
            url: format!("{}/v1/{what}", self.server),
            headers: vec![
                ("content-type", "application/json".to_owned()),
                ("fleet-lock-protocol", "true".to_owned()),
            ],
            body: self.body.clone(),
        };
        let tls = call.is_tls().then(|| self.files.client()).transpose();
        let tls = tls.map_err(|source| FleetLockError::Tls {
            server: server(),
            source: Box::new(source),
        })?;
        let manner = Manner {
            connect: PATIENCE,
            answer: PATIENCE,
            from: None,
            tls: tls.map(Arc::new),
        };
        let answer = call.send(&manner).await.map_err(|error| match error {
            CallError::Connect(source) => FleetLockError::Connect {
                server: server(),
                source,
            },
            CallError::Slow(_) | CallError::Silent(_) => {
                FleetLockError::Silence { server: server() }
            }
            error => FleetLockError::Exchange {
                server: server(),
                source: error.into(),
            },
        })?;
        Ok(understood(answer.status().as_u16(), answer.body()))
    }
}

/// What an answer means.
fn understood(status: u16, body: &[u8]) -> Answer {
    if status == 200 {
        return Answer::Yes;
    }
    let rejection: Option<Rejection> = serde_json::from_slice(body).ok();
    let value = match &rejection {
        Some(rejection) => rejection.value.clone(),
        None => String::from_utf8_lossy(body).into_owned(),
    };
    // Of one server: `failed_lock_semaphore_full`, `failed-lock-semaphore-full`.
    let kind = rejection
        .as_ref()
        .map(|rejection| rejection.kind.replace('-', "_").to_lowercase());
    let is_kind = |parts: &[&str]| {
        (kind.as_ref()).is_some_and(|kind| parts.iter().any(|part| kind.contains(part)))
    };
    let text = foreign(value.trim());
    let text = if text.is_empty() {
        "no reason given"
    } else {
        &text
    };
    let shown = rejection.map_or_else(
        || "no kind".to_owned(),
        |rejection| foreign(&rejection.kind),
    );
    let why = format!("{text} ({shown}, HTTP {status})");
    if is_kind(&["not_held", "not_locked", "not_holder"]) {
        Answer::NotHeld(why)
    // airlock before its errors had kinds, and the kinds and statuses of others.
    } else if value.contains("semaphore currently full")
        || is_kind(&["semaphore_full", "lock_held", "already_locked"])
        || kind.as_deref() == Some("locked")
        || matches!(status, 409 | 423)
    {
        Answer::Held(why)
    } else if kind.is_some() && (400..500).contains(&status) {
        Answer::No(why)
    } else {
        Answer::Broken(why)
    }
}

impl FleetLock {
    /// Takes the lock. [`Leave::Now`] also if this machine holds it already.
    ///
    /// # Errors
    /// The server does not answer, or what it says is no decision.
    pub async fn acquire(&mut self) -> Result<Leave, FleetError> {
        let why = match self.ask("pre-reboot").await? {
            Answer::Yes => return Ok(Leave::Now),
            Answer::Broken(why) => return Err(self.broken(why)),
            Answer::Held(why) => format!("others have the lock; {} says: {why}", self.server),
            Answer::NotHeld(why) | Answer::No(why) => {
                format!("the lock server {} says: {why}", self.server)
            }
        };
        Ok(Leave::Later { until: None, why })
    }

    /// Makes sure that this machine still holds the lock. The server has no place for a state: to ask for the lock once more
    /// tells.
    ///
    /// # Errors
    /// [`FleetError::Lost`] if it does not; the server does not answer, or what it says is no decision.
    pub async fn confirm(&mut self) -> Result<(), FleetError> {
        match self.ask("pre-reboot").await? {
            Answer::Yes => Ok(()),
            Answer::Broken(why) => Err(self.broken(why)),
            Answer::Held(_) | Answer::NotHeld(_) | Answer::No(_) => Err(FleetError::Lost),
        }
    }

    /// Gives the lock back. Done as well if this machine does not hold it, or others do.
    ///
    /// # Errors
    /// The server does not answer, refuses, or what it says is no decision.
    pub async fn release(&mut self) -> Result<(), FleetError> {
        match self.ask("steady-state").await? {
            Answer::Yes | Answer::NotHeld(_) | Answer::Held(_) => Ok(()),
            Answer::Broken(why) => Err(self.broken(why)),
            Answer::No(why) => Err(FleetLockError::Refused {
                server: self.server.clone(),
                why,
            }
            .into()),
        }
    }

    fn broken(&self, why: String) -> FleetError {
        FleetLockError::Broken {
            server: self.server.clone(),
            why,
        }
        .into()
    }
}

#[cfg(test)]
mod tests;
