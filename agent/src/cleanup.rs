//! Removes what the agent made on this host: `selvage cleanup`.
//!
//! Works without etcd, since a host that leaves its cluster may not reach it any more. The lease lapses by itself.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::firewall::nftables::Nftables;
use crate::lock::{self, Lock};
use crate::logging::chain;
use crate::net::InterfaceName;
use crate::netlink::{Kernel, KernelError};
use crate::reconcile::Reconciler;
use crate::settings::Settings;
use crate::state::Scope;
use crate::subnet_file;

/// Why not everything was removed.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent runs, and would put everything back.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// Some parts resisted; the others are gone.
    #[error("not everything could be removed: {}", .0.join("; "))]
    Left(Vec<String>),
    /// Nobody reads what we print.
    #[error("failed to print")]
    Output(#[from] io::Error),
}

/// Removes the overlay devices with their entries, all routes and next hops that carry our protocol number, the nftables
/// table, `subnet.env` and the state directory's contents. What is already gone is no error.
///
/// Goes on after a failure, and names all of them at the end.
pub async fn run(settings: &Settings, output: &mut impl Write) -> Result<(), Error> {
    let _lock = Lock::take(&settings.files.state_dir)?;
    let mut left = Vec::new();
    let mut note = |part: &str, error: &dyn std::error::Error| {
        left.push(format!("{part}: {}", chain(error)));
    };

    // Without a memory of the network every address on our devices is ours: the default is 0.0.0.0/0.
    let network = subnet_file::read_previous(&settings.files.subnet_file)
        .ok()
        .and_then(|previous| previous.network)
        .unwrap_or_default();
    let identities = identities(&settings.files.state_dir);
    let links = identities.iter().map(|(name, _)| name.clone()).collect();
    match remove_from_kernel(Scope { links, network }).await {
        Ok(removed) => writeln!(output, "kernel: {removed} objects removed")?,
        Err(error) => note("kernel", &error),
    }
    match Nftables::new().clear().await {
        Ok(true) => writeln!(output, "firewall: table removed")?,
        Ok(false) => writeln!(output, "firewall: nothing to remove")?,
        Err(error) => note("firewall", &error),
    }
    match subnet_file::remove(&settings.files.subnet_file) {
        Ok(true) => writeln!(output, "{} removed", settings.files.subnet_file.display())?,
        Ok(false) => (),
        Err(error) => note("subnet file", &error),
    }
    for (_, path) in identities {
        match fs::remove_file(&path) {
            Ok(()) => writeln!(output, "{} removed", path.display())?,
            Err(error) => note(&path.display().to_string(), &error),
        }
    }
    if left.is_empty() {
        Ok(())
    } else {
        Err(Error::Left(left))
    }
}

/// What the kernel did not let go of.
#[derive(Debug, Error)]
enum RemoveError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("{0}")]
    Failures(String),
}

async fn remove_from_kernel(scope: Scope) -> Result<u64, RemoveError> {
    let mut reconciler = Reconciler::new(Kernel::open()?, scope);
    let report = reconciler.remove_all().await?;
    if report.failures.is_empty() {
        return Ok(report.counts.removed);
    }
    let failures: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
    Err(RemoveError::Failures(failures.join("; ")))
}

/// The overlay devices that this host has had, with the files that keep their MAC addresses.
fn identities(state_dir: &Path) -> Vec<(InterfaceName, PathBuf)> {
    let Ok(entries) = fs::read_dir(state_dir) else {
        return Vec::new();
    };
    let identity = |path: PathBuf| {
        let name = path
            .file_name()?
            .to_str()?
            .strip_suffix(".mac")?
            .parse()
            .ok()?;
        Some((name, path))
    };
    entries
        .flatten()
        .filter_map(|entry| identity(entry.path()))
        .collect()
}
