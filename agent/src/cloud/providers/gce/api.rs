//! The Compute Engine API, version 1: JSON, pages, operations, and what its errors mean.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::METADATA;
use super::credentials::{self, Token};
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::{CloudError, shown};
use crate::cloud::providers::paging::Paging;
use crate::cloud::sign::form;
use crate::cloud::transport::{Answer, Call};

const SERVER: &str = "https://compute.googleapis.com";

/// The pause between looks at an operation.
const POLL: Duration = Duration::from_secs(1);

/// How long an operation may take; flannel's 100 polls. Afterwards it may still end, which the next list shows.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(100);

/// A request to the API.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Below the project, with a query.
    pub(super) path: &'a str,
    pub(super) body: Option<String>,
    /// The permission that it needs, which also names the call in messages.
    pub(super) permission: &'static str,
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'a str, permission: &'static str) -> Self {
        Self {
            method: Method::GET,
            path,
            body: None,
            permission,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    items: Option<Vec<T>>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Operation {
    name: String,
    status: String,
    error: Option<OperationError>,
}

#[derive(Deserialize)]
struct OperationError {
    #[serde(default)]
    errors: Vec<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    /// In an operation.
    code: Option<String>,
    /// In an answer.
    reason: Option<String>,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Failure {
    error: FailureError,
}

#[derive(Deserialize)]
struct FailureError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<Fault>,
}

/// Sends requests with a token.
#[derive(Debug)]
pub(super) struct Compute {
    pub(super) access: Access,
    token: Option<Kept<Token>>,
    project: Option<String>,
}

impl Compute {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            token: None,
            project: None,
        }
    }

    /// A text of the metadata service.
    pub(super) async fn metadata(&mut self, name: &str) -> Result<String, CloudError> {
        let answer = metadata(&mut self.access, name).await?;
        let text = answer.map(|answer| String::from_utf8_lossy(&answer.body).trim().to_owned());
        text.filter(|text| !text.is_empty()).ok_or_else(|| {
            CloudError::Unfit(format!(
                "the metadata service has no {name}: is this an instance of Compute Engine?"
            ))
        })
    }

    /// Sends a request and reads the answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &mut self,
        request: Request<'_>,
    ) -> Result<T, CloudError> {
        let permission = request.permission;
        let answer = self.send(request).await?;
        answer.json(permission)
    }

    /// All items of a list.
    pub(super) async fn pages<T: DeserializeOwned>(
        &mut self,
        path: &str,
        permission: &'static str,
    ) -> Result<Vec<T>, CloudError> {
        let mut items = Vec::new();
        let mut paging = Paging::start(permission, &self.access.transport);
        let mut token = String::new();
        loop {
            let query = match token.as_str() {
                "" => "maxResults=500".to_owned(),
                token => form([("maxResults", "500"), ("pageToken", token)]),
            };
            let path = format!("{path}?{query}");
            let page: Page<T> = self.ask(Request::get(&path, permission)).await?;
            items.extend(page.items.unwrap_or_default());
            token = page.next_page_token.unwrap_or_default();
            if token.is_empty() {
                return Ok(items);
            }
            paging.go_on(&self.access.transport)?;
        }
    }

    /// Makes a change, and waits until its operation has ended.
    pub(super) async fn change(&mut self, request: Request<'_>) -> Result<(), CloudError> {
        let call = request.permission;
        let mut operation: Operation = self.ask(request).await?;
        let end = Instant::now() + OPERATION_TIMEOUT;
        while operation.status != "DONE" {
            if Instant::now() >= end {
                return Err(CloudError::NotYet {
                    what: format!("the operation {}", shown(&operation.name)),
                });
            }
            sleep(POLL).await;
            let name = crate::cloud::sign::percent(&operation.name);
            let path = format!("global/operations/{name}");
            operation = (self.ask(Request::get(&path, "compute.globalOperations.get"))).await?;
        }
        let faults = operation.error.map(|error| error.errors);
        match faults.and_then(|faults| faults.into_iter().next()) {
            None => Ok(()),
            Some(fault) => Err(operation_failed(call, &fault)),
        }
    }

    async fn send(&mut self, request: Request<'_>) -> Result<Answer, CloudError> {
        let project = match &self.project {
            Some(project) => project.clone(),
            None => {
                let project = self.metadata("project/project-id").await?;
                self.project.insert(project).clone()
            }
        };
        let now = self.access.transport.now();
        if !self.token.as_ref().is_some_and(|token| token.is_fresh(now)) {
            let token = credentials::find(&mut self.access).await?;
            self.token = Some(token);
        }
        let token = self.token.as_ref().map_or("", |token| token.value.expose());
        let server = self.access.transport.api(SERVER);
        let path = request.path;
        let mut headers = vec![("authorization", format!("Bearer {token}"))];
        if request.body.is_some() {
            headers.push(("content-type", "application/json".to_owned()));
        }
        let call = Call {
            method: request.method,
            url: format!("{server}/compute/v1/projects/{project}/{path}"),
            headers,
            body: Bytes::from(request.body.unwrap_or_default()),
        };
        let answer = self.access.transport.send(call).await?;
        if answer.status == 200 {
            return Ok(answer);
        }
        if answer.status == 401 {
            self.token = None;
        }
        Err(failure(request.permission, &answer))
    }
}

/// A document of the metadata service; `None` if there is none.
pub(super) async fn metadata(
    access: &mut Access,
    name: &str,
) -> Result<Option<Answer>, CloudError> {
    let headers = vec![("metadata-flavor", "Google".to_owned())];
    let path = format!("/computeMetadata/v1/{name}");
    access.metadata(METADATA, &path, headers).await
}

