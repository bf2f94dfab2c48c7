//! Contestants that take turns, and the figures that come of it.

use std::collections::BTreeMap;

use anyhow::Result;

/// What is measured in a turn.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Metric {
    /// Size of the binary.
    Size,
    /// From the program's start to `subnet.env`.
    Start,
    /// From the program's start to all routes.
    Programmed,
    /// Processor time, user and system, until then.
    ProgrammedCpu,
    /// Resident memory when idle (`VmRSS`).
    Resident,
    /// The most that it has ever been (`VmHWM`).
    ResidentPeak,
    /// Processor time of the tests' API server until then.
    ServerCpu,
    /// What of it is the process's own (`RssAnon`), not pages of its file.
    Private,
    /// How often the process wakes up in a minute in which nothing happens.
    WakeUps,
    /// From the end of the first lease of all until the kernel has no route left.
    Removed,
    /// Processor time for that.
    RemovedCpu,
    /// Processor time to look at everything in the kernel and mend one thing.
    ResyncCpu,
    /// From a put in etcd to the route: the median and the 99th percentile of many.
    Route,
    RouteTail,
    /// From the same puts to the event of a watch.
    Watch,
    WatchTail,
    /// From the first change of many until the kernel has them all.
    Churn,
    /// Processor time for these changes.
    ChurnCpu,
    /// One TCP stream.
    Stream,
    /// Several TCP streams together.
    Streams,
    /// The median of pings beside a stream.
    PingMedian,
    /// Their 99th percentile.
    PingP99,
    /// Small packets that arrive.
    Packets,
    /// Lists of all nodes, however many pages each has.
    Lists,
    /// Watches of all nodes.
    Watches,
    /// All requests to an API server.
    Requests,
}

/// The figures of one contestant.
#[derive(Default)]
pub(crate) struct Figures {
    /// In ascending order.
    values: BTreeMap<Metric, Vec<f64>>,
    failure: Option<String>,
}

impl Figures {
    /// Takes in one turn's figure.
    pub(crate) fn add(&mut self, metric: Metric, value: f64) {
        let values = self.values.entry(metric).or_default();
        let place = values.partition_point(|other| *other <= value);
        values.insert(place, value);
    }

    /// All turns, from the least to the greatest.
    pub(crate) fn values(&self, metric: Metric) -> &[f64] {
        self.values.get(&metric).map_or(&[], Vec::as_slice)
    }

    /// Why there are no more figures, if a turn failed.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The middle one; of an even number, the lower of the two. None after a failure.
    pub(crate) fn median(&self, metric: Metric) -> Option<f64> {
        if self.failure.is_some() {
            return None;
        }
        let values = self.values(metric);
        values.get(values.len().saturating_sub(1) / 2).copied()
    }
}

/// Lets contestants take turns, and each begin as often as the others. One whose turn fails is left out from then on.
///
/// `turn` gets the contestant's place in `names` and takes its figures to the last argument.
pub(crate) fn take(
    what: &str,
    turns: usize,
    names: &[&str],
    mut turn: impl FnMut(usize, &mut Figures) -> Result<()>,
) -> Vec<Figures> {
    let limit = std::env::var("TURNS")
        .ok()
        .and_then(|turns| turns.parse().ok());
    let turns = limit.map_or(turns, |limit: usize| turns.min(limit.max(1)));
    let mut all: Vec<_> = names.iter().map(|_| Figures::default()).collect();
    for number in 0..turns {
        eprintln!("{what}: turn {} of {turns}", number + 1);
        for place in 0..names.len() {
            let contestant = (place + number) % names.len();
            let figures = &mut all[contestant];
            if figures.failure.is_some() {
                continue;
            }
            if let Err(error) = turn(contestant, figures) {
                eprintln!("{what}: {} failed: {error:#}", names[contestant]);
                figures.failure = Some(format!("{what}, {}: {error:#}", names[contestant]));
            }
        }
    }
    all
}
