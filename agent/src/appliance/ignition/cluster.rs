//! The cluster description as users write it, and its TOML parser.

#[cfg(test)]
pub(super) mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, de};

use super::kubernetes::Kubernetes;
use super::locate::Index;
use super::{Error, validate};
use crate::base::net::MacAddr;

/// A cluster: its nodes, its etcd, and its overlay network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Cluster {
    /// The cluster's name and its SSH keys.
    pub cluster: Identity,
    /// The lease store.
    #[serde(default)]
    pub etcd: Etcd,
    /// flannel's network config with flannel's own keys; null if an external etcd has one already.
    #[serde(default, deserialize_with = "toml_as_json")]
    pub network: serde_json::Value,
    /// How the nodes join a Kubernetes cluster, which has leases and network config then.
    #[serde(default)]
    pub kubernetes: Option<Kubernetes>,
    /// Settings for every node's `/etc/selvage/agent.toml`, merged over the rendered ones.
    #[serde(default)]
    pub agent: toml::Table,
    /// The machines (`[[node]]`).
    #[serde(default, rename = "node")]
    pub nodes: Vec<Node>,
}

/// The cluster's name and its SSH keys.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Identity {
    /// The cluster's name, an RFC 1123 label; also etcd's cluster token.
    pub name: String,
    /// OpenSSH public keys that may log in as `core` on every node.
    #[serde(default)]
    pub ssh_authorized_keys: Vec<String>,
}

/// The etcd servers: nodes of the cluster, or external ones. Exactly one of the two lists has entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Etcd {
    /// Names of the nodes that run etcd; the first also publishes the network config.
    #[serde(default)]
    pub members: Vec<String>,
    /// URLs of an external etcd, `http://HOST:PORT` or `https://HOST:PORT`.
    #[serde(default)]
    pub endpoints: Vec<String>,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Node {
    /// The host name (RFC 1123, at most 64 characters), unique in the cluster.
    pub name: String,
    /// The static address on the underlay with the underlay's prefix length, for example `10.77.0.11/24`.
    #[serde(deserialize_with = "address")]
    pub address: Ipv4Net,
    /// The MAC address of the underlay NIC.
    pub mac: MacAddr,
    /// The default gateway, inside the underlay's prefix.
    #[serde(default, deserialize_with = "gateway")]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    #[serde(default, deserialize_with = "name_servers")]
    pub dns: Vec<IpAddr>,
}

impl Cluster {
    /// Parses and validates a cluster description.
    ///
    /// # Errors
    ///
    /// [`Error::Syntax`] for text that is not TOML, unknown keys and values of the wrong type; [`Error::Invalid`] with
    /// all violated rules. Both carry line, column and field path.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let cluster: Self = toml::from_str(text).map_err(|error| {
            let index = Index::of_toml(text);
            let offset = error.span().map_or(0, |span| span.start);
            Error::Syntax {
                position: index.position_at(offset),
                path: index.path_at(offset).to_owned(),
                message: error.message().replace('\n', ": "),
            }
        })?;
        validate::check(&cluster).map_err(|mut faults| {
            faults.locate(&Index::of_toml(text));
            Error::Invalid(faults)
        })?;
        Ok(cluster)
    }

    /// The nodes that run etcd, in the order of [`Etcd::members`].
    pub(super) fn members(&self) -> impl Iterator<Item = &Node> {
        let named = |name: &String| self.nodes.iter().find(|node| node.name == *name);
        self.etcd.members.iter().filter_map(named)
    }
}

fn address<'de, D: Deserializer<'de>>(input: D) -> Result<Ipv4Net, D::Error> {
    let text = String::deserialize(input)?;
    parse(
        &text,
        "an IPv4 address with a prefix length, such as 10.77.0.11/24",
    )
}

fn gateway<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Ipv4Addr>, D::Error> {
    let text = String::deserialize(input)?;
    parse(&text, "an IPv4 address, such as 10.77.0.1").map(Some)
}

fn name_servers<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(input)?;
    let servers = texts
        .iter()
        .map(|text| parse(text, "an IP address, such as 10.77.0.1"));
    servers.collect()
}

/// Parses `text`; the standard parsers' errors name neither the value nor the expected syntax.
fn parse<T: FromStr, E: de::Error>(text: &str, expected: &str) -> Result<T, E> {
    let error = |_| E::custom(format_args!("{text:?} is not {expected}"));
    text.parse().map_err(error)
}

/// Converts a TOML value to the JSON value that flannel reads.
fn toml_as_json<'de, D: Deserializer<'de>>(input: D) -> Result<serde_json::Value, D::Error> {
    to_json(toml::Value::deserialize(input)?).map_err(de::Error::custom)
}

fn to_json(value: toml::Value) -> Result<serde_json::Value, &'static str> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Boolean(flag) => flag.into(),
        toml::Value::Float(number) => serde_json::Number::from_f64(number)
            .ok_or("JSON has no infinity and no NaN")?
            .into(),
        toml::Value::Datetime(_) => return Err("JSON has no dates; write a string"),
        toml::Value::Array(items) => items.into_iter().map(to_json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => table
            .into_iter()
            .map(|(key, value)| to_json(value).map(|value| (key, value)))
            .collect::<Result<serde_json::Map<_, _>, &'static str>>()?
            .into(),
    })
}
