//! A bbolt file, as far as records of one bucket are listed and removed (go.etcd.io/bbolt: `page.go`, `db.go`,
//! `bucket.go`). All numbers are little endian, as on every machine that the image runs on.
//!
//! A file is made of pages, a bucket is a B+ tree of them: branch pages point to others, leaf pages have the records. A
//! record is removed from the head of its leaf page alone: what is not listed there is gone. Pages have no checksum but for
//! the two that the file begins with, which stay as they are.
//!
//! A branch page names each page below by that page's first key, and bbolt depends on it: as it writes a page anew, it
//! looks the former first key up in the branch (`node.go`, `spill` and `put`). Without it, it adds a second entry there and
//! leaves the first, of a page that it uses for something else from then on. So with the first record of a page, its name
//! in the branch changes, too.

use std::ops::Range;

/// `magic` in `db.go`.
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// The head of a page: number, flags, count, overflow.
const PAGE_HEAD: usize = 16;
/// One entry of a branch or a leaf page.
const ENTRY: usize = 16;
/// The head of a bucket: its root page and a sequence number.
const BUCKET_HEAD: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// An entry of a leaf page that is a bucket.
const IS_BUCKET: u32 = 1;
/// More than any tree has.
const DEEPEST: usize = 32;

/// A file, in memory.
#[derive(Clone, Debug)]
pub(super) struct Bolt {
    data: Vec<u8>,
    page_size: usize,
    /// The page of the bucket of buckets.
    root: usize,
}

/// A record, and where it is listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    pub(super) key: Vec<u8>,
    at: Place,
    /// The branches that lead to its page, from the root on.
    branches: Vec<Place>,
}

/// An entry of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// Where the page begins in the file.
    page: usize,
    /// The entry's number in the page.
    index: usize,
}

impl Bolt {
    /// Takes a file's contents; `None` if it is no such file, or neither of its first two pages is whole.
    pub(super) fn new(data: Vec<u8>) -> Option<Self> {
        let page_size = usize::try_from(u32_at(&data, PAGE_HEAD + 8)?).ok()?;
        let is_size = page_size.is_power_of_two() && (1024..=65536).contains(&page_size);
        if !is_size {
            return None;
        }
        // The one of the latest transaction that was written whole.
        let metas = [0, page_size]
            .into_iter()
            .filter_map(|page| meta(&data, page));
        let (_, root) = metas.max()?;
        Some(Self {
            root: usize::try_from(root).ok()?.checked_mul(page_size)?,
            data,
            page_size,
        })
    }

    /// The file's contents.
    pub(super) fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The records of a bucket; `None` if there is no such bucket, or the file makes no sense.
    pub(super) fn records(&self, bucket: &str) -> Option<Vec<Record>> {
        let buckets = self.list(self.root)?;
        let found = buckets
            .iter()
            .find(|record| record.key == bucket.as_bytes())?;
        let entry = self.entry(found.at)?;
        if u32_at(&self.data, entry)? & IS_BUCKET == 0 {
            return None;
        }
        let value = self.key(entry, LEAF)?.end;
        let page = match u64_at(&self.data, value)? {
            // A small bucket is a page inside the record.
            0 => value.checked_add(BUCKET_HEAD)?,
            page => usize::try_from(page).ok()?.checked_mul(self.page_size)?,
        };
        self.list(page)
    }

    /// Removes a record. `None` if it cannot be: it is the only one of its page, or the name that its page needs has no
    /// room. Records that were listed before and are in the same page have another place now.
    pub(super) fn remove(&mut self, record: &Record) -> Option<()> {
        let Place { page, index } = record.at;
        let count = self.count(page)?;
        if count < 2 || index >= count {
            return None;
        }
        for index in index + 1..count {
            let from = self.entry(Place { page, index })?;
            // What an entry names is counted from the entry, which moves towards the page's head.
            let moved = u32::try_from(ENTRY).ok()?;
            let place = u32_at(&self.data, from + 4)?.checked_add(moved)?;
            self.put(from + 4, &place.to_le_bytes())?;
            self.data.copy_within(from..from + ENTRY, from - ENTRY);
        }
        let fewer = u16::try_from(count - 1).ok()?;
        self.put(page + 10, &fewer.to_le_bytes())?;
        if index > 0 {
            return Some(());
        }
        let first = self.entry(Place { page, index: 0 })?;
        let first = self.data.get(self.key(first, LEAF)?)?.to_vec();
        for branch in record.branches.iter().rev() {
            self.rename(*branch, &first)?;
            if branch.index > 0 {
                break;
            }
        }
        Some(())
    }

