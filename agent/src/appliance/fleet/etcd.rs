//! The fleet in etcd: the lock, the breaker, and what each machine says of itself. [`super::records`] has the keys.
//!
//! The lock is one key for each holder, so that one bad value spoils one holder and not the lock. It is taken by a
//! transaction that compares:
//!
//! * that the machine's own key does not exist,
//! * that no holder was added since they were counted,
//! * that the config, with their number, is unchanged,
//! * that the machine's own record under `nodes/` is unchanged.
//!
//! The last is a fence. Giving the lock back writes that record first. So a request to take the lock whose reply was lost,
//! and which is still on its way, fails when it gets there, and leaves no holder behind that does not know of it.

use std::collections::BTreeMap;

use serde::Serialize;
use tracing::warn;

use crate::appliance::fleet::records::{
    Config, Failure, Holder, Node, NodeState, OfMachine, foreign, is_id, is_version, of_machines,
};
use crate::appliance::fleet::{FailedVersion, FleetError, Leave, Member};
use crate::cluster::lease::StoreError;
use crate::cluster::lease::etcd::{Condition, Folder, PlainKeys};
use crate::settings::Etcd;
use crate::telemetry::status::now;

mod admin;

pub use admin::Admin;

/// What all keys of all fleets begin with.
const PREFIX: &str = "/selvage/fleet/";

/// How often a write is tried again while others change what it compares.
const ATTEMPTS: u32 = 16;

/// The keys of one group.
#[derive(Debug)]
struct Group {
    keys: PlainKeys,
    config: String,
    holders: String,
    failed: String,
    nodes: String,
}

impl Group {
    fn new(etcd: Etcd, group: &str) -> Result<Self, FleetError> {
        let below = |name: &str| format!("{PREFIX}{group}/{name}");
        Ok(Self {
            keys: PlainKeys::new(etcd)?,
            config: below("config"),
            holders: below("holders/"),
            failed: below("failed/"),
            nodes: below("nodes/"),
        })
    }

    /// The config, and the revision of its last change.
    async fn config(&self) -> Result<(Config, i64), StoreError> {
        let stored = self.keys.read(&self.config).await?;
        let modified = stored.as_ref().map_or(0, |stored| stored.modified);
        Ok((Config::read(stored.as_ref()), modified))
    }

    /// All machines that hold the lock, and the revision at which they did.
    async fn holders(&self) -> Result<(Vec<(Holder, i64)>, i64), StoreError> {
        let Folder { keys, revision } = self.keys.list(&self.holders).await?;
        Ok((of_machines(&self.holders, &keys), revision))
    }

    /// The machines on which a version failed.
    async fn failures(&self, version: &str) -> Result<Vec<(Failure, i64)>, StoreError> {
        let folder = format!("{}{version}/", self.failed);
        let found = self.keys.list(&folder).await?;
        Ok(of_machines(&folder, &found.keys))
    }
}

/// What stands in the way of a version.
fn stopped(version: &str, failures: &[(Failure, i64)], config: Config) -> Option<String> {
    let count = u32::try_from(failures.len()).unwrap_or(u32::MAX);
    (count >= config.breaker).then(|| {
        let nodes: Vec<&str> = failures.iter().map(|(failure, _)| failure.node.as_str()).collect();
        let first = failures.first().map_or("", |(failure, _)| failure.reason.as_str());
        format!(
            "it failed on {} (the first: {first}); selvage fleet reset {version} lets it start again",
            listed(&nodes)
        )
    })
}

