//! What the agent knows of itself and of the overlay, as data: [`Status`] is what `selvage status --json` prints and what
//! the control socket answers to `GET /v1/status`.
//!
//! The schema is stable: within one [`SCHEMA`], fields are added and never renamed, removed or given another meaning, so
//! a reader must skip what it does not know. Points in time are whole seconds since the Unix epoch (`…_time`), durations
//! are whole seconds (`…_seconds`) unless their name says otherwise. What is not known, or not there, is `null`.
//!
//! The agent's loop makes it from the very state that its executor works on; nothing here is observed a second time.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::cluster::refusal::{PeerRefusal, RefusalCode};
use crate::settings::Settings;

mod cause;
mod device;

pub(crate) use self::cause::Coded;
pub use self::cause::{Cause, Code, TaskName};

#[cfg(test)]
pub(crate) mod samples;

/// The version of the schema that [`Status::schema`] and [`PeerDetail::schema`] hold.
pub const SCHEMA: u32 = 1;

/// What the agent knows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Version of the schema: [`SCHEMA`].
    pub schema: u32,
    /// When this was true.
    pub time: u64,
    /// The process.
    pub agent: Agent,
    /// How the overlay is, in one word and in reasons.
    pub health: Health,
    /// Where leases are kept.
    pub store: Store,
    /// What all nodes share; `None` before it was read.
    pub network: Option<Network>,
    /// The own lease; `None` before there is one.
    pub lease: Option<Lease>,
    /// What carries the overlay; `None` before it was found.
    pub underlay: Option<Underlay>,
    /// The overlay devices.
    pub devices: Vec<Device>,
    /// The packet filter.
    pub firewall: Option<Firewall>,
    /// The comparison of the kernel with what it should be.
    pub kernel: Kernel,
    /// What container runtimes read.
    pub files: Files,
    /// Docker's bridge; `None` where Docker is not there, or was not started on a subnet of the overlay.
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
    /// Under which identity it holds its lease.
    pub node_id: String,
    /// The name of its network, where the host is in several; `None` for the one without a name.
    pub network: Option<String>,
    /// Why the settings that were read last, at SIGHUP, are not in use; `None` if they are.
    #[serde(default)]
    pub settings_rejected: Option<String>,
    /// Keys of settings that changed and that only a restart puts into effect.
    #[serde(default)]
    pub settings_pending: Vec<String>,
}

/// How the overlay is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Health {
    /// In one word.
    pub state: State,
    /// What it waits for, or what is wrong, one sentence each; empty exactly if the state is `ready`. The same as
    /// `/readyz` gives.
    pub reasons: Vec<String>,
    /// The same with their codes, in the same order.
    #[serde(default)]
    pub causes: Vec<Cause>,
}

impl Health {
    /// How the overlay is, and why.
    pub fn new(state: State, causes: Vec<Cause>) -> Self {
        Self {
            state,
            reasons: causes.iter().map(|cause| cause.text.clone()).collect(),
            causes,
        }
    }

    /// The causes; of an agent that has no codes yet, its sentences without any.
    pub(crate) fn causes(&self) -> Cow<'_, [Cause]> {
        coded(&self.causes, &self.reasons)
    }
}

/// Causes, made of sentences where an older agent gave those alone.
fn coded<'a>(causes: &'a [Cause], texts: &[String]) -> Cow<'a, [Cause]> {
    if causes.len() >= texts.len() {
        return Cow::Borrowed(causes);
    }
    let of_text = |text: &String| Cause::new(Code::Unknown, text.as_str());
    Cow::Owned(texts.iter().map(of_text).collect())
}

/// How the overlay is, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The agent does not run. Only in what the command line prints.
    Stopped,
    /// Something is not there yet; what an earlier run set up stays in place.
    Joining,
    /// All is as it should be.
    Ready,
    /// The overlay is up, but something is wrong.
    Degraded,
}

/// Where leases are kept.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Store {
    /// `etcd`, or `remote` for another agent that keeps the leases.
    pub kind: String,
    /// The servers, as configured.
    pub servers: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// The server in use; `None` before one answered, and while none does.
    pub server: Option<String>,
    /// What is wrong while none answers.
    pub trouble: Option<String>,
    /// Whether what is kept there was replaced.
    #[serde(default)]
    pub history: History,
}

/// How often what a store keeps turned out to be another history than the one known: a backup was restored, or the cluster
/// made anew.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// How often this process saw it.
    pub changes: u64,
    /// When it was seen last.
    pub last_time: Option<u64>,
    /// What showed it then.
    pub last_reason: Option<String>,
}

