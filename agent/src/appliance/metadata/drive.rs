//! Drives with a config or metadata: found by their label, mounted read-only while they are read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sys_mount::{FilesystemType, Mount, MountFlags, Unmount, UnmountDrop, UnmountFlags};
use tempfile::TempDir;

use super::http::Trouble;

/// What drives are made with: OpenStack and Proxmox VE write ISO 9660, people often FAT.
const FILE_SYSTEMS: [&str; 3] = ["iso9660", "vfat", "ext4"];

/// The largest file that is read, in bytes. User data is at most some 64 KiB with most platforms.
const MAX_FILE: u64 = 16 << 20;

/// A drive that is mounted as long as this lives.
pub(super) struct Drive {
    /// The label that it was found by.
    label: String,
    directory: PathBuf,
    // In this order: the directory can only be removed once nothing is mounted there.
    _mount: Option<UnmountDrop<Mount>>,
    _place: Option<TempDir>,
}

impl Drive {
    /// Mounts the first drive that has one of the labels.
    pub(super) fn open(root: &Path, labels: &[&str]) -> Result<Self, Trouble> {
        let by_label = root.join("dev/disk/by-label");
        let found = labels.iter().find(|label| by_label.join(label).exists());
        let Some(label) = found else {
            return Err(Trouble::NoDrive(labels.join(" or ")));
        };
        let device = by_label.join(label);
        // Tests have the contents there.
        if device.is_dir() {
            return Ok(Self {
                label: (*label).to_owned(),
                directory: device,
                _mount: None,
                _place: None,
            });
        }
        let failed = |cause| Trouble::Drive {
            verb: "mount",
            path: device.display().to_string(),
            cause,
        };
        let run = root.join("run");
        let mut name = tempfile::Builder::new();
        let place = name
            .prefix("selvage-drive-")
            .tempdir_in(run)
            .map_err(failed)?;
        let mount = Mount::builder()
            .fstype(FilesystemType::Set(&FILE_SYSTEMS))
            .flags(MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC)
            .mount(&device, place.path())
            .map_err(failed)?;
        Ok(Self {
            label: (*label).to_owned(),
            directory: place.path().to_owned(),
            _mount: Some(mount.into_unmount_drop(UnmountFlags::empty())),
            _place: Some(place),
        })
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// A file for messages.
    pub(super) fn name(&self, path: &str) -> String {
        format!("{path} on the disk labelled {}", self.label)
    }

    /// A file's contents; `None` if there is none.
    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Trouble> {
        let failed = |cause| Trouble::Drive {
            verb: "read",
            path: self.name(path),
            cause,
        };
        let file = self.directory.join(path.trim_start_matches('/'));
        match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
            }
            Ok(_) => (),
        }
        fs::read(&file).map(Some).map_err(failed)
    }
}
