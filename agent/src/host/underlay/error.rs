//! Why no underlay was found.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::base::net::Family;
use crate::host::netlink::{KernelError, Refused};

/// No underlay was found (yet).
#[derive(Debug, Error)]
pub enum Error {
    /// Failed to query the kernel.
    #[error("failed to list the interfaces, addresses and routes")]
    Kernel(#[from] KernelError),
    /// The kernel's tables kept changing while they were listed, and an incomplete list must not move a running
    /// overlay.
    #[error("failed to list the interfaces, addresses and routes: they keep changing")]
    Incomplete,
    /// No interface matches the settings.
    #[error("{}; this host has {found}", join(mismatches))]
    NotFound {
        /// Why not, per criterion.
        mismatches: Vec<Mismatch>,
        /// The interfaces that exist.
        found: String,
    },
}

impl Error {
    /// Whether a retry may help: at boot the interface or its address may come after the agent.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Kernel(KernelError::Open(_)))
    }
}

fn join(mismatches: &[Mismatch]) -> String {
    let mismatches: Vec<String> = mismatches.iter().map(Mismatch::to_string).collect();
    mismatches.join("; ")
}

/// Why one criterion matches no interface.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Mismatch {
    /// No interface has the name.
    #[error("no interface is named {0:?}")]
    Name(String),
    /// No interface has the address.
    #[error("no interface has the address {0}")]
    Address(IpAddr),
    /// No address and no name matches.
    #[error("no interface with {needs} has an address or a name that matches {pattern:?}")]
    Pattern {
        /// The regular expression.
        pattern: String,
        /// The addresses that an interface needs.
        needs: String,
    },
    /// The kernel has no route.
    #[error("no route to {address}: {why}")]
    Unreachable {
        /// The address to reach.
        address: IpAddr,
        /// The kernel's reason.
        why: Refused,
    },
    /// No address is in the network.
    #[error("no interface with {needs} has an address in {network}")]
    Network {
        /// The network.
        network: IpNet,
        /// The addresses that an interface needs.
        needs: String,
    },
    /// No interface is set, and there is no default route.
    #[error("no {0} default route selects the underlay interface; set underlay.interfaces")]
    DefaultRoute(Family),
    /// No interface is set, and the default routes use different interfaces.
    #[error(
        "the IPv4 default route uses {v4}, the IPv6 one {v6}, but one interface must carry both; set underlay.interfaces"
    )]
    DefaultRoutes {
        /// Interface of the IPv4 route.
        v4: String,
        /// Interface of the IPv6 route.
        v6: String,
    },
    /// The interface lacks a usable address.
    #[error("the interface {interface} has no usable {family} address{}", but(*inside))]
    NoAddress {
        /// The interface's name.
        interface: String,
        /// The address family.
        family: Family,
        /// An address that is unusable because it belongs to the overlay.
        inside: Option<IpAddr>,
    },
    /// The interface cannot carry packets.
    #[error("the interface {interface} has an MTU of {mtu}: expected at least {least} bytes")]
    Mtu {
        /// The interface's name.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The smallest MTU allowed for the family.
        least: u32,
    },
}

fn but(inside: Option<IpAddr>) -> String {
    inside.map_or_else(String::new, |address| {
        format!(" ({address} belongs to an overlay device or a container bridge)")
    })
}
