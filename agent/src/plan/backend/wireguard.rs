//! The wireguard backend: IP in WireGuard, by the kernel's WireGuard device.
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | device `flannel-wg`, and `flannel-wg-v6` in mode `separate` | UDP port from the config, MTU = underlay - 80 | it stays when the agent stops, and the next start takes it over with all sessions |
//! | address on it, per family | first address of the own subnet (`.0`), /32 or /128 | |
//! | route per family | the whole overlay network over the device; each peer's subnets if the underlay is inside that network | always the whole network, which routes the rest of the site into the device |
//! | peer per peer and device | its public key; endpoint, pre-shared key, keepalive; its subnets as allowed IPs | the plan owns all peers of the device: the peer of a node with a new key, or of a removed node, is removed |
//!
//! In mode `separate`, the default, each family of the overlay has its own device and is carried over the same family.
//! In the others `flannel-wg` carries both, over IPv4 (`ipv4`), IPv6 (`ipv6`) or the one that is more likely to reach
//! the peer (`auto`).
//!
//! The outer headers are 60 bytes over IPv4 (20 + UDP 8 + WireGuard 32) and 80 over IPv6. As in flannel, 80 are always
//! reserved, so that all nodes with the same underlay have the same MTU, whichever family they use.
//!
//! The lease holds the node's listen port. In the modes with one device flannel publishes `ListenPortV6` with its IPv6
//! data, although nothing listens there; so a peer's IPv4 data takes precedence.
//!
//! # Encrypt
//!
//! `"Encrypt": true`, beside `Backend` and not in it, selects this backend in a network that names vxlan or none, with
//! the defaults or with this backend's keys in the `Backend` object; vxlan's keys are then ignored, except `MTU`. The
//! key is our own. flannel ignores it and runs the backend in `Backend`: its nodes and ours then cannot reach each
//! other, and refuse each other's leases as of another backend. A mixed cluster must use `"Type": "wireguard"`.

mod config;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

pub use self::config::{Mode, WireguardConfig};
use super::table::{Definition, Options};
use super::{
    Backend, MIN_MTU, MIN_MTU_V6, Opening, Setup, Unfit, attrs, device_route, no_loop, number16,
    same_kind,
};
use crate::base::go_json;
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Link, LinkKind, Object, Scope, State, Wireguard, WireguardPeer};
use crate::plan::underlay::Underlay;
use crate::plan::wireguard_key::{PrivateKey, PublicKey};

/// The name of this backend in network configs and leases.
pub(crate) const KIND: &str = crate::cluster::network_config::WIREGUARD;

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    makes: |name, kind| matches!(kind, LinkKind::Wireguard(_)) && DEVICES.contains(&name.as_str()),
    devices: &DEVICES,
    memory: Some(KEY_FILE),
    ..Definition::new(KIND, |options, network| {
        Ok(Box::new(WireguardConfig::parse(options, network)?))
    })
};

/// The file in the state directory that stores the private key.
pub(crate) const KEY_FILE: &str = "wireguard.key";

/// Outer IPv6 40 + UDP 8 + WireGuard's header 16 and authentication tag 16 bytes.
const OVERHEAD: u32 = 80;

/// flannel's names for the devices: the second is for IPv6 in mode `separate`.
const DEVICES: [&str; 2] = ["flannel-wg", "flannel-wg-v6"];

/// What a wireguard node publishes about itself, in flannel's field order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LeaseData {
    public_key: String,
    port: u16,
}

/// What a peer publishes about itself.
struct PeerData {
    key: PublicKey,
    /// `None` means the same port as ours, as with older flannel releases.
    port: Option<u16>,
}

/// The wireguard backend of one node.
#[derive(Clone, Debug)]
pub(super) struct WireguardBackend {
    config: WireguardConfig,
    networks: Vec<IpNet>,
    underlay: Underlay,
    private_key: PrivateKey,
    public_key: PublicKey,
}

/// A device, and the overlay networks that it carries.
struct Tunnel<'a> {
    link: InterfaceName,
    port: u16,
    networks: &'a [IpNet],
}

impl Options for WireguardConfig {
    fn devices(&self, _: &NetworkConfig) -> Vec<InterfaceName> {
        device_names().into()
    }

    fn port(&self) -> Option<u16> {
        Some(self.port.min(self.port_v6))
    }

    /// Uses the key that the peers already know, if any.
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let (config, underlay) = (self.clone(), setup.underlay.clone());
        let networks = setup.config.networks().collect();
        Ok(Opening::PrivateKey(Box::new(move |key| {
            Opening::ready(WireguardBackend::new(&config, networks, &underlay, key))
        })))
    }
}