/// What all nodes share.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The overlay's IPv4 network.
    pub ipv4: Option<Ipv4Net>,
    /// The overlay's IPv6 network.
    pub ipv6: Option<Ipv6Net>,
    /// The back end, by flannel's name: `vxlan`, `host-gw`, `wireguard`, …
    pub backend: String,
    /// The MTU of containers, in bytes.
    pub mtu: u32,
    /// Why the network config that was written last is not in use; `None` if it is.
    pub rejected: Option<String>,
    /// How many nodes can have a lease; `None` if that is not known.
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
    /// Whether the store still has it as this node's.
    pub held: bool,
    /// Whether it is a reservation, which has no time limit.
    pub reservation: bool,
    /// For how long it is granted.
    pub ttl_seconds: Option<u64>,
    /// How long it lasts if nothing extends it.
    pub left_seconds: Option<u64>,
    /// Why it could not be extended; `None` while all is well.
    pub trouble: Option<String>,
}

/// What carries the overlay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Underlay {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The address on it that we send from, with the length of its network.
    pub ipv4: Option<Ipv4Net>,
    /// The same for IPv6.
    pub ipv6: Option<Ipv6Net>,
}

/// An overlay device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Whether it is there. If not, all that follows is zero or `None`.
    pub present: bool,
    /// Its kind: `vxlan`, `ipip`, `wireguard`, `tun`.
    pub kind: Option<String>,
    /// Its MTU in bytes.
    pub mtu: Option<u32>,
    /// Its MAC address, if its kind has one.
    pub mac: Option<String>,
    /// What it carried since it was made.
    pub traffic: Traffic,
    /// Packets that it could not send (carrier, no route, no neighbour).
    pub tx_errors: u64,
    /// Packets that it dropped when sending.
    pub tx_dropped: u64,
    /// Packets that it received and could not use.
    pub rx_errors: u64,
    /// Packets that it dropped when receiving.
    pub rx_dropped: u64,
}

/// What was carried.
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
    /// By which rules, as the settings say: `auto`, `nftables`, `iptables`.
    pub wanted: String,
    /// By which rules in effect: `nftables`, `iptables`; `None` before they were made.
    pub mode: Option<String>,
    /// Whether packets that leave the overlay get this host's address.
    pub masquerade: bool,
    /// Whether forwarding from and to the overlay is accepted.
    pub forward: bool,
    /// How often the rules had to be put right, the first time included.
    pub programmed: u64,
    /// When they were put right last.
    pub programmed_time: Option<u64>,
}

/// The comparison of the kernel with what it should be.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Kernel {
    /// How often everything is compared at the least.
    pub interval_seconds: u64,
    /// When everything was compared last.
    pub resync_time: Option<u64>,
    /// How long that took, in microseconds.
    pub resync_usec: Option<u64>,
    /// How long all comparisons took together, in microseconds.
    #[serde(default)]
    pub resync_total_usec: u64,
    /// How often everything was compared.
    pub resyncs: u64,
    /// Objects made since the start of the process.
    pub created: u64,
    /// Objects changed.
    pub changed: u64,
    /// Objects removed.
    pub removed: u64,
    /// Changes that failed.
    pub failed: u64,
    /// The objects that are not as they should be, and why.
    pub failures: Vec<String>,
    /// The same with their codes, in the same order.
    #[serde(default)]
    pub causes: Vec<Cause>,
}

impl Kernel {
    /// The causes; of an agent that has no codes yet, its sentences without any.
    pub(crate) fn causes(&self) -> Cow<'_, [Cause]> {
        coded(&self.causes, &self.failures)
    }
}

/// What container runtimes read.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Files {
    /// The path of `subnet.env`.
    pub subnet_file: String,
    /// When this process wrote it last; `None` if it was as it should be already.
    pub written_time: Option<u64>,
}

/// Docker's bridge, where dockerd was started on a subnet of the overlay.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Docker {
    /// The bridge.
    pub bridge: String,
    /// By which options dockerd was told its subnets.
    pub options: Vec<String>,
    /// What the bridge really has.
    pub addresses: Vec<IpNet>,
    /// Why its containers are not on this node's subnet; `None` if they are.
    pub trouble: Option<String>,
}

