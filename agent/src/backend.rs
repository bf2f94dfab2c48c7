//! Back ends: how packets for a peer's subnet reach the peer.
//!
//! A back end is pure: from the own lease, the accepted peers and the underlay it says which kernel objects should exist
//! ([`Backend::own`], [`Backend::peer`]; [`plan::Plan`] puts them together). It does no I/O; only [`open`] looks at the
//! kernel and the state directory once, to keep the identity that the peers already know.
//!
//! To add one: a file under `backend/`, a variant of [`BackendConfig`], an arm in [`BackendConfig::parse`] and in [`open`].

pub mod plan;
pub mod vxlan;

use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;

use ipnet::Ipv4Net;
use thiserror::Error;

use self::vxlan::VxlanConfig;
use crate::go_json::{GoJsonError, Object};
use crate::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::net::MacAddr;
use crate::netlink::{Kernel, KernelError};
use crate::network_config::NetworkConfig;
use crate::state::{self, Key, Scope, State};
use crate::underlay::Underlay;

/// The back ends that exist, as the network config names them.
const KINDS: &[&str] = &[vxlan::KIND];

/// No back end can do what the network config asks for.
#[derive(Debug, Error)]
pub enum BackendConfigError {
    /// A family that no back end carries yet. To carry only the other one in silence would be worse than to refuse.
    #[error("EnableIPv6: true is not possible: no back end carries IPv6; allowed: false")]
    Ipv6,
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
    /// VXLAN over IPv4.
    Vxlan(VxlanConfig),
}

impl BackendConfig {
    /// Reads the back end's part of a network config, and sees to it that the back end carries the families asked for.
    ///
    /// # Errors
    ///
    /// Names the key, the value and what is allowed.
    pub fn parse(config: &NetworkConfig) -> Result<Self, BackendConfigError> {
        if config.ipv6.is_some() {
            return Err(BackendConfigError::Ipv6);
        }
        let spec = &config.backend;
        let options = Object::parse(spec.options.get())?;
        match spec.kind.as_str() {
            vxlan::KIND => Ok(Self::Vxlan(VxlanConfig::parse(&options)?)),
            kind => Err(BackendConfigError::Kind(kind.to_owned())),
        }
    }

    /// The back end's name as leases publish it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => vxlan::KIND,
        }
    }
}

/// What a back end is made for.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The overlay network.
    pub network: Ipv4Net,
    /// The device that carries the encapsulated packets.
    pub underlay: &'a Underlay,
    /// Where the identity survives a reboot.
    pub state_dir: &'a Path,
}

/// How packets for a peer's subnet reach the peer. All methods are pure and total.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The name that leases publish.
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
    /// The lease has no back end data.
    #[error("its lease has no BackendData")]
    NoData,
    /// The back end data cannot be read.
    #[error("its BackendData is unusable: {0}")]
    Data(String),
    /// Frames cannot be addressed to such a MAC address.
    #[error("its VtepMAC {0} is not a unicast address")]
    NotUnicast(MacAddr),
    /// Two nodes with one MAC address cannot talk: the kernel takes the other's frames for its own.
    #[error("its VtepMAC {0} is our own; was a disk cloned with its state directory?")]
    OwnMac(MacAddr),
    /// Packets to the peer would come back to us.
    #[error("its public IP {0} is our own")]
    OwnAddress(Ipv4Addr),
    /// An older lease claims what this one needs.
    #[error("the older lease of {holder} already has {key}")]
    Taken {
        /// What both claim.
        key: Key,
        /// Whose lease is older.
        holder: Ipv4Net,
    },
}

/// Failed to make a back end.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The kernel would not say what exists.
    #[error("failed to look for an existing overlay device")]
    Kernel(#[from] KernelError),
    /// The identity cannot be read, made or kept.
    #[error(transparent)]
    Identity(#[from] vxlan::IdentityError),
}

/// Makes the back end that the network config asks for. Nothing is created in the kernel.
///
/// # Errors
///
/// The identity could not be read from the kernel, or kept in the state directory.
pub async fn open(
    config: &BackendConfig,
    setup: Setup<'_>,
    kernel: &mut Kernel,
) -> Result<Box<dyn Backend>, OpenError> {
    match config {
        BackendConfig::Vxlan(config) => Ok(Box::new(vxlan::open(config, setup, kernel).await?)),
    }
}
