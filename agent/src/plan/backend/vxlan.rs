//! The vxlan backend: Ethernet in UDP to the peers' VTEPs, by the kernel's VXLAN device.
//!
//! | object, for each family of the network | is | as flannel, except |
//! |---|---|---|
//! | device `flannel.<VNI>`, for IPv6 `flannel-v6.<VNI>` | LOCAL = the underlay device's address | LOCAL is the public IP, which breaks behind NAT |
//! | its MTU | underlay - 50, for IPv6 - 70 | 50 for both, too small for an outer IPv6 header |
//! | its outer UDP checksum | none, unless `Checksum` asks for it | left to the kernel, which computes one |
//! | address | first address of the own subnet (`.0`), /32 or /128 | |
//! | FDB entry per peer | peer's VTEP MAC → peer's public IP | |
//! | neighbor entry per peer | first address of the peer's subnet → peer's VTEP MAC | |
//! | next hop per peer | via that address, onlink | flannel has an inline gateway |
//! | route per peer | peer's subnet by that next hop | |
//!
//! Overlay IPv4 is carried over IPv4, IPv6 over IPv6. With `DirectRouting`, a peer whose public IP lies in the
//! underlay's on-link prefix has a plain route via its public IP instead of the last four.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::table::{Definition, Options};
use super::{
    Backend, BackendConfigError, MIN_MTU, MIN_MTU_V6, Opening, Setup, Unfit, attrs, device,
    number16, route, same_kind,
};
use crate::base::go_json::{self, GoJsonError};
use crate::base::net::{InterfaceName, MacAddr};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Link, LinkKind, Object, Scope, State, Vxlan};
use crate::plan::underlay::{Face, Underlay};

/// The name of this backend in network configs and leases.
pub(crate) const KIND: &str = crate::cluster::network_config::VXLAN;

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    makes: |name, kind| match kind {
        LinkKind::Vxlan(vxlan) => {
            let v4 = device_name(vxlan.vni, Ipv4Net::default().into());
            let v6 = device_name(vxlan.vni, Ipv6Net::default().into());
            [v4, v6].contains(name)
        }
        _ => false,
    },
    side_by_side: true,
    ..Definition::new(KIND, |options, network| {
        Ok(Box::new(VxlanConfig::parse(options, network)?))
    })
};

/// Outer IPv4 20 + UDP 8 + VXLAN 8 (RFC 7348 §5) + inner Ethernet 14 bytes.
const OVERHEAD_V4: u32 = 50;

/// The same with an outer IPv6 header, 40 bytes (RFC 8200 §3).
const OVERHEAD_V6: u32 = 70;

/// The kernel's default UDP port (`vxlan_port`), which flannel uses too; IANA's is 4789.
const DEFAULT_PORT: u16 = 8472;

/// The largest VNI that fits the device name `flannel.<VNI>` of at most 15 bytes; VXLAN itself has 24 bits.
const MAX_VNI: u32 = 9_999_999;

/// The largest VNI that fits the device name `flannel-v6.<VNI>`.
const MAX_VNI_V6: u32 = 9_999;

/// The allowed values of a switch, for messages.
const BOOLEAN: &str = "true or false";

/// The vxlan keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 0 to 9,999,999, with IPv6 to 9,999; default 1. Part of the device names.
    pub vni: u32,
    /// UDP port, default 8472.
    pub port: u16,
    /// MTU of the *underlay* in bytes; that of the underlay device if absent.
    pub mtu: Option<u32>,
    /// Group policy extension, default off.
    pub gbp: bool,
    /// Whether the kernel learns FDB entries from frames, default off.
    pub learning: bool,
    /// Whether to reach peers in the underlay's own network without encapsulation, default off.
    pub direct_routing: bool,
    /// Whether outer UDP packets over IPv4 carry a checksum; if absent, an existing device is left as it is and a new
    /// one is created without. Our own key; flannel leaves it to the kernel, which computes one. RFC 7348 §5 recommends
    /// zero, and many NICs compute it wrong if the inner packet was translated (flannel issue 1279).
    pub checksum: Option<bool>,
}

impl VxlanConfig {
    fn parse(
        options: &go_json::Object<'_>,
        network: &NetworkConfig,
    ) -> Result<Self, BackendConfigError> {
        let (max_vni, min_mtu) = match network.ipv6 {
            Some(_) => (MAX_VNI_V6, MIN_MTU_V6 + OVERHEAD_V6),
            None => (MAX_VNI, MIN_MTU + OVERHEAD_V4),
        };
        let flag =
            |key| -> Result<bool, GoJsonError> { Ok(options.get(key, BOOLEAN)?.unwrap_or(false)) };
        Ok(Self {
            vni: options.integer("VNI", 0..=max_vni)?.unwrap_or(1),
            port: number16(options, "Port", 0)?
                .filter(|port| *port != 0)
                .unwrap_or(DEFAULT_PORT),
            mtu: options.integer("MTU", min_mtu..=u32::from(u16::MAX))?,
            gbp: flag("GBP")?,
            learning: flag("Learning")?,
            direct_routing: flag("DirectRouting")?,
            checksum: options.get("Checksum", BOOLEAN)?,
        })
    }
}

