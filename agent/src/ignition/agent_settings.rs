//! The node's `/etc/selvage/agent.toml`: what the cluster description says about the agent.

use std::net::IpAddr;

use thiserror::Error;
use toml::{Table, Value};

use super::locate::join_key;

/// The kind of value that a setting takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Count,
}

/// The agent's settings that a whole cluster may share. Not among them: `etcd.endpoints` and `underlay.public-ip`,
/// which the description has elsewhere, per node.
const SHARED: [(&str, &str, Kind); 14] = [
    ("agent", "log", Kind::Text),
    ("agent", "resync", Kind::Count),
    ("etcd", "prefix", Kind::Text),
    ("etcd", "cafile", Kind::Text),
    ("etcd", "certfile", Kind::Text),
    ("etcd", "keyfile", Kind::Text),
    ("etcd", "username", Kind::Text),
    ("etcd", "password-file", Kind::Text),
    ("files", "state-dir", Kind::Text),
    ("files", "subnet-file", Kind::Text),
    ("firewall", "forward", Kind::Flag),
    ("firewall", "masquerade", Kind::Flag),
    ("firewall", "random-fully", Kind::Flag),
    ("underlay", "interface", Kind::Text),
];

/// Why an `[agent]` setting is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SettingFault {
    /// The agent has no such table.
    #[error(
        "the agent has no settings table {0:?}: expected agent, etcd, files, firewall or underlay"
    )]
    Table(String),
    /// A table's name is given to a plain value.
    #[error("{0} is a table of settings")]
    NotATable(String),
    /// The agent has no such setting.
    #[error("the agent has no setting {key:?} in this table: expected one of {known}")]
    Key {
        /// What was written.
        key: String,
        /// The table's settings.
        known: String,
    },
    /// The value has the wrong type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// In words, what the setting takes.
        expected: &'static str,
        /// TOML's name of the type that was written.
        found: &'static str,
    },
    /// The description has another place for this setting.
    #[error("this differs between nodes or follows from the description: {0}")]
    Elsewhere(&'static str),
}

/// Checks the `[agent]` table; yields the path of each fault, from `agent` on.
pub(super) fn check(agent: &Table) -> Vec<(String, SettingFault)> {
    let mut faults = Vec::new();
    for (name, value) in agent {
        let path = join_key("agent", name);
        if !SHARED.iter().any(|(table, ..)| table == name) {
            faults.push((path, SettingFault::Table(name.clone())));
            continue;
        }
        let Value::Table(settings) = value else {
            faults.push((path, SettingFault::NotATable(name.clone())));
            continue;
        };
        for (key, value) in settings {
            if let Err(fault) = check_setting(name, key, value) {
                faults.push((join_key(&path, key), fault));
            }
        }
    }
    faults
}

fn check_setting(table: &str, key: &str, value: &Value) -> Result<(), SettingFault> {
    match (table, key) {
        ("etcd", "endpoints") => {
            return Err(SettingFault::Elsewhere(
                "use etcd.members or etcd.endpoints",
            ));
        }
        ("underlay", "public-ip") => {
            return Err(SettingFault::Elsewhere("use the node's address"));
        }
        ("underlay", "interface") if value.as_str().is_some_and(is_address) => {
            return Err(SettingFault::Elsewhere("use the node's address"));
        }
        _ => {}
    }
    let in_table = || SHARED.iter().filter(|(name, ..)| *name == table);
    let Some((.., kind)) = in_table().find(|(_, name, _)| *name == key) else {
        let known: Vec<&str> = in_table().map(|(_, name, _)| *name).collect();
        return Err(SettingFault::Key {
            key: key.to_owned(),
            known: known.join(", "),
        });
    };
    let (expected, fits) = match kind {
        Kind::Text => ("a string", value.is_str()),
        Kind::Flag => ("true or false", value.is_bool()),
        Kind::Count => (
            "a whole number from 1",
            value.as_integer().is_some_and(|number| number > 0),
        ),
    };
    if fits {
        Ok(())
    } else {
        Err(SettingFault::Type {
            expected,
            found: value.type_str(),
        })
    }
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// Lays `over` upon `base`: tables are merged, anything else is replaced.
pub(super) fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}
