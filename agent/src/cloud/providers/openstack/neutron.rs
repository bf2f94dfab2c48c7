//! Requests to Neutron.

use hyper::Method;
use hyper::body::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::OpenStack;
use super::failure::refusal;
use super::login::{Session, login};
use crate::cloud::error::CloudError;
use crate::cloud::providers::asked::Asked;
use crate::cloud::transport::{Answer, Call};

impl OpenStack {
    /// The token and what comes with it; a new one shortly before the old one ends.
    pub(super) async fn session(&mut self) -> Result<Session, CloudError> {
        let now = self.access.transport.now();
        if let Some(kept) = self.session.as_ref().filter(|kept| kept.is_fresh(now)) {
            return Ok(kept.value.clone());
        }
        let session = login(&mut self.access).await?;
        Ok(self.session.insert(session).value.clone())
    }

    /// Reads an object.
    pub(super) async fn get<T: DeserializeOwned>(
        &mut self,
        asked: &Asked<'_>,
        path: &str,
    ) -> Result<T, CloudError> {
        self.ask(asked, Method::GET, path, None, None).await
    }

    /// Sends a request; with a `revision` only as long as the object has that number.
    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        asked: &Asked<'_>,
        method: Method,
        path: &str,
        body: Option<&Value>,
        revision: Option<u64>,
    ) -> Result<T, CloudError> {
        let mut answer = self.send(&method, path, body, revision).await?;
        if answer.status == 401 {
            // Revoked before its end, which a change of the password does.
            self.session = None;
            answer = self.send(&method, path, body, revision).await?;
        }
        match answer.status {
            200..=299 => answer.json(asked.call),
            _ => Err(asked.error(refusal(&answer))),
        }
    }

    async fn send(
        &mut self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        revision: Option<u64>,
    ) -> Result<Answer, CloudError> {
        let session = self.session().await?;
        let mut headers = vec![
            ("x-auth-token", session.token.expose().to_owned()),
            ("accept", "application/json".to_owned()),
        ];
        if body.is_some() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        if let Some(revision) = revision {
            headers.push(("if-match", format!("revision_number={revision}")));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let call = Call {
            method: method.clone(),
            url: format!("{}/v2.0{path}", session.neutron),
            headers,
            body: Bytes::from(body),
        };
        self.access.transport.send(call).await
    }
}
