//! IPsec's objects: the kernel's policies, and the connections whose keys an IKE daemon negotiates.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::settings::Secret;

/// Which packets a policy is for: `XFRM_POLICY_…` of linux/xfrm.h, `dir` of ip-xfrm(8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Direction {
    /// Packets for this host itself.
    In,
    /// Packets that leave this host, its own and forwarded ones.
    Out,
    /// Received packets that are forwarded.
    Forward,
}

impl Direction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::In, Self::Out, Self::Forward];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Forward => "fwd",
        })
    }
}

/// What a policy does with its packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// They must be, or become, the content of an ESP tunnel between these addresses.
    Tunnel {
        /// The outer source.
        from: Ipv4Addr,
        /// The outer destination.
        to: Ipv4Addr,
    },
    /// They pass as they are.
    Pass,
    /// They are dropped, unless another policy is for them.
    Block,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tunnel { from, to } => {
                write!(f, "tmpl src {from} dst {to} proto esp mode tunnel")
            }
            Self::Pass => f.write_str("action allow"),
            Self::Block => f.write_str("action block"),
        }
    }
}

/// What an IKE daemon needs to negotiate keys with a peer, whose public address is part of the [`Key`](super::Key).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    /// The address that this host sends from.
    pub local: Ipv4Addr,
    /// The address that this host is known by: its identity in IKE.
    pub public: Ipv4Addr,
    /// The own subnet.
    pub subnet: Ipv4Net,
    /// The peer's subnet.
    pub peer_subnet: Ipv4Net,
    /// The secret that all nodes share.
    pub psk: Secret,
    /// Whether ESP goes in UDP even without a NAT between the nodes.
    pub udp_encap: bool,
    /// The algorithms of ESP, in strongSwan's words.
    pub esp_proposal: String,
    /// Whether policies of the whole network block what no peer's policy is for. The IKE daemon may then have policies of
    /// its own in the place of the peer's, which go with the tunnel.
    pub fenced: bool,
}
