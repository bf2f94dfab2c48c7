//! `selvage status --graph`: the overlay as seen by this node, as an SVG picture.
//!
//! This node is in the middle with its peers around it; many peers are drawn in rows, very many as tiles in the order
//! of their subnets, with cards only for peers with faults. A peer's state is shown by a word, a sign and its line
//! style; colour only repeats it. The picture follows the viewer's light or dark scheme (`prefers-color-scheme`), has a
//! title and a description for screen readers, and is self-contained: no scripts, fonts or links. Several can be
//! embedded in one HTML page: all classes are below `.selvage-overlay`, all IDs begin with this node's.
//!
//! What peers publish is untrusted: every text is escaped and clipped.

use std::time::{Duration, UNIX_EPOCH};

use crate::base::time::rfc3339;
use crate::command::doctor::Finding;
use card::Card;
use mark::Mark;
use svg::{Escaped, Svg, wrap};

use crate::telemetry::status::{State, Status};

mod card;
mod layout;
mod mark;
mod svg;

const STYLE: &str = include_str!("graph/style.css");

/// Around everything.
const MARGIN: f64 = 28.0;
/// Line spacing of the heading and the legend.
const LINE: f64 = 20.0;
/// Minimum inner width, for the heading and the legend.
const WIDTH: f64 = 720.0;
/// Characters in a line of the heading.
const COLUMNS: usize = 100;
/// Number of reasons in the heading, and lines of each.
const REASONS: usize = 4;
const REASON_LINES: usize = 2;
/// Number of peers listed in the description.
const MAX_LISTED: usize = 20;

