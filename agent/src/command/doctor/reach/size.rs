//! The longest packet that passes, by echoes that must not be fragmented.

use std::net::IpAddr;
use std::time::Duration;

use crate::host::probe::ping::{Echo, Outcome, Pinger};

/// How many sizes are tried at once: four rounds find the byte among 10,000.
const STEPS: usize = 15;
/// How long the answers of each round are waited for. A size of which both echoes are lost by chance makes the result too
/// small; it is then no more than a hint.
const PATIENCE: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(300)];

/// Between which sizes to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Search {
    pub(super) to: IpAddr,
    /// Bytes of an IP packet that passes.
    pub(super) passes: usize,
    /// Bytes of one that does not.
    pub(super) fails: usize,
}

impl Search {
    fn is_over(&self) -> bool {
        self.passes + 1 >= self.fails
    }

    /// Sizes between the two ends, evenly, the last of them less than the upper end.
    fn steps(&self) -> Vec<usize> {
        let span = self.fails.saturating_sub(self.passes);
        let mut steps: Vec<usize> = (1..=STEPS)
            .map(|step| self.passes + (span * step).div_ceil(STEPS + 1))
            .filter(|&len| len > self.passes && len < self.fails)
            .collect();
        steps.dedup();
        steps
    }

    /// Takes in what became of some sizes. A longer packet that came back shows that the loss of a shorter one was chance.
    fn narrow(&mut self, results: impl IntoIterator<Item = (usize, bool)>) {
        let mut lost = Vec::new();
        for (len, answered) in results {
            if answered {
                self.passes = self.passes.max(len);
            } else {
                lost.push(len);
            }
        }
        let lost = lost.into_iter().filter(|len| *len > self.passes);
        self.fails = lost.min().unwrap_or(self.fails).min(self.fails);
    }
}

/// Looks for the longest packet that passes, for several peers at once. Returns its size in bytes for each.
pub(super) async fn largest(pinger: &mut Pinger, mut searches: Vec<Search>) -> Vec<usize> {
    while searches.iter().any(|search| !search.is_over()) {
        let tries: Vec<(usize, usize)> = searches
            .iter()
            .enumerate()
            .flat_map(|(at, search)| search.steps().into_iter().map(move |len| (at, len)))
            .collect();
        let echoes: Vec<Echo> = tries
            .iter()
            .map(|&(at, len)| Echo {
                to: searches[at].to,
                len,
            })
            .collect();
        let outcomes = pinger.ask(&echoes, &PATIENCE).await;
        for (at, search) in searches.iter_mut().enumerate() {
            let own = tries.iter().zip(&outcomes).filter(|((of, _), _)| *of == at);
            search.narrow(own.map(|((_, len), outcome)| (*len, *outcome == Outcome::Answered)));
        }
    }
    searches.into_iter().map(|search| search.passes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_found_to_the_byte_in_few_rounds() {
        for limit in [36, 37, 576, 1279, 1400, 1449, 8999] {
            let mut search = Search {
                to: "10.5.2.0".parse().unwrap(),
                passes: 36,
                fails: 9000,
            };
            let mut rounds = 0;
            while !search.is_over() {
                rounds += 1;
                let steps = search.steps();
                assert!(!steps.is_empty() && steps.len() <= STEPS);
                search.narrow(steps.into_iter().map(|len| (len, len <= limit)));
            }
            assert_eq!(search.passes, limit);
            assert!(rounds <= 4, "{limit}: {rounds}");
        }
    }

    #[test]
    fn a_packet_lost_by_chance_is_no_limit_if_a_longer_one_passed() {
        let mut search = Search {
            to: "10.5.2.0".parse().unwrap(),
            passes: 100,
            fails: 1500,
        };
        search.narrow([(300, true), (500, false), (700, true), (900, false)]);
        assert_eq!((search.passes, search.fails), (700, 900));
    }
}