/// `flannel-wg` and `flannel-wg-v6`.
fn device_names() -> [InterfaceName; 2] {
    #[expect(clippy::expect_used, reason = "constants that a test parses")]
    DEVICES.map(|name| name.parse().expect("a constant"))
}

impl WireguardBackend {
    fn new(
        config: &WireguardConfig,
        networks: Vec<IpNet>,
        underlay: &Underlay,
        private_key: PrivateKey,
    ) -> Self {
        Self {
            config: config.clone(),
            networks,
            underlay: underlay.clone(),
            public_key: private_key.public(),
            private_key,
        }
    }

    /// The devices. In mode `separate` the overlay has at most one network of each family.
    fn tunnels(&self) -> Vec<Tunnel<'_>> {
        let [device, device_v6] = device_names();
        let (port, port_v6) = (self.config.port, self.config.port_v6);
        let devices: Vec<(InterfaceName, u16, &[IpNet])> = match self.config.mode {
            Mode::Separate => self
                .networks
                .chunks(1)
                .map(|network| match network {
                    [IpNet::V4(_)] => (device.clone(), port, network),
                    network => (device_v6.clone(), port_v6, network),
                })
                .collect(),
            Mode::Auto | Mode::Ipv4 | Mode::Ipv6 => vec![(device, port, &self.networks)],
        };
        let tunnel = |(link, port, networks)| Tunnel {
            link,
            port,
            networks,
        };
        devices.into_iter().map(tunnel).collect()
    }

    fn has_ipv6(&self) -> bool {
        self.networks.iter().any(|net| net.addr().is_ipv6())
    }

    /// The lease data for one family.
    fn data(&self, v4: bool) -> Option<Box<RawValue>> {
        let tunnels = self.tunnels();
        let carries = |tunnel: &&Tunnel<'_>| {
            let mut networks = tunnel.networks.iter();
            networks.any(|net| net.addr().is_ipv4() == v4)
        };
        let data = LeaseData {
            public_key: self.public_key.to_string(),
            port: tunnels.iter().find(carries)?.port,
        };
        // Cannot fail: a string and a number always serialize.
        to_raw_value(&data).ok()
    }

    /// The WireGuard peer on one device for a node's subnets.
    fn reach(
        &self,
        tunnel: &Tunnel<'_>,
        subnets: &[IpNet],
        attrs: &LeaseAttrs,
    ) -> Result<(Key, Object), PeerRefusal> {
        let data = self.peer_data(subnets, attrs)?;
        if data.key == self.public_key {
            return Err(PeerRefusal::OwnKey(data.key.to_string()));
        }
        let address = self.endpoint(subnets, attrs)?;
        if self.addresses().any(|own| own == address) {
            return Err(PeerRefusal::OurPublicIp(address));
        }
        no_loop(address, &self.networks, &self.underlay, &tunnel.link)?;
        let peer = WireguardPeer {
            endpoint: Some(SocketAddr::new(address, data.port.unwrap_or(tunnel.port))),
            preshared_key: self.config.preshared_key.clone(),
            keepalive: self.config.keepalive,
            allowed: subnets.into(),
            in_session: false,
        };
        Ok((
            Key::WireguardPeer(tunnel.link.clone(), Box::new(data.key)),
            Object::WireguardPeer(Box::new(peer)),
        ))
    }

    /// A peer's data for the first of these subnets that has any; IPv4 comes first.
    fn peer_data(&self, subnets: &[IpNet], attrs: &LeaseAttrs) -> Result<PeerData, PeerRefusal> {
        for subnet in subnets {
            let data = match subnet {
                IpNet::V4(_) => &attrs.backend_data,
                IpNet::V6(_) => &attrs.backend_v6_data,
            };
            if let Some(data) = data {
                return read_peer_data(data)?.ok_or(PeerRefusal::NoBackendData(*subnet));
            }
        }
        Err(PeerRefusal::NoBackendData(
            subnets.first().copied().unwrap_or_default(),
        ))
    }

    /// The endpoint address for these subnets of a peer.
    fn endpoint(&self, subnets: &[IpNet], attrs: &LeaseAttrs) -> Result<IpAddr, PeerRefusal> {
        let v4 = attrs.public_ip.map(IpAddr::V4);
        let v6 = attrs.public_ipv6.map(IpAddr::V6);
        let v6_only = subnets.iter().all(|subnet| subnet.addr().is_ipv6());
        let over_v6 = match self.config.mode {
            Mode::Separate => v6_only,
            Mode::Ipv4 => false,
            Mode::Ipv6 => true,
            Mode::Auto => self.prefers_v6(attrs),
        };
        match over_v6 {
            true => v6.ok_or(PeerRefusal::NoEndpoint("PublicIPv6")),
            false => v4.ok_or(PeerRefusal::NoEndpoint("PublicIP")),
        }
    }

    /// Mode `auto`: over IPv4 to a peer whose IPv4 address is public; else over IPv6 if both ends' addresses are
    /// public; else over IPv4. A family that either end lacks is never used.
    fn prefers_v6(&self, attrs: &LeaseAttrs) -> bool {
        let v4 = attrs.public_ip.filter(|_| self.underlay.v4.is_some());
        let v6 = attrs.public_ipv6.zip(self.underlay.v6);
        match (v4, v6) {
            (Some(v4), Some((v6, own))) => {
                v4.is_private() && !v6.is_unique_local() && !own.public.is_unique_local()
            }
            (None, Some(_)) => true,
            (_, None) => self.underlay.v4.is_none(),
        }
    }

    /// Our own addresses.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.underlay.v4.into_iter();
        let v4 = v4.flat_map(|v4| [v4.address, v4.public].map(IpAddr::V4));
        let v6 = self.underlay.v6.into_iter();
        v4.chain(v6.flat_map(|v6| [v6.address, v6.public].map(IpAddr::V6)))
    }
}

