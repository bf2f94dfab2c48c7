//! Conflicting networks: the underlay's, Docker's, a VPN's; and servers hidden by overlay addresses.
//!
//! The overlay's routes have the prefix length of a node's subnet. So another program's shorter route, such as a
//! default route, takes no traffic from the overlay, but the overlay takes traffic from it.

mod host;
mod servers;

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Check, Context, cap, networks, observe_host, overlap, own_subnets};
use crate::base::logging::chain;
use crate::command::doctor::{Finding, Names, NotChecked, Outcome, Severity};
use crate::host::netlink::survey;
use crate::plan::backend::table;
use crate::telemetry::status::Status;

const NAME: &str = "overlap";

/// Networks and servers with overlay addresses.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "other networks, VPN routes and servers inside the overlay's network",
    run: |context| Box::pin(check(context)),
};

async fn check(context: &Context<'_>) -> Outcome {
    let status = context.status()?;
    let networks: Vec<IpNet> = networks(status).collect();
    if networks.is_empty() {
        return Err(NotChecked(
            "the agent has not read the network config yet".to_owned(),
        ));
    }
    let unknown = |error| NotChecked(chain(&error));
    let host = observe_host().await?;
    let routes = survey::foreign_routes(&networks).await.map_err(unknown)?;
    let rules = survey::policy_rules().await.map_err(unknown)?;
    let state = host::HostState {
        names: &context.names,
        status,
        networks: &networks,
        host: &host,
        routes: &routes,
        rules: &rules,
    };
    let peers = state.sample();
    let lookup = peers.iter().map(|peer| (peer.address, peer.forwarded));
    let resolved_routes = survey::resolve_routes(lookup).await.map_err(unknown)?;
    let mut findings = state.underlay();
    findings.extend(state.addresses());
    // If other programs make the routes, they cannot be judged.
    let network = status.network.as_ref();
    let backend = network.and_then(|network| table::find(&network.backend));
    if network.is_some() && backend.is_none_or(|backend| !backend.leaves_routes) {
        let lost = state.bypassing_peers(&peers, &resolved_routes);
        findings.extend(state.routes(&lost));
        findings.extend(lost);
    }
    findings.extend(servers::find(context, status, &networks, &host).await);
    Ok(cap(findings))
}

/// The owner of an overlay address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// In this node's subnet.
    Own,
    /// In a peer's.
    Peer,
    /// In nobody's yet.
    Nobody,
}

fn holder(status: &Status, address: IpAddr) -> Holder {
    if own_subnets(status).any(|net| net.contains(&address)) {
        return Holder::Own;
    }
    let mut nets = status.peers.iter().flat_map(|peer| peer.nets());
    match nets.any(|net| net.contains(&address)) {
        true => Holder::Peer,
        false => Holder::Nobody,
    }
}

fn finding(
    severity: Severity,
    subject: String,
    what: String,
    why: &str,
    remedy: Vec<String>,
) -> Finding {
    Finding::new(NAME, severity, subject, what, why, remedy)
}

/// How to move the overlay to another network.
fn renumber(names: &Names) -> String {
    format!(
        "or move the overlay to an unused network: {} FILE; nodes take subnets of it when their agents restart",
        names.selvage("network set")
    )
}

/// How to exclude host addresses from subnets.
fn exclude(names: &Names) -> String {
    format!(
        "SubnetMin and SubnetMax in the network config ({})",
        names.selvage("network set")
    )
}