/// What an answer that says no means.
fn failure(permission: &'static str, answer: &Answer) -> CloudError {
    let failure: Option<Failure> = serde_json::from_slice(&answer.body).ok();
    let message = failure
        .as_ref()
        .map_or("", |failure| &failure.error.message);
    let faults = failure.as_ref().map(|failure| &failure.error.errors[..]);
    let first = faults.and_then(<[Fault]>::first);
    let reason = first
        .and_then(|fault| fault.reason.as_deref())
        .unwrap_or("");
    let (call, retry_after) = (permission, answer.retry_after());
    let code = match reason {
        "" => answer.status.to_string(),
        reason => shown(reason),
    };
    match (answer.status, reason) {
        (_, "rateLimitExceeded" | "userRateLimitExceeded") | (429, _) => CloudError::Throttled {
            call,
            code,
            retry_after,
        },
        (_, "quotaExceeded") => CloudError::Quota {
            call,
            quota: "\"Routes\" of the project",
        },
        (401, _) => CloudError::Credentials {
            problem: format!("{call}: {}", shown(message)),
        },
        (403, _) if message.contains("insufficient authentication scopes") => {
            CloudError::Credentials {
                problem: "the instance's access scopes do not include compute; stop it and give it https://www.googleapis.com/auth/compute".to_owned(),
            }
        }
        (403, _) => CloudError::Denied {
            call,
            permission: named(message).unwrap_or(permission),
        },
        (404, _) => CloudError::NotFound {
            call,
            what: shown(message),
        },
        (409, "alreadyExists") => CloudError::Exists {
            call,
            destination: shown(message),
        },
        // Another operation on the resource is under way.
        (409, _) | (500.., _) | (_, "resourceNotReady") => CloudError::Unavailable {
            call,
            code,
            retry_after,
        },
        _ => CloudError::Refused {
            call,
            code,
            message: shown(message),
        },
    }
}

/// The permission in "Required 'compute.routes.create' permission for 'projects/p/global/routes/r'": a change needs some
/// on other resources, too.
fn named(message: &str) -> Option<&'static str> {
    const OTHERS: [&str; 3] = [
        "compute.networks.updatePolicy",
        "compute.instances.use",
        "compute.networks.get",
    ];
    OTHERS.into_iter().find(|other| message.contains(other))
}

/// What the error of an operation means.
fn operation_failed(call: &'static str, fault: &Fault) -> CloudError {
    let code = fault.code.as_deref().unwrap_or_default();
    match code {
        "QUOTA_EXCEEDED" => CloudError::Quota {
            call,
            quota: "\"Routes\" of the project",
        },
        "RESOURCE_ALREADY_EXISTS" => CloudError::Exists {
            call,
            destination: shown(&fault.message),
        },
        "RESOURCE_NOT_FOUND" => CloudError::NotFound {
            call,
            what: shown(&fault.message),
        },
        "RESOURCE_NOT_READY" | "RESOURCE_OPERATION_RATE_EXCEEDED" | "INTERNAL_ERROR" => {
            CloudError::Unavailable {
                call,
                code: shown(code),
                retry_after: None,
            }
        }
        _ => CloudError::Refused {
            call,
            code: shown(code),
            message: shown(&fault.message),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, body: &'static str) -> CloudError {
        let answer = Answer {
            status,
            headers: Default::default(),
            body: Bytes::from_static(body.as_bytes()),
        };
        failure("compute.routes.create", &answer)
    }

    /// The texts are from reports of kubernetes' route controller and of terraform-provider-google.
    #[test]
    fn errors_are_told_apart() {
        let denied = r#"{"error":{"code":403,"message":"Required 'compute.networks.updatePolicy' permission for 'projects/p/global/networks/default'","errors":[{"message":"Required 'compute.networks.updatePolicy' permission for 'projects/p/global/networks/default'","domain":"global","reason":"forbidden"}]}}"#;
        let Some(CloudError::Denied { permission, .. }) = Some(of(403, denied)) else {
            panic!("{:?}", of(403, denied));
        };
        assert_eq!(permission, "compute.networks.updatePolicy");
        let scopes = r#"{"error":{"code":403,"message":"Request had insufficient authentication scopes.","errors":[{"message":"Insufficient Permission","domain":"global","reason":"insufficientPermissions"}],"status":"PERMISSION_DENIED"}}"#;
        assert!(of(403, scopes).to_string().contains("auth/compute"));
        let rate = r#"{"error":{"code":403,"message":"Rate Limit Exceeded","errors":[{"domain":"usageLimits","reason":"rateLimitExceeded","message":"Rate Limit Exceeded"}]}}"#;
        assert!(matches!(of(403, rate), CloudError::Throttled { .. }));
        let quota = r#"{"error":{"code":403,"message":"Quota 'ROUTES' exceeded. Limit: 200.0 globally.","errors":[{"domain":"usageLimits","reason":"quotaExceeded"}]}}"#;
        assert!(matches!(of(403, quota), CloudError::Quota { .. }));
        let exists = r#"{"error":{"code":409,"message":"The resource 'projects/p/global/routes/r' already exists","errors":[{"reason":"alreadyExists"}]}}"#;
        assert!(matches!(of(409, exists), CloudError::Exists { .. }));
        assert!(matches!(of(502, "<html>"), CloudError::Unavailable { .. }));
        assert!(matches!(of(400, "{}"), CloudError::Refused { .. }));
    }
}