/// The lease of another node.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its IPv4 subnet.
    pub subnet: Option<Ipv4Net>,
    /// Its IPv6 subnet.
    pub subnet_v6: Option<Ipv6Net>,
    /// The IPv4 address that we send to.
    pub public_ip: Option<Ipv4Addr>,
    /// The IPv6 address that we send to.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Its back end, by flannel's name.
    pub backend: String,
    /// The identity of its agent; `None` for a real flannel.
    pub owner: Option<String>,
    /// Whether this host is set up to reach it.
    pub state: PeerState,
    /// Why it is not, or not with what it published last.
    pub reason: Option<String>,
    /// The same as a code, where its lease is what is wrong; `None` if it is the kernel, or nothing.
    #[serde(default)]
    pub refusal: Option<Refusal>,
    /// When this process heard of it.
    pub since_time: u64,
    /// When it published something else last; `None` if it never did since.
    pub changed_time: Option<u64>,
    /// What was carried from and to it; `None` where the kernel does not count by peer.
    pub traffic: Option<Traffic>,
    /// When it was last proved that it is there: wireguard's handshake. `None` where there is no such proof.
    pub handshake_time: Option<u64>,
}

/// Why a peer's lease is not used, for programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Which kind of reason.
    pub code: RefusalCode,
    /// The older lease, address, key or backend that it is about; `None` if it is about the lease alone.
    pub object: Option<String>,
}

impl Refusal {
    /// What the agent has of it.
    pub(crate) fn of(refusal: &PeerRefusal) -> Self {
        Self {
            code: refusal.code(),
            object: refusal.object(),
        }
    }
}

/// Whether this host is set up to reach a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerState {
    /// All that is needed is in the kernel.
    Programmed,
    /// The kernel would not take some of it.
    Failed,
    /// Its lease, or its data, cannot be used.
    Refused,
}

/// Jumps of the wall clock: it moved against the clock that never jumps (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Clock {
    /// How many were seen.
    pub jumps: u64,
    /// When the last one was seen, by the clock after it.
    pub last_time: Option<u64>,
    /// By how much it jumped; negative for backwards.
    pub last_seconds: Option<i64>,
}

/// One peer, and what reaches it: the answer to `GET /v1/peer?address=…`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerDetail {
    /// Version of the schema: [`SCHEMA`].
    pub schema: u32,
    /// The address or subnet that was asked for.
    pub asked: IpNet,
    /// Whose it is.
    pub owner: Owner,
    /// The peer; `None` unless it is a peer's.
    pub peer: Option<Peer>,
    /// The kernel objects that should reach it, in the order in which they are made.
    pub objects: Vec<PeerObject>,
}

/// Whose an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// This host's: in its subnet.
    Own,
    /// A peer's: in its subnet, or its public address.
    Peer,
    /// Nobody's: inside the overlay network, but in no lease.
    Nobody,
    /// Not the overlay's.
    Outside,
}

/// A kernel object that should exist for a peer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PeerObject {
    /// What should be there, in the words of ip(8) and bridge(8).
    pub wanted: String,
    /// Whether it is there, just so.
    pub present: bool,
    /// What is there instead, if anything.
    pub found: Option<String>,
}

impl Peer {
    /// Its subnets.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.subnet.map(IpNet::V4);
        v4.into_iter().chain(self.subnet_v6.map(IpNet::V6))
    }

    /// Its public addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.public_ip.map(IpAddr::V4);
        v4.into_iter().chain(self.public_ipv6.map(IpAddr::V6))
    }
}

/// A point in time, as the schema has it; 0 for what lies before 1970.
pub fn unix_time(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The present, as the schema has it.
pub fn now() -> u64 {
    unix_time(SystemTime::now())
}

/// A duration, as the schema has it.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Agent {
    /// This process, with the identity under which it holds its lease.
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
    /// The store that the settings name, of which nothing else is known.
    pub(crate) fn of_settings(settings: &Settings) -> Self {
        let (etcd, remote) = (&settings.etcd, &settings.remote);
        let (kind, servers) = match remote.servers.is_empty() {
            true => ("etcd", &etcd.endpoints),
            false => ("remote", &remote.servers),
        };
        Self {
            kind: kind.to_owned(),
            servers: servers.clone(),
            prefix: etcd.prefix.clone(),
            server: None,
            trouble: None,
            history: History::default(),
        }
    }
}

impl History {
    /// Notes that it was seen just now.
    pub(crate) fn changed(&mut self, reason: String) {
        self.changes += 1;
        self.last_time = Some(now());
        self.last_reason = Some(reason);
    }
}

impl Status {
    /// What keeps a task from being done; `None` if nothing does, and of an agent that has no codes yet.
    pub(crate) fn cause(&self, task: TaskName) -> Option<&Cause> {
        let mut causes = self.health.causes.iter();
        causes.find(|cause| cause.task == Some(task))
    }

    /// What there is to say before anything is known but what is waited for.
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
