//! Finds the direction in which encapsulated packets are lost, without the peer's help.
//!
//! ```text
//!            forward                         backward
//!   echo from 10.77.0.11 to 10.5.2.0   echo from 10.5.1.0 to 10.77.0.12
//!   goes over the overlay device       goes over the underlay
//!   reply to 10.77.0.11                reply to 10.5.1.0
//!   comes over the underlay            comes over the overlay device
//! ```
//!
//! Both look forged to others, and are sent with `--deep` alone. The echoes are put onto the devices themselves, past the rules that would translate their addresses. A peer that does not
//! take packets from addresses that it would reach over another device (`rp_filter=1`), or a network that lets no foreign
//! source addresses pass, hides both directions. Beside this, the underlay shows whether encapsulated packets leave, and
//! whether the peer's come in, which is before this host's packet filter sees them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::path::{Carrier, Ground, Path};
use super::tap::{Passage, Tap, open_all};
use crate::base::net::MacAddr;
use crate::host::netlink::host::neighbors;
use crate::host::probe::packet::{Packet, Tag};
use crate::host::probe::ping::{Echo, Outcome, Pinger};

/// How often the packets are sent.
const TRIES: usize = 3;
/// How long to listen after each try.
const PATIENCE: Duration = Duration::from_millis(400);

/// The observed packets to and from one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Seen {
    /// An encapsulated packet left for the peer.
    pub(super) leaves: bool,
    /// The forward echo was answered.
    pub(super) forward: bool,
    /// An encapsulated packet of the peer's came in by the underlay.
    pub(super) arrives: bool,
    /// One of the peer's packets came out of the overlay device: the answer to the backward echo, or any other.
    pub(super) emerges: bool,
    /// An ordinary echo over the overlay was answered after all.
    pub(super) answered: bool,
    /// The UDP port on the peer.
    pub(super) port: Option<u16>,
    /// The peer's, or the gateway's, address on the link.
    neighbor: Option<MacAddr>,
}

/// What that means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// Packets do pass both ways; only echoes to a host's overlay address are not answered, or not let in.
    Works,
    /// No encapsulated packet leaves this host.
    NothingLeaves,
    /// The peer's packets come to this host, and nothing comes out of the overlay device.
    DroppedHere,
    /// Packets to the peer are lost; from it they come.
    LostToPeer,
    /// Packets from the peer are lost; to it they come.
    LostFromPeer,
    /// Nothing shows that packets pass either way.
    Blocked,
}

impl Seen {
    /// What it means for a peer whose overlay address does not answer, while its underlay address does.
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self { answered: true, .. } => Verdict::Works,
            Self { leaves: false, .. } => Verdict::NothingLeaves,
            Self {
                arrives: true,
                emerges: false,
                ..
            } => Verdict::DroppedHere,
            _ => match (self.forward, self.emerges) {
                (true, true) => Verdict::Works,
                (true, false) => Verdict::LostFromPeer,
                (false, true) => Verdict::LostToPeer,
                (false, false) => Verdict::Blocked,
            },
        }
    }
}

/// The tags of the echoes to one peer.
struct Tags {
    forward: Tag,
    backward: Tag,
}

