//! History of the overlay, for the status.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster::lease::SubnetKey;
use crate::cluster::peers::{PeerChanges, PeerTable};
use crate::plan::state::Key;
use crate::telemetry::status::{self, Cause};

/// The most leases to remember after they are gone.
const FORGOTTEN: usize = 64;

/// History of the overlay, for the status.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// When the own lease was taken.
    pub(super) leased: u64,
    /// When this process joined and learned of the peers that existed already.
    pub(super) joined: u64,
    /// When each peer that was added or changed since then was first seen, and when it changed. Small, since the
    /// thousands of peers that existed already are not in it.
    pub(super) times: BTreeMap<SubnetKey, PeerTimes>,
    /// The kernel objects that are not in the wanted state, and why.
    pub(super) failed_objects: BTreeMap<Key, Cause>,
    /// The last full resync: when it was, and how long it took.
    pub(super) resync: Option<(u64, Duration)>,
    /// The number of full resyncs, and their total duration.
    pub(super) resyncs: u64,
    pub(super) resync_total: Duration,
    /// How often the firewall's rules had to be restored, and when last.
    pub(super) firewall: (u64, Option<u64>),
    /// When the subnet file was written.
    pub(super) written: Option<u64>,
}

/// When a peer was first seen, and when it changed.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerTimes {
    pub(super) since: u64,
    pub(super) changed: Option<u64>,
}

impl Journal {
    /// Records what the peer table reported, used or refused.
    pub(super) fn note_peers(&mut self, changes: &PeerChanges, table: &PeerTable) {
        let now = status::now();
        let new = PeerTimes {
            since: now,
            changed: None,
        };
        for peer in &changes.removed {
            self.times.remove(&peer.key);
        }
        let refused = changes.refused.iter().map(|(key, _)| *key);
        for key in changes.added.iter().map(|peer| peer.key).chain(refused) {
            self.times.entry(key).or_insert(new);
        }
        let from_the_start = PeerTimes {
            since: self.joined,
            changed: None,
        };
        for update in &changes.changed {
            let seen = self.times.entry(update.new.key);
            seen.or_insert(from_the_start).changed = Some(now);
        }
        // Refused leases disappear without an event, and must not fill our memory.
        if self.times.len() > table.known() + FORGOTTEN {
            self.times.retain(|key, _| table.knows(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::cluster::lease::{Lease, LeaseAttrs, LeaseEvent};
    use crate::cluster::network_config::NetworkConfig;

    fn lease(subnet: &str) -> Lease {
        Lease {
            key: SubnetKey::parse_name(subnet).unwrap(),
            attrs: LeaseAttrs {
                public_ip: Some(Ipv4Addr::new(198, 18, 0, 1)),
                public_ipv6: None,
                backend_type: "alloc".to_owned(),
                backend_data: None,
                backend_v6_data: None,
                owner: None,
            },
            created: 1,
        }
    }

    #[test]
    fn refused_leases_that_come_and_go_are_forgotten() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).unwrap();
        let own = lease("10.5.1.0-24");
        let mut table = PeerTable::new(&config, &own, Box::new(|_| Ok(())));
        let mut journal = Journal::default();
        for number in 0..1000u32 {
            let [_, _, high, low] = number.to_be_bytes();
            let foreign = lease(&format!("172.{high}.{low}.0-24"));
            let key = foreign.key;
            for (set, removed) in [(vec![foreign], vec![]), (vec![], vec![key])] {
                let changes = table.apply(LeaseEvent::Changes { set, removed });
                journal.note_peers(&changes, &table);
            }
        }
        let remembered = journal.times.len();
        assert!((1..=FORGOTTEN + 1).contains(&remembered), "{remembered}");
    }
}
