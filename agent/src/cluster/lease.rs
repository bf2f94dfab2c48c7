//! Leases: which node owns which subnet of the overlay, and how its peers reach it.
//!
//! The keys and values are flannel's, byte for byte. What other nodes wrote is untrusted: parsing it gives either a
//! well-formed [`Lease`] or an error about that one lease only. Whether a well-formed lease may be used is decided by
//! [`crate::cluster::peers`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::base::go_json::{self, GoJsonError, Object};

pub mod allocate;
mod chosen;
pub mod etcd;
mod key;
pub mod kube;
pub mod remote;
pub mod rest;
mod store;
mod trouble;

pub use chosen::{ChosenStore, SettingsError};
pub use key::{LeaseKeyError, SubnetKey};
pub use store::{
    DEADLINE, Expiry, LeaseEvent, LeaseStore, NodeFault, Past, Prescribed, Released, StoreError,
    StoreEvent,
};
pub use trouble::{Fault, StoreErrorKind, StoreTrouble};

/// What a node publishes in its lease: the value of the lease key, in flannel's field order.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LeaseAttrs {
    /// Where peers send encapsulated packets; `None` without IPv4 on the underlay, written as `0.0.0.0` like flannel
    /// does.
    #[serde(rename = "PublicIP", serialize_with = "unspecified_if_none")]
    pub public_ip: Option<Ipv4Addr>,
    /// The same for an IPv6 underlay; `null` if absent, like flannel does.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// The backend's name, for example `vxlan`; empty for the udp and alloc backends.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// IPv4 backend data: what peers need to reach this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Box<RawValue>>,
    /// IPv6 backend data.
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Box<RawValue>>,
    /// The node's owner ID. Our own field: flannel skips unknown ones. The store fills it in.
    #[serde(rename = "SelvageOwner", skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// A lease value cannot be parsed.
#[derive(Debug, Error)]
pub enum LeaseValueError {
    /// The value is longer than any backend's data.
    #[error("the value has {length} bytes: expected at most {LONGEST_VALUE}")]
    TooLong {
        /// The value's length in bytes.
        length: usize,
    },
    /// The value is not JSON of the right shape.
    #[error(transparent)]
    Json(#[from] GoJsonError),
}

/// The longest lease value that is parsed, in bytes. flannel writes some 200; IPsec and extension data may have a few
/// thousand. etcd itself accepts 1.5 MiB, so 10,000 hostile leases could take 15 GiB of memory here.
pub(crate) const LONGEST_VALUE: usize = 64 * 1024;

/// What identifies a node to the peers of its backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdentityKind {
    /// A MAC address.
    Mac,
    /// A WireGuard key.
    Key,
}

impl fmt::Display for IdentityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mac => "MAC address",
            Self::Key => "key",
        })
    }
}

impl LeaseAttrs {
    /// Parses a lease value: field names in any letter case, unknown fields skipped, and values of old releases, which
    /// lack `PublicIPv6`. A missing `PublicIP`, which flannel reads as 0.0.0.0, is an error.
    pub fn parse(value: &[u8]) -> Result<Self, LeaseValueError> {
        if value.len() > LONGEST_VALUE {
            return Err(LeaseValueError::TooLong {
                length: value.len(),
            });
        }
        // Go's JSON decoder also replaces invalid UTF-8.
        let text = String::from_utf8_lossy(value);
        let object = Object::parse(&text)?;
        let data = |name| {
            let raw: Option<&RawValue> = object.raw(name).filter(|raw| raw.get() != "null");
            raw.map(|raw| RawValue::from_string(go_json::compact(raw.get())))
                .transpose()
                .map_err(GoJsonError::from)
        };
        Ok(Self {
            public_ip: Some(object.required("PublicIP", "an IPv4 address such as \"10.0.0.1\"")?)
                .filter(|address: &Ipv4Addr| !address.is_unspecified()),
            public_ipv6: object.get("PublicIPv6", "an IPv6 address such as \"fd00::1\" or null")?,
            backend_type: object
                .get("BackendType", "the name of a backend such as \"vxlan\"")?
                .unwrap_or_default(),
            backend_data: data("BackendData")?,
            backend_v6_data: data("BackendV6Data")?,
            owner: object.get("SelvageOwner", "a machine ID")?,
        })
    }

