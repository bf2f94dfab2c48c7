//! The run of a distributed program as one HTML page: bytes over the overlay in time, with the outages and the program's
//! rounds, and the figures. Pure.

use super::{
    update::{Chart, minutes},
    *,
};
use crate::demo::spark::record::{Outage, Record, RoundRecord, megabytes};

/// Height of the curve.
const CURVE: f64 = 180.0;
/// Height of a line of words above it.
const LINE: f64 = 16.0;
/// Height of the row of rounds below it.
const ROUNDS: f64 = 34.0;
/// Height of the axis, and of the key below it.
const AXIS: f64 = 30.0;
const KEY: f64 = 30.0;

/// What the page tells.
#[derive(Debug)]
pub(crate) struct SparkPage<'a> {
    /// What happened.
    pub record: &'a Record,
    /// How long everything took, with the start of hosts and Spark.
    pub took: Duration,
}

impl SparkPage<'_> {
    /// The page as HTML.
    pub(crate) fn html(&self) -> String {
        let mut html = String::new();
        // Writing into a `String` never fails.
        let _ = self.write(&mut html);
        html
    }

    fn write(&self, html: &mut String) -> fmt::Result {
        let record = self.record;
        let title = "Spark shuffles over the overlay";
        begin(html, title)?;
        let (class, verdict) = match record.check() {
            Ok(()) => ("good", "All is as it should be.".to_owned()),
            Err(error) => ("bad", format!("Something is wrong: {error}.")),
        };
        let tally = record.tally;
        writeln!(
            html,
            "<h1>{title}</h1>\n<p class=\"{class}\">{}</p>\n\
             <p>On three hosts, {} rounds of a join of two tables of {} rows, in {}; {} with the start of hosts and Spark. \
             Each result is compared with one that is computed without Spark. Tasks fetched {} from other hosts, and {} of \
             {} failed; {} of {} executors were lost.</p>",
            Text(&verdict),
            record.rounds.len(),
            record.job.rows,
            minutes(record.seconds()),
            minutes(self.took.as_secs_f64()),
            megabytes(tally.fetched),
            tally.failed_tasks,
            tally.tasks,
            tally.lost_executors,
            tally.executors
        )?;
        self.write_chart(html)?;
        write_rows(html, "Outages", &record.outage_rows())?;
        write_rows(html, "Hosts", &record.host_rows())?;
        writeln!(html, "</main>\n</body>\n</html>")
    }

    fn write_chart(&self, html: &mut String) -> fmt::Result {
        let record = self.record;
        let chart = Chart {
            from: record.span().0,
            length: record.seconds().max(1.0),
        };
        let bottom = CURVE + ROUNDS;
        let height = bottom + AXIS + KEY;
        writeln!(
            html,
            "<h2>Time line</h2>\n<div class=\"wide\"><svg class=\"chart\" role=\"img\" \
             aria-label=\"Bytes over the overlay in time; the tables below have the figures\" \
             viewBox=\"0 0 {CHART} {height}\" width=\"{CHART}\" height=\"{height}\">"
        )?;
        for (place, outage) in record.outages.iter().enumerate() {
            // Each on a line of its own, since the next may be close.
            write_outage(html, &chart, outage, 14.0 + LINE * place as f64)?;
        }
        chart.axis(html, bottom)?;
        self.write_curve(html, &chart)?;
        writeln!(html, "<text x=\"0\" y=\"{}\">rounds</text>", CURVE + 22.0)?;
        for (place, round) in record.rounds.iter().enumerate() {
            write_round(html, &chart, place + 1, *round)?;
        }
        write_key(html, bottom + AXIS)?;
        writeln!(html, "</svg></div>")
    }

    /// What all hosts sent from one sample to the next, each second.
    fn write_curve(&self, html: &mut String, chart: &Chart) -> fmt::Result {
        let rates = rates(self.record);
        let highest = rates.iter().map(|(_, _, rate)| *rate).fold(1.0, f64::max);
        let y = |rate: f64| CURVE - 4.0 - rate / highest * (CURVE - 44.0);
        write!(
            html,
            "<path class=\"trial\" d=\"M{:.1},{:.1}",
            chart.x(chart.from),
            y(0.0)
        )?;
        for (from, until, rate) in &rates {
            let height = y(*rate);
            write!(
                html,
                " L{:.1},{height:.1} L{:.1},{height:.1}",
                chart.x(*from),
                chart.x(*until)
            )?;
        }
        writeln!(
            html,
            " L{:.1},{:.1} Z\"/>\n\
             <text x=\"0\" y=\"22\">{highest:.0} MB/s</text>\n\
             <text class=\"dim\" x=\"0\" y=\"40\">at the most</text>",
            chart.x(chart.from + chart.length),
            y(0.0)
        )
    }
}

/// From when until when, and how many megabytes a second.
fn rates(record: &Record) -> Vec<(f64, f64, f64)> {
    let pairs = record.samples.windows(2);
    pairs
        .filter_map(|pair| {
            let &[one, two] = pair else { return None };
            let seconds = two.at - one.at;
            // Exact up to 2^53 bytes.
            let bytes = two.bytes.saturating_sub(one.bytes) as f64;
            (seconds > 0.0).then(|| (one.at, two.at, bytes / 1e6 / seconds))
        })
        .collect()
}

fn write_outage(html: &mut String, chart: &Chart, outage: &Outage, y: f64) -> fmt::Result {
    let (x, width) = chart.bar(outage.from, outage.until);
    writeln!(
        html,
        "<rect class=\"unjudged\" x=\"{x:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{CURVE}\">\
         <title>{} is gone for {:.1} s</title></rect>\
         <text x=\"{:.1}\" y=\"{y}\">{} is gone</text>",
        Text(&outage.what),
        outage.until - outage.from,
        x + 4.0,
        Text(&outage.what)
    )
}

fn write_round(html: &mut String, chart: &Chart, number: usize, round: RoundRecord) -> fmt::Result {
    let (x, width) = chart.bar(round.started, round.ended);
    let (class, verdict) = if round.is_right {
        ("answered", "right")
    } else {
        ("lost", "wrong")
    };
    writeln!(
        html,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{}\" width=\"{:.1}\" height=\"20\">\
         <title>round {number}: {verdict}, {:.1} s</title></rect>",
        CURVE + 7.0,
        (width - 1.0).max(0.5),
        round.ended - round.started
    )
}

fn write_key(html: &mut String, y: f64) -> fmt::Result {
    let mut x = 0.0;
    for (class, words) in [
        ("trial", "sent over the overlay"),
        ("unjudged", "something is gone"),
        ("answered", "round with the right result"),
        ("lost", "with a wrong one"),
    ] {
        writeln!(
            html,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\"/>\
             <text x=\"{}\" y=\"{}\">{words}</text>",
            y + 6.0,
            x + 20.0,
            y + 18.0
        )?;
        x += 210.0;
    }
    Ok(())
}

/// A table with its heading in its first row.
fn write_rows<const N: usize>(html: &mut String, title: &str, rows: &[[String; N]]) -> fmt::Result {
    let Some((heading, rows)) = rows.split_first() else {
        return Ok(());
    };
    head(html, title, &heading.each_ref().map(String::as_str))?;
    for row in rows {
        write!(html, "<tr>")?;
        for cell in row {
            write!(html, "<td>{}</td>", Text(cell))?;
        }
        writeln!(html, "</tr>")?;
    }
    writeln!(html, "</table></div>")
}

#[cfg(test)]
mod tests;
