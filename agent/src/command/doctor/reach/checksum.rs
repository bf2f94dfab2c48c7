//! Received packets with a wrong checksum, which the kernel drops silently.
//!
//! The kernel counts them (`InCsumErrors` of `/proc/net/snmp`) but not their sender. If it counted any, incoming
//! packets are captured for a while, and each checksum is verified.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use tokio::time::{Instant, sleep_until, timeout};

use super::path::{Ground, Path};
use super::tap::{Passage, open_all};
use crate::host::probe::packet::{Packet, UDP};

/// Duration of the capture.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How many peers are sent something to which they answer with a checksum that devices compute.
const MOST_ASKED: usize = 64;
/// Minimum number of bad packets for a finding: single bit errors occur anywhere.
const LEAST: u32 = 3;

/// Which checksum of a peer's packets is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Layer {
    /// That of the UDP header around the overlay's packets.
    Outer,
    /// That of the overlay's own packets.
    Inner,
}

/// Wrong packets of one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Corruption {
    /// Index of its path.
    pub(super) path: usize,
    pub(super) layer: Layer,
    /// How many were seen.
    pub(super) packets: u32,
}

/// How many packets with a wrong checksum the kernel has dropped, in all of TCP and UDP.
pub(super) fn dropped() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    // Of the calling thread's network namespace. A kernel without IPv6 has no second file.
    count(&read("/proc/self/net/snmp")) + count_v6(&read("/proc/self/net/snmp6"))
}

/// A line of names, and below it one of numbers, for each protocol.
fn count(snmp: &str) -> u64 {
    let lines: Vec<&str> = snmp.lines().collect();
    let pairs = lines.chunks(2).filter_map(|pair| match pair {
        [names, numbers] if names.starts_with("Tcp:") || names.starts_with("Udp:") => {
            let mut columns = names.split(' ').zip(numbers.split(' '));
            columns
                .find(|(name, _)| *name == "InCsumErrors")
                .and_then(|(_, number)| number.parse::<u64>().ok())
        }
        _ => None,
    });
    pairs.sum()
}

fn count_v6(snmp6: &str) -> u64 {
    let mut lines = snmp6.lines().map(str::split_whitespace);
    lines
        .find_map(|mut words| {
            (words.next() == Some("Udp6InCsumErrors")).then(|| words.next()?.parse().ok())?
        })
        .unwrap_or(0)
}

/// Lets peers answer by TCP over the overlay, if that is allowed; what they answer does not matter.
pub(super) async fn provoke(ground: &Ground) {
    if !ground.deep {
        return;
    }
    // Without a tunnel the peer is a gateway, and no host has the overlay address.
    let asked = ground.paths.iter().filter(|path| path.tunnel.is_some());
    let asked = asked.take(MOST_ASKED).map(|path| async {
        let _ = timeout(PATIENCE / 4, super::answers(path.over)).await;
    });
    join_all(asked).await;
}

/// Listens for packets with a wrong checksum.
///
/// # Errors
/// Devices cannot be listened to.
pub(super) async fn listen(ground: &Ground) -> io::Result<Vec<Corruption>> {
    let tunnels = ground.paths.iter().filter_map(|path| path.tunnel.as_ref());
    let tunnels = tunnels.map(|tunnel| tunnel.index);
    let taps = open_all(tunnels.chain([ground.underlay.index]))?;
    let mut seen: BTreeMap<(usize, Layer), u32> = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    let provoking = async {
        provoke(ground).await;
        std::future::pending::<()>().await;
    };
    tokio::pin!(provoking);
    loop {
        let heard = taps.iter().map(|(&index, tap)| {
            Box::pin(async move {
                let mut corrupt = Vec::new();
                tap.listen(|passage, packet| {
                    if let Some(whose) = examine(ground, index, passage, packet) {
                        corrupt.push(whose);
                    }
                })
                .await;
                corrupt
            })
        });
        tokio::select! {
            (corrupt, ..) = select_all(heard) => {
                for whose in corrupt {
                    *seen.entry(whose).or_default() += 1;
                }
            }
            () = &mut provoking => {}
            () = sleep_until(deadline) => break,
        }
    }
    let many = seen.into_iter().filter(|(_, packets)| *packets >= LEAST);
    let corruption = |((path, layer), packets)| Corruption {
        path,
        layer,
        packets,
    };
    Ok(many.map(corruption).collect())
}

/// Whose a packet is that came in with a wrong checksum.
fn examine(
    ground: &Ground,
    device: u32,
    passage: Passage,
    packet: Packet<'_>,
) -> Option<(usize, Layer)> {
    if passage.outgoing || !packet.is_corrupt() {
        return None;
    }
    let on_underlay = device == ground.underlay.index;
    let is_outer = |path: &Path| {
        on_underlay
            && path.tunnel.is_some()
            && packet.protocol == UDP
            && packet.source == path.under
    };
    let is_inner = |path: &Path| {
        let index = path
            .tunnel
            .as_ref()
            .map_or(ground.underlay.index, |tunnel| tunnel.index);
        device == index && path.subnet.contains(&packet.source)
    };
    ground.paths.iter().enumerate().find_map(|(at, path)| {
        if is_outer(path) {
            Some((at, Layer::Outer))
        } else {
            is_inner(path).then_some((at, Layer::Inner))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let snmp = "Ip: Forwarding InCsumErrors\nIp: 1 50\n\
                    Tcp: RtoAlgorithm OutRsts InCsumErrors\nTcp: 1 98 3\n\
                    Udp: InDatagrams InCsumErrors IgnoredMulti MemErrors\nUdp: 61 40 0 0\n";
        assert_eq!(count(snmp), 43);
        assert_eq!(count(""), 0);
        let snmp6 = "Udp6InErrors                    \t7\nUdp6InCsumErrors                \t5\n";
        assert_eq!(count_v6(snmp6), 5);
        assert_eq!(count_v6("Ip6InReceives 1\n"), 0);
    }
}
