//! Disks and CDs that a platform attaches to a machine, with a config and metadata on them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::serve;

/// Bytes of a disk, as mke2fs takes them.
const DISK_BYTES: &str = "8M";

/// What a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A disk with ext4.
    Disk,
    /// A CD with ISO 9660, made by the command of cloud-init's documentation (NoCloud).
    Cd,
    /// A CD with UDF, as Azure's: there is an ISO 9660 on it, too, which every tool passes over for the UDF.
    UdfCd,
}

/// A drive.
#[derive(Debug, Clone)]
pub(crate) struct Drive {
    /// What it is.
    pub kind: Kind,
    /// The label of its file system.
    pub label: &'static str,
    /// What is on it: names and contents.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Drive {
    /// Whether it is in a CD drive.
    pub(crate) fn is_cd(&self) -> bool {
        self.kind != Kind::Disk
    }

    /// Makes it in `dir`; gives the file.
    ///
    /// # Errors
    /// When files cannot be written, or the program that makes the file system is missing or refuses.
    pub(crate) async fn create(&self, dir: &Path) -> Result<PathBuf> {
        let contents = dir.join("drive");
        serve::write_all(&contents, &self.files)?;
        let image = dir.join("drive.raw");
        let (program, package) = match self.kind {
            Kind::Disk => ("mke2fs", "e2fsprogs"),
            Kind::Cd | Kind::UdfCd => ("genisoimage", "genisoimage"),
        };
        let mut command = tokio::process::Command::new(program);
        match self.kind {
            Kind::Disk => command
                .args(["-q", "-t", "ext4", "-L", self.label, "-d"])
                .args([&contents, &image])
                .arg(DISK_BYTES),
            Kind::Cd => command
                .args(["-quiet", "-joliet", "-rational-rock", "-volid", self.label])
                .arg("-output")
                .args([&image, &contents]),
            Kind::UdfCd => command
                .args(["-quiet", "-joliet", "-udf", "-volid", self.label, "-output"])
                .args([&image, &contents]),
        };
        let output = command
            .output()
            .await
            .with_context(|| format!("failed to run {program} (package {package})"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program}: {}", said.trim());
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `blkid` says of a file system, which is what udev and Ignition go by.
    fn field(image: &Path, name: &str) -> String {
        let output = std::process::Command::new("/usr/sbin/blkid")
            .args(["--probe", "--output", "value", "--match-tag", name])
            .arg(image)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[tokio::test]
    async fn each_kind_has_its_file_system_and_label() {
        for (kind, file_system) in [
            (Kind::Disk, "ext4"),
            (Kind::Cd, "iso9660"),
            (Kind::UdfCd, "udf"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let drive = Drive {
                kind,
                label: "config-2",
                files: vec![("openstack/latest/user_data".into(), b"{}".to_vec())],
            };
            let image = drive.create(dir.path()).await.unwrap();
            let found = (field(&image, "TYPE"), field(&image, "LABEL"));
            assert_eq!(found, (file_system.to_owned(), "config-2".to_owned()));
            assert_eq!(drive.is_cd(), kind != Kind::Disk);
        }
    }
}
