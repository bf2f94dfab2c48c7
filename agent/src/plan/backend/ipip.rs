//! The ipip backend: IPv4 in IPv4 (RFC 2003), by the kernel's IP-in-IP device.
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | device `flannel.ipip` | LOCAL = the underlay device's address, any remote, MTU = underlay - 20 | |
//! | address | first address of the own subnet (`.0`), /32 | |
//! | next hop per peer | the peer's public IP over `flannel.ipip`, onlink | flannel has an inline gateway |
//! | route per peer | peer's subnet by that next hop | |
//!
//! With `DirectRouting`, a peer whose public IP lies in the underlay's on-link prefix is a plain gateway over the
//! underlay device. IPv4 only, as in flannel: in a dual-stack network nodes get an IPv6 subnet but reach no peer over
//! it, and the log says so. The kernel's module creates a device `tunl0` when loaded; it is left alone.

use ipnet::IpNet;

use super::table::{Definition, Options};
use super::{
    Backend, BackendConfigError, MIN_MTU, Opening, Setup, Unfit, attrs, device, needs_ipv4,
    public_address, route, same_kind,
};
use crate::base::go_json;
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Ipip, Key, Link, LinkKind, Object, Scope, State};
use crate::plan::underlay::Underlay;

/// The name of this backend in network configs and leases.
pub(crate) const KIND: &str = "ipip";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    makes: |name, kind| matches!(kind, LinkKind::Ipip(_)) && name.as_str() == DEVICE,
    devices: &[DEVICE],
    side_by_side: true,
    ..Definition::new(KIND, |options, network| {
        Ok(Box::new(IpipConfig::parse(options, network)?))
    })
};

/// flannel's name for the device.
const DEVICE: &str = "flannel.ipip";

/// The outer IPv4 header, in bytes.
const OVERHEAD: u32 = 20;

/// The ipip keys of the network config's `Backend`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IpipConfig {
    /// Whether to reach peers in the underlay's own network without encapsulation, default off.
    pub direct_routing: bool,
}

impl IpipConfig {
    fn parse(
        options: &go_json::Object<'_>,
        network: &NetworkConfig,
    ) -> Result<Self, BackendConfigError> {
        needs_ipv4(KIND, network)?;
        Ok(Self {
            direct_routing: options
                .get("DirectRouting", "true or false")?
                .unwrap_or(false),
        })
    }
}

impl Options for IpipConfig {
    fn devices(&self, _: &NetworkConfig) -> Vec<InterfaceName> {
        vec![device_name()]
    }

    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let backend = IpipBackend::new(self, setup.config, setup.underlay);
        Ok(Opening::ready(backend))
    }
}

/// The ipip backend of one node.
#[derive(Clone, Debug)]
pub(super) struct IpipBackend {
    config: IpipConfig,
    network: Option<IpNet>,
    link: InterfaceName,
    underlay: Underlay,
}

impl IpipBackend {
    fn new(config: &IpipConfig, network: &NetworkConfig, underlay: &Underlay) -> Self {
        Self {
            config: config.clone(),
            network: network.ipv4.map(|range| range.network.into()),
            link: device_name(),
            underlay: underlay.clone(),
        }
    }
}

/// `flannel.ipip`.
fn device_name() -> InterfaceName {
    #[expect(clippy::expect_used, reason = "a constant that a test parses")]
    DEVICE.parse().expect("a constant")
}

