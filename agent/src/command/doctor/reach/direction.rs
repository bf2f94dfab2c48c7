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
//! Both look forged to others, and are sent with `--deep` alone. They are injected into the devices, past the rules that
//! would translate their addresses. A peer that refuses packets from addresses that it would reach over another device
//! (`rp_filter=1`), or a network that drops foreign source addresses, hides both directions. Besides, the underlay shows
//! whether encapsulated packets leave, and whether the peer's arrive, before this host's packet filter sees them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::path::{Carrier, Path, Topology};
use super::tap::{PacketInfo, Tap, open_all};
use crate::base::net::MacAddr;
use crate::host::netlink::host::neighbors;
use crate::host::probe::packet::{Packet, Tag};
use crate::host::probe::ping::{Echo, EchoResult, Pinger};

/// How often the packets are sent.
const TRIES: usize = 3;
/// How long to listen after each try.
const PATIENCE: Duration = Duration::from_millis(400);

/// The observed packets to and from one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Observation {
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

impl Observation {
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

/// Sends packets both ways to the peers at the ends of these paths, each of which has a tunnel, and returns what was
/// observed of each. Takes somewhat more than a second.
///
/// # Errors
/// Packets cannot be captured.
pub(super) async fn observe(
    topology: &Topology,
    paths: &[&Path],
    pinger: &mut Pinger,
) -> io::Result<Vec<Observation>> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let devices = Devices::open(topology, paths).await?;
    let mut probes: Vec<Probe<'_>> = paths
        .iter()
        .map(|path| Probe {
            path,
            forward: pinger.tag(),
            backward: pinger.tag(),
            observed: Observation::default(),
        })
        .collect();
    // The replies of the underlay addresses show the neighbor's address on the link.
    let echoes: Vec<Echo> = paths
        .iter()
        .flat_map(|path| [path.over, path.under])
        .map(|to| Echo { to, len: 0 })
        .collect();
    for _ in 0..TRIES {
        if topology.deep {
            probes.iter().for_each(|probe| devices.inject(probe));
        }
        let deadline = Instant::now() + PATIENCE;
        let results = pinger.ask(&echoes, &[PATIENCE / 8]).await;
        for (results, probe) in results.chunks(2).zip(&mut probes) {
            probe.observed.answered |= results.first() == Some(&EchoResult::Answered);
        }
        let capture = async {
            loop {
                devices.capture(&mut probes, pinger).await;
            }
        };
        let _ = timeout_at(deadline, capture).await;
    }
    Ok(probes.into_iter().map(|probe| probe.observed).collect())
}

/// The devices that packets are captured on and injected into.
struct Devices {
    under: Tap,
    /// The overlay devices, by index.
    over: BTreeMap<u32, Tap>,
    /// The neighbors on each overlay device. Without one, no forward echo can be sent.
    neighbors: BTreeMap<u32, BTreeMap<IpAddr, MacAddr>>,
}

impl Devices {
    async fn open(topology: &Topology, paths: &[&Path]) -> io::Result<Self> {
        let tunnels = || paths.iter().filter_map(|path| path.tunnel.as_ref());
        let under = Tap::open(topology.underlay.index)?;
        let over = open_all(tunnels().map(|tunnel| tunnel.index))?;
        let mut known = BTreeMap::new();
        for tunnel in tunnels() {
            if let Entry::Vacant(entry) = known.entry(tunnel.index) {
                let found = neighbors(tunnel.index, &tunnel.name).await;
                entry.insert(found.unwrap_or_default());
            }
        }
        Ok(Self {
            under,
            over,
            neighbors: known,
        })
    }

    /// Sends the echoes of both directions, as far as the backend lets them through.
    fn inject(&self, probe: &Probe<'_>) {
        let path = probe.path;
        let Some(tunnel) = &path.tunnel else { return };
        let Some(over) = self.over.get(&tunnel.index) else {
            return;
        };
        let neighbors = self.neighbors.get(&tunnel.index);
        let mac = neighbors.and_then(|known| known.get(&path.over)).copied();
        // IP in IP needs the route that a packet came by; WireGuard takes no foreign addresses.
        let (forward, backward) = match tunnel.carrier {
            Carrier::Vxlan { .. } => (mac.is_some(), true),
            Carrier::Udp => (true, true),
            Carrier::Ipip => (false, true),
            Carrier::Wireguard => (false, false),
        };
        if forward {
            inject(over, probe.forward, path.own_under, path.over, mac);
        }
        let neighbor = probe.observed.neighbor;
        if backward && neighbor.is_some() {
            inject(
                &self.under,
                probe.backward,
                path.own_over,
                path.under,
                neighbor,
            );
        }
    }

