//! The demo's report as one HTML page that opens from disk: what was booted, the overlay as a node draws it, who reached
//! whom, and a chart of the boots. It needs nothing from elsewhere, and no scripts. Pure. [`update`] and [`spark`] are those of the
//! other demos.

pub(crate) mod spark;
pub(crate) mod update;

use std::fmt::{self, Write as _};
use std::time::Duration;

use selvage::telemetry::status::{PeerState, State, Status};

use crate::report::{CrossReport, NodeReport, seconds};

const STYLE: &str = include_str!("page/style.css");

/// What the page tells.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    /// What was found on each node.
    pub nodes: &'a [NodeReport],
    /// What each node's agent says, in the same order.
    pub statuses: &'a [Status],
    /// The first node's drawing of the overlay, as SVG.
    pub overlay: &'a str,
    /// Who reached whom.
    pub crossings: &'a [CrossReport],
    /// How the machines ran: QEMU's accelerator.
    pub accelerator: &'a str,
    /// How long everything took.
    pub took: Duration,
}

impl Page<'_> {
    /// The page as HTML.
    pub(crate) fn html(&self) -> String {
        let mut html = String::new();
        // Writing into a `String` never fails.
        let _ = self.write(&mut html);
        html
    }

    fn write(&self, html: &mut String) -> fmt::Result {
        let count = self.nodes.len();
        let hosts = if count == 1 { "host" } else { "hosts" };
        let title = format!("{count} {hosts} on one overlay");
        begin(html, &title)?;
        let good = self.crossings.iter().all(CrossReport::is_good)
            && self
                .statuses
                .iter()
                .all(|status| status.health.state == State::Ready);
        writeln!(html, "<h1>{title}</h1>")?;
        writeln!(
            html,
            "<p class=\"{}\">{} Booted from the image under {}, all in {} s.</p>",
            if good { "good" } else { "bad" },
            if good {
                "All is as it should be."
            } else {
                "Something is wrong; see below."
            },
            Text(self.accelerator),
            self.took.as_secs()
        )?;
        self.write_nodes(html)?;
        writeln!(
            html,
            "<h2>The overlay, as {} sees it</h2>\n<div class=\"wide\">{}</div>",
            Text(self.nodes.first().map_or("nobody", |node| &node.name)),
            self.overlay
        )?;
        self.write_crossings(html)?;
        self.write_boots(html)?;
        writeln!(html, "</main>\n</body>\n</html>")
    }

    fn write_nodes(&self, html: &mut String) -> fmt::Result {
        head(
            html,
            "Hosts",
            &[
                "host",
                "state",
                "version",
                "slot",
                "update",
                "underlay",
                "subnet",
                "backend",
                "MTU",
                "peers",
                "boot to Docker",
            ],
        )?;
        for (node, status) in self.nodes.iter().zip(self.statuses) {
            let (class, state) = match status.health.state {
                State::Ready => ("good", "ready".to_owned()),
                State::Stopped => ("bad", "no agent runs".to_owned()),
                State::Joining | State::Degraded => ("bad", status.health.reasons.join("; ")),
            };
            let programmed =
                |peer: &&selvage::telemetry::status::Peer| peer.state == PeerState::Programmed;
            let peers = status.peers.iter().filter(programmed).count();
            let backend = status
                .network
                .as_ref()
                .map_or("", |network| &network.backend);
            write!(
                html,
                "<tr><th>{}</th><td class=\"{class}\">{}</td>",
                Text(&node.name),
                Text(&state)
            )?;
            let boot = seconds(node.timeline.docker_ready);
            for cell in [
                node.image.version.clone(),
                node.image.slot.clone(),
                node.image.update.clone(),
                node.underlay.to_string(),
                node.facts.subnet.to_string(),
                backend.to_owned(),
                node.facts.mtu.to_string(),
                format!("{peers} of {}", self.nodes.len().saturating_sub(1)),
                format!("{boot} s"),
            ] {
                write!(html, "<td>{}</td>", Text(&cell))?;
            }
            writeln!(html, "</tr>")?;
        }
        writeln!(html, "</table></div>")
    }

    fn write_crossings(&self, html: &mut String) -> fmt::Result {
        if self.crossings.is_empty() {
            return Ok(());
        }
        head(
            html,
            "Containers across hosts",
            &["from", "to", "ping", "the HTTP server saw"],
        )?;
        for crossing in self.crossings {
            let rtt = crossing
                .ping
                .rtt_ms
                .map_or_else(|| "no answer".to_owned(), |rtt| format!("{rtt:.1} ms"));
            let own = crossing.seen == crossing.client.to_string();
            let (class, verdict) = if own {
                ("good", "the client's own address")
            } else {
                ("bad", "not the client's address")
            };
            writeln!(
                html,
                "<tr><th>{} {}</th><td>{} {}</td><td>{:.0} % loss, {rtt}</td>\
                 <td class=\"{class}\">{}, {verdict}</td></tr>",
                Text(&crossing.from),
                crossing.client,
                Text(&crossing.to),
                crossing.server,
                crossing.ping.loss_percent,
                Text(&crossing.seen)
            )?;
        }
        writeln!(html, "</table></div>")
    }

    /// One bar for each boot, in parts that end with the milestones.
    fn write_boots(&self, html: &mut String) -> fmt::Result {
        writeln!(
            html,
            "<h2>Boot</h2>\n<p>Seconds since the kernel's start, by each guest's own clock.</p>"
        )?;
        let end = |node: &NodeReport| marks(node).last().map_or(0.0, |(_, at)| *at);
        let longest = self.nodes.iter().map(end).fold(1.0, f64::max);
        let scale = (CHART - LABEL - 60.0) / longest;
        let rows: f64 = self.nodes.iter().map(|_| ROW).sum();
        let height = rows + 36.0;
        writeln!(
            html,
            "<div class=\"wide\"><svg class=\"chart\" role=\"img\" aria-label=\"Chart of the boots; the table below has its figures\" \
             viewBox=\"0 0 {CHART} {height}\" width=\"{CHART}\" height=\"{height}\">"
        )?;
        let mut y = 0.0;
        for node in self.nodes {
            writeln!(
                html,
                "<text x=\"0\" y=\"{}\">{}</text>",
                y + 20.0,
                Text(&node.name)
            )?;
            let mut x = LABEL;
            for (part, (label, at)) in marks(node).into_iter().enumerate() {
                let until = LABEL + at * scale;
                writeln!(
                    html,
                    "<rect class=\"part{part}\" x=\"{x:.1}\" y=\"{}\" width=\"{:.1}\" height=\"24\"><title>{label}: {at:.1} s</title></rect>",
                    y + 4.0,
                    (until - x).max(0.0)
                )?;
                x = x.max(until);
            }
            writeln!(
                html,
                "<text x=\"{:.1}\" y=\"{}\">{:.1} s</text>",
                x + 6.0,
                y + 20.0,
                end(node)
            )?;
            y += ROW;
        }
        let mut x = LABEL;
        for (part, label) in LABELS.iter().enumerate() {
            writeln!(
                html,
                "<rect class=\"part{part}\" x=\"{x}\" y=\"{}\" width=\"14\" height=\"14\"/>\
                 <text x=\"{}\" y=\"{}\">{label}</text>",
                y + 12.0,
                x + 20.0,
                y + 24.0
            )?;
            x += 140.0;
        }
        writeln!(html, "</svg></div>")?;
        let mut columns = vec!["host"];
        columns.extend(LABELS);
        head(html, "", &columns)?;
        for node in self.nodes {
            write!(html, "<tr><th>{}</th>", Text(&node.name))?;
            for (_, at) in milestones(node) {
                write!(html, "<td>{}</td>", seconds(at))?;
            }
            writeln!(html, "</tr>")?;
        }
        writeln!(html, "</table></div>")
    }
}

