//! What Azure's resource manager answers about route tables (API of Microsoft.Network).

use ipnet::Ipv4Net;
use serde::Deserialize;

/// An error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failed {
    pub(super) error: Refusal,
}

/// What it says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

/// A page of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T> {
    pub(super) value: Vec<T>,
    #[serde(default)]
    pub(super) next_link: Option<String>,
}

/// A route.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    #[serde(default)]
    pub(super) etag: String,
    pub(super) properties: Properties,
}

/// What a route says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Properties {
    /// Or the name of a service.
    pub(super) address_prefix: String,
    /// `VirtualAppliance` for a machine, by its address; `Internet`, `None`, …
    pub(super) next_hop_type: String,
    pub(super) next_hop_ip_address: String,
    /// `Succeeded`, `Updating`, `Deleting`, `Failed`.
    pub(super) provisioning_state: String,
}

impl Entry {
    pub(super) fn destination(&self) -> Option<Ipv4Net> {
        self.properties.address_prefix.parse().ok()
    }
}

/// A subnet.
#[derive(Debug, Deserialize)]
pub(super) struct Subnet {
    pub(super) properties: SubnetProperties,
}

/// What a subnet says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SubnetProperties {
    pub(super) route_table: Option<Reference>,
}

/// Whether a machine may be given an address.
#[derive(Debug, Deserialize)]
pub(super) struct Availability {
    pub(super) available: bool,
}

/// Another resource.
#[derive(Debug, Deserialize)]
pub(super) struct Reference {
    pub(super) id: String,
}

/// The state of an operation.
#[derive(Debug, Deserialize)]
pub(super) struct Operation {
    /// `Succeeded`, `Failed` and `Canceled` are the ends.
    pub(super) status: String,
    #[serde(default)]
    pub(super) error: Refusal,
}
