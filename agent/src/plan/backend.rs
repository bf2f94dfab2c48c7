//! Backends: how packets for a peer's subnet reach the peer.
//!
//! A backend is pure: from the own lease, the accepted peers and the underlay it computes the wanted objects
//! ([`Backend::own`], [`Backend::peer`]; [`plan::Plan`] merges them). What it needs to know about the host first, it
//! asks through [`Opening`].
//!
//! To add one: a file under `backend/`, its `mod` line below, and a line in [`table`].

pub mod alloc;
mod cloud;
pub mod extension;
pub mod host_gw;
pub mod ipip;
pub mod ipsec;
mod opening;
pub mod plan;
pub(crate) mod table;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use self::cloud::CloudConfig;
pub(crate) use self::cloud::MEMORY as CLOUD_MEMORY;
pub(crate) use self::opening::{FirstCommand, Opening};
pub use self::opening::{Setup, Unfit};
pub use self::table::{BackendConfig, BackendConfigError, Definition};
use crate::base::go_json::{self, GoJsonError};
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{self, Key, Link, Route, Scope, State};
use crate::plan::underlay::{Face, Underlay};

/// `ETH_MIN_MTU`: the kernel's minimum, also IPv4's (RFC 791).
const MIN_MTU: u32 = 68;

/// `IPV6_MIN_MTU`: below it the kernel disables IPv6 on a device (RFC 8200 §5).
const MIN_MTU_V6: u32 = 1280;

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

    /// What it wants from a cloud provider's route tables: own subnets to this instance. `None` if nothing.
    fn cloud(&self) -> Option<&CloudConfig> {
        None
    }

    /// Which kernel objects are ours.
    fn scope(&self) -> Scope;

    /// The objects of the own lease.
    fn own(&self, own: &SubnetKey) -> State;

    /// The objects that reach one peer, as far as they do not depend on the own subnet.
    ///
    /// # Errors
    ///
    /// The peer's lease is untrusted; an unusable one is refused with the reason.
    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, state::Object)>, PeerRefusal>;

    /// The objects that reach one peer from the own subnet, where they depend on that.
    ///
    /// # Errors
    ///
    /// As [`Self::peer`].
    fn between(
        &self,
        _: &SubnetKey,
        peer: &Lease,
    ) -> Result<Vec<(Key, state::Object)>, PeerRefusal> {
        self.peer(peer)
    }
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

/// Refuses a network without IPv4, for a backend that carries nothing else.
fn needs_ipv4(kind: &'static str, config: &NetworkConfig) -> Result<(), BackendConfigError> {
    match config.ipv4 {
        Some(_) => Ok(()),
        None => Err(BackendConfigError::Ipv6Alone(kind)),
    }
}

/// A number of 16 bits, such as a UDP port.
fn number16(
    object: &go_json::Object<'_>,
    key: &'static str,
    least: u16,
) -> Result<Option<u16>, GoJsonError> {
    let number = object.integer(key, least.into()..=u16::MAX.into())?;
    Ok(number.and_then(|number| u16::try_from(number).ok()))
}

/// An overlay device and its address in the own subnet, the first one.
fn device(link: &InterfaceName, device: Link, subnet: IpNet) -> [(Key, state::Object); 2] {
    let address = IpNet::from(subnet.network());
    [
        (
            Key::Link(link.clone()),
            state::Object::Link(Box::new(device)),
        ),
        (Key::Address(link.clone(), address), state::Object::Address),
    ]
}

/// Checks the address, of the subnet's family, that packets for a peer's subnet are sent to.
fn public_address<A: Copy + Into<IpAddr>>(
    public: Option<A>,
    subnet: IpNet,
    face: &Face,
) -> Result<A, PeerRefusal> {
    let public = public.ok_or(PeerRefusal::NoAddress(subnet))?;
    if face.is_own(public.into()) {
        return Err(PeerRefusal::OurPublicIp(public.into()));
    }
    Ok(public)
}

/// Checks that packets to a peer's public address do not enter the overlay device again, by its route to a whole
/// network.
fn no_loop(
    public: IpAddr,
    networks: &[IpNet],
    underlay: &Underlay,
    link: &InterfaceName,
) -> Result<(), PeerRefusal> {
    let mut networks = networks.iter();
    match networks.find(|network| network.contains(&public) && !underlay.is_inside(**network)) {
        Some(network) => Err(PeerRefusal::Looping {
            public,
            network: *network,
            link: link.clone(),
        }),
        None => Ok(()),
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
