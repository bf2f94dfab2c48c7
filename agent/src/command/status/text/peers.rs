//! The peers as a table.

use std::fmt::Write;

use super::table::{Cell, Column, Table};
use super::wrap;
use crate::base::terminal::{Style, Tone};
use crate::base::words::{ago, bytes, duration, grouped, harmless};
use crate::telemetry::status::{Peer, PeerState, State, Status};

const fn column(title: &'static str, right: bool, lightness: u8) -> Column {
    Column {
        title,
        right,
        lightness,
    }
}

/// The columns of a peer. The lightest optional columns are dropped first.
const COLUMNS: [Column; 9] = [
    column("SUBNET", false, 0),
    column("PUBLIC IP", false, 0),
    column("STATE", false, 0),
    column("KNOWN FOR", true, 3),
    column("CHANGED", true, 4),
    column("RECEIVED", true, 2),
    column("SENT", true, 2),
    column("HANDSHAKE", true, 1),
    column("NODE", false, 5),
];

/// How many peers there are, in which states, and a table of all of them.
pub(crate) fn describe(status: &Status, width: Option<usize>, style: Style) -> String {
    let peers = &status.peers;
    let mut text = String::with_capacity(64 + peers.len() * 128);
    if peers.is_empty() {
        let none = match status.health.state {
            State::Ready | State::Degraded => "No peers: no other node has a lease.",
            State::Joining => "No peers are known yet.",
            State::Stopped => "No peers: the kernel has no overlay routes.",
        };
        let _ = writeln!(text, "{none}");
        return text;
    }
    for line in wrap(&summary(status), width) {
        let _ = writeln!(text, "{line}");
    }
    let mut table = Table::new(&COLUMNS, "REASON");
    for peer in peers {
        let reason = peer.reason.as_deref().map(harmless);
        table.push(
            cells(peer, status.time),
            reason.map(|reason| reason.into_owned()),
        );
    }
    table.render(width, style, &mut text);
    text
}

fn summary(status: &Status) -> String {
    let peers = &status.peers;
    let all = grouped(u64::try_from(peers.len()).unwrap_or(u64::MAX));
    let noun = if peers.len() == 1 { "peer" } else { "peers" };
    if status.health.state == State::Stopped {
        return format!("{all} {noun} in the kernel's routes:");
    }
    let states = [PeerState::Programmed, PeerState::Failed, PeerState::Refused];
    let counts = states.map(|state| {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        (count, self::state(state).1)
    });
    if let Some((_, word)) = counts.iter().find(|(count, _)| *count == peers.len()) {
        let each = if peers.len() == 1 { "" } else { "all " };
        return format!("{all} {noun}, {each}{word}:");
    }
    let counts: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| {
            let count = u64::try_from(*count).unwrap_or(u64::MAX);
            format!("{} {word}", grouped(count))
        })
        .collect();
    format!("{all} {noun}, {}:", counts.join(", "))
}

/// A peer's state as a word, with its tone.
pub(crate) fn state(state: PeerState) -> (Tone, &'static str) {
    match state {
        PeerState::Programmed => (Tone::Good, "programmed"),
        PeerState::Failed => (Tone::Bad, "failed"),
        PeerState::Refused => (Tone::Warn, "refused"),
    }
}

fn cells(peer: &Peer, now: u64) -> Vec<Cell> {
    let (tone, state) = state(peer.state);
    let known = match peer.since_time {
        0 => String::new(),
        since => duration(now.saturating_sub(since)),
    };
    let handshake = match (peer.handshake_time, peer.traffic) {
        (Some(at), _) => Cell::new(ago(now, at)),
        (None, Some(_)) => Cell::new("never").toned(Tone::Warn),
        (None, None) => Cell::default(),
    };
    let amount = |amount: Option<u64>| Cell::new(amount.map(bytes).unwrap_or_default());
    vec![
        Cell::of_parts(peer.nets().map(|net| net.to_string())),
        Cell::of_parts(peer.addresses().map(|address| address.to_string())),
        Cell::new(state).toned(tone),
        Cell::new(known),
        Cell::new(peer.changed_time.map(|at| ago(now, at)).unwrap_or_default()),
        amount(peer.traffic.map(|traffic| traffic.rx_bytes)),
        amount(peer.traffic.map(|traffic| traffic.tx_bytes)),
        handshake,
        Cell::new(peer.owner.as_deref().map(harmless).unwrap_or_default()),
    ]
}
