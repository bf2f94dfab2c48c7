//! The kernel objects of an overlay whose agent is not running.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;

use super::{v4, v6};
use crate::base::net::InterfaceName;
use crate::host::identity::vxlan::stored_devices;
use crate::host::netlink::host::{Host, Query};
use crate::host::netlink::{Kernel, KernelError};
use crate::plan::backend::table;
use crate::plan::state::{Key, Object, Route, Scope, State};
use crate::settings::Settings;
use crate::telemetry::status::{Cause, Code, Coded, Device, Peer, PeerState};

/// The prefix of all overlay device names.
const DEVICES: &str = "flannel";

/// The observed objects.
#[derive(Debug, Default)]
pub(super) struct Observed {
    pub(super) devices: Vec<Device>,
    pub(super) peers: Vec<Peer>,
    /// The backend, by flannel's name; `unknown` if it cannot be determined.
    pub(super) backend: &'static str,
}

/// Looks for overlay devices and for routes of ours into `networks`.
pub(super) async fn observe_overlay(
    settings: &Settings,
    networks: &[IpNet],
    notes: &mut Vec<Cause>,
) -> Observed {
    let observed = match Kernel::open() {
        Ok(kernel) => {
            let mut kernel = kernel.of_network(settings.agent.network.as_ref());
            try_observe(&mut kernel, settings, networks, notes).await
        }
        Err(error) => Err(error),
    };
    observed.unwrap_or_else(|error| {
        notes.push(
            error
                .to_cause()
                .worded(|text| format!("failed to read the kernel state: {text}")),
        );
        Observed {
            backend: "unknown",
            ..Observed::default()
        }
    })
}

async fn try_observe(
    kernel: &mut Kernel,
    settings: &Settings,
    networks: &[IpNet],
    notes: &mut Vec<Cause>,
) -> Result<Observed, KernelError> {
    let present = overlay_devices(kernel, networks).await?;
    let mut devices = Vec::new();
    for (name, _) in &present {
        devices.push(Device::seen(name, kernel.device(name).await?));
    }
    let kept = stored_devices(&settings.files.state_dir);
    let gone: Vec<_> = kept.into_iter().map(|(name, _)| name).collect();
    // If another device exists instead, the network config has changed since.
    if present.is_empty() {
        devices.extend(gone.iter().map(|name| Device::seen(name, None)));
    }
    let (state, peers_hidden) = observe(kernel, &present, networks).await?;
    if peers_hidden {
        notes.push(Cause::new(
            Code::NotVisible,
            "only root may see WireGuard's peers",
        ));
    }
    Ok(Observed {
        backend: backend_of(&present, &state),
        peers: peers(&state, &present, networks),
        devices,
    })
}

/// The backends' devices of this network.
async fn overlay_devices(
    kernel: &mut Kernel,
    networks: &[IpNet],
) -> Result<Vec<(InterfaceName, Object)>, KernelError> {
    let links = Host::observe(Query::default()).await?.links;
    let named = links
        .into_iter()
        .filter(|link| link.name.as_str().starts_with(DEVICES));
    let mut devices = Vec::new();
    for link in named {
        if let Some(object) = kernel.own_device(&link.name, networks).await?
            && table::maker(&link.name, &object).is_some()
        {
            devices.push((link.name, object));
        }
    }
    Ok(devices)
}

/// Observes our objects; also returns whether WireGuard's peers were skipped, because only root may list them.
async fn observe(
    kernel: &mut Kernel,
    devices: &[(InterfaceName, Object)],
    networks: &[IpNet],
) -> Result<(State, bool), KernelError> {
    let mut scope = Scope {
        links: devices.iter().map(|(name, _)| name.clone()).collect(),
        networks: networks.to_vec(),
        shared: None,
        hooks: None,
        ipsec: false,
    };
    match kernel.observe(&scope).await {
        Err(KernelError::Dump { source, .. })
            if matches!(source.errno, Errno::EPERM | Errno::EACCES) =>
        {
            scope.links = devices
                .iter()
                .filter(|device| kind(device) != Some("wireguard"))
                .map(|(name, _)| name.clone())
                .collect();
            Ok((kernel.observe(&scope).await?.state, true))
        }
        observed => Ok((observed?.state, false)),
    }
}