    /// The same attributes with this owner ID.
    pub fn owned_by(&self, owner: &str) -> Self {
        Self {
            owner: Some(owner.to_owned()),
            ..self.clone()
        }
    }

    /// Where peers send packets for a subnet of the same family.
    pub fn address_for(&self, subnet: IpNet) -> Option<IpAddr> {
        match subnet {
            IpNet::V4(_) => self.public_ip.map(IpAddr::V4),
            IpNet::V6(_) => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// Where peers send packets, one address per family.
    pub fn public_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.public_ip.map(IpAddr::V4);
        v4.into_iter().chain(self.public_ipv6.map(IpAddr::V6))
    }

    /// The address that names the node: the IPv4 one if there is one, else the IPv6 one.
    pub fn public_address(&self) -> IpAddr {
        match (self.public_ip, self.public_ipv6) {
            (None, Some(v6)) => IpAddr::V6(v6),
            (v4, _) => IpAddr::V4(v4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        }
    }

    /// Whether both belong to the same node, judged by address: the IPv4 addresses if both have one, else the IPv6
    /// ones. So a node keeps its identity when its network gains a family.
    pub fn same_address(&self, other: &Self) -> bool {
        match (self.public_ip, other.public_ip) {
            (Some(a), Some(b)) => a == b,
            _ => self.public_ipv6.is_some() && self.public_ipv6 == other.public_ipv6,
        }
    }

    /// The MAC addresses or keys that only this node should have, and which of the two each is. Empty for backends
    /// without either.
    pub fn identities(&self) -> Vec<(String, IdentityKind)> {
        let (name, kind) = match self.backend_type.as_str() {
            "vxlan" => ("VtepMAC", IdentityKind::Mac),
            "wireguard" => ("PublicKey", IdentityKind::Key),
            _ => return Vec::new(),
        };
        let read = |data: &RawValue| {
            let object = Object::parse(data.get()).ok()?;
            let text: String = object.get(name, "a string").ok()??;
            Some(match kind {
                IdentityKind::Mac => text.to_ascii_lowercase(),
                IdentityKind::Key => text,
            })
        };
        let data = [&self.backend_data, &self.backend_v6_data];
        data.into_iter()
            .flatten()
            .filter_map(|data| Some((read(data)?, kind)))
            .collect()
    }

    /// Whether both have a MAC address or key in common.
    pub fn shares_identity(&self, other: &Self) -> bool {
        let theirs = other.identities();
        self.backend_type == other.backend_type
            && self.identities().iter().any(|own| theirs.contains(own))
    }

    /// The value to write: the same bytes as flannel's for the same attributes.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(go_json::escape_as_go(&serde_json::to_string(self)?))
    }
}

fn unspecified_if_none<S: Serializer>(
    address: &Option<Ipv4Addr>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    address
        .unwrap_or(Ipv4Addr::UNSPECIFIED)
        .serialize(serializer)
}

impl PartialEq for LeaseAttrs {
    fn eq(&self, other: &Self) -> bool {
        /// Values written with `<` come back with `\u003c`; they are equal.
        fn same(one: &Option<Box<RawValue>>, other: &Option<Box<RawValue>>) -> bool {
            match (one.as_deref(), other.as_deref()) {
                (Some(one), Some(other)) => {
                    let (one, other) = (one.get(), other.get());
                    one == other || go_json::escape_as_go(one) == go_json::escape_as_go(other)
                }
                (one, other) => one.is_none() && other.is_none(),
            }
        }
        self.public_ip == other.public_ip
            && self.public_ipv6 == other.public_ipv6
            && self.backend_type == other.backend_type
            && same(&self.backend_data, &other.backend_data)
            && same(&self.backend_v6_data, &other.backend_v6_data)
            && self.owner == other.owner
    }
}

/// One node's lease.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// The leased subnets.
    pub key: SubnetKey,
    /// What its node published.
    pub attrs: LeaseAttrs,
    /// The store's revision at which the lease was created. If two leases claim one address, the lower (older) revision
    /// wins. Renewing and updating a lease do not change it.
    pub created: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(json: &str) -> Option<Box<RawValue>> {
        Some(RawValue::from_string(json.to_owned()).unwrap())
    }

