//! The node's `/etc/selvage/agent.toml`, made from the `[agent]` tables of the cluster description.

use std::net::IpAddr;
use std::path::Path;

use thiserror::Error;
use toml::{Table, Value};

use super::locate::join_key;
use crate::settings;

/// Why an `[agent]` setting is refused.
#[derive(Debug, Error)]
pub enum SettingFault {
    /// The agent would refuse it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// Another key of the description determines this setting.
    #[error(
        "this cannot be set here, because it differs between nodes or follows from the description: {0}"
    )]
    Elsewhere(&'static str),
}

/// Checks the `[agent]` table as the agents will; returns the path of each fault, starting with `agent`.
///
/// Checks settings one by one, to find the invalid one, and then all together, because some need others.
pub(super) fn check(agent: &Table) -> Vec<(String, SettingFault)> {
    let mut faults = Vec::new();
    for (name, value) in agent {
        let path = join_key("agent", name);
        let alone = match value {
            Value::Table(_) => Value::Table(Table::new()),
            value => value.clone(),
        };
        if let Err(fault) = check_alone(name, alone) {
            faults.push((path, fault));
            continue;
        }
        for (key, value) in value.as_table().into_iter().flatten() {
            let setting = Table::from_iter([(key.clone(), value.clone())]);
            let fault = elsewhere(name, key, value)
                .map_or_else(|| check_alone(name, Value::Table(setting)), Err);
            faults.extend(fault.err().map(|fault| (join_key(&path, key), fault)));
        }
    }
    if faults.is_empty() {
        let fault = check_as_agent(agent).and_then(|result| result.map_err(refused));
        faults.extend(fault.err().map(|fault| ("agent".to_owned(), fault)));
    }
    faults
}

/// Settings that cannot be the same on all nodes.
fn elsewhere(table: &str, key: &str, value: &Value) -> Option<SettingFault> {
    match (table, key) {
        ("etcd", "endpoints") => Some(SettingFault::Elsewhere(
            "use etcd.members or etcd.endpoints",
        )),
        ("agent", "network") => Some(SettingFault::Elsewhere(
            "Docker uses the unnamed network; named networks have their own files and units",
        )),
        ("agent", "node-id") => Some(SettingFault::Elsewhere("leave it to each machine")),
        ("underlay", "public-ip" | "public-ipv6") => {
            Some(SettingFault::Elsewhere("use the node's address"))
        }
        ("underlay", "interfaces") if texts(value).any(is_address) => {
            Some(SettingFault::Elsewhere("use the node's address"))
        }
        _ => None,
    }
}

/// Checks one table of settings as the agent does, except for what it needs besides this table.
fn check_alone(name: &str, value: Value) -> Result<(), SettingFault> {
    match check_as_agent(&Table::from_iter([(name.to_owned(), value)]))? {
        Err(error) if !matches!(error, settings::Error::Alone { .. }) => Err(refused(error)),
        _ => Ok(()),
    }
}

fn check_as_agent(settings: &Table) -> Result<Result<(), settings::Error>, SettingFault> {
    let text = toml::to_string(settings).map_err(|e| SettingFault::Refused(e.to_string()))?;
    Ok(settings::check_file(&text, Path::new("[agent]")))
}

/// The agent's message without its line number, which belongs to a generated text.
fn refused(error: settings::Error) -> SettingFault {
    SettingFault::Refused(match error {
        settings::Error::Syntax { message, .. } => message,
        settings::Error::Value {
            key,
            value,
            expected,
            ..
        } => format!("{key} = {value}: expected {expected}"),
        settings::Error::Alone { key, partner, .. } => {
            format!("{key} is set, but {partner} is not: expected both or neither")
        }
        error => error.to_string(),
    })
}

/// A string, or the strings of a list.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    value
        .as_str()
        .into_iter()
        .chain(list.iter().filter_map(Value::as_str))
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// Merges `over` into `base`: tables are merged, anything else is replaced.
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
