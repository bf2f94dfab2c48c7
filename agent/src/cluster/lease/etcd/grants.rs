//! Etcd leases that no key is attached to, yet or any more.
//!
//! An etcd lease whose ID is lost lasts for its whole TTL, as a rule a day. So the ID is chosen here before the server
//! is asked: if the reply is lost, the request is simply repeated and finds the lease. An etcd lease that was requested
//! but not used, for whatever reason, is kept as a spare: it is used for the next key, or revoked when there is time.
//!
//! Nothing is revoked before the server has confirmed that no key is attached to it: a write whose reply was lost may
//! have been committed, or may still be in flight. So an etcd lease used by a write of unknown outcome is not reused
//! but revoked before the next key is chosen: from then on that write either is visible or fails.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::debug;

use super::Store;
use super::held::{EtcdLease, keep_alive, seconds};
use super::rpc::{Granted, code};
use super::servers::Servers;
use crate::base::retry::random_seed;
use crate::cluster::lease::StoreError;

/// The spare etcd leases.
#[derive(Debug, Default)]
pub(super) struct Spares {
    ids: Mutex<Ids>,
    /// The one that was [requested ahead](request_ahead), until somebody asks for it.
    ahead: tokio::sync::Mutex<Option<JoinHandle<Ahead>>>,
}

/// What came of a request ahead: the etcd lease, and when it was asked for. Without one its ID is a spare.
type Ahead = Option<(EtcdLease, Instant)>;

/// Their IDs.
#[derive(Debug, Default)]
struct Ids {
    /// Requested, and used by no write.
    unused: Vec<i64>,
    /// Possibly used by a write still in flight, or left over from a key.
    used: Vec<i64>,
}

/// An etcd lease for a key about to be written. Becomes a spare when dropped, unless attached.
#[derive(Debug)]
pub(super) struct Grant<'a> {
    spares: &'a Spares,
    id: Option<i64>,
    lease: Option<EtcdLease>,
}

impl Spares {
    /// An etcd lease for the next key; sends no request yet.
    pub(super) fn grant(&self) -> Grant<'_> {
        Grant {
            spares: self,
            id: None,
            lease: None,
        }
    }

    /// Records an etcd lease that no key needs any more.
    pub(super) fn add(&self, id: i64) {
        self.ids(|ids| {
            if !ids.used.contains(&id) {
                ids.used.push(id);
            }
        });
    }

    /// Makes sure that no write of unknown outcome is committed from now on.
    pub(super) async fn settle(&self, servers: &Servers) -> Result<(), StoreError> {
        while let Some(id) = self.ids(|ids| ids.used.pop()) {
            // Still a spare if this fails.
            let mut grant = self.taken(id);
            revoke_unused(servers, id).await?;
            grant.id = None;
        }
        Ok(())
    }

    /// Revokes the spares. One that fails more than a few times is retried next time.
    pub(super) async fn revoke(&self, servers: &Servers) {
        const TRIES: u32 = 3;
        if let Some((lease, _)) = self.take_ahead().await {
            self.ids(|ids| ids.unused.push(lease.id));
        }
        let Ids { unused, used } = self.ids(std::mem::take);
        for id in used.into_iter().chain(unused) {
            // Still a spare if the caller stops waiting.
            let mut grant = self.taken(id);
            for _ in 0..TRIES {
                match revoke_unused(servers, id).await {
                    Ok(()) => {
                        grant.id = None;
                        break;
                    }
                    Err(error) => debug!("failed to revoke an unused etcd lease: {error}"),
                }
            }
        }
    }

    /// One that is about to be revoked.
    fn taken(&self, id: i64) -> Grant<'_> {
        let ttl = Duration::ZERO;
        Grant {
            spares: self,
            id: Some(id),
            lease: Some(EtcdLease { id, ttl }),
        }
    }

    /// The etcd lease that was requested ahead, if there is one. Cancel-safe.
    async fn take_ahead(&self) -> Ahead {
        let mut ahead = self.ahead.lock().await;
        let lease = ahead.as_mut()?.await.ok().flatten();
        *ahead = None;
        lease
    }

    fn ids<T>(&self, change: impl FnOnce(&mut Ids) -> T) -> T {
        change(&mut self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Grant<'_> {
    /// The etcd lease, with the configured TTL from now; the same one however often this is called.
    pub(super) async fn lease(&mut self, servers: &Servers) -> Result<EtcdLease, StoreError> {
        /// A spare may have expired, or turn out to be in use.
        const TRIES: u32 = 4;
        if let Some(lease) = self.lease {
            return Ok(lease);
        }
        match self.spares.take_ahead().await {
            Some((lease, asked)) if asked.elapsed() < FRESH => {
                (self.id, self.lease) = (Some(lease.id), Some(lease));
                return Ok(lease);
            }
            // Part of its TTL has passed.
            Some((lease, _)) => self.spares.ids(|ids| ids.unused.push(lease.id)),
            None => {}
        }
        for _ in 0..TRIES {
            let spare = self.spares.ids(|ids| ids.unused.pop());
            let id = *self.id.get_or_insert_with(|| spare.unwrap_or_else(new_id));
            if let Some(lease) = grant(servers, id).await? {
                self.lease = Some(lease);
                return Ok(lease);
            }
            self.id = None;
        }
        // The server claims that one random ID after another exists.
        Err(servers.silence())
    }

    /// A key is attached to it. The next grant is another lease.
    pub(super) fn attached(&mut self) {
        (self.id, self.lease) = (None, None);
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            let is_used = self.lease.is_some();
            self.spares.ids(|ids| match is_used {
                true => ids.used.push(id),
                false => ids.unused.push(id),
            });
        }
    }
}

