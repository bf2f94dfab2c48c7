//! What went wrong with the lease store, by kind: what is counted, and what is told about it.

use std::error::Error as StdError;
use std::io;

use thiserror::Error;
use tokio_rustls::rustls;

use super::StoreError;
use crate::base::codes::codes;

codes! {
    /// The kinds of [`StoreError`]; the texts are labels of metrics.
    pub enum StoreErrorKind {
        /// No server gave an answer.
        Unreachable = "unreachable",
        /// A server answered with an error.
        Refused = "refused",
        /// Nobody wrote a network config yet.
        NoNetworkConfig = "no-network-config",
        /// The network config breaks a rule.
        BadNetworkConfig = "bad-network-config",
        /// Every subnet of the network is leased.
        OutOfSubnets = "out-of-subnets",
        /// Other nodes were faster, every time.
        LostRaces = "lost-races",
        /// There is no lease to update.
        NoLease = "no-lease",
        /// Somebody else wrote the network config meanwhile.
        ConfigChanged = "config-changed",
        /// Attributes cannot be written as JSON.
        Encode = "encode",
    }
}

/// What a server, or the way to it, objects to, as far as somebody else must put it right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Fault {
    /// Neither of the others.
    #[default]
    Other,
    /// The user, or what the user may do.
    Login,
    /// A certificate.
    Tls,
}

impl Fault {
    /// Why a connection failed.
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // What an io::Error is made of is not its source.
            let inner = error.downcast_ref().and_then(io::Error::get_ref);
            if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
            {
                return Self::Tls;
            }
            cause = error.source();
        }
        Self::Other
    }

    /// What a server means by its answer: the gRPC status code of etcd, or the HTTP status of a server that keeps leases.
    pub(crate) fn of_answer(code: i32, words: &str) -> Self {
        // grpc/doc/statuscodes.md, RFC 9110 §15.5.
        const INVALID_ARGUMENT: i32 = 3;
        const DENIED: [i32; 4] = [7, 16, 401, 403];
        // For a wrong password etcd has no code of its own (etcd, api/v3rpc/rpctypes/error.go).
        const ETCDS_WORDS: [&str; 3] = [
            "etcdserver: authentication failed",
            "etcdserver: user name is empty",
            "etcdserver: user name not found",
        ];
        let is_login = code == INVALID_ARGUMENT && ETCDS_WORDS.iter().any(|it| words.contains(it));
        if DENIED.contains(&code) || is_login {
            Self::Login
        } else {
            Self::Other
        }
    }
}

/// What went wrong with the store, as those are told who did not ask for anything.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text}")]
pub struct StoreTrouble {
    /// What kind of error it was.
    pub kind: StoreErrorKind,
    /// What is to be put right.
    pub fault: Fault,
    /// The server or key that it is about, if it is one.
    pub object: Option<String>,
    /// The whole of it, in words.
    pub text: String,
}

impl From<&StoreError> for StoreTrouble {
    fn from(error: &StoreError) -> Self {
        Self {
            kind: error.kind(),
            fault: error.fault(),
            object: error.object(),
            text: error.to_string(),
        }
    }
}

impl StoreError {
    /// What kind of error it is.
    pub fn kind(&self) -> StoreErrorKind {
        match self {
            Self::Unreachable { .. } => StoreErrorKind::Unreachable,
            Self::Refused { .. } => StoreErrorKind::Refused,
            Self::NoNetworkConfig { .. } => StoreErrorKind::NoNetworkConfig,
            Self::BadNetworkConfig { .. } => StoreErrorKind::BadNetworkConfig,
            Self::OutOfSubnets(_) => StoreErrorKind::OutOfSubnets,
            Self::LostRaces { .. } => StoreErrorKind::LostRaces,
            Self::NoLease { .. } => StoreErrorKind::NoLease,
            Self::ConfigChanged { .. } => StoreErrorKind::ConfigChanged,
            Self::Encode(_) => StoreErrorKind::Encode,
        }
    }

    /// What is to be put right at a server, or on the way to it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unreachable { fault, .. } => *fault,
            Self::Refused { code, reason, .. } => Fault::of_answer(*code, reason),
            _ => Fault::Other,
        }
    }

    /// The server, key or network that it is about, if it is one.
    pub fn object(&self) -> Option<String> {
        match self {
            Self::Refused { server, .. } => Some(server.clone()),
            Self::NoNetworkConfig { key }
            | Self::BadNetworkConfig { key, .. }
            | Self::ConfigChanged { key } => Some(key.clone()),
            Self::OutOfSubnets(exhausted) => Some(exhausted.network.to_string()),
            Self::Unreachable { .. }
            | Self::LostRaces { .. }
            | Self::NoLease { .. }
            | Self::Encode(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_by_what_they_are() {
        let tls = rustls::Error::UnsupportedNameType;
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, tls);
        assert_eq!(Fault::of(&wrapped), Fault::Tls);
        assert_eq!(
            Fault::of(&io::Error::from(io::ErrorKind::ConnectionRefused)),
            Fault::Other
        );
        for (code, words, fault) in [
            (7, "etcdserver: permission denied", Fault::Login),
            (16, "etcdserver: invalid auth token", Fault::Login),
            (
                3,
                "etcdserver: authentication failed, invalid user ID or password",
                Fault::Login,
            ),
            (3, "etcdserver: key is not provided", Fault::Other),
            (403, "", Fault::Login),
            (14, "etcdserver: no leader", Fault::Other),
        ] {
            assert_eq!(Fault::of_answer(code, words), fault, "{code} {words}");
        }
        assert!(Fault::Tls > Fault::Login && Fault::Login > Fault::Other);
    }
}
