//! The disks of machines, by the programs of package qemu-utils.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Bytes of each machine's disk. Sparse: it costs what the guest writes.
pub(crate) const DISK_BYTES: u64 = 6 << 30;

/// Makes the machine's disk: an overlay, so that the image stays as it is; without an image, an empty one.
///
/// # Errors
/// When qemu-img is missing or refuses.
pub(crate) async fn create(image: Option<&Path>, disk: &Path) -> Result<()> {
    let mut command = tokio::process::Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(image) = image {
        // qemu-img takes a relative path from the overlay's directory on, not from the working directory.
        let image = std::fs::canonicalize(image)
            .with_context(|| format!("failed to find {}", image.display()))?;
        command.args(["-F", "raw", "-b"]).arg(image);
    }
    command.arg(disk).arg(DISK_BYTES.to_string());
    qemu_img(command, "create", disk).await
}

/// Makes the disk of a machine that is off larger by `bytes`.
///
/// # Errors
/// When qemu-img refuses.
pub(crate) async fn grow(disk: &Path, bytes: u64) -> Result<()> {
    let mut command = tokio::process::Command::new("qemu-img");
    command
        .args(["resize", "-q", "-f", "qcow2"])
        .arg(disk)
        .arg(format!("+{bytes}"));
    qemu_img(command, "resize", disk).await
}

/// Zeroes `bytes` at an offset of the disk of a machine that is off.
///
/// # Errors
/// When qemu-io refuses.
pub(crate) async fn zero(disk: &Path, offset: u64, bytes: u64) -> Result<()> {
    let mut command = tokio::process::Command::new("qemu-io");
    command
        .args(["-f", "qcow2", "-c"])
        .arg(format!("write -P 0 {offset} {bytes}"))
        .arg(disk);
    qemu_img(command, "damage", disk).await
}

async fn qemu_img(mut command: tokio::process::Command, verb: &str, disk: &Path) -> Result<()> {
    let output = command
        .output()
        .await
        .context("failed to run a program of package qemu-utils")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "failed to {verb} {}: {}",
        disk.display(),
        said.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_image_may_be_named_from_the_working_directory_on() {
        let here = std::env::current_dir().unwrap();
        let dir = tempfile::tempdir_in(&here).unwrap();
        let dir = dir.path().strip_prefix(&here).unwrap();
        std::fs::write(dir.join("image.raw"), [0; 4096]).unwrap();
        create(Some(&dir.join("image.raw")), &dir.join("disk.qcow2"))
            .await
            .unwrap();
        let error = create(Some(&dir.join("none.raw")), &dir.join("disk.qcow2"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("none.raw"), "{error}");
    }
}
