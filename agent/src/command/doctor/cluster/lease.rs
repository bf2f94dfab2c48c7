//! The own lease: lost, or about to expire.

use super::advice::{WITHOUT_LEASE, advise, store};
use super::{Check, of_status};
use crate::base::words::duration;
use crate::command::doctor::{Finding, Names, Severity};
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code, Lease, Status, TaskName};

/// A lease that was taken by another node, or is gone.
pub(super) const LOST: Check = Check {
    name: "lease-lost",
    looks_for: "a lease of this node that expired or that another node took",
    run: |context| {
        of_status(context, |status| {
            lost(status, context.settings, &context.names)
        })
    },
};

/// A lease that is not renewed.
pub(super) const EXPIRY: Check = Check {
    name: "lease-expiry",
    looks_for: "a lease of this node that is not renewed",
    run: |context| {
        of_status(context, |status| {
            expiry(status, context.settings, &context.names)
        })
    },
};

fn lost(status: &Status, settings: &Settings, names: &Names) -> Vec<Finding> {
    let lease = status.lease.as_ref().filter(|lease| !lease.held);
    let Some(lease) = lease else {
        return Vec::new();
    };
    let trouble = lease.trouble.as_deref();
    let gone = || Cause::new(Code::LeaseLost, trouble.unwrap_or_default());
    let cause = status.cause(TaskName::Lease).cloned().unwrap_or_else(gone);
    let advice = advise(&cause, settings, names);
    let why = match cause.code {
        Code::OutOfSubnets => format!("{WITHOUT_LEASE}; {}", advice.why),
        _ => WITHOUT_LEASE.to_owned(),
    };
    let trouble = trouble.map(|trouble| format!(": {trouble}"));
    vec![Finding {
        check: LOST.name.to_owned(),
        severity: Severity::Error,
        subject: Some(subnets(lease)),
        peers: Vec::new(),
        what: format!(
            "this node lost its lease on {}{}",
            subnets(lease),
            trouble.unwrap_or_default()
        ),
        why,
        remedy: advice.remedy,
    }]
}

fn expiry(status: &Status, settings: &Settings, names: &Names) -> Vec<Finding> {
    let lease = status.lease.as_ref();
    let Some(lease) = lease.filter(|lease| lease.held && !lease.reservation) else {
        return Vec::new();
    };
    // It is renewed after a sixth of its TTL, so more than half should always be left.
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
        || "its expiry is unknown".to_owned(),
        |left| format!("it expires in {}", duration(left)),
    );
    let trouble = lease.trouble.as_deref().or(status.store.trouble.as_deref());
    let renewal = status.cause(TaskName::Renewal);
    let cause = renewal.or_else(|| status.cause(TaskName::Store));
    // Without a cause, blame the store: it did not renew the lease.
    let code = cause.map_or(Code::StoreUnreachable, |cause| cause.code);
    let advice = store(code, settings, names);
    let trouble = trouble.map(|trouble| format!(": {trouble}"));
    vec![Finding {
        check: EXPIRY.name.to_owned(),
        severity: if is_near {
            Severity::Error
        } else {
            Severity::Warning
        },
        subject: Some(subnets(lease)),
        peers: Vec::new(),
        what: format!(
            "the lease on {} is not renewed, and {left}{}",
            subnets(lease),
            trouble.unwrap_or_default()
        ),
        why: "when a lease expires, other nodes may take its subnet and peers remove this node; after an outage they keep it for another 20 s".to_owned(),
        remedy: advice.remedy,
    }]
}

fn subnets(lease: &Lease) -> String {
    let nets: Vec<_> = lease.nets().map(|net| net.to_string()).collect();
    nets.join(" and ")
}
