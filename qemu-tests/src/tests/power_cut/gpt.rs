//! Partition tables, as UEFI 2.10 §5.3 has them: one at the start of a disk, and a copy of it at the end.

use std::{fs::File, ops::Range, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, bail, ensure};

const SECTOR: u64 = 512;
/// Bytes of a header that its checksum covers, in the only revision there is.
const HEADER_BYTES: usize = 92;
/// Bytes of an entry, and how many there may be. Every tool makes 128 of 128 bytes.
const ENTRY_BYTES: u32 = 128;
const MOST_ENTRIES: u32 = 1024;

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its label.
    pub name: String,
    /// Its UUID, with the digits in the order in which they are written.
    pub uuid: [u8; 16],
    /// Where on the disk it is.
    pub bytes: Range<u64>,
}

/// The partitions of a disk of `size` bytes, by its first table that is whole. Firmware repairs the other one by that.
///
/// # Errors
/// When neither is whole; says what is wrong with each.
pub(super) fn partitions(disk: &File, size: u64) -> Result<Vec<Partition>> {
    let last = (size / SECTOR).saturating_sub(1);
    let first = match table(disk, 1, size) {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    match table(disk, last, size) {
        Ok(found) => Ok(found),
        Err(second) => bail!("at the start: {first:#}; at the end: {second:#}"),
    }
}

fn table(disk: &File, at: u64, size: u64) -> Result<Vec<Partition>> {
    let mut header = [0; HEADER_BYTES];
    disk.read_exact_at(&mut header, at * SECTOR)
        .context("failed to read the header")?;
    ensure!(header.starts_with(b"EFI PART"), "no header");
    let sum = number32(&header, 16);
    let length = number32(&header, 12);
    ensure!(length == 92, "a header of {length} bytes");
    let mut unsummed = header;
    unsummed[16..20].fill(0);
    ensure!(
        sum == !crc32(IEEE, &unsummed),
        "the header's checksum is wrong"
    );
    ensure!(
        number64(&header, 24) == at,
        "the header is another sector's"
    );
    let (count, entry) = (number32(&header, 80), number32(&header, 84));
    ensure!(
        entry == ENTRY_BYTES && count <= MOST_ENTRIES,
        "{count} entries of {entry} bytes"
    );
    let mut entries = vec![0; usize::try_from(count * entry)?];
    let from = number64(&header, 72).saturating_mul(SECTOR);
    disk.read_exact_at(&mut entries, from)
        .context("failed to read the entries")?;
    ensure!(
        number32(&header, 88) == !crc32(IEEE, &entries),
        "the entries' checksum is wrong"
    );
    let (entries, _) = entries.as_chunks::<128>();
    (entries.iter())
        .filter(|entry| entry[..16] != [0; 16])
        .map(|entry| partition(entry, size))
        .collect()
}

fn partition(entry: &[u8; 128], size: u64) -> Result<Partition> {
    let (name, _) = entry[56..].as_chunks::<2>();
    let name: Vec<u16> = (name.iter().map(|unit| u16::from_le_bytes(*unit)))
        .take_while(|unit| *unit != 0)
        .collect();
    let name = String::from_utf16_lossy(&name);
    let (first, last) = (number64(entry, 32), number64(entry, 40));
    ensure!(
        first <= last && last < size / SECTOR,
        "partition {name} is from sector {first} to {last}"
    );
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&entry[16..32]);
    // The first three fields are little-endian.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Ok(Partition {
        name,
        uuid,
        bytes: first * SECTOR..(last + 1) * SECTOR,
    })
}

/// The polynomial of Ethernet and GPT, reflected.
pub(super) const IEEE: u32 = 0xedb8_8320;
/// The polynomial of ext4 (Castagnoli), reflected.
pub(super) const CASTAGNOLI: u32 = 0x82f6_3b78;

/// A cyclic redundancy check that starts with ones and is not inverted at the end.
pub(super) fn crc32(polynomial: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (polynomial & (sum & 1).wrapping_neg())
        })
    })
}

/// The little-endian number at `at`; 0 behind the end.
pub(super) fn number32(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>);
    found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The little-endian number at `at`; 0 behind the end.
pub(super) fn number64(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>);
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn put_table(disk: &File, at: u64, entries_at: u64) {
        let mut entries = vec![0; 128 * 128];
        entries[..16].fill(1);
        entries[16..32].copy_from_slice(&[4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16]);
        entries[32..40].copy_from_slice(&100_u64.to_le_bytes());
        entries[40..48].copy_from_slice(&199_u64.to_le_bytes());
        for (target, unit) in entries[56..]
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip("esp".bytes())
        {
            target[0] = unit;
        }
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&92_u32.to_le_bytes());
        header[24..32].copy_from_slice(&at.to_le_bytes());
        header[72..80].copy_from_slice(&entries_at.to_le_bytes());
        header[80..84].copy_from_slice(&128_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        header[88..92].copy_from_slice(&(!crc32(IEEE, &entries)).to_le_bytes());
        let sum = !crc32(IEEE, &header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.write_all_at(&header, at * SECTOR).unwrap();
        disk.write_all_at(&entries, entries_at * SECTOR).unwrap();
    }

    fn disk() -> File {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(SIZE).unwrap();
        put_table(&disk, 1, 2);
        put_table(&disk, SIZE / SECTOR - 1, SIZE / SECTOR - 33);
        disk
    }

    #[test]
    fn checksums_are_those_of_the_standards() {
        // The check values of CRC-32/ISO-HDLC and CRC-32/ISCSI.
        assert_eq!(!crc32(IEEE, b"123456789"), 0xcbf4_3926);
        assert_eq!(!crc32(CASTAGNOLI, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn one_table_is_enough() {
        let expected = [Partition {
            name: "esp".into(),
            uuid: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
            bytes: 100 * SECTOR..200 * SECTOR,
        }];
        let both = disk();
        assert_eq!(partitions(&both, SIZE).unwrap(), expected);
        // A torn array of entries, then nothing at all.
        both.write_all_at(&[9], 2 * SECTOR + 600).unwrap();
        assert_eq!(partitions(&both, SIZE).unwrap(), expected);
        both.write_all_at(&[0; 512], SECTOR).unwrap();
        assert_eq!(partitions(&both, SIZE).unwrap(), expected);
        both.write_all_at(&[0; 8], SIZE - SECTOR + 24).unwrap();
        let error = partitions(&both, SIZE).unwrap_err().to_string();
        assert_eq!(
            error,
            "at the start: no header; at the end: the header's checksum is wrong"
        );
    }
}
