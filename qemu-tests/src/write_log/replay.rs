//! Brings a disk into the states of power cuts, one after the other, by no more than what came since the one before.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::{FallocateFlags, fallocate},
    unistd::{Whence, lseek},
};

use super::{
    WriteLog,
    cut::{Cut, Piece},
};

/// From this length on it pays to look for holes: QEMU logs zeroes that were never written as a hole.
const SPARSE_BYTES: u64 = 64 << 10;
/// What is copied at once.
const CHUNK: u64 = 1 << 20;

/// A disk on its way through a log.
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    log: &'a WriteLog,
    /// The disk: a raw image, sparse.
    pub disk: File,
    /// So many entries are on it for good.
    applied: usize,
    /// What the pieces of the last cut overwrote, and where; to be put back from the end.
    undo: Vec<(Range<u64>, Vec<Data>)>,
}

#[derive(Debug)]
struct Data {
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Replay<'a> {
    /// Begins with `disk` as it was when the log began.
    pub(crate) fn new(log: &'a WriteLog, disk: File) -> Self {
        Self {
            log,
            disk,
            applied: 0,
            undo: Vec::new(),
        }
    }

    /// Brings the disk into the state of `cut`, which must not be before the cut before it.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub(crate) fn cut(&mut self, cut: &Cut) -> Result<()> {
        ensure!(
            cut.durable >= self.applied,
            "the cut of seed {} is before the one that was replayed last",
            cut.seed
        );
        self.undo()?;
        for entry in self.applied..cut.durable {
            self.apply(whole(self.log, entry))?;
        }
        self.applied = cut.durable;
        for piece in &cut.pieces {
            self.save(*piece)?;
            self.apply(*piece)?;
        }
        Ok(())
    }

    fn apply(&self, piece: Piece) -> Result<()> {
        let Some(entry) = self.log.entries.get(piece.entry) else {
            return Ok(());
        };
        let at = entry.at + piece.from;
        let done = if entry.discard {
            clear(&self.disk, &(at..at + piece.length))
        } else {
            let from = entry.data + piece.from;
            copy(&self.log.file, &(from..from + piece.length), &self.disk, at)
        };
        done.with_context(|| format!("failed to replay entry {}", piece.entry))
    }

    fn save(&mut self, piece: Piece) -> Result<()> {
        let Some(entry) = self.log.entries.get(piece.entry) else {
            return Ok(());
        };
        let at = entry.at + piece.from;
        let range = at..at + piece.length;
        let mut saved = Vec::new();
        for part in data(&self.disk, &range)? {
            let mut bytes = vec![0; usize::try_from(part.end - part.start)?];
            read_at_most(&self.disk, &mut bytes, part.start)?;
            saved.push(Data {
                at: part.start,
                bytes,
            });
        }
        self.undo.push((range, saved));
        Ok(())
    }

    fn undo(&mut self) -> Result<()> {
        while let Some((range, saved)) = self.undo.pop() {
            clear(&self.disk, &range)?;
            for data in saved {
                self.disk.write_all_at(&data.bytes, data.at)?;
            }
        }
        Ok(())
    }
}

fn whole(log: &WriteLog, entry: usize) -> Piece {
    Piece {
        entry,
        from: 0,
        length: log.entries.get(entry).map_or(0, |entry| entry.length),
    }
}

/// Copies bytes from file to file. What is a hole in the source is one in the target.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn copy(source: &File, range: &Range<u64>, target: &File, to: u64) -> io::Result<()> {
    let length = range.end - range.start;
    if length >= SPARSE_BYTES {
        clear(target, &(to..to + length))?;
    }
    let mut buffer = Vec::new();
    for part in data(source, range)? {
        let mut at = part.start;
        while at < part.end {
            let bytes = (part.end - at).min(CHUNK);
            buffer.resize(usize::try_from(bytes).unwrap_or(0), 0);
            read_at_most(source, &mut buffer, at)?;
            target.write_all_at(&buffer, to + (at - range.start))?;
            at += bytes;
        }
    }
    Ok(())
}

/// Gives back the space of the zeroes in a file that were never written, which QEMU reserves.
///
/// # Errors
/// When the file system has no holes.
pub(crate) fn dig_holes(file: &File) -> io::Result<()> {
    let end = file.metadata()?.len();
    let mut at = 0;
    for part in data(file, &(0..end))? {
        clear(file, &(at..part.start))?;
        at = part.end;
    }
    clear(file, &(at..end))
}

