//! Pairs of machines that differ in one thing, so that what else the host does meets both.

use anyhow::{Context as _, Result};

use crate::{report, timeline::Timeline};

/// Kernel start to Docker ready of two machines, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pair {
    /// Of the image as it is.
    pub ours: f64,
    /// Of what it is compared with.
    pub other: f64,
}

/// The pairs of the first boot, and those of the second.
pub(super) type Pairs = [Vec<Pair>; 2];

impl Pair {
    /// # Errors
    /// When Docker was not ready.
    pub(super) fn of([ours, other]: [Timeline; 2]) -> Result<Self> {
        let ready = |timeline: Timeline| {
            let time = timeline.docker_ready.context("Docker was never ready")?;
            anyhow::Ok(time.as_secs_f64())
        };
        Ok(Self {
            ours: ready(ours)?,
            other: ready(other)?,
        })
    }

    pub(super) fn ratio(&self) -> f64 {
        self.ours / self.other
    }

    /// The medians of both, each by itself.
    pub(super) fn median(pairs: &[Self]) -> Self {
        Self {
            ours: median(pairs.iter().map(|pair| pair.ours)),
            other: median(pairs.iter().map(|pair| pair.other)),
        }
    }
}

/// The median of the ratios.
pub(super) fn ratio(pairs: &[Pair]) -> f64 {
    median(pairs.iter().map(Pair::ratio))
}

/// All pairs, with the medians; `head` names both machines.
pub(super) fn table(head: [&str; 2], pairs: &Pairs) -> String {
    let [ours, other] = head;
    let mut rows = vec![["Docker ready", ours, other, "ratio"].map(str::to_owned)];
    for (name, pairs) in ["first boot", "second boot"].iter().zip(pairs) {
        let row = |name: String, pair: Pair, ratio: f64| {
            let [ours, other] = [pair.ours, pair.other].map(|time| format!("{time:.1}"));
            [name, ours, other, format!("{ratio:.3}")]
        };
        for pair in pairs {
            rows.push(row((*name).to_owned(), *pair, pair.ratio()));
        }
        rows.push(row(
            format!("{name}, median"),
            Pair::median(pairs),
            ratio(pairs),
        ));
    }
    report::table(&rows)
}

/// The middle one, or the mean of the two in the middle; not a number where there are none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.get((values.len().saturating_sub(1)) / 2..=values.len() / 2) {
        Some(middle) => middle.iter().sum::<f64>() / middle.len() as f64,
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_ratios_in_pairs() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
        let pair = |ours, other| Pair { ours, other };
        let pairs = vec![pair(20.0, 10.0), pair(30.0, 30.0), pair(11.0, 10.0)];
        assert_eq!(Pair::median(&pairs), pair(20.0, 10.0));
        let text = table(["with", "without"], &[pairs.clone(), pairs]);
        let median = text
            .lines()
            .find(|line| line.contains("first boot, median"));
        assert!(median.unwrap().trim_end().ends_with("1.100"), "{text}");
    }
}