    fn plain() -> LeaseAttrs {
        LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(1, 2, 3, 4)),
            public_ipv6: None,
            backend_type: String::new(),
            backend_data: None,
            backend_v6_data: None,
            owner: None,
        }
    }

    #[test]
    fn values_are_byte_identical_with_flannels() {
        let udp = plain();
        assert_eq!(
            udp.to_json().unwrap(),
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#
        );
        let vxlan = LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(192, 168, 64, 3)),
            backend_type: "vxlan".to_owned(),
            backend_data: raw(r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#),
            ..plain()
        };
        let text = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
        assert_eq!(vxlan.to_json().unwrap(), text);
        assert_eq!(LeaseAttrs::parse(text.as_bytes()).unwrap(), vxlan);
        let dual = LeaseAttrs {
            public_ipv6: Some("fd00::3".parse().unwrap()),
            backend_type: "extension".to_owned(),
            backend_v6_data: raw(r#"{"a":"<b>"}"#),
            owner: Some("5f1d".to_owned()),
            ..plain()
        };
        assert_eq!(
            dual.to_json().unwrap(),
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::3","BackendType":"extension","BackendV6Data":{"a":"\u003cb\u003e"},"SelvageOwner":"5f1d"}"#
        );
    }

    #[test]
    fn a_node_is_known_by_its_ipv4_address_or_else_by_the_other() {
        let node = |v4: &str, v6: &str| LeaseAttrs {
            public_ip: v4.parse().ok(),
            public_ipv6: v6.parse().ok(),
            ..plain()
        };
        let dual = node("10.0.0.1", "fd00::1");
        for (other, same) in [
            (node("10.0.0.1", ""), true),
            (node("10.0.0.1", "fd00::2"), true),
            (node("", "fd00::1"), true),
            (node("10.0.0.2", "fd00::1"), false),
            (node("", "fd00::2"), false),
            (node("", ""), false),
        ] {
            assert_eq!(dual.same_address(&other), same, "{other:?}");
        }
        assert!(!node("", "").same_address(&node("", "")));
    }

    #[test]
    fn old_and_foreign_values_are_read() {
        let old = LeaseAttrs::parse(
            br#"{"PublicIP":"10.0.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        );
        assert_eq!(old.unwrap().public_ip, Some(Ipv4Addr::new(10, 0, 0, 2)));
        let odd = LeaseAttrs::parse(
            b"{ \"publicip\" : \"10.0.0.2\", \"PUBLICIPV6\": \"fd00::2\", \"New\":{}, \"backenddata\": { \"VNI\" : 1 }, \"BackendV6Data\": null }",
        )
        .unwrap();
        assert_eq!(odd.public_ipv6, Some("fd00::2".parse().unwrap()));
        assert_eq!(odd.backend_data.unwrap().get(), r#"{"VNI":1}"#);
        assert!(odd.backend_v6_data.is_none());
    }

    #[test]
    fn unreadable_values_are_errors() {
        for value in [
            &b""[..],
            b"\xff\xfe",
            b"{}",
            b"null",
            br#"{"PublicIP":null}"#,
            br#"{"PublicIP":"10.0.0"}"#,
            br#"{"PublicIP":"fd00::1"}"#,
            br#"{"PublicIP":"10.0.0.1","PublicIPv6":"10.0.0.1"}"#,
            br#"{"PublicIP":"10.0.0.1","BackendType":7}"#,
        ] {
            let text = String::from_utf8_lossy(value);
            assert!(LeaseAttrs::parse(value).is_err(), "{text:?} was accepted");
        }
        let long = format!(
            r#"{{"PublicIP":"10.0.0.1","Junk":"{}"}}"#,
            "x".repeat(65536)
        );
        assert!(matches!(
            LeaseAttrs::parse(long.as_bytes()),
            Err(LeaseValueError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(value in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = LeaseAttrs::parse(&value);
        }

        #[test]
        fn values_read_back(ip: u32, v6 in prop::option::of(any::<u128>()), kind in "[a-z<&]{0,8}", owner in prop::option::of(".{0,8}")) {
            let data = format!("{{\"kind\":{}}}", serde_json::to_string(&kind).unwrap());
            let attrs = LeaseAttrs {
                backend_data: raw(&data),
                public_ip: (ip != 0).then(|| ip.into()),
                public_ipv6: v6.map(Ipv6Addr::from),
                backend_type: kind,
                owner,
                ..plain()
            };
            prop_assert_eq!(LeaseAttrs::parse(attrs.to_json().unwrap().as_bytes()).unwrap(), attrs);
        }
    }
}
