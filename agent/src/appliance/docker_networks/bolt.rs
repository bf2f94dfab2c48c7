//! A bbolt file, as far as records of one bucket are listed and removed (go.etcd.io/bbolt: `page.go`, `db.go`,
//! `bucket.go`). All numbers are little endian, as on every machine that the image runs on.
//!
//! A file is made of pages, a bucket is a B+ tree of them: branch pages point to others, leaf pages have the records. Only
//! leaf pages are changed, and in their heads alone: a record that is not listed there is gone. Pages have no checksum but
//! for the two that the file begins with, which stay as they are.

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
    /// Where its page begins in the file.
    page: usize,
    /// Its number in the page.
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
        let buckets = self.list(self.root, DEEPEST)?;
        let found = buckets
            .iter()
            .find(|record| record.key == bucket.as_bytes())?;
        let entry = self.entry(found.page, found.index)?;
        if u32_at(&self.data, entry)? & IS_BUCKET == 0 {
            return None;
        }
        let value = self.place(entry)?.checked_add(found.key.len())?;
        let page = match u64_at(&self.data, value)? {
            // A small bucket is a page inside the record.
            0 => value.checked_add(BUCKET_HEAD)?,
            page => usize::try_from(page).ok()?.checked_mul(self.page_size)?,
        };
        self.list(page, DEEPEST)
    }

    /// Removes a record. `None` if it cannot be: it is the only one of its page. Records that were listed before and are in
    /// the same page have another place now.
    pub(super) fn remove(&mut self, record: &Record) -> Option<()> {
        let count = u16_at(&self.data, record.page + 10)?;
        if count < 2 || record.index >= usize::from(count) {
            return None;
        }
        for index in record.index + 1..usize::from(count) {
            let from = self.entry(record.page, index)?;
            // What an entry names is counted from the entry, which moves towards the page's head.
            let moved = u32::try_from(ENTRY).ok()?;
            let place = u32_at(&self.data, from + 4)?.checked_add(moved)?;
            self.data
                .get_mut(from + 4..from + 8)?
                .copy_from_slice(&place.to_le_bytes());
            self.data.copy_within(from..from + ENTRY, from - ENTRY);
        }
        let fewer = (count - 1).to_le_bytes();
        self.data
            .get_mut(record.page + 10..record.page + 12)?
            .copy_from_slice(&fewer);
        Some(())
    }

    /// The records below a page.
    fn list(&self, page: usize, depth: usize) -> Option<Vec<Record>> {
        let flags = u16_at(&self.data, page.checked_add(8)?)?;
        let count = usize::from(u16_at(&self.data, page + 10)?);
        let mut records = Vec::new();
        for index in 0..count {
            let entry = self.entry(page, index)?;
            if flags == LEAF {
                let length = usize::try_from(u32_at(&self.data, entry + 8)?).ok()?;
                let start = self.place(entry)?;
                let key = self.data.get(start..start.checked_add(length)?)?.to_vec();
                records.push(Record { key, page, index });
            } else if flags == BRANCH && depth > 0 {
                let below = usize::try_from(u64_at(&self.data, entry + 8)?).ok()?;
                records.extend(self.list(below.checked_mul(self.page_size)?, depth - 1)?);
            } else {
                return None;
            }
        }
        Some(records)
    }

    /// Where an entry of a page begins.
    fn entry(&self, page: usize, index: usize) -> Option<usize> {
        let entry = page.checked_add(PAGE_HEAD + index * ENTRY)?;
        self.data.get(entry..entry.checked_add(ENTRY)?)?;
        Some(entry)
    }

    /// Where the key of a leaf page's entry begins.
    fn place(&self, entry: usize) -> Option<usize> {
        entry.checked_add(usize::try_from(u32_at(&self.data, entry + 4)?).ok()?)
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
