//! `subnet.env` against what the agent says: runtimes that start next go by the file.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::{Own, finding};
use crate::base::env_file;
use crate::base::net::Leased;
use crate::command::doctor::{Context, NotChecked, Outcome, Severity};
use crate::host::subnet_file::SubnetFile;
use crate::telemetry::status::State;

pub(super) const NAME: &str = "subnet-file";

pub(super) fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    if own.status.health.state == State::Joining {
        return Err(NotChecked("the agent has not joined yet".to_owned()));
    }
    let path = &own.status.files.subnet_file;
    let why = "Docker and CNI plugins fail to start or use wrong addresses; running containers are not affected";
    let remedy = vec![
        format!(
            "{}, which rewrites the file and loses no packets",
            own.names.systemctl("restart")
        ),
        format!("find out what else writes {path}: only one agent may"),
    ];
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("the subnet file {path} is missing");
            return Ok(vec![finding(
                NAME,
                Severity::Error,
                path,
                what,
                why,
                remedy,
            )]);
        }
        Err(error) => return Err(NotChecked(format!("failed to read {path}: {error}"))),
    };
    let mut found = BTreeMap::new();
    if let Err(error) = env_file::source(&text, &mut found) {
        let what = format!("the subnet file {path} is not valid shell syntax: {error}");
        return Ok(vec![finding(
            NAME,
            Severity::Error,
            path,
            what,
            why,
            remedy,
        )]);
    }
    let differences: Vec<String> = wanted(&own)
        .lines()
        .filter_map(|line| line.split_once('='))
        // Whether the agent masquerades may be overruled for a run, and Docker's options are made from the rest.
        .filter(|(key, _)| key.starts_with("FLANNEL_") && *key != "FLANNEL_IPMASQ")
        .filter_map(|(key, value)| match found.get(key) {
            Some(found) if found == value => None,
            Some(found) => Some(format!("{key} is {found} and should be {value}")),
            None => Some(format!("{key} is missing and should be {value}")),
        })
        .collect();
    if differences.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!(
        "the subnet file {path} is wrong: {}",
        differences.join("; ")
    );
    Ok(vec![finding(
        NAME,
        Severity::Error,
        path,
        what,
        why,
        remedy,
    )])
}

/// The file's text, by what the agent says.
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
