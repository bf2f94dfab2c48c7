//! Stages that this image does not support, or only in part: kernel arguments, partitions, RAID, encryption, file
//! systems.

use ignition_config::v3_3::{Config, Filesystem, Storage};

use super::super::locate::join_index;
use super::Findings;
use super::machine::Machine;

/// Checks the work for the stages before `files`.
pub(super) fn check(config: &Config, machine: &Machine<'_>, findings: &mut Findings<'_>) {
    if let Some(arguments) = &config.kernel_arguments {
        let lists = [
            ("kernelArguments.shouldExist", &arguments.should_exist),
            (
                "kernelArguments.shouldNotExist",
                &arguments.should_not_exist,
            ),
        ];
        for (path, _) in lists
            .iter()
            .filter(|(_, list)| !list.iter().flatten().collect::<Vec<_>>().is_empty())
        {
            findings.error(*path, "the image refuses this: the kernel command line is part of its signed kernel; remove kernelArguments");
        }
    }
    let Some(storage) = &config.storage else {
        return;
    };
    for (i, disk) in storage.disks.iter().flatten().enumerate() {
        if disk.wipe_table == Some(true) || disk.partitions.iter().flatten().next().is_some() {
            let at = join_index("storage.disks", i);
            findings.error(
                at,
                refused("sgdisk", machine, "use a disk that is already partitioned"),
            );
        }
    }
    for (i, _) in storage.raid.iter().flatten().enumerate() {
        let at = join_index("storage.raid", i);
        findings.error(at, refused("mdadm", machine, "remove the section"));
    }
    for (i, volume) in storage.luks.iter().flatten().enumerate() {
        let at = join_index("storage.luks", i);
        let tool = if volume.clevis.is_some() {
            "clevis"
        } else {
            "cryptsetup"
        };
        findings.error(at, refused(tool, machine, "remove the section"));
    }
    for (i, filesystem) in storage.filesystems.iter().flatten().enumerate() {
        let at = join_index("storage.filesystems", i);
        check_filesystem(&at, filesystem, storage, machine, findings);
    }
}

fn refused(tool: &str, machine: &Machine<'_>, remedy: &str) -> String {
    let why = machine.image.tools.refused.get(tool).map_or("", |why| why);
    format!("{why}: the initrd has no {tool}, so the boot stops there; {remedy}")
}

fn check_filesystem(
    at: &str,
    filesystem: &Filesystem,
    storage: &Storage,
    machine: &Machine<'_>,
    findings: &mut Findings<'_>,
) {
    let path = filesystem.path.as_deref().unwrap_or_default();
    let tool = match filesystem.format.as_deref().unwrap_or_default() {
        "btrfs" => Some("mkfs.btrfs"),
        "vfat" => Some("mkfs.fat"),
        "xfs" => Some("mkfs.xfs"),
        _ => None,
    };
    if let Some(tool) = tool {
        let remedy = "use ext4";
        let field = format!("{at}.format");
        if filesystem.wipe_filesystem == Some(true) || !path.is_empty() {
            findings.error(field, refused(tool, machine, remedy));
        } else {
            let message = refused(tool, machine, remedy);
            findings.warn(
                field,
                format!("{message}, unless the device already has this file system"),
            );
        }
        return;
    }
    if path.is_empty() || filesystem.format.as_deref() != Some("ext4") {
        return;
    }
    let field = format!("{at}.path");
    let is_image = machine
        .image
        .read_only(path)
        .or(machine.image.covered(path));
    if path == "/" || path == "/etc" || is_image.is_some() {
        findings.error(
            field,
            format!(
                "{path} belongs to the image; mount the file system elsewhere, for example below /var or /srv"
            ),
        );
    } else if !machine.has_unit(&mount_unit(path))
        && storage
            .files
            .iter()
            .flatten()
            .all(|f| f.path != "/etc/fstab")
    {
        findings.warn(
            field,
            format!("Ignition mounts this while it writes, and nothing mounts it afterwards; add a unit {} with Where={path}", mount_unit(path)),
        );
    }
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
