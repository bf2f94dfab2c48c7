//! Leases that a lease server takes, renews and gives back for hosts that cannot reach etcd themselves.
//!
//! The server keeps no state between two requests: the truth is in etcd, and every write compares it. So a host may use
//! any of several servers, and a server may restart at any time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::held::{Claim, EtcdLease, GONE, Held, Settled, claim, find, keep_alive, remaining};
use super::rpc::{Range, after};
use super::{EtcdStore, Store, acquire, config, listing};
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::{Lease, LeaseAttrs, Released, StoreError, SubnetKey};

/// Takes, renews and gives back leases for other hosts.
#[derive(Clone, Debug)]
pub struct Broker {
    store: Arc<Store>,
}

/// A lease as just granted or renewed.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The lease.
    pub lease: Lease,
    /// Remaining time from now; `None` for a reservation.
    pub ttl: Option<Duration>,
    /// The store's revision of its last change.
    pub modified: u64,
}

impl EtcdStore {
    /// A handle that writes other hosts' leases into the same network.
    pub fn broker(&self) -> Broker {
        Broker {
            store: Arc::clone(&self.store),
        }
    }
}

impl Broker {
    /// The text of the network config, checked to be well formed.
    pub async fn config(&self) -> Result<String, StoreError> {
        let (found, _) = config::read(&self.store).await?;
        config::parse(&self.store, found.as_ref())?;
        Ok(found.map(|config| config.text).unwrap_or_default())
    }

    /// Takes a lease like [`crate::cluster::lease::LeaseStore::acquire`], for the owner in `attrs`. `restarted`: the
    /// host has had no lease since it started; `avoid`: what its subnet must not cover.
    pub async fn acquire(
        &self,
        attrs: &LeaseAttrs,
        previous: Option<SubnetKey>,
        restarted: bool,
        avoid: &Avoid,
    ) -> Result<Granted, StoreError> {
        let store = &self.store;
        let (found, _) = config::read(store).await?;
        let config = config::parse(store, found.as_ref())?;
        let node = acquire::Node {
            attrs,
            previous,
            restarted,
            // Hosts behind a server do not answer challenges, and may claim anything that they have read in the
            // listing.
            may_ask: false,
            has_own_address: false,
            avoid,
        };
        let acquired = acquire::acquire(store, &config, node).await?;
        let created = listing::to_unsigned(acquired.created);
        if acquired.aged {
            return self.check_and_renew(acquired.held, created).await;
        }
        Ok(granted(&acquired.held, created))
    }

    /// Renews a lease to its full TTL and publishes `attrs` with it, if it belongs to that host: same owner ID and
    /// either the present address or one of the `former` ones. `known` is what was last published, for a value that has
    /// since become unreadable.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if there is no such lease, or if it belongs to another node.
    pub async fn renew(
        &self,
        key: &SubnetKey,
        attrs: &LeaseAttrs,
        former: &[IpAddr],
        known: Option<&LeaseAttrs>,
    ) -> Result<Granted, StoreError> {
        let Some(entry) = find(&self.store, key).await? else {
            return Err(StoreError::NoLease {
                reason: GONE.to_owned(),
            });
        };
        let found = entry.attrs.as_ref().or(known);
        let former = former.iter().map(|address| at(attrs, *address));
        let published = std::iter::once(attrs.clone())
            .chain(former)
            .find(|candidate| claim(candidate, found) == Claim::Ours);
        let Some(published) = published else {
            return Err(StoreError::NoLease {
                reason: match found {
                    Some(other) => {
                        let owner = other.owner.as_deref().unwrap_or("unknown");
                        format!(
                            "it belongs to {} (owner ID {owner})",
                            other.public_address()
                        )
                    }
                    None => "its value cannot be parsed, so its owner is unknown".to_owned(),
                },
            });
        };
        let held = Held::new(*key, attrs.clone(), published, entry.modified);
        self.check_and_renew(held, listing::to_unsigned(entry.created))
            .await
    }

