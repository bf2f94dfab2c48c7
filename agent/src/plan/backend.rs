//! Back ends: how packets for a peer's subnet reach the peer.
//!
//! A back end is pure: from the own lease, the accepted peers and the underlay it says which kernel objects should exist
//! ([`Backend::own`], [`Backend::peer`]; [`plan::Plan`] puts them together). It does no I/O; only [`open`] looks at the
//! kernel and the state directory once, to keep the identity that the peers already know.
//!
//! To add one: a file under `backend/`, a variant of [`BackendConfig`], an arm in [`BackendConfig::parse`] and in [`open`].

pub mod alloc;
pub mod extension;
pub mod host_gw;
pub mod ipip;
pub mod plan;
pub mod udp;
pub mod vxlan;
pub mod wireguard;

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use self::alloc::AllocBackend;
use self::extension::ExtensionConfig;
use self::ipip::{IpipBackend, IpipConfig};
use self::udp::{UdpBackend, UdpConfig};
use self::vxlan::VxlanConfig;
use self::wireguard::WireguardConfig;
use crate::base::go_json::{self, GoJsonError, Object};
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::host::hooks::CommandError;
use crate::host::netlink::{ClaimError, Kernel, KernelError};
use crate::plan::state::{self, Key, LinkKind, Route, Scope, State};
use crate::plan::underlay::Underlay;

/// The back ends that exist, as the network config names them.
const KINDS: &[&str] = &[
    alloc::KIND,
    extension::KIND,
    host_gw::KIND,
    ipip::KIND,
    udp::KIND,
    vxlan::KIND,
    wireguard::KIND,
];

/// No back end can do what the network config asks for.
#[derive(Debug, Error)]
pub enum BackendConfigError {
    /// There is nothing that the back end carries.
    #[error(
        "EnableIPv4: false is not possible with the back end {0}, which carries IPv4 alone; allowed: true"
    )]
    Ipv6Alone(&'static str),
    /// A mode of the wireguard back end that travels over a family which the network has not.
    #[error("Backend: Mode is not possible without {0}: true; allowed: \"separate\" or \"auto\"")]
    ModeWithout(&'static str),
    /// No such back end.
    #[error("the back end {0:?} does not exist; there is: {list}", list = KINDS.join(", "))]
    Kind(String),
    /// One key is wrong. The text is whole: it is not the cause of another.
    #[error("Backend: {0}")]
    Json(GoJsonError),
}

impl From<GoJsonError> for BackendConfigError {
    fn from(error: GoJsonError) -> Self {
        Self::Json(error)
    }
}

/// The validated `Backend` object of the network config.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendConfig {
    /// A lease and nothing else.
    Alloc,
    /// Commands of the administrator's.
    Extension(ExtensionConfig),
    /// Routes to the peers themselves.
    HostGw,
    /// IP in IP.
    Ipip(IpipConfig),
    /// IPv4 in UDP by our own data plane.
    Udp(UdpConfig),
    /// VXLAN.
    Vxlan(VxlanConfig),
    /// WireGuard.
    Wireguard(WireguardConfig),
}

impl BackendConfig {
    /// Reads the back end's part of a network config, and sees to it that the back end carries the families asked for.
    ///
    /// # Errors
    ///
    /// Names the key, the value and what is allowed.
    pub fn parse(config: &NetworkConfig) -> Result<Self, BackendConfigError> {
        let spec = &config.backend;
        let options = Object::parse(spec.options.get())?;
        match spec.kind.as_str() {
            alloc::KIND => Ok(Self::Alloc),
            extension::KIND => Ok(Self::Extension(ExtensionConfig::parse(&options)?)),
            host_gw::KIND => Ok(Self::HostGw),
            ipip::KIND => Ok(Self::Ipip(IpipConfig::parse(&options, config)?)),
            udp::KIND => Ok(Self::Udp(UdpConfig::parse(&options, config)?)),
            vxlan::KIND => Ok(Self::Vxlan(VxlanConfig::parse(&options, config)?)),
            wireguard::KIND => Ok(Self::Wireguard(WireguardConfig::parse(&options, config)?)),
            kind => Err(BackendConfigError::Kind(kind.to_owned())),
        }
    }

    /// The devices that the back end will have, so far as the config says: a TUN device has the first free name.
    fn devices(&self, network: &NetworkConfig) -> Vec<InterfaceName> {
        match self {
            Self::Vxlan(config) => {
                let device = |network| vxlan::device_name(config.vni, network);
                network.networks().map(device).collect()
            }
            Self::Ipip(_) => vec![ipip::device_name()],
            Self::Wireguard(_) => wireguard::device_names().into(),
            Self::Alloc | Self::Extension(_) | Self::HostGw | Self::Udp(_) => Vec::new(),
        }
    }

