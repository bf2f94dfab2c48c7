//! The status while no agent runs, from its files and the kernel. Changes nothing and does not query etcd: a host
//! without an agent may have left its cluster.
//!
//! Most of it needs no privileges. Anything that does, such as the packet filter's rules, is skipped, and a reason says
//! so.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::base::lock::{self, Lock};
use crate::base::logging::chain;
use crate::base::machine_id;
use crate::base::network_name;
use crate::cluster::lease::SubnetKey;
use crate::cluster::network_config::Families;
use crate::host::firewall;
use crate::host::subnet_file::{self, Previous};
use crate::host::underlay;
use crate::settings::Settings;
use crate::telemetry::docker_bridge;
use crate::telemetry::status::{
    Agent, Cause, Clock, Code, Coded, Files, Firewall, Health, Kernel, Lease, Network, SCHEMA,
    State, Status, Store, Underlay, now, unix_time,
};

mod kernel;

use self::kernel::Observed;

/// The store's error.
const NOT_ASKED: &str = "not queried, because no agent is running";

/// The contents of `subnet.env`.
#[derive(Debug, Default)]
struct SubnetEnv {
    previous: Previous,
    /// When it was written.
    written: Option<u64>,
}

/// Collects the status.
pub(super) async fn look(settings: &Settings) -> Status {
    let mut notes = Vec::new();
    notes.extend(other_agent(settings));
    let file = read_file(&settings.files.subnet_file, &mut notes);
    let networks = networks(&file.previous);
    let observed = kernel::observe_overlay(settings, &networks, &mut notes).await;
    let underlay = look_for_underlay(settings, &file.previous, &mut notes).await;
    let public = underlay.as_ref().map_or(&[][..], |(_, public)| public);
    let lease = lease(&file, public);
    let network = network(&file.previous, &observed);
    let firewall = look_at_firewall(settings, &file, &mut notes).await;
    for device in observed.devices.iter().filter(|device| !device.present) {
        let text = format!("the overlay device {} is missing", device.name);
        notes.push(Cause::new(Code::DeviceMissing, text).about(&device.name));
    }
    let own = SubnetKey::new(file.previous.subnet, file.previous.subnet_v6);
    let docker = docker_bridge::check(own, &networks).await;
    notes.extend(docker.as_ref().and_then(|docker| {
        let text = docker.trouble.as_deref()?;
        Some(Cause::new(Code::DockerSubnet, text).about(&docker.bridge))
    }));
    Status {
        schema: SCHEMA,
        time: now(),
        agent: Agent {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: 0,
            started_time: 0,
            node_id: node_id(settings, &mut notes),
            network: settings.agent.network.as_ref().map(ToString::to_string),
            settings_rejected: None,
            settings_pending: Vec::new(),
        },
        health: Health::new(State::Stopped, causes(notes, settings)),
        store: Store {
            trouble: Some(NOT_ASKED.to_owned()),
            ..Store::of_settings(settings)
        },
        network,
        lease,
        underlay: underlay.map(|(underlay, _)| underlay),
        devices: observed.devices,
        firewall,
        cloud: None,
        kernel: Kernel {
            interval_seconds: settings.agent.resync.as_secs(),
            ..Kernel::default()
        },
        files: Files {
            subnet_file: settings.files.subnet_file.display().to_string(),
            written_time: file.written,
        },
        docker,
        peers: observed.peers,
        clock: Clock::default(),
    }
}

/// The lease according to the subnet file, as nobody knows whether the store still has it.
fn lease(file: &SubnetEnv, public: &[IpAddr]) -> Option<Lease> {
    let previous = &file.previous;
    let written = file.written.filter(|_| has_subnet(previous))?;
    Some(Lease {
        subnet: previous.subnet,
        subnet_v6: previous.subnet_v6,
        public_ip: public.iter().copied().find_map(v4),
        public_ipv6: public.iter().copied().find_map(v6),
        since_time: written,
        held: false,
        reservation: false,
        ttl_seconds: None,
        left_seconds: None,
        trouble: Some(
            "as in the subnet file; nothing renews it, and it may have expired".to_owned(),
        ),
    })
}

/// The network according to the subnet file and the devices.
fn network(previous: &Previous, observed: &Observed) -> Option<Network> {
    if networks(previous).is_empty() && observed.devices.is_empty() {
        return None;
    }
    Some(Network {
        ipv4: previous.network,
        ipv6: previous.network_v6,
        subnets: None,
        backend: observed.backend.to_owned(),
        mtu: previous
            .mtu
            .or_else(|| observed.devices.iter().find_map(|device| device.mtu))
            .unwrap_or(0),
        rejected: None,
    })
}

