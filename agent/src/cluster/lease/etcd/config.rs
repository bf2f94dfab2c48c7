//! The network config in the store: read, write and watch it.

use std::sync::{Mutex, PoisonError};

use super::Store;
use super::listing::get;
use super::rpc::{Compare, KeyValue, Must, Range};
use super::write::Write;
use crate::cluster::lease::{StoreError, StoreEvent};
use crate::cluster::network_config::NetworkConfig;

/// The network config as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The text, as written.
    pub text: String,
    /// The revision of its last change.
    pub revision: i64,
}

impl StoredConfig {
    pub(super) fn new(kv: &KeyValue) -> Self {
        Self {
            text: String::from_utf8_lossy(&kv.value).into_owned(),
            revision: kv.modified,
        }
    }
}

/// The stored state under which the network config may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There is none yet.
    Absent,
    /// It was last changed at this revision.
    Revision(i64),
}

/// The state of the config that the agent knows, so that only other states are reported.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Option<State>>);

/// `None` if there is no config. Revisions alone do not suffice: after a restored backup, the same revision may have
/// another text.
type State = Option<StoredConfig>;

impl Known {
    /// Records a state. Returns whether another one was known before.
    pub(super) fn note(&self, config: Option<&StoredConfig>) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.replace(config.cloned());
        before.is_some_and(|before| before.as_ref() != config)
    }
}

/// Reads the network config without parsing it, and the store's revision.
pub(super) async fn read(store: &Store) -> Result<(Option<StoredConfig>, i64), StoreError> {
    let found = get(&store.servers, Range::key(store.keys.config.as_str())).await?;
    let revision = found.header.map_or(0, |header| header.revision);
    Ok((found.kvs.first().map(StoredConfig::new), revision))
}

/// Parses a config that was found, or reports that there is none.
pub(super) fn parse(
    store: &Store,
    config: Option<&StoredConfig>,
) -> Result<NetworkConfig, StoreError> {
    let key = store.keys.config.clone();
    match config {
        None => Err(StoreError::NoNetworkConfig { key }),
        Some(config) => NetworkConfig::parse(&config.text)
            .map_err(|error| StoreError::BadNetworkConfig { key, error }),
    }
}

/// The event about a config that was found or not; `None` if the agent knows that state, or has never read a config.
pub(super) fn changed_event(store: &Store, config: Option<&StoredConfig>) -> Option<StoreEvent> {
    store.config.note(config).then(|| {
        let parsed = parse(store, config);
        StoreEvent::NetworkConfig(parsed.map(Box::new).map_err(|error| (&error).into()))
    })
}

/// Writes the network config if the stored state is `expected`; else [`StoreError::ConfigChanged`].
pub(super) async fn write(store: &Store, text: &str, expected: Expected) -> Result<(), StoreError> {
    let key = store.keys.config.as_str();
    let (seen, must) = match expected {
        Expected::Absent => (0, Must::BeAbsent),
        Expected::Revision(revision) => (revision, Must::BeUnchangedSince(revision)),
    };
    let write = Write::put(key, seen, vec![Compare::key(key, must)], text, None);
    if write.commit(&store.servers).await?.is_some() {
        Ok(())
    } else {
        Err(StoreError::ConfigChanged {
            key: key.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_state_other_than_the_known_one_is_news() {
        let known = Known::default();
        let config = |revision, text: &str| {
            Some(StoredConfig {
                text: text.to_owned(),
                revision,
            })
        };
        let news: Vec<_> = [
            (config(3, "{}"), false),
            (config(3, "{}"), false),
            (config(5, "{}"), true),
            (None, true),
            (None, false),
            (config(2, "{}"), true),
            // The same revision after a restored backup.
            (config(2, "[]"), true),
        ]
        .map(|(config, is_news)| (known.note(config.as_ref()), is_news))
        .into();
        assert!(
            news.iter().all(|(noted, is_news)| noted == is_news),
            "{news:?}"
        );
    }
}