    /// Gives an entry of a branch page another key. `None` if it is longer than the one before, and the page is full.
    fn rename(&mut self, branch: Place, key: &[u8]) -> Option<()> {
        let entry = self.entry(branch)?;
        let mut room = self.key(entry, BRANCH)?;
        if room.len() < key.len() {
            let overflow = usize::try_from(u32_at(&self.data, branch.page + 12)?).ok()?;
            let pages = overflow.checked_add(1)?.checked_mul(self.page_size)?;
            let mut used = 0;
            for index in 0..self.count(branch.page)? {
                let entry = self.entry(Place { index, ..branch })?;
                used = used.max(self.key(entry, BRANCH)?.end);
            }
            room = used..branch.page.checked_add(pages)?;
        }
        if room.len() < key.len() {
            return None;
        }
        let place = u32::try_from(room.start.checked_sub(entry)?).ok()?;
        let length = u32::try_from(key.len()).ok()?;
        self.put(entry, &place.to_le_bytes())?;
        self.put(entry + 4, &length.to_le_bytes())?;
        self.put(room.start, key)
    }

    /// The records of a tree.
    fn list(&self, root: usize) -> Option<Vec<Record>> {
        let mut records = Vec::new();
        // No page of a tree is in it twice, so all entries and their keys together are shorter than the file.
        let mut left = self.data.len();
        self.add(root, &mut Vec::new(), &mut left, &mut records)?;
        Some(records)
    }

    /// Adds the records below a page to which these branches lead, of at most `left` bytes.
    fn add(
        &self,
        page: usize,
        branches: &mut Vec<Place>,
        left: &mut usize,
        records: &mut Vec<Record>,
    ) -> Option<()> {
        let flags = u16_at(&self.data, page.checked_add(8)?)?;
        for index in 0..self.count(page)? {
            let at = Place { page, index };
            let entry = self.entry(at)?;
            let key = self.key(entry, flags)?;
            *left = left.checked_sub(ENTRY + key.len())?;
            if flags == LEAF {
                records.push(Record {
                    key: self.data.get(key)?.to_vec(),
                    at,
                    branches: branches.clone(),
                });
            } else if branches.len() < DEEPEST {
                let below = usize::try_from(u64_at(&self.data, entry + 8)?).ok()?;
                branches.push(at);
                self.add(below.checked_mul(self.page_size)?, branches, left, records)?;
                branches.pop();
            } else {
                return None;
            }
        }
        Some(())
    }

    /// How many entries a page has.
    fn count(&self, page: usize) -> Option<usize> {
        Some(usize::from(u16_at(&self.data, page.checked_add(10)?)?))
    }

    /// Where an entry begins.
    fn entry(&self, Place { page, index }: Place) -> Option<usize> {
        let entry = page.checked_add(PAGE_HEAD + index * ENTRY)?;
        self.data.get(entry..entry.checked_add(ENTRY)?)?;
        Some(entry)
    }

    /// Where the key of an entry is, in a page with these flags; `None` if the page is of another kind than these two.
    fn key(&self, entry: usize, flags: u16) -> Option<Range<usize>> {
        let place = match flags {
            LEAF => 4,
            BRANCH => 0,
            _ => return None,
        };
        let number = |at| usize::try_from(u32_at(&self.data, entry + at)?).ok();
        let start = entry.checked_add(number(place)?)?;
        let end = start.checked_add(number(place + 4)?)?;
        (end <= self.data.len()).then_some(start..end)
    }

    /// Writes bytes over those that are there.
    fn put(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let place = self.data.get_mut(at..at.checked_add(bytes.len())?)?;
        place.copy_from_slice(bytes);
        Some(())
    }
}

/// The transaction and the root page that one of the first two pages names, if it is whole.
fn meta(data: &[u8], page: usize) -> Option<(u64, u64)> {
    let start = page + PAGE_HEAD;
    let is_one = u32_at(data, start)? == MAGIC && u32_at(data, start + 4)? == VERSION;
    let sum = u64_at(data, start + 56)?;
    let is_whole = is_one && fnv(data.get(start..start + 56)?) == sum;
    is_whole.then_some((u64_at(data, start + 48)?, u64_at(data, start + 16)?))
}

/// FNV-1a of 64 bits (draft-eastlake-fnv).
fn fnv(data: &[u8]) -> u64 {
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    data.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    let bytes = data.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}
