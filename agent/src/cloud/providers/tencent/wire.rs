//! What Tencent Cloud's VPC API is told and answers (version 2017-03-12).

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// What every answer is wrapped in: an error comes with HTTP status 200.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Envelope<T> {
    pub(super) response: T,
}

/// An answer that may be an error.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Failed {
    pub(super) error: Option<Refusal>,
}

/// An error.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Refusal {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// A filter: any of the values.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Filter<'a> {
    pub(super) name: &'a str,
    pub(super) values: [&'a str; 1],
}

/// `DescribeRouteTables`. Numbers are texts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Describe<'a> {
    pub(super) filters: Vec<Filter<'a>>,
    pub(super) offset: String,
    pub(super) limit: String,
}

/// Its answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Tables {
    pub(super) total_count: usize,
    pub(super) route_table_set: Vec<Table>,
}

/// A route table, with all of its routes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Table {
    pub(super) route_table_id: String,
    pub(super) association_set: Vec<Association>,
    pub(super) route_set: Vec<Entry>,
}

/// A subnet that uses a table.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Association {
    pub(super) subnet_id: String,
}

/// A route.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Entry {
    pub(super) route_id: u64,
    /// Empty for IPv6.
    pub(super) destination_cidr_block: String,
    /// `NORMAL_CVM` for a machine, by its address.
    pub(super) gateway_type: String,
    pub(super) gateway_id: String,
    pub(super) route_description: String,
    /// Absent in older answers.
    pub(super) enabled: Option<bool>,
    /// `USER` for one that somebody made; `NETD`, `CCN`.
    pub(super) route_type: String,
}

impl Entry {
    pub(super) fn destination(&self) -> Option<Ipv4Net> {
        self.destination_cidr_block.parse().ok()
    }

    /// The address of the machine it leads to.
    pub(super) fn machine(&self) -> Option<&str> {
        (self.gateway_type == MACHINE).then_some(&self.gateway_id)
    }

    /// Whether it does nothing, until somebody switches it on again.
    pub(super) fn is_off(&self) -> bool {
        self.enabled == Some(false)
    }
}

/// The type of a next hop that is a machine.
pub(super) const MACHINE: &str = "NORMAL_CVM";

/// `CreateRoutes` and `ReplaceRoutes`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Change<'a> {
    pub(super) route_table_id: &'a str,
    pub(super) routes: [NewRoute<'a>; 1],
}

/// A route that is added, or takes the place of another.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NewRoute<'a> {
    /// The one that it replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) route_id: Option<u64>,
    pub(super) destination_cidr_block: String,
    pub(super) gateway_type: &'a str,
    pub(super) gateway_id: &'a str,
    pub(super) route_description: &'a str,
    pub(super) enabled: bool,
}

/// `DeleteRoutes`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Delete<'a> {
    pub(super) route_table_id: &'a str,
    pub(super) routes: [Deleted; 1],
}

/// A route by its ID.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Deleted {
    pub(super) route_id: u64,
}

/// `DescribeInstances` of the CVM API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct FindMachine<'a> {
    pub(super) filters: [Filter<'a>; 1],
}

/// Its answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    pub(super) total_count: u64,
}

/// What a machine's role lends it, from the metadata service.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RoleKey {
    pub(super) tmp_secret_id: String,
    pub(super) tmp_secret_key: String,
    pub(super) token: String,
    /// Seconds since 1970.
    pub(super) expired_time: u64,
}
