//! Greeting WireGuard peers: start a session when one side cannot know the other's.
//!
//! A WireGuard session starts with a packet to send. If the other side does not know our key or has no device yet,
//! there is no answer, and the kernel retries after `REKEY_TIMEOUT`, five seconds. If the other side has lost its
//! device, for example in a reboot, our kernel keeps using the old session until nothing has come back for 15 seconds
//! (`KEEPALIVE_TIMEOUT` plus `REKEY_TIMEOUT`). Both are too long for a cluster. So a node greets
//!
//! * all its peers after it has created the device: they may have sessions with the previous one;
//! * a peer that has a new key. That node publishes the key before it can answer; a real flannel earlier by as long as
//!   its firewall setup takes.
//!
//! A greeting starts a session without a packet to send. It is repeated until there is a session, for at most
//! [`ROUNDS`] rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{Failed, Overlay};
use crate::base::net::InterfaceName;
use crate::host::netlink::HandshakeRequest;
use crate::plan::state::{Key, Object};

/// The delay from a change to the first round. By then both sides have usually programmed it.
const FIRST: Duration = Duration::from_millis(500);

/// The interval between rounds. Longer than a round trip, even by satellite: greeting again discards the handshake that
/// an answer in flight belongs to.
const PAUSE: Duration = Duration::from_millis(1500);

/// After this many rounds the kernel starts the session itself when there is a packet to send.
const ROUNDS: u8 = 10;

/// The most unanswered peers to greet again in a round. For each, the kernel has to remove the peer, which waits for
/// all CPUs (`synchronize_net()` in `wg_peer_remove()`).
const AGAIN: usize = 32;

/// The peers to greet.
#[derive(Debug, Default)]
pub(super) struct Greetings {
    /// Each with its number of rounds so far.
    peers: BTreeMap<Key, u8>,
    next: Option<Instant>,
}

impl Greetings {
    /// Schedules a greeting of these peers; objects other than WireGuard peers are skipped.
    pub(super) fn add<'a>(&mut self, keys: impl Iterator<Item = &'a Key>, now: Instant) {
        let peers = keys.filter(|key| matches!(key, Key::WireguardPeer(..)));
        let before = self.peers.len();
        self.peers.extend(peers.map(|key| (key.clone(), 0)));
        if self.peers.len() > before {
            let first = now + FIRST;
            self.next = Some(self.next.map_or(first, |next| next.min(first)));
        }
    }
}

impl Overlay {
    /// Schedules a greeting of all peers on devices just created.
    pub(super) fn greet_peers_of(&mut self, made: &[InterfaceName]) {
        if made.is_empty() {
            return;
        }
        let wanted = self.reconciler.desired().keys();
        let on_made = |key: &&Key| key.link().is_some_and(|link| made.contains(link));
        self.greetings.add(wanted.filter(on_made), Instant::now());
    }

    /// Waits until peers are due for [`Self::greet`]; forever if there are none. Cancel-safe.
    pub(crate) async fn greetings_due(&self) {
        match self.greetings.next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    }

    /// Greets the peers that have not answered yet.
    pub(crate) async fn greet(&mut self) -> Result<(), Failed> {
        let sessions = self.sessions().await;
        let mut greetings = Vec::new();
        let mut again = 0;
        let desired = self.reconciler.desired();
        self.greetings.peers.retain(|key, rounds| {
            let (Key::WireguardPeer(link, peer), Some(Object::WireguardPeer(want))) =
                (key, desired.get(key))
            else {
                return false;
            };
            // No counters: the device or the peer is gone.
            let Some(session) = sessions.get(link).and_then(|of| of.get(&**peer)) else {
                return false;
            };
            if session.handshake.is_some() || *rounds == ROUNDS {
                return false;
            }
            *rounds += 1;
            let unanswered = session.tx_bytes > 0;
            again += usize::from(unanswered);
            if !unanswered || again <= AGAIN {
                greetings.push(HandshakeRequest {
                    link: link.clone(),
                    peer: **peer,
                    want: (**want).clone(),
                    unanswered,
                });
            }
            true
        });
        let waiting = !self.greetings.peers.is_empty();
        self.greetings.next = waiting.then(|| Instant::now() + PAUSE);
        debug!(peers = greetings.len(), again, "greeting peers");
        if self.reconciler.start_handshakes(&greetings).await? {
            // A peer that was removed to be added again may be missing: restore it.
            let report = self.program_kernel().await?;
            return self.check(report);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::wireguard_key::PrivateKey;

    fn peer(n: u8) -> Key {
        let key = PrivateKey::new([n; 32]).public();
        Key::WireguardPeer("flannel-wg".parse().unwrap(), Box::new(key))
    }

    #[test]
    fn a_peer_waits_for_the_first_round_and_is_not_put_off_by_others() {
        let mut greetings = Greetings::default();
        let start = Instant::now();
        let link = Key::Link("flannel-wg".parse().unwrap());
        greetings.add([&link].into_iter(), start);
        assert_eq!(greetings.next, None, "no peer");
        greetings.add([&peer(1)].into_iter(), start);
        assert_eq!(greetings.next, Some(start + FIRST));
        greetings.add([&peer(2)].into_iter(), start + FIRST / 2);
        assert_eq!(greetings.next, Some(start + FIRST));
        // The next round is later.
        greetings.next = Some(start + PAUSE * 3);
        greetings.add([&peer(3)].into_iter(), start + PAUSE);
        assert_eq!(greetings.next, Some(start + PAUSE + FIRST));
        assert_eq!(greetings.peers.len(), 3);
    }
}
