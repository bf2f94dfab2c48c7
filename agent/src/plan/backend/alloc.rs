//! The alloc backend: a lease and `subnet.env`, nothing else. Packets are routed by other means.
//!
//! | object | is |
//! |---|---|
//! | none | |
//!
//! Its leases have no backend type, like those of udp.

use ipnet::IpNet;

use super::table::{Definition, Options};
use super::{Backend, Opening, Setup, Unfit, attrs, same_kind};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Object, Scope, State};
use crate::plan::underlay::Underlay;

/// The name of this backend in network configs.
const KIND: &str = "alloc";

/// Its entry in the table.
pub(super) static BACKEND: Definition = Definition {
    leaves_routes: true,
    ..Definition::new(KIND, |_, _| Ok(Box::new(AllocConfig)))
};

/// The backend type in its leases.
const LEASE_TYPE: &str = "";

/// The alloc backend has no keys.
#[derive(PartialEq, Eq, Debug)]
struct AllocConfig;

impl Options for AllocConfig {
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        let backend = AllocBackend::new(setup.config, setup.underlay);
        Ok(Opening::ready(backend))
    }
}

/// The alloc backend of one node.
#[derive(Clone, Debug)]
pub(super) struct AllocBackend {
    networks: Vec<IpNet>,
    underlay: Underlay,
}

impl AllocBackend {
    pub(super) fn new(config: &NetworkConfig, underlay: &Underlay) -> Self {
        Self {
            networks: config.networks().collect(),
            underlay: underlay.clone(),
        }
    }
}

impl Backend for AllocBackend {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn mtu(&self) -> u32 {
        self.underlay.mtu
    }

    fn lease_attrs(&self) -> LeaseAttrs {
        attrs(LEASE_TYPE, &self.underlay)
    }

    fn over(&self, underlay: &Underlay) -> Box<dyn Backend> {
        Box::new(Self {
            underlay: underlay.clone(),
            ..self.clone()
        })
    }

    fn scope(&self) -> Scope {
        Scope {
            links: Vec::new(),
            networks: self.networks.clone(),
            shared: None,
            hooks: None,
            ipsec: false,
        }
    }

    fn own(&self, _: &SubnetKey) -> State {
        State::new()
    }

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, Object)>, PeerRefusal> {
        same_kind(&peer.attrs, LEASE_TYPE)?;
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    #[test]
    fn it_wants_nothing_from_the_kernel_and_publishes_no_type() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let underlay = Underlay {
            v6: None,
            ..underlay()
        };
        let backend = AllocBackend::new(&config, &underlay);
        let mut peer = lease(1, 1, 1);
        assert!(matches!(
            backend.peer(&peer),
            Err(PeerRefusal::OtherBackend { .. })
        ));
        peer.attrs.backend_type.clear();
        assert_eq!(backend.peer(&peer), Ok(Vec::new()));
        assert_eq!(backend.own(&peer.key), State::new());
        assert_eq!(backend.mtu(), 1500);
        assert_eq!(
            backend.lease_attrs().to_json().unwrap(),
            r#"{"PublicIP":"192.0.2.1","PublicIPv6":null}"#
        );
    }
}
