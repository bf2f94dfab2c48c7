//! The roll-out of an update as one HTML page: a time line of machines, lock and pings, and the figures. Pure.

use super::*;
use crate::fleet::{
    flood::{Count, Flood, MARGIN},
    history::Hold,
    rollout::{Phase, Rollout, Span},
};

/// Width of the column of names, in the chart's units.
const NAMES: f64 = 120.0;
/// Height of a machine's row: the lock's bar and the machine's own.
const MACHINE: f64 = 58.0;
/// Height of a row of pings.
const PINGS: f64 = 30.0;
/// Height of the axis with its numbers.
const AXIS: f64 = 30.0;
/// Width of a letter in a bar, at the most.
const LETTER: f64 = 7.5;

/// The phases, each with the class of its colour and its name in the key.
const PHASES: [(Phase, &str, &str); 5] = [
    (Phase::Old, "old", "runs the old version"),
    (Phase::Drain, "drain", "drains"),
    (Phase::Reboot, "reboot", "goes down"),
    (Phase::Trial, "trial", "boots, on trial"),
    (Phase::New, "new", "passed its boot check"),
];

/// What the page tells.
#[derive(Debug)]
pub(crate) struct UpdatePage<'a> {
    /// What happened.
    pub rollout: &'a Rollout,
    /// How the machines ran: QEMU's accelerator.
    pub accelerator: &'a str,
    /// How long everything took.
    pub took: Duration,
}

