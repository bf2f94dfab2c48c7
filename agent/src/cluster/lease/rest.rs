//! The protocol between flannel's client and server: a small REST interface over HTTP or TLS.
//!
//! flannel 0.5 to 0.7 had it (`remote/server.go`, `remote/client.go`); their nodes and ours interoperate. `NET` is a
//! network's name, or `_` for the unnamed one.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/NET/config` | | the network config |
//! | `POST /v1/NET/leases` | attributes | a lease |
//! | `PUT /v1/NET/leases/SUBNET` | a lease | the lease, renewed |
//! | `GET /v1/NET/leases[?next=CURSOR]` | | all leases, or what changed since; waits for a change |
//! | `GET /v1/NET/leases/SUBNET` | | one lease, as a watch result (0.6) |
//! | `DELETE /v1/NET/leases/SUBNET` | a lease | nothing (0.6) |
//! | `GET /v1/` | | the names of the networks, as a watch result |
//! | `GET /v1/NET/reservations` | | the reservations (0.6) |
//!
//! Malformed JSON gives 400, any other failure 500, each with a text. Whatever flannel's protocol lacks goes where its
//! parsers ignore it: extra JSON fields, query parameters, and headers that classify an error.
//!
//! | our addition | where | meaning |
//! |---|---|---|
//! | `previous`, `restarted` | query of `POST` | the subnet that the host had before, and whether it has just started |
//! | `former` | query of `PUT`, repeated | an address that the lease may still be published with |
//! | `wait` | query of the watch | seconds after which to answer without news; flannel takes such an answer for an empty network |
//! | `TTL` | lease | remaining time in seconds, so that clocks may differ; absent for a reservation |
//! | `Created`, `IPv6Subnet` | lease | the store's revision of its creation; the subnet of the second family |
//! | `unreadable`, `config` | watch result | subnets whose lease cannot be parsed; a tag that changes with the network config |
//! | `SelvageOwner` | attributes | the owner ID |
//! | [`REASON`] | header of a 500 | what kind of error, one of [`Reason`] |
//! | [`OBJECT`] | header of a 500 | the etcd key with no network config |

use std::time::Duration;

pub(crate) mod tls;
pub(crate) mod wire;

/// The header with the kind of error.
pub(crate) const REASON: &str = "selvage-reason";

/// The header with the object of the error: the key of the missing network config.
pub(crate) const OBJECT: &str = "selvage-object";

/// The content type of all JSON here.
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// The longest wait that a watch may request.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// The most addresses and links that a host may list for its subnet to avoid.
pub(crate) const MOST_AVOIDED: usize = 64;

/// The kind of error that a server reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// There is no network config.
    NoNetworkConfig,
    /// There is no such lease, or it belongs to another node.
    NoLease,
    /// The server cannot reach etcd; another server may.
    Unreachable,
    /// Anything else that other servers would answer as well.
    Refused,
}

impl Reason {
    const ALL: [(Self, &str); 4] = [
        (Self::NoNetworkConfig, "no-network-config"),
        (Self::NoLease, "no-lease"),
        (Self::Unreachable, "unreachable"),
        (Self::Refused, "refused"),
    ];

    /// The header's value.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(reason, _)| *reason == self);
        found.map_or("refused", |(_, name)| name)
    }

    /// Parses the header; a missing or unknown value counts as [`Self::Refused`].
    pub(crate) fn read(name: Option<&[u8]>) -> Self {
        let found = Self::ALL
            .iter()
            .find(|(_, known)| Some(known.as_bytes()) == name);
        found.map_or(Self::Refused, |(reason, _)| *reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_names_of_their_own() {
        for (reason, name) in Reason::ALL {
            assert_eq!(reason.name(), name);
            assert_eq!(Reason::read(Some(name.as_bytes())), reason);
        }
        assert_eq!(Reason::read(None), Reason::Refused);
        assert_eq!(Reason::read(Some(b"x")), Reason::Refused);
    }
}