/// Never empty: faults first, then what could not be checked.
fn causes(notes: Vec<Cause>, settings: &Settings) -> Vec<Cause> {
    let socket = settings.files.socket.display();
    let unit = network_name::unit(settings.agent.network.as_ref());
    let first = format!("no agent answers on {socket} (systemctl status {unit} says why)");
    let first = Cause::new(Code::NoAgent, first).about(socket);
    [first].into_iter().chain(notes).collect()
}

/// Whether an agent holds the state directory although none answers: it may be starting, or have another socket.
fn other_agent(settings: &Settings) -> Option<Cause> {
    let holder = Lock::holder(&settings.files.state_dir)?;
    let lock = lock::path(&settings.files.state_dir);
    let text = format!(
        "process {holder} holds {}: an agent that is starting, is stopping or has another control socket",
        lock.display()
    );
    Some(Cause::new(Code::AgentSilent, text).about(lock.display()))
}

fn read_file(path: &Path, notes: &mut Vec<Cause>) -> SubnetEnv {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                let text = format!("failed to read {}: {error}", path.display());
                notes.push(Cause::new(Code::NotVisible, text).about(path.display()));
            }
            return SubnetEnv::default();
        }
    };
    let written = fs::metadata(path).and_then(|metadata| metadata.modified());
    SubnetEnv {
        previous: Previous::parse(&text),
        written: written.ok().map(unix_time),
    }
}

/// The overlay networks in the file.
fn networks(previous: &subnet_file::Previous) -> Vec<IpNet> {
    let v4 = previous.network.map(IpNet::V4);
    v4.into_iter()
        .chain(previous.network_v6.map(IpNet::V6))
        .collect()
}

fn has_subnet(previous: &Previous) -> bool {
    previous.subnet.is_some() || previous.subnet_v6.is_some()
}

/// The underlay that an agent with these settings would choose, with its public IPs.
async fn look_for_underlay(
    settings: &Settings,
    previous: &Previous,
    notes: &mut Vec<Cause>,
) -> Option<(Underlay, Vec<IpAddr>)> {
    let families = Families {
        v4: previous.network,
        v6: previous.network_v6,
    };
    families.iter().next()?;
    match underlay::discover(&settings.underlay, families, None).await {
        Ok(found) => {
            let v4 = found.v4.map(|v4| v4.public.into());
            let v6 = found.v6.map(|v6| v6.public.into());
            let underlay = Underlay {
                interface: found.name.to_string(),
                index: found.index,
                mtu: found.mtu,
                ipv4: found
                    .v4
                    .and_then(|v4| Ipv4Net::new(v4.address, v4.prefix_len).ok()),
                ipv6: found
                    .v6
                    .and_then(|v6| Ipv6Net::new(v6.address, v6.prefix_len).ok()),
            };
            Some((underlay, v4.into_iter().chain(v6).collect()))
        }
        Err(error) => {
            notes.push(
                error
                    .to_cause()
                    .worded(|text| format!("no underlay: {text}")),
            );
            None
        }
    }
}

async fn look_at_firewall(
    settings: &Settings,
    file: &SubnetEnv,
    notes: &mut Vec<Cause>,
) -> Option<Firewall> {
    match firewall::current_mode(settings.agent.network.as_ref()).await {
        Ok(mode) => Some(Firewall {
            wanted: settings.firewall.mode.to_string(),
            mode: mode.map(|mode| mode.to_string()),
            masquerade: file
                .previous
                .masquerade
                .unwrap_or(settings.firewall.masquerade),
            forward: settings.firewall.forward,
            programmed: 0,
            programmed_time: None,
        }),
        Err(error) => {
            let text = match nix::unistd::geteuid().is_root() {
                true => format!("failed to read the firewall rules: {}", chain(&error)),
                false => "only root may read the firewall rules".to_owned(),
            };
            notes.push(Cause::new(Code::NotVisible, text));
            None
        }
    }
}

fn node_id(settings: &Settings, notes: &mut Vec<Cause>) -> String {
    if let Some(id) = &settings.agent.node_id {
        return id.clone();
    }
    match machine_id::known("/".as_ref(), &settings.files.state_dir) {
        Ok(id) => id.unwrap_or_default(),
        Err(error) => {
            notes.push(Cause::new(Code::NotVisible, chain(&error)));
            String::new()
        }
    }
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn v6(address: IpAddr) -> Option<std::net::Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}
