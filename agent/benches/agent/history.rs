//! The history of the agent's figures, `benches/history.md`: a table that gets a line when somebody asks for it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::table::Table;
use crate::table_file;

/// The columns between the machine and what changed: rows of the table, each with its decimals.
const COLUMNS: [&[(&str, usize)]; 6] = [
    &[
        ("start to subnet.env, no other leases, vxlan", 1),
        ("start to subnet.env, no other leases, host-gw", 1),
        ("start to subnet.env, no other leases, udp", 1),
    ],
    &[
        (
            "a peer's lease in etcd to its route in the kernel, median",
            2,
        ),
        (
            "a peer's lease in etcd to its route in the kernel, 99th percentile",
            2,
        ),
    ],
    &[
        ("start to 10,000 peers in the kernel, vxlan", 2),
        ("start to 10,000 peers in the kernel, processor time", 2),
    ],
    &[
        ("start to 65000 peers in the kernel", 2),
        ("start to 65000 peers in the kernel, processor time", 2),
    ],
    &[
        ("resident memory at rest, with 0 peers", 1),
        ("resident memory at rest, with 10,000 peers", 1),
        ("resident memory at rest, with 65000 peers", 1),
    ],
    &[("wake-ups in a minute without events", 0)],
];

/// Adds a line if `HISTORY` asks for it: date, `VERSION`, this machine, our medians, and `NOTES`. What was not measured is a
/// dash.
pub(crate) fn add_if_asked(table: &Table) -> Result<()> {
    if std::env::var_os("HISTORY").is_none_or(|asked| asked.is_empty()) {
        return Ok(());
    }
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let cpus = std::thread::available_parallelism()?;
    let mut cells = vec![
        today()?,
        variable("VERSION").unwrap_or_else(|| "-".to_owned()),
        format!("{cpus} CPUs"),
    ];
    cells.extend(COLUMNS.map(|rows| cell(table, rows)));
    cells.push(variable("NOTES").unwrap_or_else(|| "-".to_owned()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/history.md");
    table_file::append(&path, &cells)
}

/// The medians of some rows.
fn cell(table: &Table, rows: &[(&str, usize)]) -> String {
    let figure = |&(row, decimals): &(&str, usize)| match table.median(row) {
        Some(median) => format!("{median:.decimals$}"),
        None => "-".to_owned(),
    };
    rows.iter().map(figure).collect::<Vec<_>>().join(", ")
}

/// The date, in UTC.
fn today() -> Result<String> {
    let output = Command::new("date").args(["-u", "+%F"]).output()?;
    ensure!(
        output.status.success(),
        "`date` ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).context("the date")?;
    Ok(text.trim().to_owned())
}
