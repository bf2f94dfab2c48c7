//! The shared network config: one that is not applied, or a network that is full.

use super::advice::{advise, full};
use super::{Check, of_status};
use crate::command::doctor::{Finding, Names, Severity};
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code, Status, TaskName};

/// A network config that is not in use.
pub(super) const CONFIG: Check = Check {
    name: "network-config",
    looks_for: "a network config that this node cannot apply",
    run: |context| {
        of_status(context, |status| {
            config(status, context.settings, &context.names)
        })
    },
};

/// A network with few free subnets.
pub(super) const SUBNETS: Check = Check {
    name: "subnets",
    looks_for: "a network with few free subnets, or none",
    run: |context| of_status(context, |status| subnets(status, &context.names)),
};

fn config(status: &Status, settings: &Settings, names: &Names) -> Vec<Finding> {
    let network = status.network.as_ref();
    let Some(rejected) = network.and_then(|network| network.rejected.as_deref()) else {
        return Vec::new();
    };
    let unknown = || Cause::new(Code::Unknown, rejected);
    let cause = status.cause(TaskName::Config);
    let advice = advise(&cause.cloned().unwrap_or_else(unknown), settings, names);
    vec![Finding {
        check: CONFIG.name.to_owned(),
        severity: Severity::Warning,
        subject: Some(format!("{}/config", status.store.prefix)),
        peers: Vec::new(),
        what: format!("the latest network config is not in use: {rejected}"),
        why: advice.why,
        remedy: advice.remedy,
    }]
}

fn subnets(status: &Status, names: &Names) -> Vec<Finding> {
    let network = status.network.as_ref();
    let Some(capacity) = network.and_then(|network| network.subnets) else {
        return Vec::new();
    };
    let leases = status.peers.len() + usize::from(status.lease.is_some());
    let leases = u64::try_from(leases).unwrap_or(u64::MAX);
    let free = capacity.saturating_sub(leases);
    // A tenth leaves room for a growing cluster; a network sized exactly for its nodes has its last node.
    if free > capacity / 10 {
        return Vec::new();
    }
    let advice = full(names);
    let room = match free {
        0 => "no other node can join".to_owned(),
        free => format!("only {free} more nodes can join"),
    };
    vec![Finding {
        check: SUBNETS.name.to_owned(),
        severity: Severity::Warning,
        subject: None,
        peers: Vec::new(),
        what: format!("{leases} of the network's {capacity} subnets are leased; {room}"),
        why: advice.why,
        remedy: advice.remedy,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::doctor::names::tests::settings;
    use crate::telemetry::status::{Agent, Network};

    #[test]
    fn a_full_network_is_reported_in_time() {
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        let names = Names::of(&settings(&[]));
        assert!(subnets(&status, &names).is_empty());
        for (capacity, peers, is_full) in [
            (255, 2, false),
            (255, 230, true),
            (4, 2, false),
            (4, 3, true),
        ] {
            status.network = Some(Network {
                ipv4: None,
                ipv6: None,
                backend: "vxlan".to_owned(),
                mtu: 1450,
                rejected: None,
                subnets: Some(capacity),
            });
            status.peers = super::super::tests::peers(peers);
            status.lease = Some(super::super::tests::lease());
            assert_eq!(
                !subnets(&status, &names).is_empty(),
                is_full,
                "{peers} of {capacity}"
            );
        }
    }
}
