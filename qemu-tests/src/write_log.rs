//! The log that QEMU's block driver `blklogwrites` keeps: every write, discard and flush of a disk, in the order in
//! which they were done.
//!
//! The format is that of Linux' dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst,
//! drivers/md/dm-log-writes.c), all numbers little-endian. A super block in the first sector, then entries, each in a
//! sector of its own, followed by its data:
//!
//! ```text
//!  super block  magic u64 | version u64 | number of entries u64 | sector size u32
//!  entry        first sector u64 | sectors u64 | flags u64 | length of a mark u64
//! ```
//!
//! QEMU (block/blklogwrites.c) does a request first and logs it then, and brings the super block up to date at each
//! flush. So a write that was under way while the guest asked for a flush may stand before it in the log: this
//! reading takes it for one that the flush covers, which a disk need not have done.

pub(crate) mod cut;
pub(crate) mod replay;

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
/// Sectors of a log may be as large as a page of any architecture (QEMU takes up to 8 MiB, which no disk has).
const MOST_SECTOR_BYTES: u64 = 64 << 10;

/// One request of a machine to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its first byte on the disk.
    pub at: u64,
    /// How many bytes of the disk it is about; 0 for a mere flush.
    pub length: u64,
    /// Everything before it is on the disk for good.
    pub flush: bool,
    /// So is this itself, once it is done.
    pub fua: bool,
    /// It says that the bytes are no longer needed, and has no data.
    pub discard: bool,
    /// Where its data begins in the log; data of the length 0 is no data.
    pub data: u64,
}

impl Entry {
    /// Whether it changes anything in the bytes from `start` up to `end`.
    pub(crate) fn touches(&self, start: u64, end: u64) -> bool {
        self.length > 0 && self.at < end && self.at + self.length > start
    }
}

/// A log that was read. The data of the entries stays in the file.
#[derive(Debug)]
pub(crate) struct WriteLog {
    /// The file.
    pub file: File,
    /// What happened, oldest first.
    pub entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads the entries of a log.
    ///
    /// # Errors
    /// When the file cannot be read, is no log of version 1, or ends before its last entry.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file =
            File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
        let entries = read_entries(&file)
            .with_context(|| format!("failed to read the write log {}", path.display()))?;
        Ok(Self { file, entries })
    }
}

fn read_entries(file: &File) -> Result<Vec<Entry>> {
    let size = file.metadata()?.len();
    let [magic, version, count, sector] = numbers(file, 0).context("no super block")?;
    ensure!(
        magic == MAGIC,
        "magic {magic:#x}, expected {MAGIC:#x}: no log, or one without a flush"
    );
    ensure!(version == VERSION, "version {version}, expected {VERSION}");
    // The sector size has four bytes.
    let sector = sector & u64::from(u32::MAX);
    ensure!(
        sector.is_power_of_two() && (512..=MOST_SECTOR_BYTES).contains(&sector),
        "sectors of {sector} bytes, expected a power of two from 512 to {MOST_SECTOR_BYTES}"
    );
    let mut entries = Vec::new();
    let mut at = sector;
    for index in 0..count {
        let entry = entry(file, at, sector).with_context(|| format!("entry {index} of {count}"))?;
        at = (entry.data)
            .checked_add(entry.stored)
            .filter(|end| *end <= size)
            .with_context(|| format!("entry {index} of {count} ends behind the log"))?;
        // A mark is a word of whoever keeps the log.
        entries.extend(entry.request);
    }
    Ok(entries)
}

struct Found {
    request: Option<Entry>,
    data: u64,
    /// Bytes of data, padded.
    stored: u64,
}

fn entry(file: &File, at: u64, sector: u64) -> Result<Found> {
    let [first, sectors, flags, mark] = numbers(file, at)?;
    ensure!(
        flags & !(FLUSH | FUA | DISCARD | MARK) == 0,
        "unknown flags {flags:#x}"
    );
    let bytes = |sectors: u64| {
        let bytes = sectors.checked_mul(sector);
        bytes.filter(|bytes| *bytes <= i64::MAX as u64 / 2)
    };
    let start = bytes(first).with_context(|| format!("first sector {first}"))?;
    let length = bytes(sectors).with_context(|| format!("{sectors} sectors"))?;
    let data = at + sector;
    if flags & MARK != 0 {
        let stored = mark.checked_next_multiple_of(sector).context("mark")?;
        return Ok(Found {
            request: None,
            data,
            stored,
        });
    }
    let discard = flags & DISCARD != 0;
    Ok(Found {
        request: Some(Entry {
            at: start,
            length,
            flush: flags & FLUSH != 0,
            fua: flags & FUA != 0,
            discard,
            data,
        }),
        data,
        stored: if discard { 0 } else { length },
    })
}

fn numbers(file: &File, at: u64) -> Result<[u64; 4]> {
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, at)
        .with_context(|| format!("failed to read 32 bytes at {at}"))?;
    let (numbers, _) = bytes.as_chunks::<8>();
    let mut found = [0; 4];
    for (number, bytes) in found.iter_mut().zip(numbers) {
        *number = u64::from_le_bytes(*bytes);
    }
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests;
