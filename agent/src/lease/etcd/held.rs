//! The lease that this node holds: what is in etcd, what should be, and how to bring the two together.
//!
//! Every write compares the key's modification revision with the one last seen, so that a key that changed hands is
//! never overwritten.

use std::time::Duration;

use etcd_client::{Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp};
use tracing::{info, warn};

use super::listing::{Entry, get};
use super::servers::{Servers, code};
use super::{Store, listing};
use crate::lease::{LeaseAttrs, Released, StoreError, SubnetKey};

/// An etcd lease: what makes a key expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EtcdLease {
    pub(super) id: i64,
    /// How long it was granted for.
    pub(super) ttl: Duration,
}

/// The lease that this node holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) key: SubnetKey,
    /// What should be published.
    pub(super) wanted: LeaseAttrs,
    /// What was published last, as far as is known.
    pub(super) published: LeaseAttrs,
    /// What was sent without an answer: any of it may be in etcd by now, or may be yet.
    pub(super) unsure: Vec<LeaseAttrs>,
    /// Modification revision of the key, as far as is known.
    pub(super) modified: i64,
    /// `None` for a reservation: it never expires, and stays so.
    pub(super) etcd_lease: Option<EtcdLease>,
}

/// Whose a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// This node's: its public IP, and its machine ID or none. None is what a real flannel on this node, or an
    /// administrator's reservation, leaves.
    Ours,
    /// Another machine with the same public IP; behind a NAT many have the same.
    SameAddress,
    /// The same machine ID at another public IP: a cloned disk, or this machine before it got its present address. Left
    /// alone, except where the previous subnet tells the two apart.
    SameMachine,
    /// Anybody else's, or unreadable.
    Other,
}

/// Whose a lease with these attributes is, for a node that publishes `own`.
pub(super) fn claim(own: &LeaseAttrs, found: Option<&LeaseAttrs>) -> Claim {
    let Some(found) = found else {
        return Claim::Other;
    };
    let same_address = found.same_address(own);
    match &found.owner {
        None if same_address => Claim::Ours,
        None => Claim::Other,
        owner if *owner == own.owner && same_address => Claim::Ours,
        owner if *owner == own.owner => Claim::SameMachine,
        Some(_) if same_address => Claim::SameAddress,
        Some(_) => Claim::Other,
    }
}

/// What [`Held::settle`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The key is ours and as it should be.
    Kept {
        /// Whether the key had to be written for that.
        rewritten: bool,
    },
    /// The key is gone or somebody else's.
    Lost {
        /// In words.
        reason: String,
    },
}

/// How often a write is tried whose key somebody else keeps changing.
const ATTEMPTS: u32 = 5;

impl Held {
    /// Reads the key, and makes it as it should be if it still is ours. A value that nobody can read is nobody's, so it
    /// is replaced.
    ///
    /// The etcd lease, or the absence of one, is taken over from what is found, so that a key which an administrator
    /// made a reservation stays one.
    pub(super) async fn settle(&mut self, store: &Store) -> Result<Settled, StoreError> {
        for _ in 0..ATTEMPTS {
            let Some(found) = find(store, &self.key).await? else {
                return Ok(Settled::Lost {
                    reason: "its key is gone, deleted or expired".to_owned(),
                });
            };
            if let Some(taken) = found.attrs.as_ref().filter(|attrs| !self.is_ours(attrs)) {
                let machine = taken.owner.as_deref().unwrap_or("unknown");
                return Ok(Settled::Lost {
                    reason: format!(
                        "taken over by {} (machine {machine})",
                        taken.public_address()
                    ),
                });
            }
            if self.modified != found.modified {
                // Whatever is still under way compares with an older revision.
                self.unsure.clear();
            }
            self.modified = found.modified;
            self.etcd_lease = match found.etcd_lease {
                None => None,
                Some(id) => lifetime(&store.servers, id).await?,
            };
            let orphan = found.etcd_lease.is_some() && self.etcd_lease.is_none();
            if let Some(attrs) = found.attrs.filter(|_| !orphan) {
                self.published = attrs;
                if self.published == self.wanted {
                    return Ok(Settled::Kept { rewritten: false });
                }
            }
            let fresh = match orphan {
                true => Some(grant(&store.servers).await?),
                false => None,
            };
            if self.put(store, fresh.or(self.etcd_lease)).await? {
                return Ok(Settled::Kept { rewritten: true });
            }
            if let Some(fresh) = fresh {
                revoke(&store.servers, fresh.id).await;
            }
        }
        Err(StoreError::LostRaces { attempts: ATTEMPTS })
    }