/// Some names, and how many more.
fn listed(names: &[&str]) -> String {
    const MOST: usize = 5;
    let shown = names
        .get(..MOST.min(names.len()))
        .unwrap_or_default()
        .join(", ");
    match names.len().saturating_sub(MOST) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// One machine of a fleet whose lock is in etcd.
#[derive(Debug)]
pub struct EtcdFleet {
    group: Group,
    member: Member,
}

impl EtcdFleet {
    /// Checks the settings; connects to nothing yet.
    ///
    /// # Errors
    /// The settings cannot be used, or the machine's ID cannot be part of a key.
    pub fn new(etcd: Etcd, group: &str, member: Member) -> Result<Self, FleetError> {
        if !is_id(&member.id) {
            return Err(FleetError::BadId(member.id));
        }
        Ok(Self {
            group: Group::new(etcd, group)?,
            member,
        })
    }

    /// Whether the breaker lets a version start.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn may_start(&self, version: &str) -> Result<Leave, FleetError> {
        check(version)?;
        let (config, _) = self.group.config().await?;
        let failures = self.group.failures(version).await?;
        Ok(match stopped(version, &failures, config) {
            Some(why) => Leave::Never { why },
            None => Leave::Now,
        })
    }

    /// Says that this machine runs a new version that it is trying.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn is_trying(&mut self) -> Result<(), FleetError> {
        let version = self.member.version.clone();
        match self.tell(&version, NodeState::Trying).await {
            // It was installed by hand, without the lock.
            Err(FleetError::Lost) => self.write_record(NodeState::Trying).await,
            told => told,
        }
    }

    /// Gives the lock back if this machine holds it, and says that it is steady, unless it has said so.
    ///
    /// For a process that has asked for nothing yet: a request of its own that may still be under way needs
    /// [`Self::release`].
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn is_steady(&mut self) -> Result<(), FleetError> {
        let record = self.group.keys.read(&self.own_record()).await?;
        let told = of_machines::<Node>(&self.group.nodes, record.as_slice());
        let is_told = told.first().is_some_and(|(told, _)| {
            *told
                == Node {
                    at: told.at,
                    ..self.node(NodeState::Steady)
                }
        });
        if is_told && self.held().await?.is_none() {
            return Ok(());
        }
        self.release().await
    }

    /// As [`Self::is_steady`] for a machine with an update that it does not run. Who has gone down for it keeps the lock: it
    /// has fallen back, and whether that is this version's fault is found out soon.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn is_pending(&mut self) -> Result<(), FleetError> {
        let held = self.held().await?.map(|(holder, _)| holder.state);
        match held {
            Some(NodeState::Rebooting | NodeState::Trying) => Ok(()),
            _ => self.is_steady().await,
        }
    }

    /// Says that a version failed here.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn report_failure(&self, failure: FailedVersion<'_>) -> Result<(), FleetError> {
        check(failure.version)?;
        let key = format!(
            "{}{}/{}",
            self.group.failed, failure.version, self.member.id
        );
        let value = json(&Failure {
            node: self.member.node.clone(),
            machine_id: self.member.id.clone(),
            reason: failure.reason.chars().take(500).collect(),
            at: failure.at,
        });
        for _ in 0..ATTEMPTS {
            let seen = self.group.keys.read(&key).await?;
            if seen.as_ref().is_some_and(|seen| seen.value == value) {
                return Ok(());
            }
            let seen = seen.map_or(0, |seen| seen.modified);
            if self.group.keys.put(&key, seen, &value, &[]).await? {
                return Ok(());
            }
        }
        Err(lost_races())
    }

    fn own_holder(&self) -> String {
        format!("{}{}", self.group.holders, self.member.id)
    }

    fn own_record(&self) -> String {
        format!("{}{}", self.group.nodes, self.member.id)
    }

    fn node(&self, state: NodeState) -> Node {
        Node {
            node: self.member.node.clone(),
            machine_id: self.member.id.clone(),
            version: self.member.version.clone(),
            slot: self.member.slot.clone(),
            state,
            at: now(),
        }
    }

    /// Writes what this machine is doing, always anew: see the fence above.
    async fn write_record(&self, state: NodeState) -> Result<(), FleetError> {
        let key = self.own_record();
        let value = json(&self.node(state));
        for _ in 0..ATTEMPTS {
            let seen = self.group.keys.read(&key).await?;
            let seen = seen.map_or(0, |seen| seen.modified);
            if self.group.keys.put(&key, seen, &value, &[]).await? {
                return Ok(());
            }
        }
        Err(lost_races())
    }

    /// The own holder, if there is one.
    async fn held(&self) -> Result<Option<(Holder, i64)>, StoreError> {
        let found = self.group.keys.read(&self.own_holder()).await?;
        let found = of_machines(&self.group.holders, found.as_slice());
        Ok(found.into_iter().next())
    }

    fn holder(&self, version: &str, state: NodeState, since: u64) -> String {
        json(&Holder {
            node: self.member.node.clone(),
            machine_id: self.member.id.clone(),
            version: version.to_owned(),
            state,
            since,
        })
    }

    /// One attempt to take the lock; `None` if another machine was faster.
    async fn try_acquire(&mut self, version: &str) -> Result<Option<Leave>, FleetError> {
        let group = &self.group;
        let record = group.keys.read(&self.own_record()).await?;
        let record = record.map_or(0, |record| record.modified);
        let (config, config_seen) = group.config().await?;
        let (holders, counted) = group.holders().await?;
        let failures = group.failures(version).await?;
        let own = holders
            .iter()
            .find(|(holder, _)| holder.machine_id == self.member.id);
        if let Some(why) = stopped(version, &failures, config) {
            if own.is_some() {
                self.release().await?;
            }
            return Ok(Some(Leave::Never { why }));
        }
        if let Some((holder, seen)) = own {
            // Taken before a crash, or by a request whose reply was lost.
            let value = self.holder(version, NodeState::Draining, holder.since);
            let written = group
                .keys
                .put(&self.own_holder(), *seen, &value, &[])
                .await?;
            return Ok(written.then_some(Leave::Now));
        }
        if u32::try_from(holders.len()).unwrap_or(u32::MAX) >= config.holders {
            let names: Vec<&str> = holders
                .iter()
                .map(|(holder, _)| holder.node.as_str())
                .collect();
            let why = match config.holders {
                0 => "updates of the group are stopped: selvage fleet set --holders 1 starts them again".to_owned(),
                _ => format!("{} has the lock (selvage fleet status)", listed(&names)),
            };
            return Ok(Some(Leave::Later { until: None, why }));
        }
        let value = self.holder(version, NodeState::Draining, now());
        let conditions = [
            Condition::NoneCreatedSince(&group.holders, counted),
            Condition::Unchanged(&group.config, config_seen),
            Condition::Unchanged(&self.own_record(), record),
        ];
        let taken = group
            .keys
            .put(&self.own_holder(), 0, &value, &conditions)
            .await?;
        Ok(taken.then_some(Leave::Now))
    }
}

