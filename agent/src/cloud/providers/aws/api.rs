//! EC2's Query API: signed forms, XML answers, and what its error codes mean.

use hyper::Method;
use hyper::body::Bytes;

use super::credentials;
use super::sigv4::{Scope, Signed, authorization};
use crate::base::time::rfc3339;
use crate::cloud::access::{Access, Kept};
use crate::cloud::error::{CloudError, shown};
use crate::cloud::providers::access_key::AccessKey;
use crate::cloud::providers::paging::Paging;
use crate::cloud::sign::form;
use crate::cloud::transport::{Answer, Call};
use crate::cloud::xml::Element;

/// The version of the API.
const VERSION: &str = "2016-11-15";

const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// An API call, and the permission that it needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action {
    pub(super) name: &'static str,
    pub(super) permission: &'static str,
}

/// Makes the two names from one.
macro_rules! action {
    ($name:ident, $action:literal) => {
        pub(super) const $name: Action = Action {
            name: $action,
            permission: concat!("ec2:", $action),
        };
    };
}

action!(DESCRIBE_INSTANCES, "DescribeInstances");
action!(DESCRIBE_ROUTE_TABLES, "DescribeRouteTables");
action!(CREATE_ROUTE, "CreateRoute");
action!(REPLACE_ROUTE, "ReplaceRoute");
action!(DELETE_ROUTE, "DeleteRoute");
action!(
    MODIFY_NETWORK_INTERFACE_ATTRIBUTE,
    "ModifyNetworkInterfaceAttribute"
);

/// Signs and sends calls.
#[derive(Debug)]
pub(super) struct Ec2 {
    pub(super) access: Access,
    pub(super) region: String,
    /// `https://ec2.eu-west-1.amazonaws.com`.
    pub(super) server: String,
    keys: Option<Kept<AccessKey>>,
}

impl Ec2 {
    pub(super) fn new(access: Access) -> Self {
        Self {
            access,
            region: String::new(),
            server: String::new(),
            keys: None,
        }
    }

    /// Makes a call that has one answer.
    pub(super) async fn call(
        &mut self,
        action: Action,
        parameters: &[(&str, &str)],
    ) -> Result<Element, CloudError> {
        let own = [("Action", action.name), ("Version", VERSION)];
        let body = form(own.into_iter().chain(parameters.iter().copied()));
        let answer = self.send(&body).await?;
        let text = String::from_utf8_lossy(&answer.body);
        if answer.status != 200 {
            let error = failure(action, &answer, &text);
            if matches!(error, CloudError::Credentials { .. }) {
                // The next call looks for other ones.
                self.keys = None;
            }
            return Err(error);
        }
        Element::parse(&text).map_err(|error| CloudError::Malformed {
            call: action.name,
            problem: error.to_string(),
        })
    }

    /// Makes a call whose answer comes in pages.
    pub(super) async fn pages(
        &mut self,
        action: Action,
        parameters: &[(&str, &str)],
    ) -> Result<Vec<Element>, CloudError> {
        let mut pages = Vec::new();
        let mut paging = Paging::start(action.name, &self.access.transport);
        let mut next: Option<String> = None;
        loop {
            let token = next.iter().map(|token| ("NextToken", token.as_str()));
            let parameters: Vec<_> = parameters.iter().copied().chain(token).collect();
            let page = self.call(action, &parameters).await?;
            next = page.text("nextToken").map(str::to_owned);
            pages.push(page);
            if next.is_none() {
                return Ok(pages);
            }
            paging.go_on(&self.access.transport)?;
        }
    }

    async fn send(&mut self, body: &str) -> Result<Answer, CloudError> {
        let now = self.access.transport.now();
        if !self.keys.as_ref().is_some_and(|keys| keys.is_fresh(now)) {
            let found = credentials::find(&mut self.access).await?;
            self.keys = Some(found);
        }
        let Some(Kept { value: keys, .. }) = &self.keys else {
            return Err(CloudError::Credentials {
                problem: "none".to_owned(),
            });
        };
        let time = compact(now);
        let host = self.server.split_once("://").map_or("", |(_, host)| host);
        let mut headers = vec![
            ("content-type", CONTENT_TYPE),
            ("host", host),
            ("x-amz-date", &time),
        ];
        if let Some(session) = &keys.token {
            headers.push(("x-amz-security-token", session.expose()));
        }
        let signed = Signed {
            method: "POST",
            path: "/",
            query: "",
            headers: &headers,
            body: body.as_bytes(),
        };
        let scope = Scope {
            time: &time,
            region: &self.region,
            service: "ec2",
        };
        let signature = authorization(signed, scope, keys);
        let mut sent = vec![
            ("content-type", CONTENT_TYPE.to_owned()),
            ("x-amz-date", time.clone()),
            ("authorization", signature),
        ];
        if let Some(session) = &keys.token {
            sent.push(("x-amz-security-token", session.expose().to_owned()));
        }
        let call = Call {
            method: Method::POST,
            url: format!("{}/", self.server),
            headers: sent,
            body: Bytes::from(body.to_owned()),
        };
        self.access.transport.send(call).await
    }
}

