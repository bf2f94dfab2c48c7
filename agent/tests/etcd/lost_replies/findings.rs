//! What is in etcd, looked at without a proxy, and what should be.

use std::collections::BTreeMap;

use etcd_client::{
    Client, EventType, GetOptions, LeaseTimeToLiveOptions, LeaseTimeToLiveResponse, WatchOptions,
};

use super::Run;
use crate::proxy::Proxy;
use crate::*;

/// How long what is wrong may stay so after the last reply that was lost.
const SETTLING: Duration = Duration::from_secs(20);

/// A key that should be there.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) key: SubnetKey,
    pub(super) attrs: LeaseAttrs,
    /// Without an etcd lease.
    pub(super) reserved: bool,
}

/// A node was told that it holds a lease, from one revision of the store to another.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) key: SubnetKey,
    pub(super) owner: String,
    pub(super) from: i64,
    pub(super) until: Option<i64>,
}

/// One lease key as it is stored.
struct Found {
    value: Vec<u8>,
    etcd_lease: i64,
}

/// The keys of one run.
pub(super) struct Etcd {
    client: Client,
    run: Run,
}

impl Etcd {
    pub(super) async fn connect(run: &Run) -> Self {
        let client = Client::connect([format!("http://{}", run.etcd)], None).await;
        Self {
            client: client.unwrap(),
            run: run.clone(),
        }
    }

    fn name(&self, key: &SubnetKey) -> String {
        format!("{}/subnets/{}", self.run.prefix, key.name())
    }

    /// Writes the network config. The store's revision then.
    pub(super) async fn write_config(&mut self, text: &str) -> i64 {
        let key = format!("{}/config", self.run.prefix);
        let answer = self.client.put(key, text, None).await.unwrap();
        answer.header().unwrap().revision()
    }

    pub(super) async fn has_config(&mut self, text: &str) -> Result<(), String> {
        let key = format!("{}/config", self.run.prefix);
        let answer = self.client.get(key, None).await.unwrap();
        let found = answer.kvs().first().map(|kv| kv.value_str().unwrap());
        match found == Some(text) {
            true => Ok(()),
            false => Err(format!("the network config is {found:?}, not {text}")),
        }
    }

    pub(super) async fn revision(&mut self) -> i64 {
        revision(&mut self.client).await
    }

    /// Whether a node holds what it was just told that it holds; at which revision.
    pub(super) async fn holds(&mut self, key: &SubnetKey, owner: &str) -> Result<i64, String> {
        let answer = self.client.get(self.name(key), None).await.unwrap();
        let value = answer.kvs().first().map(|kv| kv.value().to_vec());
        match owner_of(value.as_deref().unwrap_or_default()).as_deref() == Some(owner) {
            true => Ok(answer.header().unwrap().revision()),
            false => Err(format!(
                "told that it holds {key}, but there is {}",
                text(value)
            )),
        }
    }

