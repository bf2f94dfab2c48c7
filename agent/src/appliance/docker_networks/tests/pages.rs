//! Stores of several pages, as those of hosts with some containers are: what holds between branches and leaves.

use super::*;

const SIZE: usize = 4096;

/// A page of these flags. Of each entry the words before the place and length of its key, its key, and those after them;
/// then its value. What the entries name comes after them, or ends with the page.
fn page(flags: u16, entries: &[(&str, Entry)], is_full: bool) -> Vec<u8> {
    let mut page = vec![0; SIZE];
    page[8..10].copy_from_slice(&flags.to_le_bytes());
    page[10..12].copy_from_slice(&u16::try_from(entries.len()).unwrap().to_le_bytes());
    let length = |(key, entry): &(&str, Entry)| key.len() + entry.value().len();
    let mut end = match is_full {
        true => SIZE - entries.iter().map(length).sum::<usize>(),
        false => 16 + 16 * entries.len(),
    };
    for (index, (key, entry)) in entries.iter().enumerate() {
        let at = 16 + 16 * index;
        let [place, key_length, length] = [end - at, key.len(), entry.value().len()]
            .map(|n| u32::try_from(n).unwrap().to_le_bytes());
        let words = match entry {
            Entry::Below(page) => [place, key_length, page.to_le_bytes(), [0; 4]],
            Entry::Bucket(_) => [1_u32.to_le_bytes(), place, key_length, length],
            Entry::Record => [[0; 4], place, key_length, length],
        };
        page[at..at + 16].copy_from_slice(&words.concat());
        for part in [key.as_bytes(), &entry.value()] {
            page[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
    }
    page
}

enum Entry {
    /// Of a branch: the page below.
    Below(u32),
    /// Of a leaf: a bucket with this root.
    Bucket(u64),
    Record,
}

impl Entry {
    fn value(&self) -> Vec<u8> {
        match self {
            Self::Below(_) => Vec::new(),
            Self::Bucket(root) => [root.to_le_bytes(), [0; 8]].concat(),
            Self::Record => b"{}".to_vec(),
        }
    }
}

fn first_page(transaction: u64) -> Vec<u8> {
    let mut meta = [0xED0C_DAED_u32, 2, 4096, 0].map(u32::to_le_bytes).concat();
    // The root and its sequence number, the free list, the first page after the last, the transaction.
    meta.extend(
        [3_u64, 0, 2, 11, transaction]
            .map(u64::to_le_bytes)
            .concat(),
    );
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = meta.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    let mut page = vec![0; SIZE];
    page[8..10].copy_from_slice(&4_u16.to_le_bytes());
    page[16..72].copy_from_slice(&meta);
    page[72..80].copy_from_slice(&sum.to_le_bytes());
    page
}

/// A store with this tree, whose root is page 4.
fn store(tree: Vec<Vec<u8>>) -> Vec<u8> {
    let buckets = page(2, &[("libnetwork", Entry::Bucket(4))], false);
    let free = page(16, &[], false);
    let mut pages = vec![first_page(7), first_page(6), free, buckets];
    pages.extend(tree);
    pages.concat()
}

fn number(data: &[u8], at: usize, bytes: usize) -> usize {
    let bytes = data[at..at + bytes].iter().rev();
    bytes.fold(0, |number, byte| (number << 8) | usize::from(*byte))
}

/// The keys of a tree, and what bbolt expects of it: a branch names each page below by that page's first key.
fn walk(data: &[u8], page: usize) -> Vec<String> {
    let (start, mut keys) = (page * SIZE, Vec::new());
    let is_branch = number(data, start + 8, 2) == 1;
    for index in 0..number(data, start + 10, 2) {
        let at = start + 16 + 16 * index;
        let place = if is_branch { at } else { at + 4 };
        let key = at + number(data, place, 4);
        let key = &data[key..key + number(data, place + 4, 4)];
        let key = String::from_utf8(key.to_vec()).unwrap();
        if is_branch {
            let below = walk(data, number(data, at + 8, 8));
            assert_eq!(below[0], key, "page {page}, entry {index}");
            keys.extend(below);
        } else {
            keys.push(key);
        }
    }
    assert!(keys.is_sorted(), "{keys:#?}");
    keys
}

/// Two networks without a network, each the first of its page; what comes after the second has a longer key.
const LEAVES: [[&str; 2]; 4] = [
    [
        "docker/network/v1.0/bridge-endpoint/e1/",
        "docker/network/v1.0/bridge-endpoint/e2/",
    ],
    [
        "docker/network/v1.0/bridge/aa/",
        "docker/network/v1.0/bridge/bb/",
    ],
    [
        "docker/network/v1.0/bridge/cc/",
        "docker/network/v1.0/endpoint/bb/e1-of-a-long-name/",
    ],
    [
        "docker/network/v1.0/network/bb/",
        "docker/network/v1.0/network/dd/",
    ],
];

/// Two branches below the root, each of two leaves.
fn tall(is_full: bool) -> Vec<u8> {
    let mut below = [7_u32, 8, 9, 10].into_iter().zip(LEAVES);
    let mut branch = |is_full| {
        let entries: Vec<_> = (below.by_ref().take(2))
            .map(|(page, keys)| (keys[0], Entry::Below(page)))
            .collect();
        page(1, &entries, is_full)
    };
    let branches = [branch(false), branch(is_full)];
    let root = [
        (LEAVES[0][0], Entry::Below(5)),
        (LEAVES[2][0], Entry::Below(6)),
    ];
    let leaves = LEAVES.map(|keys| page(2, &keys.map(|key| (key, Entry::Record)), false));
    let mut tree = vec![page(1, &root, false)];
    tree.extend(branches);
    tree.extend(leaves);
    store(tree)
}

#[test]
fn with_the_first_record_of_a_page_its_name_changes() {
    let data = tall(false);
    assert_eq!(walk(&data, 4), LEAVES.as_flattened());
    let (root, path) = machine(&data);
    assert_eq!(mend(root.path()).unwrap(), ["aa", "cc"]);
    let orphans = [LEAVES[1][0], LEAVES[2][0]];
    let kept = LEAVES
        .as_flattened()
        .iter()
        .filter(|key| !orphans.contains(key));
    assert_eq!(
        walk(&fs::read(&path).unwrap(), 4),
        kept.copied().collect::<Vec<_>>()
    );
}

#[test]
fn a_branch_without_room_is_not_mended() {
    let data = tall(true);
    assert_eq!(walk(&data, 4), LEAVES.as_flattened());
    let (root, path) = machine(&data);
    assert!(matches!(mend(root.path()), Err(Error::Stuck(_))));
    assert_eq!(fs::read(&path).unwrap(), data);
}

/// Each level would be walked as often as all above have entries: for ever.
#[test]
fn a_branch_that_leads_to_itself_ends_it() {
    let entries = [(); 60].map(|()| ("k", Entry::Below(4)));
    let data = store(vec![page(1, &entries, false)]);
    let (root, path) = machine(&data);
    assert!(mend(root.path()).unwrap().is_empty());
    assert_eq!(fs::read(&path).unwrap(), data);
}
