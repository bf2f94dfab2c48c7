//! The udp backend: IPv4 in UDP, by a TUN device and our own data plane ([`crate::host::udp`]).
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | TUN device `flannel0`, or the first free one after it, with a data plane | UDP on the underlay's address, MTU = underlay - 28 | several queues, offloads |
//! | address | first address of the own subnet (`.0`), /32 | |
//! | route | the whole network over the device; each peer's subnet if the underlay is inside the network | always the whole network, which routes the rest of the site into the device |
//! | forwarding entry per peer | peer's subnet → peer's public IP, at our own port | longest prefix match, not the first in a list |
//!
//! This is flannel's default if a network config names no backend. The device exists while the agent runs, as with
//! flannel's daemon. A lease has no type and no data; one with the type of another backend is refused, unlike in
//! flannel: nothing listens on the port. IPv4 only, as in flannel: in a dual-stack network nodes get an IPv6 subnet but
//! reach no peer over it, and the log says so.

use std::net::SocketAddrV4;

use ipnet::IpNet;

use super::table::{Definition, Options};
use super::{
    Backend, BackendConfigError, MIN_MTU, Opening, Setup, Unfit, attrs, device, device_route,
    needs_ipv4, no_loop, number16, public_address, same_kind,
};
use crate::base::go_json;
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Link, LinkKind, Object, Scope, State, Tun};
use crate::plan::underlay::Underlay;

/// The name of this backend in network configs.
pub(crate) const KIND: &str = "udp";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    makes: |name, kind| matches!(kind, LinkKind::Tun(_)) && is_device_name(name),
    side_by_side: true,
    ..Definition::new(KIND, |options, network| {
        Ok(Box::new(UdpConfig::parse(options, network)?))
    })
};

/// The backend type in its leases.
const LEASE_TYPE: &str = "";

/// The prefix of flannel's device name; the first free number follows.
const DEVICE: &str = "flannel";

/// Outer IPv4 20 + UDP 8 bytes.
const OVERHEAD: u32 = 28;

/// flannel's port.
const DEFAULT_PORT: u16 = 8285;

/// The udp keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UdpConfig {
    /// UDP port of all nodes, 1 to 65,535, default 8285.
    pub port: u16,
}

impl UdpConfig {
    fn parse(
        options: &go_json::Object<'_>,
        network: &NetworkConfig,
    ) -> Result<Self, BackendConfigError> {
        needs_ipv4(KIND, network)?;
        Ok(Self {
            port: number16(options, "Port", 1)?.unwrap_or(DEFAULT_PORT),
        })
    }
}

impl Options for UdpConfig {
    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let (config, network) = (self.clone(), setup.config.clone());
        let underlay = setup.underlay.clone();
        Ok(Opening::Tun(Box::new(move |device| {
            Opening::ready(UdpBackend::new(&config, &network, &underlay, device))
        })))
    }
}

/// The udp backend of one node.
#[derive(Clone, Debug)]
pub(super) struct UdpBackend {
    config: UdpConfig,
    network: Option<IpNet>,
    link: InterfaceName,
    underlay: Underlay,
}

impl UdpBackend {
    fn new(
        config: &UdpConfig,
        network: &NetworkConfig,
        underlay: &Underlay,
        link: InterfaceName,
    ) -> Self {
        Self {
            config: config.clone(),
            network: network.ipv4.map(|range| range.network.into()),
            link,
            underlay: underlay.clone(),
        }
    }
}

