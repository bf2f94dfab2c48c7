//! The partition table of a disk or an image file (UEFI specification 2.10, §5.3.2 and 5.3.3).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// More entries than this, or larger ones, has no table in the field: 128 of 128 bytes are usual.
const LONGEST_TABLE: usize = 1 << 20;
/// Bytes of a header, and the least of an entry.
const HEADER: usize = 92;
const ENTRY: usize = 128;

/// A partition, as its table has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::appliance) struct Entry {
    /// What it is for: a GUID, with the bytes as they lie on the disk.
    pub(in crate::appliance) kind: [u8; 16],
    /// Its label.
    pub(in crate::appliance) label: String,
    /// Its first and its last sector.
    pub(in crate::appliance) first: u64,
    pub(in crate::appliance) last: u64,
}

/// The partition with a number, from 1 on, of a disk with sectors of `sector` bytes; `None` if there is no table or no
/// such partition.
pub(in crate::appliance) fn entry(
    disk: &File,
    sector: u64,
    number: usize,
) -> io::Result<Option<Entry>> {
    let mut header = [0; HEADER];
    disk.read_exact_at(&mut header, sector)?;
    let place = || {
        header.starts_with(b"EFI PART").then_some(())?;
        let (first, count, size) = (
            u64_at(&header, 72)?,
            u32_at(&header, 80)?,
            u32_at(&header, 84)?,
        );
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
    Ok(parsed(&entry))
}

/// `None` where an entry is unused.
fn parsed(entry: &[u8; ENTRY]) -> Option<Entry> {
    let kind = *entry.first_chunk::<16>()?;
    if kind.iter().all(|byte| *byte == 0) {
        return None;
    }
    let units = entry[56..]
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let units: Vec<_> = units.take_while(|unit| *unit != 0).collect();
    Some(Entry {
        kind,
        label: String::from_utf16_lossy(&units),
        first: u64_at(entry, 32)?,
        last: u64_at(entry, 40)?,
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes))
}

#[cfg(test)]
pub(in crate::appliance) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A partition for [`table`]: its label, and its first and last sector.
    pub(in crate::appliance) type Made<'a> = (&'a str, u64, u64);

    /// The start of a disk whose partitions are these; `None` is an unused entry.
    pub(in crate::appliance) fn table(sector: usize, partitions: &[Option<Made<'_>>]) -> Vec<u8> {
        let mut disk = vec![0; sector * 2 + ENTRY * partitions.len()];
        let header = &mut disk[sector..];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        let count = u32::try_from(partitions.len()).unwrap();
        header[80..84].copy_from_slice(&count.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        for (at, partition) in partitions.iter().enumerate() {
            let Some((label, first, last)) = partition else {
                continue;
            };
            let entry = &mut disk[sector * 2 + ENTRY * at..][..ENTRY];
            entry[0] = 1;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
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
    fn partitions_are_found_by_their_numbers() {
        let file = on_disk(&table(
            512,
            &[Some(("selvage-esp", 2048, 4095)), None, Some(("", 4096, 5))],
        ));
        for (number, expected) in [
            (0, None),
            (1, Some(("selvage-esp", 2048, 4095))),
            (2, None),
            (3, Some(("", 4096, 5))),
            (4, None),
        ] {
            let found = entry(&file, 512, number).unwrap();
            let found = found
                .as_ref()
                .map(|found| (&*found.label, found.first, found.last));
            assert_eq!(found, expected, "{number}");
        }
        // The longest name has no end.
        let longest = "x".repeat(36);
        let file = on_disk(&table(512, &[Some((&longest, 1, 1))]));
        assert_eq!(entry(&file, 512, 1).unwrap().unwrap().label, longest);
    }

    proptest! {
        #[test]
        fn no_table_is_too_strange(
            bytes in proptest::collection::vec(any::<u8>(), 0..HEADER),
            number in any::<usize>(),
        ) {
            let mut disk = table(512, &[Some(("a", 0, 0)), Some(("b", 0, 0))]);
            disk[512 + 8..][..bytes.len().min(84)].copy_from_slice(&bytes[..bytes.len().min(84)]);
            let _ = entry(&on_disk(&disk), 512, number);
        }
    }
}
