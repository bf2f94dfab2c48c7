//! First words to WireGuard peers that cannot know this node's session, or whose session this node cannot know.
//!
//! A session begins with a packet that somebody has to send. Where the other side does not know our key yet, or has no device
//! yet, there is no answer, and the kernel tries again after `REKEY_TIMEOUT`, five seconds. Where the other side has lost its
//! device, as by a reboot, our kernel goes on in the old session until nothing has come back for 15 seconds
//! (`KEEPALIVE_TIMEOUT` and `REKEY_TIMEOUT`). Both are too long for a cluster. So a node greets
//!
//! * all its peers after it has made the device: they may have sessions with the one before;
//! * a peer that has a new key. It publishes the key before it can answer, a real flannel by as long as its firewall takes.
//!
//! To greet is to begin a session without a packet to send. That is done until there is one, for [`ROUNDS`] rounds at most.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{Failed, Overlay};
use crate::base::net::InterfaceName;
use crate::host::netlink::Greeting;
use crate::plan::state::{Key, Object};

/// From the change to the first round. Both sides have programmed what they know by then, as a rule.
const FIRST: Duration = Duration::from_millis(500);

/// From one round to the next. Longer than a round trip takes, by satellite too: to greet again is to forget what an answer
/// that is under way would belong to.
const PAUSE: Duration = Duration::from_millis(1500);

/// After so many, whoever does not answer is left to the kernel, which begins a session when there is a packet to send.
const ROUNDS: u8 = 10;

/// How many of those that did not answer are greeted again in a round. To do so, the kernel has to forget the peer, and waits
/// for all processors each time (`synchronize_net()` in `wg_peer_remove()`).
const AGAIN: usize = 32;

/// The peers that are to be greeted.
#[derive(Debug, Default)]
pub(super) struct Greetings {
    /// Each with the rounds that it was in.
    peers: BTreeMap<Key, u8>,
    next: Option<Instant>,
}

impl Greetings {
    /// Has peers greeted soon; what is no WireGuard peer is left out.
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
    /// Has all peers on devices greeted that were made just now.
    pub(super) fn greet_peers_of(&mut self, made: &[InterfaceName]) {
        if made.is_empty() {
            return;
        }
        let wanted = self.reconciler.desired().keys();
        let on_made = |key: &&Key| key.link().is_some_and(|link| made.contains(link));
        self.greetings.add(wanted.filter(on_made), Instant::now());
    }

    /// Waits until peers are to be greeted, by [`Self::greet`]; for ever if there are none. Cancel-safe.
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
            // Without counters, as where the device is gone, nothing is to be greeted.
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
                greetings.push(Greeting {
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
        if self.reconciler.greet(&greetings).await? {
            // One that was to be forgotten and added again may be missing.
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
        // The next round is further away.
        greetings.next = Some(start + PAUSE * 3);
        greetings.add([&peer(3)].into_iter(), start + PAUSE);
        assert_eq!(greetings.next, Some(start + PAUSE + FIRST));
        assert_eq!(greetings.peers.len(), 3);
    }
}
