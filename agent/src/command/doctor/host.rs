//! Checks of this host: devices, rules, runtimes.
//!
//! Everything is read in this process's namespaces: rtnetlink and `/proc/thread-self/net`, the programs that print the
//! packet filter, the runtimes' files, and Docker's API. Nothing is changed.

use std::future::ready;

use ipnet::IpNet;

use super::{Check, Context, Names, NotChecked, cluster};
use crate::base::logging::chain;
use crate::host::netlink::inventory::{Interface, Inventory};
use crate::telemetry::status::{Lease, Network, Status};

mod br_netfilter;
mod cni;
mod docker;
mod docker_config;
mod docker_subnet;
mod filter;
mod forward_drop;
mod mac_policy;
mod old_subnet;
mod stale_objects;
mod subnet_file;

/// The checks, in the order of the report.
pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: subnet_file::NAME,
            looks_for: "a subnet file that is missing or differs from the agent's lease",
            run: |context| Box::pin(ready(subnet_file::check(context))),
        },
        Check {
            name: docker_subnet::NAME,
            looks_for: "Docker outside this node's subnet, or with an MTU above the overlay's",
            run: |context| Box::pin(docker_subnet::check(context)),
        },
        Check {
            name: docker_config::NAME,
            looks_for: "options that are set twice and keep Docker from starting",
            run: |context| Box::pin(ready(docker_config::check(context))),
        },
        Check {
            name: old_subnet::NAME,
            looks_for: "containers and bridges on a previous subnet of this node",
            run: |context| Box::pin(old_subnet::check(context)),
        },
        Check {
            name: br_netfilter::NAME,
            looks_for: "bridged packets that bypass the rules of kube-proxy or Docker",
            run: |context| Box::pin(br_netfilter::check(context)),
        },
        Check {
            name: forward_drop::NAME,
            looks_for: "rules and sysctls that drop the packets that this host forwards for the overlay",
            run: |context| Box::pin(forward_drop::check(context)),
        },
        Check {
            name: mac_policy::NAME,
            looks_for: "an overlay device whose MAC address systemd-udevd changed or may change",
            run: |context| Box::pin(mac_policy::check(context)),
        },
        Check {
            name: stale_objects::NAME,
            looks_for: "devices, routes, rules and processes of another agent",
            run: |context| Box::pin(stale_objects::check(context)),
        },
    ]
}

/// The agent's status and lease on this host.
pub(super) struct Own<'a> {
    names: &'a Names,
    status: &'a Status,
    pub(super) network: &'a Network,
    lease: &'a Lease,
}

impl<'a> Own<'a> {
    /// Takes them from the agent's status.
    ///
    /// # Errors
    /// The agent does not answer, or has no lease yet.
    pub(super) fn new(context: &'a Context<'_>) -> Result<Self, NotChecked> {
        let status = context.status()?;
        match (&status.network, &status.lease) {
            (Some(network), Some(lease)) => Ok(Self {
                names: &context.names,
                status,
                network,
                lease,
            }),
            _ => Err(NotChecked("the agent has no lease yet".to_owned())),
        }
    }

    /// This node's subnets.
    fn subnets(&self) -> impl Iterator<Item = IpNet> {
        cluster::own_subnets(self.status).map(|net| net.trunc())
    }

    /// The whole overlay's networks.
    fn networks(&self) -> impl Iterator<Item = IpNet> {
        cluster::networks(self.status).map(|net| net.trunc())
    }

    /// Whether an address is in the overlay, but in no subnet of this node.
    fn is_outside_own_subnets(&self, address: std::net::IpAddr) -> bool {
        self.networks().any(|net| net.contains(&address))
            && !self.subnets().any(|net| net.contains(&address))
    }

    /// Whether an interface is an overlay device of ours.
    fn has_device(&self, name: &str) -> bool {
        self.status.devices.iter().any(|device| device.name == name)
    }

    /// The containers' bridge: the interface with the first address of a subnet, or with any.
    pub(super) fn bridge<'s>(&self, inventory: &'s Inventory) -> Option<&'s Interface> {
        let here = |net: &IpNet| self.subnets().any(|subnet| subnet.contains(&net.addr()));
        let mut owners = inventory.interfaces.iter().filter(|interface| {
            !self.has_device(&interface.name)
                && inventory
                    .addresses_of(interface.index)
                    .any(|net| here(&net))
        });
        owners.next()
    }
}

/// Interfaces, addresses and routes of this host.
pub(super) async fn inventory() -> Result<Inventory, NotChecked> {
    let inventory = Inventory::take().await;
    inventory.map_err(|error| {
        NotChecked(format!(
            "failed to read interfaces and routes: {}",
            chain(&error)
        ))
    })
}

/// A sysctl of this network namespace, such as `net/ipv4/ip_forward`; `None` if it does not exist.
fn sysctl(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(text.trim().to_owned())
}

/// A list of items for a sentence.
fn listed<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    texts.join(" and ")
}