/// The backend that creates such a device.
fn kind((name, object): &(InterfaceName, Object)) -> Option<&'static str> {
    table::maker(name, object).map(|backend| backend.kind)
}

fn backend_of(devices: &[(InterfaceName, Object)], state: &State) -> &'static str {
    let by_device = devices.iter().find_map(kind);
    let plain = || {
        let routes = state
            .values()
            .any(|object| matches!(object, Object::Route(route) if route.gateway.is_some()));
        routes.then_some("host-gw")
    };
    by_device.or_else(plain).unwrap_or("unknown")
}

/// The peers that routes of ours lead to. A dual-stack peer counts as two: the kernel does not know that its subnets
/// belong together.
fn peers(state: &State, devices: &[(InterfaceName, Object)], networks: &[IpNet]) -> Vec<Peer> {
    let backend = backend_of(devices, state);
    let vxlan: BTreeSet<&InterfaceName> = devices
        .iter()
        .filter(|device| kind(device) == Some("vxlan"))
        .map(|(name, _)| name)
        .collect();
    let inside =
        |net: &IpNet| networks.is_empty() || networks.iter().any(|network| network.contains(net));
    let mut peers = Vec::new();
    for (key, object) in state {
        let (Key::Route(subnet), Object::Route(route)) = (key, object) else {
            continue;
        };
        // The whole network is routed to a TUN device, and possibly to a WireGuard device.
        if !inside(subnet) || networks.contains(subnet) {
            continue;
        }
        let reached = match route.gateway {
            Some(gateway) if vxlan.contains(&route.link) => through_vxlan(state, route, gateway),
            Some(gateway) => Ok(Some(gateway)),
            None => Ok(through_wireguard(state, route, subnet)),
        };
        let (address, reason) = match reached {
            Ok(address) => (address, None),
            Err(missing) => (None, Some(missing)),
        };
        let (subnet, subnet_v6) = match subnet {
            IpNet::V4(net) => (Some(*net), None),
            IpNet::V6(net) => (None, Some(*net)),
        };
        peers.push(Peer {
            subnet,
            subnet_v6,
            public_ip: address.and_then(v4),
            public_ipv6: address.and_then(v6),
            backend: backend.to_owned(),
            owner: None,
            state: match reason {
                None => PeerState::Programmed,
                Some(_) => PeerState::Failed,
            },
            reason,
            refusal: None,
            since_time: 0,
            changed_time: None,
            traffic: None,
            handshake_time: None,
        });
    }
    peers
}

/// The remote to which a VXLAN device sends packets for a gateway, or the missing entry.
fn through_vxlan(state: &State, route: &Route, gateway: IpAddr) -> Result<Option<IpAddr>, String> {
    let device = &route.link;
    let mac = match state.get(&Key::Neighbor(device.clone(), gateway)) {
        Some(Object::Neighbor(mac)) => *mac,
        _ => return Err(format!("no neighbor entry for {gateway} on {device}")),
    };
    match state.get(&Key::Fdb(device.clone(), mac)) {
        Some(Object::Fdb(address)) => Ok(Some(*address)),
        _ => Err(format!("no FDB entry for {mac} on {device}")),
    }
}

/// The endpoint to which a WireGuard device sends packets for a subnet, if known.
fn through_wireguard(state: &State, route: &Route, subnet: &IpNet) -> Option<IpAddr> {
    state.iter().find_map(|(key, object)| match (key, object) {
        (Key::WireguardPeer(device, _), Object::WireguardPeer(peer))
            if *device == route.link && peer.allowed.contains(subnet) =>
        {
            Some(peer.endpoint?.ip())
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests;
