//! The rules of a cluster description that types cannot express.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

use super::agent_settings::{self, SettingFault};
use super::cluster::{Cluster, Node};
use super::kubernetes::{self, KubernetesFault};
use super::locate::{Index, Position, join_index};
use super::network::{self, NetworkFault};
use super::ssh_key::{self, SshKeyError};
use crate::base::net::{MacAddr, unusable_v4};

/// A rule that a description breaks.
#[derive(Debug, Error)]
pub enum Fault {
    /// A cluster name is an RFC 1123 label.
    #[error(
        "{0:?} is not a cluster name: expected 1 to 63 lower-case letters, digits or inner '-'"
    )]
    ClusterName(String),
    /// A line of `ssh-authorized-keys` is not a key.
    #[error(transparent)]
    SshKey(#[from] SshKeyError),
    /// No `[[node]]`.
    #[error("a cluster needs at least one [[node]]")]
    NoNodes,
    /// A node's name is not a host name.
    #[error(
        "{0:?} is not a host name: expected at most 64 lower-case letters, digits, '-' and '.', each label beginning \
         and ending with a letter or digit (RFC 1123)"
    )]
    HostName(String),
    /// Another node or list entry has the same value.
    #[error("{value} is already used by {first}")]
    Duplicate {
        /// The value.
        value: String,
        /// The path of the field that had it first.
        first: String,
    },
    /// Not a usable host address.
    #[error(
        "{0} is not a host's address: expected a unicast address inside its prefix, with a prefix length of 1 to 31"
    )]
    HostAddress(Ipv4Net),
    /// All underlay addresses share one prefix.
    #[error("{address} is not on the underlay of the first node, {underlay}")]
    OtherUnderlay {
        /// The address.
        address: Ipv4Net,
        /// The first node's prefix.
        underlay: Ipv4Net,
    },
    /// A group address or all zeroes.
    #[error(
        "{0} is not the MAC address of a NIC: its first octet must be even, and it must not be all zeros"
    )]
    GroupMac(MacAddr),
    /// The gateway is not on-link.
    #[error("{gateway} is not another host on the underlay {underlay}")]
    Gateway {
        /// The gateway.
        gateway: Ipv4Addr,
        /// The node's prefix.
        underlay: Ipv4Net,
    },
    /// Not a usable address of a name server.
    #[error("{0} is not a name server's address")]
    NameServer(IpAddr),
    /// Neither or both of `etcd.members` and `etcd.endpoints`.
    #[error("give either members (nodes that run etcd) or endpoints (URLs of an external etcd)")]
    EtcdPlace,
    /// A member that is not a node.
    #[error("no [[node]] has the name {0:?}")]
    UnknownMember(String),
    /// Not the URL of an etcd endpoint.
    #[error("{0:?} is not an etcd endpoint: expected http://HOST:PORT or https://HOST:PORT")]
    Endpoint(String),
    /// The `[network]` table is unusable.
    #[error(transparent)]
    Network(#[from] NetworkFault),
    /// The overlay would hide an address that the nodes need.
    #[error(
        "the overlay network {overlay} overlaps {other}, which nodes must reach outside the overlay"
    )]
    Overlap {
        /// The overlay's range.
        overlay: IpNet,
        /// The underlay prefix or the name server.
        other: IpNet,
    },
    /// The `[kubernetes]` table is unusable, or another table has no effect beside it.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesFault),
    /// An `[agent]` setting is invalid.
    #[error(transparent)]
    Setting(#[from] SettingFault),
}

/// A fault and the field it is in.
#[derive(Debug)]
pub struct LocatedFault {
    /// The field's position; unknown for a description that was not parsed from a text.
    pub position: Option<Position>,
    /// The field, for example `node[1].address`.
    pub path: String,
    /// The problem.
    pub fault: Fault,
}

/// All problems of a description, in the order of the text; one line each when displayed.
#[derive(Debug)]
pub struct Faults(pub Vec<LocatedFault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, located) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            if let Some(position) = located.position {
                write!(f, "{position}: ")?;
            }
            write!(f, "{}: {}", located.path, located.fault)?;
        }
        Ok(())
    }
}

impl Faults {
    fn add(&mut self, path: impl Into<String>, fault: impl Into<Fault>) {
        self.0.push(LocatedFault {
            position: None,
            path: path.into(),
            fault: fault.into(),
        });
    }