/// Parses a peer's data; `None` if it has no key.
fn read_peer_data(data: &RawValue) -> Result<Option<PeerData>, PeerRefusal> {
    let unusable = |error: go_json::GoJsonError| PeerRefusal::BackendData(error.to_string());
    let object = go_json::Object::parse(data.get()).map_err(unusable)?;
    let key: Option<PublicKey> = object
        .get("PublicKey", "a public key of 32 bytes in base64")
        .map_err(unusable)?;
    let port = number16(&object, "Port", 0).map_err(unusable)?;
    let port = port.filter(|port| *port != 0);
    Ok(key.map(|key| PeerData { key, port }))
}

impl Backend for WireguardBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        let outer = self.config.mtu.unwrap_or(self.underlay.mtu);
        let least = if self.has_ipv6() { MIN_MTU_V6 } else { MIN_MTU };
        let most = outer.min(self.underlay.mtu);
        most.saturating_sub(OVERHEAD).max(least)
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            backend_data: self.data(true),
            backend_v6_data: self.data(false),
            ..attrs(KIND, &self.underlay)
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    /// Both devices, so that the second one is removed when the mode changes.
    fn scope(&self) -> Scope {
        Scope {
            links: device_names().into(),
            networks: self.networks.clone(),
            shared: None,
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let mut state = State::new();
        for tunnel in self.tunnels() {
            let device = Link {
                mtu: self.mtu(),
                up: true,
                kind: LinkKind::Wireguard(Wireguard {
                    private_key: Some(self.private_key.clone()),
                    listen_port: tunnel.port,
                    fwmark: 0,
                }),
            };
            let link = &tunnel.link;
            state.insert(Key::Link(link.clone()), Object::Link(Box::new(device)));
            for network in tunnel.networks {
                state.extend(
                    (!self.underlay.is_inside(*network)).then(|| device_route(*network, link)),
                );
                let mine = own.nets().find(|net| network.contains(net));
                state.extend(mine.map(|subnet| {
                    let address = IpNet::from(subnet.network());
                    (Key::Address(link.clone(), address), Object::Address)
                }));
            }
        }
        state
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        same_kind(&peer.attrs, KIND)?;
        let mut objects = Vec::new();
        for tunnel in self.tunnels() {
            let carried = |subnet: &IpNet| tunnel.networks.iter().any(|net| net.contains(subnet));
            let subnets: Vec<IpNet> = peer.key.nets().filter(carried).collect();
            if subnets.is_empty() {
                continue;
            }
            objects.push(self.reach(&tunnel, &subnets, &peer.attrs)?);
            let networks = tunnel.networks.iter();
            let shared: Vec<_> = networks
                .filter(|net| self.underlay.is_inside(**net))
                .collect();
            let in_shared = |subnet: &&IpNet| shared.iter().any(|net| net.contains(*subnet));
            let routed = subnets.iter().filter(in_shared);
            objects.extend(routed.map(|subnet| device_route(*subnet, &tunnel.link)));
        }
        Ok(objects)
    }
}
