//! Peers in the status: their leases, whether they are programmed, and their kernel objects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Traffic, both};
use crate::cluster::refusal::{PeerRefusal, RefusalCode};

/// The lease of another node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its IPv4 subnet.
    pub subnet: Option<Ipv4Net>,
    /// Its IPv6 subnet.
    pub subnet_v6: Option<Ipv6Net>,
    /// The IPv4 address that we send to.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that we send to.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Its backend, by flannel's name.
    pub backend: String,
    /// Its owner ID; `None` for flannel.
    pub owner: Option<String>,
    /// Whether it is programmed on this host.
    pub state: PeerState,
    /// Why it is not, or not with its latest data.
    pub reason: Option<String>,
    /// The same as a code if its lease was refused; `None` otherwise.
    #[serde(default)]
    pub refusal: Option<Refusal>,
    /// When this process first saw it.
    pub since_time: u64,
    /// When its lease last changed; `None` if it has not since.
    pub changed_time: Option<u64>,
    /// Traffic from and to it; `None` if the kernel does not count by peer.
    pub traffic: Option<Traffic>,
    /// The last WireGuard handshake; `None` if there was none, or for other backends.
    pub handshake_time: Option<u64>,
}

impl Peer {
    /// Its subnets.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        both(self.subnet, self.subnet_v6)
    }

    /// Its public addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        both(self.public_ip, self.public_ipv6)
    }
}

/// Why a peer's lease is not used, for programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind of reason.
    pub code: RefusalCode,
    /// The older lease, address, key or backend in question; `None` if only the lease is concerned.
    pub object: Option<String>,
}

impl Refusal {
    /// The refusal in the status.
    pub(crate) fn of(refusal: &PeerRefusal) -> Self {
        Self {
            code: refusal.code(),
            object: refusal.object(),
        }
    }
}

/// Whether a peer is programmed on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// All its kernel objects exist.
    Programmed,
    /// The kernel refused some of its objects.
    Failed,
    /// Its lease or data is unusable.
    Refused,
}

/// One peer and its kernel objects: the answer to `GET /v1/peer?address=…`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerDetail {
    /// Version of the schema: [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// The requested address or subnet.
    pub asked: IpNet,
    /// Its owner.
    pub owner: Owner,
    /// The peer; `None` unless the owner is a peer.
    pub peer: Option<Peer>,
    /// The wanted kernel objects of the peer, in the order of creation.
    pub objects: Vec<PeerObject>,
}

/// The owner of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// This host's: in its subnet.
    Own,
    /// A peer's: in its subnet, or its public address.
    Peer,
    /// Nobody's: inside the overlay network, but in no lease.
    Nobody,
    /// Outside the overlay.
    Outside,
}

/// A kernel object that should exist for a peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerObject {
    /// The wanted object, in the syntax of ip(8) and bridge(8).
    pub wanted: String,
    /// Whether exactly this object exists.
    pub present: bool,
    /// The object in its place, if any.
    pub found: Option<String>,
}
