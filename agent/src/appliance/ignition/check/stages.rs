//! The stages before `files`, where what Ignition takes meets what the image is: its own disk, its kernel, its tools.

use ignition_config::v3_3::{Config, Disk, Filesystem, Luks, Partition, Storage};

use super::super::locate::join_index;
use super::Findings;
use super::machine::Machine;

/// The name of the disk that the image is on, while Ignition runs; Fedora CoreOS has given it.
const BOOT_DISK: &str = "/dev/disk/by-id/coreos-boot-disk";
/// Partitions that the image brings: the ESP, and the first slot.
const OWN_PARTITIONS: i64 = 3;
/// What the labels of the image's partitions begin with: those of one name, and those that have a version.
const OWN_LABELS: [&str; 2] = ["selvage-", "selvage_"];
/// Where the devices of partitions are, by label.
const BY_LABEL: &str = "/dev/disk/by-partlabel/";
/// The smallest file system that mkfs.xfs 6.13 makes, in MiB.
const XFS_MIN_MIB: i64 = 300;

/// Checks the work for the stages before `files`.
pub(super) fn check(config: &Config, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    let Some(storage) = &config.storage else {
        return;
    };
    for (i, disk) in storage.disks.iter().flatten().enumerate() {
        check_disk(&join_index("storage.disks", i), disk, findings);
    }
    for (i, array) in storage.raid.iter().flatten().enumerate() {
        for (j, device) in array.devices.iter().flatten().enumerate() {
            let at = join_index(&format!("{}.devices", join_index("storage.raid", i)), j);
            check_device(at, device, findings);
        }
        if array.level.as_deref() == Some("linear") {
            let at = format!("{}.level", join_index("storage.raid", i));
            findings.error(
                at,
                "the image's kernel has no linear arrays, so the boot stops there; use raid0",
            );
        }
    }
    for (i, volume) in storage.luks.iter().flatten().enumerate() {
        check_volume(&join_index("storage.luks", i), volume, findings);
    }
    for (i, filesystem) in storage.filesystems.iter().flatten().enumerate() {
        let at = join_index("storage.filesystems", i);
        check_filesystem(&at, filesystem, storage, machine, findings);
    }
}

/// The disk of the image is known by one name only; the initrd refuses the same things by any.
fn check_disk(at: &str, disk: &Disk, findings: &mut Findings<'_>) {
    let is_ours = disk.device == BOOT_DISK;
    if is_ours && disk.wipe_table == Some(true) {
        let message =
            "the image itself is on this disk, so its table cannot be wiped; add partitions to it";
        findings.error(format!("{at}.wipeTable"), message);
    }
    for (i, partition) in disk.partitions.iter().flatten().enumerate() {
        let at = join_index(&format!("{at}.partitions"), i);
        let label = partition.label.as_deref().unwrap_or_default();
        if is_own(label) {
            let message = format!("{label:?} is a label of the image's partitions; choose another");
            findings.error(format!("{at}.label"), message);
        }
        let is_kept = disk.wipe_table != Some(true) && partition.number.unwrap_or_default() == 0;
        if is_kept {
            findings.warn(
                &at,
                "without a number, provisioning again (after a power cut, or selvage reset) adds one more partition; set \
                 number, on the image's disk from 10 on",
            );
        }
        if is_ours {
            check_beside_image(&at, partition, findings);
        }
    }
}

/// Whether this is the label of a partition of the image.
fn is_own(label: &str) -> bool {
    OWN_LABELS.iter().any(|start| label.starts_with(start))
}

/// Checks that a device is not a partition of the image, which would be overwritten.
fn check_device(at: String, device: &str, findings: &mut Findings<'_>) {
    if device.strip_prefix(BY_LABEL).is_some_and(is_own) {
        findings.error(
            at,
            format!("{device} is a partition of the image, which this would overwrite"),
        );
    }
}