    /// Corrects the key and renews its etcd lease. A key that is gone is not written again: its host may just have given
    /// it back, through another server.
    pub(super) async fn check_and_renew(
        &self,
        mut held: Held,
        created: u64,
    ) -> Result<Granted, StoreError> {
        /// A lease that expires between the two steps is granted again in the next round.
        const ATTEMPTS: u32 = 3;
        for _ in 0..ATTEMPTS {
            match held.settle(&self.store).await? {
                Settled::Kept { .. } => {}
                Settled::Gone => {
                    return Err(StoreError::NoLease {
                        reason: GONE.to_owned(),
                    });
                }
                Settled::TakenOver { reason } => return Err(StoreError::NoLease { reason }),
            }
            let Some(lease) = held.etcd_lease else {
                return Ok(granted(&held, created));
            };
            if keep_alive(&self.store.servers, lease).await? {
                return Ok(granted(&held, created));
            }
        }
        Err(StoreError::LostRaces { attempts: ATTEMPTS })
    }

    /// Deletes a lease if it belongs to the host that publishes `attrs`; a reservation stays.
    pub async fn release(
        &self,
        key: &SubnetKey,
        attrs: &LeaseAttrs,
    ) -> Result<Released, StoreError> {
        // An unreadable value has no known owner. One host alone may replace it, but a server of many hosts may not.
        let found = find(&self.store, key).await?.and_then(|entry| entry.attrs);
        if claim(attrs, found.as_ref()) != Claim::Ours {
            return Ok(Released::Nothing);
        }
        let held = Held::new(*key, attrs.clone(), attrs.clone(), 0);
        held.release(&self.store).await
    }

    /// One lease and its remaining time; `None` if it does not exist or its value cannot be parsed.
    pub async fn find(&self, key: &SubnetKey) -> Result<Option<Granted>, StoreError> {
        let Some(entry) = find(&self.store, key).await? else {
            return Ok(None);
        };
        let ttl = match entry.etcd_lease {
            None => None,
            Some(id) => Some(remaining(&self.store.servers, id).await?),
        };
        let modified = listing::to_unsigned(entry.modified);
        Ok(entry.into_lease().map(|lease| Granted {
            lease,
            ttl,
            modified,
        }))
    }
}

impl Broker {
    /// The reservations: leases without a TTL.
    pub async fn reservations(&self) -> Result<Vec<Lease>, StoreError> {
        let store = &self.store;
        let listing = listing::list(store).await?;
        let entries = listing.entries.into_iter();
        Ok(entries
            .filter(|entry| entry.etcd_lease.is_none())
            .filter_map(listing::Entry::into_lease)
            .collect())
    }

    /// The names of the networks below the key prefix, that is, those with a network config, in order; at most `most`.
    pub async fn networks(&self, most: usize) -> Result<Vec<String>, StoreError> {
        let servers = &self.store.servers;
        let config = &self.store.keys.config;
        let folder = config.strip_suffix("config").unwrap_or(config);
        let end = after(folder);
        let mut start = folder.as_bytes().to_vec();
        let mut names = Vec::new();
        // Skip from each key to the first one outside its path element: one request per element.
        for _ in 0..most {
            let range = Range {
                limit: 1,
                keys_only: true,
                ..Range::between(start, end.as_str())
            };
            let found = listing::get(servers, range).await?;
            let Some(kv) = found.kvs.first() else {
                break;
            };
            let key = String::from_utf8_lossy(&kv.key).into_owned();
            let Some((name, _)) = key
                .strip_prefix(folder)
                .and_then(|rest| rest.split_once('/'))
            else {
                start = [&kv.key[..], b"\0"].concat();
                continue;
            };
            let below = format!("{folder}{name}/");
            start = after(&below).into_bytes();
            let config = format!("{below}config");
            let range = Range {
                count_only: true,
                ..Range::key(config)
            };
            if listing::get(servers, range).await?.count > 0 {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn granted(held: &Held, created: u64) -> Granted {
    Granted {
        lease: Lease {
            key: held.key,
            attrs: held.wanted.clone(),
            created,
        },
        ttl: held.etcd_lease.map(|EtcdLease { ttl, .. }| ttl),
        modified: listing::to_unsigned(held.modified),
    }
}

/// The same host at another address.
fn at(attrs: &LeaseAttrs, address: IpAddr) -> LeaseAttrs {
    let (v4, v6) = match address {
        IpAddr::V4(v4) => (Some(v4), None),
        IpAddr::V6(v6) => (None, Some(v6)),
    };
    LeaseAttrs {
        public_ip: v4,
        public_ipv6: v6,
        ..attrs.clone()
    }
}
