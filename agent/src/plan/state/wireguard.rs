//! WireGuard devices and peers, as kernel objects.

use std::net::SocketAddr;

use ipnet::IpNet;

use crate::plan::wireguard_key::{PresharedKey, PrivateKey};

/// The attributes of a WireGuard device that matter to the agent (`wg show`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wireguard {
    /// Our private key. `None` for a device without a key, or if only rtnetlink was queried, which does not report it.
    pub private_key: Option<PrivateKey>,
    /// UDP port for IPv4 and IPv6; 0 if only rtnetlink was queried.
    pub listen_port: u16,
    /// fwmark of the encrypted packets, for policy routing; 0 means none. We set none.
    pub fwmark: u32,
}

/// The attributes of a WireGuard peer; its public key is part of the [`Key`](super::Key).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WireguardPeer {
    /// Where encrypted packets are sent. The kernel moves it to wherever the peer's last packet came from.
    pub endpoint: Option<SocketAddr>,
    /// A pre-shared key in addition to the key pairs.
    pub preshared_key: Option<PresharedKey>,
    /// Keepalive interval in seconds, for NAT; 0 means off.
    pub keepalive: u16,
    /// The prefixes routed to the peer and accepted from it (allowed IPs), sorted, without duplicates. A prefix belongs
    /// to one peer of a device: adding it to another removes it from the first.
    pub allowed: Box<[IpNet]>,
    /// Whether a session over [`Self::endpoint`] is active. Only observed; `false` in a wanted peer.
    pub in_session: bool,
}

impl WireguardPeer {
    /// Whether an observed peer can stay as it is.
    ///
    /// It may have another endpoint than its lease says while it is in session: then it sits behind a NAT, or answers
    /// from another of its addresses, and forcing the published one would cut it off. Once the session has expired, the
    /// published endpoint is the better guess. An endpoint of the other family is replaced at once: the config's mode
    /// changed, and packets must use the new family.
    pub fn satisfies(&self, want: &Self) -> bool {
        self.leads_to(want)
            && self.preshared_key == want.preshared_key
            && self.keepalive == want.keepalive
            && self.allowed == want.allowed
    }

    /// Whether its endpoint can stay.
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