impl Options for VxlanConfig {
    fn devices(&self, network: &NetworkConfig) -> Vec<InterfaceName> {
        let networks = network.networks();
        networks
            .map(|network| device_name(self.vni, network))
            .collect()
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        // Check here: the kernel would only report "invalid argument".
        let needed = MIN_MTU_V6 + OVERHEAD_V6;
        if setup.config.ipv6.is_some() && setup.underlay.mtu < needed {
            return Err(Unfit::Narrow {
                kind: KIND,
                interface: setup.underlay.name.clone(),
                mtu: setup.underlay.mtu,
                needed,
            });
        }
        let networks = setup.config.networks().collect();
        let (config, underlay) = (self.clone(), setup.underlay.clone());
        Ok(identify(config, underlay, networks, Vec::new()))
    }
}

/// Requests the identity of each device in turn, then creates the backend: with the MAC addresses that the peers
/// already know, if any.
fn identify(
    config: VxlanConfig,
    underlay: Underlay,
    mut networks: VecDeque<IpNet>,
    mut known: Vec<(IpNet, Identity)>,
) -> Opening {
    let Some(network) = networks.pop_front() else {
        return Opening::ready(VxlanBackend::new(&config, &underlay, &known));
    };
    let device = device_name(config.vni, network);
    let found = move |link: Option<Link>| {
        let existing = link.and_then(|link| match link.kind {
            LinkKind::Vxlan(vxlan) if vxlan.vni == config.vni => Some(vxlan),
            _ => None,
        });
        Opening::Mac {
            device: device_name(config.vni, network),
            existing: existing.as_ref().map(|vxlan| vxlan.mac),
            then: Box::new(move |mac| {
                let identity = Identity {
                    mac,
                    checksum: existing.is_some_and(|vxlan| vxlan.checksum),
                };
                known.push((network, identity));
                identify(config, underlay, networks, known)
            }),
        }
    };
    Opening::Device(device, Box::new(found))
}

/// What a vxlan node publishes about itself, in flannel's field order.
#[derive(Serialize)]
struct LeaseData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: MacAddr,
}

/// The vxlan backend of one node.
#[derive(Debug)]
pub(super) struct VxlanBackend {
    config: VxlanConfig,
    underlay: Underlay,
    v4: Option<Half>,
    v6: Option<Half>,
}

/// The properties of a device that are not in the config, kept so that an existing one need not be recreated.
#[derive(Clone, Copy, Debug)]
struct Identity {
    mac: MacAddr,
    checksum: bool,
}

/// The device of one family.
#[derive(Debug)]
struct Half {
    link: InterfaceName,
    network: IpNet,
    identity: Identity,
    device: Link,
    /// The underlay in this family.
    face: Face,
}

/// flannel's names: `flannel.<VNI>`, for IPv6 `flannel-v6.<VNI>`.
fn device_name(vni: u32, network: IpNet) -> InterfaceName {
    let name = match network {
        IpNet::V4(_) => format!("flannel.{}", vni.min(MAX_VNI)),
        IpNet::V6(_) => format!("flannel-v6.{}", vni.min(MAX_VNI_V6)),
    };
    #[expect(
        clippy::expect_used,
        reason = "8 + at most 7 or 11 + at most 4 bytes, all of them allowed"
    )]
    name.parse().expect("a validated VNI fits")
}

impl VxlanBackend {
    /// `identities` has the identity of each overlay network's device. A family that the underlay lacks is skipped.
    fn new(config: &VxlanConfig, underlay: &Underlay, identities: &[(IpNet, Identity)]) -> Self {
        let half = |v4: bool| {
            let mut families = identities.iter();
            let (network, identity) = families.find(|(net, _)| net.addr().is_ipv4() == v4)?;
            Half::new(config, underlay, *network, *identity)
        };
        Self {
            config: config.clone(),
            underlay: underlay.clone(),
            v4: half(true),
            v6: half(false),
        }
    }

    fn halves(&self) -> impl Iterator<Item = &Half> {
        self.v4.iter().chain(&self.v6)
    }

