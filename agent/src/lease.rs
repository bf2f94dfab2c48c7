//! Leases: which node owns which subnet of the overlay, and how its peers reach it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;
use serde_json::value::RawValue;

/// What identifies a lease: the leased subnets, masked to their network addresses.
///
/// Ordered by IPv4 subnet, as flannel's keys sort.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SubnetKey {
    /// The IPv4 subnet, for example 10.5.34.0/24.
    pub v4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack lease.
    pub v6: Option<Ipv6Net>,
}

/// What a node publishes with its lease: the value of the lease key, in flannel's field order.
///
/// Reading takes any letter case of the field names and skips unknown fields, as Go's `encoding/json` does.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct LeaseAttrs {
    /// Where peers send encapsulated packets.
    #[serde(rename = "PublicIP")]
    pub public_ip: Ipv4Addr,
    /// The same for an IPv6 underlay; written as `null` when absent, as flannel does.
    #[serde(rename = "PublicIPv6")]
    pub public_ipv6: Option<Ipv6Addr>,
    /// The back end's name, for example `vxlan`; empty for the udp and alloc back ends.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend_type: String,
    /// What the back end's peers must know, for IPv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_data: Option<Box<RawValue>>,
    /// What the back end's peers must know, for IPv6.
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    pub backend_v6_data: Option<Box<RawValue>>,
    /// Which machine owns the lease; ours, unknown to flannel, which skips it.
    #[serde(rename = "SelvageOwner", skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// One node's lease.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The leased subnets.
    pub key: SubnetKey,
    /// What its owner published.
    pub attrs: LeaseAttrs,
    /// The store's version of this key: grows with every write; orders two claims to one address by age.
    pub created: u64,
}

/// What happened to the leases of the network. A reconnect always yields a [`LeaseEvent::Snapshot`], so a consumer
/// needs no resync logic of its own.
#[derive(Clone, Debug)]
pub enum LeaseEvent {
    /// All leases that exist now; whatever is not in it is gone.
    Snapshot(Vec<Lease>),
    /// What changed since the last event, each subnet at most once.
    Changes {
        /// New leases and those whose attributes changed.
        set: Vec<Lease>,
        /// Leases that ended.
        removed: Vec<SubnetKey>,
    },
}
