//! The state of the agent and the overlay, as data: `selvage status --json` prints a [`Status`], and the control socket
//! returns it for `GET /v1/status`.
//!
//! The schema is stable: within one [`SCHEMA`], fields are added and never renamed, removed or given another meaning,
//! so a reader must skip unknown fields. Points in time are whole seconds since the Unix epoch (`…_time`), durations
//! are whole seconds (`…_seconds`) unless their name says otherwise. Unknown or missing values are `null`.
//!
//! The agent's loop builds it from the same state that its executor uses; nothing is observed again for it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

mod cause;
mod device;
mod peer;

pub(crate) use self::cause::Coded;
pub use self::cause::{Cause, Code, TaskName};
pub use self::peer::{Owner, Peer, PeerDetail, PeerObject, PeerState, Refusal};

#[cfg(test)]
pub(crate) mod samples;

/// The version of the schema that [`Status::schema`] and [`PeerDetail::schema`] hold.
pub const SCHEMA: u32 = 1;

/// The state of the agent and the overlay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the schema: [`SCHEMA`].
    pub schema: u32,
    /// The time of this status.
    pub time: u64,
    /// The process.
    pub agent: Agent,
    /// The overlay's state and the reasons for it.
    pub health: Health,
    /// The lease store.
    pub store: Store,
    /// The network config; `None` before it was read.
    pub network: Option<Network>,
    /// The own lease; `None` before there is one.
    pub lease: Option<Lease>,
    /// The underlay; `None` before it was found.
    pub underlay: Option<Underlay>,
    /// The overlay devices.
    pub devices: Vec<Device>,
    /// The packet filter.
    pub firewall: Option<Firewall>,
    /// The cloud provider's route tables; `None` unless the backend uses them.
    #[serde(default)]
    pub cloud: Option<Cloud>,
    /// The results of resyncs with the kernel.
    pub kernel: Kernel,
    /// The files for container runtimes.
    pub files: Files,
    /// Docker's bridge; `None` if Docker is not running, or was not started on a subnet of the overlay.
    #[serde(default)]
    pub docker: Option<Docker>,
    /// The leases of the other nodes, in the order of their subnets.
    pub peers: Vec<Peer>,
    /// Jumps of the wall clock that this process saw.
    pub clock: Clock,
}

/// The process.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Agent {
    /// Version of the agent.
    pub version: String,
    /// Process id, in the PID namespace of the agent.
    pub pid: u32,
    /// When it was started.
    pub started_time: u64,
    /// The owner ID in its lease.
    pub node_id: String,
    /// The name of its network on a host with several; `None` for the default network.
    pub network: Option<String>,
    /// Why the last reload (SIGHUP) failed; `None` if it did not.
    #[serde(default)]
    pub settings_rejected: Option<String>,
    /// Changed settings that need a restart.
    #[serde(default)]
    pub settings_pending: Vec<String>,
}

/// The overlay's health.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Health {
    /// The state.
    pub state: State,
    /// What it waits for, or what is wrong, one sentence each; empty exactly if the state is `ready`. The same as in
    /// `/readyz`.
    pub reasons: Vec<String>,
    /// The same with their codes, in the same order.
    #[serde(default)]
    pub causes: Vec<Cause>,
}

impl Health {
    /// A health with its causes.
    pub fn new(state: State, causes: Vec<Cause>) -> Self {
        Self {
            state,
            reasons: causes.iter().map(|cause| cause.text.clone()).collect(),
            causes,
        }
    }

    /// The causes; for an older agent without codes, only its sentences.
    pub(crate) fn causes(&self) -> Cow<'_, [Cause]> {
        coded(&self.causes, &self.reasons)
    }
}

/// The causes, built from sentences if an older agent sent only those.
fn coded<'a>(causes: &'a [Cause], texts: &[String]) -> Cow<'a, [Cause]> {
    if causes.len() >= texts.len() {
        return Cow::Borrowed(causes);
    }
    let of_text = |text: &String| Cause::new(Code::Unknown, text.as_str());
    Cow::Owned(texts.iter().map(of_text).collect())
}

/// The overlay's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The agent is not running. Only printed by the command line.
    Stopped,
    /// The agent waits for something; the data plane of an earlier run stays in place.
    Joining,
    /// Everything works.
    Ready,
    /// The overlay is up, but something is wrong.
    Degraded,
}

/// The lease store.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Store {
    /// `etcd`, `remote` for another agent that keeps the leases, or `kubernetes`.
    pub kind: String,
    /// The servers, as configured.
    pub servers: Vec<String>,
    /// The prefix of the keys, or of the node annotations.
    pub prefix: String,
    /// The server in use; `None` while none answers.
    pub server: Option<String>,
    /// The error while none answers.
    pub trouble: Option<String>,
    /// Whether the store's contents were replaced.
    #[serde(default)]
    pub history: History,
}

