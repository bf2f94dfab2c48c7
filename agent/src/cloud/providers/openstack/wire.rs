//! What Neutron is told and answers (Networking API v2.0).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// An error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failed {
    #[serde(rename = "NeutronError")]
    pub(super) error: Refusal,
}

/// What it says. Front ends answer with other forms, or with a text alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) r#type: String,
    pub(super) message: String,
}

/// An extension that there is.
#[derive(Debug, Deserialize)]
pub(super) struct OneExtension {
    #[expect(dead_code, reason = "what counts is that it is there")]
    extension: IgnoredAny,
}

/// A page of ports.
#[derive(Debug, Deserialize)]
pub(super) struct Ports {
    pub(super) ports: Vec<Port>,
    #[serde(default)]
    ports_links: Vec<Link>,
}

#[derive(Debug, Deserialize)]
struct Link {
    rel: String,
}

impl Ports {
    /// Where the next page starts.
    pub(super) fn next(&self) -> Option<String> {
        let mut links = self.ports_links.iter();
        let has_next = links.any(|link| link.rel == "next");
        let last = self.ports.last().filter(|_| has_next);
        last.map(|port| port.id.clone())
    }
}

/// A port, as far as it was asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) id: String,
    pub(super) network_id: String,
    /// The machine or the router.
    pub(super) device_id: String,
    pub(super) device_owner: String,
    /// `ACTIVE`, `DOWN`, `BUILD`.
    pub(super) status: String,
    pub(super) fixed_ips: Vec<FixedIp>,
    pub(super) allowed_address_pairs: Vec<Pair>,
    /// Absent if nobody can switch it off.
    pub(super) port_security_enabled: Option<bool>,
    pub(super) revision_number: Option<u64>,
}

/// An address of a port.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FixedIp {
    pub(super) subnet_id: String,
    pub(super) ip_address: String,
}

/// A source address, or a subnet of them, that a port may use besides its own.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub(super) struct Pair {
    pub(super) ip_address: String,
    /// The port's own unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mac_address: Option<String>,
}

impl Pair {
    /// One that lets a subnet through from the port's own MAC address.
    pub(super) fn of(subnet: &Ipv4Net) -> Self {
        Self {
            ip_address: subnet.to_string(),
            mac_address: None,
        }
    }

    /// Whether it lets a subnet through.
    pub(super) fn covers(&self, subnet: Ipv4Net) -> bool {
        let net = self.ip_address.parse::<Ipv4Net>().ok();
        let single = || self.ip_address.parse::<Ipv4Addr>().ok().map(Ipv4Net::from);
        net.or_else(single).is_some_and(|net| net.contains(&subnet))
    }
}

/// `GET /v2.0/subnets/ID`.
#[derive(Debug, Deserialize)]
pub(super) struct OneSubnet {
    pub(super) subnet: Subnet,
}

/// A subnet.
#[derive(Debug, Deserialize)]
pub(super) struct Subnet {
    pub(super) gateway_ip: Option<String>,
    #[serde(default)]
    pub(super) project_id: String,
    #[serde(default)]
    cidr: String,
}

impl Subnet {
    pub(super) fn net(&self) -> Option<Ipv4Net> {
        self.cidr.parse().ok()
    }
}

/// One router.
#[derive(Debug, Deserialize)]
pub(super) struct OneRouter {
    pub(super) router: Router,
}

/// A router.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Router {
    pub(super) project_id: String,
    pub(super) routes: Vec<Extra>,
    pub(super) revision_number: Option<u64>,
}

/// An extra route.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub(super) struct Extra {
    pub(super) destination: String,
    pub(super) nexthop: String,
}

impl Extra {
    pub(super) fn net(&self) -> Option<Ipv4Net> {
        self.destination.parse().ok()
    }
}
