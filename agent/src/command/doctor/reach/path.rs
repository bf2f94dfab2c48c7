//! The paths to peers: device, source and destination addresses.

use std::collections::hash_map::{HashMap, RandomState};
use std::hash::BuildHasher;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::host::netlink::host::{Host, Query, ResolvedRoute};
use crate::host::netlink::survey::resolve_routes;
use crate::host::netlink::{Kernel, KernelError};
use crate::plan::state::{LinkKind, Object};
use crate::telemetry::status::{Peer, PeerState, Status, Underlay};

/// Maximum number of peers probed; more would take too long.
const MAX_PEERS: usize = 1000;

/// How a backend's device carries packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Carrier {
    /// VXLAN, with its UDP port, and whether outer packets over IPv4 have a UDP checksum.
    Vxlan { port: u16, checksum: bool },
    /// WireGuard; its packets do not show what is inside.
    Wireguard,
    /// IP in IP.
    Ipip,
    /// Our data plane behind a TUN device; its port shows only on the wire.
    Udp,
}

/// An overlay device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tunnel {
    pub(super) index: u32,
    pub(super) name: InterfaceName,
    /// In bytes.
    pub(super) mtu: usize,
    pub(super) carrier: Carrier,
}

/// The path to a subnet of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Path {
    pub(super) subnet: IpNet,
    /// The peer's own address in the overlay.
    pub(super) over: IpAddr,
    /// Its address on the underlay.
    pub(super) under: IpAddr,
    /// Our own overlay address.
    pub(super) own_over: IpAddr,
    /// Our own address on the underlay.
    pub(super) own_under: IpAddr,
    /// The overlay device; `None` if the peer itself is the gateway and nothing is encapsulated.
    pub(super) tunnel: Option<Tunnel>,
}

/// All paths to probe.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Topology {
    pub(super) underlay: Underlay,
    /// MTU of containers, in bytes.
    pub(super) mtu: usize,
    pub(super) paths: Vec<Path>,
    /// The number of peers, if only a sample is probed.
    pub(super) sampled_from: Option<usize>,
    /// Whether probes that look like an attack are allowed.
    pub(super) deep: bool,
}

impl Topology {
    /// Finds the paths to the programmed peers; `None` if there is no overlay yet.
    ///
    /// # Errors
    /// The netlink exchange with the kernel failed.
    pub(super) async fn find(status: &Status, deep: bool) -> Result<Option<Self>, KernelError> {
        let (Some(network), Some(underlay), Some(lease)) =
            (&status.network, &status.underlay, &status.lease)
        else {
            return Ok(None);
        };
        let tunnels = tunnels(status).await?;
        let publishers = Addresses::of(status);
        let mut peers: Vec<&Peer> = status
            .peers
            .iter()
            .filter(|peer| peer.state == PeerState::Programmed && publishers.is_unique(peer))
            .collect();
        let all = peers.len();
        sample(&mut peers, MAX_PEERS);
        let own_over = |net: IpNet| match net {
            IpNet::V4(_) => lease.subnet.map(|own| IpAddr::V4(own.network())),
            IpNet::V6(_) => lease.subnet_v6.map(|own| IpAddr::V6(own.network())),
        };
        let candidates: Vec<(IpNet, IpAddr, IpAddr, IpAddr)> = peers
            .iter()
            .flat_map(|peer| peer.nets().map(move |net| (peer, net)))
            .filter_map(|(peer, net)| {
                let under = address(peer, net)?;
                Some((net, under, own_over(net)?, own_address(underlay, under)?))
            })
            .collect();
        let resolved_routes =
            resolve_routes(candidates.iter().map(|(net, ..)| (net.network(), None))).await?;
        let paths = candidates.into_iter().zip(resolved_routes).filter_map(
            |((subnet, under, own_over, own_under), resolved)| {
                // Another check judges packets that bypass the agent's routes.
                let resolved = resolved.ok().filter(|resolved| !resolved.local)?;
                let tunnel = match resolved.link_index == underlay.index {
                    true => None,
                    false => Some(find(&tunnels, resolved)?),
                };
                Some(Path {
                    subnet,
                    over: subnet.network(),
                    under,
                    own_over,
                    own_under,
                    tunnel,
                })
            },
        );
        Ok(Some(Self {
            underlay: underlay.clone(),
            mtu: usize::try_from(network.mtu).unwrap_or_default(),
            paths: paths.collect(),
            sampled_from: (all > MAX_PEERS).then_some(all),
            deep,
        }))
    }
}

