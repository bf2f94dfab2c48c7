//! Nodes as the API server shows them, as far as they count here, and what flannel's annotations on them say.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::UNIX_EPOCH;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::base::go_json::{self, shorten};
use crate::base::net::Family;
use crate::base::time::parse_rfc3339;
use crate::cluster::lease::{LONGEST_VALUE, LeaseAttrs, StoreError, SubnetKey};
use crate::cluster::network_config::Families;

mod kept;

/// A node.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Node {
    pub(super) metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    pub(super) status: Status,
}

/// The metadata of any object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Meta {
    pub(super) name: String,
    pub(super) resource_version: String,
    creation_timestamp: Option<String>,
    /// Those that count here, by their whole names.
    #[serde(deserialize_with = "kept::annotations")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    /// Of a list: where its next page begins.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    /// `NetworkUnavailable`, if it has that.
    #[serde(deserialize_with = "kept::conditions")]
    pub(super) conditions: Vec<Condition>,
}

/// A node's condition [`Condition::NETWORK_UNAVAILABLE`].
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) status: String,
    pub(super) reason: String,
}

impl Condition {
    /// The condition's type.
    pub(super) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
}

/// A page of a list of nodes.
#[derive(Debug, Deserialize)]
pub(super) struct NodeList {
    kind: String,
    pub(super) metadata: Meta,
    pub(super) items: Vec<Node>,
}

/// Nodes in a page of the list: of some 15 KB each, so that a page takes 4 MB while it is read.
const PAGE: usize = 250;

/// The pages after which a list is taken for an endless one: these are 250,000 nodes.
pub(super) const MOST_PAGES: usize = 1000;

impl NodeList {
    /// Where the page with this token is; the first has none.
    pub(super) fn path(token: &str) -> String {
        page_of("/api/v1/nodes", PAGE, token)
    }

    /// Reads a page. The error says that it is none: an answer that is something else must not pass for a cluster
    /// without nodes.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let page: Self =
            serde_json::from_slice(body).map_err(|error| format!("no list of nodes: {error}"))?;
        let is_one = page.kind == "NodeList" && page.metadata.has_version();
        is_one
            .then_some(page)
            .ok_or_else(|| "no list of nodes".to_owned())
    }
}

impl NodeList {
    /// Where the page after this one is, from the beginning of this one: a server writes the list's metadata before its
    /// items. Empty if there is none, or if that is not known before all is read.
    pub(super) fn token_after(body: &[u8]) -> String {
        let mut token = String::new();
        let mut reader = serde_json::Deserializer::from_slice(body);
        // It ends early, as an error; what is wrong with the page is told when all of it is read.
        let _ = reader.deserialize_map(Beginning(&mut token));
        token
    }
}

/// Reads an object's `metadata`, and nothing after it.
struct Beginning<'a>(&'a mut String);

impl<'de> Visitor<'de> for Beginning<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of nodes")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "metadata" => {
                    *self.0 = map.next_value::<Meta>()?.next;
                    break;
                }
                "items" => break,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Where a page of a list is; the first has no token.
pub(super) fn page_of(list: &str, limit: usize, token: &str) -> String {
    match token {
        "" => format!("{list}?limit={limit}"),
        token => format!("{list}?limit={limit}&continue={}", encoded(token)),
    }
}

/// A revision or a page's token as part of a URL.
pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

impl Meta {
    /// Whether there is a revision to go on from: a watch from none or from 0 begins anywhere.
    pub(super) fn has_version(&self) -> bool {
        !matches!(self.resource_version.as_str(), "" | "0")
    }
}

/// The names of the annotations, below one prefix (`pkg/subnet/kube/annotations.go`).
#[derive(Clone, Debug)]
pub(super) struct Annotations {
    prefix: String,
}

/// What a peer's node says.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Reading {
    /// It takes no part in the overlay, or has no subnet yet.
    Nothing,
    /// Its lease.
    Lease(SubnetKey, Box<LeaseAttrs>),
    /// It takes part, but what it says makes no sense.
    Unreadable(SubnetKey, String),
}