    /// Adds the positions and sorts the faults by position.
    pub(super) fn locate(&mut self, index: &Index<'_>) {
        for located in &mut self.0 {
            located.position = Some(index.position_of(&located.path));
        }
        self.0.sort_by_key(|located| located.position);
    }
}

/// Checks every rule and reports all violations.
pub(super) fn check(cluster: &Cluster) -> Result<(), Faults> {
    let mut faults = Faults(Vec::new());
    check_identity(cluster, &mut faults);
    check_nodes(&cluster.nodes, &mut faults);
    if let Some(kubernetes) = &cluster.kubernetes {
        for (path, fault) in kubernetes::check(kubernetes, cluster) {
            faults.add(path, fault);
        }
    } else {
        check_etcd(cluster, &mut faults);
        check_network(cluster, &mut faults);
    }
    for (path, fault) in agent_settings::check(&cluster.agent) {
        faults.add(path, fault);
    }
    if faults.0.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

fn check_identity(cluster: &Cluster, faults: &mut Faults) {
    let name = &cluster.cluster.name;
    if !is_label(name) {
        faults.add("cluster.name", Fault::ClusterName(name.clone()));
    }
    for (i, key) in cluster.cluster.ssh_authorized_keys.iter().enumerate() {
        if let Err(error) = ssh_key::check(key) {
            faults.add(join_index("cluster.ssh-authorized-keys", i), error);
        }
    }
    check_unique(
        &cluster.cluster.ssh_authorized_keys,
        |i| join_index("cluster.ssh-authorized-keys", i),
        |_| "this key".to_owned(),
        faults,
    );
}

fn check_nodes(nodes: &[Node], faults: &mut Faults) {
    let Some(first) = nodes.first() else {
        faults.add("node", Fault::NoNodes);
        return;
    };
    let underlay = first.address.trunc();
    for (i, node) in nodes.iter().enumerate() {
        let field = |name| format!("node[{i}].{name}");
        if !is_host_name(&node.name) {
            faults.add(field("name"), Fault::HostName(node.name.clone()));
        }
        if !is_host_address(node.address) {
            faults.add(field("address"), Fault::HostAddress(node.address));
        } else if node.address.trunc() != underlay {
            let address = node.address;
            faults.add(field("address"), Fault::OtherUnderlay { address, underlay });
        }
        if !node.mac.is_unicast() {
            faults.add(field("mac"), Fault::GroupMac(node.mac));
        }
        if let Some(gateway) = node.gateway {
            let underlay = node.address.trunc();
            let as_host = Ipv4Net::new(gateway, underlay.prefix_len());
            let is_host = as_host.is_ok_and(is_host_address) && underlay.contains(&gateway);
            if !is_host || gateway == node.address.addr() {
                faults.add(field("gateway"), Fault::Gateway { gateway, underlay });
            }
        }
        for (j, &server) in node.dns.iter().enumerate() {
            if server.is_unspecified() || server.is_multicast() {
                faults.add(join_index(&field("dns"), j), Fault::NameServer(server));
            }
        }
    }
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let addresses: Vec<Ipv4Addr> = nodes.iter().map(|node| node.address.addr()).collect();
    let macs: Vec<MacAddr> = nodes.iter().map(|node| node.mac).collect();
    check_unique(
        &names,
        |i| format!("node[{i}].name"),
        |name| format!("{name:?}"),
        faults,
    );
    check_unique(
        &addresses,
        |i| format!("node[{i}].address"),
        ToString::to_string,
        faults,
    );
    check_unique(
        &macs,
        |i| format!("node[{i}].mac"),
        ToString::to_string,
        faults,
    );
}

fn check_etcd(cluster: &Cluster, faults: &mut Faults) {
    let etcd = &cluster.etcd;
    if etcd.members.is_empty() == etcd.endpoints.is_empty() {
        faults.add("etcd", Fault::EtcdPlace);
    }
    for (i, member) in etcd.members.iter().enumerate() {
        if !cluster.nodes.iter().any(|node| node.name == *member) {
            let path = join_index("etcd.members", i);
            faults.add(path, Fault::UnknownMember(member.clone()));
        }
    }
    for (i, endpoint) in etcd.endpoints.iter().enumerate() {
        if !is_endpoint(endpoint) {
            let path = join_index("etcd.endpoints", i);
            faults.add(path, Fault::Endpoint(endpoint.clone()));
        }
    }
    for (list, path) in [
        (&etcd.members, "etcd.members"),
        (&etcd.endpoints, "etcd.endpoints"),
    ] {
        check_unique(
            list,
            |i| join_index(path, i),
            |entry| format!("{entry:?}"),
            faults,
        );
    }
}

fn check_network(cluster: &Cluster, faults: &mut Faults) {
    // The external etcd may have a network config already.
    if cluster.network.is_null() && !cluster.etcd.endpoints.is_empty() {
        return;
    }
    let overlays = match network::overlay(&cluster.network) {
        Ok(overlays) => overlays,
        Err(fault) => return faults.add("network", fault),
    };
    let underlay = cluster.nodes.first().map(|node| node.address.trunc());
    let name_servers = cluster.nodes.iter().flat_map(|node| &node.dns);
    let outside: Vec<IpNet> = underlay
        .into_iter()
        .map(IpNet::V4)
        .chain(name_servers.map(|server| IpNet::from(*server)))
        .collect();
    for overlay in overlays {
        let overlaps = |other: &&IpNet| overlay.contains(*other) || other.contains(&overlay);
        if let Some(&other) = outside.iter().find(overlaps) {
            let key = match overlay {
                IpNet::V4(_) => "network.Network",
                IpNet::V6(_) => "network.IPv6Network",
            };
            faults.add(key, Fault::Overlap { overlay, other });
        }
    }
}

/// Reports every value that an earlier entry also has.
fn check_unique<T: Eq + Hash>(
    values: &[T],
    path: impl Fn(usize) -> String,
    show: impl Fn(&T) -> String,
    faults: &mut Faults,
) {
    let mut seen = HashMap::new();
    for (i, value) in values.iter().enumerate() {
        if let Some(&first) = seen.get(value) {
            let (value, first) = (show(value), path(first));
            faults.add(path(i), Fault::Duplicate { value, first });
        } else {
            seen.insert(value, i);
        }
    }
}

/// An RFC 1123 §2.1 label, in lower case because host names are compared without case.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// At most 64 bytes (Linux' `HOST_NAME_MAX`) of labels, and nothing that reads as an IPv4 address.
fn is_host_name(name: &str) -> bool {
    name.len() <= 64 && name.split('.').all(is_label) && name.parse::<Ipv4Addr>().is_err()
}

fn is_host_address(net: Ipv4Net) -> bool {
    let address = net.addr();
    // A /31 has two hosts and neither network nor broadcast address (RFC 3021).
    let is_host =
        net.prefix_len() == 31 || (address != net.network() && address != net.broadcast());
    (1..=31).contains(&net.prefix_len()) && unusable_v4(address).is_none() && is_host
}

pub(super) fn is_endpoint(url: &str) -> bool {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let Some((host, port)) = rest.and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    let is_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        }
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_follow_rfc_1123() {
        for name in ["a", "node1", "1node", "a-b.c", &"a".repeat(63)] {
            assert!(is_host_name(name), "{name:?} was refused");
        }
        for name in [
            "",
            "-a",
            "a-",
            "a..b",
            ".",
            "a_b",
            "A",
            "a b",
            "10.0.0.1",
            "é",
            &"a".repeat(64),
            "../x",
            &["a"; 40].join("."),
        ] {
            assert!(!is_host_name(name), "{name:?} was accepted");
        }
    }

    #[test]
    fn endpoints_are_urls_with_a_port() {
        for url in [
            "http://10.0.0.1:2379",
            "https://etcd-1.example:1",
            "http://[fd00::1]:2379",
        ] {
            assert!(is_endpoint(url), "{url:?} was refused");
        }
        for url in [
            "",
            "10.0.0.1:2379",
            "http://10.0.0.1",
            "http://:2379",
            "http://a:0",
            "http://a:70000",
            "http://a:2379/",
            "http://a b:2379",
            "http://[x]:2379",
            "http://a,http://b:1",
            "unix:///x:1",
        ] {
            assert!(!is_endpoint(url), "{url:?} was accepted");
        }
    }
}