/// Reads what is there; behind the end of a file are zeroes.
fn read_at_most(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let read = file.read_at(buffer, at)?;
        if read == 0 {
            buffer.fill(0);
            return Ok(());
        }
        at += read as u64;
        buffer = buffer.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}

/// Makes bytes zeroes that take no space.
fn clear(file: &File, range: &Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(
        file,
        flags,
        offset(range.start),
        offset(range.end - range.start),
    )?;
    Ok(())
}

/// The parts of a range that are no hole.
fn data(file: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    if range.end - range.start < SPARSE_BYTES {
        return Ok(vec![range.clone()]);
    }
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match lseek(file, offset(at), Whence::SeekData) {
            // No data up to the end of the file.
            Err(nix::Error::ENXIO) => break,
            found => unsigned(found?).max(at),
        };
        if start >= range.end {
            break;
        }
        let end = unsigned(lseek(file, offset(start), Whence::SeekHole)?).min(range.end);
        parts.push(start..end);
        at = end;
    }
    Ok(parts)
}

/// No disk and no log here is as long as an offset can tell.
fn offset(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_log::{
        cut::{Chance, Moment, SECTOR},
        tests::{FLUSHED, discard, log, write},
    };

    const SECTORS: u64 = 4096;

    fn disk() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SECTORS * SECTOR).unwrap();
        file
    }

    fn contents(disk: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SECTORS * SECTOR).unwrap()];
        disk.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The state of a cut, made in the simplest way there is.
    fn plainly(log: &WriteLog, cut: &Cut) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SECTORS * SECTOR).unwrap()];
        let durable = (0..cut.durable).map(|entry| whole(log, entry));
        for piece in durable.chain(cut.pieces.iter().copied()) {
            let entry = log.entries[piece.entry];
            let start = usize::try_from(entry.at + piece.from).unwrap();
            let target = &mut bytes[start..][..usize::try_from(piece.length).unwrap()];
            if entry.discard {
                target.fill(0);
            } else {
                (log.file.read_exact_at(target, entry.data + piece.from)).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn cuts_in_turn_give_what_each_gives_alone() {
        let mut chance = Chance::new(7);
        let mut requests = Vec::new();
        for index in 0..300_u32 {
            let sectors = 1 + chance.below(if index % 50 == 0 { 400 } else { 20 });
            let at = chance.below(SECTORS - sectors);
            let byte = u8::try_from(index % 251).unwrap() + 1;
            requests.push(match chance.below(8) {
                0 => FLUSHED,
                1 => discard(at, sectors),
                2 => write(at, 0, sectors),
                _ => write(at, byte, sectors),
            });
        }
        let (_dir, log) = log(&requests);
        let mut cuts: Vec<_> = (0..120)
            .map(|seed| {
                let mut chance = Chance::new(seed);
                let position = usize::try_from(chance.below(301)).unwrap();
                let moment = Moment {
                    position,
                    torn: None,
                };
                Cut::new(&log, seed, moment, &mut chance)
            })
            .collect();
        cuts.sort_by_key(|cut| cut.durable);
        assert!(cuts.iter().filter(|cut| cut.torn.is_some()).count() > 40);
        let mut replay = Replay::new(&log, disk());
        for cut in &cuts {
            replay.cut(cut).unwrap();
            assert!(contents(&replay.disk) == plainly(&log, cut), "{cut:?}");
        }
        let error = replay.cut(&cuts[0]).unwrap_err().to_string();
        assert!(error.contains("is before"), "{error}");
    }

    #[test]
    fn holes_stay_holes() {
        use std::os::unix::fs::MetadataExt as _;
        let source = disk();
        source.write_all_at(b"x", 1_000_000).unwrap();
        let target = disk();
        target.write_all_at(&[7; 500_000], 0).unwrap();
        copy(&source, &(0..SECTORS * SECTOR), &target, 0).unwrap();
        assert!(contents(&target) == contents(&source));
        assert!(target.metadata().unwrap().blocks() * 512 <= 16 << 10);
        // One that was not read yet: what is in the page cache counts as data (lseek(2), SEEK_HOLE).
        let reserved = disk();
        reserved.write_all_at(b"x", 1_000_000).unwrap();
        fallocate(&reserved, FallocateFlags::empty(), 0, 1_500_000).unwrap();
        let taken = || reserved.metadata().unwrap().blocks() * 512;
        assert!(taken() >= 1_000_000);
        dig_holes(&reserved).unwrap();
        assert!(taken() <= 16 << 10 && contents(&reserved) == contents(&source));
    }
}
