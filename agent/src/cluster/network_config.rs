//! The network config: one JSON text for the whole cluster, written by the administrator, in flannel's schema.
//!
//! Every rule and default of flannel's `CheckNetworkConfig` applies, plus one: `SubnetMin` above `SubnetMax` is refused
//! here, while flannel only fails later with "out of subnets".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::base::go_json::{GoJsonError, Object, compact};
use crate::base::net::Family;

mod range;

pub use range::RangeError;
use range::{IPV4, IPV6, Wanted};

/// The name of the VXLAN backend. An encrypted network uses [`WIREGUARD`] instead.
pub(crate) const VXLAN: &str = "vxlan";

/// The name of the backend that encrypts.
pub(crate) const WIREGUARD: &str = "wireguard";

/// A validated network config with all defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkConfig {
    /// The IPv4 overlay network and the subnets that nodes may lease in it; `None` exactly if `EnableIPv4` is false.
    pub ipv4: Option<Range<Ipv4Net, Ipv4Addr>>,
    /// The same for IPv6; `Some` exactly if `EnableIPv6` is true. There is at least one of the two.
    pub ipv6: Option<Range<Ipv6Net, Ipv6Addr>>,
    /// Whether `firewall.mode = auto` selects nftables.
    pub enable_nftables: bool,
    /// Whether packets between nodes must be encrypted. Our own field, flannel skips it. The backend is then wireguard.
    pub encrypt: bool,
    /// The backend and its options.
    pub backend: BackendSpec,
}

/// The families of an overlay, at least one, each with its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    /// The IPv4 overlay network.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 overlay network.
    pub v6: Option<Ipv6Net>,
}

impl Families {
    /// The families, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        let v4 = self.v4.map(|_| Family::V4);
        v4.into_iter().chain(self.v6.map(|_| Family::V6))
    }

    /// Whether an address is in the overlay.
    pub fn contain(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.is_some_and(|network| network.contains(&v4)),
            IpAddr::V6(v6) => self.v6.is_some_and(|network| network.contains(&v6)),
        }
    }
}

/// The overlay network of one family and its subnets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range<N, A> {
    /// The whole overlay network.
    pub network: N,
    /// Prefix length of a node's subnet.
    pub subnet_len: u8,
    /// Address of the first subnet to lease.
    pub min: A,
    /// Address of the last subnet to lease.
    pub max: A,
}

/// A [`Range`] of either family.
pub type AnyRange = Range<IpNet, IpAddr>;

/// The `Backend` object.
#[derive(Clone, Debug)]
pub struct BackendSpec {
    /// The backend's name in lower case. Without a `Backend` object it is `udp`, as in flannel's code (its
    /// documentation says vxlan). With `Encrypt`, vxlan and a missing `Backend` become `wireguard`.
    pub kind: String,
    /// The whole object, for the backend to parse; `{}` without one.
    pub options: Box<RawValue>,
}

impl PartialEq for BackendSpec {
    fn eq(&self, other: &Self) -> bool {
        (&self.kind, self.options.get()) == (&other.kind, other.options.get())
    }
}

impl Eq for BackendSpec {}

/// The text is not a usable network config.
#[derive(Debug, Error)]
pub enum NetworkConfigError {
    /// The text is not JSON of the right shape.
    #[error(transparent)]
    Json(#[from] GoJsonError),
    /// The address range is invalid.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Both families are disabled.
    #[error("EnableIPv4: false and EnableIPv6: false leave no network; set one of them to true")]
    WithoutFamily,
    /// The `Backend` object has no `Type`.
    #[error("Backend: {0} has no Type; allowed: the name of a backend, for example \"vxlan\"")]
    WithoutBackendType(String),
    /// The configured backend does not encrypt.
    #[error(
        "Encrypt: true is not possible with the backend {0:?}; allowed: \"wireguard\", \"vxlan\" (replaced by wireguard), or no Backend"
    )]
    NotEncrypted(String),
}

/// What errors call a valid address range.
const CIDR_V4: &str = "an IPv4 network such as \"10.5.0.0/16\"";
const CIDR_V6: &str = "an IPv6 network such as \"fd00:10:5::/48\"";
const ADDRESS_V4: &str = "an IPv4 address such as \"10.5.1.0\"";
const ADDRESS_V6: &str = "an IPv6 address such as \"fd00:10:5:1::\"";
const BOOLEAN: &str = "true or false";
const LENGTH_V4: &str = "a whole number from 0 (computed) to 30";
const LENGTH_V6: &str = "a whole number from 0 (computed) to 126";

