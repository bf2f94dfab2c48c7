//! The last stage: turns the merged sources into [`Settings`], or into an error that says what is expected.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::Inputs;
use super::inputs::Sourced;
use super::{Agent, Error, Files, Firewall, FirewallMode, Health, Settings};
use crate::base::logging;
use crate::base::network_name;
use crate::base::network_name::NetworkName;

pub(crate) mod etcd;
mod remote;
mod underlay;

pub(crate) const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DEFAULT_SUBNET_DIR: &str = "/run/flannel/networks";
const DEFAULT_STATE_DIR: &str = "/var/lib/selvage";
const DEFAULT_SOCKET: &str = "/run/selvage/agent.sock";
const DEFAULT_SOCKET_DIR: &str = "/run/selvage/networks";
const DEFAULT_LOG: &str = "info";
const DEFAULT_RESYNC_SECS: u64 = 300;
/// flannel's default.
const DEFAULT_FIREWALL_RESYNC_SECS: u64 = 5;
/// Local only: exposing the health endpoints to other hosts is the operator's choice. flanneld listens on all
/// addresses.
const DEFAULT_HEALTH_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// From one second to one day.
const RESYNC_SECS: RangeInclusive<u64> = 1..=86_400;

/// Validates everything and fills in the defaults.
pub(crate) fn settings(inputs: Inputs) -> Result<Settings, Error> {
    let network = optional(inputs.agent.network.as_ref(), network)?;
    let defaults = default_files(network.as_ref());
    let files = Files {
        subnet_file: path_or(inputs.files.subnet_file.as_ref(), defaults.subnet_file)?,
        state_dir: path_or(inputs.files.state_dir.as_ref(), defaults.state_dir)?,
        socket: path_or(inputs.files.socket.as_ref(), defaults.socket)?,
    };
    let agent = Agent {
        network,
        node_id: optional(inputs.agent.node_id.as_ref(), node_id)?,
        log: log(inputs.agent.log.as_ref())?,
        resync: seconds(
            inputs.agent.resync.as_ref(),
            DEFAULT_RESYNC_SECS,
            RESYNC_SECS,
        )?,
        leave_on_stop: is_on(inputs.agent.leave_on_stop.as_ref(), false),
    };
    Ok(Settings {
        remote: remote::remote(&inputs, agent.network.as_ref())?,
        underlay: underlay::underlay(&inputs)?,
        firewall: firewall(&inputs)?,
        files,
        health: health(&inputs)?,
        etcd: etcd::etcd(inputs, agent.network.as_ref())?,
        agent,
    })
}

fn firewall(inputs: &Inputs) -> Result<Firewall, Error> {
    Ok(Firewall {
        mode: optional(inputs.firewall.mode.as_ref(), firewall_mode)?.unwrap_or_default(),
        masquerade: is_on(inputs.firewall.masquerade.as_ref(), false),
        forward: is_on(inputs.firewall.forward.as_ref(), true),
        random_fully: is_on(inputs.firewall.random_fully.as_ref(), true),
        masquerade_exclude: networks(inputs.firewall.masquerade_exclude.as_ref())?,
        resync: seconds(
            inputs.firewall.resync.as_ref(),
            DEFAULT_FIREWALL_RESYNC_SECS,
            RESYNC_SECS,
        )?,
        blackhole_route: is_on(inputs.firewall.blackhole_route.as_ref(), false),
    })
}

fn firewall_mode(input: &Sourced<String>) -> Result<FirewallMode, Error> {
    let expected = |_| input.error(FirewallMode::NAMES);
    input.value.parse().map_err(expected)
}

fn health(inputs: &Inputs) -> Result<Health, Error> {
    let address = optional(inputs.health.address.as_ref(), |input| {
        let address = input.value.trim().parse();
        address.map_err(|_| input.error("an IPv4 or IPv6 address to listen on"))
    })?;
    let port = match &inputs.health.port {
        None => 0,
        Some(input) => u16::try_from(input.value)
            .map_err(|_| input.error("a TCP port from 1 to 65535, or 0 for none"))?,
    };
    let listen = SocketAddr::new(address.unwrap_or(DEFAULT_HEALTH_ADDRESS), port);
    Ok(Health {
        listen: (port != 0).then_some(listen),
    })
}