/// The publishers of each address. If two hosts publish the same address, one of them gets all packets: that the other
/// does not answer says nothing about the network, and `duplicate-address` reports both.
struct Addresses<'a>(HashMap<IpAddr, Publisher<'a>>);

enum Publisher<'a> {
    One(&'a str),
    Several,
}

impl<'a> Addresses<'a> {
    fn of(status: &'a Status) -> Self {
        let mut publishers = HashMap::new();
        // Without an owner it is a real flannel, or what one left to a node that has an owner.
        let owned = status
            .peers
            .iter()
            .filter_map(|peer| Some((peer, peer.owner.as_deref()?)));
        for (peer, owner) in owned {
            for address in peer.addresses() {
                let publisher = publishers.entry(address).or_insert(Publisher::One(owner));
                if matches!(publisher, Publisher::One(other) if *other != owner) {
                    *publisher = Publisher::Several;
                }
            }
        }
        Self(publishers)
    }

    fn is_unique(&self, peer: &Peer) -> bool {
        let shared = |address| matches!(self.0.get(&address), Some(Publisher::Several));
        !peer.addresses().any(shared)
    }
}

fn find(tunnels: &[Tunnel], resolved: ResolvedRoute) -> Option<Tunnel> {
    let mut tunnels = tunnels.iter();
    tunnels
        .find(|tunnel| tunnel.index == resolved.link_index)
        .cloned()
}

/// Where packets for a subnet of a peer go: in the family of the subnet, unless it has only the other.
fn address(peer: &Peer, net: IpNet) -> Option<IpAddr> {
    let same = |address: &IpAddr| address.is_ipv4() == net.addr().is_ipv4();
    peer.addresses()
        .find(same)
        .or_else(|| peer.addresses().next())
}

fn own_address(underlay: &Underlay, family_of: IpAddr) -> Option<IpAddr> {
    match family_of {
        IpAddr::V4(_) => underlay.ipv4.map(|net| net.addr().into()),
        IpAddr::V6(_) => underlay.ipv6.map(|net| net.addr().into()),
    }
}

/// Keeps a random sample of at most `most`, in order.
fn sample<T>(all: &mut Vec<T>, most: usize) {
    if all.len() <= most {
        return;
    }
    // Keyed with random numbers of the process.
    let hasher = RandomState::new();
    let lot = |at: usize| (hasher.hash_one(at), at);
    let mut lots: Vec<_> = (0..all.len()).map(lot).collect();
    lots.sort_unstable();
    let limit = lots[most];
    let mut at = 0;
    all.retain(|_| {
        let keep = lot(at) < limit;
        at += 1;
        keep
    });
}

/// The existing overlay devices.
async fn tunnels(status: &Status) -> Result<Vec<Tunnel>, KernelError> {
    let links = Host::observe(Query::default()).await?.links;
    let mut kernel = Kernel::open()?;
    let mut tunnels = Vec::new();
    for device in &status.devices {
        let Some(link) = links.iter().find(|link| link.name.as_str() == device.name) else {
            continue;
        };
        let carrier = match device.kind.as_deref() {
            Some("vxlan") => match kernel.link(&link.name).await? {
                Some(Object::Link(found)) => match found.kind {
                    LinkKind::Vxlan(vxlan) => Carrier::Vxlan {
                        port: vxlan.port,
                        checksum: vxlan.checksum,
                    },
                    _ => continue,
                },
                _ => continue,
            },
            Some("wireguard") => Carrier::Wireguard,
            Some("ipip") => Carrier::Ipip,
            Some("tun") => Carrier::Udp,
            _ => continue,
        };
        tunnels.push(Tunnel {
            index: link.index,
            name: link.name.clone(),
            mtu: usize::try_from(link.mtu).unwrap_or_default(),
            carrier,
        });
    }
    Ok(tunnels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_as_many_as_asked_each_once_and_in_order() {
        let mut few: Vec<usize> = (0..10).collect();
        sample(&mut few, 10);
        assert_eq!(few.len(), 10);
        let mut many: Vec<usize> = (0..5000).collect();
        sample(&mut many, 1000);
        assert_eq!(many.len(), 1000);
        assert!(many.is_sorted());
        assert!(many.windows(2).all(|pair| pair[0] != pair[1]));
        assert_ne!(
            many,
            (0..1000).collect::<Vec<_>>(),
            "the first are no sample"
        );
    }
}