impl NetworkConfig {
    /// The overlay networks, IPv4 first.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.ranges().map(|range| range.network)
    }

    /// The overlay networks with their subnets, IPv4 first.
    pub fn ranges(&self) -> impl Iterator<Item = AnyRange> + use<> {
        let v4 = self.ipv4.map(Range::any);
        v4.into_iter().chain(self.ipv6.map(Range::any))
    }

    /// How many nodes can have a lease: the number of subnets in the smaller family.
    pub fn subnets(&self) -> u64 {
        let subnets = self.ranges().map(|range| range.subnets());
        subnets.min().unwrap_or(0)
    }

    /// The families of the overlay.
    pub fn families(&self) -> Families {
        Families {
            v4: self.ipv4.map(|range| range.network),
            v6: self.ipv6.map(|range| range.network),
        }
    }

    /// Parses and validates the config like flannel, and fills in the defaults.
    pub fn parse(text: &str) -> Result<Self, NetworkConfigError> {
        let object = Object::parse(text)?;
        let ipv4 = match object.get("EnableIPv4", BOOLEAN)? {
            Some(true) | None => Some(parse_ipv4(&object)?),
            Some(false) => None,
        };
        let ipv6 = match object.get("EnableIPv6", BOOLEAN)? {
            Some(true) => Some(parse_ipv6(&object)?),
            Some(false) | None => None,
        };
        if ipv4.is_none() && ipv6.is_none() {
            return Err(NetworkConfigError::WithoutFamily);
        }
        let encrypt = object.get("Encrypt", BOOLEAN)?.unwrap_or(false);
        let backend = BackendSpec::parse(&object)?;
        Ok(Self {
            ipv4,
            ipv6,
            enable_nftables: object.get("EnableNFTables", BOOLEAN)?.unwrap_or(false),
            encrypt,
            backend: match encrypt {
                true => backend.encrypted(object.raw("Backend").is_some())?,
                false => backend,
            },
        })
    }

    /// The same config where somebody else hands out the subnets: in Kubernetes a node has its podCIDR, and `SubnetLen`,
    /// `SubnetMin` and `SubnetMax` count for nothing. Any subnet inside the network is allowed that is as long as the
    /// node's own of its family.
    pub fn assigned(mut self, own_v4: Option<Ipv4Net>, own_v6: Option<Ipv6Net>) -> Self {
        if let (Some(range), Some(own)) = (&mut self.ipv4, own_v4) {
            range.subnet_len = own.prefix_len();
            range.min = range.network.network();
            range.max = Ipv4Net::new_assert(range.network.broadcast(), own.prefix_len()).network();
        }
        if let (Some(range), Some(own)) = (&mut self.ipv6, own_v6) {
            range.subnet_len = own.prefix_len();
            range.min = range.network.network();
            range.max = Ipv6Net::new_assert(range.network.broadcast(), own.prefix_len()).network();
        }
        self
    }

    /// The config as JSON in flannel's spelling and order, with the computed defaults.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Full<'a> {
            #[serde(rename = "EnableIPv4")]
            enable_ipv4: bool,
            #[serde(rename = "EnableIPv6")]
            enable_ipv6: bool,
            #[serde(rename = "EnableNFTables")]
            enable_nftables: bool,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            encrypt: bool,
            #[serde(skip_serializing_if = "Option::is_none")]
            network: Option<Ipv4Net>,
            #[serde(rename = "IPv6Network", skip_serializing_if = "Option::is_none")]
            ipv6_network: Option<Ipv6Net>,
            #[serde(skip_serializing_if = "Option::is_none")]
            subnet_min: Option<Ipv4Addr>,
            #[serde(skip_serializing_if = "Option::is_none")]
            subnet_max: Option<Ipv4Addr>,
            #[serde(rename = "IPv6SubnetMin", skip_serializing_if = "Option::is_none")]
            ipv6_subnet_min: Option<Ipv6Addr>,
            #[serde(rename = "IPv6SubnetMax", skip_serializing_if = "Option::is_none")]
            ipv6_subnet_max: Option<Ipv6Addr>,
            #[serde(skip_serializing_if = "Option::is_none")]
            subnet_len: Option<u8>,
            #[serde(rename = "IPv6SubnetLen", skip_serializing_if = "Option::is_none")]
            ipv6_subnet_len: Option<u8>,
            backend: &'a RawValue,
        }
        let default_backend;
        let backend = if Object::parse(self.backend.options.get())
            .is_ok_and(|object| object.raw("Type").is_some())
        {
            &*self.backend.options
        } else {
            default_backend =
                serde_json::value::to_raw_value(&serde_json::json!({ "Type": self.backend.kind }))?;
            &*default_backend
        };
        serde_json::to_string(&Full {
            enable_ipv4: self.ipv4.is_some(),
            enable_ipv6: self.ipv6.is_some(),
            enable_nftables: self.enable_nftables,
            encrypt: self.encrypt,
            network: self.ipv4.map(|r| r.network),
            ipv6_network: self.ipv6.map(|r| r.network),
            subnet_min: self.ipv4.map(|r| r.min),
            subnet_max: self.ipv4.map(|r| r.max),
            ipv6_subnet_min: self.ipv6.map(|r| r.min),
            ipv6_subnet_max: self.ipv6.map(|r| r.max),
            subnet_len: self.ipv4.map(|r| r.subnet_len),
            ipv6_subnet_len: self.ipv6.map(|r| r.subnet_len),
            backend,
        })
    }
}

