//! What all nodes share: a network config that is not followed, and a network that is full.

use std::future::ready;

use super::Check;
use super::advice::{Advice, advise, full, network_config};
use crate::command::doctor::{Finding, Severity};
use crate::settings::Settings;
use crate::telemetry::status::Status;

/// A network config that was written and is not in use.
pub(super) const CONFIG: Check = Check {
    name: "network-config",
    looks_for: "a network config that was written but cannot be followed",
    run: |context| {
        Box::pin(ready(
            context
                .status()
                .map(|status| config(status, context.settings)),
        ))
    },
};

/// A network in which hardly a subnet is free.
pub(super) const SUBNETS: Check = Check {
    name: "subnets",
    looks_for: "a network in which hardly a subnet is free",
    run: |context| Box::pin(ready(context.status().map(subnets))),
};

fn config(status: &Status, settings: &Settings) -> Vec<Finding> {
    let network = status.network.as_ref();
    let Some(rejected) = network.and_then(|network| network.rejected.as_deref()) else {
        return Vec::new();
    };
    let advice = if rejected.contains("does not allow this host's subnet") {
        Advice::new(
            "this node goes on with its subnet, which the others may not find in the new network; another subnet means that its containers must be restarted",
            [
                "move this node when its containers can be restarted: systemctl restart selvage (docker.service is restarted with the new subnet by the image's selvage-docker.service; else: systemctl restart docker)",
                "or write a network config again that has room for this node's subnet: selvage network set FILE",
            ],
        )
    } else if rejected.contains("no network config at") {
        advise(rejected, settings)
    } else {
        network_config()
    };
    vec![Finding {
        check: CONFIG.name.to_owned(),
        severity: Severity::Warning,
        subject: Some(format!("{}/config", status.store.prefix)),
        what: format!("the network config that was written last is not in use: {rejected}"),
        why: advice.why,
        remedy: advice.remedy,
    }]
}

fn subnets(status: &Status) -> Vec<Finding> {
    let network = status.network.as_ref();
    let Some(capacity) = network.and_then(|network| network.subnets) else {
        return Vec::new();
    };
    let leases = status.peers.len() + usize::from(status.lease.is_some());
    let leases = u64::try_from(leases).unwrap_or(u64::MAX);
    let free = capacity.saturating_sub(leases);
    // A tenth is the room that a growing cluster has left; a cluster that is full by intent has its last node.
    if free > capacity / 10 {
        return Vec::new();
    }
    let advice = full();
    let room = match free {
        0 => "the next node gets none".to_owned(),
        free => format!("only {free} more nodes get one"),
    };
    vec![Finding {
        check: SUBNETS.name.to_owned(),
        severity: Severity::Warning,
        subject: None,
        what: format!("{leases} of the network's {capacity} subnets are leased; {room}"),
        why: advice.why,
        remedy: advice.remedy,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{Agent, Network};

    #[test]
    fn a_network_is_told_to_be_full_in_time() {
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        assert!(subnets(&status).is_empty());
        for (capacity, peers, told) in [
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
            assert_eq!(!subnets(&status).is_empty(), told, "{peers} of {capacity}");
        }
    }
}
