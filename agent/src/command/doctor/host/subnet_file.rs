//! Compares `subnet.env` with the agent's lease: runtimes that start next use the file.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::Own;
use crate::base::env_file;
use crate::base::net::Leased;
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::subnet_file::SubnetFile;
use crate::telemetry::status::State;

pub(super) const NAME: &str = "subnet-file";

pub(super) fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    if own.status.health.state == State::Joining {
        return Err(NotChecked("the agent has not joined yet".to_owned()));
    }
    let path = &own.status.files.subnet_file;
    let fault = fault(&own, path)?;
    let finding = |fault| {
        Finding::new(
            NAME,
            Severity::Error,
            path,
            format!("the subnet file {path} is {fault}"),
            "Docker and CNI plugins fail to start or use wrong addresses; running containers are not affected",
            vec![
                format!(
                    "{}, which rewrites the file and loses no packets",
                    own.names.systemctl("restart")
                ),
                format!("find out what else writes {path}: only one agent may"),
            ],
        )
    };
    Ok(fault.map(finding).into_iter().collect())
}

/// What is wrong with the file, if anything.
fn fault(own: &Own<'_>, path: &str) -> Result<Option<String>, NotChecked> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some("missing".to_owned()));
        }
        Err(error) => return Err(NotChecked(format!("failed to read {path}: {error}"))),
    };
    let mut found = BTreeMap::new();
    if let Err(error) = env_file::source(&text, &mut found) {
        return Ok(Some(format!("not valid shell syntax: {error}")));
    }
    let differences: Vec<String> = wanted(own)
        .lines()
        .filter_map(|line| line.split_once('='))
        // Masquerading may be overridden for a run, and Docker's options follow from the other lines.
        .filter(|(key, _)| key.starts_with("FLANNEL_") && *key != "FLANNEL_IPMASQ")
        .filter_map(|(key, value)| match found.get(key) {
            Some(found) if found == value => None,
            Some(found) => Some(format!("{key} is {found} and should be {value}")),
            None => Some(format!("{key} is missing and should be {value}")),
        })
        .collect();
    Ok((!differences.is_empty()).then(|| format!("wrong: {}", differences.join("; "))))
}

/// The file's text according to the agent.
fn wanted(own: &Own<'_>) -> String {
    let v4 = own.network.ipv4.zip(own.lease.subnet);
    let v6 = own.network.ipv6.zip(own.lease.subnet_v6);
    let file = SubnetFile {
        v4: v4.map(|(network, subnet)| Leased { network, subnet }),
        v6: v6.map(|(network, subnet)| Leased { network, subnet }),
        mtu: own.network.mtu,
        masquerade: false,
    };
    file.render()
}