impl<N: Into<IpNet>, A: Into<IpAddr>> Range<N, A> {
    fn any(self) -> AnyRange {
        Range {
            network: self.network.into(),
            subnet_len: self.subnet_len,
            min: self.min.into(),
            max: self.max.into(),
        }
    }
}

impl AnyRange {
    /// The number of subnets that can be leased.
    fn subnets(&self) -> u64 {
        let between = number(self.max).saturating_sub(number(self.min));
        let subnets = between >> (self.network.max_prefix_len() - self.subnet_len);
        u64::try_from(subnets).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Whether a node may hold `subnet` under this config: the right length, and between the first and the last subnet.
    pub fn allows(&self, subnet: IpNet) -> bool {
        subnet.prefix_len() == self.subnet_len && (self.min..=self.max).contains(&subnet.network())
    }
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl BackendSpec {
    fn parse(config: &Object<'_>) -> Result<Self, NetworkConfigError> {
        let Some(options) = config.raw("Backend") else {
            return Ok(Self {
                kind: "udp".to_owned(),
                options: RawValue::from_string("{}".to_owned()).map_err(GoJsonError::from)?,
            });
        };
        let kind: String = Object::parse(options.get())?
            .get("Type", "the name of a backend, for example \"vxlan\"")?
            .unwrap_or_default();
        if kind.is_empty() {
            return Err(NetworkConfigError::WithoutBackendType(
                crate::base::go_json::shorten(options.get()),
            ));
        }
        Ok(Self {
            kind: kind.to_lowercase(),
            options: RawValue::from_string(compact(options.get())).map_err(GoJsonError::from)?,
        })
    }

    /// The encrypted replacement of a backend that was `named` in the config, or else is only the default.
    fn encrypted(self, named: bool) -> Result<Self, NetworkConfigError> {
        match self.kind.as_str() {
            VXLAN | WIREGUARD => {}
            _ if !named => {}
            _ => return Err(NetworkConfigError::NotEncrypted(self.kind)),
        }
        Ok(Self {
            kind: WIREGUARD.to_owned(),
            ..self
        })
    }
}

fn parse_ipv4(object: &Object<'_>) -> Result<Range<Ipv4Net, Ipv4Addr>, NetworkConfigError> {
    let network: Option<Ipv4Net> = object.get_not_null("Network", CIDR_V4)?;
    let min: Option<Ipv4Addr> = object.get_not_null("SubnetMin", ADDRESS_V4)?;
    let max: Option<Ipv4Addr> = object.get_not_null("SubnetMax", ADDRESS_V4)?;
    let range = IPV4.range(&Wanted {
        network: network.map(|n| (u32::from(n.network()).into(), n.prefix_len())),
        subnet_len: object.get("SubnetLen", LENGTH_V4)?.unwrap_or(0),
        min: min.map_or(0, |a| u32::from(a).into()),
        max: max.map_or(0, |a| u32::from(a).into()),
    })?;
    let network = network.ok_or(RangeError::NoNetwork { key: "Network" })?;
    Ok(Range {
        network: network.trunc(),
        subnet_len: range.subnet_len,
        min: range::to_ipv4(range.min),
        max: range::to_ipv4(range.max),
    })
}

fn parse_ipv6(object: &Object<'_>) -> Result<Range<Ipv6Net, Ipv6Addr>, NetworkConfigError> {
    let network: Option<Ipv6Net> = object.get_not_null("IPv6Network", CIDR_V6)?;
    let min: Option<Ipv6Addr> = object.get("IPv6SubnetMin", ADDRESS_V6)?;
    let max: Option<Ipv6Addr> = object.get("IPv6SubnetMax", ADDRESS_V6)?;
    let range = IPV6.range(&Wanted {
        network: network.map(|n| (n.network().into(), n.prefix_len())),
        subnet_len: object.get("IPv6SubnetLen", LENGTH_V6)?.unwrap_or(0),
        min: min.map_or(0, u128::from),
        max: max.map_or(0, u128::from),
    })?;
    let network = network.ok_or(RangeError::NoNetwork { key: "IPv6Network" })?;
    Ok(Range {
        network: network.trunc(),
        subnet_len: range.subnet_len,
        min: range.min.into(),
        max: range.max.into(),
    })
}

#[cfg(test)]
mod tests;
