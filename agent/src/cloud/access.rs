//! What a provider is reached with: the transport, the keys of the network config, and credentials.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;

use super::error::CloudError;
use super::transport::{Answer, Call, Transport};
use crate::plan::backend::CloudConfig;

/// How long before its end a temporary credential is replaced, in seconds. Providers give a new one at least five
/// minutes before the old one ends.
pub(crate) const REFRESH_BEFORE_SECS: u64 = 240;

/// Everything that a provider is opened with.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) transport: Transport,
    /// The keys of the network config.
    pub(crate) config: CloudConfig,
    /// The underlay address, by which the instance's interface is found.
    pub(crate) address: std::net::Ipv4Addr,
    /// The file with credentials in the provider's own form, if the settings name one.
    pub(crate) credentials_file: Option<PathBuf>,
    /// The environment of the agent: `AWS_ACCESS_KEY_ID`, …; empty values count as none.
    pub(crate) variable: fn(&str) -> Option<String>,
}

/// A variable of this process.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Access {
    /// The first of these variables that is set.
    pub(crate) fn variable(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| (self.variable)(name))
    }

    /// A document of the metadata service; `None` if there is none (404).
    ///
    /// # Errors
    /// No answer, or one that says no.
    pub(crate) async fn metadata(
        &mut self,
        server: &str,
        path: &str,
        headers: Vec<(&'static str, String)>,
    ) -> Result<Option<Answer>, CloudError> {
        let answer = self
            .transport
            .send(Call {
                method: Method::GET,
                url: format!("{}{path}", self.transport.metadata(server)),
                headers,
                body: Bytes::new(),
            })
            .await?;
        match answer.status {
            200 => Ok(Some(answer)),
            404 => Ok(None),
            429 => Err(CloudError::Throttled {
                call: "metadata service",
                code: "429".to_owned(),
                retry_after: answer.retry_after(),
            }),
            status @ 500.. => Err(CloudError::Unavailable {
                call: "metadata service",
                code: status.to_string(),
                retry_after: answer.retry_after(),
            }),
            status => Err(CloudError::Refused {
                call: "metadata service",
                code: status.to_string(),
                message: path.to_owned(),
            }),
        }
    }
}

/// A credential with an end, kept until shortly before it.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    pub(crate) value: T,
    /// Seconds since 1970; `None` for one that does not end.
    pub(crate) ends: Option<u64>,
}

impl<T> Kept<T> {
    /// One that lasts from now on.
    pub(crate) fn lasting(value: T, now: u64, lasts: Duration) -> Self {
        Self {
            value,
            ends: Some(now.saturating_add(lasts.as_secs())),
        }
    }

    /// Whether it can still be used.
    pub(crate) fn is_fresh(&self, now: u64) -> bool {
        self.ends
            .is_none_or(|ends| now.saturating_add(REFRESH_BEFORE_SECS) < ends)
    }
}
