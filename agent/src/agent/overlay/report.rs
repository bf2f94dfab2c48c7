//! The overlay's part of the status: its state in the types of [`crate::telemetry::status`].

use std::collections::HashMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::debug;

use super::Overlay;
use crate::base::logging::chain;
use crate::base::net::InterfaceName;
use crate::cluster::lease::{Lease, SubnetKey};
use crate::host::ike::Tunnel;
use crate::host::netlink::Session;
use crate::plan::state::{Key, Object, describe};
use crate::plan::wireguard_key::PublicKey;
use crate::telemetry::status::{
    self, Files, Firewall, Kernel, Network, Owner, Peer, PeerDetail, PeerObject, PeerState,
    Traffic, Underlay, micros,
};

/// WireGuard's counters, by device and peer.
pub(super) type Sessions = HashMap<InterfaceName, HashMap<PublicKey, Session>>;

impl Overlay {
    /// What all nodes share. `rejected`: why the latest network config is not in use.
    pub(crate) fn network(&self, rejected: Option<String>) -> Network {
        Network {
            ipv4: self.config.ipv4.map(|range| range.network),
            ipv6: self.config.ipv6.map(|range| range.network),
            backend: self.backend.kind().to_owned(),
            mtu: self.backend.mtu(),
            rejected,
            subnets: Some(self.config.subnets()),
        }
    }

    /// The own lease, without the store's part.
    pub(crate) fn lease(&self) -> status::Lease {
        status::Lease {
            subnet: self.own.key.v4,
            subnet_v6: self.own.key.v6,
            public_ip: self.own.attrs.public_ip,
            public_ipv6: self.own.attrs.public_ipv6,
            since_time: self.journal.leased,
            held: true,
            reservation: false,
            ttl_seconds: None,
            left_seconds: None,
            trouble: None,
        }
    }

    pub(crate) fn underlay(&self) -> Underlay {
        let (v4, v6) = (self.underlay.v4, self.underlay.v6);
        Underlay {
            interface: self.underlay.name.to_string(),
            index: self.underlay.index,
            mtu: self.underlay.mtu,
            ipv4: v4.and_then(|v4| Ipv4Net::new(v4.address, v4.prefix_len).ok()),
            ipv6: v6.and_then(|v6| Ipv6Net::new(v6.address, v6.prefix_len).ok()),
        }
    }

    pub(crate) fn firewall(&self) -> Firewall {
        let (programmed, programmed_time) = self.journal.firewall;
        Firewall {
            wanted: self.firewall_settings.mode.to_string(),
            mode: self.firewall_mode.map(|mode| mode.to_string()),
            masquerade: self.firewall_settings.masquerade,
            forward: self.firewall_settings.forward,
            programmed,
            programmed_time,
        }
    }

    /// The comparison with the kernel, without its interval.
    pub(crate) fn kernel(&self) -> Kernel {
        let totals = self.reconciler.totals();
        let failed_objects = self.journal.failed_objects.values();
        Kernel {
            interval_seconds: 0,
            resync_time: self.journal.resync.map(|(at, _)| at),
            resync_usec: self.journal.resync.map(|(_, took)| micros(took)),
            resync_total_usec: micros(self.journal.resync_total),
            resyncs: self.journal.resyncs,
            created: totals.created,
            changed: totals.changed,
            removed: totals.removed,
            failed: totals.failed,
            failures: failed_objects
                .clone()
                .map(|cause| cause.text.clone())
                .collect(),
            causes: failed_objects.cloned().collect(),
        }
    }

    pub(crate) fn files(&self) -> Files {
        Files {
            subnet_file: self.subnet_file.display().to_string(),
            written_time: self.journal.written,
        }
    }

    /// The overlay devices as they are in the kernel now.
    pub(crate) async fn devices(&mut self) -> Vec<status::Device> {
        let names = self.backend.scope().links;
        let mut devices = Vec::with_capacity(names.len());
        for name in names {
            let found = match self
                .reconciler
                .executor_mut()
                .kernel_mut()
                .device(&name)
                .await
            {
                Ok(found) => found,
                Err(error) => {
                    debug!(device = %name, "failed to query the device: {}", chain(&error));
                    None
                }
            };
            devices.push(status::Device::seen(&name, found));
        }
        devices
    }

    /// The leases of the other nodes, used or not.
    pub(crate) async fn list_peers(&mut self) -> Vec<Peer> {
        let sessions = self.sessions().await;
        self.peers
            .others()
            .map(|lease| self.describe(lease, &sessions))
            .collect()
    }

    /// WireGuard's counters, by device; no other backend's kernel objects count by peer.
    pub(super) async fn sessions(&mut self) -> Sessions {
        let mut sessions = Sessions::new();
        for name in self.backend.scope().links {
            match self
                .reconciler
                .executor_mut()
                .kernel_mut()
                .sessions(&name)
                .await
            {
                Ok(of_peers) if of_peers.is_empty() => {}
                Ok(of_peers) => {
                    sessions.insert(name, of_peers);
                }
                Err(error) => {
                    debug!(device = %name, "failed to read the counters: {}", chain(&error))
                }
            }
        }
        sessions
    }