/// Sends packets both ways to the peers at the ends of these paths, each of which has a tunnel, and says what was seen of
/// each. Takes somewhat more than a second.
///
/// # Errors
/// Devices cannot be listened to.
pub(super) async fn look(
    ground: &Ground,
    paths: &[&Path],
    pinger: &mut Pinger,
) -> io::Result<Vec<Seen>> {
    let under = Tap::open(ground.underlay.index)?;
    let tunnels = || paths.iter().filter_map(|path| path.tunnel.as_ref());
    let taps = open_all(tunnels().map(|tunnel| tunnel.index))?;
    let mut known: BTreeMap<u32, BTreeMap<IpAddr, MacAddr>> = BTreeMap::new();
    for tunnel in tunnels() {
        if let Entry::Vacant(entry) = known.entry(tunnel.index) {
            // Without them the forward echo cannot be sent, which then shows nothing.
            let found = neighbors(tunnel.index, &tunnel.name).await;
            entry.insert(found.unwrap_or_default());
        }
    }
    let tags: Vec<Tags> = paths
        .iter()
        .map(|_| Tags {
            forward: pinger.tag(),
            backward: pinger.tag(),
        })
        .collect();
    let mut seen = vec![Seen::default(); paths.len()];
    for _ in 0..TRIES {
        for ((path, tags), seen) in paths.iter().zip(&tags).zip(&seen) {
            let Some(tunnel) = &path.tunnel else {
                continue;
            };
            let Some(over) = taps.get(&tunnel.index) else {
                continue;
            };
            let mac = known
                .get(&tunnel.index)
                .and_then(|known| known.get(&path.over))
                .copied();
            // IP in IP needs the route that a packet came by; WireGuard takes no foreign addresses.
            let (forward, backward) = match tunnel.carrier {
                _ if !ground.deep => (false, false),
                Carrier::Vxlan { .. } => (mac.is_some(), true),
                Carrier::Udp => (true, true),
                Carrier::Ipip => (false, true),
                Carrier::Wireguard => (false, false),
            };
            if forward {
                put(over, tags.forward, path.own_under, path.over, mac);
            }
            if backward && seen.neighbor.is_some() {
                put(
                    &under,
                    tags.backward,
                    path.own_over,
                    path.under,
                    seen.neighbor,
                );
            }
        }
        let deadline = Instant::now() + PATIENCE;
        // The answers of the underlay addresses show the way on the link.
        let echoes: Vec<Echo> = paths
            .iter()
            .flat_map(|path| [path.over, path.under])
            .map(|to| Echo { to, len: 0 })
            .collect();
        let outcomes = pinger.ask(&echoes, &[PATIENCE / 8]).await;
        for (outcomes, seen) in outcomes.chunks(2).zip(&mut seen) {
            seen.answered |= outcomes.first() == Some(&Outcome::Answered);
        }
        loop {
            let all_over = taps.iter().map(|(&index, tap)| {
                Box::pin(async move {
                    let mut heard = Vec::new();
                    tap.listen(|passage, packet| {
                        if !passage.outgoing {
                            heard.push((packet.source, packet.reply()));
                        }
                    })
                    .await;
                    (index, heard)
                })
            });
            let any_over = async {
                if taps.is_empty() {
                    std::future::pending().await
                } else {
                    futures_util::future::select_all(all_over).await.0
                }
            };
            tokio::select! {
                () = under.listen(|passage, packet| {
                    for ((path, tags), seen) in paths.iter().zip(&tags).zip(&mut seen) {
                        note_under(path, tags, seen, passage, packet);
                    }
                }) => {}
                (index, heard) = any_over => {
                    for (source, reply) in heard {
                        for ((path, tags), seen) in paths.iter().zip(&tags).zip(&mut seen) {
                            let here = path.tunnel.as_ref().is_some_and(|tunnel| tunnel.index == index);
                            if here && (path.subnet.contains(&source) || reply == Some(tags.backward)) {
                                seen.emerges = true;
                                seen.answered |= source == path.over && reply.is_some_and(|tag| pinger.owns(tag));
                            }
                        }
                    }
                }
                () = sleep_until(deadline) => break,
            }
        }
    }
    Ok(seen)
}

fn put(tap: &Tap, tag: Tag, from: IpAddr, to: IpAddr, neighbor: Option<MacAddr>) {
    if let Some(packet) = tag.packet(from, to) {
        // A failed send counts as a lost packet.
        let _ = tap.send(&packet, neighbor);
    }
}

/// A packet on the underlay.
fn note_under(path: &Path, tags: &Tags, seen: &mut Seen, passage: Passage, packet: Packet<'_>) {
    let Some(tunnel) = &path.tunnel else {
        return;
    };
    let peer = if passage.outgoing {
        packet.destination
    } else {
        packet.source
    };
    // The answer to the forward echo has the overlay address of the peer.
    if !passage.outgoing && packet.source == path.over && packet.reply() == Some(tags.forward) {
        seen.forward = true;
        return;
    }
    if peer != path.under {
        return;
    }
    if !passage.outgoing && packet.reply().is_some() {
        seen.neighbor = passage.neighbor.or(seen.neighbor);
    }
    let is_ours = match tunnel.carrier {
        Carrier::Wireguard => packet.is_wireguard(),
        Carrier::Vxlan { .. } | Carrier::Ipip | Carrier::Udp => {
            let inside = |inner: Packet<'_>| {
                let end = if passage.outgoing {
                    inner.destination
                } else {
                    inner.source
                };
                [path.over, path.under].contains(&end)
            };
            packet.inner().is_some_and(inside)
        }
    };
    if is_ours && passage.outgoing {
        seen.leaves = true;
        seen.port = packet.udp_port().or(seen.port);
    } else if is_ours {
        seen.arrives = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_tells_where_packets_are_lost() {
        let seen = |leaves, forward, arrives, emerges| Seen {
            leaves,
            forward,
            arrives,
            emerges,
            ..Seen::default()
        };
        for (what, verdict) in [
            (seen(false, false, false, false), Verdict::NothingLeaves),
            (seen(true, true, true, false), Verdict::DroppedHere),
            (seen(true, false, true, false), Verdict::DroppedHere),
            (seen(true, true, false, false), Verdict::LostFromPeer),
            (seen(true, false, true, true), Verdict::LostToPeer),
            (seen(true, true, true, true), Verdict::Works),
            (seen(true, false, false, false), Verdict::Blocked),
        ] {
            assert_eq!(what.verdict(), verdict, "{what:?}");
            let answered = Seen {
                answered: true,
                ..what
            };
            assert_eq!(answered.verdict(), Verdict::Works);
        }
    }
}
