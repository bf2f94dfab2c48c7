//! A power cut: how far a machine got, and what its disk had kept until then.
//!
//! All that was written before the last flush is there. Of what was written later, a disk may have kept anything, in
//! any order; one write may be torn, for a disk writes sectors of 512 bytes as a whole and nothing larger.

use std::ops::Range;

use super::{Entry, WriteLog};

/// What a disk writes as a whole.
pub(crate) const SECTOR: u64 = 512;

/// Numbers by chance that a seed repeats: splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
/// generators").
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// The series of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, and 0 if that is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // The bias is of no account for what is chosen here.
        self.next().checked_rem(end).unwrap_or(0)
    }

    /// One of `of`, if there is any.
    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        let index = self.below(of.len() as u64);
        of.get(usize::try_from(index).ok()?)
    }
}

/// A part of an entry that reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Piece {
    /// Number of the entry.
    pub entry: usize,
    /// The first byte that is there, counted from the start of the entry.
    pub from: u64,
    /// Bytes that are there.
    pub length: u64,
}

/// What was on a disk when the power was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// What repeats it.
    pub seed: u64,
    /// How many entries of the log had been done.
    pub position: usize,
    /// The first so many entries are there as a whole.
    pub durable: usize,
    /// What is there of the later ones, in their order.
    pub pieces: Vec<Piece>,
    /// The one that is torn.
    pub torn: Option<Piece>,
}

impl Cut {
    /// A cut at `moment`; `chance` decides what is kept of what no flush covers.
    pub(crate) fn new(log: &WriteLog, seed: u64, moment: Moment, chance: &mut Chance) -> Self {
        let position = moment.position;
        let durable = durable(&log.entries, position);
        let later: Vec<usize> = (durable..position)
            .filter(|index| {
                log.entries
                    .get(*index)
                    .is_some_and(|entry| entry.length > 0)
            })
            .collect();
        // A disk that keeps all, one that keeps nothing, and those between.
        let quarters = chance.below(5);
        let torn = chance.one(&later).copied();
        let torn = moment.torn.filter(|entry| later.contains(entry)).or(torn);
        let mut cut = Self {
            seed,
            position,
            durable,
            pieces: Vec::new(),
            torn: None,
        };
        for index in later {
            let Some(entry) = log.entries.get(index) else {
                continue;
            };
            let whole = Piece {
                entry: index,
                from: 0,
                length: entry.length,
            };
            if torn == Some(index) && entry.length > SECTOR && !entry.discard && !entry.fua {
                let piece = tear(whole, chance);
                cut.torn = Some(piece);
                cut.pieces.push(piece);
            } else if entry.fua || chance.below(4) < quarters {
                cut.pieces.push(whole);
            }
        }
        cut
    }

    /// What tells apart the contents of the bytes in `range`: the same value, the same bytes.
    pub(crate) fn state_of(&self, log: &WriteLog, range: &Range<u64>) -> (usize, Vec<Piece>) {
        let touches = |entry: &Entry| entry.touches(range.start, range.end);
        let last = (log.entries.iter().take(self.durable)).rposition(touches);
        let pieces = self.pieces.iter().filter(|piece| {
            let entry = log.entries.get(piece.entry).copied();
            entry.is_some_and(|entry| {
                let at = entry.at + piece.from;
                at < range.end && at + piece.length > range.start
            })
        });
        (last.map_or(0, |last| last + 1), pieces.copied().collect())
    }
}

/// How many of the first `position` entries a flush among them covers.
fn durable(entries: &[Entry], position: usize) -> usize {
    entries
        .iter()
        .take(position)
        .rposition(|entry| entry.flush)
        .map_or(0, |flush| {
            // A flush with data covers what came before that.
            match entries.get(flush) {
                Some(entry) if entry.length > 0 && !entry.fua => flush,
                _ => flush + 1,
            }
        })
}

/// The first or the last sectors of a write.
fn tear(whole: Piece, chance: &mut Chance) -> Piece {
    let kept = (1 + chance.below(whole.length / SECTOR - 1)) * SECTOR;
    let from = if chance.below(2) == 0 {
        0
    } else {
        whole.length - kept
    };
    Piece {
        from,
        length: kept,
        ..whole
    }
}

