//! Packets between two containers on one bridge bypass the packet filter unless `br_netfilter` is active. kube-proxy
//! and Docker's `icc=false` depend on it; plain Docker does not, so hosts without either get no finding.

use super::docker::Docker;
use super::filter::Filter;
use super::{Own, inventory, sysctl};
use crate::command::doctor::{Context, Finding, NotChecked, Outcome, Severity};
use crate::host::netlink::inventory::Inventory;

pub(super) const NAME: &str = "br-netfilter";

const WHY: &str = "Packets between containers on one bridge bypass the packet filter: a service's address does not reach a container on the same node, or isolated containers reach each other";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let own = Own::new(context)?;
    let inventory = inventory().await?;
    // Without a bridge there are no bridged packets.
    let Some(bridge) = own
        .bridge(&inventory)
        .filter(|bridge| bridge.kind.as_deref() == Some("bridge"))
    else {
        return Ok(Vec::new());
    };
    let off: Vec<_> = sysctls(&own)
        .map(|name| (name, sysctl(&format!("net/bridge/{name}"))))
        .filter(|(_, value)| value.as_deref() != Some("1"))
        .collect();
    let Some((name, value)) = off.first() else {
        return Ok(Vec::new());
    };
    let Some(needs) = dependent(&inventory).await? else {
        return Ok(Vec::new());
    };
    let mut remedy = Vec::new();
    let what = match value {
        None => {
            remedy.push("modprobe br_netfilter".to_owned());
            remedy.push(
                "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf, for the next boot"
                    .to_owned(),
            );
            format!("the kernel module br_netfilter is not loaded, and {needs} needs it")
        }
        Some(value) => format!("net.bridge.{name} is {value}, and {needs} needs it to be 1"),
    };
    let names = || off.iter().map(|(name, _)| name);
    remedy.extend(names().map(|name| format!("sysctl -w net.bridge.{name}=1")));
    let lasting =
        names().map(|name| format!("echo net.bridge.{name} = 1 >> /etc/sysctl.d/90-bridge.conf"));
    remedy.push(lasting.collect::<Vec<_>>().join("; "));
    Ok(vec![Finding::new(
        NAME,
        Severity::Error,
        &bridge.name,
        what,
        WHY,
        remedy,
    )])
}

/// The program on this host that depends on bridged packets being filtered, if any.
async fn dependent(inventory: &Inventory) -> Result<Option<String>, NotChecked> {
    let docker = Docker::ask().await;
    let bridges = docker.iter().flatten().flat_map(Docker::bridges);
    if let Some(network) = bridges.into_iter().find(|network| network.isolates()) {
        return Ok(Some(format!(
            "Docker, which isolates the containers of its network {} (icc=false)",
            network.name
        )));
    }
    if inventory.named("kube-ipvs0").is_some() || Filter::read().await?.has_kube_proxy() {
        return Ok(Some("kube-proxy".to_owned()));
    }
    docker.map(|_| None)
}

/// The relevant sysctls for the overlay's IP versions.
fn sysctls(own: &Own<'_>) -> impl Iterator<Item = &'static str> {
    let v4 = own.lease.subnet.map(|_| "bridge-nf-call-iptables");
    let v6 = own.lease.subnet_v6.map(|_| "bridge-nf-call-ip6tables");
    v4.into_iter().chain(v6)
}