impl UpdatePage<'_> {
    /// The page as HTML.
    pub(crate) fn html(&self) -> String {
        let mut html = String::new();
        // Writing into a `String` never fails.
        let _ = self.write(&mut html);
        html
    }

    fn write(&self, html: &mut String) -> fmt::Result {
        let rollout = self.rollout;
        let title = format!("{} hosts update themselves in turn", rollout.nodes.len());
        begin(html, &title)?;
        let Count { sent, lost } = rollout.count();
        let (class, verdict) = match rollout.check() {
            Ok(()) => ("good", "All is as it should be.".to_owned()),
            Err(error) => ("bad", format!("Something is wrong: {error}.")),
        };
        writeln!(html, "<h1>{title}</h1>")?;
        writeln!(
            html,
            "<p class=\"{class}\">{}</p>\n\
             <p>From version {} to {} in {}, under {}, {} with installation and first boot. {lost} of {sent} pings between \
             containers were lost while both their hosts were up. At most {} of {} had the lock at a time.</p>",
            Text(&verdict),
            Text(&rollout.installed),
            Text(&rollout.next),
            minutes(rollout.until - rollout.from),
            Text(self.accelerator),
            minutes(self.took.as_secs_f64()),
            rollout.most_holders,
            rollout.nodes.len()
        )?;
        self.write_chart(html)?;
        self.write_turns(html)?;
        self.write_pings(html)?;
        writeln!(html, "</main>\n</body>\n</html>")
    }

    fn write_chart(&self, html: &mut String) -> fmt::Result {
        let rollout = self.rollout;
        let turns = rollout.turns();
        let chart = Chart {
            from: rollout.from,
            length: (rollout.until - rollout.from).max(1.0),
        };
        let machines = rollout.nodes.len() as f64 * MACHINE;
        let bottom = machines + rollout.floods.len() as f64 * PINGS + 12.0;
        let height = bottom + AXIS + 52.0;
        writeln!(
            html,
            "<h2>Time line</h2>\n<div class=\"wide\"><svg class=\"chart\" role=\"img\" \
             aria-label=\"Time line of the update; the tables below have its figures\" \
             viewBox=\"0 0 {CHART} {height}\" width=\"{CHART}\" height=\"{height}\">"
        )?;
        chart.axis(html, bottom)?;
        for (row, node) in rollout.nodes.iter().enumerate() {
            let y = row as f64 * MACHINE;
            writeln!(
                html,
                "<text x=\"0\" y=\"{}\">{}</text>",
                y + 38.0,
                Text(node)
            )?;
            for turn in turns.iter().filter(|turn| turn.node == *node) {
                chart.lock(html, y, turn, rollout.until)?;
            }
            for span in rollout.spans(node) {
                chart.span(html, y, span, &self.label(node, span.phase))?;
            }
        }
        for (row, flood) in rollout.floods.iter().enumerate() {
            let y = machines + row as f64 * PINGS + 6.0;
            chart.flood(html, y, flood, &turns, rollout)?;
        }
        key(html, bottom + AXIS)?;
        writeln!(html, "</svg></div>")
    }

    /// What is written into a bar.
    fn label(&self, node: &str, phase: Phase) -> String {
        let slots = self.rollout.slots(node);
        let slot = match phase {
            Phase::Old => slots.first(),
            Phase::New => slots.last(),
            Phase::Drain | Phase::Reboot | Phase::Trial => None,
        };
        slot.map_or_else(String::new, |(slot, version)| {
            format!("{version}, slot {slot}")
        })
    }

    fn write_turns(&self, html: &mut String) -> fmt::Result {
        let rollout = self.rollout;
        let columns = [
            "turn of",
            "versions",
            "slots",
            "lock taken",
            "goes down",
            "boots",
            "lock back",
            "pings of the others",
            "lost",
        ];
        head(html, "Turns", &columns)?;
        for turn in rollout.turns() {
            let slots = rollout.slots(&turn.node);
            let listed = |of: fn(&(String, String)) -> &str| {
                let names: Vec<&str> = slots.iter().map(of).collect();
                names.join(" → ")
            };
            let spans = rollout.spans(&turn.node);
            let since = |at: Option<f64>| {
                at.map_or_else(|| "–".to_owned(), |at| minutes(at - rollout.from))
            };
            let start = |phase: Phase| {
                let span = spans.iter().find(|span| span.phase == phase);
                since(span.map(|span| span.from))
            };
            let Count { sent, lost } = rollout.beside(&turn);
            let class = if lost == 0 { "good" } else { "bad" };
            write!(html, "<tr><th>{}</th>", Text(&turn.node))?;
            for cell in [
                listed(|(_, version)| version),
                listed(|(slot, _)| slot),
                since(Some(turn.from)),
                start(Phase::Reboot),
                start(Phase::Trial),
                since(turn.until),
                sent.to_string(),
            ] {
                write!(html, "<td>{}</td>", Text(&cell))?;
            }
            writeln!(html, "<td class=\"{class}\">{lost}</td></tr>")?;
        }
        writeln!(
            html,
            "</table></div>\n<p class=\"dim\">Times since the release was published.</p>"
        )
    }

    fn write_pings(&self, html: &mut String) -> fmt::Result {
        let rollout = self.rollout;
        let turns = rollout.turns();
        head(
            html,
            "Pings between containers",
            &[
                "from",
                "to",
                "with both hosts up",
                "lost",
                "in all",
                "unanswered",
            ],
        )?;
        for flood in &rollout.floods {
            let Count { sent, lost } = flood.count(&turns);
            let all = flood.count(&[]);
            let class = if lost == 0 { "good" } else { "bad" };
            writeln!(
                html,
                "<tr><th>{}</th><td>{}</td><td>{sent}</td><td class=\"{class}\">{lost}</td><td>{}</td><td>{}</td></tr>",
                Text(&flood.from),
                Text(&flood.to),
                all.sent,
                all.lost
            )?;
        }
        writeln!(
            html,
            "</table></div>\n<p class=\"dim\">A host that has the lock, and {MARGIN} seconds before and after, \
             counts as not up: it drains, reboots and is on trial.</p>"
        )
    }
}

/// Where times are in the chart.
pub(super) struct Chart {
    /// Where it begins, in seconds since the Unix epoch.
    pub from: f64,
    /// Its seconds.
    pub length: f64,
}

impl Chart {
    pub(super) fn x(&self, at: f64) -> f64 {
        let share = ((at - self.from) / self.length).clamp(0.0, 1.0);
        NAMES + share * (CHART - NAMES - 10.0)
    }