/// Width of the chart, of its column of names, and the height of a row.
const CHART: f64 = 860.0;
const LABEL: f64 = 70.0;
const ROW: f64 = 34.0;

/// What the parts of a bar end with.
const LABELS: [&str; 5] = [
    "Ignition done",
    "lease held",
    "subnet.env",
    "Docker ready",
    "first container",
];

/// The milestones of a boot, whether passed or not, in the order of [`LABELS`].
fn milestones(node: &NodeReport) -> [(&'static str, Option<Duration>); 5] {
    let timeline = &node.timeline;
    let at = [
        timeline.ignition,
        timeline.lease,
        timeline.subnet_file,
        timeline.docker_ready,
        node.first_container,
    ];
    std::array::from_fn(|index| (LABELS[index], at[index]))
}

/// The milestones that were passed, in seconds.
fn marks(node: &NodeReport) -> Vec<(&'static str, f64)> {
    milestones(node)
        .into_iter()
        .map(|(label, at)| (label, at.map_or(0.0, |at| at.as_secs_f64())))
        .collect()
}

/// All up to the page's heading.
fn begin(html: &mut String, title: &str) -> fmt::Result {
    writeln!(
        html,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <link rel=\"icon\" href=\"data:,\">\n\
         <title>Selvage: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>"
    )
}

/// A heading, unless it is empty, and the first row of a table.
fn head(html: &mut String, title: &str, columns: &[&str]) -> fmt::Result {
    if !title.is_empty() {
        writeln!(html, "<h2>{title}</h2>")?;
    }
    write!(html, "<div class=\"wide\"><table><tr>")?;
    for column in columns {
        write!(html, "<th>{column}</th>")?;
    }
    writeln!(html, "</tr>")
}

/// A text in HTML.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
