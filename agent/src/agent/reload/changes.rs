//! The differences between two sets of settings, and which of them can be applied at run time.

use std::fmt::Display;
use std::time::Duration;

use crate::settings::table::is_live;
use crate::settings::{
    Agent, Etcd, Files, Firewall, Health, Interface, Remote, Settings, Underlay,
};

/// Shown instead of a password.
const SECRET: &str = "(secret)";

/// A changed setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Change {
    /// Its key, for example `etcd.prefix` for `prefix` in `[etcd]`.
    pub(super) key: &'static str,
    /// The old value; never a secret.
    pub(super) old: String,
    /// The new value; never a secret.
    pub(super) new: String,
    /// Whether it can change at run time.
    pub(super) live: bool,
}

/// The new settings, except those that need a restart: these keep their old values.
pub(super) fn live(old: &Settings, new: Settings) -> Settings {
    Settings {
        etcd: Etcd {
            cafile: new.etcd.cafile,
            certfile: new.etcd.certfile,
            keyfile: new.etcd.keyfile,
            username: new.etcd.username,
            password: new.etcd.password,
            ..old.etcd.clone()
        },
        firewall: new.firewall,
        health: new.health,
        agent: Agent {
            log: new.agent.log,
            resync: new.agent.resync,
            leave_on_stop: new.agent.leave_on_stop,
            ..old.agent.clone()
        },
        ..old.clone()
    }
}

/// The differences, in the order of the settings file.
pub(super) fn changes(old: &Settings, new: &Settings) -> Vec<Change> {
    let password = (old.etcd.password != new.etcd.password).then(|| Change {
        key: "etcd.password-file",
        old: SECRET.to_owned(),
        new: format!("another {SECRET}"),
        live: true,
    });
    let differ = describe(old)
        .into_iter()
        .zip(describe(new))
        .filter(|(old, new)| old.value != new.value)
        .map(|(old, new)| Change {
            key: old.key,
            old: old.value,
            new: new.value,
            live: old.live,
        });
    differ.chain(password).collect()
}

/// A setting with its value as text.
struct Described {
    key: &'static str,
    value: String,
    live: bool,
}

/// All settings except the password, always in the same order.
fn describe(settings: &Settings) -> Vec<Described> {
    let setting = |key, value| Described {
        key,
        value,
        live: is_live(key),
    };
    // Destructured without `..`, so that a new setting does not compile until it is added here.
    let Settings {
        etcd,
        remote,
        underlay,
        firewall,
        files,
        health,
        agent,
    } = settings;
    let Remote {
        servers,
        network: remote_network,
        listen: serve,
        cafile: remote_cafile,
        certfile: remote_certfile,
        keyfile: remote_keyfile,
        insecure,
    } = remote;
    let Etcd {
        endpoints,
        prefix,
        cafile,
        certfile,
        keyfile,
        username,
        password: _,
        lease_ttl,
    } = etcd;
    let Underlay {
        interfaces,
        interface_regex,
        can_reach,
        interface_cidr,
        public_ip,
        public_ipv6,
    } = underlay;
    let Firewall {
        mode,
        masquerade,
        forward,
        random_fully,
        masquerade_exclude,
        resync: firewall_resync,
        blackhole_route,
    } = firewall;
    let Files {
        subnet_file,
        state_dir,
        socket,
    } = files;
    let Health { listen } = health;
    let Agent {
        network,
        node_id,
        log,
        resync,
        leave_on_stop,
    } = agent;
    let path =
        |path: &Option<std::path::PathBuf>| optional(path.as_ref().map(|path| path.display()));
    vec![
        setting("etcd.endpoints", list(endpoints)),
        setting("etcd.prefix", prefix.clone()),
        setting("etcd.cafile", path(cafile)),
        setting("etcd.certfile", path(certfile)),
        setting("etcd.keyfile", path(keyfile)),
        setting("etcd.username", optional(username.as_ref())),
        setting("etcd.lease-ttl", seconds(*lease_ttl)),
        setting("remote.server", list(servers)),
        setting("remote.network", remote_network.clone()),
        setting("remote.listen", optional(serve.as_ref())),
        setting("remote.cafile", path(remote_cafile)),
        setting("remote.certfile", path(remote_certfile)),
        setting("remote.keyfile", path(remote_keyfile)),
        setting("remote.insecure", insecure.to_string()),
        setting(
            "underlay.interfaces",
            list(interfaces.iter().map(|interface| match interface {
                Interface::Name(name) => name.to_string(),
                Interface::Address(address) => address.to_string(),
            })),
        ),
        setting("underlay.interface-regex", list(interface_regex)),
        setting("underlay.can-reach", optional(can_reach.as_ref())),
        setting("underlay.interface-cidr", list(interface_cidr)),
        setting("underlay.public-ip", optional(public_ip.as_ref())),
        setting("underlay.public-ipv6", optional(public_ipv6.as_ref())),
        setting("firewall.mode", mode.to_string()),
        setting("firewall.masquerade", masquerade.to_string()),
        setting("firewall.forward", forward.to_string()),
        setting("firewall.random-fully", random_fully.to_string()),
        setting("firewall.masquerade-exclude", list(masquerade_exclude)),
        setting("firewall.resync", seconds(*firewall_resync)),
        setting("firewall.blackhole-route", blackhole_route.to_string()),
        setting("files.subnet-file", subnet_file.display().to_string()),
        setting("files.state-dir", state_dir.display().to_string()),
        setting("files.socket", socket.display().to_string()),
        setting("health.address", optional(listen.as_ref())),
        setting("agent.network", optional(network.as_ref())),
        setting("agent.node-id", optional(node_id.as_ref())),
        setting("agent.log", log.clone()),
        setting("agent.resync", seconds(*resync)),
        setting("agent.leave-on-stop", leave_on_stop.to_string()),
    ]
}

fn optional(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn list(values: impl IntoIterator<Item = impl Display>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    values.join(", ")
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

#[cfg(test)]
mod tests;
