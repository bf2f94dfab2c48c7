//! What Aliyun's VPC API answers (version 2016-04-28).

use ipnet::Ipv4Net;
use serde::Deserialize;

/// An error.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
}

/// `DescribeVSwitchAttributes`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Switch {
    pub(super) route_table: SwitchTable,
}

/// The route table that a subnet uses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SwitchTable {
    pub(super) route_table_id: String,
}

/// A page of `DescribeRouteEntryList`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entries {
    /// Empty on the last page.
    #[serde(default)]
    pub(super) next_token: Option<String>,
    #[serde(default)]
    pub(super) route_entrys: EntryList,
}

/// The list in it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct EntryList {
    pub(super) route_entry: Vec<Entry>,
}

/// A route.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Entry {
    pub(super) route_entry_id: String,
    pub(super) route_entry_name: String,
    pub(super) destination_cidr_block: String,
    /// `Custom` for one that somebody made; `System`, `BGP`, `CEN`, `ECR`.
    pub(super) r#type: String,
    /// `Available`, or on the way there or away: `Pending`, `Modifying`, `Deleting`.
    pub(super) status: String,
    pub(super) next_hops: Hops,
}

/// Its next hops.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Hops {
    pub(super) next_hop: Vec<Hop>,
}

/// A next hop.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Hop {
    /// `Instance` for a machine.
    pub(super) next_hop_type: String,
    pub(super) next_hop_id: String,
}

impl Entry {
    /// Where it leads to; `None` for what is no IPv4 subnet, such as a prefix list.
    pub(super) fn destination(&self) -> Option<Ipv4Net> {
        self.destination_cidr_block.parse().ok()
    }

    /// The machine it leads to, if that is its only next hop.
    pub(super) fn instance(&self) -> Option<&str> {
        match &self.next_hops.next_hop[..] {
            [hop] if hop.next_hop_type == "Instance" => Some(&hop.next_hop_id),
            _ => None,
        }
    }

    /// Its next hops, for messages; `local` for the VPC itself.
    pub(super) fn hop(&self) -> String {
        let hops = self.next_hops.next_hop.iter().map(|hop| &*hop.next_hop_id);
        let hops: Vec<&str> = hops.filter(|id| !id.is_empty()).collect();
        match hops.join(",") {
            none if none.is_empty() => "local".to_owned(),
            hops => hops,
        }
    }
}

/// `DescribeInstances` of the ECS API.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Found {
    pub(super) total_count: u64,
}

/// What a machine's role lends it, from the metadata service.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RoleKey {
    pub(super) access_key_id: String,
    pub(super) access_key_secret: String,
    pub(super) security_token: String,
    /// RFC 3339.
    pub(super) expiration: String,
}
