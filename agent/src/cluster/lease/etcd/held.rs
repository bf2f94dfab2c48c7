//! The lease that this node holds: its state in etcd, the wanted state, and how to reconcile them.
//!
//! Every write compares the key's modification revision with the one last seen, so a key that now belongs to another
//! node is never overwritten.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::challenge::Answer;
use super::listing::{Entry, get};
use super::rpc::{Compare, Must, Range, code};
use super::servers::Servers;
use super::write::Write;
use super::{Store, listing};
use crate::base::retry::{Backoff, random_seed};
use crate::cluster::lease::{LeaseAttrs, Released, StoreError, SubnetKey};

/// An etcd lease: makes its keys expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EtcdLease {
    pub(super) id: i64,
    /// The TTL it was granted with.
    pub(super) ttl: Duration,
}

/// The lease that this node holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) key: SubnetKey,
    /// What should be published.
    pub(super) wanted: LeaseAttrs,
    /// What was published last, as far as known.
    pub(super) published: LeaseAttrs,
    /// What was sent without a reply: any of it may be in etcd already, or still get there.
    pub(super) unconfirmed: Vec<LeaseAttrs>,
    /// Modification revision of the key, as far as known.
    pub(super) modified: i64,
    /// `None` for a reservation: it never expires, and stays a reservation.
    pub(super) etcd_lease: Option<EtcdLease>,
}

/// Whose a lease is, from the surest claim down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// This node's: same public IP, and the same owner ID or none. A real flannel on this node and an administrator's
    /// reservation have none.
    Ours,
    /// Same owner ID, other public IP: this node before it got its present address, or a clone.
    SameOwner,
    /// Same public IP, other owner ID: this host before it was reinstalled. Behind a NAT, also any other host.
    SameAddress,
    /// Another node's, or unreadable.
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
        owner if *owner == own.owner => Claim::SameOwner,
        Some(_) if same_address => Claim::SameAddress,
        Some(_) => Claim::Other,
    }
}

/// What [`Held::settle`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// The key is ours and as wanted.
    Kept {
        /// Whether the key had to be rewritten.
        rewritten: bool,
    },
    /// The key was deleted or has expired.
    Gone,
    /// The key belongs to another node.
    TakenOver {
        /// For the log.
        reason: String,
    },
}

/// Why a lease is lost whose key is [gone](Settled::Gone).
pub(super) const GONE: &str = "its key was deleted or has expired";

/// Pauses between attempts to give a lease back; short, since the service manager waits for the agent to stop.
const RELEASE_PAUSES: Backoff =
    Backoff::constant(Duration::from_millis(50), Duration::from_secs(1), 0.3);

/// How often to retry a write while another writer keeps changing the key.
const ATTEMPTS: u32 = 5;

impl Held {
    /// A lease without an etcd lease.
    pub(super) fn new(
        key: SubnetKey,
        wanted: LeaseAttrs,
        published: LeaseAttrs,
        modified: i64,
    ) -> Self {
        Self {
            key,
            wanted,
            published,
            unconfirmed: Vec::new(),
            modified,
            etcd_lease: None,
        }
    }

    /// Reads the key and, if it is still ours, corrects it. An unreadable value has no owner, so it is replaced.
    ///
    /// The etcd lease, or the lack of one, is adopted as found, so that a key that an administrator turned into a
    /// reservation stays one.
    pub(super) async fn settle(&mut self, store: &Store) -> Result<Settled, StoreError> {
        for _ in 0..ATTEMPTS {
            let Some(found) = find(store, &self.key).await? else {
                return Ok(Settled::Gone);
            };
            if let Some(taken) = found.attrs.as_ref().filter(|attrs| !self.is_ours(attrs)) {
                let owner = taken.owner.as_deref().unwrap_or("unknown");
                return Ok(Settled::TakenOver {
                    reason: format!(
                        "it was taken over by {} (owner ID {owner})",
                        taken.public_address()
                    ),
                });
            }
            if self.modified != found.modified {
                // Any write still in flight compares with an older revision and will fail.
                self.unconfirmed.clear();
            }
            self.modified = found.modified;
            if self.etcd_lease.map(|lease| lease.id) != found.etcd_lease {
                self.spare(store);
            }
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
            let mut grant = store.spares.grant();
            let lease = match orphan {
                true => Some(grant.lease(&store.servers).await?),
                false => self.etcd_lease,
            };
            if self.put(store, lease).await? {
                grant.attached();
                return Ok(Settled::Kept { rewritten: true });
            }
        }
        Err(StoreError::LostRaces { attempts: ATTEMPTS })
    }

    /// Writes the wanted attributes if the key is unchanged since it was last seen. Returns whether it was.
    pub(super) async fn put(
        &mut self,
        store: &Store,
        etcd_lease: Option<EtcdLease>,
    ) -> Result<bool, StoreError> {
        let key = store.key(&self.key);
        let compare = Compare::key(key.as_str(), Must::BeUnchangedSince(self.modified));
        if !self.unconfirmed.contains(&self.wanted) {
            self.unconfirmed.push(self.wanted.clone());
        }
        let value = self.wanted.to_json()?;
        let write = Write::put(&key, self.modified, vec![compare], value, etcd_lease);
        let Some(revision) = write.commit(&store.servers).await? else {
            return Ok(false);
        };
        self.written(revision, etcd_lease);
        Ok(true)
    }

    /// The wanted attributes were written at this revision.
    pub(super) fn written(&mut self, revision: i64, etcd_lease: Option<EtcdLease>) {
        self.modified = revision;
        self.published = self.wanted.clone();
        self.unconfirmed.clear();
        self.etcd_lease = etcd_lease;
    }

