//! Text output of peers. Pure.

use std::fmt::Write;

use ipnet::IpNet;

use crate::base::terminal::{Style, Tone};
use crate::base::words::{ago, bytes, duration, harmless};
use crate::command::status::text::{LABEL, describe_peers, describe_state, labelled, wrap};
use crate::telemetry::status::{Owner, Peer, PeerDetail, PeerObject, State, Status};

/// All peers, preceded by anything that makes the list unreliable.
pub(super) fn all(status: &Status, table: String) -> String {
    let preface = match status.health.state {
        State::Ready | State::Degraded => return table,
        State::Joining => "The agent is joining:",
        State::Stopped => "No agent is running; this is what the kernel shows:",
    };
    let mut text = format!("{preface}\n");
    for reason in &status.health.reasons {
        let _ = writeln!(text, "  - {}", harmless(reason));
    }
    text.push_str(&table);
    text
}

/// An address or subnet while no agent runs; `status` has the matching peers.
pub(super) fn offline(
    status: &Status,
    asked: IpNet,
    (width, style): (Option<usize>, Style),
) -> String {
    let is_own = status
        .lease
        .as_ref()
        .is_some_and(|lease| lease.nets().any(|net| net.contains(&asked)));
    let name = name(asked);
    if is_own {
        format!("{name} is this host's, according to the subnet file\n")
    } else if status.peers.is_empty() {
        format!("the kernel has no overlay route to {name}\n")
    } else {
        describe_peers(status, width, style)
    }
}

/// A host address without its prefix length.
fn name(asked: IpNet) -> String {
    if asked.prefix_len() == asked.max_prefix_len() {
        asked.addr().to_string()
    } else {
        asked.to_string()
    }
}

/// One address or subnet: its owner and kernel objects.
pub(super) fn one(detail: &PeerDetail, now: u64, width: Option<usize>, style: Style) -> String {
    let mut text = String::new();
    let asked = name(detail.asked);
    let is_in_subnet = |peer: &Peer| peer.nets().any(|net| net.contains(&detail.asked));
    let (tone, whose) = match (detail.owner, &detail.peer) {
        (Owner::Own, _) => (Tone::Good, "is this host's"),
        (Owner::Peer, Some(peer)) if is_in_subnet(peer) => (Tone::Good, "is in a peer's subnet"),
        (Owner::Peer, _) => (Tone::Good, "is a peer's own address"),
        (Owner::Nobody, _) => (
            Tone::Bad,
            "is nobody's: inside the overlay network, but in no lease",
        ),
        (Owner::Outside, _) => (Tone::Bad, "is outside the overlay"),
    };
    let _ = writeln!(text, "{asked} {}", style.tone(tone, whose));
    let Some(peer) = &detail.peer else {
        return text;
    };
    text.push('\n');
    let mut line = |label: &str, content: &str, tone| {
        labelled(&mut text, (width, style), label, tone, content);
    };
    let join = |parts: Vec<String>| parts.join(", ");
    let subnets = join(peer.nets().map(|net| net.to_string()).collect());
    line("Subnet", &subnets, Tone::Plain);
    let addresses = join(
        peer.addresses()
            .map(|address| address.to_string())
            .collect(),
    );
    line("Public IP", &addresses, Tone::Plain);
    let (tone, state) = describe_state(peer.state);
    line("State", state, tone);
    if let Some(reason) = &peer.reason {
        line("", reason, tone);
    }
    line("Backend", &peer.backend, Tone::Plain);
    let node = peer.owner.as_deref();
    let node = node.unwrap_or("flannel, which has no owner ID");
    line("Node", node, Tone::Plain);
    let mut known = format!("for {}", duration(now.saturating_sub(peer.since_time)));
    if let Some(at) = peer.changed_time {
        let _ = write!(known, ", changed {}", ago(now, at));
    }
    line("Known", &known, Tone::Plain);
    if let Some(traffic) = peer.traffic {
        let (rx, tx) = (bytes(traffic.rx_bytes), bytes(traffic.tx_bytes));
        line("Traffic", &format!("{rx} received, {tx} sent"), Tone::Plain);
        match peer.handshake_time {
            Some(at) => line("Handshake", &ago(now, at), Tone::Plain),
            None => line("Handshake", "never", Tone::Warn),
        }
    }
    objects(&detail.objects, (width, style), &mut text);
    text
}

fn objects(objects: &[PeerObject], (width, style): (Option<usize>, Style), text: &mut String) {
    text.push('\n');
    if objects.is_empty() {
        text.push_str("The agent wants no kernel objects for it.\n");
        return;
    }
    let present = objects.iter().filter(|object| object.present).count();
    let _ = writeln!(
        text,
        "{present} of {} kernel objects present:",
        objects.len()
    );
    let room = width.map(|width| width.saturating_sub(LABEL));
    for object in objects {
        let (tone, word) = match (object.present, &object.found) {
            (true, _) => (Tone::Good, "present"),
            (false, Some(_)) => (Tone::Bad, "different"),
            (false, None) => (Tone::Bad, "missing"),
        };
        let wanted = harmless(&object.wanted);
        for (at, part) in wrap(&wanted, room).into_iter().enumerate() {
            let (word, tone) = match at {
                0 => (word, tone),
                _ => ("", Tone::Plain),
            };
            let word = style.tone(tone, word);
            let _ = writeln!(text, "{word:LABEL$}{part}");
        }
        if let Some(found) = &object.found {
            let found = format!("found {}", harmless(found));
            for part in wrap(&found, room) {
                let _ = writeln!(text, "{:LABEL$}{part}", "");
            }
        }
    }
}

#[cfg(test)]
mod tests;
