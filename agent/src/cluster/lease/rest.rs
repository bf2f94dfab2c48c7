//! What flannel's client and server say to each other: a small REST interface over HTTP or TLS.
//!
//! flannel 0.5 to 0.7 had it (`remote/server.go`, `remote/client.go`); their nodes and ours understand each other. `NET` is
//! a network's name, or `_` for the one that has none.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/NET/config` | | the network config |
//! | `POST /v1/NET/leases` | attributes | a lease |
//! | `PUT /v1/NET/leases/SUBNET` | a lease | the lease, extended |
//! | `GET /v1/NET/leases[?next=CURSOR]` | | all leases, or what changed since; waits for a change |
//! | `GET /v1/NET/leases/SUBNET` | | one lease, as a watch result (0.6) |
//! | `DELETE /v1/NET/leases/SUBNET` | a lease | nothing (0.6) |
//! | `GET /v1/` | | the names of the networks, as a watch result |
//! | `GET /v1/NET/reservations` | | the reservations (0.6) |
//!
//! JSON that cannot be read gives 400, everything else that goes wrong 500, each with a text. What flannel has no words
//! for goes where its readers look away: additional JSON fields, query parameters, and a header that says what kind of
//! error a text is about.
//!
//! | ours | where | says |
//! |---|---|---|
//! | `previous`, `restarted` | query of `POST` | the subnet that the host had before, and whether it just started |
//! | `former` | query of `PUT`, repeated | an address that the lease may still be published with |
//! | `wait` | query of the watch | seconds after which an answer without news is wanted; flannel takes one for an empty network |
//! | `TTL` | lease | seconds that it lasts from now, so that clocks may differ; absent for a reservation |
//! | `Created`, `IPv6Subnet` | lease | the store's revision of its creation; the subnet of the second family |
//! | `unreadable`, `config` | watch result | subnets whose lease cannot be read; changes when the network config does |
//! | `SelvageOwner` | attributes | the machine that owns the lease |
//! | [`REASON`] | header of a 500 | what kind of error, one of [`Reason`] |
//! | [`OBJECT`] | header of a 500 | the key that there is no network config at |

use std::time::Duration;

pub(crate) mod tls;
pub(crate) mod wire;

/// The header of an error that says of what kind it is.
pub(crate) const REASON: &str = "selvage-reason";

/// The header that says what the error is about: the key of the network config that is missing.
pub(crate) const OBJECT: &str = "selvage-object";

/// The content type of all JSON here.
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// The longest time that a watch may ask to wait for news.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// How many addresses and links a host may name that its subnet must keep off.
pub(crate) const MOST_AVOIDED: usize = 64;

/// What kind of error a server tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// There is no network config.
    NoNetworkConfig,
    /// There is no such lease, or it is somebody else's.
    NoLease,
    /// The server does not reach etcd; another server may.
    Unreachable,
    /// Anything else that another server would say as well.
    Refused,
}

impl Reason {
    const ALL: [(Self, &str); 4] = [
        (Self::NoNetworkConfig, "no-network-config"),
        (Self::NoLease, "no-lease"),
        (Self::Unreachable, "unreachable"),
        (Self::Refused, "refused"),
    ];

    /// The word in the header.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(reason, _)| *reason == self);
        found.map_or("refused", |(_, name)| name)
    }

    /// Reads the header; a server without it, or with another word, is one that refuses.
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