impl Node {
    fn annotation(&self, name: &str) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        annotations.get(name).map(String::as_str)
    }

    /// When the node was created, in seconds since 1970; a node that is created again is another one.
    pub(super) fn created(&self) -> u64 {
        let text = self.metadata.creation_timestamp.as_deref();
        let time = text.and_then(parse_rfc3339).unwrap_or(UNIX_EPOCH);
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    }

    /// The podCIDRs, as text. `podCIDR` is the first of `podCIDRs`, which clusters before 1.16 have not.
    pub(super) fn pod_cidrs(&self) -> &[String] {
        let spec = &self.spec;
        match (spec.pod_cidrs.as_slice(), spec.pod_cidr.as_str()) {
            ([], "") => &[],
            ([], _) => std::slice::from_ref(&spec.pod_cidr),
            (cidrs, _) => cidrs,
        }
    }

    /// The podCIDRs, at most one of each family, of the families that the network has. The error says what is wrong,
    /// as a predicate of the podCIDR.
    fn subnets(&self, families: Families) -> Result<SubnetKey, (String, &'static str)> {
        let cidrs = self.pod_cidrs();
        if cidrs.len() > 2 {
            return Err((cidrs.join(","), "has more than one subnet of a family"));
        }
        let (mut v4, mut v6): (Option<Ipv4Net>, Option<Ipv6Net>) = (None, None);
        for cidr in cidrs {
            let twice = match IpNet::from_str(cidr) {
                Ok(IpNet::V4(net)) => v4.replace(net).is_some(),
                Ok(IpNet::V6(net)) => v6.replace(net).is_some(),
                Err(_) => return Err((shorten(cidr), "is not a subnet")),
            };
            if twice {
                return Err((cidrs.join(","), "has more than one subnet of a family"));
            }
        }
        Ok(SubnetKey::new(
            v4.filter(|_| families.v4.is_some()),
            v6.filter(|_| families.v6.is_some()),
        ))
    }

    /// The subnet of this host's own node.
    ///
    /// # Errors
    /// A family has none, or it is outside the network, or too small. That is all that counts here: other than in etcd,
    /// neither `SubnetLen` nor `SubnetMin` do.
    pub(super) fn own_subnets(&self, families: Families) -> Result<SubnetKey, StoreError> {
        let node = || self.metadata.name.clone();
        let bad = |cidr: String, what: String| StoreError::BadPodCidr {
            node: node(),
            cidr,
            what,
        };
        let key = self
            .subnets(families)
            .map_err(|(cidr, what)| bad(cidr, what.to_owned()))?;
        for family in families.iter() {
            let found = match family {
                Family::V4 => key.v4.is_some(),
                Family::V6 => key.v6.is_some(),
            };
            if !found {
                return Err(StoreError::NoPodCidr {
                    node: node(),
                    family,
                });
            }
        }
        let networks = families.v4.map(IpNet::V4).into_iter();
        let networks: Vec<IpNet> = networks.chain(families.v6.map(IpNet::V6)).collect();
        for subnet in key.nets() {
            if !networks.iter().any(|network| network.contains(&subnet)) {
                let shown: Vec<_> = networks.iter().map(ToString::to_string).collect();
                let what = format!(
                    "is outside the network {}: make Network in net-conf.json the --cluster-cidr of kube-controller-manager",
                    shown.join(" and ")
                );
                return Err(bad(subnet.to_string(), what));
            }
            if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
                let what = "has room for no pod: give kube-controller-manager a shorter --node-cidr-mask-size";
                return Err(bad(subnet.to_string(), what.to_owned()));
            }
        }
        Ok(key)
    }
}