    /// Writes the wanted attributes if nobody changed the key since it was last seen. Whether that was so.
    pub(super) async fn put(
        &mut self,
        store: &Store,
        etcd_lease: Option<EtcdLease>,
    ) -> Result<bool, StoreError> {
        let key = store.key(&self.key);
        let compare = Compare::mod_revision(key.as_str(), CompareOp::Equal, self.modified);
        if !self.unsure.contains(&self.wanted) {
            self.unsure.push(self.wanted.clone());
        }
        let Some(revision) =
            put_if(&store.servers, compare, &key, &self.wanted, etcd_lease).await?
        else {
            return Ok(false);
        };
        self.modified = revision;
        self.published = self.wanted.clone();
        self.unsure.clear();
        self.etcd_lease = etcd_lease;
        Ok(true)
    }

    /// Deletes the key, if it still is ours and not a reservation, and the etcd lease with it.
    pub(super) async fn release(self, store: &Store) -> Result<Released, StoreError> {
        for _ in 0..ATTEMPTS {
            let found = find(store, &self.key).await?;
            let ours = |found: &Entry| found.attrs.as_ref().is_none_or(|attrs| self.is_ours(attrs));
            let Some(found) = found.filter(ours) else {
                return Ok(Released::Nothing);
            };
            let Some(id) = found.etcd_lease else {
                return Ok(Released::Reservation(self.key));
            };
            if delete(store, &found.key, found.modified).await? {
                // Nothing hangs on it any more.
                revoke(&store.servers, id).await;
                return Ok(Released::Lease(self.key));
            }
        }
        Err(StoreError::LostRaces { attempts: ATTEMPTS })
    }

    /// Whether the key still is ours. Attributes that this node itself replaced a moment ago count as its own.
    fn is_ours(&self, found: &LeaseAttrs) -> bool {
        claim(&self.wanted, Some(found)) == Claim::Ours
            || claim(&self.published, Some(found)) == Claim::Ours
            || self.unsure.contains(found)
    }
}

/// Reads one lease key.
pub(super) async fn find(store: &Store, key: &SubnetKey) -> Result<Option<Entry>, StoreError> {
    let response = get(&store.servers, store.key(key).as_bytes(), GetOptions::new()).await?;
    let kv = response.kvs().first();
    Ok(kv.and_then(|kv| store.reports.entry(&store.keys, kv)))
}

/// Writes a lease if `compare` holds. The revision of the write, or `None` if it does not hold.
pub(super) async fn put_if(
    servers: &Servers,
    compare: impl Into<Compares>,
    key: &str,
    attrs: &LeaseAttrs,
    etcd_lease: Option<EtcdLease>,
) -> Result<Option<i64>, StoreError> {
    let options = etcd_lease.map(|lease| PutOptions::new().with_lease(lease.id));
    let txn =
        Txn::new()
            .when(compare.into().0)
            .and_then([TxnOp::put(key, attrs.to_json()?, options)]);
    let response = commit(servers, txn).await?;
    let revision = response.header().map_or(0, |header| header.revision());
    Ok(response.succeeded().then_some(revision))
}

/// One comparison or several.
pub(super) struct Compares(Vec<Compare>);

impl From<Compare> for Compares {
    fn from(compare: Compare) -> Self {
        Self(vec![compare])
    }
}

impl From<Vec<Compare>> for Compares {
    fn from(compares: Vec<Compare>) -> Self {
        Self(compares)
    }
}

