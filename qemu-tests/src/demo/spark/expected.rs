//! What the program must come to, computed without Spark: plainly, in one thread and one process.

use ring::digest::{SHA256, SHA512, digest};

/// The sizes of the program, which is `spark/job.py`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Rows of each of the two tables.
    pub rows: u64,
    /// Rows of the result.
    pub groups: u64,
    /// A row's key is its number times this and the round's number, modulo `rows`, to which it must be prime; in the left table.
    pub left: u64,
    /// The same in the right table.
    pub right: u64,
}

/// One row of the result: how many pairs; the sums of the left rows' numbers, of the right rows', and of what the digests of
/// their loads begin with.
pub(crate) type Group = [u64; 4];

impl Job {
    /// The result of a round. Rows are partners if they have the same key.
    pub(crate) fn expected(&self, round: u64) -> Vec<Group> {
        let key = |row: u64, factor: u64| (row * factor + round) % self.rows;
        let mut partners = std::collections::HashMap::new();
        for row in 0..self.rows {
            partners.insert(key(row, self.right), row);
        }
        let mut groups = std::collections::BTreeMap::new();
        for row in 0..self.rows {
            let Some(partner) = partners.get(&key(row, self.left)) else {
                continue;
            };
            let group: &mut Group = groups.entry(row % self.groups).or_default();
            let pair = [1, row, *partner, beginning(row, *partner)];
            for (sum, value) in group.iter_mut().zip(pair) {
                *sum += value;
            }
        }
        groups.into_values().collect()
    }
}

/// The first 40 bits of the digest of both rows' loads.
fn beginning(left: u64, right: u64) -> u64 {
    let loads = format!("{}{}", load('a', left), load('b', right));
    let digest = digest(&SHA256, loads.as_bytes());
    let first = digest.as_ref().iter().take(5);
    first.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a row carries: 128 hexadecimal digits.
fn load(table: char, row: u64) -> String {
    hex(digest(&SHA512, format!("{table}{row}").as_bytes()).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `sha512sum` and `sha256sum`.
    #[test]
    fn digests_are_those_that_others_compute() {
        assert!(load('a', 0).starts_with("560d7e456bf26693"));
        assert_eq!(beginning(0, 7), 0x0a_3282_4762);
    }

    #[test]
    fn every_row_has_one_partner() {
        let job = Job {
            rows: 1_000,
            groups: 8,
            left: 7,
            right: 3,
        };
        let groups = job.expected(5);
        let sum = |place: usize| groups.iter().map(|group| group[place]).sum::<u64>();
        assert_eq!(groups.len(), 8);
        assert_eq!(sum(0), 1_000);
        assert_eq!((sum(1), sum(2)), (499_500, 499_500));
        // Partners change from round to round.
        assert_ne!(groups, job.expected(6));
        let two = Job {
            rows: 2,
            groups: 2,
            left: 1,
            right: 1,
        };
        let groups = [[1, 0, 0, beginning(0, 0)], [1, 1, 1, beginning(1, 1)]];
        assert_eq!(two.expected(1), groups);
    }
}
