//! The servers of a store; the one that worked last is tried first.

use std::sync::{Mutex, PoisonError};

use tracing::debug;

use crate::base::endpoint::Endpoint;
use crate::cluster::lease::{Fault, StoreError};

/// A failed attempt to use one server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cluster::lease) struct Attempt {
    /// Which server, and what is wrong with it.
    text: String,
    /// What the operator must fix.
    fault: Fault,
}

/// Equivalent servers, and the current one.
#[derive(Debug)]
pub(in crate::cluster::lease) struct Endpoints {
    /// What messages call the service: `etcd`.
    service: &'static str,
    endpoints: Vec<Endpoint>,
    current: Mutex<usize>,
}

impl Endpoints {
    /// At least one endpoint is needed; without any, every request fails.
    pub(in crate::cluster::lease) fn new(service: &'static str, endpoints: Vec<Endpoint>) -> Self {
        Self {
            service,
            endpoints,
            current: Mutex::new(0),
        }
    }

    /// The number of servers.
    pub(in crate::cluster::lease) fn count(&self) -> usize {
        self.endpoints.len()
    }

    pub(in crate::cluster::lease) fn get(&self, index: usize) -> Option<&Endpoint> {
        self.endpoints.get(index)
    }

    /// The address of a server, as configured.
    pub(in crate::cluster::lease) fn url(&self, index: usize) -> &str {
        self.get(index).map_or("", |endpoint| &endpoint.url)
    }

    /// What messages call a server: `etcd at http://10.0.0.1:2379`.
    pub(in crate::cluster::lease) fn name(&self, index: usize) -> String {
        format!("{} at {}", self.service, self.url(index))
    }

    /// The server to use.
    pub(in crate::cluster::lease) fn current(&self) -> usize {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server did not answer: moves on to the next one, unless another task already has.
    pub(in crate::cluster::lease) fn give_up(
        &self,
        index: usize,
        cause: &str,
        fault: Fault,
    ) -> Attempt {
        let server = self.name(index);
        debug!(server, cause, "request failed");
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if *current == index {
            *current = (index + 1) % self.endpoints.len().max(1);
        }
        Attempt {
            text: format!("{server}: {cause}"),
            fault,
        }
    }

    /// The error that none of these servers answered.
    pub(in crate::cluster::lease) fn unreachable(attempts: &[Attempt]) -> StoreError {
        let texts: Vec<&str> = attempts.iter().map(|it| it.text.as_str()).collect();
        let fault = attempts.iter().map(|it| it.fault).max();
        StoreError::Unreachable {
            attempts: texts.join("; "),
            fault: fault.unwrap_or_default(),
        }
    }

    /// The error for a request that timed out, whichever servers it went to.
    pub(in crate::cluster::lease) fn silence(&self) -> StoreError {
        let name = self.name(self.current());
        StoreError::Unreachable {
            attempts: format!("{name}: no answer within {} s", super::DEADLINE.as_secs()),
            fault: Fault::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_hands_over_to_the_next_one_once() {
        let endpoint = |url| Endpoint::parse(url, false).unwrap();
        let list = vec![endpoint("http://a:1"), endpoint("http://b:1")];
        let servers = Endpoints::new("etcd", list);
        let first = servers.give_up(0, "refused", Fault::Tls);
        assert_eq!(first.text, "etcd at http://a:1: refused");
        assert_eq!(servers.current(), 1);
        // Another task noticed the same failure.
        servers.give_up(0, "refused", Fault::Other);
        assert_eq!(servers.current(), 1);
        let second = servers.give_up(1, "refused", Fault::Other);
        assert_eq!(servers.current(), 0);
        assert_eq!(Endpoints::unreachable(&[second, first]).fault(), Fault::Tls);
        assert_eq!(
            servers.silence().to_string(),
            "etcd at http://a:1: no answer within 5 s"
        );
    }
}
