//! The vxlan back end: Ethernet frames to the peers' VTEPs in UDP, by the kernel's VXLAN device.
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | device `flannel.<VNI>` | MTU = underlay - 50, LOCAL = the underlay device's address | LOCAL is the public IP there, which NAT breaks |
//! | address | first address of the own subnet (`.0`), /32 | |
//! | FDB entry per peer | peer's VTEP MAC → peer's public IP | |
//! | neighbour per peer | first address of the peer's subnet → peer's VTEP MAC | |
//! | next hop per peer | via that address, onlink | flannel has it inside the route |
//! | route per peer | peer's subnet by that next hop | |
//!
//! With `DirectRouting`, a peer whose public IP lies in the underlay's on-link prefix has a plain route via its public IP
//! instead of the last four.

mod identity;
#[cfg(test)]
pub(super) mod tests;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;
use serde_json::value::to_raw_value;

pub use self::identity::IdentityError;
use super::{Backend, Refusal, Setup};
use crate::go_json::{self, GoJsonError};
use crate::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::net::{InterfaceName, MacAddr};
use crate::netlink::Kernel;
use crate::state::{Key, Object, Route, Scope, State, Vxlan};
use crate::underlay::Underlay;

/// The name of this back end in network configs and leases.
pub(super) const KIND: &str = "vxlan";

/// Outer IPv4 20 + UDP 8 + VXLAN 8 (RFC 7348 §5) + inner Ethernet 14 bytes.
const OVERHEAD: u32 = 50;

/// The kernel's default UDP port (`vxlan_port`), which flannel uses too; IANA's is 4789.
const DEFAULT_PORT: u16 = 8472;

/// The largest VNI that fits the device name `flannel.<VNI>` of at most 15 bytes; VXLAN itself has 24 bits.
const MAX_VNI: u32 = 9_999_999;

/// `ETH_MIN_MTU`: no device takes less.
const MIN_MTU: u32 = 68;

/// What a switch takes, for messages.
const BOOLEAN: &str = "true or false";

/// The vxlan keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 0 to 9,999,999; default 1. Part of the device's name.
    pub vni: u32,
    /// UDP port, default 8472.
    pub port: u16,
    /// MTU of the *underlay* in bytes; that of the underlay device if absent.
    pub mtu: Option<u32>,
    /// Group policy extension, default off.
    pub gbp: bool,
    /// Whether the kernel learns forwarding entries from frames, default off.
    pub learning: bool,
    /// Whether peers on the underlay's own network are reached without encapsulation, default off.
    pub direct_routing: bool,
}

impl VxlanConfig {
    pub(super) fn parse(options: &go_json::Object<'_>) -> Result<Self, GoJsonError> {
        let port = options.integer("Port", 0..=u32::from(u16::MAX))?;
        Ok(Self {
            vni: options.integer("VNI", 0..=MAX_VNI)?.unwrap_or(1),
            port: match port.map(u16::try_from) {
                Some(Ok(port)) if port != 0 => port,
                _ => DEFAULT_PORT,
            },
            mtu: options.integer("MTU", MIN_MTU + OVERHEAD..=u32::from(u16::MAX))?,
            gbp: options.get("GBP", BOOLEAN)?.unwrap_or(false),
            learning: options.get("Learning", BOOLEAN)?.unwrap_or(false),
            direct_routing: options.get("DirectRouting", BOOLEAN)?.unwrap_or(false),
        })
    }
}

/// What a vxlan node publishes about itself, in flannel's field order.
#[derive(Serialize)]
struct LeaseData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: MacAddr,
}

/// The vxlan back end of one node.
#[derive(Debug)]
pub(super) struct VxlanBackend {
    link: InterfaceName,
    network: Ipv4Net,
    underlay: Underlay,
    device: Vxlan,
    config: VxlanConfig,
}

/// Makes the back end with the MAC address that the peers already know, if there is one.
pub(super) async fn open(
    config: &VxlanConfig,
    setup: Setup<'_>,
    kernel: &mut Kernel,
) -> Result<VxlanBackend, super::OpenError> {
    let link = device_name(config.vni);
    let existing = match kernel.link(&link).await? {
        Some(Object::Vxlan(device)) if device.vni == config.vni => Some(device.mac),
        _ => None,
    };
    let file = setup.state_dir.join(format!("{link}.mac"));
    let mac = identity::choose(existing, &file)?;
    Ok(VxlanBackend::new(
        config,
        setup.network,
        setup.underlay,
        mac,
    ))
}

