//! A file that ends with a table, which gets a line when somebody asks for it. The agent's measurement has one, too, and
//! uses this file.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

/// Adds a line of these cells to the table at the end of the file.
///
/// # Errors
/// When the file has no table at its end, or cannot be written.
pub(crate) fn append(path: &Path, cells: &[String]) -> Result<()> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    let last = text.lines().last().unwrap_or_default();
    ensure!(
        last.starts_with('|') && text.ends_with('\n'),
        "{} does not end with a table",
        path.display()
    );
    // What would end a cell, or the line.
    let cells: Vec<_> = cells
        .iter()
        .map(|cell| cell.replace('|', "/").replace('\n', " "))
        .collect();
    File::options()
        .append(true)
        .open(path)
        .and_then(|mut file| writeln!(file, "| {} |", cells.join(" | ")))
        .with_context(|| format!("failed to write {}", path.display()))
}