/// ISO 8601's basic form: `20150830T123600Z`.
fn compact(secs: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(secs);
    rfc3339(time).replace(['-', ':'], "")
}

/// What an answer that says no means; the codes are those of *Error codes for the Amazon EC2 API*.
fn failure(action: Action, answer: &Answer, text: &str) -> CloudError {
    let root = Element::parse(text).unwrap_or_default();
    let code = root.text("Errors/Error/Code").unwrap_or_default();
    let message = root.text("Errors/Error/Message").unwrap_or_default();
    let call = action.name;
    let shown_code = match code {
        "" => answer.status.to_string(),
        code => shown(code),
    };
    let retry_after = answer.retry_after();
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "EC2ThrottledException"
        | "SlowDown"
        | "BandwidthLimitExceeded" => CloudError::Throttled {
            call,
            code: shown_code,
            retry_after,
        },
        "UnauthorizedOperation" | "AccessDenied" | "AccessDeniedException" => CloudError::Denied {
            call,
            permission: action.permission,
        },
        // Their messages may quote what was signed.
        "SignatureDoesNotMatch" | "IncompleteSignature" => CloudError::Credentials {
            problem: format!(
                "{call}: {shown_code}: the secret access key does not fit the access key ID"
            ),
        },
        "AuthFailure"
        | "InvalidClientTokenId"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "UnrecognizedClientException"
        | "MissingAuthenticationToken"
        | "InvalidAccessKeyId"
        | "OptInRequired"
        | "Blocked" => CloudError::Credentials {
            problem: format!("{call}: {shown_code}: {}", shown(message)),
        },
        "RouteLimitExceeded" => CloudError::Quota {
            call,
            quota: "\"Routes per route table\"",
        },
        "RouteAlreadyExists" => CloudError::Exists {
            call,
            destination: shown(message),
        },
        _ if code.ends_with(".NotFound") => CloudError::NotFound {
            call,
            what: shown(message),
        },
        _ if answer.status == 429 => CloudError::Throttled {
            call,
            code: shown_code,
            retry_after,
        },
        _ if answer.status >= 500 => CloudError::Unavailable {
            call,
            code: shown_code,
            retry_after,
        },
        _ => CloudError::Refused {
            call,
            code: shown_code,
            message: shown(message),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_basic_form() {
        assert_eq!(compact(1_440_938_160), "20150830T123600Z");
    }

    fn answer(status: u16, code: &str) -> CloudError {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors><RequestID>x</RequestID></Response>"
        );
        let answer = Answer {
            status,
            headers: Default::default(),
            body: Bytes::new(),
        };
        failure(CREATE_ROUTE, &answer, &body)
    }

    #[test]
    fn error_codes_are_told_apart() {
        let denied = answer(403, "UnauthorizedOperation").to_string();
        assert_eq!(
            denied,
            "CreateRoute: not allowed; give this instance's role the permission ec2:CreateRoute"
        );
        assert!(matches!(
            answer(503, "RequestLimitExceeded"),
            CloudError::Throttled { .. }
        ));
        assert!(matches!(
            answer(400, "RouteLimitExceeded"),
            CloudError::Quota { .. }
        ));
        assert!(matches!(
            answer(400, "RouteAlreadyExists"),
            CloudError::Exists { .. }
        ));
        assert!(matches!(
            answer(400, "InvalidRoute.NotFound"),
            CloudError::NotFound { .. }
        ));
        assert!(matches!(
            answer(401, "AuthFailure"),
            CloudError::Credentials { .. }
        ));
        for code in ["SignatureDoesNotMatch", "IncompleteSignature"] {
            let wrong = answer(403, code).to_string();
            assert!(wrong.ends_with("does not fit the access key ID"), "{wrong}");
        }
        assert!(matches!(
            answer(500, "InternalError"),
            CloudError::Unavailable { .. }
        ));
        assert!(matches!(
            answer(400, "InvalidParameterValue"),
            CloudError::Refused { .. }
        ));
    }
}
