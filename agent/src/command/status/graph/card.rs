//! One node as a card, and the line that leads to it.

use super::mark::{Mark, MarkedPeer};
use super::svg::{Point, Size, Svg, clip, wrap};
use crate::telemetry::status::Status;

/// Width of every card; fits a full IPv6 subnet, and most reasons in two lines.
pub(super) const WIDTH: f64 = 270.0;
/// Line spacing.
const LINE: f64 = 17.0;
/// From the edge to the text.
const PADDING: f64 = 12.0;
/// Columns that fit between the edges: in the fixed-width font, and in the other.
const COLUMNS: usize = 30;
const WORDS: usize = 36;
/// Lines of a reason; the tooltip has all of it.
const REASON_LINES: usize = 3;
/// Characters of a peer's text that a tooltip shows.
const TOOLTIP: usize = 600;

/// A node, ready to be drawn.
pub(super) struct Card {
    class: String,
    lines: Vec<(&'static str, String)>,
    mark: Option<Mark>,
    tooltip: String,
}

impl Card {
    /// This node.
    pub(super) fn own(status: &Status) -> Self {
        let mut lines = vec![("dim", "this node".to_owned())];
        match &status.lease {
            Some(lease) => {
                lines.extend(lease.nets().map(|net| ("mono strong", net.to_string())));
                if !lease.held {
                    lines.push(("word-lost", "the lease is no longer held".to_owned()));
                }
            }
            None => lines.push(("word-lost", "no lease".to_owned())),
        }
        if let Some(underlay) = &status.underlay {
            lines.extend(underlay.nets().map(|net| ("mono", net.to_string())));
            lines.push(("dim", format!("on {}", underlay.interface)));
        }
        let devices: Vec<&str> = status
            .devices
            .iter()
            .map(|device| device.name.as_str())
            .collect();
        if !devices.is_empty() {
            lines.push(("dim", format!("device {}", devices.join(", "))));
        }
        Self {
            class: "card own".to_owned(),
            lines: fitted(lines),
            mark: None,
            tooltip: format!("this node, {}", status.agent.node_id),
        }
    }

    /// A peer.
    pub(super) fn peer(marked: &MarkedPeer<'_>) -> Self {
        let mut lines: Vec<_> = marked
            .peer
            .nets()
            .map(|net| ("mono strong", net.to_string()))
            .collect();
        lines.extend(
            marked
                .peer
                .addresses()
                .map(|address| ("mono", format!("at {address}"))),
        );
        if let Some(owner) = &marked.peer.owner {
            // A machine id has 32 digits, which are wide.
            lines.push(("dim small", owner.clone()));
        }
        lines.push((marked.mark.word_class(), marked.mark.word().to_owned()));
        if let Some(reason) = &marked.reason {
            let reason = wrap(reason, WORDS, REASON_LINES);
            lines.extend(reason.into_iter().map(|line| ("", line)));
        }
        Self {
            class: match marked.mark {
                Mark::Programmed => "card".to_owned(),
                bad => format!("card bad {}", bad.class()),
            },
            lines: fitted(lines),
            mark: Some(marked.mark),
            tooltip: clip(&sentence(marked), TOOLTIP),
        }
    }

    /// Its minimum height.
    pub(super) fn height(&self) -> f64 {
        let lines = u32::try_from(self.lines.len()).unwrap_or(u32::MAX);
        f64::from(lines) * LINE + 2.0 * PADDING - 4.0
    }

    /// Draws it by its upper left corner.
    pub(super) fn draw(&self, (x, y): Point, height: f64, svg: &mut Svg) {
        svg.group(&self.tooltip, |svg| {
            svg.rect((x, y), (WIDTH, height), &self.class);
            let mut line = y + PADDING + 9.0;
            for (class, text) in &self.lines {
                let word = self.mark.filter(|mark| mark.word_class() == *class);
                if let Some(mark) = word {
                    mark.sign((x + PADDING + 6.0, line - 4.0), svg);
                    svg.text((x + PADDING + 18.0, line), class, text);
                } else {
                    svg.text((x + PADDING, line), class, text);
                }
                line += LINE;
            }
        });
    }
}

/// A peer in one sentence, for screen readers.
pub(super) fn sentence(marked: &MarkedPeer<'_>) -> String {
    let nets: Vec<String> = marked.peer.nets().map(|net| net.to_string()).collect();
    let addresses: Vec<String> = marked
        .peer
        .addresses()
        .map(|address| address.to_string())
        .collect();
    let owner = marked.peer.owner.as_ref();
    let owner = owner.map_or_else(String::new, |owner| format!(" ({owner})"));
    let reason = marked.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    format!(
        "{} at {}{owner}, {}{reason}.",
        nets.join(" and "),
        addresses.join(" and "),
        marked.mark.word(),
    )
}

fn fitted(lines: Vec<(&'static str, String)>) -> Vec<(&'static str, String)> {
    lines
        .into_iter()
        .map(|(class, text)| {
            let columns = if class.starts_with("mono") {
                COLUMNS
            } else {
                WORDS
            };
            (class, clip(&text, columns))
        })
        .collect()
}

/// The height that fits each card.
pub(super) fn common_height(cards: &[Card]) -> f64 {
    cards.iter().map(Card::height).fold(0.0, f64::max)
}

/// Draws the line between two cards, by their middles and sizes, with the peer's sign halfway if it has a fault.
pub(super) fn link(from: (Point, Size), to: (Point, Size), mark: Mark, svg: &mut Svg) {
    let start = edge(from, to.0);
    let end = edge(to, from.0);
    let class = format!("line {}", mark.class());
    let ((x1, y1), (x2, y2)) = (start, end);
    if mark == Mark::Programmed {
        svg.path(&format!("M{x1:.0} {y1:.0}L{x2:.0} {y2:.0}"), &class);
        return;
    }
    // The line is broken in the middle, so that it does not seem to connect.
    let at = |part: f64| (x1 + (x2 - x1) * part, y1 + (y2 - y1) * part);
    let gap = 14.0 / (x2 - x1).hypot(y2 - y1).max(28.0);
    let ((x3, y3), (x4, y4)) = (at(0.5 - gap), at(0.5 + gap));
    svg.path(
        &format!("M{x1:.0} {y1:.0}L{x3:.0} {y3:.0}M{x4:.0} {y4:.0}L{x2:.0} {y2:.0}"),
        &class,
    );
    mark.sign(at(0.5), svg);
}

/// The point where the line from a card's middle to `target` crosses its edge.
fn edge(((x, y), (width, height)): (Point, Size), target: Point) -> Point {
    let (dx, dy) = (target.0 - x, target.1 - y);
    let reach = |half: f64, along: f64| {
        if along == 0.0 {
            f64::MAX
        } else {
            half / along.abs()
        }
    };
    let part = reach(width / 2.0, dx).min(reach(height / 2.0, dy));
    // The same middle: no line.
    if part == f64::MAX {
        return (x, y);
    }
    (x + dx * part, y + dy * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_begins_at_the_edge_of_a_card() {
        let card = ((100.0, 50.0), (60.0, 20.0));
        assert_eq!(edge(card, (300.0, 50.0)), (130.0, 50.0));
        assert_eq!(edge(card, (100.0, 0.0)), (100.0, 40.0));
        assert_eq!(edge(card, (100.0, 50.0)), (100.0, 50.0));
    }
}
