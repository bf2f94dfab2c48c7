//! Labels of partitions, from the partition table itself.
//!
//! systemd-sysupdate renames partitions in the table. The kernel keeps the names that it read at boot: it takes a new table
//! only of a disk that nothing is mounted from. udev has the new names, some time later.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::appliance::gpt;

/// The label of a partition, whose directory in `/sys` this is, below the root `root`. `None` if its disk has no GPT, or
/// none that this process may read.
pub(super) fn label(root: &Path, device: &Path) -> Option<String> {
    let number = fs::read_to_string(device.join("partition")).ok()?;
    let number: usize = number.trim().parse().ok()?;
    let disk = disk(device)?;
    // Sizes in `/sys` are in units of 512 bytes; places in the table are in those of the disk.
    let sector = fs::read_to_string(disk.join("queue/logical_block_size")).ok();
    let sector = sector.and_then(|text| text.trim().parse().ok());
    let file = File::open(root.join("dev").join(disk.file_name()?)).ok()?;
    let entry = gpt::entry(&file, sector.unwrap_or(512), number).ok()?;
    entry.map(|entry| entry.label)
}

/// The directory of a partition's disk: `/sys/class/block` has links into it.
pub(super) fn disk(device: &Path) -> Option<PathBuf> {
    let device = device.canonicalize().ok()?;
    device.parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appliance::gpt::tests::table;

    #[test]
    fn a_label_is_what_the_table_says_whatever_the_kernel_has_read() {
        for sector in [512, 4096] {
            let root = tempfile::tempdir().unwrap();
            let disk = root.path().join("sys/devices/vda");
            let device = disk.join("vda4");
            let partitions = [
                Some(("selvage-esp", 1, 2)),
                None,
                Some(("", 3, 4)),
                Some(("selvage_1.2_verity", 5, 6)),
            ];
            for directory in [&device, &disk.join("queue"), &root.path().join("dev")] {
                fs::create_dir_all(directory).unwrap();
            }
            fs::write(device.join("partition"), "4\n").unwrap();
            fs::write(disk.join("queue/logical_block_size"), format!("{sector}\n")).unwrap();
            assert_eq!(label(root.path(), &device), None);
            fs::write(root.path().join("dev/vda"), table(sector, &partitions)).unwrap();
            assert_eq!(
                label(root.path(), &device).as_deref(),
                Some("selvage_1.2_verity")
            );
        }
    }
}
