//! Why there is no underlay.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::base::net::Family;
use crate::host::netlink::{KernelError, Refused};

/// There is no underlay (yet).
#[derive(Debug, Error)]
pub enum Error {
    /// The kernel cannot be talked to.
    #[error("failed to list the interfaces, addresses and routes")]
    Kernel(#[from] KernelError),
    /// Changes overtook the list, and going by it the running overlay would move.
    #[error("failed to list the interfaces, addresses and routes: they change all the time")]
    Incomplete,
    /// There is nothing of what is asked for.
    #[error("{}; there are {found}", join(misses))]
    NotFound {
        /// Why not, for each thing that is asked for.
        misses: Vec<Miss>,
        /// What there is.
        found: String,
    },
}

impl Error {
    /// Whether waiting may help: at boot the agent may be faster than the interface or its address.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Kernel(KernelError::Open(_)))
    }
}

fn join(misses: &[Miss]) -> String {
    let misses: Vec<String> = misses.iter().map(Miss::to_string).collect();
    misses.join("; ")
}

/// Why one thing that is asked for leads to no underlay.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Miss {
    /// No interface has the name.
    #[error("no interface is called {0:?}")]
    Name(String),
    /// No interface has the address.
    #[error("no interface has the address {0}")]
    Address(IpAddr),
    /// Neither addresses nor names match.
    #[error("no interface with {needs} has an address or a name that matches {pattern:?}")]
    Pattern {
        /// The regular expression.
        pattern: String,
        /// What addresses an interface needs.
        needs: String,
    },
    /// The kernel has no route.
    #[error("{address} cannot be reached: {why}")]
    Unreachable {
        /// The address to be reached.
        address: IpAddr,
        /// The kernel's reason.
        why: Refused,
    },
    /// No address is in the network.
    #[error("no interface with {needs} has an address in {network}")]
    Network {
        /// The network.
        network: IpNet,
        /// What addresses an interface needs.
        needs: String,
    },
    /// Nothing is asked for, and there is no default route to go by.
    #[error(
        "there is no {0} default route to choose the underlay by, and underlay.interfaces is not set"
    )]
    DefaultRoute(Family),
    /// Nothing is asked for, and the default routes lead to different interfaces.
    #[error(
        "the IPv4 default route leads over {v4}, the IPv6 one over {v6}, but one interface must carry both families; set underlay.interfaces"
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
        /// The family that the overlay has.
        family: Family,
        /// An address that would do, were it not the overlay's own.
        inside: Option<IpAddr>,
    },
    /// The interface cannot carry packets.
    #[error("the interface {interface} has an MTU of {mtu}: expected at least {least} bytes")]
    Mtu {
        /// The interface's name.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// The family's smallest.
        least: u32,
    },
}

fn but(inside: Option<IpAddr>) -> String {
    inside.map_or_else(String::new, |address| {
        format!(" ({address} is the overlay's own, of its device or a bridge for containers)")
    })
}