impl Backend for IpipBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu.saturating_sub(OVERHEAD).max(MIN_MTU)
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        LeaseAttrs {
            public_ipv6: None,
            ..attrs(KIND, &self.underlay)
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
            shared: Some(self.underlay.name.clone()),
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, own: &SubnetKey) -> State {
        let (Some(v4), Some(subnet)) = (self.underlay.v4, own.v4) else {
            return State::new();
        };
        let ipip = Link {
            mtu: self.mtu(),
            up: true,
            kind: LinkKind::Ipip(Ipip { local: v4.address }),
        };
        State::from(device(&self.link, ipip, subnet.into()))
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        same_kind(&peer.attrs, KIND)?;
        let Some(subnet) = peer.key.v4.map(IpNet::V4) else {
            return Ok(Vec::new());
        };
        let Some(face) = self.underlay.face(subnet) else {
            return Ok(Vec::new());
        };
        let public = public_address(peer.attrs.address_for(subnet), subnet, &face)?;
        let direct = self.config.direct_routing && face.is_neighbor(public);
        Ok(if direct {
            route(subnet, &self.underlay.name, public, false).into()
        } else {
            route(subnet, &self.link, public, true).into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    const NETWORK: &str = r#"{"Network":"10.5.0.0/16"}"#;

    fn parse(options: &str, network: &str) -> Result<IpipConfig, BackendConfigError> {
        let network = NetworkConfig::parse(network).unwrap();
        IpipConfig::parse(&go_json::Object::parse(options).unwrap(), &network)
    }

    fn backend(options: &str) -> IpipBackend {
        let config = parse(options, NETWORK).unwrap();
        IpipBackend::new(
            &config,
            &NetworkConfig::parse(NETWORK).unwrap(),
            &underlay(),
        )
    }

    fn peer(public_ip: [u8; 4]) -> Lease {
        let mut lease = lease(1, 1, 1);
        lease.attrs.backend_type = KIND.to_owned();
        lease.attrs.public_ip = Some(public_ip.into());
        lease
    }

    fn way(options: &str, public_ip: [u8; 4]) -> (String, bool) {
        let objects = backend(options).peer(&peer(public_ip)).unwrap();
        let [
            (Key::NextHop(..), Object::NextHop { onlink }),
            (_, Object::Route(route)),
        ] = objects.as_slice()
        else {
            panic!("{objects:?}")
        };
        assert_eq!(*onlink, route.onlink);
        assert_eq!(route.gateway, Some(public_ip.into()));
        (route.link.to_string(), route.onlink)
    }

    #[test]
    fn the_device_is_flannels() {
        let own = backend("{}").own(&lease(3, 1, 1).key);
        let texts: Vec<_> = own.keys().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["link flannel.ipip", "address 10.5.3.0/32 dev flannel.ipip"]
        );
        let local = "192.0.2.1".parse().unwrap();
        let device = Object::Link(Box::new(Link {
            mtu: 1480,
            up: true,
            kind: LinkKind::Ipip(Ipip { local }),
        }));
        assert_eq!(own.first_key_value().unwrap().1, &device);
        assert_eq!(backend("{}").mtu(), 1480);
    }

    #[test]
    fn direct_routing_takes_only_peers_on_the_underlays_link() {
        let (near, far) = ([192, 0, 2, 7], [198, 51, 100, 7]);
        let tunnel = ("flannel.ipip".to_owned(), true);
        assert_eq!(way("{}", near), tunnel);
        assert_eq!(way("{}", far), tunnel);
        let direct = r#"{"DirectRouting":true}"#;
        assert_eq!(way(direct, near), ("eth0".to_owned(), false));
        assert_eq!(way(direct, far), tunnel);
        let without_neighbors = backend(direct).over(&Underlay {
            has_neighbors: false,
            ..underlay()
        });
        let objects = without_neighbors.peer(&peer(near)).unwrap();
        let keys: Vec<_> = objects.iter().map(|(key, _)| key.to_string()).collect();
        assert!(keys.iter().all(|key| !key.contains("eth0")), "{keys:?}");
        assert_eq!(
            backend("{}").peer(&peer([192, 0, 2, 1])),
            Err(PeerRefusal::OurPublicIp([192, 0, 2, 1].into()))
        );
    }

    #[test]
    fn ipv6_alone_is_refused_with_words() {
        let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        assert!(parse("{}", dual).is_ok());
        let alone = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;
        assert_eq!(
            parse("{}", alone).unwrap_err().to_string(),
            "EnableIPv4: false is not possible with the backend ipip, which carries only IPv4; allowed: true"
        );
        assert_eq!(
            parse(r#"{"DirectRouting":1}"#, NETWORK)
                .unwrap_err()
                .to_string(),
            "Backend: DirectRouting: 1 is not true or false"
        );
    }
}
