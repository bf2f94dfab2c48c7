//! Disks, partitions, filesystems, RAID arrays and encrypted volumes.

use ignition_config::v3_3::{Disk, Filesystem, Storage};

use super::super::locate::join_index;
use super::storage::check_path;
use super::{Findings, resource};

/// The GPT has room for 36 UTF-16 units in a partition's name (UEFI §5.3.3).
const LABEL_MAX: usize = 36;

/// Checks what makes disks ready before files are written.
pub(super) fn check(storage: &Storage, minor: u64, findings: &mut Findings<'_>) {
    let disks = storage.disks.as_deref().unwrap_or_default();
    findings.check_unique("storage.disks", "device", disks.iter().map(|d| &d.device));
    for (i, disk) in disks.iter().enumerate() {
        check_disk(&join_index("storage.disks", i), disk, findings);
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
    check_volumes(storage, minor, findings);
}

fn check_device(path: String, device: &str, findings: &mut Findings<'_>) {
    if device.is_empty() {
        findings.error(path, "a device is required");
    } else if let Err(reason) = check_path(device) {
        findings.error(path, reason);
    }
}

fn check_disk(at: &str, disk: &Disk, findings: &mut Findings<'_>) {
    check_device(format!("{at}.device"), &disk.device, findings);
    let partitions = disk.partitions.as_deref().unwrap_or_default();
    let list = format!("{at}.partitions");
    let mut numbers = Vec::new();
    for (i, partition) in partitions.iter().enumerate() {
        let at = join_index(&list, i);
        let number = partition.number.unwrap_or_default();
        let label = partition.label.as_deref().unwrap_or_default();
        if number == 0 && label.is_empty() {
            findings.error(&at, "a partition needs a number from 1 or a label");
        } else if number < 0 {
            findings.error(
                format!("{at}.number"),
                format!("{number} is not a partition number"),
            );
        } else if number > 0 && numbers.contains(&number) {
            let message = format!("an earlier partition has the number {number} too");
            findings.error(format!("{at}.number"), message);
        }
        numbers.push(number);
        if label.encode_utf16().count() > LABEL_MAX {
            let message = format!("a partition label has at most {LABEL_MAX} characters");
            findings.error(format!("{at}.label"), message);
        }
        if label.contains(':') {
            let message = "sgdisk would cut the label off at its colon";
            findings.error(format!("{at}.label"), message);
        }
        for (name, guid) in [
            ("guid", &partition.guid),
            ("typeGuid", &partition.type_guid),
        ] {
            let guid = guid.as_deref().unwrap_or_default();
            if !guid.is_empty() && !is_guid(guid) {
                findings.error(
                    format!("{at}.{name}"),
                    format!(
                        "{guid:?} is not a GUID: expected 01234567-89AB-CDEF-EDCB-A98765432101"
                    ),
                );
            }
        }
    }
}

fn is_guid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let is_hex = |group: &str| group.bytes().all(|b| b.is_ascii_hexdigit());
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.into_iter().all(is_hex)
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
        for (j, device) in devices.iter().enumerate() {
            check_device(join_index(&format!("{at}.devices"), j), device, findings);
        }
    }
}

fn check_volumes(storage: &Storage, minor: u64, findings: &mut Findings<'_>) {
    let volumes = storage.luks.as_deref().unwrap_or_default();
    findings.check_unique(
        "storage.luks",
        "name",
        volumes.iter().map(|volume| &volume.name),
    );
    for (i, volume) in volumes.iter().enumerate() {
        let at = join_index("storage.luks", i);
        if volume.name.contains('/') {
            findings.error(format!("{at}.name"), "a volume's name has no '/'");
        }
        let device = volume.device.as_deref().unwrap_or_default();
        check_device(format!("{at}.device"), device, findings);
        if let Some(key) = &volume.key_file {
            resource::check(&format!("{at}.keyFile"), key, minor, findings);
        }
    }
}