/// Whether a name is `flannel0`, `flannel1` and so on.
fn is_device_name(name: &InterfaceName) -> bool {
    let number = name.as_str().strip_prefix(DEVICE);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

impl Backend for UdpBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu.saturating_sub(OVERHEAD).max(MIN_MTU)
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ipv6: None,
            ..attrs(LEASE_TYPE, &self.underlay)
        }
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    fn scope(&self) -> Scope {
        Scope {
            links: vec![self.link.clone()],
            networks: self.network.into_iter().collect(),
            shared: None,
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let (Some(v4), Some(subnet), Some(network)) = (self.underlay.v4, own.v4, self.network)
        else {
            return State::new();
        };
        let tun = Link {
            mtu: self.mtu(),
            up: true,
            kind: LinkKind::Tun(Tun {
                address: subnet.network(),
                bind: SocketAddrV4::new(v4.address, self.config.port),
            }),
        };
        let is_inside = self.underlay.is_inside(network);
        let route = (!is_inside).then(|| device_route(network, &self.link));
        let objects = device(&self.link, tun, subnet.into());
        objects.into_iter().chain(route).collect()
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        // Older versions of other implementations may have written the name.
        if peer.attrs.backend_type != KIND {
            same_kind(&peer.attrs, LEASE_TYPE)?;
        }
        let Some(v4) = peer.key.v4 else {
            return Ok(Vec::new());
        };
        let subnet = IpNet::V4(v4);
        let Some(face) = self.underlay.face(subnet) else {
            return Ok(Vec::new());
        };
        let public = public_address(peer.attrs.public_ip, subnet, &face)?;
        let networks = self.network.as_slice();
        no_loop(public.into(), networks, &self.underlay, &self.link)?;
        let to = SocketAddrV4::new(public, self.config.port);
        let forward = (Key::Forward(self.link.clone(), v4), Object::Forward(to));
        let is_inside = networks.iter().any(|net| self.underlay.is_inside(*net));
        let route = is_inside.then(|| device_route(subnet, &self.link));
        Ok([forward].into_iter().chain(route).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::backend::BackendConfig;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    const NETWORK: &str = r#"{"Network":"10.5.0.0/16"}"#;

    fn parse(options: &str, network: &str) -> Result<UdpConfig, BackendConfigError> {
        let network = NetworkConfig::parse(network).unwrap();
        UdpConfig::parse(&go_json::Object::parse(options).unwrap(), &network)
    }

    /// The backend as the agent holds it.
    pub(crate) fn shared() -> std::sync::Arc<dyn Backend> {
        std::sync::Arc::new(backend("{}"))
    }

    fn backend(options: &str) -> UdpBackend {
        let config = parse(options, NETWORK).unwrap();
        let network = NetworkConfig::parse(NETWORK).unwrap();
        UdpBackend::new(&config, &network, &underlay(), "flannel0".parse().unwrap())
    }

    pub(crate) fn peer(kind: &str, public_ip: [u8; 4]) -> Lease {
        let mut lease = lease(1, 1, 1);
        lease.attrs.backend_type = kind.to_owned();
        lease.attrs.backend_data = None;
        lease.attrs.public_ip = Some(public_ip.into());
        lease
    }

    #[test]
    fn the_device_is_flannels_and_takes_the_whole_network() {
        let own = backend("{}").own(&lease(3, 1, 1).key);
        let texts: Vec<_> = own.keys().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "link flannel0",
                "address 10.5.3.0/32 dev flannel0",
                "route 10.5.0.0/16"
            ]
        );
        let device = Object::Link(Box::new(Link {
            mtu: 1472,
            up: true,
            kind: LinkKind::Tun(Tun {
                address: [10, 5, 3, 0].into(),
                bind: "192.0.2.1:8285".parse().unwrap(),
            }),
        }));
        assert_eq!(own.first_key_value().unwrap().1, &device);
        assert_eq!(backend("{}").mtu(), 1472);
    }

    #[test]
    fn where_the_underlay_is_inside_the_network_only_the_peers_subnets_go_into_the_device() {
        let config = parse("{}", NETWORK).unwrap();
        let network = NetworkConfig::parse(r#"{"Network":"192.0.0.0/8"}"#).unwrap();
        let device = "flannel0".parse().unwrap();
        let backend = UdpBackend::new(&config, &network, &underlay(), device);
        let routes = |objects: Vec<(Key, Object)>| -> Vec<String> {
            let keys = objects.into_iter().map(|(key, _)| key.to_string());
            keys.filter(|key| key.starts_with("route")).collect()
        };
        let own = SubnetKey::new("192.5.3.0/24".parse().ok(), None);
        assert_eq!(
            routes(backend.own(&own).into_iter().collect()),
            Vec::<String>::new()
        );
        let mut near = peer("", [192, 0, 2, 7]);
        near.key = SubnetKey::new("192.5.1.0/24".parse().ok(), None);
        assert_eq!(routes(backend.peer(&near).unwrap()), ["route 192.5.1.0/24"]);
        // From outside the network, a peer inside is unreachable: the route to it would lead into the device.
        let outside = self::backend("{}").peer(&peer("", [10, 5, 200, 1]));
        assert_eq!(
            outside.unwrap_err().to_string(),
            "its public IP 10.5.200.1 is inside the network 10.5.0.0/16, which is routed into flannel0; this node's underlay is outside it"
        );
    }

    #[test]
    fn a_peer_is_one_entry_at_our_own_port() {
        for kind in ["", "udp"] {
            let objects = backend(r#"{"Port":4000}"#)
                .peer(&peer(kind, [198, 51, 100, 7]))
                .unwrap();
            let [(key, Object::Forward(to))] = objects.as_slice() else {
                panic!("{objects:?}")
            };
            assert_eq!(key.to_string(), "forwarding of 10.5.1.0/24 from flannel0");
            assert_eq!(to.to_string(), "198.51.100.7:4000");
        }
        assert_eq!(
            backend("{}").peer(&peer("", [192, 0, 2, 1])),
            Err(PeerRefusal::OurPublicIp([192, 0, 2, 1].into()))
        );
        let other = backend("{}").peer(&peer("vxlan", [198, 51, 100, 7]));
        assert!(matches!(other, Err(PeerRefusal::OtherBackend { .. })));
    }

    #[test]
    fn device_names_are_numbered() {
        for (name, expected) in [
            ("flannel0", true),
            ("flannel12", true),
            ("flannel", false),
            ("flannel.1", false),
            ("flannel-wg", false),
        ] {
            assert_eq!(is_device_name(&name.parse().unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn the_lease_has_neither_type_nor_data() {
        let config = parse("{}", NETWORK).unwrap();
        let network = NetworkConfig::parse(NETWORK).unwrap();
        let underlay = Underlay {
            v6: None,
            ..underlay()
        };
        let device = "flannel0".parse().unwrap();
        let attrs = UdpBackend::new(&config, &network, &underlay, device).lease_attrs();
        assert_eq!(
            attrs.to_json().unwrap(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#
        );
    }

    #[test]
    fn a_config_without_a_backend_means_this_one() {
        let network = NetworkConfig::parse(NETWORK).unwrap();
        let config = BackendConfig::parse(&network).unwrap();
        assert_eq!((config.kind(), config.port()), (KIND, Some(8285)));
    }

    #[test]
    fn what_it_cannot_do_is_refused_with_words() {
        let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        assert!(parse("{}", dual).is_ok());
        let alone = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        assert_eq!(
            parse("{}", alone).unwrap_err().to_string(),
            "EnableIPv4: false is not possible with the backend udp, which carries only IPv4; allowed: true"
        );
        for port in ["0", "65536", "-1"] {
            let error = parse(&format!(r#"{{"Port":{port}}}"#), NETWORK).unwrap_err();
            assert!(error.to_string().contains("Port"), "{error}");
        }
    }
}
