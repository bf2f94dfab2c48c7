//! The backends that have no encapsulation because the cloud provider itself routes: `aws-vpc`, `gce`, and others.
//!
//! | object | is | as flannel, except |
//! |---|---|---|
//! | route of the provider | own subnet to this instance | kept, not only made at the start |
//!
//! Nothing is programmed for a peer: its packets take the default route, and the provider delivers them. The provider's
//! route is no kernel object; [`Backend::cloud`] says what is wanted, and `cloud::worker` keeps it.
//!
//! Their leases have no backend type, like those of alloc, as in flannel. The MTU is the underlay's. Only IPv4.

use ipnet::IpNet;

use super::table::{Definition, Options};
use super::{Backend, BackendConfigError, Opening, Setup, Unfit, attrs, needs_ipv4, same_kind};
use crate::base::go_json::{GoJsonError, Object};
use crate::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use crate::cluster::network_config::NetworkConfig;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::state::{Key, Object as KernelObject, Scope, State};
use crate::plan::underlay::Underlay;
use crate::settings::Secret;

/// Amazon VPC.
pub(super) static AWS: Definition = cloud("aws-vpc", |options, network| {
    parse(options, network, "aws-vpc", |options| {
        Ok(CloudConfig {
            tables: tables(options, "RouteTableID")?,
            ..CloudConfig::default()
        })
    })
});

/// Azure. Not one of flannel's.
pub(super) static AZURE: Definition = cloud("azure-vnet", |options, network| {
    parse(options, network, "azure-vnet", |options| {
        Ok(CloudConfig {
            tables: tables(options, "RouteTableID")?,
            ..CloudConfig::default()
        })
    })
});

/// Google Compute Engine.
pub(super) static GCE: Definition = cloud("gce", |options, network| {
    parse(options, network, "gce", |_| Ok(CloudConfig::default()))
});

/// Aliyun.
pub(super) static ALI: Definition = cloud("ali-vpc", |options, network| {
    parse(options, network, "ali-vpc", keyed)
});

/// OpenStack's Neutron. Not one of flannel's.
pub(super) static OPENSTACK: Definition = cloud("openstack", |options, network| {
    parse(options, network, "openstack", |options| {
        Ok(CloudConfig {
            tables: tables(options, "RouterID")?,
            ..CloudConfig::default()
        })
    })
});

/// Tencent Cloud.
pub(super) static TENCENT: Definition = cloud("tencent-vpc", |options, network| {
    parse(options, network, "tencent-vpc", keyed)
});

/// The file in the state directory that records what the provider was seen to have.
pub(crate) const MEMORY: &str = "cloud-routes.json";

/// The backend type in their leases.
const LEASE_TYPE: &str = "";

/// A backend whose peers are reached by the provider's routes.
const fn cloud(kind: &'static str, parse: super::table::Parse) -> Definition {
    Definition {
        leaves_routes: true,
        side_by_side: true,
        memory: Some(MEMORY),
        ..Definition::new(kind, parse)
    }
}

/// What the network config says about the provider; the keys are flannel's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CloudConfig {
    /// The route tables, by the provider's IDs; empty for the one that this instance's subnet uses.
    pub tables: Vec<String>,
    /// An access key and its secret, where the config may have them.
    pub access_key: Option<(String, Secret)>,
}

/// The keys of one backend.
#[derive(PartialEq, Eq, Debug)]
struct CloudOptions {
    kind: &'static str,
    config: CloudConfig,
}