/// How often the store turned out to have a different history: a backup was restored, or the cluster was recreated.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// How often this process saw it.
    pub changes: u64,
    /// When it was seen last.
    pub last_time: Option<u64>,
    /// How it was detected.
    pub last_reason: Option<String>,
}

/// The network config.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The overlay's IPv4 network.
    pub ipv4: Option<Ipv4Net>,
    /// The overlay's IPv6 network.
    pub ipv6: Option<Ipv6Net>,
    /// The backend, by flannel's name: `vxlan`, `host-gw`, `wireguard`, …
    pub backend: String,
    /// The MTU of containers, in bytes.
    pub mtu: u32,
    /// Why the latest network config is not in use; `None` if it is.
    pub rejected: Option<String>,
    /// How many nodes can have a lease; `None` if unknown.
    #[serde(default)]
    pub subnets: Option<u64>,
}

/// The own lease.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The node's IPv4 subnet.
    pub subnet: Option<Ipv4Net>,
    /// The node's IPv6 subnet.
    pub subnet_v6: Option<Ipv6Net>,
    /// The IPv4 address that peers send to.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that peers send to.
    pub public_ipv6: Option<Ipv6Addr>,
    /// When this process took it.
    pub since_time: u64,
    /// Whether the store still assigns it to this node.
    pub held: bool,
    /// Whether it is a reservation, which has no TTL.
    pub reservation: bool,
    /// Its TTL.
    pub ttl_seconds: Option<u64>,
    /// Remaining time until it expires.
    pub left_seconds: Option<u64>,
    /// Why the last renewal failed; `None` if it did not.
    pub trouble: Option<String>,
}

/// The underlay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Underlay {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its source address, with the prefix length.
    pub ipv4: Option<Ipv4Net>,
    /// The same for IPv6.
    pub ipv6: Option<Ipv6Net>,
}

/// An overlay device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it exists. If not, all following fields are zero or `None`.
    pub present: bool,
    /// Its kind: `vxlan`, `ipip`, `wireguard`, `tun`.
    pub kind: Option<String>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its MAC address, if its kind has one.
    pub mac: Option<String>,
    /// Its traffic since it was created.
    pub traffic: Traffic,
    /// Packets that it could not send (carrier, no route, no neighbor).
    pub tx_errors: u64,
    /// Packets that it dropped when sending.
    pub tx_dropped: u64,
    /// Packets that it received and could not use.
    pub rx_errors: u64,
    /// Packets that it dropped when receiving.
    pub rx_dropped: u64,
}

/// Traffic counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received; `None` where only bytes are counted.
    pub rx_packets: Option<u64>,
    /// Packets sent; `None` where only bytes are counted.
    pub tx_packets: Option<u64>,
}

/// The packet filter.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Firewall {
    /// The configured mode: `auto`, `nftables`, `iptables`.
    pub wanted: String,
    /// The mode in effect: `nftables`, `iptables`; `None` before the rules were programmed.
    pub mode: Option<String>,
    /// Whether packets that leave the overlay are masqueraded.
    pub masquerade: bool,
    /// Whether forwarding from and to the overlay is accepted.
    pub forward: bool,
    /// How often the rules were programmed or restored.
    pub programmed: u64,
    /// When they were last programmed.
    pub programmed_time: Option<u64>,
}

/// The cloud provider's route tables, as this node keeps them.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Cloud {
    /// The backend, by its name: `aws-vpc`, `gce`, …
    pub provider: String,
    /// The destinations that should lead to this instance; empty while the last routes are being removed.
    pub wanted: Vec<IpNet>,
    /// The tables as last seen.
    pub tables: Vec<CloudTable>,
    /// When everything was last seen to be in order; `None` if it never was.
    pub settled_time: Option<u64>,
    /// The pause before the next look, unless something changes.
    pub next_seconds: u64,
    /// Routes added since the start of the process.
    pub added: u64,
    /// Routes that led elsewhere and were pointed to this instance.
    pub replaced: u64,
    /// Routes removed: of earlier subnets of this node, and of dead nodes.
    pub removed: u64,
    /// Looks at the tables that did not succeed.
    pub failures: u64,
    /// What was wrong at the last look. Not all of it keeps the overlay from being ready: routes that were seen stay in
    /// force while the provider does not answer.
    pub causes: Vec<Cause>,
}

/// A route table.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CloudTable {
    /// The provider's ID.
    pub id: String,
    /// How many IPv4 routes it has, for all nodes and others.
    pub routes: usize,
    /// Whether it has all routes of this node.
    pub complete: bool,
}

/// The results of resyncs with the kernel.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// Interval of periodic resyncs.
    pub interval_seconds: u64,
    /// Time of the last resync.
    pub resync_time: Option<u64>,
    /// Its duration in microseconds.
    pub resync_usec: Option<u64>,
    /// Total duration of all resyncs in microseconds.
    #[serde(default)]
    pub resync_total_usec: u64,
    /// Number of resyncs.
    pub resyncs: u64,
    /// Objects created since the start of the process.
    pub created: u64,
    /// Objects changed.
    pub changed: u64,
    /// Objects removed.
    pub removed: u64,
    /// Changes that failed.
    pub failed: u64,
    /// The objects that could not be programmed, and why.
    pub failures: Vec<String>,
    /// The same with their codes, in the same order.
    #[serde(default)]
    pub causes: Vec<Cause>,
}