/// A stretch of a machine's life, by the entries that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Phase {
    /// What went on.
    pub name: String,
    /// Its entries.
    pub entries: Range<usize>,
}

/// When the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// After so many entries.
    pub position: usize,
    /// The write that is torn; none: any.
    pub torn: Option<usize>,
}

/// What is to be known of a disk to cut the power where it hurts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The part that most writes go to.
    pub common: Range<u64>,
    /// Where everything else is found from: the starts of the disk and of its partitions.
    pub anchors: Vec<Range<u64>>,
}

impl Layout {
    fn is_rare(&self, entry: &Entry) -> bool {
        entry.touches(0, self.common.start) || entry.touches(self.common.end, u64::MAX)
    }

    fn is_anchor(&self, entry: &Entry) -> bool {
        let mut anchors = self.anchors.iter();
        !entry.discard && anchors.any(|anchor| entry.touches(anchor.start, anchor.end))
    }
}

/// When the power is cut for `seed`: phases take turns, and each gets cuts of four kinds by turns: anywhere, anywhere
/// between two flushes of which each counts the same, the same with those that write outside of what is common, and
/// between a write to an anchor, which is torn, and its flush.
pub(crate) fn moment(
    log: &WriteLog,
    phases: &[Phase],
    layout: &Layout,
    seed: u64,
    chance: &mut Chance,
) -> Moment {
    let turn = usize::try_from(seed % 3_000_000).unwrap_or(0);
    let Some(phase) = phases.get(turn % phases.len().max(1)) else {
        return Moment {
            position: log.entries.len(),
            torn: None,
        };
    };
    let windows = windows(log, phase);
    let has = |window: &Range<usize>, wanted: &dyn Fn(&Entry) -> bool| {
        let entries = log.entries.get(window.clone()).unwrap_or_default();
        entries.iter().rposition(wanted).map(|at| window.start + at)
    };
    let with = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<Range<usize>> {
        let found = windows
            .iter()
            .filter(|window| has(window, wanted).is_some());
        found.cloned().collect()
    };
    let kind = turn / phases.len().max(1) % 4;
    let among = match kind {
        0 => None,
        1 => chance.one(&windows).cloned(),
        2 => chance.one(&with(&|entry| layout.is_rare(entry))).cloned(),
        _ => chance.one(&with(&|entry| layout.is_anchor(entry))).cloned(),
    };
    let Range { mut start, end } = among.unwrap_or_else(|| phase.entries.clone());
    let torn = (kind == 3)
        .then(|| has(&(start..end), &|entry| layout.is_anchor(entry)))
        .flatten();
    let mut last = end;
    if let Some(torn) = torn {
        start = torn;
        // Before the flush that the window ends with.
        last = end.saturating_sub(1).max(torn + 1);
    }
    // After the first at least: what is before it is the end of the window before.
    let position = start + 1 + usize::try_from(chance.below((last - start) as u64)).unwrap_or(0);
    Moment {
        position: position.min(last),
        torn,
    }
}