fn check_beside_image(at: &str, partition: &Partition, findings: &mut Findings<'_>) {
    let number = partition.number.unwrap_or_default();
    if (1..=OWN_PARTITIONS).contains(&number) {
        findings.error(
            format!("{at}.number"),
            format!("partitions 1 to {OWN_PARTITIONS} of this disk are the image's; take a number from 10 on"),
        );
    } else if partition.should_exist != Some(false) && partition.size_mib.unwrap_or_default() == 0 {
        findings.error(
            at,
            "without sizeMiB this takes the rest of the disk, and the image needs 1.5 GiB and more for its second slot and \
             the root; set sizeMiB",
        );
    } else if partition.label.as_deref() == Some("root") {
        findings.warn(
            format!("{at}.label"),
            "this does not size the root: the image makes it afterwards, in the space that is left, so it takes this \
             partition for one more",
        );
    }
}

fn check_volume(at: &str, volume: &Luks, findings: &mut Findings<'_>) {
    const NO_TANG: &str = "the image opens volumes by key file or TPM, and has no client of Tang servers, so the boot stops \
                           there; use keyFile, or clevis.tpm2";
    let device = volume.device.as_deref().unwrap_or_default();
    check_device(format!("{at}.device"), device, findings);
    let Some(clevis) = &volume.clevis else { return };
    if clevis.tang.iter().flatten().next().is_some() {
        findings.error(format!("{at}.clevis.tang"), NO_TANG);
    }
    let custom = clevis.custom.as_ref();
    let is_other = custom.is_some_and(|custom| {
        let config = custom.config.as_deref().unwrap_or_default();
        let pin = custom.pin.as_deref().unwrap_or_default();
        pin == "tang" || config.contains("\"url\"")
    });
    if is_other {
        findings.error(format!("{at}.clevis.custom"), NO_TANG);
    }
}

fn check_filesystem(
    at: &str,
    filesystem: &Filesystem,
    storage: &Storage,
    machine: &Machine<'_>,
    findings: &mut Findings<'_>,
) {
    check_device(format!("{at}.device"), &filesystem.device, findings);
    let format = filesystem.format.as_deref().unwrap_or_default();
    if format == "xfs"
        && let Some(size) = size_mib(&filesystem.device, storage)
        && (1..XFS_MIN_MIB).contains(&size)
    {
        findings.error(
            format!("{at}.format"),
            format!("mkfs.xfs makes no file system smaller than {XFS_MIN_MIB} MiB, and the partition has {size}"),
        );
    }
    let path = filesystem.path.as_deref().unwrap_or_default();
    if path.is_empty() || ["", "none", "swap"].contains(&format) {
        return;
    }
    let field = format!("{at}.path");
    let image = machine.image;
    let is_image = image.read_only(path).or(image.covered(path)).is_some();
    if path == "/" {
        findings.error(
            field,
            "the root is the image's own partition, selvage-root, with ext4; mount file systems below it, for example at \
             /var or /var/lib/docker",
        );
    } else if path == "/etc" || is_image {
        findings.error(
            field,
            format!(
                "{path} belongs to the image; mount the file system elsewhere, for example below /var or /srv"
            ),
        );
    } else if !machine.has_unit(&mount_unit(path)) && !machine.brings("/etc/fstab") {
        findings.warn(
            field,
            format!("Ignition mounts this while it writes, and nothing mounts it afterwards; add a unit {} with Where={path}", mount_unit(path)),
        );
    }
}

/// The size of the partition that a device is, where the config makes it.
fn size_mib(device: &str, storage: &Storage) -> Option<i64> {
    let label = device.strip_prefix(BY_LABEL)?;
    let mut partitions = storage
        .disks
        .iter()
        .flatten()
        .flat_map(|disk| disk.partitions.iter().flatten());
    let partition = partitions.find(|partition| partition.label.as_deref() == Some(label))?;
    partition.size_mib
}

/// The name of the unit that mounts at `path` (systemd.unit(5), string escaping).
pub(super) fn mount_unit(path: &str) -> String {
    let mut name = String::new();
    for (i, byte) in path.trim_matches('/').bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' => name.push(char::from(byte)),
            b'.' if i > 0 => name.push('.'),
            other => name.push_str(&format!("\\x{other:02x}")),
        }
    }
    if name.is_empty() {
        "-.mount".to_owned()
    } else {
        name + ".mount"
    }
}
