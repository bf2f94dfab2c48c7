//! What a cluster description's `[network]` table must satisfy before it is worth rendering.

use ipnet::Ipv4Net;
use serde_json::Value;
use thiserror::Error;

/// Why the network config is unusable.
#[derive(Debug, Error)]
pub enum NetworkFault {
    /// Without a network config no node can lease a subnet.
    #[error(
        "the [network] table is missing; at the least it has Network = \"10.5.0.0/16\" (any free range)"
    )]
    Missing,
    /// Lease keys in etcd begin with an IPv4 subnet.
    #[error("EnableIPv4 = false is not possible: the keys of leases begin with an IPv4 subnet")]
    WithoutIpv4,
    /// flannel's `Network` key is absent.
    #[error(
        "the key Network is missing: give the overlay's range, for example Network = \"10.5.0.0/16\""
    )]
    NoNetwork,
    /// `Network` is not an IPv4 range.
    #[error("{0} is not an IPv4 range: expected, for example, \"10.5.0.0/16\"")]
    NotARange(String),
    /// flannel needs room for four subnets of two bits.
    #[error("{0} is too small: flannel needs a prefix length of at most 28")]
    TooSmall(Ipv4Net),
}

/// Checks the network config and returns the overlay's IPv4 range.
pub(super) fn overlay(network: &Value) -> Result<Ipv4Net, NetworkFault> {
    let Value::Object(table) = network else {
        return Err(NetworkFault::Missing);
    };
    // flannel reads JSON with Go's encoding/json, which ignores the case of keys.
    let get = |name: &str| {
        let mut named = table
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value)
    };
    if get("EnableIPv4") == Some(&Value::Bool(false)) {
        return Err(NetworkFault::WithoutIpv4);
    }
    let range = get("Network").ok_or(NetworkFault::NoNetwork)?;
    let range: Ipv4Net = range
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| NetworkFault::NotARange(range.to_string()))?;
    if range.prefix_len() > 28 {
        return Err(NetworkFault::TooSmall(range));
    }
    Ok(range.trunc())
}
