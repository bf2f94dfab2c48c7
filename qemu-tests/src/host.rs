//! What the machines of one run share: image, accelerator, ssh key, and a directory for sockets.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    accel::{self, Accelerator},
    artifacts::Artifacts,
    cli,
    progress::Progress,
    ssh,
};

/// The host side of a run.
#[derive(Debug)]
pub(crate) struct Host {
    /// What machines boot.
    pub artifacts: Artifacts,
    /// How QEMU runs them.
    pub accelerator: Accelerator,
    /// Private key of this run.
    pub key: PathBuf,
    /// Its public line.
    pub public_key: String,
    /// Sockets live here, not under the build directory: a Unix socket's path has at most 107 bytes (unix(7)).
    pub sockets: TempDir,
    /// Build output; everything that is kept goes below it.
    pub target: PathBuf,
}

impl Host {
    /// Finds the image, probes the accelerator (unless it is given), and makes a key.
    ///
    /// # Errors
    /// When the image is not built, or a program is missing.
    pub(crate) async fn prepare(
        common: &cli::Common,
        key_dir: &Path,
        progress: &Progress,
    ) -> Result<Self> {
        let artifacts = Artifacts::find(&common.image)?;
        fs::create_dir_all(key_dir)
            .with_context(|| format!("failed to create {}", key_dir.display()))?;
        let (key, public_key) = ssh::generate_key(&fs::canonicalize(key_dir)?).await?;
        let accelerator = match common.accelerator {
            Some(accelerator) => accelerator,
            None => {
                progress.step("choose the accelerator: boot a kernel under KVM");
                let (accelerator, reason) =
                    accel::choose(artifacts.architecture, &artifacts.kernel).await?;
                let because = reason
                    .map(|reason| format!(" ({reason})"))
                    .unwrap_or_default();
                progress.line(&format!("    {accelerator}{because}"));
                accelerator
            }
        };
        let sockets =
            TempDir::with_prefix("selvage-").context("failed to make a directory for sockets")?;
        let target = fs::canonicalize(&common.target)
            .with_context(|| format!("failed to find {}", common.target.display()))?;
        Ok(Self {
            artifacts,
            accelerator,
            key,
            public_key,
            sockets,
            target,
        })
    }

    /// Processors for each of `machines` guests: the host's, shared, at least 1 and at most 2 (more do not speed a boot).
    pub(crate) fn cpus(machines: usize) -> u32 {
        let host = std::thread::available_parallelism().map_or(1, usize::from);
        if host / machines.max(1) >= 2 { 2 } else { 1 }
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
///
/// # Errors
/// When there is none.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .context("failed to find a free port on 127.0.0.1")?;
    Ok(listener
        .local_addr()
        .context("failed to read the port")?
        .port())
}
