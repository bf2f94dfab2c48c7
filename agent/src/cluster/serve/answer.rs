//! Answers: JSON, or an error with a text.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::base::http::PLAIN;
use crate::cluster::lease::StoreError;
use crate::cluster::lease::rest::{JSON, OBJECT, REASON, Reason, wire};

/// Why a request failed.
#[derive(Debug)]
pub(super) enum HttpError {
    /// Unknown path, or unknown method for it.
    NotFound,
    /// The body or a parameter cannot be parsed.
    Unreadable(String),
    /// The body is longer than any valid one.
    TooLong,
    /// The body did not arrive in time.
    TooSlow,
    /// There is no network config at this key.
    NoNetworkConfig(String),
    /// Anything else.
    Failed(Reason, String),
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        let reason = match error {
            StoreError::NoNetworkConfig { key } => return Self::NoNetworkConfig(key),
            StoreError::Unreachable { .. } => Reason::Unreachable,
            StoreError::NoLease { .. } => Reason::NoLease,
            _ => Reason::Refused,
        };
        match error {
            StoreError::NoLease { reason: text } => Self::Failed(reason, text),
            error => Self::Failed(reason, error.to_string()),
        }
    }
}

impl From<serde_json::Error> for HttpError {
    fn from(error: serde_json::Error) -> Self {
        Self::Failed(Reason::Refused, format!("failed to encode: {error}"))
    }
}

/// A value as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<Response<Full<Bytes>>, HttpError> {
    Ok(ready(Bytes::from(wire::encode(value)?)))
}

/// Encoded JSON.
pub(super) fn ready(body: Bytes) -> Response<Full<Bytes>> {
    with_type(StatusCode::OK, JSON, body)
}

/// Success without a result.
pub(super) fn done(text: &'static str) -> Response<Full<Bytes>> {
    with_type(StatusCode::OK, PLAIN, Bytes::from_static(text.as_bytes()))
}

/// flannel's statuses and texts for an error.
pub(super) fn refuse(error: HttpError) -> Response<Full<Bytes>> {
    let mut object = None;
    let (status, reason, text) = match error {
        HttpError::NotFound => (
            StatusCode::NOT_FOUND,
            None,
            "404 page not found\n".to_owned(),
        ),
        HttpError::Unreadable(text) => (
            StatusCode::BAD_REQUEST,
            None,
            format!("JSON decoding error: {text}"),
        ),
        HttpError::TooLong => (
            StatusCode::PAYLOAD_TOO_LARGE,
            None,
            format!("the body may have at most {} bytes", super::LONGEST_BODY),
        ),
        HttpError::TooSlow => (
            StatusCode::REQUEST_TIMEOUT,
            None,
            "the request took too long".to_owned(),
        ),
        HttpError::NoNetworkConfig(key) => {
            // A key from the settings is visible ASCII; any other omits the header.
            object = HeaderValue::from_str(&key).ok();
            let text = StoreError::NoNetworkConfig { key }.to_string();
            let reason = Reason::NoNetworkConfig.name();
            (StatusCode::INTERNAL_SERVER_ERROR, Some(reason), text)
        }
        HttpError::Failed(reason, text) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Some(reason.name()), text)
        }
    };
    let mut response = with_type(status, PLAIN, Bytes::from(text));
    if let Some(reason) = reason {
        let name = HeaderName::from_static(REASON);
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(reason));
    }
    if let Some(object) = object {
        response
            .headers_mut()
            .insert(HeaderName::from_static(OBJECT), object);
    }
    response
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
