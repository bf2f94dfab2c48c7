//! The own lease: lost, or about to end.

use std::future::ready;

use super::Check;
use super::advice::{Advice, advise, full};
use crate::command::doctor::{Finding, Severity};
use crate::settings::Settings;
use crate::telemetry::status::{Lease, Status};

/// A lease that another node has, or nobody.
pub(super) const LOST: Check = Check {
    name: "lease-lost",
    looks_for: "a lease of this node that ended or is somebody else's",
    run: |context| {
        Box::pin(ready(
            context
                .status()
                .map(|status| lost(status, context.settings)),
        ))
    },
};

/// A lease that is not extended.
pub(super) const EXPIRY: Check = Check {
    name: "lease-expiry",
    looks_for: "a lease of this node that is not extended",
    run: |context| {
        Box::pin(ready(
            context
                .status()
                .map(|status| expiry(status, context.settings)),
        ))
    },
};

fn lost(status: &Status, settings: &Settings) -> Vec<Finding> {
    let lease = status.lease.as_ref().filter(|lease| !lease.held);
    let Some(lease) = lease else {
        return Vec::new();
    };
    let trouble = lease.trouble.as_deref();
    let advice = match trouble {
        Some(trouble) if trouble.contains("out of subnets") => Advice {
            why: format!("{}; {}", why_lost(), full().why),
            ..full()
        },
        Some(trouble) => Advice {
            why: why_lost().to_owned(),
            ..advise(trouble, settings)
        },
        None => Advice::new(
            why_lost(),
            [
                "ask again in a moment: the agent is taking a lease",
                "journalctl -u selvage -n 50",
            ],
        ),
    };
    let trouble = trouble.map(|trouble| format!(": {trouble}"));
    vec![Finding {
        check: LOST.name.to_owned(),
        severity: Severity::Error,
        subject: Some(subnets(lease)),
        what: format!(
            "this node has lost its lease on {}{}",
            subnets(lease),
            trouble.unwrap_or_default()
        ),
        why: advice.why,
        remedy: advice.remedy,
    }]
}

fn why_lost() -> &'static str {
    "another node may be given the subnet, and peers forget this one; the data plane stays as it is until the agent has a lease again"
}

fn expiry(status: &Status, settings: &Settings) -> Vec<Finding> {
    let lease = status.lease.as_ref();
    let Some(lease) = lease.filter(|lease| lease.held && !lease.reservation) else {
        return Vec::new();
    };
    // It is extended after a sixth of its duration, so that more than half should be left at all times.
    let is_late = match (lease.left_seconds, lease.ttl_seconds) {
        (Some(left), Some(ttl)) => left < ttl / 2,
        _ => false,
    };
    if !is_late && lease.trouble.is_none() {
        return Vec::new();
    }
    let is_near = match (lease.left_seconds, lease.ttl_seconds) {
        (Some(left), Some(ttl)) => left < ttl / 4,
        _ => false,
    };
    let left = lease.left_seconds.map_or_else(
        || "nobody knows when it ends".to_owned(),
        |left| format!("it ends in {}", duration(left)),
    );
    let trouble = lease.trouble.as_deref().or(status.store.trouble.as_deref());
    let advice = advise(trouble.unwrap_or("etcd"), settings);
    let trouble = trouble.map(|trouble| format!(": {trouble}"));
    vec![Finding {
        check: EXPIRY.name.to_owned(),
        severity: if is_near {
            Severity::Error
        } else {
            Severity::Warning
        },
        subject: Some(subnets(lease)),
        what: format!(
            "the lease on {} is not extended, and {left}{}",
            subnets(lease),
            trouble.unwrap_or_default()
        ),
        why: "a lease that ends frees the subnet for other nodes, and peers remove this one; for 20 s after an outage they still count it as there".to_owned(),
        remedy: advice.remedy,
    }]
}

fn subnets(lease: &Lease) -> String {
    let v4 = lease.subnet.map(|net| net.to_string());
    let v6 = lease.subnet_v6.map(|net| net.to_string());
    let nets: Vec<_> = v4.into_iter().chain(v6).collect();
    nets.join(" and ")
}

/// Seconds in words, of the two largest units.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}
