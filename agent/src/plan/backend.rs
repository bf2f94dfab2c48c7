//! Backends: how packets for a peer's subnet reach the peer.
//!
//! A backend is pure: from the own lease, the accepted peers and the underlay it says which objects should exist
//! ([`Backend::own`], [`Backend::peer`]; [`plan::Plan`] puts them together). What it must know of the host before, it asks
//! by [`Opening`].
//!
//! To add one: a file under `backend/`, its `mod` line below, and a line in [`table`].

pub mod alloc;
pub mod extension;
pub mod host_gw;
pub mod ipip;
mod opening;
pub mod plan;
pub(crate) mod table;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

pub(crate) use self::opening::{FirstCommand, Opening};
pub use self::opening::{Setup, Unfit};
pub use self::table::{BackendConfig, BackendConfigError, Definition};
use crate::base::net::{InterfaceName, MacAddr};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::plan::state::{self, Key, Route, Scope, State};
use crate::plan::underlay::Underlay;
use crate::plan::wireguard_key::PublicKey;

/// How packets for a peer's subnet reach the peer. All methods are pure and total.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The name, as the network config has it.
    fn kind(&self) -> &'static str;

    /// MTU for containers, in bytes.
    fn mtu(&self) -> u32;

    /// What the peers must know; the owner is left to the caller.
    fn lease_attrs(&self) -> LeaseAttrs;

    /// The same back end, with the same identity, over another underlay.
    fn over(&self, underlay: &Underlay) -> Box<dyn Backend>;

    /// What in the kernel is ours.
    fn scope(&self) -> Scope;

    /// The objects of the own lease.
    fn own(&self, own: &SubnetKey) -> State;

    /// The objects that reach one peer.
    ///
    /// # Errors
    ///
    /// The peer's lease is untrusted; one that cannot be used is refused with the reason.
    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, state::Object)>, Refusal>;
}

/// Why a peer is not programmed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// The peer runs another back end.
    #[error("it runs the back end {0:?}, this node runs {1:?}")]
    Kind(String, &'static str),
    /// The lease has no back end data for a family of which it has a subnet.
    #[error("its lease has no {key} for {0}", key = data_key(*.0))]
    NoData(IpNet),
    /// The lease has no address for a family of which it has a subnet.
    #[error("its lease has no {key} for {0}", key = address_key(*.0))]
    NoAddress(IpNet),
    /// The back end data cannot be read.
    #[error("its BackendData is unusable: {0}")]
    Data(String),
    /// Frames cannot be addressed to such a MAC address.
    #[error("its VtepMAC {0} is not a unicast address")]
    NotUnicast(MacAddr),
    /// Two nodes with one MAC address cannot talk: the kernel takes the other's frames for its own.
    #[error("its VtepMAC {0} is our own; was a disk cloned with its state directory?")]
    OwnMac(MacAddr),
    /// Two nodes with one key cannot talk: the kernel leaves a peer with its own key out.
    #[error("its PublicKey {0} is our own; was a disk cloned with its state directory?")]
    OwnKey(PublicKey),
    /// The lease lacks the one address that would be used for all of the peer's subnets.
    #[error("its lease has no {0}, to which packets for it would be sent")]
    NoEndpoint(&'static str),
    /// Packets to the peer would come back to us.
    #[error("its public IP {0} is our own")]
    OwnAddress(IpAddr),
    /// Packets to the peer would enter the device that they come out of.
    #[error(
        "its public IP {public} is inside the network {network}, of which all goes into {link}; the underlay of this node is outside it"
    )]
    Looping {
        /// The peer's address.
        public: IpAddr,
        /// The overlay's network.
        network: IpNet,
        /// The device that has a route to all of it.
        link: InterfaceName,
    },
    /// The peer is too far away to be a gateway.
    #[error("its public IP {public} is not a host's on the underlay's link, {on_link}")]
    NotOnLink {
        /// The peer's address.
        public: IpAddr,
        /// Our address, with the length of its network.
        on_link: IpNet,
    },
    /// An older lease claims what this one needs.
    #[error("the older lease of {holder} already has {key}")]
    Taken {
        /// What both claim.
        key: Key,
        /// Whose lease is older.
        holder: SubnetKey,
    },
}

fn data_key(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "BackendData",
        IpNet::V6(_) => "BackendV6Data",
    }
}

fn address_key(net: IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "PublicIP",
        IpNet::V6(_) => "PublicIPv6",
    }
}

/// What every node publishes, whatever its back end; the back end adds its data.
fn attrs(kind: &str, underlay: &Underlay) -> LeaseAttrs {
    LeaseAttrs {
        public_ip: underlay.v4.map(|v4| v4.public),
        public_ipv6: underlay.v6.map(|v6| v6.public),
        backend_type: kind.to_owned(),
        backend_data: None,
        backend_v6_data: None,
        owner: None,
    }
}

/// A route to a peer's subnet, with its next hop.
fn route(
    subnet: IpNet,
    link: &InterfaceName,
    gateway: IpAddr,
    onlink: bool,
) -> [(Key, state::Object); 2] {
    let route = Route {
        link: link.clone(),
        gateway: Some(gateway),
        onlink,
        inline: false,
    };
    [
        (
            Key::NextHop(link.clone(), gateway),
            state::Object::NextHop { onlink },
        ),
        (Key::Route(subnet), state::Object::Route(route)),
    ]
}

/// A route to a network by a device alone.
fn device_route(network: IpNet, link: &InterfaceName) -> (Key, state::Object) {
    let route = Route {
        link: link.clone(),
        gateway: None,
        onlink: false,
        inline: false,
    };
    (Key::Route(network), state::Object::Route(route))
}

/// That a peer runs the same back end.
fn same_kind(attrs: &LeaseAttrs, kind: &'static str) -> Result<(), Refusal> {
    if attrs.backend_type == kind {
        return Ok(());
    }
    let theirs = attrs.backend_type.chars().take(32).collect();
    Err(Refusal::Kind(theirs, kind))
}
