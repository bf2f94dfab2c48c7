//! Recurring faults: each is logged once when it starts, then now and then with the number of occurrences.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::words;

/// How often a lasting fault is logged with its count.
const PERIOD: Duration = Duration::from_secs(300);

/// How many texts of one fault are told apart. Further texts are only counted, so that texts that never repeat do not
/// fill the log.
const TEXTS: usize = 16;

/// The occurrences of one fault since it began.
#[derive(Debug, Default)]
pub(crate) struct Repeats(Option<Fault>);

#[derive(Debug)]
struct Fault {
    texts: Vec<String>,
    since: Instant,
    times: u64,
    /// When it was last logged with its count, and how often it occurred since.
    logged: Instant,
    unlogged: u64,
}

/// How often a fault occurred, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Occurrences {
    times: u64,
    lasted: Duration,
}

impl Repeats {
    /// Counts an occurrence of the fault with this text; returns the line to log, if one is due.
    pub(crate) fn note(&mut self, text: &str, now: Instant) -> Option<String> {
        let fault = self.0.get_or_insert_with(|| Fault {
            texts: Vec::new(),
            since: now,
            times: 0,
            logged: now,
            unlogged: 0,
        });
        fault.times += 1;
        fault.unlogged += 1;
        if fault.texts.len() < TEXTS && fault.texts.iter().all(|known| known != text) {
            fault.texts.push(text.to_owned());
            return Some(text.to_owned());
        }
        let lasted = now.saturating_duration_since(fault.logged);
        (lasted >= PERIOD).then(|| {
            let seen = Occurrences {
                times: std::mem::take(&mut fault.unlogged),
                lasted,
            };
            fault.logged = now;
            format!("{text} ({seen})")
        })
    }

    /// Ends the fault; returns its total, if there was one.
    pub(crate) fn end(&mut self, now: Instant) -> Option<Occurrences> {
        self.0.take().map(|fault| Occurrences {
            times: fault.times,
            lasted: now.saturating_duration_since(fault.since),
        })
    }
}

/// `seen once`, `seen 37 times in 5 min`.
impl fmt::Display for Occurrences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seen {}", words::times(self.times))?;
        match self.times {
            1 => Ok(()),
            _ => write!(f, " in {}", words::duration(self.lasted.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_once_then_with_its_count_and_at_last_with_the_sum() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut repeats = Repeats::default();
        assert_eq!(repeats.end(start), None);
        let lines: Vec<_> = (0..=70)
            .filter_map(|round| repeats.note("no route", at(round * 10)))
            .collect();
        assert_eq!(
            lines,
            [
                "no route",
                "no route (seen 31 times in 5 min)",
                "no route (seen 30 times in 5 min)"
            ]
        );
        let seen = repeats.end(at(710)).unwrap();
        assert_eq!(seen.to_string(), "seen 71 times in 11 min");
        assert_eq!(repeats.end(at(711)), None);
        assert_eq!(
            repeats.note("no route", at(720)).as_deref(),
            Some("no route")
        );
        assert_eq!(repeats.end(at(721)).unwrap().to_string(), "seen once");
    }

    #[test]
    fn texts_that_alternate_are_told_once_each_and_endless_new_ones_are_counted() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        let lines: Vec<_> = (0..1000)
            .filter_map(|round| repeats.note(["one", "two"][round % 2], now))
            .collect();
        assert_eq!(lines, ["one", "two"]);
        let more = (0..1000).filter_map(|round| repeats.note(&round.to_string(), now));
        assert_eq!(more.count(), TEXTS - 2);
    }
}