impl Annotations {
    /// `prefix` is complete: `flannel.alpha.coreos.com/`.
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.prefix)
    }

    fn of<'a>(&self, node: &'a Node, suffix: &str) -> Option<&'a str> {
        node.annotation(&self.name(suffix))
    }

    /// The same, but an empty annotation counts as missing.
    fn filled<'a>(&self, node: &'a Node, suffix: &str) -> Option<&'a str> {
        self.of(node, suffix).filter(|text| !text.is_empty())
    }

    /// What an administrator wants this node's public address to be, in place of the settings: `node-public-ip` and
    /// `node-public-ipv6`. The error is about the whole annotation.
    pub(super) fn prescribed<A: FromStr + Copy>(
        &self,
        node: &Node,
        suffix: &str,
        unusable: fn(A) -> Option<&'static str>,
    ) -> Result<Option<A>, String> {
        let Some(text) = self.filled(node, suffix) else {
            return Ok(None);
        };
        let what = match text.parse::<A>() {
            Ok(address) => match unusable(address) {
                None => return Ok(Some(address)),
                Some(what) => what,
            },
            Err(_) => "no such address",
        };
        Err(format!(
            "ignoring the annotation {}: {:?} is {what}",
            self.name(suffix),
            shorten(text)
        ))
    }

    /// What the own node's annotations should be, as `AcquireLease` of flannel's `kube.go` writes them.
    pub(super) fn wanted(&self, attrs: &LeaseAttrs, node: &Node) -> BTreeMap<String, String> {
        let mut wanted = BTreeMap::new();
        let mut put = |suffix: &str, value: String| {
            wanted.insert(self.name(suffix), value);
        };
        let data = |data: &Option<Box<RawValue>>| match data {
            Some(data) => data.get().to_owned(),
            None => "null".to_owned(),
        };
        let public = |overwrite: &str, address: String| {
            let overwrite = self.filled(node, overwrite);
            overwrite.map_or(address, str::to_owned)
        };
        put("kube-subnet-manager", "true".to_owned());
        put("backend-type", attrs.backend_type.clone());
        let kind = attrs.backend_type.as_str();
        if kind != "vxlan" || attrs.backend_data.is_some() {
            put("backend-data", data(&attrs.backend_data));
            let address = attrs.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
            put(
                "public-ip",
                public("public-ip-overwrite", address.to_string()),
            );
        }
        let v6 = attrs.public_ipv6;
        let has_v6 = match kind {
            "vxlan" | "wireguard" => attrs.backend_v6_data.is_some(),
            "host-gw" | "extension" => true,
            _ => false,
        };
        if let Some(address) = v6.filter(|_| has_v6) {
            put("backend-v6-data", data(&attrs.backend_v6_data));
            put(
                "public-ipv6",
                public("public-ipv6-overwrite", address.to_string()),
            );
        }
        wanted
    }

    /// Those of the wanted annotations that the node does not have.
    pub(super) fn missing(
        &self,
        wanted: BTreeMap<String, String>,
        node: &Node,
    ) -> BTreeMap<String, String> {
        let differs =
            |(name, value): &(String, String)| node.annotation(name) != Some(value.as_str());
        wanted.into_iter().filter(differs).collect()
    }

    /// Whether a node is part of the overlay.
    pub(super) fn takes_part(&self, node: &Node) -> bool {
        self.of(node, "kube-subnet-manager") == Some("true")
    }

    /// The backend that a node publishes; empty for some, and where it publishes none.
    pub(super) fn backend<'a>(&self, node: &'a Node) -> &'a str {
        self.of(node, "backend-type").unwrap_or_default()
    }

    /// The lease of a peer's node.
    pub(super) fn read(&self, node: &Node, families: Families) -> Reading {
        if !self.takes_part(node) {
            return Reading::Nothing;
        }
        let key = match node.subnets(families) {
            Ok(key) => key,
            // Without a subnet there is nothing that could stay in use or be refused.
            Err(_) => return Reading::Nothing,
        };
        if key.nets().next().is_none() {
            return Reading::Nothing;
        }
        match self.attrs(node, &key) {
            Ok(attrs) => Reading::Lease(key, Box::new(attrs)),
            Err(reason) => Reading::Unreadable(key, reason),
        }
    }

    fn attrs(&self, node: &Node, key: &SubnetKey) -> Result<LeaseAttrs, String> {
        let v4 = key.v4.is_some();
        let v6 = key.v6.is_some();
        let public_ip = v4.then(|| self.address::<Ipv4Addr>(node, "public-ip"));
        let public_ipv6 = v6.then(|| self.address::<Ipv6Addr>(node, "public-ipv6"));
        let backend_type = self.backend(node);
        if backend_type.len() > LONGEST_VALUE {
            return Err(self.wrong("backend-type", backend_type, "the name of a backend"));
        }
        Ok(LeaseAttrs {
            public_ip: public_ip
                .transpose()?
                .filter(|address| !address.is_unspecified()),
            public_ipv6: public_ipv6.transpose()?,
            backend_type: backend_type.to_owned(),
            backend_data: v4
                .then(|| self.data(node, "backend-data"))
                .transpose()?
                .flatten(),
            backend_v6_data: v6
                .then(|| self.data(node, "backend-v6-data"))
                .transpose()?
                .flatten(),
            owner: Some(node.metadata.name.clone()),
        })
    }

    fn wrong(&self, suffix: &str, value: &str, expected: impl fmt::Display) -> String {
        format!(
            "{}: {:?} is not {expected}",
            self.name(suffix),
            shorten(value)
        )
    }

    fn address<A: FromStr>(&self, node: &Node, suffix: &str) -> Result<A, String> {
        let text = self.of(node, suffix).unwrap_or_default();
        text.parse()
            .map_err(|_| self.wrong(suffix, text, "an address that packets can be sent to"))
    }

    /// Backend data; `None` for an empty annotation or `null`.
    fn data(&self, node: &Node, suffix: &str) -> Result<Option<Box<RawValue>>, String> {
        let text = self.filled(node, suffix).unwrap_or("null");
        let wrong = || self.wrong(suffix, text, "JSON of a backend's data");
        if text.len() > LONGEST_VALUE {
            return Err(wrong());
        }
        let value: &RawValue = serde_json::from_str(text).map_err(|_| wrong())?;
        if value.get() == "null" {
            return Ok(None);
        }
        let compact = RawValue::from_string(go_json::compact(value.get()));
        compact.map(Some).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests;