/// The entries between two flushes, each with the flush that ends it.
fn windows(log: &WriteLog, phase: &Phase) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    let mut start = phase.entries.start;
    for index in phase.entries.clone() {
        let ends = log.entries.get(index).is_some_and(|entry| entry.flush);
        if ends || index + 1 == phase.entries.end {
            windows.push(start..index + 1);
            start = index + 1;
        }
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_log::tests::{FLUSHED, log, write};

    fn at(position: usize) -> Moment {
        Moment {
            position,
            torn: None,
        }
    }

    #[test]
    fn what_a_flush_covers_is_there_and_the_rest_by_chance() {
        let (_dir, log) = log(&[
            write(0, b'a', 8),
            FLUSHED,
            write(8, b'b', 8),
            write(16, b'c', 8),
            write(24, b'd', 1),
        ]);
        let mut kept = std::collections::HashSet::new();
        let mut torn = std::collections::HashSet::new();
        for seed in 0..400 {
            let cut = Cut::new(&log, seed, at(5), &mut Chance::new(seed));
            assert_eq!(cut.durable, 2);
            assert!(cut.pieces.iter().all(|piece| piece.entry >= 2));
            assert!(cut.pieces.is_sorted_by_key(|piece| piece.entry));
            kept.insert(
                cut.pieces
                    .iter()
                    .map(|piece| piece.entry)
                    .collect::<Vec<_>>(),
            );
            if let Some(piece) = cut.torn {
                assert!(piece.length % SECTOR == 0 && piece.length < 8 * SECTOR);
                assert!(piece.from == 0 || piece.from + piece.length == 8 * SECTOR);
                torn.insert((piece.entry, piece.from, piece.length));
            }
            assert_eq!(cut, Cut::new(&log, seed, at(5), &mut Chance::new(seed)));
        }
        // A torn one is never wholly absent: seven sets of the three, and none of them.
        assert_eq!(kept.len(), 8, "{kept:?}");
        // Two writes, two ends, seven lengths. One sector cannot be torn.
        assert_eq!(torn.len(), 28, "{torn:?}");
    }

    #[test]
    fn right_after_a_flush_nothing_is_open() {
        let (_dir, log) = log(&[write(0, b'a', 8), FLUSHED, write(8, b'b', 8)]);
        let cut = Cut::new(&log, 1, at(2), &mut Chance::new(1));
        assert_eq!((cut.durable, cut.pieces.len(), cut.torn), (2, 0, None));
    }

    #[test]
    fn a_range_that_nothing_touched_is_in_the_same_state() {
        let (_dir, log) = log(&[write(0, b'a', 8), FLUSHED, write(8, b'b', 8), FLUSHED]);
        let cut = |position| Cut::new(&log, 1, at(position), &mut Chance::new(1));
        let first = 0..8 * SECTOR;
        let second = 8 * SECTOR..16 * SECTOR;
        assert_eq!(cut(2).state_of(&log, &first), cut(4).state_of(&log, &first));
        assert_ne!(
            cut(2).state_of(&log, &second),
            cut(4).state_of(&log, &second)
        );
    }

    #[test]
    fn cuts_are_in_all_phases_and_often_where_little_is_written() {
        let mut requests = Vec::new();
        for index in 0..100 {
            requests.push(write(1000 + index, b'x', 1));
            requests.push(FLUSHED);
        }
        requests.push(write(0, b'y', 1));
        requests.push(write(1, b'y', 1));
        requests.push(FLUSHED);
        let (_dir, log) = log(&requests);
        let phase = |name: &str, entries| Phase {
            name: name.into(),
            entries,
        };
        let phases = [phase("long", 0..150), phase("short", 150..203)];
        let layout = Layout {
            common: 1000 * SECTOR..2000 * SECTOR,
            anchors: vec![500 * SECTOR..501 * SECTOR, 1010 * SECTOR..1011 * SECTOR],
        };
        let moments: Vec<_> = (0..80)
            .map(|seed| moment(&log, &phases, &layout, seed, &mut Chance::new(seed)))
            .collect();
        let count = |wanted: &dyn Fn(&Moment) -> bool| {
            moments.iter().filter(|moment| wanted(moment)).count()
        };
        assert_eq!(count(&|moment| moment.position <= 150), 40);
        assert!(count(&|moment| moment.position > 200) >= 10);
        assert_eq!(count(&|moment| (1..=203).contains(&moment.position)), 80);
        // The anchor is written once, in the first phase, and a flush comes after it.
        let torn = Moment {
            position: 21,
            torn: Some(20),
        };
        assert_eq!(count(&|moment| *moment == torn), 10);
        assert_eq!(count(&|moment| moment.torn.is_some()), 10);
    }

    #[test]
    fn the_write_that_is_to_be_torn_is_torn() {
        let (_dir, log) = log(&[write(0, b'a', 8), write(8, b'b', 8), write(16, b'c', 8)]);
        for seed in 0..50 {
            let moment = Moment {
                position: 3,
                torn: Some(1),
            };
            let cut = Cut::new(&log, seed, moment, &mut Chance::new(seed));
            assert_eq!(cut.torn.map(|piece| piece.entry), Some(1));
        }
    }
}
