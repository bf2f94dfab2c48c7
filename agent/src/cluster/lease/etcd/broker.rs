//! Leases that a server takes, extends and gives back for hosts which do not reach etcd themselves.
//!
//! Nothing is remembered between two requests: what holds is in etcd, and every write compares it. So a host may ask any
//! of several servers, and a server may be restarted at any time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::GetOptions;

use super::held::{Claim, EtcdLease, Held, Settled, claim, find, keep_alive, remaining};
use super::{EtcdStore, Store, acquire, config, listing};
use crate::cluster::lease::allocate::Avoid;
use crate::cluster::lease::{Lease, LeaseAttrs, Released, StoreError, SubnetKey};

/// Takes, extends and gives back leases for others.
#[derive(Clone, Debug)]
pub struct Broker {
    store: Arc<Store>,
}

/// A lease as it was just granted or extended.
#[derive(Clone, Debug)]
pub struct Granted {
    /// The lease.
    pub lease: Lease,
    /// How long it lasts from now; `None` for a reservation.
    pub ttl: Option<Duration>,
    /// The store's revision of its last change.
    pub modified: u64,
}

impl EtcdStore {
    /// Writes leases of others into the same network.
    pub fn broker(&self) -> Broker {
        Broker {
            store: Arc::clone(&self.store),
        }
    }
}

impl Broker {
    /// The text of the network config, which is well formed.
    pub async fn config(&self) -> Result<String, StoreError> {
        let (found, _) = config::read(&self.store).await?;
        config::parse(&self.store, found.as_ref())?;
        Ok(found.map(|config| config.text).unwrap_or_default())
    }

    /// Takes a lease as [`crate::cluster::lease::LeaseStore::acquire`] does, for the owner in `attrs`. `restarted`: the host had
    /// no lease yet since it started; `avoid`: what is on it.
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
            // Hosts behind a server are not asked, and may claim whatever they have read in the listing.
            may_ask: false,
            has_own_address: false,
            avoid,
        };
        let acquired = acquire::acquire(store, &config, node).await?;
        let created = listing::to_unsigned(acquired.created);
        if acquired.aged {
            return self.extend(acquired.held, created).await;
        }
        Ok(granted(&acquired.held, created))
    }

    /// Extends a lease to its full duration and publishes `attrs` with it, if it is that host's: its owner and one of its
    /// addresses, the present one or one of the `former` ones. `known` is what was published with it before somebody made
    /// it unreadable.
    ///
    /// # Errors
    /// [`StoreError::NoLease`] if there is no such lease, or it is somebody else's.
    pub async fn renew(
        &self,
        key: &SubnetKey,
        attrs: &LeaseAttrs,
        former: &[IpAddr],
        known: Option<&LeaseAttrs>,
    ) -> Result<Granted, StoreError> {
        let Some(entry) = find(&self.store, key).await? else {
            return Err(StoreError::NoLease {
                reason: "its key is gone, deleted or expired".to_owned(),
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
                        let machine = other.owner.as_deref().unwrap_or("unknown");
                        format!(
                            "it is that of {} (machine {machine})",
                            other.public_address()
                        )
                    }
                    None => "its value cannot be read, so that nobody knows whose it is".to_owned(),
                },
            });
        };
        let held = Held {
            key: *key,
            wanted: attrs.clone(),
            published,
            unsure: Vec::new(),
            modified: entry.modified,
            etcd_lease: None,
        };
        self.extend(held, listing::to_unsigned(entry.created)).await
    }

    /// Brings the key in order and extends its etcd lease.
    async fn extend(&self, mut held: Held, created: u64) -> Result<Granted, StoreError> {
        /// A lease that ends between the two steps is made anew by the next round.
        const ATTEMPTS: u32 = 3;
        for _ in 0..ATTEMPTS {
            match held.settle(&self.store).await? {
                Settled::Kept { .. } => {}
                Settled::Lost { reason } => return Err(StoreError::NoLease { reason }),
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

    /// Deletes a lease, if it is the host's that publishes `attrs`; a reservation stays.
    pub async fn release(
        &self,
        key: &SubnetKey,
        attrs: &LeaseAttrs,
    ) -> Result<Released, StoreError> {
        // What cannot be read is nobody's, and for a server of many hosts that is not reason enough.
        let found = find(&self.store, key).await?.and_then(|entry| entry.attrs);
        if claim(attrs, found.as_ref()) != Claim::Ours {
            return Ok(Released::Nothing);
        }
        let held = Held {
            key: *key,
            wanted: attrs.clone(),
            published: attrs.clone(),
            unsure: Vec::new(),
            modified: 0,
            etcd_lease: None,
        };
        held.release(&self.store).await
    }

    /// One lease and how long it lasts; `None` if there is none, or its value cannot be read.
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
    /// The reservations: subnets whose lease has no time limit.
    pub async fn reservations(&self) -> Result<Vec<Lease>, StoreError> {
        let store = &self.store;
        let listing = listing::list(&store.servers, &store.keys, &store.reports).await?;
        let entries = listing.entries.into_iter();
        Ok(entries
            .filter(|entry| entry.etcd_lease.is_none())
            .filter_map(listing::Entry::into_lease)
            .collect())
    }

    /// The names of the networks below the prefix: those that have a network config, in order. At most `most` are looked
    /// for.
    pub async fn networks(&self, most: usize) -> Result<Vec<String>, StoreError> {
        let servers = &self.store.servers;
        let config = &self.store.keys.config;
        let folder = config.strip_suffix("config").unwrap_or(config);
        let end = after(folder);
        let mut start = folder.as_bytes().to_vec();
        let mut names = Vec::new();
        // From each key to the first one that is not below the same element: as many requests as there are elements.
        for _ in 0..most {
            let options = GetOptions::new()
                .with_range(end.as_str())
                .with_limit(1)
                .with_keys_only();
            let response = listing::get(servers, &start, options).await?;
            let Some(kv) = response.kvs().first() else {
                break;
            };
            let key = String::from_utf8_lossy(kv.key()).into_owned();
            let Some((name, _)) = key
                .strip_prefix(folder)
                .and_then(|rest| rest.split_once('/'))
            else {
                start = [kv.key(), b"\0"].concat();
                continue;
            };
            let below = format!("{folder}{name}/");
            start = after(&below).into_bytes();
            let config = format!("{below}config");
            let options = GetOptions::new().with_count_only();
            let found = listing::get(servers, config.as_bytes(), options).await?;
            if found.count() > 0 {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// The first key that does not begin with `folder`, which ends with a slash: the byte after it is '0'.
fn after(folder: &str) -> String {
    let cut = folder.strip_suffix('/').unwrap_or(folder);
    format!("{cut}0")
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
