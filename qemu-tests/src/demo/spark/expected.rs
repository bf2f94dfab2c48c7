//! What the program must come to, computed without Spark: plainly, in one thread and one process.

use std::collections::BTreeMap;

use ring::digest::{Context, SHA256, SHA512, digest};

/// Hexadecimal digits that a row carries: a SHA-512.
const LOAD: usize = 128;

/// The sizes of the program, which is `spark/job.py`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Rows of each of the two tables.
    pub rows: usize,
    /// Rows of the result.
    pub groups: usize,
    /// The key of a row of the left table is its number times this, and the round's number, modulo `rows`. Must be prime to `rows`.
    pub left: usize,
    /// The same in the right table, without the round's number.
    pub right: usize,
}

/// One row of the result: how many pairs; the sums of the left rows' numbers, of the right rows', and of what the digests of
/// their loads begin with.
pub(crate) type Group = [u64; 4];

/// What the rounds of a job come to.
#[derive(Debug)]
pub(crate) struct Expected {
    job: Job,
    /// What the rows of the left table carry.
    left: Vec<[u8; LOAD]>,
    /// The same of the right table.
    right: Vec<[u8; LOAD]>,
}

impl Expected {
    /// Computes what is the same in all rounds.
    pub(crate) fn of(job: Job) -> Self {
        let loads = |table: char| (0..job.rows).map(|row| load(table, row)).collect();
        Self {
            job,
            left: loads('a'),
            right: loads('b'),
        }
    }

    /// The result of a round. Rows are partners if they have the same key.
    pub(crate) fn round(&self, number: usize) -> Vec<Group> {
        let job = self.job;
        // Each key is that of one row.
        let mut partners = vec![0; job.rows];
        for row in 0..job.rows {
            partners[row * job.right % job.rows] = row;
        }
        let mut groups = BTreeMap::new();
        for row in 0..job.rows {
            let partner = partners[(row * job.left + number) % job.rows];
            let group: &mut Group = groups.entry(row % job.groups).or_default();
            let digest = self.beginning(row, partner);
            for (sum, value) in group
                .iter_mut()
                .zip([1, row as u64, partner as u64, digest])
            {
                *sum += value;
            }
        }
        groups.into_values().collect()
    }

    /// The first 40 bits of the digest of both rows' loads.
    fn beginning(&self, left: usize, right: usize) -> u64 {
        let mut context = Context::new(&SHA256);
        context.update(&self.left[left]);
        context.update(&self.right[right]);
        let digest = context.finish();
        let first = digest.as_ref().iter().take(5);
        first.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

/// What a row carries.
fn load(table: char, row: usize) -> [u8; LOAD] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = digest(&SHA512, format!("{table}{row}").as_bytes());
    let mut load = [0; LOAD];
    for (pair, byte) in load.chunks_exact_mut(2).zip(digest.as_ref()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By `sha512sum` and `sha256sum`.
    #[test]
    fn digests_are_those_that_others_compute() {
        assert!(load('a', 0).starts_with(b"560d7e456bf26693"));
        let expected = Expected::of(Job {
            rows: 8,
            groups: 1,
            left: 1,
            right: 1,
        });
        assert_eq!(expected.beginning(0, 7), 0x0a_3282_4762);
    }

    #[test]
    fn every_row_has_one_partner_and_another_in_the_next_round() {
        let expected = Expected::of(Job {
            rows: 1_000,
            groups: 8,
            left: 7,
            right: 3,
        });
        let groups = expected.round(5);
        let sum = |place: usize| groups.iter().map(|group| group[place]).sum::<u64>();
        assert_eq!(groups.len(), 8);
        assert_eq!((sum(0), sum(1), sum(2)), (1_000, 499_500, 499_500));
        assert_ne!(groups, expected.round(6));
    }

    #[test]
    fn partners_have_the_same_key() {
        // The keys of round 1 are 1, 0 in the left table, and 0, 1 in the right one.
        let expected = Expected::of(Job {
            rows: 2,
            groups: 2,
            left: 1,
            right: 3,
        });
        let groups = [
            [1, 0, 1, expected.beginning(0, 1)],
            [1, 1, 0, expected.beginning(1, 0)],
        ];
        assert_eq!(expected.round(1), groups);
    }
}
