//! The former backend's path to the peers, which stays after a change of backend until each peer has followed.
//!
//! All nodes read the changed network config at about the same time, but not simultaneously: the new backend reaches a
//! peer only once its new lease is there. If the old objects were removed at once, packets would take the default route
//! until then. A real flannel follows only when it is restarted, and is reached through the former backend until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::cluster::peers::PeerTable;
use crate::cluster::refusal::PeerRefusal;
use crate::plan::backend::{Backend, CloudConfig, table};
use crate::plan::state::{Key, Object, State};
use crate::plan::underlay::Underlay;

/// How long the devices stay after the last peer has followed: it may have sent packets before it received this node's
/// new lease.
const LINGER: Duration = Duration::from_secs(10);

/// A backend that the network no longer uses, and the peers still reached through it.
#[derive(Debug)]
pub(super) struct FormerBackend {
    backend: Arc<dyn Backend>,
    peers: BTreeMap<SubnetKey, Arc<Lease>>,
    /// The peers that have followed. Packets for them may still be queued in a device of the former backend.
    followed: BTreeMap<SubnetKey, Arc<Lease>>,
    /// When to remove it, once no peer is left.
    end: Option<Instant>,
}

impl FormerBackend {
    /// The former backend for these peers, if it can coexist with the next one.
    pub(super) fn new(
        former: &Arc<dyn Backend>,
        next: &dyn Backend,
        peers: impl Iterator<Item = Arc<Lease>>,
    ) -> Option<Self> {
        let stays = |kind| table::find(kind).is_some_and(|backend| backend.side_by_side);
        let differ = former.kind() != next.kind();
        (differ && stays(former.kind()) && stays(next.kind())).then(|| Self {
            backend: Arc::clone(former),
            peers: peers.map(|lease| (lease.key, lease)).collect(),
            followed: BTreeMap::new(),
            end: None,
        })
    }

