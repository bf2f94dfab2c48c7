//! The host-gw backend: no encapsulation, the peers themselves are the gateways to their subnets.
//!
//! | object, for each family of the network | is | as flannel, except |
//! |---|---|---|
//! | route per peer | peer's subnet by the peer's public IP, over the underlay device | |
//!
//! Unlike those of other backends, the routes have inline gateways, as in flannel: a flannel that replaces us deletes
//! routes by gateway, which would fail for next-hop objects.
//!
//! It requires all nodes on one layer 2 network: a peer whose public IP is not on the underlay's link is refused, and
//! so is a public IP of our own that is not the underlay device's address. The MTU is the underlay's.

use std::net::IpAddr;

use ipnet::IpNet;

use super::table::{Definition, Options};
use super::{Backend, Opening, Setup, Unfit, attrs, public_address, same_kind};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Object, Route, Scope, State};
use crate::plan::underlay::{Face, Underlay};

/// The name of this backend in network configs and leases.
pub(crate) const KIND: &str = "host-gw";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    side_by_side: true,
    ..Definition::new(KIND, |_, _| Ok(Box::new(HostGwConfig)))
};

/// The host-gw backend has no keys.
#[derive(PartialEq, Eq, Debug)]
struct HostGwConfig;

/// The host-gw backend of one node.
#[derive(Clone, Debug)]
pub(super) struct HostGwBackend {
    networks: Vec<IpNet>,
    underlay: Underlay,
}

impl Options for HostGwConfig {
    /// Refuses a node behind NAT, whose public IP is not on its interface.
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let networks = setup.config.networks();
        for face in networks.filter_map(|network| setup.underlay.face(network)) {
            if face.address != face.public {
                return Err(Unfit::Nat {
                    kind: KIND,
                    address: face.address,
                    public: face.public,
                });
            }
        }
        let backend = HostGwBackend::new(setup.config, setup.underlay);
        Ok(Opening::ready(backend))
    }
}

impl HostGwBackend {
    fn new(config: &NetworkConfig, underlay: &Underlay) -> Self {
        Self {
            networks: config.networks().collect(),
            underlay: underlay.clone(),
        }
    }
}

impl Backend for HostGwBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        attrs(KIND, &self.underlay)
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    fn caution(&self) -> Option<&'static str> {
        (!self.underlay.has_neighbors).then_some(
            "host-gw over a device without neighbours, such as a VPN's: the other end of that device needs a route to every node's containers",
        )
    }

    fn scope(&self) -> Scope {
        Scope {
            links: Vec::new(),
            networks: self.networks.clone(),
            shared: Some(self.underlay.name.clone()),
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, _: &SubnetKey) -> State {
        State::new()
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        same_kind(&peer.attrs, KIND)?;
        let mut objects = Vec::new();
        for &network in &self.networks {
            let Some(subnet) = peer.key.nets().find(|net| network.contains(net)) else {
                continue;
            };
            let Some(face) = self.underlay.face(network) else {
                continue;
            };
            let gateway = gateway(&face, subnet, &peer.attrs)?;
            let route = Route {
                link: self.underlay.name.clone(),
                gateway: Some(gateway),
                onlink: false,
                inline: true,
            };
            objects.push((Key::Route(subnet), Object::Route(route)));
        }
        Ok(objects)
    }
}

/// The gateway address of a peer on the underlay's link.
fn gateway(face: &Face, subnet: IpNet, attrs: &LeaseAttrs) -> Result<IpAddr, PeerRefusal> {
    let public = public_address(attrs.address_for(subnet), subnet, face)?;
    if !face.is_on_link(public) {
        return Err(PeerRefusal::OffLink {
            public,
            on_link: face.on_link,
        });
    }
    Ok(public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    fn backend(config: &str) -> HostGwBackend {
        HostGwBackend::new(&NetworkConfig::parse(config).unwrap(), &underlay())
    }

    const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#;

    fn near() -> Lease {
        let mut lease = lease(1, 1, 1);
        lease.attrs.backend_type = KIND.to_owned();
        lease.attrs.backend_data = None;
        lease.attrs.public_ip = Some([192, 0, 2, 7].into());
        lease
    }

    fn texts(objects: &[(Key, Object)]) -> Vec<String> {
        let described = |(key, object): &(Key, Object)| match object {
            Object::Route(route) => format!("{key} via {:?} dev {}", route.gateway, route.link),
            _ => key.to_string(),
        };
        objects.iter().map(described).collect()
    }

    #[test]
    fn a_peer_is_the_gateway_to_its_subnets_in_each_family() {
        let mut dual = near();
        dual.key.v6 = Some("fd00:5:0:1::/64".parse().unwrap());
        dual.attrs.public_ipv6 = Some("2001:db8::7".parse().unwrap());
        assert_eq!(
            texts(&backend(DUAL).peer(&dual).unwrap()),
            [
                "route 10.5.1.0/24 via Some(192.0.2.7) dev eth0",
                "route fd00:5:0:1::/64 via Some(2001:db8::7) dev eth0",
            ]
        );
        assert_eq!(backend(DUAL).peer(&near()).unwrap().len(), 1);
        assert_eq!(backend(DUAL).mtu(), 1500);
        assert_eq!(backend(DUAL).own(&dual.key), State::new());
    }

    #[test]
    fn peers_that_are_no_gateways_are_refused() {
        let backend = backend(r#"{"Network":"10.5.0.0/16"}"#);
        for (address, reason) in [
            (
                [198, 51, 100, 7],
                "its public IP 198.51.100.7 is not a host address on the underlay's link, 192.0.2.1/24",
            ),
            (
                [192, 0, 2, 255],
                "its public IP 192.0.2.255 is not a host address on the underlay's link, 192.0.2.1/24",
            ),
            ([192, 0, 2, 1], "its public IP 192.0.2.1 is this node's"),
        ] {
            let mut lease = near();
            lease.attrs.public_ip = Some(address.into());
            assert_eq!(backend.peer(&lease).unwrap_err().to_string(), reason);
        }
        let mut nowhere = near();
        nowhere.attrs.public_ip = None;
        let subnet = "10.5.1.0/24".parse().unwrap();
        assert_eq!(backend.peer(&nowhere), Err(PeerRefusal::NoAddress(subnet)));
        let mut other = near();
        other.attrs.backend_type = "vxlan".to_owned();
        assert!(matches!(
            backend.peer(&other),
            Err(PeerRefusal::OtherBackend { .. })
        ));
    }

    #[test]
    fn a_node_behind_a_nat_is_told_so() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let mut underlay = underlay();
        if let Some(v4) = &mut underlay.v4 {
            v4.public = [203, 0, 113, 5].into();
        }
        let setup = Setup {
            config: &config,
            underlay: &underlay,
            state_dir: "/nonexistent".as_ref(),
            new_identity: false,
            printed: None,
        };
        assert_eq!(
            HostGwConfig.open(setup).unwrap_err().to_string(),
            "host-gw does not work behind a NAT: the public IP is 203.0.113.5, but the interface has 192.0.2.1"
        );
    }

    #[test]
    fn the_lease_has_no_data() {
        let config = r#"{"Network":"10.5.0.0/16"}"#;
        let underlay = Underlay {
            v6: None,
            ..underlay()
        };
        let backend = HostGwBackend::new(&NetworkConfig::parse(config).unwrap(), &underlay);
        assert_eq!(
            backend.lease_attrs().to_json().unwrap(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}"#
        );
    }
}
