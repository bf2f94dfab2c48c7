//! WireGuard devices and peers, as kernel objects.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::plan::wireguard_key::{PresharedKey, PrivateKey};

/// The attributes of a WireGuard device that matter to the agent (`wg show`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wireguard {
    /// Who we are. `None` for a device without a key, and where only rtnetlink was asked, which does not know.
    pub private_key: Option<PrivateKey>,
    /// UDP port for IPv4 and IPv6; 0 where only rtnetlink was asked.
    pub listen_port: u16,
    /// Mark of the encrypted packets, for policy routing; 0 is none. We set none.
    pub fwmark: u32,
}

/// How a peer of a WireGuard device is; its public key is part of the [`Key`](super::Key).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireguardPeer {
    /// Where encrypted packets are sent. The kernel moves it to wherever the peer's last packet came from.
    pub endpoint: Option<SocketAddr>,
    /// A secret on top of the keys.
    pub preshared_key: Option<PresharedKey>,
    /// Seconds between packets that keep a NAT's memory alive; 0 is never.
    pub keepalive: u16,
    /// The prefixes that are sent to the peer, and that it may send from; in order, without duplicates. In one device a
    /// prefix belongs to one peer: given to another, it is taken from the first.
    pub allowed: Box<[IpNet]>,
    /// Whether packets go to and fro by [`Self::endpoint`]. Only observed, `false` where wanted.
    pub in_session: bool,
}

impl WireguardPeer {
    /// Whether an observed peer can stay as it is.
    ///
    /// It may have another endpoint than its lease says while it is in session: then it sits behind a NAT, or answers
    /// from another of its addresses, and to insist on the published one would cut it off. Once the session is dead, the
    /// published endpoint is the better guess. One of the other family is the config's wish, not the peer's: whoever
    /// switches the mode wants the packets to change their way.
    pub fn satisfies(&self, want: &Self) -> bool {
        self.leads_to(want)
            && self.preshared_key == want.preshared_key
            && self.keepalive == want.keepalive
            && self.allowed == want.allowed
    }

    /// Whether its endpoint can stay as it is.
    pub fn leads_to(&self, want: &Self) -> bool {
        let same_family = match (self.endpoint, want.endpoint) {
            (Some(was), Some(want)) => was.is_ipv4() == want.is_ipv4(),
            (was, want) => was.is_some() && want.is_none(),
        };
        self.endpoint == want.endpoint || self.in_session && same_family
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: &str, in_session: bool) -> WireguardPeer {
        WireguardPeer {
            endpoint: endpoint.parse().ok(),
            preshared_key: None,
            keepalive: 0,
            allowed: ["10.5.1.0/24".parse().unwrap()].into(),
            in_session,
        }
    }

    #[test]
    fn a_roamed_peer_is_left_alone_while_it_is_in_session() {
        let want = peer("192.0.2.1:51820", false);
        assert!(want.satisfies(&want));
        assert!(peer("192.0.2.1:51820", true).satisfies(&want));
        assert!(peer("198.51.100.9:4711", true).satisfies(&want));
        assert!(!peer("198.51.100.9:4711", false).satisfies(&want));
        assert!(!peer("", true).satisfies(&want), "no endpoint at all");
        let other_family = peer("[2001:db8::9]:51820", true);
        assert!(!other_family.satisfies(&want), "the mode was switched");
    }

    #[test]
    fn a_session_excuses_nothing_but_the_endpoint() {
        let want = peer("192.0.2.1:51820", false);
        let was = peer("198.51.100.9:4711", true);
        let changes: [fn(&mut WireguardPeer); 3] = [
            |peer| peer.keepalive = 25,
            |peer| peer.preshared_key = PresharedKey::new([1; 32]),
            |peer| peer.allowed = Box::new([]),
        ];
        for change in changes {
            let mut was = was.clone();
            change(&mut was);
            assert!(!was.satisfies(&want), "{was:?}");
        }
    }
}
