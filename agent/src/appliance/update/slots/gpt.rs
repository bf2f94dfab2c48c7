//! Labels of partitions, from the partition table itself.
//!
//! systemd-sysupdate renames partitions in the table. The kernel keeps the names that it read at boot: it takes a new table
//! only of a disk that nothing is mounted from. udev has the new names, some time later.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// More entries than this, or larger ones, has no table in the field: 128 of 128 bytes are usual.
const LONGEST_TABLE: usize = 1 << 20;
/// Bytes of a header, and the least of an entry (UEFI specification 2.10, §5.3.2 and 5.3.3).
const HEADER: usize = 92;
const ENTRY: usize = 128;

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
    entry(&file, sector.unwrap_or(512), number).ok()?
}

/// The directory of a partition's disk: `/sys/class/block` has links into it.
pub(super) fn disk(device: &Path) -> Option<PathBuf> {
    let device = device.canonicalize().ok()?;
    device.parent().map(Path::to_owned)
}

/// The label of the partition with a number, from 1 on; `None` if there is no table or no such partition.
fn entry(disk: &File, sector: u64, number: usize) -> io::Result<Option<String>> {
    let mut header = [0; HEADER];
    disk.read_exact_at(&mut header, sector)?;
    let u64_at = |at: usize| {
        header
            .get(at..at + 8)?
            .try_into()
            .ok()
            .map(u64::from_le_bytes)
    };
    let u32_at = |at: usize| {
        header
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(u32::from_le_bytes)
    };
    let place = || {
        header.starts_with(b"EFI PART").then_some(())?;
        let (first, count, size) = (u64_at(72)?, u32_at(80)?, u32_at(84)?);
        let (count, size) = (usize::try_from(count).ok()?, usize::try_from(size).ok()?);
        let at = number
            .checked_sub(1)
            .filter(|at| *at < count)?
            .checked_mul(size)?;
        (size >= ENTRY && at < LONGEST_TABLE).then_some(())?;
        first
            .checked_mul(sector)?
            .checked_add(u64::try_from(at).ok()?)
    };
    let Some(place) = place() else {
        return Ok(None);
    };
    let mut entry = [0; ENTRY];
    disk.read_exact_at(&mut entry, place)?;
    let (kind, name) = (&entry[..16], &entry[56..]);
    if kind.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let units = name
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<_> = units.take_while(|unit| *unit != 0).collect();
    Ok(Some(String::from_utf16_lossy(&units)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A disk whose partitions have these labels; `None` is an unused entry.
    fn table(sector: usize, labels: &[Option<&str>]) -> Vec<u8> {
        let mut disk = vec![0; sector * 2 + ENTRY * labels.len()];
        let header = &mut disk[sector..];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&u32::try_from(labels.len()).unwrap().to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        for (at, label) in labels.iter().enumerate() {
            let Some(label) = label else { continue };
            let entry = &mut disk[sector * 2 + ENTRY * at..][..ENTRY];
            entry[0] = 1;
            for (unit, place) in label.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        disk
    }

    fn on_disk(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn a_label_is_what_the_table_says_whatever_the_kernel_has_read() {
        for sector in [512, 4096] {
            let root = tempfile::tempdir().unwrap();
            let disk = root.path().join("sys/devices/vda");
            let device = disk.join("vda4");
            let labels = [
                Some("selvage-esp"),
                None,
                Some(""),
                Some("selvage_1.2_verity"),
            ];
            for directory in [&device, &disk.join("queue"), &root.path().join("dev")] {
                fs::create_dir_all(directory).unwrap();
            }
            fs::write(device.join("partition"), "4\n").unwrap();
            fs::write(disk.join("queue/logical_block_size"), format!("{sector}\n")).unwrap();
            assert_eq!(label(root.path(), &device), None);
            fs::write(root.path().join("dev/vda"), table(sector, &labels)).unwrap();
            assert_eq!(
                label(root.path(), &device).as_deref(),
                Some("selvage_1.2_verity")
            );
        }
        let file = on_disk(&table(512, &[Some("selvage-esp"), None, Some("")]));
        for (number, label) in [
            (0, None),
            (1, Some("selvage-esp")),
            (2, None),
            (3, Some("")),
            (4, None),
        ] {
            assert_eq!(
                entry(&file, 512, number).unwrap().as_deref(),
                label,
                "{number}"
            );
        }
        // The longest name has no end.
        let longest = "x".repeat(36);
        let file = on_disk(&table(512, &[Some(&longest)]));
        assert_eq!(entry(&file, 512, 1).unwrap(), Some(longest));
    }

    proptest! {
        #[test]
        fn no_table_is_too_strange(
            bytes in proptest::collection::vec(any::<u8>(), 0..HEADER),
            number in any::<usize>(),
        ) {
            let mut disk = table(512, &[Some("a"), Some("b")]);
            disk[512 + 8..][..bytes.len().min(84)].copy_from_slice(&bytes[..bytes.len().min(84)]);
            let _ = entry(&on_disk(&disk), 512, number);
        }
    }
}