    fn describe(&self, latest: &Lease, sessions: &Sessions) -> Peer {
        let key = latest.key;
        let used = self.peers.get(&key);
        // If the last update is refused, report what is in use.
        let lease = used.map_or(latest, AsRef::as_ref);
        let refusal = self.peers.refusal(&key);
        let unplanned = self.plan.refusal(&key);
        let objects = self.plan.peer(&key);
        let trouble = objects
            .iter()
            .find_map(|(key, _)| self.journal.failed_objects.get(key));
        let (tunnel, no_tunnel) = self.tunnel(&objects);
        let (state, refusal, reason) = match (used, unplanned, trouble) {
            (None, _, _) => (PeerState::Refused, refusal, None),
            (Some(_), Some(unplanned), _) => (PeerState::Refused, Some(unplanned), None),
            (Some(_), None, Some(trouble)) => (PeerState::Failed, None, Some(trouble.text.clone())),
            (Some(_), None, None) => match no_tunnel {
                Some(why) => (PeerState::Failed, None, Some(why.to_owned())),
                None => (PeerState::Programmed, refusal, None),
            },
        };
        let seen = self.journal.times.get(&key);
        let counted = count(&objects, sessions).or_else(|| tunnel.map(session));
        Peer {
            subnet: key.v4,
            subnet_v6: key.v6,
            public_ip: lease.attrs.public_ip,
            public_ipv6: lease.attrs.public_ipv6,
            backend: lease.attrs.backend_type.clone(),
            owner: lease.attrs.owner.clone(),
            state,
            reason: reason.or_else(|| refusal.map(ToString::to_string)),
            refusal: refusal.map(status::Refusal::of),
            since_time: seen.map_or(self.journal.joined, |seen| seen.since),
            changed_time: seen.and_then(|seen| seen.changed),
            traffic: counted.map(|counted| Traffic {
                rx_bytes: counted.rx_bytes,
                tx_bytes: counted.tx_bytes,
                rx_packets: None,
                tx_packets: None,
            }),
            handshake_time: counted.and_then(|counted| counted.handshake),
        }
    }

    /// Whose an address is, and whether the kernel has the objects to reach it.
    pub(crate) async fn detail(&mut self, asked: IpNet) -> PeerDetail {
        let (owner, peer) = self.owner(asked);
        let mut objects = Vec::new();
        if let Some(lease) = &peer {
            let wanted = self.plan.peer(&lease.key);
            let found = self
                .reconciler
                .find(wanted.iter().map(|(key, _)| key))
                .await;
            let with_next_hops = self.reconciler.executor().kernel().has_next_hops();
            for (at, (key, object)) in wanted.iter().enumerate() {
                if matches!(object, Object::NextHop { .. }) && !with_next_hops {
                    continue;
                }
                let (present, found) = match &found {
                    Ok(found) => match found.get(at).and_then(Option::as_ref) {
                        Some(found) => (found.satisfies(object), Some(describe(key, found))),
                        None => (false, None),
                    },
                    Err(error) => (false, Some(format!("unknown: {}", chain(error)))),
                };
                objects.push(PeerObject {
                    wanted: describe(key, object),
                    present,
                    found: found.filter(|_| !present),
                });
            }
        }
        let peer = match peer {
            Some(lease) => {
                let sessions = self.sessions().await;
                Some(self.describe(&lease, &sessions))
            }
            None => None,
        };
        PeerDetail {
            schema: status::SCHEMA,
            asked,
            owner,
            peer,
            objects,
        }
    }

    /// The owner of an address or subnet: looked up by subnet first, then by the nodes' own addresses.
    fn owner(&self, asked: IpNet) -> (Owner, Option<Lease>) {
        let has = |key: &SubnetKey| key.nets().any(|net| net.contains(&asked));
        if has(&self.own.key) {
            return (Owner::Own, None);
        }
        let single = asked.prefix_len() == asked.max_prefix_len();
        let is_at = |lease: &Lease| {
            let addresses = [
                lease.attrs.public_ip.map(Into::into),
                lease.attrs.public_ipv6.map(Into::into),
            ];
            single && addresses.contains(&Some(asked.addr()))
        };
        let by_subnet = self.peers.others().find(|lease| has(&lease.key));
        let by_address = || self.peers.others().find(|lease| is_at(lease));
        if let Some(lease) = by_subnet.or_else(by_address) {
            return (Owner::Peer, Some(lease.as_ref().clone()));
        }
        if is_at(&self.own) {
            return (Owner::Own, None);
        }
        if self
            .config
            .networks()
            .any(|network| network.contains(&asked))
        {
            (Owner::Nobody, None)
        } else {
            (Owner::Outside, None)
        }
    }
}

/// A tunnel's counters.
fn session(tunnel: Tunnel) -> Session {
    Session {
        rx_bytes: tunnel.received,
        tx_bytes: tunnel.sent,
        handshake: tunnel.age.map(|age| status::now().saturating_sub(age)),
    }
}

/// A peer's counters: the sum if it is a peer of two devices, one for each IP version.
fn count(objects: &[(Key, Object)], sessions: &Sessions) -> Option<Session> {
    let counted = objects.iter().filter_map(|(key, _)| match key {
        Key::WireguardPeer(device, peer) => sessions.get(device)?.get(&**peer).copied(),
        _ => None,
    });
    counted.reduce(|sum, one| Session {
        rx_bytes: sum.rx_bytes.saturating_add(one.rx_bytes),
        tx_bytes: sum.tx_bytes.saturating_add(one.tx_bytes),
        handshake: sum.handshake.max(one.handshake),
    })
}