    /// Waits for packets on any device, and records those there are.
    async fn capture(&self, probes: &mut [Probe<'_>], pinger: &Pinger) {
        let all_over = self.over.iter().map(|(&index, tap)| {
            Box::pin(async move {
                let mut received = Vec::new();
                tap.listen(|info, packet| {
                    if !info.outgoing {
                        received.push((packet.source, packet.reply()));
                    }
                })
                .await;
                (index, received)
            })
        });
        let any_over = async {
            if self.over.is_empty() {
                std::future::pending().await
            } else {
                futures_util::future::select_all(all_over).await.0
            }
        };
        tokio::select! {
            () = self.under.listen(|info, packet| {
                for probe in &mut *probes {
                    probe.record_underlay(info, packet);
                }
            }) => {}
            (index, received) = any_over => {
                for (source, reply) in received {
                    for probe in &mut *probes {
                        probe.record_overlay(index, source, reply, pinger);
                    }
                }
            }
        }
    }
}

fn inject(tap: &Tap, tag: Tag, from: IpAddr, to: IpAddr, neighbor: Option<MacAddr>) {
    if let Some(packet) = tag.packet(from, to) {
        // A failed send counts as a lost packet.
        let _ = tap.send(&packet, neighbor);
    }
}

/// The echoes to one peer, and what was observed so far.
struct Probe<'a> {
    path: &'a Path,
    forward: Tag,
    backward: Tag,
    observed: Observation,
}

impl Probe<'_> {
    /// A packet that came out of an overlay device.
    fn record_overlay(&mut self, index: u32, source: IpAddr, reply: Option<Tag>, pinger: &Pinger) {
        let path = self.path;
        let is_here = path
            .tunnel
            .as_ref()
            .is_some_and(|tunnel| tunnel.index == index);
        if is_here && (path.subnet.contains(&source) || reply == Some(self.backward)) {
            self.observed.emerges = true;
            self.observed.answered |=
                source == path.over && reply.is_some_and(|tag| pinger.owns(tag));
        }
    }

    /// A packet on the underlay.
    fn record_underlay(&mut self, info: PacketInfo, packet: Packet<'_>) {
        let (path, observed) = (self.path, &mut self.observed);
        let Some(tunnel) = &path.tunnel else {
            return;
        };
        let peer = if info.outgoing {
            packet.destination
        } else {
            packet.source
        };
        // The reply to the forward echo has the overlay address of the peer.
        if !info.outgoing && packet.source == path.over && packet.reply() == Some(self.forward) {
            observed.forward = true;
            return;
        }
        if peer != path.under {
            return;
        }
        if !info.outgoing && packet.reply().is_some() {
            observed.neighbor = info.neighbor.or(observed.neighbor);
        }
        let is_ours = match tunnel.carrier {
            Carrier::Wireguard => packet.is_wireguard(),
            Carrier::Vxlan { .. } | Carrier::Ipip | Carrier::Udp => {
                let inside = |inner: Packet<'_>| {
                    let end = if info.outgoing {
                        inner.destination
                    } else {
                        inner.source
                    };
                    [path.over, path.under].contains(&end)
                };
                packet.inner().is_some_and(inside)
            }
        };
        if is_ours && info.outgoing {
            observed.leaves = true;
            observed.port = packet.udp_port().or(observed.port);
        } else if is_ours {
            observed.arrives = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_tells_where_packets_are_lost() {
        let observed = |leaves, forward, arrives, emerges| Observation {
            leaves,
            forward,
            arrives,
            emerges,
            ..Observation::default()
        };
        for (what, verdict) in [
            (observed(false, false, false, false), Verdict::NothingLeaves),
            (observed(true, true, true, false), Verdict::DroppedHere),
            (observed(true, false, true, false), Verdict::DroppedHere),
            (observed(true, true, false, false), Verdict::LostFromPeer),
            (observed(true, false, true, true), Verdict::LostToPeer),
            (observed(true, true, true, true), Verdict::Works),
            (observed(true, false, false, false), Verdict::Blocked),
        ] {
            assert_eq!(what.verdict(), verdict, "{what:?}");
            let answered = Observation {
                answered: true,
                ..what
            };
            assert_eq!(answered.verdict(), Verdict::Works);
        }
    }
}
