//! Leases and reservations as an administrator sees and changes them. Every write compares what was seen, as all others
//! do.

use std::time::Duration;

use etcd_client::{Compare, CompareOp};
use futures_util::{StreamExt, stream};

use super::held::{self, remaining};
use super::listing::{Entry, list};
use super::write::Write;
use super::{EtcdStore, Store};
use crate::cluster::lease::{LeaseAttrs, StoreError, SubnetKey};

/// All lease keys at one moment.
#[derive(Debug)]
pub struct Records {
    /// In the order of their keys' names.
    pub records: Vec<Record>,
    revision: i64,
}

/// One lease key.
#[derive(Clone, Debug)]
pub struct Record {
    /// The leased subnets.
    pub key: SubnetKey,
    /// What is published with it; `None` if that cannot be read.
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
    /// Whether the subnet is reserved: the key has no time limit.
    pub fn is_reservation(&self) -> bool {
        self.etcd_lease.is_none()
    }

    /// Whether a node published itself there, and not only an administrator wrote the address of one.
    pub fn is_in_use(&self) -> bool {
        let used = |attrs: &LeaseAttrs| attrs.owner.is_some() || !attrs.backend_type.is_empty();
        self.attrs.as_ref().is_some_and(used)
    }
}

impl EtcdStore {
    /// Reads all lease keys.
    pub async fn records(&mut self) -> Result<Records, StoreError> {
        let store = &self.store;
        let listing = list(&store.servers, &store.keys, &store.reports).await?;
        Ok(Records {
            records: listing.entries.into_iter().map(Record::from).collect(),
            revision: listing.revision,
        })
    }

    /// How long each of these lasts, if nobody extends it: zero if it just ended, `None` for a reservation.
    pub async fn time_left(
        &mut self,
        records: &[Record],
    ) -> Result<Vec<Option<Duration>>, StoreError> {
        /// Requests under way at a time: enough to hide the way there and back.
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

    /// Reserves a subnet that no key in `seen` covers. Whether it could be: not if any lease was created since.
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

    /// Takes the time limit from a lease; its value stays as it is. Whether it was unchanged since it was read.
    pub async fn make_reservation(&mut self, record: &Record) -> Result<bool, StoreError> {
        let store = &self.store;
        let attached = store.attach(record, 0).await?;
        if let Some(id) = record.etcd_lease.filter(|_| attached) {
            store.spares.add(id);
            store.spares.revoke(&store.servers).await;
        }
        Ok(attached)
    }

    /// Makes a reservation a lease of the configured duration, which whoever uses it takes up and extends. Whether it was
    /// unchanged since it was read.
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

    /// Deletes a key, and the etcd lease that it hangs on. Whether it was unchanged since it was read.
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
    /// Writes a key's own value again, with another etcd lease or, with 0, none.
    async fn attach(&self, record: &Record, etcd_lease: i64) -> Result<bool, StoreError> {
        let key = self.key(&record.key);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, record.modified);
        let write = Write::attach(&key, record.modified, vec![unchanged], etcd_lease);
        Ok(write.commit(&self.servers).await?.is_some())
    }
}
