//! Keys of any name, for what machines share in etcd beside their leases. Written like all others: by transactions that
//! compare what was last seen, each with a definite outcome.

use super::grpc::Grpc;
use super::listing::get;
use super::rpc::{Compare, KeyValue, Must, Range, after};
use super::servers::Servers;
use super::write::Write;
use crate::cluster::lease::{SettingsError, StoreError};
use crate::settings::Etcd;

/// The most keys of a folder that are read.
const MOST: i64 = 50_000;

/// A key and its value. Bytes that are no UTF-8 are replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlainKey {
    /// The whole key.
    pub name: String,
    /// The value.
    pub value: String,
    /// The revision of its last change.
    pub modified: i64,
}

impl From<&KeyValue> for PlainKey {
    fn from(kv: &KeyValue) -> Self {
        Self {
            name: String::from_utf8_lossy(&kv.key).into_owned(),
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            modified: kv.modified,
        }
    }
}

/// All keys with a prefix at one revision of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    /// In the order of their names.
    pub keys: Vec<PlainKey>,
    /// The revision.
    pub revision: i64,
}

/// What must also be true when a key is written.
#[derive(Clone, Copy, Debug)]
pub enum Condition<'a> {
    /// This key was last changed at this revision; 0 if it must not exist.
    Unchanged(&'a str, i64),
    /// No key with this prefix, which ends with a slash, was created after this revision.
    NoneCreatedSince(&'a str, i64),
}

impl Condition<'_> {
    fn compare(self) -> Compare {
        match self {
            Self::Unchanged(key, seen) => Compare::key(key, Must::BeUnchangedSince(seen)),
            Self::NoneCreatedSince(folder, revision) => {
                Compare::range(folder, after(folder), Must::BeCreatedUntil(revision))
            }
        }
    }
}

/// Access to keys of any name.
#[derive(Debug)]
pub struct PlainKeys {
    servers: Servers,
}

impl PlainKeys {
    /// Checks the settings, whose key prefix does not matter here; connects to nothing yet.
    ///
    /// # Errors
    /// A file cannot be read, or the settings contradict each other.
    pub fn new(settings: Etcd) -> Result<Self, SettingsError> {
        let endpoints = settings.check()?;
        Ok(Self {
            servers: Servers::new(settings, endpoints, Box::new(Grpc)),
        })
    }

    /// Reads one key.
    ///
    /// # Errors
    /// No server answers, or access is refused.
    pub async fn read(&self, name: &str) -> Result<Option<PlainKey>, StoreError> {
        let found = get(&self.servers, Range::key(name)).await?;
        Ok(found.kvs.first().map(PlainKey::from))
    }

    /// Reads all keys with a prefix.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub async fn list(&self, folder: &str) -> Result<Folder, StoreError> {
        let range = Range {
            limit: MOST,
            ..Range::folder(folder)
        };
        let found = get(&self.servers, range).await?;
        Ok(Folder {
            keys: found.kvs.iter().map(PlainKey::from).collect(),
            revision: found.header.map_or(0, |header| header.revision),
        })
    }

    /// Writes a key that was last changed at revision `seen`, 0 if it must not exist. Returns whether it was, and all else
    /// as it must be.
    ///
    /// # Errors
    /// As for [`Self::read`]. After [`StoreError::Unreachable`] it may have been written, or still be.
    pub async fn put(
        &self,
        name: &str,
        seen: i64,
        value: &str,
        conditions: &[Condition<'_>],
    ) -> Result<bool, StoreError> {
        let own = Condition::Unchanged(name, seen);
        let compares = std::iter::once(&own).chain(conditions);
        let compares = compares.map(|condition| condition.compare()).collect();
        let write = Write::put(name, seen, compares, value, None);
        Ok(write.commit(&self.servers).await?.is_some())
    }

    /// Deletes a key that was last changed at revision `seen`. Returns whether it was, or is gone already.
    ///
    /// # Errors
    /// As for [`Self::put`].
    pub async fn delete(&self, name: &str, seen: i64) -> Result<bool, StoreError> {
        let compares = vec![Condition::Unchanged(name, seen).compare()];
        let write = Write::delete(name, seen, compares);
        Ok(write.commit(&self.servers).await?.is_some())
    }
}