    /// Lines and numbers at whole minutes, of which there are at most twelve.
    pub(super) fn axis(&self, html: &mut String, bottom: f64) -> fmt::Result {
        let minutes = self.length / 60.0;
        let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];
        let step = step.into_iter().find(|step| minutes / step <= 12.0);
        let step = step.unwrap_or(minutes / 12.0);
        let mut at = 0.0;
        while at <= minutes {
            let x = self.x(self.from + at * 60.0);
            writeln!(
                html,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{}\">{at}</text>",
                bottom + 16.0
            )?;
            at += step;
        }
        writeln!(
            html,
            "<text class=\"dim\" x=\"0\" y=\"{}\">minutes</text>",
            bottom + 16.0
        )
    }

    fn lock(&self, html: &mut String, y: f64, turn: &Hold, end: f64) -> fmt::Result {
        let until = turn.until.unwrap_or(end);
        let (x, width) = self.bar(turn.from, until);
        writeln!(
            html,
            "<rect class=\"lock\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"7\">\
             <title>{} has the lock for {}</title></rect>",
            y + 12.0,
            Text(&turn.node),
            minutes(until - turn.from)
        )
    }

    fn span(&self, html: &mut String, y: f64, span: Span, label: &str) -> fmt::Result {
        let (x, width) = self.bar(span.from, span.until);
        let names = PHASES.iter().find(|(phase, ..)| *phase == span.phase);
        let (class, name) = names.map_or(("", ""), |(_, class, name)| (*class, *name));
        writeln!(
            html,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"28\">\
             <title>{name} for {}</title></rect>",
            y + 20.0,
            minutes(span.until - span.from)
        )?;
        if label.is_empty() || label.chars().count() as f64 * LETTER > width {
            return Ok(());
        }
        writeln!(
            html,
            "<text class=\"inside\" x=\"{:.1}\" y=\"{}\">{}</text>",
            x + 6.0,
            y + 38.0,
            Text(label)
        )
    }

    /// Grey where one of both hosts is at its turn, green elsewhere; what is lost there is red.
    fn flood(
        &self,
        html: &mut String,
        y: f64,
        flood: &Flood,
        turns: &[Hold],
        rollout: &Rollout,
    ) -> fmt::Result {
        writeln!(
            html,
            "<text x=\"0\" y=\"{}\">{} → {}</text>",
            y + 16.0,
            Text(&flood.from),
            Text(&flood.to)
        )?;
        let (x, width) = self.bar(rollout.from, rollout.until);
        writeln!(
            html,
            "<rect class=\"answered\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\"/>",
            y + 5.0
        )?;
        for turn in turns.iter().filter(|turn| !flood.is_beside(turn)) {
            let until = turn.until.unwrap_or(rollout.until);
            let (x, width) = self.bar(turn.from - MARGIN, until + MARGIN);
            writeln!(
                html,
                "<rect class=\"unjudged\" x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\">\
                 <title>{} is at its turn</title></rect>",
                y + 5.0,
                Text(&turn.node)
            )?;
        }
        // Losses of one place are one mark.
        let mut marked = f64::NEG_INFINITY;
        for lost in flood.undisturbed(turns).filter(|echo| !echo.answered) {
            let x = self.x(lost.at);
            if x - marked < 1.0 {
                continue;
            }
            marked = x;
            writeln!(
                html,
                "<rect class=\"lost\" x=\"{:.1}\" y=\"{}\" width=\"3\" height=\"20\"><title>lost {} after the start</title></rect>",
                x - 1.5,
                y + 2.0,
                minutes(lost.at - self.from)
            )?;
        }
        Ok(())
    }

    /// Left end and width; what is there can be seen.
    pub(super) fn bar(&self, from: f64, until: f64) -> (f64, f64) {
        let x = self.x(from);
        (x, (self.x(until) - x).max(1.5))
    }
}

/// What the colours mean, in two lines.
fn key(html: &mut String, y: f64) -> fmt::Result {
    let phases = PHASES.iter().map(|(_, class, name)| (*class, *name));
    let others = [
        ("lock", "has the lock"),
        ("answered", "pings answered"),
        ("unjudged", "a host is at its turn"),
        ("lost", "lost ping"),
    ];
    for (line, entries) in [phases.collect::<Vec<_>>(), others.to_vec()]
        .iter()
        .enumerate()
    {
        let y = y + 22.0 * line as f64;
        for (column, (class, name)) in entries.iter().enumerate() {
            let x = 170.0 * column as f64;
            writeln!(
                html,
                "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\"/>\
                 <text x=\"{}\" y=\"{}\">{name}</text>",
                x + 20.0,
                y + 12.0
            )?;
        }
    }
    Ok(())
}

/// A time as `4:05` minutes.
pub(super) fn minutes(seconds: f64) -> String {
    let whole = seconds.round().max(0.0);
    format!("{}:{:02} min", (whole / 60.0).floor(), whole % 60.0)
}

#[cfg(test)]
mod tests;