/// `flannel.<VNI>`, flannel's name.
pub(crate) fn device_name(vni: u32) -> InterfaceName {
    let name = format!("flannel.{}", vni.min(MAX_VNI));
    #[expect(
        clippy::expect_used,
        reason = "8 + at most 7 bytes, all of them allowed"
    )]
    name.parse().expect("a VNI of seven digits fits")
}

impl VxlanBackend {
    fn new(config: &VxlanConfig, network: Ipv4Net, underlay: &Underlay, mac: MacAddr) -> Self {
        // The kernel refuses more than the underlay device carries (`vxlan_change_mtu()`), whatever the config says.
        let outer = config.mtu.unwrap_or(underlay.mtu).min(underlay.mtu);
        Self {
            link: device_name(config.vni),
            network,
            underlay: underlay.clone(),
            device: Vxlan {
                vni: config.vni,
                port: config.port,
                underlay_index: underlay.index,
                local: underlay.address,
                mac,
                mtu: outer.saturating_sub(OVERHEAD).max(MIN_MTU),
                learning: config.learning,
                gbp: config.gbp,
                up: true,
            },
            config: config.clone(),
        }
    }

    /// Whether the underlay reaches an address without a gateway.
    fn is_on_link(&self, address: Ipv4Addr) -> bool {
        Ipv4Net::new(self.underlay.address, self.underlay.prefix_len)
            .is_ok_and(|prefix| prefix.contains(&address))
    }

    /// The MAC address of a peer's VTEP.
    fn peer_mac(&self, peer: &Lease) -> Result<MacAddr, Refusal> {
        let data = peer.attrs.backend_data.as_ref().ok_or(Refusal::NoData)?;
        let mac: MacAddr = go_json::Object::parse(data.get())
            .and_then(|data| data.get("VtepMAC", "an Ethernet address such as 0a:1b:2c:3d:4e:5f"))
            .map_err(|error| Refusal::Data(error.to_string()))?
            .ok_or(Refusal::NoData)?;
        match mac {
            _ if !mac.is_unicast() => Err(Refusal::NotUnicast(mac)),
            _ if mac == self.device.mac => Err(Refusal::OwnMac(mac)),
            _ => Ok(mac),
        }
    }

    /// A route to a peer's subnet, with its next hop.
    fn route(
        &self,
        peer: &SubnetKey,
        link: &InterfaceName,
        gateway: Ipv4Addr,
        onlink: bool,
    ) -> [(Key, Object); 2] {
        let gateway = IpAddr::V4(gateway);
        let route = Route {
            link: link.clone(),
            gateway,
            onlink,
        };
        [
            (
                Key::NextHop(link.clone(), gateway),
                Object::NextHop { onlink },
            ),
            (Key::Route(IpNet::V4(peer.v4)), Object::Route(route)),
        ]
    }
}

impl Backend for VxlanBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.device.mtu
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        let data = LeaseData {
            vni: self.device.vni,
            mac: self.device.mac,
        };
        LeaseAttrs {
            public_ip: self.underlay.public_ip,
            public_ipv6: None,
            backend_type: KIND.into(),
            // A number and a string always serialize.
            backend_data: to_raw_value(&data).ok(),
            backend_v6_data: None,
            owner: None,
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        let (config, network) = (&self.config, self.network);
        Box::new(Self::new(config, network, underlay, self.device.mac))
    }

    fn scope(&self) -> Scope {
        Scope {
            links: vec![self.link.clone()],
            network: self.network,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let address = IpNet::from(IpAddr::V4(own.v4.network()));
        State::from([
            (
                Key::Link(self.link.clone()),
                Object::Vxlan(self.device.clone()),
            ),
            (Key::Address(self.link.clone(), address), Object::Address),
        ])
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, Refusal> {
        let attrs = &peer.attrs;
        if attrs.backend_type != KIND {
            let theirs = attrs.backend_type.chars().take(32).collect();
            return Err(Refusal::Kind(theirs, KIND));
        }
        let mac = self.peer_mac(peer)?;
        if [self.underlay.address, self.underlay.public_ip].contains(&attrs.public_ip) {
            return Err(Refusal::OwnAddress(attrs.public_ip));
        }
        if self.config.direct_routing && self.is_on_link(attrs.public_ip) {
            let route = self.route(&peer.key, &self.underlay.name, attrs.public_ip, false);
            return Ok(route.into());
        }
        let gateway = peer.key.v4.network();
        let mut objects = vec![
            (
                Key::Fdb(self.link.clone(), mac),
                Object::Fdb(IpAddr::V4(attrs.public_ip)),
            ),
            (
                Key::Neighbor(self.link.clone(), IpAddr::V4(gateway)),
                Object::Neighbor(mac),
            ),
        ];
        objects.extend(self.route(&peer.key, &self.link, gateway, true));
        Ok(objects)
    }
}
