//! `selvage network leases` and `selvage network reservations`: who has which subnet, and for how long.

use std::io::Write;
use std::net::Ipv6Addr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Serialize;

use super::NetworkCommandError;
use crate::base::go_json::shorten;
use crate::cluster::lease::etcd::{EtcdStore, Record};

/// Prints all leases, or the reservations alone: aligned columns, or a JSON array.
///
/// What other nodes wrote is shown without control characters and shortened, so that a hostile lease cannot take over the
/// terminal.
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

/// One lease, with flannel's names where flannel has one.
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
            backend_type: attrs.map(|attrs| harmless(&attrs.backend_type)),
            owner: attrs.and_then(|attrs| attrs.owner.as_deref()).map(harmless),
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
            self.seconds_left.map_or("reserved".to_owned(), in_words),
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

/// A foreign text, fit for a terminal.
fn harmless(text: &str) -> String {
    shorten(text).escape_debug().to_string()
}

/// The two largest units of a duration: `23h 59m`.
fn in_words(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (length, unit) in UNITS {
        if rest >= length {
            parts.push(format!("{}{unit}", rest / length));
            rest %= length;
        }
    }
    parts.truncate(2);
    if parts.is_empty() {
        "0s".to_owned()
    } else {
        parts.join(" ")
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_by_their_two_largest_units() {
        let told = [0, 59, 60, 86_399, 86_400, 90_000].map(in_words);
        assert_eq!(told, ["0s", "59s", "1m", "23h 59m", "1d", "1d 1h"]);
    }

    #[test]
    fn foreign_texts_do_not_reach_the_terminal_as_they_are() {
        assert_eq!(harmless("vxlan"), "vxlan");
        assert_eq!(harmless("\u{1b}[2J"), "\\u{1b}[2J");
    }
}