fn is_on(input: Option<&Sourced<bool>>, default: bool) -> bool {
    input.map_or(default, |input| input.value)
}

fn seconds(
    input: Option<&Sourced<i64>>,
    default: u64,
    allowed: RangeInclusive<u64>,
) -> Result<Duration, Error> {
    let Some(input) = input else {
        return Ok(Duration::from_secs(default));
    };
    match u64::try_from(input.value) {
        Ok(secs) if allowed.contains(&secs) => Ok(Duration::from_secs(secs)),
        _ => {
            let (least, most) = allowed.into_inner();
            Err(input.error(format!("{least} to {most} seconds")))
        }
    }
}

/// An optional string: missing and empty both mean none.
fn optional<T>(
    input: Option<&Sourced<String>>,
    check: impl FnOnce(&Sourced<String>) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    input
        .filter(|text| !text.value.is_empty())
        .map(check)
        .transpose()
}

/// An absolute path: a daemon has no working directory that a relative one could refer to.
fn absolute(input: &Sourced<String>) -> Result<PathBuf, Error> {
    let path = PathBuf::from(&input.value);
    if path.is_absolute() && !input.value.contains('\0') {
        Ok(path)
    } else {
        Err(input.error("an absolute path"))
    }
}

fn path_or(input: Option<&Sourced<String>>, default: PathBuf) -> Result<PathBuf, Error> {
    input.map_or(Ok(default), absolute)
}

/// The members of a list, each of which must be `expected`. Empty ones are skipped, so that an empty string means none.
fn each<T>(
    input: Option<&Sourced<Vec<String>>>,
    read: impl Fn(&str) -> Option<T>,
    expected: &str,
) -> Result<Vec<T>, Error> {
    let Some(input) = input else {
        return Ok(Vec::new());
    };
    let texts = input.value.iter().map(|text| text.trim());
    texts
        .filter(|text| !text.is_empty())
        .map(|text| read(text).ok_or_else(|| input.error(expected)))
        .collect()
}

fn networks(input: Option<&Sourced<Vec<String>>>) -> Result<Vec<IpNet>, Error> {
    let read = |text: &str| Some(text.parse::<IpNet>().ok()?.trunc());
    each(
        input,
        read,
        "networks such as \"10.0.0.0/8\" or \"fd00::/8\"",
    )
}

pub(super) fn network(input: &Sourced<String>) -> Result<NetworkName, Error> {
    let expected = |_| input.error(network_name::FORM);
    input.value.parse().map_err(expected)
}

/// The default files of a network; flannel 0.5 named subnet files like this.
pub(crate) fn default_files(network: Option<&NetworkName>) -> Files {
    match network {
        None => Files {
            subnet_file: DEFAULT_SUBNET_FILE.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
        },
        Some(name) => Files {
            subnet_file: format!("{DEFAULT_SUBNET_DIR}/{name}.env").into(),
            state_dir: format!("{DEFAULT_STATE_DIR}/networks/{name}").into(),
            socket: format!("{DEFAULT_SOCKET_DIR}/{name}.sock").into(),
        },
    }
}

fn node_id(input: &Sourced<String>) -> Result<String, Error> {
    let id = &input.value;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !(1..=64).contains(&id.len()) || !id.bytes().all(allowed) {
        return Err(input.error("1 to 64 letters, digits, '.', '_' or '-'"));
    }
    Ok(id.clone())
}

fn log(input: Option<&Sourced<String>>) -> Result<String, Error> {
    let Some(input) = input else {
        return Ok(DEFAULT_LOG.to_owned());
    };
    match logging::parse_filter(&input.value) {
        Ok(_) => Ok(input.value.clone()),
        Err(_) => Err(input.error(logging::FILTER_FORM)),
    }
}