    /// The objects that reach one subnet of a peer.
    fn reach(
        &self,
        half: &Half,
        subnet: IpNet,
        attrs: &LeaseAttrs,
        data: Option<&RawValue>,
    ) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        let public = attrs
            .address_for(subnet)
            .ok_or(PeerRefusal::NoAddress(subnet))?;
        let mac = half.peer_mac(data)?;
        if half.face.is_own(public) {
            return Err(PeerRefusal::OurPublicIp(public));
        }
        if self.config.direct_routing && half.face.is_neighbor(public) {
            return Ok(route(subnet, &self.underlay.name, public, false).into());
        }
        let gateway = subnet.network();
        let link = &half.link;
        let mut objects = vec![
            (Key::Fdb(link.clone(), mac), Object::Fdb(public)),
            (Key::Neighbor(link.clone(), gateway), Object::Neighbor(mac)),
        ];
        objects.extend(route(subnet, link, gateway, true));
        Ok(objects)
    }
}

impl Half {
    fn new(
        config: &VxlanConfig,
        underlay: &Underlay,
        network: IpNet,
        identity: Identity,
    ) -> Option<Self> {
        let face = underlay.face(network)?;
        let (overhead, least) = match network {
            IpNet::V4(_) => (OVERHEAD_V4, MIN_MTU),
            IpNet::V6(_) => (OVERHEAD_V6, MIN_MTU_V6),
        };
        // Whatever the config says, the kernel refuses an MTU above the underlay device's (`vxlan_change_mtu()`).
        let outer = config.mtu.unwrap_or(underlay.mtu).min(underlay.mtu);
        Some(Self {
            link: device_name(config.vni, network),
            network,
            identity,
            device: Link {
                mtu: outer.saturating_sub(overhead).max(least),
                up: true,
                kind: LinkKind::Vxlan(Vxlan {
                    vni: config.vni,
                    port: config.port,
                    underlay_index: underlay.index,
                    local: face.address,
                    mac: identity.mac,
                    learning: config.learning,
                    gbp: config.gbp,
                    checksum: config.checksum.unwrap_or(identity.checksum),
                }),
            },
            face,
        })
    }

    /// The MAC address of a peer's VTEP.
    fn peer_mac(&self, data: Option<&RawValue>) -> Result<MacAddr, PeerRefusal> {
        let no_data = || PeerRefusal::NoBackendData(self.network);
        let data = data.ok_or_else(no_data)?;
        let mac: MacAddr = go_json::Object::parse(data.get())
            .and_then(|data| data.get("VtepMAC", "an Ethernet address such as 0a:1b:2c:3d:4e:5f"))
            .map_err(|error| PeerRefusal::BackendData(error.to_string()))?
            .ok_or_else(no_data)?;
        match mac {
            _ if !mac.is_unicast() => Err(PeerRefusal::NotUnicast(mac)),
            _ if mac == self.identity.mac => Err(PeerRefusal::OwnMac(mac)),
            _ => Ok(mac),
        }
    }

    /// The lease data for peers.
    fn data(&self, vni: u32) -> Option<Box<RawValue>> {
        // Cannot fail: a number and a string always serialize.
        to_raw_value(&LeaseData {
            vni,
            mac: self.identity.mac,
        })
        .ok()
    }
}

impl Backend for VxlanBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.halves()
            .map(|half| half.device.mtu)
            .min()
            .unwrap_or(MIN_MTU)
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        let data = |half: &Option<Half>| half.as_ref().and_then(|half| half.data(self.config.vni));
        LeaseAttrs {
            backend_data: data(&self.v4),
            backend_v6_data: data(&self.v6),
            ..attrs(KIND, &self.underlay)
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        let identities: Vec<_> = self
            .halves()
            .map(|half| (half.network, half.identity))
            .collect();
        Box::new(Self::new(&self.config, underlay, &identities))
    }

    fn scope(&self) -> Scope {
        Scope {
            links: self.halves().map(|half| half.link.clone()).collect(),
            networks: self.halves().map(|half| half.network).collect(),
            shared: Some(self.underlay.name.clone()),
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let mut state = State::new();
        for (half, subnet) in self.halves().flat_map(|half| {
            let mine = own.nets().find(|net| half.network.contains(net));
            mine.map(|subnet| (half, subnet))
        }) {
            state.extend(device(&half.link, half.device.clone(), subnet));
        }
        state
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        let attrs = &peer.attrs;
        same_kind(attrs, KIND)?;
        let mut objects = Vec::new();
        if let (Some(half), Some(subnet)) = (&self.v4, peer.key.v4) {
            let data = attrs.backend_data.as_deref();
            objects.extend(self.reach(half, subnet.into(), attrs, data)?);
        }
        if let (Some(half), Some(subnet)) = (&self.v6, peer.key.v6) {
            let data = attrs.backend_v6_data.as_deref();
            objects.extend(self.reach(half, subnet.into(), attrs, data)?);
        }
        Ok(objects)
    }
}
