//! Writing the own lease again when its key is gone, without a list of all leases.
//!
//! When etcd could not be reached for longer than the TTL, the leases of all nodes have expired. If each of 65,000 nodes
//! listed 65,000 leases to choose a subnet, nobody would have one for minutes, and a new node might choose any of those
//! that are only waited for. But a node that has just lost its lease wants the same subnet; one transaction can tell
//! whether it is free: whatever overlaps it has one of a few names.

use ipnet::Ipv4Net;
use tracing::info;

use super::Store;
use super::held::Held;
use super::rpc::{Compare, Must};
use super::write::Write;
use crate::cluster::lease::{StoreError, SubnetKey};

impl Held {
    /// Writes the key, which is gone, if no other lease overlaps its subnet. Returns whether it did. A reservation is left
    /// to whoever deleted it.
    pub(super) async fn retake(&mut self, store: &Store) -> Result<bool, StoreError> {
        let Some(compares) =
            nothing_overlaps(store, &self.key).filter(|_| self.etcd_lease.is_some())
        else {
            return Ok(false);
        };
        // Others may have lost theirs, too, and are about to do the same.
        store.state.start_hold_down();
        self.spare(store);
        // Of an earlier attempt, too: one that fails again and again must not leave a lease behind each time.
        store.spares.settle(&store.servers).await?;
        let mut grant = store.spares.grant();
        let lease = grant.lease(&store.servers).await?;
        let name = store.key(&self.key);
        if !self.unconfirmed.contains(&self.wanted) {
            self.unconfirmed.push(self.wanted.clone());
        }
        let write = Write::put(&name, 0, compares, self.wanted.to_json()?, Some(lease));
        let Some(revision) = write.commit(&store.servers).await? else {
            return Ok(false);
        };
        grant.attached();
        self.written(revision, Some(lease));
        info!(
            subnet = %self.key,
            "the lease of this node had expired or was deleted; took the same subnet again"
        );
        Ok(true)
    }
}

/// The comparisons that hold if no lease overlaps a subnet; `None` if they would be too many, or cannot be made: a lease
/// with two families may share either with another one, and only the first is what its name begins with.
fn nothing_overlaps(store: &Store, key: &SubnetKey) -> Option<Vec<Compare>> {
    /// etcd carries out 128 operations in a transaction (`--max-txn-ops`); a /18 holds 64 networks of three octets.
    const LENGTHS: std::ops::RangeInclusive<u8> = 18..=24;
    let (Some(net), None) = (key.v4, key.v6) else {
        return None;
    };
    if !LENGTHS.contains(&net.prefix_len()) {
        return None;
    }
    let folder = &store.keys.subnets;
    // '/' is the byte after '.'.
    let inside = net.subnets(24).ok()?.map(|net| {
        let [a, b, c, _] = net.network().octets();
        (
            format!("{folder}{a}.{b}.{c}."),
            format!("{folder}{a}.{b}.{c}/"),
        )
    });
    // With a second family the name goes on after '&', before whose successor '\'' the range ends.
    let around = (1..net.prefix_len()).filter_map(|len| {
        let net = Ipv4Net::new(net.network(), len).ok()?;
        let name = store.key(&SubnetKey::new(Some(net), None));
        let end = format!("{name}'");
        Some((name, end))
    });
    let ranges = inside.chain(around);
    Some(
        ranges
            .map(|(start, end)| Compare::range(start, end, Must::BeAbsent))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::EtcdStore;
    use super::*;
    use crate::settings::Etcd;

    /// Whether a lease of that name keeps a subnet from being taken again.
    fn hinders(subnet: &str, lease: &str) -> Option<bool> {
        let settings = Etcd {
            endpoints: vec!["http://etcd:2379".to_owned()],
            ..Etcd::default()
        };
        let store = EtcdStore::new(settings, "node".to_owned()).unwrap().store;
        let compares = nothing_overlaps(&store, &SubnetKey::parse_name(subnet).unwrap())?;
        assert!(compares.len() <= 127, "{}", compares.len());
        let name = format!("{}{lease}", store.keys.subnets).into_bytes();
        let covers = |compare: &Compare| compare.key <= name && name < compare.end;
        Some(compares.iter().any(covers))
    }

    #[test]
    fn whatever_overlaps_a_subnet_hinders_it() {
        for (subnet, lease, expected) in [
            ("10.5.1.0-24", "10.5.1.0-24", Some(true)),
            ("10.5.1.0-24", "10.5.1.0-24&fd00:1::-64", Some(true)),
            ("10.5.1.0-24", "10.5.1.128-25", Some(true)),
            ("10.5.1.0-24", "10.5.0.0-23", Some(true)),
            ("10.5.1.0-24", "10.5.0.0-23&fd00:1::-64", Some(true)),
            ("10.5.1.0-24", "10.0.0.0-8", Some(true)),
            ("10.5.1.0-24", "10.5.0.0-24", Some(false)),
            ("10.5.1.0-24", "10.5.10.0-24", Some(false)),
            ("10.5.1.0-24", "10.5.2.0-23", Some(false)),
            ("10.5.0.0-24", "10.5.0.0-22", Some(true)),
            ("10.5.64.0-18", "10.5.127.0-24", Some(true)),
            ("10.5.64.0-18", "10.5.128.0-18", Some(false)),
            // A part of what a smaller net shares with its neighbours has no name of its own.
            ("10.5.1.64-26", "10.5.1.0-26", None),
            ("10.4.0.0-17", "10.5.0.0-17", None),
            ("10.5.1.0-24&fd00:1::-64", "10.5.2.0-24", None),
            ("fd00:1::-64", "10.5.2.0-24", None),
        ] {
            assert_eq!(hinders(subnet, lease), expected, "{subnet} {lease}");
        }
    }
}