impl EtcdFleet {
    /// Takes the lock for an update to a version. [`Leave::Now`] also if this machine holds it already.
    ///
    /// # Errors
    /// etcd does not answer, or others were faster too often.
    pub async fn acquire(&mut self, version: &str) -> Result<Leave, FleetError> {
        check(version)?;
        for _ in 0..ATTEMPTS {
            if let Some(leave) = self.try_acquire(version).await? {
                if leave == Leave::Now {
                    self.write_record(NodeState::Draining).await?;
                }
                return Ok(leave);
            }
        }
        Err(lost_races())
    }

    /// Tells what the machine, which holds the lock, is doing.
    ///
    /// # Errors
    /// [`FleetError::Lost`] if it does not hold it; etcd does not answer.
    pub async fn tell(&mut self, version: &str, state: NodeState) -> Result<(), FleetError> {
        for _ in 0..ATTEMPTS {
            let Some((holder, seen)) = self.held().await? else {
                return Err(FleetError::Lost);
            };
            let value = self.holder(version, state, holder.since);
            if self
                .group
                .keys
                .put(&self.own_holder(), seen, &value, &[])
                .await?
            {
                return self.write_record(state).await;
            }
        }
        Err(lost_races())
    }

    /// Gives the lock back, if this machine holds it. No request to take it that is still under way succeeds afterwards.
    ///
    /// # Errors
    /// etcd does not answer.
    pub async fn release(&mut self) -> Result<(), FleetError> {
        self.write_record(NodeState::Steady).await?;
        for _ in 0..ATTEMPTS {
            let Some((_, seen)) = self.held().await? else {
                return Ok(());
            };
            if self.group.keys.delete(&self.own_holder(), seen).await? {
                return Ok(());
            }
        }
        Err(lost_races())
    }
}

