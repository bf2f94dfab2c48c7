//! The wrong underlay interface: behind a NAT that hides this host from its peers, while another interface reaches
//! them.
//!
//! Virtual machines on a desktop often all have the same address on their first interface, from the hypervisor's NAT,
//! with the default route over it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Check, Context, duplicates, name, observe_host};
use crate::base::net;
use crate::command::doctor::{Finding, Names, Outcome, Severity};
use crate::host::netlink::host::Host;
use crate::telemetry::status::{Lease, Status, Underlay};

const NAME: &str = "nat-interface";

/// An underlay interface that does not lead to the peers.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "an underlay interface that does not lead to the peers, while another one does",
    run: |context| Box::pin(check(context)),
};

async fn check(context: &Context<'_>) -> Outcome {
    let status = context.status()?;
    let host = observe_host().await?;
    Ok(shared_address(status, &host, &context.names)
        .or_else(|| other_interface(status, &host, &context.names))
        .into_iter()
        .collect())
}

/// Names of interfaces to this host's containers or virtual machines, not to other hosts.
const LOCAL_PREFIXES: [&str; 10] = [
    "docker", "cni", "br-", "virbr", "veth", "lxdbr", "lxcbr", "podman", "cali", "vnet",
];

/// An address of another interface that could carry the overlay.
struct Candidate<'a> {
    interface: &'a str,
    address: IpAddr,
    net: IpNet,
}

fn candidates<'a>(status: &Status, underlay: &Underlay, host: &'a Host) -> Vec<Candidate<'a>> {
    let is_overlay = |name: &str| {
        let ours = status.devices.iter().any(|device| device.name == name);
        ours || name.starts_with("flannel")
    };
    let networks: Vec<IpNet> = super::networks(status).collect();
    host.addresses
        .iter()
        .filter(|address| address.link_index != underlay.index && is_usable(address.address))
        .filter(|address| !networks.iter().any(|net| net.contains(&address.address)))
        .filter_map(|address| {
            let mut links = host.links.iter();
            let link = links.find(|link| link.index == address.link_index)?;
            let interface = link.name.as_str();
            let is_local = LOCAL_PREFIXES
                .iter()
                .any(|prefix| interface.starts_with(prefix));
            (!is_local && !is_overlay(interface)).then_some(Candidate {
                interface,
                address: address.address,
                net: IpNet::new(address.address, address.prefix_len)
                    .ok()?
                    .trunc(),
            })
        })
        .collect()
}

fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => net::unusable_v4(v4).is_none() && !v4.is_link_local(),
        IpAddr::V6(v6) => net::unusable_v6(v6).is_none(),
    }
}

/// The public IPs that come from the interface and not from the settings.
fn interface_addresses(lease: &Lease, underlay: &Underlay) -> Vec<IpAddr> {
    let of_interface = |public: &IpAddr| underlay.nets().any(|net| net.addr() == *public);
    lease.addresses().filter(of_interface).collect()
}

/// Other nodes publish our address, too, and there is another interface: the address belongs to a NAT.
pub(super) fn shared_address(status: &Status, host: &Host, names: &Names) -> Option<Finding> {
    let (lease, underlay) = (status.lease.as_ref()?, status.underlay.as_ref()?);
    let own = interface_addresses(lease, underlay);
    let others: Vec<_> = status
        .peers
        .iter()
        .filter(|peer| peer.owner.is_some() && !duplicates::is_ours(peer, status))
        .filter(|peer| peer.addresses().any(|address| own.contains(&address)))
        .collect();
    let first = others.first()?;
    let address = first.addresses().find(|address| own.contains(address))?;
    let candidates = candidates(status, underlay, host);
    let family = candidates
        .into_iter()
        .find(|candidate| candidate.address.is_ipv4() == address.is_ipv4())?;
    let interface = &underlay.interface;
    Some(Finding {
        check: NAME.to_owned(),
        severity: Severity::Error,
        subject: Some(interface.clone()),
        peers: Vec::new(),
        what: format!(
            "this node publishes {address}, the address of {interface}, and so {} (the lease of {})",
            match others.len() {
                1 => "does another node".to_owned(),
                count => format!("do {count} others"),
            },
            name(first)
        ),
        why: "hosts that share an address are behind NAT, and peers cannot reach any of them by it; unless the settings name an interface, the agent takes that of the default route".to_owned(),
        remedy: remedies(&family, names),
    })
}

/// Peers are on-link on another interface.
fn other_interface(status: &Status, host: &Host, names: &Names) -> Option<Finding> {
    let (lease, underlay) = (status.lease.as_ref()?, status.underlay.as_ref()?);
    let own = interface_addresses(lease, underlay);
    let candidates = candidates(status, underlay, host);
    let on_link_peers = |candidate: &Candidate<'_>| {
        let wider = candidate.net.prefix_len() < candidate.net.max_prefix_len();
        let peers = status.peers.iter().filter(move |peer| {
            let mut addresses = peer.addresses();
            wider
                && addresses.any(|address| {
                    candidate.net.contains(&address)
                        && address != candidate.address
                        && !underlay.nets().any(|net| net.contains(&address))
                })
        });
        peers.map(name).collect::<Vec<_>>()
    };
    let (candidate, peers) = candidates
        .into_iter()
        .filter(|candidate| {
            own.iter()
                .any(|own| own.is_ipv4() == candidate.address.is_ipv4())
        })
        .map(|candidate| {
            let peers = on_link_peers(&candidate);
            (candidate, peers)
        })
        .max_by_key(|(_, peers)| peers.len())?;
    let first = peers.first()?;
    let published = own.first()?;
    let interface = &underlay.interface;
    Some(Finding {
        check: NAME.to_owned(),
        severity: if peers.len() == status.peers.len() {
            Severity::Error
        } else {
            Severity::Warning
        },
        subject: Some(interface.clone()),
        peers: Vec::new(),
        what: format!(
            "this node publishes {published}, the address of {interface}, but {} of {} peers ({first}{}) are in {}, the network of {}",
            peers.len(),
            status.peers.len(),
            if peers.len() > 1 { ", …" } else { "" },
            candidate.net,
            candidate.interface,
        ),
        why: "packets to them leave by one interface with the source address of another, and their replies go to an address that they may not reach: many networks drop both, and behind NAT the address is not even this host's".to_owned(),
        remedy: remedies(&candidate, names),
    })
}

fn remedies(candidate: &Candidate<'_>, names: &Names) -> Vec<String> {
    let Candidate {
        interface, address, ..
    } = candidate;
    vec![
        format!(
            "use {interface} ({address}): underlay.interfaces = [\"{interface}\"] in {} (--iface={interface}), then {}",
            names.settings_file,
            names.systemctl("restart")
        ),
        format!(
            "or, the same on all nodes whatever the interface is called there: underlay.interface-cidr = [\"{}\"] (--iface-cidr)",
            candidate.net
        ),
        "if peers reach this host by the address of a router: underlay.public-ip (--public-ip)"
            .to_owned(),
    ]
}
