//! Disks, filesystems and RAID arrays.

use ignition_config::v3_3::{Filesystem, Storage};

use super::super::locate::join_index;
use super::storage::check_path;
use super::{Findings, partitions};

/// Checks the sections that prepare disks before files are written.
pub(super) fn check(storage: &Storage, findings: &mut Findings<'_>) {
    let disks = storage.disks.as_deref().unwrap_or_default();
    findings.check_unique("storage.disks", "device", disks.iter().map(|d| &d.device));
    for (i, disk) in disks.iter().enumerate() {
        let at = join_index("storage.disks", i);
        check_device(format!("{at}.device"), &disk.device, findings);
        partitions::check(&at, disk, findings);
    }
    let filesystems = storage.filesystems.as_deref().unwrap_or_default();
    findings.check_unique(
        "storage.filesystems",
        "device",
        filesystems.iter().map(|f| &f.device),
    );
    for (i, filesystem) in filesystems.iter().enumerate() {
        check_filesystem(&join_index("storage.filesystems", i), filesystem, findings);
    }
    check_arrays(storage, findings);
}

/// The absolute path of a device.
pub(super) fn check_device(path: String, device: &str, findings: &mut Findings<'_>) {
    if device.is_empty() {
        findings.error(path, "a device is required");
    } else if let Err(reason) = check_path(device) {
        findings.error(path, reason);
    }
}

fn check_filesystem(at: &str, filesystem: &Filesystem, findings: &mut Findings<'_>) {
    check_device(format!("{at}.device"), &filesystem.device, findings);
    let format = filesystem.format.as_deref().unwrap_or_default();
    // The longest label that each mkfs accepts, in bytes.
    let label_max = match format {
        "ext4" => 16,
        "btrfs" => 256,
        "xfs" => 12,
        "vfat" => 11,
        "swap" => 15,
        "" | "none" => usize::MAX,
        _ => {
            findings.error(
                format!("{at}.format"),
                format!(
                    "{format:?} is not a format: expected ext4, btrfs, xfs, vfat, swap or none"
                ),
            );
            usize::MAX
        }
    };
    let label = filesystem.label.as_deref().unwrap_or_default();
    if label.len() > label_max {
        let message = format!("a {format} label has at most {label_max} characters");
        findings.error(format!("{at}.label"), message);
    }
    let path = filesystem.path.as_deref().unwrap_or_default();
    if !path.is_empty()
        && let Err(reason) = check_path(path)
    {
        findings.error(format!("{at}.path"), reason);
    }
    let says_more = !path.is_empty()
        || !label.is_empty()
        || filesystem
            .uuid
            .as_ref()
            .is_some_and(|uuid| !uuid.is_empty())
        || filesystem.wipe_filesystem == Some(true)
        || filesystem.options.iter().flatten().next().is_some()
        || filesystem.mount_options.iter().flatten().next().is_some();
    if format.is_empty() && says_more {
        findings.error(
            format!("{at}.format"),
            "a format is required with these settings",
        );
    }
}

fn check_arrays(storage: &Storage, findings: &mut Findings<'_>) {
    let arrays = storage.raid.as_deref().unwrap_or_default();
    findings.check_unique(
        "storage.raid",
        "name",
        arrays.iter().map(|array| &array.name),
    );
    for (i, array) in arrays.iter().enumerate() {
        let at = join_index("storage.raid", i);
        let level = array.level.as_deref().unwrap_or_default();
        match level {
            "linear" | "raid0" | "0" | "stripe" => {
                if array.spares.unwrap_or_default() != 0 {
                    findings.error(
                        format!("{at}.level"),
                        "linear and raid0 arrays have no spares",
                    );
                }
            }
            "raid1" | "1" | "mirror" | "raid4" | "4" | "raid5" | "5" | "raid6" | "6" | "raid10"
            | "10" => {}
            _ => findings.error(
                format!("{at}.level"),
                format!("{level:?} is not a RAID level: expected linear, raid0, 1, 4, 5, 6 or 10"),
            ),
        }
        let devices = array.devices.as_deref().unwrap_or_default();
        if devices.is_empty() {
            findings.error(format!("{at}.devices"), "an array needs devices");
        }
        findings.check_unique(&format!("{at}.devices"), "path", devices.iter());
        for (j, device) in devices.iter().enumerate() {
            check_device(join_index(&format!("{at}.devices"), j), device, findings);
        }
    }
}