pub(super) async fn commit(
    servers: &Servers,
    txn: Txn,
) -> Result<etcd_client::TxnResponse, StoreError> {
    let response = servers
        .call(|mut client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        })
        .await?;
    servers.history.heard_of(response.header());
    Ok(response)
}

/// Deletes a lease, if nobody changed it since it was last seen.
pub(super) async fn delete(
    store: &Store,
    key: &SubnetKey,
    modified: i64,
) -> Result<bool, StoreError> {
    let key = store.key(key);
    let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, modified);
    let txn = Txn::new()
        .when([unchanged])
        .and_then([TxnOp::delete(key.as_str(), None)]);
    Ok(commit(&store.servers, txn).await?.succeeded())
}

/// Grants an etcd lease of the configured duration.
pub(super) async fn grant(servers: &Servers) -> Result<EtcdLease, StoreError> {
    let ttl = i64::try_from(servers.settings().ttl.as_secs()).unwrap_or(i64::MAX);
    let response = servers
        .call(|mut client| async move { client.lease_grant(ttl, None).await })
        .await?;
    servers.history.heard_of(response.header());
    Ok(EtcdLease {
        id: response.id(),
        ttl: seconds(response.ttl()),
    })
}

/// Gives a lease back that no key is attached to. Failure costs nothing: the lease expires.
pub(super) async fn revoke(servers: &Servers, id: i64) {
    let result = servers
        .call(|mut client| async move { client.lease_revoke(id).await })
        .await;
    if let Err(error) = result {
        info!("failed to revoke an unused etcd lease, which will expire by itself: {error}");
    }
}

/// For how long an etcd lease was granted; `None` if it is gone.
pub(super) async fn lifetime(servers: &Servers, id: i64) -> Result<Option<EtcdLease>, StoreError> {
    let response = servers
        .call(|mut client| async move { client.lease_time_to_live(id, None).await })
        .await?;
    servers.history.heard_of(response.header());
    Ok((response.ttl() >= 0).then(|| EtcdLease {
        id,
        ttl: seconds(response.granted_ttl()),
    }))
}

/// How long an etcd lease lasts if nobody extends it; zero if it is gone.
pub(super) async fn remaining(servers: &Servers, id: i64) -> Result<Duration, StoreError> {
    let response = servers
        .call(|mut client| async move { client.lease_time_to_live(id, None).await })
        .await?;
    Ok(seconds(response.ttl()))
}

/// Extends an etcd lease to its full duration. Whether it still exists.
pub(super) async fn keep_alive(servers: &Servers, lease: EtcdLease) -> Result<bool, StoreError> {
    let extended = servers
        .call(|mut client| async move {
            match client.lease_keep_alive(lease.id).await {
                // The call waits for the first answer; nothing more is wanted of the stream.
                Ok(_) => Ok(true),
                // The library's word for an answer with a duration of 0.
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await;
    match extended {
        Err(StoreError::Refused {
            code: code::NOT_FOUND,
            ..
        }) => Ok(false),
        extended => extended,
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(listing::to_unsigned(ttl.max(0)))
}

/// Says, once per acquisition, that another machine publishes something of this one's.
pub(super) fn warn_of_twin(entry: &Entry, claim: Claim) {
    let owner = entry
        .attrs
        .as_ref()
        .and_then(|attrs| attrs.owner.as_deref());
    let public_ip = entry
        .attrs
        .as_ref()
        .map(|attrs| attrs.public_address().to_string());
    let (subnet, owner) = (entry.key.to_string(), owner.unwrap_or("unknown"));
    let public_ip = public_ip.unwrap_or_default();
    match claim {
        Claim::SameAddress => warn!(
            subnet,
            owner,
            public_ip,
            "another machine holds a lease with this node's public IP; peers can reach only one of the two"
        ),
        Claim::SameMachine => warn!(
            subnet,
            owner,
            public_ip,
            "a lease at another public IP has this machine's ID: a cloned disk, or this machine's former address; leaving it alone"
        ),
        Claim::Ours | Claim::Other => {}
    }
}