    /// The backend's name.
    pub(super) fn kind(&self) -> &'static str {
        self.backend.kind()
    }

    /// Its name and what it wants from the provider's tables, if it uses them.
    pub(super) fn cloud(&self) -> Option<(&'static str, &CloudConfig)> {
        Some((self.kind(), self.backend.cloud()?))
    }

    /// The backend's devices.
    pub(super) fn links(&self) -> Vec<InterfaceName> {
        self.backend.scope().links
    }

    /// Whether a peer is still reached through the former backend.
    pub(super) fn has(&self, key: &SubnetKey) -> bool {
        self.peers.contains_key(key)
    }

    /// Switches to another underlay, or to a new address of the same one.
    pub(super) fn follow(&mut self, underlay: &Underlay) {
        self.backend = self.backend.over(underlay).into();
    }

    /// Drops the peers that have followed, moved or gone, and those refused for another reason than their backend, such
    /// as a host address in their subnet. Returns whether it can be removed.
    ///
    /// While the present backend is not ready to send, such as a provider that drops what this instance forwards, peers
    /// that have followed stay.
    pub(super) fn settle(&mut self, table: &PeerTable, is_next_ready: bool, now: Instant) -> bool {
        let latest = |key: &SubnetKey, lease: &Lease| {
            let refusal = table.refusal(key);
            let is_usable =
                refusal.is_none_or(|why| matches!(why, PeerRefusal::OtherBackend { .. }));
            let latest = table.latest(key).filter(|latest| {
                latest.created == lease.created && latest.attrs.same_address(&lease.attrs)
            });
            latest.filter(|_| is_usable)
        };
        self.followed
            .retain(|key, lease| latest(key, lease).is_some());
        self.peers.retain(|key, lease| {
            let Some(latest) = latest(key, lease) else {
                return false;
            };
            let stays = !is_next_ready || latest.attrs.backend_type == lease.attrs.backend_type;
            if !stays {
                self.followed.insert(*key, Arc::clone(lease));
            }
            stays
        });
        if !self.peers.is_empty() {
            return false;
        }
        now >= *self.end.get_or_insert(now + LINGER)
    }

    /// When to remove it, once no peer is left.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Adds the former backend's objects to the wanted state, which takes precedence.
    ///
    /// A peer that has followed keeps its entry in the table of our own data plane: the kernel no longer routes packets
    /// there, but those already in the TUN device's queue are forwarded only when a worker reads them.
    pub(super) fn add_to(&self, own: &SubnetKey, wanted: &mut State) {
        let objects_of = |lease: &Arc<Lease>| self.backend.between(own, lease).unwrap_or_default();
        let is_forward = |(key, _): &(Key, Object)| matches!(key, Key::Forward(..));
        let queued = self.followed.values().flat_map(objects_of);
        let objects = self.peers.values().flat_map(objects_of);
        let objects = objects.chain(queued.filter(is_forward));
        for (key, object) in self.backend.own(own).into_iter().chain(objects) {
            wanted.entry(key).or_insert(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::host_nets::HostNets;
    use crate::cluster::lease::LeaseEvent;
    use crate::cluster::network_config::NetworkConfig;
    use crate::plan::backend::udp;
    use crate::plan::backend::vxlan::tests::{lease, shared, underlay};
    use crate::plan::state::LinkKind;

    const OWN: SubnetKey = SubnetKey {
        v4: Some(ipnet::Ipv4Net::new_assert(
            std::net::Ipv4Addr::new(10, 5, 99, 0),
            24,
        )),
        v6: None,
    };

    /// vxlan's path to the peer 10.5.2.0/24, on a node that already uses host-gw.
    fn changed() -> (FormerBackend, PeerTable, Lease, NetworkConfig) {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let mut own = lease(99, 9, 99);
        own.attrs.backend_type = "host-gw".to_owned();
        let peer = lease(2, 2, 2);
        let mut table = PeerTable::new(&config, &own, Box::new(|_| Ok(())));
        table.apply(LeaseEvent::Snapshot {
            leases: vec![peer.clone()],
            unreadable: Vec::new(),
        });
        let former = FormerBackend {
            backend: shared(),
            peers: [(peer.key, Arc::new(peer))].into(),
            followed: BTreeMap::new(),
            end: None,
        };
        (former, table, own, config)
    }

    #[test]
    fn peer_whose_subnet_holds_an_address_that_the_host_was_given_is_let_go() {
        let (mut former, mut table, own, config) = changed();
        let peer = lease(2, 2, 2).key;
        former.settle(&table, true, Instant::now());
        assert!(former.has(&peer));
        for (address, stays) in [("10.6.2.7/24", true), ("10.5.2.7/24", false)] {
            table.set_host(HostNets::of_one(address.parse().unwrap()));
            table.rejudge(&config, &own, Box::new(|_| Ok(())));
            former.settle(&table, true, Instant::now());
            assert_eq!(former.has(&peer), stays, "{address}");
        }
    }

    /// What is left in the wanted state of a former udp's path to the peer 10.5.1.0/24, once its lease is this one.
    fn left_of_udp(latest: Option<Lease>) -> Vec<String> {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let own = lease(99, 9, 99);
        let peer = udp::tests::peer("udp", [192, 0, 2, 7]);
        let mut table = PeerTable::new(&config, &own, Box::new(|_| Ok(())));
        table.apply(LeaseEvent::Snapshot {
            leases: latest.into_iter().collect(),
            unreadable: Vec::new(),
        });
        let mut former = FormerBackend {
            backend: udp::tests::shared(),
            peers: [(peer.key, Arc::new(peer))].into(),
            followed: BTreeMap::new(),
            end: None,
        };
        former.settle(&table, true, Instant::now());
        let mut wanted = State::new();
        former.add_to(&OWN, &mut wanted);
        let keys = wanted.keys().map(ToString::to_string);
        keys.filter(|key| key.contains("10.5.1.0")).collect()
    }

    #[test]
    fn packets_in_the_queue_still_reach_a_peer_that_has_followed() {
        let peer = udp::tests::peer("udp", [192, 0, 2, 7]);
        let mut followed = peer.clone();
        followed.attrs.backend_type = "vxlan".to_owned();
        let mut moved = followed.clone();
        moved.attrs.public_ip = Some([192, 0, 2, 8].into());
        let mut new_owner = followed.clone();
        new_owner.created += 1;
        let forward = "forwarding of 10.5.1.0/24 from flannel0";
        assert_eq!(left_of_udp(Some(peer)), [forward]);
        assert_eq!(left_of_udp(Some(followed)), [forward]);
        for gone in [Some(moved), Some(new_owner), None] {
            assert!(left_of_udp(gone).is_empty());
        }
    }

    #[test]
    fn a_peer_that_has_followed_stays_until_the_next_way_is_open() {
        let (mut former, mut table, ..) = changed();
        let mut followed = lease(2, 2, 2);
        followed.attrs.backend_type = String::new();
        table.apply(LeaseEvent::Changes {
            set: vec![followed.clone()],
            removed: Vec::new(),
        });
        for (is_next_ready, stays) in [(false, true), (true, false)] {
            former.settle(&table, is_next_ready, Instant::now());
            assert_eq!(former.has(&followed.key), stays, "{is_next_ready}");
        }
    }

    #[test]
    fn former_way_goes_on_over_the_underlay_of_now() {
        let (mut former, table, ..) = changed();
        let mut moved = underlay();
        moved.v6 = None;
        moved.v4 = moved.v4.map(|mut v4| {
            v4.address = std::net::Ipv4Addr::new(192, 0, 2, 77);
            v4
        });
        former.follow(&moved);
        former.settle(&table, true, Instant::now());
        let mut wanted = State::new();
        former.add_to(&OWN, &mut wanted);
        let local = wanted.iter().find_map(|(key, object)| match (key, object) {
            (Key::Link(_), Object::Link(link)) => match &link.kind {
                LinkKind::Vxlan(vxlan) => Some(vxlan.local.to_string()),
                _ => None,
            },
            _ => None,
        });
        assert_eq!(local.as_deref(), Some("192.0.2.77"));
        let route = Key::Route("10.5.2.0/24".parse().unwrap());
        assert!(wanted.contains_key(&route));
    }
}