impl Kernel {
    /// The causes; for an older agent without codes, only its sentences.
    pub(crate) fn causes(&self) -> Cow<'_, [Cause]> {
        coded(&self.causes, &self.failures)
    }
}

/// The files for container runtimes.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// The path of `subnet.env`.
    pub subnet_file: String,
    /// When this process last wrote it; `None` if it was already correct.
    pub written_time: Option<u64>,
}

/// Docker's bridge, if dockerd was started on a subnet of the overlay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Docker {
    /// The bridge.
    pub bridge: String,
    /// The dockerd options with a subnet.
    pub options: Vec<String>,
    /// The bridge's actual addresses.
    pub addresses: Vec<IpNet>,
    /// Why its containers are not on this node's subnet; `None` if they are.
    pub trouble: Option<String>,
}

/// Jumps of the wall clock: it moved relative to `CLOCK_BOOTTIME`, which never jumps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clock {
    /// How many were seen.
    pub jumps: u64,
    /// When the last one was seen, by the new clock.
    pub last_time: Option<u64>,
    /// Size of the last jump; negative for backwards.
    pub last_seconds: Option<i64>,
}

impl Network {
    /// The overlay networks.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        both(self.ipv4, self.ipv6)
    }
}

impl Lease {
    /// Its subnets.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        both(self.subnet, self.subnet_v6)
    }

    /// Its public addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        both(self.public_ip, self.public_ipv6)
    }
}

impl Underlay {
    /// Its addresses, with prefix lengths.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        both(self.ipv4, self.ipv6)
    }
}

/// The values of both IP versions, IPv4 first.
fn both<T>(v4: Option<impl Into<T>>, v6: Option<impl Into<T>>) -> impl Iterator<Item = T> {
    v4.map(Into::into).into_iter().chain(v6.map(Into::into))
}

/// A point in time in the schema's format; 0 if before 1970.
pub fn unix_time(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The current time in the schema's format.
pub fn now() -> u64 {
    unix_time(SystemTime::now())
}

/// A duration in the schema's format.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Agent {
    /// This process, with the owner ID of its lease.
    pub fn of_process(node_id: &str, started_time: u64) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_time,
            node_id: node_id.to_owned(),
            network: None,
            settings_rejected: None,
            settings_pending: Vec::new(),
        }
    }
}

impl Store {
    /// Whether the subnet is a podCIDR, which belongs to the node.
    pub(crate) fn is_kubernetes(&self) -> bool {
        self.kind == "kubernetes"
    }

    /// The store in the settings; nothing else is known about it.
    pub(crate) fn of_settings(settings: &Settings) -> Self {
        let (etcd, remote, kubernetes) = (&settings.etcd, &settings.remote, &settings.kubernetes);
        let (kind, servers, prefix) = if kubernetes.enabled {
            let url = kubernetes.api_url.clone();
            let from_file = || Some(kubernetes.kubeconfig.as_ref()?.display().to_string());
            let server = url.or_else(from_file);
            let server = server.unwrap_or_else(|| "the service account's server".to_owned());
            ("kubernetes", vec![server], &kubernetes.annotation_prefix)
        } else if remote.servers.is_empty() {
            ("etcd", etcd.endpoints.clone(), &etcd.prefix)
        } else {
            ("remote", remote.servers.clone(), &etcd.prefix)
        };
        Self {
            kind: kind.to_owned(),
            servers,
            prefix: prefix.clone(),
            server: None,
            trouble: None,
            history: History::default(),
        }
    }
}

impl History {
    /// Records a change seen now.
    pub(crate) fn changed(&mut self, reason: String) {
        self.changes += 1;
        self.last_time = Some(now());
        self.last_reason = Some(reason);
    }
}

impl Status {
    /// Why a task fails; `None` if it does not, and for an older agent without codes.
    pub(crate) fn cause(&self, task: TaskName) -> Option<&Cause> {
        let mut causes = self.health.causes.iter();
        causes.find(|cause| cause.task == Some(task))
    }

    /// A status with only the causes known.
    pub fn joining(agent: Agent, causes: Vec<Cause>) -> Self {
        Self {
            schema: SCHEMA,
            time: now(),
            agent,
            health: Health::new(State::Joining, causes),
            store: Store::default(),
            network: None,
            lease: None,
            underlay: None,
            devices: Vec::new(),
            firewall: None,
            cloud: None,
            kernel: Kernel::default(),
            files: Files::default(),
            docker: None,
            peers: Vec::new(),
            clock: Clock::default(),
        }
    }
}

#[cfg(test)]
mod tests;
