//! Backends: how packets for a peer's subnet reach the peer.
//!
//! A backend is pure: from the own lease, the accepted peers and the underlay it computes the wanted objects
//! ([`Backend::own`], [`Backend::peer`]; [`plan::Plan`] merges them). What it needs to know about the host first, it
//! asks through [`Opening`].
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

pub(crate) use self::opening::{FirstCommand, Opening};
pub use self::opening::{Setup, Unfit};
pub use self::table::{BackendConfig, BackendConfigError, Definition};
use crate::base::go_json;
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{self, Key, Route, Scope, State};
use crate::plan::underlay::Underlay;

/// How packets for a peer's subnet reach the peer. All methods are pure and total.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Its name in the network config.
    fn kind(&self) -> &'static str;

    /// MTU for containers, in bytes.
    fn mtu(&self) -> u32;

    /// The lease attributes that peers need; the caller sets the owner.
    fn lease_attrs(&self) -> LeaseAttrs;

    /// The same backend and identity over another underlay.
    fn over(&self, underlay: &Underlay) -> Box<dyn Backend>;

    /// A caution for operators who use it on this host.
    fn caution(&self) -> Option<&'static str> {
        None
    }

    /// Which kernel objects are ours.
    fn scope(&self) -> Scope;

    /// The objects of the own lease.
    fn own(&self, own: &SubnetKey) -> State;

    /// The objects that reach one peer.
    ///
    /// # Errors
    ///
    /// The peer's lease is untrusted; an unusable one is refused with the reason.
    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, state::Object)>, PeerRefusal>;
}

/// The attributes that every node publishes; the backend adds its data.
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

/// A route to a network over a device, without a gateway.
fn device_route(network: IpNet, link: &InterfaceName) -> (Key, state::Object) {
    let route = Route {
        link: link.clone(),
        gateway: None,
        onlink: false,
        inline: false,
    };
    (Key::Route(network), state::Object::Route(route))
}

/// Checks that a peer runs the same backend.
fn same_kind(attrs: &LeaseAttrs, kind: &'static str) -> Result<(), PeerRefusal> {
    if attrs.backend_type == kind {
        return Ok(());
    }
    let theirs = go_json::shorten(&attrs.backend_type);
    Err(PeerRefusal::OtherBackend { theirs })
}