    /// Waits until each etcd lease that a node's former life granted has a key.
    pub(super) async fn uses_all_of(&mut self, proxy: &Proxy) -> Result<(), String> {
        let deadline = Instant::now() + SETTLING;
        loop {
            let unused = self.unused(&proxy.granted()).await;
            if unused.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(unused.join("; "));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until etcd holds what it should, and nothing else.
    pub(super) async fn settles(&mut self, expected: &[Expected]) -> Result<(), String> {
        let deadline = Instant::now() + SETTLING;
        loop {
            let wrong = self.wrong(expected).await;
            if wrong.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(wrong.join("; "));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Everything that is not as it should be.
    async fn wrong(&mut self, expected: &[Expected]) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut there = self.keys().await;
        for Expected {
            key,
            attrs,
            reserved,
        } in expected
        {
            let name = self.name(key);
            let Some(found) = there.remove(&name) else {
                wrong.push(format!("{key} of {:?} is gone", attrs.owner));
                continue;
            };
            if LeaseAttrs::parse(&found.value).ok().as_ref() != Some(attrs) {
                let value = text(Some(found.value.clone()));
                wrong.push(format!("{key} has {value}, not {attrs:?}"));
            }
            match (reserved, found.etcd_lease) {
                (true, 0) => {}
                (true, id) => wrong.push(format!("the reservation {key} hangs on {id:x}")),
                (false, 0) => wrong.push(format!("the lease {key} never ends")),
                (false, id) => {
                    let lease = self.lease(id).await;
                    let alone = lease.keys() == [name.as_bytes()];
                    let ttl = i64::try_from(self.run.ttl.as_secs()).unwrap();
                    if lease.ttl() <= 0 || !alone || lease.granted_ttl() != ttl {
                        wrong.push(format!("{key} hangs on {lease:?}"));
                    }
                }
            }
        }
        wrong.extend(
            there
                .into_iter()
                .map(|(name, found)| format!("{name} is too much: {}", text(Some(found.value)))),
        );
        let mut granted = Vec::new();
        for proxy in self.run.all_proxies() {
            granted.extend(proxy.granted());
        }
        wrong.extend(self.unused(&granted).await);
        wrong
    }

    async fn keys(&mut self) -> BTreeMap<String, Found> {
        let prefix = format!("{}/subnets", self.run.prefix);
        let options = GetOptions::new().with_prefix();
        let answer = self.client.get(prefix, Some(options)).await.unwrap();
        let found = answer.kvs().iter().map(|kv| {
            let found = Found {
                value: kv.value().to_vec(),
                etcd_lease: kv.lease(),
            };
            (kv.key_str().unwrap().to_owned(), found)
        });
        found.collect()
    }

    async fn lease(&mut self, id: i64) -> LeaseTimeToLiveResponse {
        let options = LeaseTimeToLiveOptions::new().with_keys();
        let answer = self.client.lease_time_to_live(id, Some(options)).await;
        answer.unwrap()
    }

    /// Those of some etcd leases that last still, and have no key.
    async fn unused(&mut self, granted: &[i64]) -> Vec<String> {
        let mut unused = Vec::new();
        for id in granted {
            let lease = self.lease(*id).await;
            if lease.ttl() > 0 && lease.keys().is_empty() {
                unused.push(format!("the etcd lease {id:x} has no key"));
            }
        }
        unused
    }

    /// Whether nobody lost a key, for however short a time, that he was told he holds.
    pub(super) async fn kept_all_along(
        &mut self,
        begin: i64,
        claims: &[Claim],
    ) -> Result<(), String> {
        let end = format!("{}/end", self.run.prefix);
        self.client.put(end.as_str(), "", None).await.unwrap();
        let options = WatchOptions::new().with_prefix().with_start_revision(begin);
        let folder = format!("{}/", self.run.prefix);
        let mut history = self.client.watch(folder, Some(options)).await.unwrap();
        loop {
            let answer = history.message().await.unwrap().unwrap();
            for event in answer.events() {
                let kv = event.kv().unwrap();
                if kv.key() == end.as_bytes() {
                    return Ok(());
                }
                let at = kv.mod_revision();
                let held = claims.iter().find(|claim| {
                    self.name(&claim.key).as_bytes() == kv.key()
                        && claim.from < at
                        && claim.until.is_none_or(|until| at <= until)
                });
                let Some(Claim { key, owner, .. }) = held else {
                    continue;
                };
                if event.event_type() == EventType::Delete {
                    return Err(format!("{key} was deleted while {owner} held it"));
                }
                if owner_of(kv.value()).as_ref() != Some(owner) {
                    let value = text(Some(kv.value().to_vec()));
                    return Err(format!("{key} became {value} while {owner} held it"));
                }
            }
        }
    }

    /// Removes everything, so that what is left over in the end is nobody's of these.
    pub(super) async fn clear(&mut self) {
        for proxy in self.run.all_proxies() {
            for id in proxy.granted() {
                // Most are gone.
                let _ = self.client.lease_revoke(id).await;
            }
        }
    }
}

fn owner_of(value: &[u8]) -> Option<String> {
    LeaseAttrs::parse(value).ok()?.owner
}

fn text(value: Option<Vec<u8>>) -> String {
    value.map_or("nothing".to_owned(), |value| {
        String::from_utf8_lossy(&value).into_owned()
    })
}