/// Draws the overlay. `asked` has the findings of probes to the peers, or why none were sent.
pub fn draw(status: &Status, asked: Result<&[Finding], &str>) -> String {
    let peers = mark::mark_peers(&status.peers, asked.unwrap_or_default());
    let nodes = layout::draw(&Card::own(status), &peers);
    let width = nodes.size.0.max(WIDTH);
    let heading = heading(status, &peers, asked);
    let mut inside = Svg::default();
    let mut y = 18.0;
    for (class, text) in &heading {
        inside.text((0.0, y), class, text);
        y += LINE;
    }
    y += LINE;
    inside.moved(((width - nodes.size.0) / 2.0, y), &nodes.svg);
    y += nodes.size.1 + 2.0 * LINE;
    for mark in Mark::ALL {
        if peers.iter().any(|marked| marked.mark == mark) {
            mark.sign((6.0, y - 5.0), &mut inside);
            inside.text((20.0, y), mark.word_class(), mark.word());
            inside.text((130.0, y), "dim", mark.meaning());
            y += LINE;
        }
    }
    let (width, height) = (width + 2.0 * MARGIN, y + MARGIN);
    let id = id(&status.agent.node_id);
    let mut svg = Svg::default();
    svg.put(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" class="selvage-overlay" role="img" aria-labelledby="{id}-title {id}-desc" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}">"#
    ));
    let title = Escaped(heading.first().map_or("", |(_, text)| text.as_str()));
    svg.put(format_args!(r#"<title id="{id}-title">{title}</title>"#));
    let description = description(status, &peers);
    let description = Escaped(&description);
    svg.put(format_args!(r#"<desc id="{id}-desc">{description}</desc>"#));
    svg.put(format_args!("<style>\n{STYLE}</style>"));
    svg.put(format_args!(
        r#"<rect width="100%" height="100%" class="paper"/>"#
    ));
    svg.moved((MARGIN, MARGIN), &inside);
    svg.put(format_args!("</svg>"));
    svg.into_text()
}

/// The lines above the nodes, by class and text; the first line is the title.
fn heading(
    status: &Status,
    peers: &[mark::MarkedPeer<'_>],
    asked: Result<&[Finding], &str>,
) -> Vec<(&'static str, String)> {
    let title = status.network.as_ref().map_or_else(
        || "Overlay, not known yet".to_owned(),
        |network| {
            let nets: Vec<String> = network.nets().map(|net| net.to_string()).collect();
            let (backend, mtu) = (&network.backend, network.mtu);
            format!("Overlay {} by {backend}, MTU {mtu}", nets.join(" and "))
        },
    );
    let mut lines = vec![("title", svg::clip(&title, 80))];
    lines.push(("dim", counts(peers)));
    let (class, state) = match status.health.state {
        State::Ready => ("word-programmed", "ready"),
        State::Joining => ("word-refused", "joining"),
        State::Degraded => ("word-lost", "degraded"),
        State::Stopped => ("word-lost", "no agent is running"),
    };
    lines.push((class, format!("{state}, at {}", utc(status.time))));
    for reason in status.health.reasons.iter().take(REASONS) {
        let reason = wrap(reason, COLUMNS, REASON_LINES);
        lines.extend(reason.into_iter().map(|line| ("", line)));
    }
    let more = status.health.reasons.len().saturating_sub(REASONS);
    if more > 0 {
        lines.push(("", format!("and {more} more; see selvage status")));
    }
    match asked {
        // Findings about one peer are on its card.
        Ok(findings) => {
            let several = findings.iter().filter(|finding| finding.subject.is_none());
            for finding in several.take(REASONS) {
                let what = wrap(&finding.what, COLUMNS, REASON_LINES);
                lines.extend(what.into_iter().map(|line| ("", line)));
            }
        }
        Err(reason) if !peers.is_empty() => {
            let text = format!("peers were not probed: {reason}");
            lines.push(("dim", svg::clip(&text, COLUMNS)));
        }
        Err(_) => {}
    }
    lines
}

/// The number of peers by mark.
fn counts(peers: &[mark::MarkedPeer<'_>]) -> String {
    let noun = if peers.len() == 1 { "peer" } else { "peers" };
    let of_mark = Mark::ALL.map(|mark| {
        let count = peers.iter().filter(|marked| marked.mark == mark).count();
        (count > 0).then(|| format!("{count} {}", mark.word()))
    });
    let of_mark: Vec<String> = of_mark.into_iter().flatten().collect();
    match of_mark.is_empty() {
        true => format!("no {noun}"),
        false => format!("{} {noun}: {}", peers.len(), of_mark.join(", ")),
    }
}

/// The picture as text: peers with faults first, then the others, up to a limit.
fn description(status: &Status, peers: &[mark::MarkedPeer<'_>]) -> String {
    let mut sentences = vec![match &status.lease {
        Some(lease) => {
            let nets: Vec<String> = lease.nets().map(|net| net.to_string()).collect();
            format!("This node has {}.", nets.join(" and "))
        }
        None => "This node has no lease.".to_owned(),
    }];
    sentences.push(format!("{}.", counts(peers)));
    let bad = peers
        .iter()
        .filter(|marked| marked.mark != Mark::Programmed);
    let good = peers
        .iter()
        .filter(|marked| marked.mark == Mark::Programmed);
    let listed = bad.chain(good).take(MAX_LISTED);
    sentences.extend(listed.map(|marked| svg::clip(&card::sentence(marked), 300)));
    if peers.len() > MAX_LISTED {
        sentences.push(format!("And {} more.", peers.len() - MAX_LISTED));
    }
    sentences.join(" ")
}

/// The prefix of IDs: letters, digits and dashes only.
fn id(node_id: &str) -> String {
    let kept = node_id.chars().filter(|char| char.is_ascii_alphanumeric());
    format!("overlay-{}", kept.take(64).collect::<String>())
}

/// Formats a point in time of the schema in UTC.
fn utc(time: u64) -> String {
    // A status from elsewhere may have a time beyond the range of the platform's clock.
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(time));
    let text = rfc3339(time.unwrap_or(UNIX_EPOCH));
    text.replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests;
