//! Whether peers answer, over the overlay and on the underlay.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tracing::debug;

use crate::appliance::update::state::Health;
use crate::base::logging::chain;
use crate::host::netlink::survey::ways;
use crate::host::probe::ping::{Echo, Outcome, Pinger};
use crate::telemetry::status::{Peer, PeerState, Status};

/// How many peers are asked. One answer is enough, and whole racks may be off.
const MOST_PEERS: usize = 16;

/// How long to wait for replies, and how often to resend.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_millis(700),
];

/// The addresses that answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Over the overlay.
    pub(super) over: Vec<IpAddr>,
    /// On the underlay.
    pub(super) under: Vec<IpAddr>,
}

/// Asks those who answered before, and some peers of now.
///
/// # Errors
/// No packets can be sent: `EPERM` without the capability `CAP_NET_RAW`.
pub(super) async fn ask(statuses: &[Status], known: &Health) -> io::Result<Answers> {
    let mut over: BTreeSet<IpAddr> = known.peers_answering.iter().copied().collect();
    let mut under: BTreeSet<IpAddr> = known.underlay_answering.iter().copied().collect();
    for status in statuses {
        for (peer_over, peer_under) in targets(status).await {
            over.insert(peer_over);
            under.insert(peer_under);
        }
    }
    if over.is_empty() && under.is_empty() {
        return Ok(Answers::default());
    }
    let mut pinger = Pinger::open()?;
    let to: Vec<IpAddr> = over.iter().chain(&under).copied().collect();
    let echoes: Vec<Echo> = to.iter().map(|&to| Echo { to, len: 0 }).collect();
    let outcomes = pinger.ask(&echoes, &PATIENCE).await;
    let answered = to.into_iter().zip(outcomes);
    let answered: BTreeSet<IpAddr> = answered
        .filter(|(_, outcome)| *outcome == Outcome::Answered)
        .map(|(address, _)| address)
        .collect();
    Ok(Answers {
        over: over.intersection(&answered).copied().collect(),
        under: under.intersection(&answered).copied().collect(),
    })
}

/// Whom to ask: an address in the overlay and one on the underlay of each chosen peer.
///
/// A peer has the first address of its subnet on its overlay device. Where it is itself the gateway (host-gw, and
/// `DirectRouting`), its public address is asked instead.
async fn targets(status: &Status) -> Vec<(IpAddr, IpAddr)> {
    let peers = choose(&status.peers);
    let addresses: Vec<(IpAddr, IpAddr)> = peers
        .into_iter()
        .filter_map(|peer| Some((peer.nets().next()?.network(), peer.addresses().next()?)))
        .collect();
    let underlay = status.underlay.as_ref().map(|underlay| underlay.index);
    let ways = match ways(addresses.iter().map(|(over, _)| (*over, None))).await {
        Ok(ways) => ways,
        Err(error) => {
            debug!("the ways to peers are not known: {}", chain(&error));
            return addresses;
        }
    };
    let pairs = addresses.into_iter().zip(ways);
    pairs
        .map(|((over, under), way)| {
            let is_gateway = way.is_ok_and(|way| Some(way.link_index) == underlay);
            (if is_gateway { under } else { over }, under)
        })
        .collect()
}

/// Some of the peers that are programmed, from all parts of the network.
fn choose(peers: &[Peer]) -> Vec<&Peer> {
    let programmed: Vec<&Peer> = peers
        .iter()
        .filter(|peer| peer.state == PeerState::Programmed)
        .collect();
    let step = programmed.len().div_ceil(MOST_PEERS).max(1);
    programmed.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::samples;

    #[test]
    fn few_peers_are_chosen_from_all_parts_of_the_network() {
        let peer = samples::peer(2, 12);
        for (count, expected) in [(0, 0), (1, 1), (16, 16), (17, 9), (10_000, 16)] {
            let peers = vec![peer.clone(); count];
            let chosen = choose(&peers);
            assert_eq!(chosen.len(), expected, "{count}");
            if count > 16 {
                let last: *const Peer = *chosen.last().unwrap();
                let index = peers.iter().position(|peer| std::ptr::eq(peer, last));
                assert!(index.unwrap() > count * 9 / 10);
            }
        }
        let mut refused = peer;
        refused.state = PeerState::Refused;
        assert!(choose(&[refused]).is_empty());
    }
}
