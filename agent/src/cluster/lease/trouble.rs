//! Lease store errors by kind: for metrics, and for the status.

use std::error::Error as StdError;
use std::io;

use thiserror::Error;
use tokio_rustls::rustls;

use super::StoreError;
use crate::base::codes::codes;

codes! {
    /// The kinds of [`StoreError`]; the texts are metric labels.
    pub enum StoreErrorKind {
        /// No server answered.
        Unreachable = "unreachable",
        /// A server answered with an error.
        Refused = "refused",
        /// There is no network config yet.
        NoNetworkConfig = "no-network-config",
        /// The network config breaks a rule.
        BadNetworkConfig = "bad-network-config",
        /// Every subnet of the network is leased.
        OutOfSubnets = "out-of-subnets",
        /// Other nodes were faster every time.
        LostRaces = "lost-races",
        /// No lease is held.
        NoLease = "no-lease",
        /// Another writer changed the network config meanwhile.
        ConfigChanged = "config-changed",
        /// Attributes cannot be encoded as JSON.
        Encode = "encode",
        /// There is no such node in the Kubernetes cluster.
        NoNode = "no-node",
        /// The node has no podCIDR.
        NoPodCidr = "no-pod-cidr",
        /// The node's podCIDR cannot be used.
        BadPodCidr = "bad-pod-cidr",
    }
}

/// What the operator must fix at a server, or on the path to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Fault {
    /// None of the others.
    #[default]
    Other,
    /// The user, or the user's rights.
    Login,
    /// A certificate.
    Tls,
}

impl Fault {
    /// The fault behind a failed connection.
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // `io::Error::source` skips the inner error itself, so look into it.
            let inner = error.downcast_ref().and_then(io::Error::get_ref);
            if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
            {
                return Self::Tls;
            }
            cause = error.source();
        }
        Self::Other
    }

    /// The fault behind a server's answer: etcd's gRPC status code, or the HTTP status of a lease or API server.
    pub(crate) fn of_answer(code: i32, words: &str) -> Self {
        // grpc/doc/statuscodes.md, RFC 9110 §15.5.
        const INVALID_ARGUMENT: i32 = 3;
        const DENIED: [i32; 4] = [7, 16, 401, 403];
        // etcd has no code of its own for a wrong password (etcd, api/v3rpc/rpctypes/error.go).
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

/// A store error, in the form used for events and the status.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text}")]
pub struct StoreTrouble {
    /// The kind of error.
    pub kind: StoreErrorKind,
    /// What the operator must fix.
    pub fault: Fault,
    /// The server or key that it is about, if any.
    pub object: Option<String>,
    /// The complete message.
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
    /// The kind of error.
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
            Self::NoNode { .. } => StoreErrorKind::NoNode,
            Self::NoPodCidr { .. } => StoreErrorKind::NoPodCidr,
            Self::BadPodCidr { .. } => StoreErrorKind::BadPodCidr,
        }
    }

    /// What the operator must fix at a server, or on the path to it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Unreachable { fault, .. } => *fault,
            Self::Refused { code, reason, .. } => Fault::of_answer(*code, reason),
            _ => Fault::Other,
        }
    }

    /// The server, key or network that it is about, if any.
    pub fn object(&self) -> Option<String> {
        match self {
            Self::Refused { server, .. } => Some(server.clone()),
            Self::NoNetworkConfig { key }
            | Self::BadNetworkConfig { key, .. }
            | Self::ConfigChanged { key } => Some(key.clone()),
            Self::OutOfSubnets(exhausted) => Some(exhausted.network.to_string()),
            Self::NoNode { node } | Self::NoPodCidr { node, .. } => Some(node.clone()),
            Self::BadPodCidr { cidr, .. } => Some(cidr.clone()),
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