/// Reads a provider's keys.
fn parse(
    options: &Object<'_>,
    network: &NetworkConfig,
    kind: &'static str,
    read: fn(&Object<'_>) -> Result<CloudConfig, GoJsonError>,
) -> Result<Box<dyn Options>, BackendConfigError> {
    needs_ipv4(kind, network)?;
    let config = read(options)?;
    Ok(Box::new(CloudOptions { kind, config }))
}

/// The keys of `ali-vpc` and `tencent-vpc`. As in flannel, half an access key is none. The route tables are not flannel's.
fn keyed(options: &Object<'_>) -> Result<CloudConfig, GoJsonError> {
    let text = |key| {
        options
            .get::<String>(key, "a text")
            .map(|text| text.filter(|text| !text.is_empty()))
    };
    let id = text("AccessKeyID")?;
    // Not even a part of it belongs into a message.
    let secret = text("AccessKeySecret").map_err(|error| match error {
        GoJsonError::Field { name, expected, .. } => GoJsonError::Field {
            name,
            value: "(redacted)".to_owned(),
            expected,
        },
        error => error,
    })?;
    Ok(CloudConfig {
        tables: tables(options, "RouteTableID")?,
        access_key: id.zip(secret.map(Secret::new)),
    })
}

/// One ID, or a list of them. Empty ones are left out, as an absent one.
fn tables(options: &Object<'_>, key: &'static str) -> Result<Vec<String>, GoJsonError> {
    const EXPECTED: &str = "an ID, or a list of IDs";
    let one: Result<Option<String>, _> = options.get(key, EXPECTED);
    let mut tables: Vec<String> = match one {
        Ok(one) => one.into_iter().collect(),
        Err(_) => options.get(key, EXPECTED)?.unwrap_or_default(),
    };
    tables.retain(|table| !table.is_empty());
    tables.dedup();
    Ok(tables)
}

impl Options for CloudOptions {
    fn open(&self, setup: Setup<'_>) -> Result<Opening, Unfit> {
        Ok(Opening::ready(CloudBackend {
            kind: self.kind,
            config: self.config.clone(),
            networks: (setup.config.networks())
                .filter(|network| matches!(network, IpNet::V4(_)))
                .collect(),
            underlay: setup.underlay.clone(),
        }))
    }
}

/// A cloud's backend of one node.
#[derive(Clone, Debug)]
struct CloudBackend {
    kind: &'static str,
    config: CloudConfig,
    networks: Vec<IpNet>,
    underlay: Underlay,
}

impl Backend for CloudBackend {
    fn kind(&self) -> &'static str {
        self.kind
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

    fn cloud(&self) -> Option<&CloudConfig> {
        Some(&self.config)
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

    fn peer(&self, peer: &Lease) -> Result<Vec<(Key, KernelObject)>, PeerRefusal> {
        same_kind(&peer.attrs, LEASE_TYPE)?;
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::backend::BackendConfig;
    use crate::plan::backend::vxlan::tests::{lease, underlay};

    fn open(config: &str) -> Box<dyn Backend> {
        let config = NetworkConfig::parse(config).unwrap();
        let underlay = underlay();
        let setup = Setup {
            config: &config,
            underlay: &underlay,
            state_dir: "/nonexistent".as_ref(),
            new_identity: false,
            printed: None,
        };
        match BackendConfig::parse(&config).unwrap().open(setup).unwrap() {
            Opening::Ready(backend) => backend,
            other => panic!("{other:?}"),
        }
    }

    fn tables_of(backend: &str) -> Result<Vec<String>, String> {
        let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
        let config = NetworkConfig::parse(&config).unwrap();
        match BackendConfig::parse(&config) {
            Ok(_) => Ok(open(&format!(
                r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#
            ))
            .cloud()
            .unwrap()
            .tables
            .clone()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The forms are those of flannel's `Documentation/aws-vpc-backend.md`.
    #[test]
    fn route_tables_are_one_a_list_or_found_later() {
        let owned = |ids: &[&str]| Ok(ids.iter().map(|id| (*id).to_owned()).collect());
        for (key, tables) in [
            ("", owned(&[])),
            (r#","RouteTableID":"""#, owned(&[])),
            (r#","RouteTableID":null"#, owned(&[])),
            (
                r#","RouteTableID":"rtb-abc00001""#,
                owned(&["rtb-abc00001"]),
            ),
            (
                r#","RouteTableID":["rtb-abc00001","rtb-abc00002","rtb-abc00003"]"#,
                owned(&["rtb-abc00001", "rtb-abc00002", "rtb-abc00003"]),
            ),
        ] {
            for kind in ["ali-vpc", "aws-vpc", "azure-vnet", "tencent-vpc"] {
                let backend = format!(r#"{{"Type":"{kind}"{key}}}"#);
                assert_eq!(tables_of(&backend), tables);
            }
            let key = key.replace("RouteTableID", "RouterID");
            assert_eq!(
                tables_of(&format!(r#"{{"Type":"openstack"{key}}}"#)),
                tables
            );
        }
        for wrong in ["7", r#"{"a":1}"#, r#"["rtb-1",2]"#] {
            let backend = format!(r#"{{"Type":"aws-vpc","RouteTableID":{wrong}}}"#);
            let error = tables_of(&backend).unwrap_err();
            assert!(error.contains("RouteTableID"), "{error}");
        }
    }

    /// The form is that of flannel's `Documentation/alivpc-backend.md` and `tencentcloud-vpc-backend.md`.
    #[test]
    fn access_keys_are_whole_or_none_and_never_shown() {
        let key = |backend: &str| {
            let config = format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#);
            let backend = open(&config);
            assert!(!format!("{backend:?}").contains("YOUR_ACCESS_KEY_SECRET"));
            let key = backend.cloud().unwrap().access_key.clone();
            key.map(|(id, secret)| format!("{id} {}", secret.expose()))
        };
        for kind in ["ali-vpc", "tencent-vpc"] {
            let whole = format!(
                r#"{{"Type":"{kind}","AccessKeyID":"YOUR_ACCESS_KEY_ID","AccessKeySecret":"YOUR_ACCESS_KEY_SECRET"}}"#
            );
            assert_eq!(
                key(&whole).as_deref(),
                Some("YOUR_ACCESS_KEY_ID YOUR_ACCESS_KEY_SECRET")
            );
            for none in [
                "",
                r#","AccessKeyID":"a""#,
                r#","AccessKeyID":"a","AccessKeySecret":"""#,
            ] {
                assert_eq!(key(&format!(r#"{{"Type":"{kind}"{none}}}"#)), None);
            }
            let wrong = format!(r#"{{"Type":"{kind}","AccessKeySecret":["secret-part"]}}"#);
            let error = tables_of(&wrong).unwrap_err();
            assert!(error.contains("AccessKeySecret"), "{error}");
            assert!(!error.contains("secret-part"), "{error}");
        }
    }

    #[test]
    fn peers_need_nothing_from_the_kernel_and_leases_have_no_type() {
        for kind in [
            "ali-vpc",
            "aws-vpc",
            "azure-vnet",
            "gce",
            "openstack",
            "tencent-vpc",
        ] {
            let backend = open(&format!(
                r#"{{"Network":"10.5.0.0/16","Backend":{{"Type":"{kind}"}}}}"#
            ));
            let mut peer = lease(1, 1, 1);
            assert!(matches!(
                backend.peer(&peer),
                Err(PeerRefusal::OtherBackend { .. })
            ));
            peer.attrs.backend_type.clear();
            assert_eq!(backend.peer(&peer), Ok(Vec::new()));
            assert_eq!(backend.own(&peer.key), State::new());
            assert_eq!((backend.kind(), backend.mtu()), (kind, 1500));
            assert_eq!(backend.lease_attrs().backend_type, "");
        }
    }

    #[test]
    fn a_network_without_ipv4_is_refused() {
        let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{"Type":"gce"}}"#;
        let config = NetworkConfig::parse(config).unwrap();
        let error = BackendConfig::parse(&config).unwrap_err();
        assert!(error.to_string().contains("gce"), "{error}");
    }
}
