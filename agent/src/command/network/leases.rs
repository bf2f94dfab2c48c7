//! `selvage network leases` and `selvage network reservations`: subnets, their nodes and remaining lease times.

use std::io::Write;
use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::NetworkCommandError;
use crate::base::go_json::shorten;
use crate::base::words::{duration, harmless};
use crate::cluster::lease::etcd::{EtcdStore, Record};

/// Prints all leases, or only the reservations: aligned columns, or a JSON array.
///
/// Text from other nodes is shortened and stripped of control characters, so that a hostile lease cannot inject
/// terminal escape sequences.
pub async fn list(
    store: &mut EtcdStore,
    reservations_only: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), NetworkCommandError> {
    let mut records = store.records().await?.records;
    records.retain(|record| !reservations_only || record.is_reservation());
    records.sort_by_key(|record| record.key);
    let left = store.time_left(&records).await?;
    let rows: Vec<_> = records.iter().zip(left).map(Row::new).collect();
    if json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    let heads = ["SUBNET", "ADDRESS", "BACKEND", "OWNER", "LEFT"].map(str::to_owned);
    let lines: Vec<_> = std::iter::once(heads)
        .chain(rows.iter().map(Row::cells))
        .collect();
    write_aligned(&lines, out)?;
    Ok(())
}

/// One lease, with flannel's field names if flannel has the field.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    subnet: Option<Ipv4Net>,
    #[serde(rename = "IPv6Subnet")]
    ipv6_subnet: Option<Ipv6Net>,
    #[serde(rename = "PublicIP")]
    public_ip: Option<std::net::Ipv4Addr>,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    backend_type: Option<String>,
    owner: Option<String>,
    reserved: bool,
    /// `null` for a reservation.
    seconds_left: Option<u64>,
    #[serde(skip)]
    readable: bool,
}

impl Row {
    fn new((record, left): (&Record, Option<Duration>)) -> Self {
        let attrs = record.attrs.as_ref();
        Self {
            subnet: record.key.v4,
            ipv6_subnet: record.key.v6,
            public_ip: attrs.and_then(|attrs| attrs.public_ip),
            public_ipv6: attrs.and_then(|attrs| attrs.public_ipv6),
            backend_type: attrs.map(|attrs| foreign(&attrs.backend_type)),
            owner: attrs.and_then(|attrs| attrs.owner.as_deref()).map(foreign),
            reserved: record.is_reservation(),
            seconds_left: left.map(|left| left.as_secs()),
            readable: attrs.is_some(),
        }
    }

    fn cells(&self) -> [String; 5] {
        let both = |v4: Option<String>, v6: Option<String>| {
            let texts: Vec<_> = v4.into_iter().chain(v6).collect();
            texts.join(",")
        };
        let address = both(
            self.public_ip.map(|ip| ip.to_string()),
            self.public_ipv6.map(|ip| ip.to_string()),
        );
        [
            both(
                self.subnet.map(|net| net.to_string()),
                self.ipv6_subnet.map(|net| net.to_string()),
            ),
            if self.readable {
                address
            } else {
                "unreadable".to_owned()
            },
            self.backend_type.clone().unwrap_or_default(),
            self.owner.clone().unwrap_or_default(),
            self.seconds_left.map_or("reserved".to_owned(), duration),
        ]
        .map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        })
    }
}

/// Text from another node, shortened and safe for a terminal.
fn foreign(text: &str) -> String {
    harmless(&shorten(text)).into_owned()
}

/// Columns as wide as their widest cell, two spaces apart.
fn write_aligned(lines: &[[String; 5]], out: &mut impl Write) -> std::io::Result<()> {
    let mut widths = [0; 5];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for line in lines {
        let cells = line.iter().zip(widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
}