/// How long an etcd lease that was requested ahead counts as granted just now. It may have the shortest TTL, a minute.
const FRESH: Duration = Duration::from_secs(5);

/// Requests an etcd lease in a task of its own, for the key of a node that is new: it takes the longest of what etcd does
/// for the start of such a node, and need not wait for the rest.
pub(super) async fn request_ahead(store: &Arc<Store>) {
    let (asked, id) = (Instant::now(), new_id());
    let task = {
        let store = Arc::clone(store);
        async move {
            match grant(&store.servers, id).await {
                Ok(lease) => lease.map(|lease| (lease, asked)),
                Err(error) => {
                    debug!("failed to request an etcd lease ahead: {error}");
                    store.spares.ids(|ids| ids.unused.push(id));
                    None
                }
            }
        }
    };
    let former = store.spares.take_ahead().await;
    store
        .spares
        .ids(|ids| ids.unused.extend(former.map(|(lease, _)| lease.id)));
    *store.spares.ahead.lock().await = Some(tokio::spawn(task));
}

/// A random ID, positive like etcd's own; 0 would let the server choose.
pub(super) fn new_id() -> i64 {
    i64::try_from(random_seed() >> 1).unwrap_or(1).max(1)
}

/// Requests an etcd lease with the configured TTL under this ID. `None` if the ID is in use with a key attached.
async fn grant(servers: &Servers, id: i64) -> Result<Option<EtcdLease>, StoreError> {
    let ttl = i64::try_from(servers.settings().lease_ttl.as_secs()).unwrap_or(i64::MAX);
    if let Some(granted) = request(servers, id, ttl).await? {
        servers.history.check_cluster(granted.header);
        return Ok(Some(EtcdLease {
            id: granted.id,
            ttl: seconds(granted.ttl),
        }));
    }
    // An earlier request whose reply was lost, or a spare.
    let Some(lease) = unused(servers, id).await? else {
        return Ok(None);
    };
    Ok(keep_alive(servers, lease).await?.then_some(lease))
}

/// Requests an etcd lease with this ID and TTL in seconds; `None` if the ID exists already.
pub(super) async fn request(
    servers: &Servers,
    id: i64,
    ttl: i64,
) -> Result<Option<Granted>, StoreError> {
    match servers.call(|client| client.grant(id, ttl)).await {
        Ok(granted) => Ok(Some(granted)),
        Err(StoreError::Refused {
            code: code::FAILED_PRECONDITION,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The etcd lease with this ID, if it exists and no key is attached.
async fn unused(servers: &Servers, id: i64) -> Result<Option<EtcdLease>, StoreError> {
    let found = servers.call(|client| client.time_to_live(id, true)).await?;
    let is_unused = found.ttl >= 0 && !found.has_keys;
    Ok(is_unused.then(|| EtcdLease {
        id,
        ttl: seconds(found.granted),
    }))
}

/// Revokes an etcd lease if no key is attached.
async fn revoke_unused(servers: &Servers, id: i64) -> Result<(), StoreError> {
    if unused(servers, id).await?.is_none() {
        return Ok(());
    }
    match servers.call(|client| client.revoke(id)).await {
        // Gone already: revoked by an earlier request whose reply was lost.
        Ok(_)
        | Err(StoreError::Refused {
            code: code::NOT_FOUND,
            ..
        }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_lease_is_spared_once_however_often_that_is_told() {
        let spares = Spares::default();
        for id in [7, 7, 8, 7] {
            spares.add(id);
        }
        assert_eq!(spares.ids(|ids| ids.used.clone()), [7, 8]);
    }
}
