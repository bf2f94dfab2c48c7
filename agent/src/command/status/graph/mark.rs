//! A peer's state in the picture: a line style, a sign and a word; colour only repeats it.

use std::collections::HashMap;

use ipnet::IpNet;

use super::svg::{Point, Svg};
use crate::command::doctor::Finding;
use crate::telemetry::status::{Peer, PeerState};

/// A peer's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    /// All its kernel objects exist, and no fault is known.
    Programmed,
    /// It is programmed, but packets are lost.
    Lost,
    /// The kernel refused some of its objects.
    Failed,
    /// Its lease cannot be used.
    Refused,
}

impl Mark {
    /// All, in the order of the legend.
    pub(super) const ALL: [Self; 4] = [Self::Programmed, Self::Lost, Self::Failed, Self::Refused];

    /// The word in the picture.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Lost => "packets lost",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }

    /// What that means.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Programmed => "all its kernel objects exist",
            Self::Lost => "programmed, but it does not answer every packet",
            Self::Failed => "the kernel refused some of its objects",
            Self::Refused => "its lease is refused",
        }
    }

    /// Class of lines and frames.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Lost => "lost",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }

    /// Class of the word.
    pub(super) fn word_class(self) -> &'static str {
        match self {
            Self::Programmed => "word-programmed",
            Self::Lost => "word-lost",
            Self::Failed => "word-failed",
            Self::Refused => "word-refused",
        }
    }

    /// Draws the sign, 12 wide and high, around `at`: a tick, a cross, a triangle with a stroke, a crossed circle.
    pub(super) fn sign(self, (x, y): Point, svg: &mut Svg) {
        let shape = match self {
            Self::Programmed => "m-5 0l4 5l6 -10",
            Self::Lost => "m-5 -5l10 10m0 -10l-10 10",
            Self::Failed => "m0 -6l6 11h-12zm0 4v3.5",
            Self::Refused => "m-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0m2 -4l8 8",
        };
        svg.path(
            &format!("M{x:.0} {y:.0}{shape}"),
            &format!("sign {}", self.class()),
        );
    }
}

/// A peer with its mark.
pub(super) struct MarkedPeer<'a> {
    pub(super) peer: &'a Peer,
    pub(super) mark: Mark,
    /// Why the mark is not [`Mark::Programmed`].
    pub(super) reason: Option<String>,
}

/// Marks peers by the agent's status and the doctor's findings.
pub(super) fn mark_peers<'a>(peers: &'a [Peer], findings: &[Finding]) -> Vec<MarkedPeer<'a>> {
    let lost = about(findings);
    let mark = |peer: &'a Peer| {
        let reason = peer.reason.clone();
        let (mark, reason) = match peer.state {
            PeerState::Failed => (Mark::Failed, reason),
            PeerState::Refused => (Mark::Refused, reason),
            PeerState::Programmed => {
                let found = peer.nets().find_map(|net| lost.get(&net));
                match found {
                    Some(what) => (Mark::Lost, Some((*what).to_owned())),
                    None if is_silent(peer) => {
                        let what = "packets were sent, but there was never a handshake";
                        (Mark::Lost, Some(what.to_owned()))
                    }
                    None => (Mark::Programmed, reason),
                }
            }
        };
        MarkedPeer { peer, mark, reason }
    };
    peers.iter().map(mark).collect()
}

/// Findings about peers, by subnet. Warnings count: a silent peer may just be switched off, but is unreachable all the
/// same.
fn about(findings: &[Finding]) -> HashMap<IpNet, &str> {
    findings
        .iter()
        .flat_map(|finding| {
            let what = finding.what.as_str();
            finding.peers.iter().map(move |peer| (*peer, what))
        })
        .collect()
}

/// WireGuard starts with a handshake. Without one, no sent packet has reached the peer.
fn is_silent(peer: &Peer) -> bool {
    let sent = peer.traffic.is_some_and(|traffic| traffic.tx_bytes > 0);
    let received = peer.traffic.is_some_and(|traffic| traffic.rx_bytes > 0);
    peer.backend == "wireguard" && sent && !received && peer.handshake_time.is_none()
}