fn check(version: &str) -> Result<(), FleetError> {
    if is_version(version) {
        Ok(())
    } else {
        Err(FleetError::BadVersion(foreign(version)))
    }
}

fn lost_races() -> FleetError {
    StoreError::LostRaces { attempts: ATTEMPTS }.into()
}

/// Our own records have no maps with keys that JSON cannot have.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Everything about a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// Version of this format.
    pub schema: u32,
    /// The group.
    pub group: String,
    /// What is set.
    #[serde(flatten)]
    pub config: Config,
    /// All machines that have told anything, in the order of their names.
    pub nodes: Vec<NodeStatus>,
    /// Versions that failed, in the order of their names.
    pub failed: Vec<FailedStatus>,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeStatus {
    /// What it last told; `null` if it has told nothing.
    #[serde(flatten)]
    pub told: Node,
    /// The lock, if it holds it.
    pub lock: Option<Holder>,
}

/// A version that failed on some machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FailedStatus {
    /// Which.
    pub version: String,
    /// Whether nobody starts it any more.
    pub stopped: bool,
    /// Where it failed.
    pub machines: Vec<Failure>,
}

/// Version of [`Status`].
const SCHEMA: u32 = 1;

impl Status {
    fn new(
        group: String,
        config: Config,
        holders: Vec<(Holder, i64)>,
        nodes: Vec<(Node, i64)>,
        failures: BTreeMap<String, Vec<(Failure, i64)>>,
    ) -> Self {
        let mut holders: BTreeMap<String, Holder> = (holders.into_iter())
            .map(|(holder, _)| (holder.machine_id.clone(), holder))
            .collect();
        let mut nodes: Vec<NodeStatus> = (nodes.into_iter())
            .map(|(told, _)| NodeStatus {
                lock: holders.remove(&told.machine_id),
                told,
            })
            .collect();
        nodes.extend(holders.into_values().map(|holder| {
            let mut told = Node::unreadable();
            told.clean(&holder.machine_id);
            told.node.clone_from(&holder.node);
            NodeStatus {
                told,
                lock: Some(holder),
            }
        }));
        nodes.sort_by(|a, b| {
            (&a.told.node, &a.told.machine_id).cmp(&(&b.told.node, &b.told.machine_id))
        });
        let failed = failures
            .into_iter()
            .map(|(version, machines)| FailedStatus {
                stopped: stopped(&version, &machines, config).is_some(),
                version,
                machines: machines.into_iter().map(|(failure, _)| failure).collect(),
            });
        Self {
            schema: SCHEMA,
            group,
            config,
            nodes,
            failed: failed.collect(),
        }
    }
}

/// The versions below a folder of failures, each with the machines on which it failed.
fn by_version(folder: &str, found: &Folder) -> BTreeMap<String, Vec<(Failure, i64)>> {
    let mut versions = BTreeMap::new();
    for key in &found.keys {
        let rest = key.name.strip_prefix(folder).unwrap_or_default();
        match rest.split_once('/') {
            Some((version, _)) if is_version(version) => {
                let machines: &mut Vec<_> = versions.entry(version.to_owned()).or_default();
                let below = format!("{folder}{version}/");
                machines.extend(of_machines(&below, std::slice::from_ref(key)));
            }
            _ => warn!("{} is skipped: it names no version", foreign(&key.name)),
        }
    }
    versions.retain(|_, machines| !machines.is_empty());
    versions
}
