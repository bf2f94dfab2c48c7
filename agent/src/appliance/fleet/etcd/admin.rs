//! What administrators see and do: `selvage fleet`.

use super::{ATTEMPTS, Group, Status, by_version, check, json, lost_races};
use crate::appliance::fleet::FleetError;
use crate::appliance::fleet::records::{Config, Holder, MOST, foreign, is_id, of_machines};
use crate::cluster::lease::etcd::PlainKey;
use crate::settings::Etcd;

/// A group, as an administrator sees it.
#[derive(Debug)]
pub struct Admin {
    group: Group,
    name: String,
}

impl Admin {
    /// Checks the settings; connects to nothing yet.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub fn new(etcd: Etcd, group: &str) -> Result<Self, FleetError> {
        Ok(Self {
            group: Group::new(etcd, group)?,
            name: group.to_owned(),
        })
    }

    /// Everything about the group.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn status(&self) -> Result<Status, FleetError> {
        let group = &self.group;
        let (config, _) = group.config().await?;
        let (holders, _) = group.holders().await?;
        let nodes = group.keys.list(&group.nodes).await?;
        let failed = group.keys.list(&group.failed).await?;
        Ok(Status::new(
            self.name.clone(),
            config,
            holders,
            of_machines(&group.nodes, &nodes.keys),
            by_version(&group.failed, &failed),
        ))
    }

    /// Takes the lock away from the machine of this name or ID. Returns what it held.
    ///
    /// # Errors
    /// No machine, or more than one, has the name, or etcd does not answer.
    pub async fn unlock(&self, name: &str) -> Result<Holder, FleetError> {
        let group = &self.group;
        for _ in 0..ATTEMPTS {
            let (holders, _) = group.holders().await?;
            let by_id = holders.iter().find(|(holder, _)| holder.machine_id == name);
            let by_name = || holders.iter().filter(|(holder, _)| holder.node == name);
            let found: Vec<_> = match by_id {
                Some(found) => vec![found],
                None => by_name().collect(),
            };
            let (holder, seen) = match found[..] {
                [] => {
                    let names = holders
                        .iter()
                        .map(|(h, _)| format!("{} ({})", h.node, h.machine_id));
                    let names: Vec<_> = names.collect();
                    return Err(FleetError::NoHolder {
                        name: foreign(name),
                        holders: match names.is_empty() {
                            true => "nobody does".to_owned(),
                            false => format!("held by {}", names.join(", ")),
                        },
                    });
                }
                [found] => found,
                _ => {
                    let ids = found.iter().map(|(holder, _)| holder.machine_id.as_str());
                    return Err(FleetError::Ambiguous {
                        name: foreign(name),
                        ids: ids.collect::<Vec<_>>().join(", "),
                    });
                }
            };
            let key = format!("{}{}", group.holders, holder.machine_id);
            if group.keys.delete(&key, *seen).await? {
                return Ok(holder.clone());
            }
        }
        Err(lost_races())
    }

    /// Forgets where a version failed, so that it is started again. Returns on how many machines it had failed.
    ///
    /// # Errors
    /// The version is none, or etcd does not answer.
    pub async fn reset(&self, version: &str) -> Result<usize, FleetError> {
        check(version)?;
        let folder = format!("{}{version}/", self.group.failed);
        let mut count = 0;
        for _ in 0..ATTEMPTS {
            // Another key there counts for nothing, and its name may be no text by which it could be deleted.
            let is_machine = |key: &PlainKey| key.name.strip_prefix(&folder).is_some_and(is_id);
            let mut found = self.group.keys.list(&folder).await?.keys;
            found.retain(is_machine);
            if found.is_empty() {
                return Ok(count);
            }
            for key in found {
                if self.group.keys.delete(&key.name, key.modified).await? {
                    count += 1;
                }
            }
        }
        Err(lost_races())
    }

    /// Changes what is set. Returns what holds then.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn set(
        &self,
        holders: Option<u32>,
        breaker: Option<u32>,
    ) -> Result<Config, FleetError> {
        for _ in 0..ATTEMPTS {
            let (before, seen) = self.group.config().await?;
            let after = Config {
                holders: holders.unwrap_or(before.holders).min(MOST),
                breaker: breaker.unwrap_or(before.breaker).clamp(1, MOST),
            };
            let key = &self.group.config;
            if self.group.keys.put(key, seen, &json(&after), &[]).await? {
                return Ok(after);
            }
        }
        Err(lost_races())
    }
}
