//! The servers: requests go to one of them, and to the next if it does not answer or has no etcd.

use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Answer, Connection, Failure, Question};
use crate::base::endpoint::Endpoint;
use crate::base::go_json::shorten;
use crate::base::logging::chain;
use crate::cluster::lease::StoreError;
use crate::cluster::lease::rest::Reason;
use crate::cluster::lease::rest::tls::Files;
use crate::cluster::lease::store::DEADLINE;
use crate::cluster::lease::store::endpoints::{Attempt, Endpoints};

/// The servers, all equivalent.
#[derive(Debug)]
pub(super) struct Servers {
    endpoints: Endpoints,
    files: Files,
}

impl Servers {
    /// At least one endpoint is needed; without any, every request fails.
    pub(super) fn new(endpoints: Vec<Endpoint>, files: Files) -> Self {
        Self {
            endpoints: Endpoints::new("lease server", endpoints),
            files,
        }
    }

    /// The number of servers.
    pub(super) fn count(&self) -> usize {
        self.endpoints.count()
    }

    /// The address of the server in use.
    pub(super) fn url(&self) -> String {
        self.endpoints.url(self.endpoints.current()).to_owned()
    }

    /// Sends a request to the current server over a new connection and, as long as servers do not answer, to each of
    /// the others once. Several may get the request, so it must be idempotent.
    pub(super) async fn ask(&self, question: &Question) -> Result<Answer, StoreError> {
        let mut attempts = Vec::new();
        for _ in 0..self.endpoints.count() {
            let index = self.endpoints.current();
            match self.ask_at(index, question, &mut None, DEADLINE).await {
                Ok(answer) => return self.check(index, answer),
                Err(failure) => attempts.push(self.give_up(index, &failure)),
            }
        }
        Err(Endpoints::unreachable(&attempts))
    }

    /// Sends a request to the current server alone, over `connection` if that is still usable; afterwards `connection`
    /// holds one that can be reused, if any. On failure the next server becomes the current one.
    pub(super) async fn ask_once(
        &self,
        question: &Question,
        connection: &mut Option<Connection>,
        limit: Duration,
    ) -> Result<Answer, StoreError> {
        let index = self.endpoints.current();
        match self.ask_at(index, question, connection, limit).await {
            Ok(answer) => self.check(index, answer),
            Err(failure) => Err(self.failed(index, &failure)),
        }
    }

    /// Reports that the current server's answer cannot be parsed.
    pub(super) fn bad_answer(&self, error: String) -> StoreError {
        self.failed(self.endpoints.current(), &Failure::Answer(error))
    }

    /// The error for no answer in time.
    pub(super) fn silence(&self) -> StoreError {
        self.endpoints.silence()
    }

    async fn ask_at(
        &self,
        index: usize,
        question: &Question,
        connection: &mut Option<Connection>,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        let Some(endpoint) = self.endpoints.get(index) else {
            return Err(Failure::Silence(limit));
        };
        let mut usable = connection.take().filter(Connection::is_usable);
        let answered = timeout(limit, async {
            loop {
                let old = usable.is_some();
                let mut open = match usable.take() {
                    Some(open) => open,
                    None => Connection::open(endpoint, &self.files).await?,
                };
                match open.ask(question).await {
                    Ok(answer) => return Ok((answer, open)),
                    // A server may close an idle connection at any time: retry over a new one.
                    Err(Failure::Http(_)) if old => {}
                    Err(failure) => return Err(failure),
                }
            }
        });
        let (answer, open) = answered
            .await
            .unwrap_or_else(|_| Err(Failure::Silence(limit)))?;
        *connection = Some(open);
        // The others are a load balancer's statuses for a server that is down.
        if (answer.status != 200 && answer.reason == Reason::Unreachable)
            || matches!(answer.status, 502..=504)
        {
            return Err(Failure::NoStore(text(&answer)));
        }
        Ok(answer)
    }

    /// Separates answers from errors that the other servers would return as well.
    fn check(&self, index: usize, answer: Answer) -> Result<Answer, StoreError> {
        if answer.status == 200 {
            return Ok(answer);
        }
        let reason = text(&answer);
        Err(match answer.reason {
            Reason::NoNetworkConfig => StoreError::NoNetworkConfig {
                key: match answer.object {
                    Some(key) => format!("{key} ({})", self.endpoints.name(index)),
                    None => self.endpoints.name(index),
                },
            },
            Reason::NoLease => StoreError::NoLease { reason },
            Reason::Unreachable | Reason::Refused => StoreError::Refused {
                server: self.endpoints.name(index),
                reason,
                code: answer.status.into(),
            },
        })
    }

    fn failed(&self, index: usize, failure: &Failure) -> StoreError {
        Endpoints::unreachable(&[self.give_up(index, failure)])
    }

    /// Moves on to the next server. Returns a description of the failure.
    fn give_up(&self, index: usize, failure: &Failure) -> Attempt {
        let cause = match failure {
            Failure::Tls(error) => chain(error),
            failure => failure.to_string(),
        };
        self.endpoints.give_up(index, &cause, failure.fault())
    }
}

/// A server's error text: its first line, shortened.
fn text(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() {
        format!("HTTP status {}", answer.status)
    } else if line.len() > 400 {
        shorten(line)
    } else {
        line.chars().filter(|c| !c.is_control()).collect()
    }
}
