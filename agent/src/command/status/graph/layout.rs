//! The layout: peers around this node, in rows below it, or, if there are too many to read one by one, as tiles in the
//! order of their subnets.

use std::f64::consts::{FRAC_PI_2, TAU};
use std::fmt::Write as _;

use super::card::{self, Card};
use super::mark::{Mark, MarkedPeer};
use super::svg::{Point, Size, Svg};

/// Maximum number of peers around this node.
const RING: usize = 10;
/// Maximum number of peers with a card each.
const ROWS: usize = 120;
/// Cards in a row. Even, so that the line that joins the rows runs down between two of them.
const IN_ROW: usize = 4;
/// Room between cards.
const GAP: f64 = 26.0;
/// Tiles in a row.
const TILES: usize = 100;
/// From one tile to the next, and the side of a tile.
const PITCH: f64 = 11.0;
const TILE: f64 = 8.0;
/// Width of the subnet at the head of a row of tiles.
const HEAD: f64 = 130.0;
/// Maximum number of faulty peers with a card beside their tile.
const NAMED: usize = 60;

/// A drawing and how large it is; its upper left corner is the origin.
pub(super) struct Drawing {
    pub(super) svg: Svg,
    pub(super) size: Size,
}

/// Draws the nodes.
pub(super) fn draw(own: &Card, peers: &[MarkedPeer<'_>]) -> Drawing {
    match peers.len() {
        0..=RING => ring(own, peers),
        count if count <= ROWS => rows(own, &peers.iter().collect::<Vec<_>>()),
        _ => field(own, peers),
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Peers on an ellipse around this node.
fn ring(own: &Card, peers: &[MarkedPeer<'_>]) -> Drawing {
    let cards: Vec<Card> = peers.iter().map(Card::peer).collect();
    let size = (card::WIDTH, card::common_height(&cards));
    let own_size = (card::WIDTH, own.height());
    let places = places(cards.len(), size, own_size);
    let edges = places.iter().map(|&middle| (middle, size));
    let (mut right, mut bottom) = (own_size.0 / 2.0, own_size.1 / 2.0);
    for ((x, y), (width, height)) in edges.clone() {
        right = right.max(x.abs() + width / 2.0);
        bottom = bottom.max(y.abs() + height / 2.0);
    }
    let mut svg = Svg::default();
    let moved = |(x, y): Point| (x + right, y + bottom);
    for (marked, &place) in peers.iter().zip(&places) {
        let middle = (moved((0.0, 0.0)), own_size);
        card::link(middle, (moved(place), size), marked.mark, &mut svg);
    }
    for (card, &place) in cards.iter().zip(&places) {
        card.draw(corner(moved(place), size), size.1, &mut svg);
    }
    own.draw(corner(moved((0.0, 0.0)), own_size), own_size.1, &mut svg);
    Drawing {
        svg,
        size: (2.0 * right, 2.0 * bottom),
    }
}

fn corner((x, y): Point, (width, height): Size) -> Point {
    (x - width / 2.0, y - height / 2.0)
}

/// The middles of `count` cards around the origin: on the smallest ellipse on which none touches another.
fn places(count: usize, size: Size, own: Size) -> Vec<Point> {
    let start = if count <= 2 { 0.0 } else { -FRAC_PI_2 };
    let mut radius = 200.0;
    loop {
        let places: Vec<Point> = (0..count)
            .map(|index| {
                let angle = start + TAU * float(index) / float(count);
                (radius * angle.cos(), 0.62 * radius * angle.sin())
            })
            .collect();
        let clear = |one: Point, other: Point, size: Size, room: f64| {
            (one.0 - other.0).abs() >= size.0 + room || (one.1 - other.1).abs() >= size.1 + room
        };
        let both = (f64::midpoint(size.0, own.0), f64::midpoint(size.1, own.1));
        // Leave room for a sign on the line around the middle.
        let good = places.iter().enumerate().all(|(index, &place)| {
            let mut others = places.iter().take(index);
            clear(place, (0.0, 0.0), both, 3.0 * GAP)
                && others.all(|&other| clear(place, other, size, GAP))
        });
        if good {
            return places;
        }
        radius += 10.0;
    }
}

/// Peers in rows below this node, each hanging from the line of its row.
fn rows(own: &Card, peers: &[&MarkedPeer<'_>]) -> Drawing {
    let cards: Vec<Card> = peers.iter().map(|marked| Card::peer(marked)).collect();
    let height = card::common_height(&cards);
    let columns = float(IN_ROW);
    let width = columns * card::WIDTH + (columns - 1.0) * GAP;
    let step = height + 2.0 * GAP;
    let top = own.height() + GAP;
    let middle = width / 2.0;
    let mut svg = Svg::default();
    let rows = peers.chunks(IN_ROW).zip(cards.chunks(IN_ROW));
    let mut bus = own.height();
    for (index, (peers, cards)) in rows.enumerate() {
        bus = top + float(index) * step;
        let left = |column: usize| float(column) * (card::WIDTH + GAP);
        let last = left(peers.len().saturating_sub(1)) + card::WIDTH / 2.0;
        let end = last.max(middle);
        svg.path(
            &format!("M{:.0} {bus:.0}H{end:.0}", card::WIDTH / 2.0),
            "spine",
        );
        for (column, (marked, card)) in peers.iter().zip(cards).enumerate() {
            let x = left(column);
            let drop = x + card::WIDTH / 2.0;
            svg.path(
                &format!("M{drop:.0} {bus:.0}V{:.0}", bus + GAP),
                &format!("line {}", marked.mark.class()),
            );
            card.draw((x, bus + GAP), height, &mut svg);
        }
    }
    svg.path(
        &format!("M{middle:.0} {:.0}V{bus:.0}", own.height()),
        "spine",
    );
    own.draw((middle - card::WIDTH / 2.0, 0.0), own.height(), &mut svg);
    Drawing {
        svg,
        size: (width, bus + GAP + height),
    }
}

/// A card for each faulty peer, and a tile for every peer.
fn field(own: &Card, peers: &[MarkedPeer<'_>]) -> Drawing {
    let bad = || {
        peers
            .iter()
            .filter(|marked| marked.mark != Mark::Programmed)
    };
    let named: Vec<&MarkedPeer<'_>> = bad().take(NAMED).collect();
    let Drawing { mut svg, size } = rows(own, &named);
    let mut y = size.1 + 2.0 * GAP;
    let unnamed = bad().count().saturating_sub(named.len());
    if unnamed > 0 {
        let text = format!("and {unnamed} more with faults; see selvage peers");
        svg.text((0.0, y), "", &text);
        y += GAP;
    }
    let text = format!(
        "All {} peers, {TILES} per row, by subnet; beside each row is its first subnet:",
        peers.len()
    );
    svg.text((0.0, y), "", &text);
    y += GAP / 2.0;
    let mut tiles = [const { String::new() }; Mark::ALL.len()];
    let mut bottom = y;
    for (row, peers) in peers.chunks(TILES).enumerate() {
        let top = y + float(row) * PITCH;
        bottom = top + PITCH;
        let first = peers.first().and_then(|marked| marked.peer.nets().next());
        if let Some(net) = first {
            svg.text((0.0, top + TILE), "mono small dim", &net.to_string());
        }
        for (column, marked) in peers.iter().enumerate() {
            let left = HEAD + float(column) * PITCH;
            let of_mark = Mark::ALL.iter().zip(&mut tiles);
            for (_, path) in of_mark.filter(|(mark, _)| **mark == marked.mark) {
                // Writing to a `String` cannot fail.
                let _ = write!(path, "M{left:.0} {top:.0}{}", tile(marked.mark));
            }
        }
    }
    for (mark, path) in Mark::ALL.iter().zip(&tiles) {
        if !path.is_empty() {
            svg.path(path, &format!("tile {}", mark.class()));
        }
    }
    let width = size.0.max(HEAD + float(TILES) * PITCH);
    Drawing {
        svg,
        size: (width, bottom),
    }
}

/// A tile, by its upper left corner: a full square, or the outline of the mark's sign.
fn tile(mark: Mark) -> &'static str {
    match mark {
        Mark::Programmed => "h8v8h-8z",
        Mark::Lost => "l8 8m0 -8l-8 8",
        Mark::Failed => "m4 0l4 8h-8z",
        Mark::Refused => "m0 4a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_of_a_ring_touch_nothing() {
        let (size, own) = ((card::WIDTH, 120.0), (card::WIDTH, 140.0));
        for count in 0..=RING {
            let places = places(count, size, own);
            assert_eq!(places.len(), count);
            for (index, one) in places.iter().enumerate() {
                for other in places.iter().take(index) {
                    let apart =
                        (one.0 - other.0).abs() > size.0 || (one.1 - other.1).abs() > size.1;
                    assert!(apart, "{count}: {one:?} {other:?}");
                }
                assert!(one.0.abs() > size.0 || one.1.abs() > 130.0, "{one:?}");
                assert!(one.0.abs() < 900.0, "{count} cards take too much room");
            }
        }
    }
}
