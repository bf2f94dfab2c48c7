//! Leases and reservations as an administrator sees and changes them. Like all others, these writes compare what was
//! last seen.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::held::{self, remaining};
use super::listing::{Entry, list};
use super::rpc::{Compare, Must};
use super::write::Write;
use super::{EtcdStore, Store};
use crate::cluster::lease::{LeaseAttrs, StoreError, SubnetKey};

/// All lease keys at one moment.
#[derive(Debug)]
pub struct Records {
    /// Ordered by key name.
    pub records: Vec<Record>,
    revision: i64,
}

/// One lease key.
#[derive(Clone, Debug)]
pub struct Record {
    /// The leased subnets.
    pub key: SubnetKey,
    /// What its node published; `None` if it cannot be parsed.
    pub attrs: Option<LeaseAttrs>,
    modified: i64,
    etcd_lease: Option<i64>,
}

impl From<Entry> for Record {
    fn from(entry: Entry) -> Self {
        Self {
            key: entry.key,
            attrs: entry.attrs,
            modified: entry.modified,
            etcd_lease: entry.etcd_lease,
        }
    }
}

impl Record {
    /// Whether the subnet is reserved: its key has no etcd lease and never expires.
    pub fn is_reservation(&self) -> bool {
        self.etcd_lease.is_none()
    }

    /// Whether a node published itself there, rather than an administrator just writing a node's address.
    pub fn is_in_use(&self) -> bool {
        let used = |attrs: &LeaseAttrs| attrs.owner.is_some() || !attrs.backend_type.is_empty();
        self.attrs.as_ref().is_some_and(used)
    }
}

impl EtcdStore {
    /// Reads all lease keys.
    pub async fn records(&mut self) -> Result<Records, StoreError> {
        let store = &self.store;
        let listing = list(store).await?;
        Ok(Records {
            records: listing.entries.into_iter().map(Record::from).collect(),
            revision: listing.revision,
        })
    }

    /// The remaining time of each lease: zero if it has just expired, `None` for a reservation.
    pub async fn time_left(
        &mut self,
        records: &[Record],
    ) -> Result<Vec<Option<Duration>>, StoreError> {
        /// Concurrent requests: enough to hide the round-trip time.
        const AT_ONCE: usize = 64;
        let servers = &self.store.servers;
        let ids: Vec<_> = records.iter().map(|record| record.etcd_lease).collect();
        let asked = stream::iter(ids).map(|id| async move {
            match id {
                None => Ok(None),
                Some(id) => remaining(servers, id).await.map(Some),
            }
        });
        let answers: Vec<_> = asked.buffered(AT_ONCE).collect().await;
        answers.into_iter().collect()
    }

    /// Reserves a subnet that overlaps no key in `seen`. Returns whether it was reserved: not if any lease was created
    /// since.
    pub async fn create_reservation(
        &mut self,
        key: &SubnetKey,
        attrs: &LeaseAttrs,
        seen: &Records,
    ) -> Result<bool, StoreError> {
        let store = &self.store;
        let compares = vec![store.unchanged_since(seen.revision)];
        let (key, value) = (store.key(key), attrs.to_json()?);
        let write = Write::put(&key, 0, compares, value, None);
        Ok(write.commit(&store.servers).await?.is_some())
    }

    /// Turns a lease into a reservation by detaching its etcd lease; the value stays. Returns whether the key was
    /// unchanged since it was read.
    pub async fn make_reservation(&mut self, record: &Record) -> Result<bool, StoreError> {
        let store = &self.store;
        let attached = store.attach(record, 0).await?;
        if let Some(id) = record.etcd_lease.filter(|_| attached) {
            store.spares.add(id);
            store.spares.revoke(&store.servers).await;
        }
        Ok(attached)
    }

    /// Turns a reservation into a lease with the configured TTL; the node that uses it adopts and renews it. Returns
    /// whether the key was unchanged since it was read.
    pub async fn make_lease(&mut self, record: &Record) -> Result<bool, StoreError> {
        let store = &self.store;
        let mut grant = store.spares.grant();
        let lease = grant.lease(&store.servers).await?;
        let attached = store.attach(record, lease.id).await;
        if matches!(attached, Ok(true)) {
            grant.attached();
        }
        drop(grant);
        store.spares.revoke(&store.servers).await;
        attached
    }

    /// Deletes a key and its etcd lease. Returns whether the key was unchanged since it was read.
    pub async fn delete(&mut self, record: &Record) -> Result<bool, StoreError> {
        let store = &self.store;
        let deleted = held::delete(store, &record.key, record.modified).await?;
        if let Some(id) = record.etcd_lease.filter(|_| deleted) {
            store.spares.add(id);
        }
        store.spares.revoke(&store.servers).await;
        Ok(deleted)
    }
}

impl Store {
    /// Rewrites a key's own value with another etcd lease, or with none if that is 0.
    async fn attach(&self, record: &Record, etcd_lease: i64) -> Result<bool, StoreError> {
        let key = self.key(&record.key);
        let unchanged = Compare::key(key.as_str(), Must::BeUnchangedSince(record.modified));
        let write = Write::attach(&key, record.modified, vec![unchanged], etcd_lease);
        Ok(write.commit(&self.servers).await?.is_some())
    }
}