    /// The UDP port that it receives on; the lower one of two.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Udp(config) => Some(config.port),
            Self::Vxlan(config) => Some(config.port),
            Self::Wireguard(config) => Some(config.port.min(config.port_v6)),
            Self::Alloc | Self::Extension(_) | Self::HostGw | Self::Ipip(_) => None,
        }
    }

    /// The back end's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Alloc => alloc::KIND,
            Self::Extension(_) => extension::KIND,
            Self::HostGw => host_gw::KIND,
            Self::Ipip(_) => ipip::KIND,
            Self::Udp(_) => udp::KIND,
            Self::Vxlan(_) => vxlan::KIND,
            Self::Wireguard(_) => wireguard::KIND,
        }
    }
}

/// What a back end is made for.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The overlay networks, and how they are used.
    pub config: &'a NetworkConfig,
    /// The device that carries the encapsulated packets.
    pub underlay: &'a Underlay,
    /// Where the identity survives a reboot.
    pub state_dir: &'a Path,
    /// Whether to make a new identity, since an older node has the one that is there.
    pub new_identity: bool,
}

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
    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, state::Object)>, PeerRefusal>;
}

/// The names of overlay devices that no part of the config changes.
pub(crate) fn fixed_names() -> impl Iterator<Item = InterfaceName> {
    [ipip::device_name()].into_iter()
}

/// Whether a device is one that a back end makes, by its name and its kind.
pub(crate) fn is_overlay(name: &InterfaceName, object: &state::Object) -> bool {
    let state::Object::Link(link) = object else {
        return false;
    };
    match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            let v4 = vxlan::device_name(vxlan.vni, Ipv4Net::default().into());
            let v6 = vxlan::device_name(vxlan.vni, Ipv6Net::default().into());
            [v4, v6].contains(name)
        }
        LinkKind::Ipip(_) => *name == ipip::device_name(),
        LinkKind::Wireguard(_) => wireguard::device_names().contains(name),
        LinkKind::Tun(_) => udp::is_device_name(name),
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
fn same_kind(attrs: &LeaseAttrs, kind: &'static str) -> Result<(), PeerRefusal> {
    if attrs.backend_type == kind {
        return Ok(());
    }
    let theirs = go_json::shorten(&attrs.backend_type);
    Err(PeerRefusal::OtherBackend { theirs })
}

/// Failed to make a back end.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another network of this host has what the back end needs.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The kernel would not say what exists.
    #[error("failed to look for an existing overlay device")]
    Kernel(#[from] KernelError),
    /// The back end needs to be reached at its own address.
    #[error(
        "{kind} does not work behind a NAT: the public IP is {public}, but the interface has {address}"
    )]
    Nat {
        /// The back end's name.
        kind: &'static str,
        /// The interface's address.
        address: IpAddr,
        /// The address that the settings tell peers to use.
        public: IpAddr,
    },
    /// What the underlay carries leaves too little for IPv6.
    #[error(
        "IPv6 over {kind} needs an underlay with an MTU of at least {needed} bytes, but {interface} has {mtu}"
    )]
    Narrow {
        /// The back end's name.
        kind: &'static str,
        /// The underlay's interface.
        interface: InterfaceName,
        /// Its MTU in bytes.
        mtu: u32,
        /// The least that it may be.
        needed: u32,
    },
    /// A command of the network config's did not succeed.
    #[error("{key}")]
    Command {
        /// Which.
        key: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The identity cannot be read, made or kept.
    #[error(transparent)]
    Identity(#[from] vxlan::IdentityError),
    /// The private key cannot be read, made or kept.
    #[error(transparent)]
    PrivateKey(#[from] wireguard::IdentityError),
}

/// Makes the back end that the network config asks for, after it was made sure that no other agent on this host has the
/// network or the device. Nothing is created in the kernel.
///
/// # Errors
///
/// Another agent has them; the identity could not be read from the kernel, or kept in the state directory; or the back end does not work here.
pub async fn open(
    config: &BackendConfig,
    setup: Setup<'_>,
    kernel: &mut Kernel,
) -> Result<Box<dyn Backend>, OpenError> {
    let (network, underlay) = (setup.config, setup.underlay);
    let networks: Vec<IpNet> = network.networks().collect();
    kernel.claim_network(&networks)?;
    for device in config.devices(network) {
        kernel.claim_device(&device, &networks).await?;
    }
    Ok(match config {
        BackendConfig::Alloc => Box::new(AllocBackend::new(network, underlay)),
        BackendConfig::Extension(config) => Box::new(extension::open(config, setup).await?),
        BackendConfig::HostGw => Box::new(host_gw::open(setup)?),
        BackendConfig::Ipip(config) => Box::new(IpipBackend::new(config, network, underlay)),
        BackendConfig::Udp(config) => {
            let device = kernel.claim_tun().await?;
            Box::new(UdpBackend::new(config, network, underlay, device))
        }
        BackendConfig::Vxlan(config) => Box::new(vxlan::open(config, setup, kernel).await?),
        BackendConfig::Wireguard(config) => Box::new(wireguard::open(config, setup)?),
    })
}
