//! Requests to Azure's resource manager, and operations that go on after they were accepted.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::sleep;

use super::Azure;
use super::failure::{refusal, refused};
use super::login::login;
use super::wire::Operation;
use crate::cloud::error::CloudError;
use crate::cloud::providers::asked::Asked;
use crate::cloud::transport::{Answer, Call};

/// How often an operation's state is read before it is left to itself: a change of a route takes some seconds.
const POLLS: usize = 15;

/// The pause between, unless the server asks for another one.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest pause; one that asks for more is left to itself.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

impl Azure {
    async fn token(&mut self) -> Result<String, CloudError> {
        let now = self.access.transport.now();
        if let Some(token) = self.token.as_ref().filter(|token| token.is_fresh(now)) {
            return Ok(token.value.expose().to_owned());
        }
        let environment = self.place().await?.environment;
        let token = login(&mut self.access, &environment).await?;
        Ok(self.token.insert(token).value.expose().to_owned())
    }

    /// Reads a resource.
    pub(super) async fn get<T: DeserializeOwned>(
        &mut self,
        asked: &Asked<'_>,
        path: &str,
    ) -> Result<T, CloudError> {
        let answer = self.ask(asked, Method::GET, path, None, None).await?;
        answer.json(asked.call)
    }

    /// Writes or deletes a resource, and waits for the end of that.
    ///
    /// # Errors
    /// [`CloudError::NotYet`] if it goes on for longer than some half minute.
    pub(super) async fn change(
        &mut self,
        asked: &Asked<'_>,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<(), CloudError> {
        let answer = self.ask(asked, method, path, body, etag).await?;
        let header = |name| {
            let value = answer.headers.get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        // The older way to follow an operation has only the second.
        match header("azure-asyncoperation").or_else(|| header("location")) {
            Some(url) => self.follow(asked, &url, pause(&answer)).await,
            None => Ok(()),
        }
    }

    /// Reads an operation's state until it ends.
    async fn follow(
        &mut self,
        asked: &Asked<'_>,
        url: &str,
        mut wait: Duration,
    ) -> Result<(), CloudError> {
        // Never with our token to another server.
        let start = url.find("://").map_or(0, |at| at + 3);
        let path = url[start..].find('/').map_or("/", |at| &url[start + at..]);
        for _ in 0..POLLS {
            if wait > LONGEST_PAUSE {
                break;
            }
            sleep(wait).await;
            let answer = match self.ask(asked, Method::GET, path, None, None).await {
                Ok(answer) => answer,
                // Who may change a table need not see operations. The next list shows what became of it.
                Err(CloudError::Denied { .. } | CloudError::NotFound { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            wait = pause(&answer);
            if answer.status == 202 {
                continue;
            }
            let Ok(operation) = serde_json::from_slice::<Operation>(&answer.body) else {
                // A location answers with the resource itself, or nothing.
                return Ok(());
            };
            match operation.status.as_str() {
                "Succeeded" => return Ok(()),
                "Failed" | "Canceled" => {
                    return Err(asked.error(refused(400, operation.error)));
                }
                _ => (),
            }
        }
        Err(CloudError::NotYet {
            what: format!("{} {}", asked.call, asked.object),
        })
    }

    pub(super) async fn ask(
        &mut self,
        asked: &Asked<'_>,
        method: Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Answer, CloudError> {
        let mut answer = self.send(&method, path, body, etag).await?;
        if answer.status == 401 {
            // Revoked before its end.
            self.token = None;
            answer = self.send(&method, path, body, etag).await?;
        }
        match answer.status {
            200..=299 => Ok(answer),
            _ => Err(asked.error(refusal(&answer))),
        }
    }

    async fn send(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Answer, CloudError> {
        let manager = self.place().await?.environment.manager;
        let token = self.token().await?;
        let mut headers = vec![("authorization", format!("Bearer {token}"))];
        if body.is_some() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        headers.extend(etag.map(|etag| ("if-match", etag.to_owned())));
        let body = body.map(Value::to_string).unwrap_or_default();
        let call = Call {
            method: method.clone(),
            url: format!("{}{path}", self.access.transport.api(manager)),
            headers,
            body: Bytes::from(body),
        };
        self.access.transport.send(call).await
    }
}

fn pause(answer: &Answer) -> Duration {
    answer.retry_after().unwrap_or(PAUSE)
}
