//! The table: one row a figure, beside what it is compared with, and whether that is good enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::turns::{Figures, Metric};

/// How a figure is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Megabytes,
    Microseconds,
    Milliseconds,
    Seconds,
    GigabitsPerSecond,
    ThousandPacketsPerSecond,
    Requests,
    Times,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Megabytes => "MB",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Seconds => "s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::ThousandPacketsPerSecond => "1000 packets/s",
            Self::Requests => "requests",
            Self::Times => "times",
        }
    }

    fn decimals(self) -> usize {
        match self {
            Self::Bytes
            | Self::Microseconds
            | Self::ThousandPacketsPerSecond
            | Self::Requests
            | Self::Times => 0,
            Self::Megabytes | Self::Milliseconds => 1,
            Self::Seconds | Self::GigabitsPerSecond => 2,
        }
    }
}

/// What a figure is compared with.
#[derive(Clone)]
pub(crate) enum Beside<'a> {
    /// The rival, which may not have been given.
    Rival(Option<&'a Figures>),
    /// Something else that was measured in the same run.
    Other(&'static str, &'a Figures),
    /// Nothing: it stands by itself.
    Nothing,
}

impl<'a> Beside<'a> {
    fn figures(&self) -> Option<&'a Figures> {
        match *self {
            Self::Rival(figures) => figures,
            Self::Other(_, figures) => Some(figures),
            Self::Nothing => None,
        }
    }
}

/// What a figure should be.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// No more than this, in the row's unit.
    AtMost(f64),
    /// No more than so many times what it is compared with.
    TimesAtMost(f64),
    /// At least so many times what it is compared with.
    TimesAtLeast(f64),
}

/// A row before it is judged.
pub(crate) struct Row<'a> {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) metric: Metric,
    pub(crate) own: &'a Figures,
    pub(crate) beside: Beside<'a>,
    pub(crate) targets: &'a [Target],
}

/// How many targets came to what.
#[derive(Default)]
struct Verdicts {
    met: usize,
    missed: usize,
    open: usize,
}

/// Rows that were judged.
pub(crate) struct Table {
    rival: Option<&'static str>,
    lines: Vec<[String; 6]>,
    /// Our medians, by what was measured.
    medians: BTreeMap<String, f64>,
    /// Why figures are missing.
    failures: BTreeSet<String>,
    verdicts: Verdicts,
}

impl Table {
    /// An empty table; the rival's column has its name.
    pub(crate) fn new(rival: Option<&'static str>) -> Self {
        Self {
            rival,
            lines: Vec::new(),
            medians: BTreeMap::new(),
            failures: BTreeSet::new(),
            verdicts: Verdicts::default(),
        }
    }

    /// Our median of what a row measured, in its unit, if it was measured.
    pub(crate) fn median(&self, what: &str) -> Option<f64> {
        self.medians.get(what).copied()
    }

    /// Judges a row and adds it.
    pub(crate) fn add(&mut self, row: &Row<'_>) {
        let own = row.own.median(row.metric);
        self.medians.extend(own.map(|own| (row.what.clone(), own)));
        let other = row.beside.figures();
        let other = other.and_then(|figures| figures.median(row.metric));
        let beside = match row.beside {
            Beside::Rival(None) => "not given".to_owned(),
            Beside::Rival(Some(figures)) => row.cell(figures),
            Beside::Other(name, figures) => format!("{name}: {}", row.cell(figures)),
            Beside::Nothing => String::new(),
        };
        let all = [Some(row.own), row.beside.figures()];
        let failures = all.into_iter().flatten().filter_map(Figures::failure);
        self.failures.extend(failures.map(str::to_owned));
        let ratio = own
            .zip(other)
            .filter(|(_, other)| *other > 0.0)
            .map(|(own, other)| own / other);
        let mut verdicts = Vec::new();
        for target in row.targets {
            let met = match *target {
                Target::AtMost(most) => own.map(|own| own <= most),
                Target::TimesAtMost(most) => ratio.map(|ratio| ratio <= most),
                Target::TimesAtLeast(least) => ratio.map(|ratio| ratio >= least),
            };
            verdicts.push(match met {
                Some(true) => {
                    self.verdicts.met += 1;
                    "yes"
                }
                Some(false) => {
                    self.verdicts.missed += 1;
                    "**no**"
                }
                None if own.is_none() => {
                    self.verdicts.missed += 1;
                    "**no**: failed"
                }
                None => {
                    self.verdicts.open += 1;
                    match row.beside {
                        Beside::Rival(None) => "open: no rival",
                        Beside::Rival(Some(_)) | Beside::Other(..) | Beside::Nothing => {
                            "open: nothing beside it"
                        }
                    }
                }
            });
        }
        let targets: Vec<_> = row.targets.iter().map(|t| t.words(row.unit)).collect();
        self.lines.push([
            format!("{}, {}", row.what, row.unit.name()),
            row.cell(row.own),
            beside,
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}")),
            targets.join("; "),
            verdicts.join("; "),
        ]);
    }
}

impl Row<'_> {
    fn cell(&self, figures: &Figures) -> String {
        let decimals = self.unit.decimals();
        match (figures.values(self.metric), figures.failure()) {
            (_, Some(_)) => "failed".to_owned(),
            ([], None) => "not measured".to_owned(),
            ([only], None) => format!("{only:.decimals$}"),
            ([least, .., greatest], None) => format!(
                "{:.decimals$} ({least:.decimals$} to {greatest:.decimals$}, {} turns)",
                figures.median(self.metric).unwrap_or_default(),
                figures.values(self.metric).len()
            ),
        }
    }
}

impl Target {
    fn words(self, unit: Unit) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {most} {}", unit.name()),
            Self::TimesAtMost(most) => format!("≤ {most}×"),
            Self::TimesAtLeast(least) => format!("≥ {least}×"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rival = self.rival.unwrap_or("flanneld");
        writeln!(
            f,
            "| what | selvage | {rival} (or what is named) | ratio | target | met? |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for line in &self.lines {
            writeln!(f, "| {} |", line.join(" | "))?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFailed: {failure}")?;
        }
        let Verdicts { met, missed, open } = self.verdicts;
        writeln!(f, "\nTargets: {met} met, {missed} missed, {open} open.")?;
        if self.rival.is_none() {
            writeln!(
                f,
                "FLANNELD=/path/to/flanneld puts flanneld beside it, which the open ones need."
            )?;
        }
        Ok(())
    }
}
