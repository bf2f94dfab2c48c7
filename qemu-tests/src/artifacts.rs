//! The files of a built image that a machine boots from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::architecture::Architecture;

/// The outputs of the image build.
#[derive(Debug, Clone)]
pub(crate) struct Artifacts {
    /// Disk image, raw.
    pub disk: PathBuf,
    /// Kernel.
    pub kernel: PathBuf,
    /// Initrd.
    pub initrd: PathBuf,
    /// containerd's own client, which is beside the image and not in it.
    pub ctr: PathBuf,
    /// Kernel command line of a direct boot, without a console.
    pub cmdline: String,
    /// What it is for.
    pub architecture: Architecture,
}

impl Artifacts {
    /// Looks for all of them in `dir`.
    ///
    /// # Errors
    /// When one is missing: the image has not been built.
    pub(crate) fn find(dir: &Path) -> Result<Self> {
        let dir = fs::canonicalize(dir).with_context(|| {
            format!("no image in {}; build it with `make image`", dir.display())
        })?;
        let file = |name: &str| {
            let path = dir.join(name);
            ensure!(
                path.is_file(),
                "no {}; build the image with `make image`",
                path.display()
            );
            Ok(path)
        };
        let cmdline = file("selvage.cmdline")?;
        let cmdline = fs::read_to_string(&cmdline)
            .with_context(|| format!("failed to read {}", cmdline.display()))?;
        Ok(Self {
            disk: file("selvage.raw")?,
            kernel: file("selvage.vmlinuz")?,
            initrd: file("selvage.initrd")?,
            ctr: file("ctr")?,
            cmdline: cmdline.trim().to_owned(),
            architecture: Architecture::of(&dir)?,
        })
    }

    /// Has `image/formats` make what a machine boots from by network, in `dir`.
    ///
    /// # Errors
    /// When the script fails; the message has its words.
    pub(crate) async fn for_pxe(&self, dir: &Path) -> Result<Self> {
        let image = self.disk.parent().context("an image without directory")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../image/formats");
        let output = tokio::process::Command::new(script)
            .args([image, dir])
            .arg("pxe")
            .output()
            .await
            .with_context(|| format!("failed to run {script}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim());
        let version = crate::built::Built::of(image)?.version;
        let file = |name: &str| dir.join(format!("selvage_{version}.pxe.{name}"));
        let cmdline = fs::read_to_string(file("cmdline"))
            .with_context(|| format!("failed to read {}", file("cmdline").display()))?;
        Ok(Self {
            kernel: file("vmlinuz"),
            initrd: file("initrd"),
            cmdline: cmdline.trim().to_owned(),
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("selvage.cmdline"), "quiet\n").unwrap();
        let error = Artifacts::find(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("selvage.raw") && error.contains("make image"),
            "{error}"
        );
    }

    #[test]
    fn the_command_line_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["selvage.raw", "selvage.vmlinuz", "selvage.initrd", "ctr"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::write(dir.path().join("selvage.cmdline"), "quiet audit=0\n").unwrap();
        fs::write(
            dir.path().join("build.json"),
            r#"{ "architecture": "x86-64" }"#,
        )
        .unwrap();
        assert_eq!(
            Artifacts::find(dir.path()).unwrap().cmdline,
            "quiet audit=0"
        );
    }
}
