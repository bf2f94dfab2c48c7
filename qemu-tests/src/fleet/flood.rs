//! Pings between containers that never stop, and what became of them.
//!
//! Each machine pings the next one's container from its own for as long as both are there, by [`UNIT`]. ping notes each
//! answer, and each echo without one, with the time by the machine's clock. Nothing of that is summed up in the machine,
//! so no loss can hide in a mean.

use std::{collections::BTreeMap, time::Duration};

use super::history::Hold;

/// Echo requests in a second.
pub(crate) const RATE: f64 = 20.0;
/// What the clocks of machines and host may be apart, and a little for the shut-down, in seconds.
pub(crate) const MARGIN: f64 = 3.0;
/// How long the pings go on after the roll-out is over, so that the answer to each request made until then is there.
pub(crate) const LATE: Duration = Duration::from_secs(10);
/// Where the target's address is put.
pub(crate) const TARGET: &str = "/etc/flood/target";
/// What ping says.
pub(crate) const LOG: &str = "/var/log/flood";
/// Where the program of the unit is.
pub(crate) const PROGRAM: &str = "/etc/flood/run";
/// The container that answers and asks.
pub(crate) const CONTAINER: &str = "flood";

/// Begins again after each reboot, by itself.
pub(crate) const SCRIPT: &str = "\
#!/bin/sh
while :; do
  target=$(cat /etc/flood/target 2>/dev/null) &&
    process=$(docker inspect -f '{{.State.Pid}}' flood 2>/dev/null) && [ \"$process\" -gt 0 ] &&
    nsenter --target \"$process\" --net ping -n -D -O -i 0.05 \"$target\" >>/var/log/flood
  sleep 1
done
";

/// Runs the script.
pub(crate) const UNIT: &str = "\
[Unit]
After=docker.service
[Service]
ExecStart=/etc/flood/run
[Install]
WantedBy=multi-user.target
";

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Echo {
    /// When it was answered, or given up; seconds since the Unix epoch.
    pub at: f64,
    /// Whether there was an answer, however late.
    pub answered: bool,
}

/// The pings of one machine's container to the next one's.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Flood {
    /// The machine that asks.
    pub from: String,
    /// The one whose container answers.
    pub to: String,
    /// All echoes, in order.
    pub echoes: Vec<Echo>,
}

/// What became of pings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Echo requests.
    pub sent: usize,
    /// Those without an answer.
    pub lost: usize,
}

impl Flood {
    /// The echoes while neither machine was at its own turn: none of them may be lost.
    pub(crate) fn undisturbed<'a>(&'a self, holds: &'a [Hold]) -> impl Iterator<Item = &'a Echo> {
        let own = |hold: &&Hold| hold.node == self.from || hold.node == self.to;
        self.echoes.iter().filter(move |echo| {
            !holds
                .iter()
                .filter(own)
                .any(|hold| hold.covers(echo.at, MARGIN))
        })
    }

    /// What became of the [`Self::undisturbed`] echoes.
    pub(crate) fn count(&self, holds: &[Hold]) -> Count {
        count(self.undisturbed(holds))
    }

    /// The same for those in the turn of a third machine.
    pub(crate) fn count_during(&self, turn: &Hold, holds: &[Hold]) -> Count {
        count(
            self.undisturbed(holds)
                .filter(|echo| turn.covers(echo.at, 0.0)),
        )
    }

    /// Whether neither end is the machine that has its turn.
    pub(crate) fn is_beside(&self, turn: &Hold) -> bool {
        turn.node != self.from && turn.node != self.to
    }
}

fn count<'a>(echoes: impl Iterator<Item = &'a Echo>) -> Count {
    echoes.fold(Count::default(), |count, echo| Count {
        sent: count.sent + 1,
        lost: count.lost + usize::from(!echo.answered),
    })
}