    /// Deletes the key and its etcd lease, if the key is still ours and not a reservation. Retries after lost replies.
    pub(super) async fn release(self, store: &Store) -> Result<Released, StoreError> {
        let mut pauses = RELEASE_PAUSES.seeded(random_seed());
        let mut failure = StoreError::LostRaces { attempts: ATTEMPTS };
        for _ in 0..ATTEMPTS {
            match self.try_release(store).await {
                Ok(Some(released)) => {
                    store.spares.revoke(&store.servers).await;
                    return Ok(released);
                }
                Ok(None) => {}
                Err(error @ StoreError::Unreachable { .. }) => {
                    failure = error;
                    sleep(pauses.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure)
    }

    /// `None` if another writer changed the key meanwhile.
    async fn try_release(&self, store: &Store) -> Result<Option<Released>, StoreError> {
        let found = find(store, &self.key).await?;
        let ours = |found: &Entry| found.attrs.as_ref().is_none_or(|attrs| self.is_ours(attrs));
        let Some(found) = found.filter(ours) else {
            // Perhaps deleted by our own request whose reply was lost.
            self.spare(store);
            return Ok(Some(Released::Nothing));
        };
        let Some(id) = found.etcd_lease else {
            self.spare(store);
            return Ok(Some(Released::Reservation(self.key)));
        };
        let deleted = delete(store, &found.key, found.modified).await?;
        store.spares.add(id);
        Ok(deleted.then_some(Released::Lease(self.key)))
    }

    /// This node no longer needs the etcd lease.
    pub(super) fn spare(&self, store: &Store) {
        if let Some(lease) = self.etcd_lease {
            store.spares.add(lease.id);
        }
    }

    /// Whether the key is still ours. Attributes that this node itself has just replaced count as its own.
    fn is_ours(&self, found: &LeaseAttrs) -> bool {
        claim(&self.wanted, Some(found)) == Claim::Ours
            || claim(&self.published, Some(found)) == Claim::Ours
            || self.unconfirmed.contains(found)
    }
}

/// Reads one lease key.
pub(super) async fn find(store: &Store, key: &SubnetKey) -> Result<Option<Entry>, StoreError> {
    let found = get(&store.servers, Range::key(store.key(key))).await?;
    let kv = found.kvs.first();
    Ok(kv.and_then(|kv| store.reports.entry(&store.keys, kv)))
}

/// Deletes a lease if it is unchanged since it was last seen.
pub(super) async fn delete(
    store: &Store,
    key: &SubnetKey,
    modified: i64,
) -> Result<bool, StoreError> {
    let key = store.key(key);
    let unchanged = Compare::key(key.as_str(), Must::BeUnchangedSince(modified));
    let write = Write::delete(&key, modified, vec![unchanged]);
    Ok(write.commit(&store.servers).await?.is_some())
}

/// The TTL an etcd lease was granted with; `None` if it is gone.
pub(super) async fn lifetime(servers: &Servers, id: i64) -> Result<Option<EtcdLease>, StoreError> {
    let found = servers
        .call(|client| client.time_to_live(id, false))
        .await?;
    servers.history.check_cluster(found.header);
    Ok((found.ttl >= 0).then(|| EtcdLease {
        id,
        ttl: seconds(found.granted),
    }))
}

/// The remaining time of an etcd lease; zero if it is gone.
pub(super) async fn remaining(servers: &Servers, id: i64) -> Result<Duration, StoreError> {
    let found = servers
        .call(|client| client.time_to_live(id, false))
        .await?;
    Ok(seconds(found.ttl))
}

/// Renews an etcd lease to its full TTL. Returns whether it still exists.
pub(super) async fn keep_alive(servers: &Servers, lease: EtcdLease) -> Result<bool, StoreError> {
    let renewed = servers.call(|client| client.keep_alive(lease.id)).await;
    match renewed {
        Err(StoreError::Refused {
            code: code::NOT_FOUND,
            ..
        }) => Ok(false),
        renewed => renewed,
    }
}

pub(super) fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(listing::to_unsigned(ttl.max(0)))
}

/// Warns, once per acquisition, that another node publishes this one's owner ID or address.
pub(super) fn warn_of_conflict(entry: &Entry, claim: Claim, answers: &BTreeMap<String, Answer>) {
    let Some(attrs) = &entry.attrs else {
        return;
    };
    let owner = attrs.owner.as_deref().unwrap_or("unknown");
    let (subnet, public_ip) = (entry.key.to_string(), attrs.public_address().to_string());
    let answer = match answers.get(owner) {
        None => "was not asked whether it is alive".to_owned(),
        Some(Answer::Alive(from)) if !from.is_empty() => format!("answers from {from}"),
        Some(Answer::Alive(_)) => "answers".to_owned(),
        Some(Answer::Silent) => "does not answer".to_owned(),
        Some(Answer::Unknown(why)) => format!("cannot be asked whether it is alive ({why})"),
    };
    match claim {
        Claim::SameAddress => warn!(
            subnet,
            owner,
            public_ip,
            "another node has a lease with this node's public IP and {answer}; this node takes a subnet of its own. Peers reach only one of the two at that address: change the address of one of them"
        ),
        Claim::SameOwner => warn!(
            subnet,
            owner,
            public_ip,
            "the node at {public_ip} has this node's owner ID and {answer}: one of the two is a clone. This node takes a subnet of its own. To end this, give the clone a machine ID of its own (remove /etc/machine-id and reboot it) or set its node-id"
        ),
        Claim::Ours | Claim::Other => {}
    }
}