/// Reads what `ping -n -D -O` printed, one run after the other. A request that was neither answered nor given up when a run
/// ended is not counted: its end is not known.
pub(crate) fn parse(text: &str) -> Vec<Echo> {
    let mut echoes = Vec::new();
    let mut run: BTreeMap<u64, Echo> = BTreeMap::new();
    for line in text.lines() {
        if line.starts_with("PING ") {
            echoes.extend(std::mem::take(&mut run).into_values());
        } else if let Some((number, echo)) = line_of(line) {
            let known = run.entry(number).or_insert(echo);
            known.answered |= echo.answered;
        }
    }
    echoes.extend(run.into_values());
    echoes
}

/// `[TIME] 64 bytes from …: icmp_seq=N …`, `[TIME] no answer yet for icmp_seq=N`, or an error with the same number.
fn line_of(line: &str) -> Option<(u64, Echo)> {
    let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
    let number = rest.split_once("icmp_seq=")?.1;
    let number = number.split(' ').next()?.parse().ok()?;
    let at = time.parse().ok()?;
    let answered = rest.contains(" bytes from ");
    Some((number, Echo { at, answered }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded, with the second answer late and the fourth missing.
    const SAID: &str = "\
PING 10.5.2.2 (10.5.2.2) 56(84) bytes of data.
[100.01] 64 bytes from 10.5.2.2: icmp_seq=1 ttl=62 time=10.1 ms
[100.10] no answer yet for icmp_seq=2
[100.15] 64 bytes from 10.5.2.2: icmp_seq=3 ttl=62 time=3.0 ms
[100.16] 64 bytes from 10.5.2.2: icmp_seq=2 ttl=62 time=110 ms
[100.25] no answer yet for icmp_seq=4
[103.25] From 10.5.1.1 icmp_seq=5 Destination Host Unreachable
ping: sendmsg: Network is unreachable

PING 10.5.2.2 (10.5.2.2) 56(84) bytes of data.
[200.01] 64 bytes from 10.5.2.2: icmp_seq=1 ttl=62 time=10.1 ms
[200.06] 64 bytes from 10.5.2.2: icmp_seq=1 ttl=62 time=60.1 ms (DUP!)
[200.1";

    fn flood() -> Flood {
        Flood {
            from: "a".into(),
            to: "b".into(),
            echoes: parse(SAID),
        }
    }

    fn hold(node: &str, from: f64, until: f64) -> Hold {
        Hold {
            node: node.into(),
            from,
            until: Some(until),
        }
    }

    #[test]
    fn late_answers_are_answers_and_missing_ones_are_losses() {
        let seen: Vec<_> = parse(SAID)
            .into_iter()
            .map(|echo| (echo.at, echo.answered))
            .collect();
        let expected = [
            (100.01, true),
            (100.10, true),
            (100.15, true),
            (100.25, false),
            (103.25, false),
            (200.01, true),
        ];
        assert_eq!(seen, expected);
        assert!(parse("nonsense\n[x] icmp_seq=1\n[1] icmp_seq=\n").is_empty());
    }

    #[test]
    fn a_loss_counts_unless_one_of_both_is_at_its_turn() {
        let flood = flood();
        let count = |sent, lost| Count { sent, lost };
        assert_eq!(flood.count(&[]), count(6, 2));
        // A third machine's turn is no excuse.
        let third = hold("c", 90.0, 110.0);
        assert_eq!(flood.count(std::slice::from_ref(&third)), count(6, 2));
        assert!(flood.is_beside(&third));
        assert_eq!(flood.count_during(&third, &[]), count(5, 2));
        for own in ["a", "b"] {
            let own = hold(own, 101.0, 102.0);
            assert!(!flood.is_beside(&own));
            // What lies within the margin of the clocks is not judged.
            assert_eq!(flood.count(&[own]), count(1, 0));
        }
        let open = Hold {
            until: None,
            ..hold("a", 150.0, 0.0)
        };
        assert_eq!(flood.count(&[open]), count(5, 2));
    }
}
