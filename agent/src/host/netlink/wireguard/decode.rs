//! Replies of the kernel's WireGuard.
//!
//! A device with many peers comes in several messages. A peer with many prefixes may continue in the next message,
//! which then repeats only its public key (linux/wireguard.h).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use super::{
    AF_INET, AF_INET6, Device, WGALLOWEDIP_A_CIDR_MASK, WGALLOWEDIP_A_IPADDR, WGDEVICE_A_FWMARK,
    WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_PEERS, WGDEVICE_A_PRIVATE_KEY, WGPEER_A_ALLOWEDIPS,
    WGPEER_A_ENDPOINT, WGPEER_A_LAST_HANDSHAKE_TIME, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL,
    WGPEER_A_PRESHARED_KEY, WGPEER_A_PUBLIC_KEY, WGPEER_A_RX_BYTES, WGPEER_A_TX_BYTES,
};
use crate::host::netlink::Session;
use crate::host::netlink::generic::{self, GenericMessage};
use crate::plan::state::{Wireguard, WireguardPeer};
use crate::plan::wireguard_key::{PresharedKey, PrivateKey, PublicKey};

/// How long a session is valid after its handshake: `REJECT_AFTER_TIME`. An active one repeats the handshake every two
/// minutes.
const SESSION: Duration = Duration::from_secs(180);

/// A device's data in one message.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Only in the first message.
    options: Option<Wireguard>,
    peers: Vec<(PublicKey, Peer)>,
}

#[derive(Debug, Default)]
struct Peer {
    endpoint: Option<SocketAddr>,
    preshared_key: Option<PresharedKey>,
    keepalive: u16,
    allowed: Vec<IpNet>,
    in_session: bool,
    session: Session,
}

impl Part {
    /// Reads a message. A missing or malformed attribute counts as unset: the kernel then differs from the wanted state
    /// and is programmed again.
    pub(super) fn read(message: &GenericMessage, now: SystemTime) -> Self {
        let mut options = Wireguard::default();
        let mut first = false;
        let mut peers = Vec::new();
        for (kind, value) in message.attributes.iter() {
            match kind {
                WGDEVICE_A_PRIVATE_KEY => {
                    options.private_key = value.try_into().ok().map(PrivateKey::new);
                }
                WGDEVICE_A_LISTEN_PORT => {
                    first = true;
                    options.listen_port = number(value);
                }
                WGDEVICE_A_FWMARK => {
                    options.fwmark = value.try_into().map_or(0, u32::from_ne_bytes);
                }
                WGDEVICE_A_PEERS => {
                    peers.extend(
                        generic::attributes(value).filter_map(|(_, peer)| read_peer(peer, now)),
                    );
                }
                _ => {}
            }
        }
        Self {
            options: first.then_some(options),
            peers,
        }
    }
}

/// Assembles a device from its parts, in order.
pub(super) fn assemble(parts: Vec<Part>) -> Device {
    let mut device = Device::default();
    let mut peers: Vec<(PublicKey, Peer)> = Vec::new();
    for part in parts {
        if let Some(options) = part.options {
            device.options = options;
        }
        for (key, peer) in part.peers {
            match peers.last_mut() {
                Some((last, begun)) if *last == key => begun.allowed.extend(peer.allowed),
                _ => peers.push((key, peer)),
            }
        }
    }
    device.peers = peers.into_iter().map(finish).collect();
    device
}

/// The counters by peer.
pub(super) fn sessions(parts: Vec<Part>) -> HashMap<PublicKey, Session> {
    let mut sessions = HashMap::new();
    for (key, peer) in parts.into_iter().flat_map(|part| part.peers) {
        // If a peer continues in another message, its first one has the counters.
        sessions.entry(key).or_insert(peer.session);
    }
    sessions
}

fn finish((key, mut peer): (PublicKey, Peer)) -> (PublicKey, WireguardPeer) {
    peer.allowed.sort_unstable();
    peer.allowed.dedup();
    let peer = WireguardPeer {
        endpoint: peer.endpoint,
        preshared_key: peer.preshared_key,
        keepalive: peer.keepalive,
        allowed: peer.allowed.into(),
        in_session: peer.in_session,
    };
    (key, peer)
}

fn read_peer(bytes: &[u8], now: SystemTime) -> Option<(PublicKey, Peer)> {
    let mut key = None;
    let mut peer = Peer::default();
    for (kind, value) in generic::attributes(bytes) {
        match kind {
            WGPEER_A_PUBLIC_KEY => key = value.try_into().ok().and_then(PublicKey::new),
            WGPEER_A_PRESHARED_KEY => {
                peer.preshared_key = value.try_into().ok().and_then(PresharedKey::new);
            }
            WGPEER_A_ENDPOINT => peer.endpoint = socket_address(value),
            WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL => peer.keepalive = number(value),
            WGPEER_A_LAST_HANDSHAKE_TIME => {
                peer.session.handshake = handshake(value);
                peer.in_session = peer.session.handshake.is_some_and(|at| is_recent(at, now));
            }
            WGPEER_A_RX_BYTES => peer.session.rx_bytes = count(value),
            WGPEER_A_TX_BYTES => peer.session.tx_bytes = count(value),
            WGPEER_A_ALLOWEDIPS => {
                peer.allowed = generic::attributes(value)
                    .filter_map(|(_, item)| allowed_ip(item))
                    .collect();
            }
            _ => {}
        }
    }
    Some((key?, peer))
}

fn number(value: &[u8]) -> u16 {
    value.try_into().map_or(0, u16::from_ne_bytes)
}

fn count(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_ne_bytes)
}

/// A `struct __kernel_timespec`: seconds and nanoseconds since 1970, 0 for never.
fn handshake(value: &[u8]) -> Option<u64> {
    let seconds = value.first_chunk().map_or(0, |s| i64::from_ne_bytes(*s));
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// Whether a handshake's session is still valid. One in the future counts: the clock was set back since.
fn is_recent(seconds: u64, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_secs(seconds)) < SESSION
}

fn allowed_ip(bytes: &[u8]) -> Option<IpNet> {
    let mut address = None;
    let mut length = None;
    for (kind, value) in generic::attributes(bytes) {
        match kind {
            WGALLOWEDIP_A_IPADDR => {
                let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
                address = v4
                    .or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from))
                    .ok();
            }
            WGALLOWEDIP_A_CIDR_MASK => length = value.first().copied(),
            _ => {}
        }
    }
    IpNet::new(address?, length?).ok()
}

fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let port = u16::from_be_bytes(*port);
    match u16::from_ne_bytes(*family) {
        AF_INET => {
            let address: &[u8; 4] = rest.first_chunk()?;
            Some((Ipv4Addr::from(*address), port).into())
        }
        AF_INET6 => {
            let (flow, rest) = rest.split_first_chunk()?;
            let (address, rest) = rest.split_first_chunk::<16>()?;
            let scope = rest.first_chunk()?;
            let address = Ipv6Addr::from(*address);
            let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*scope));
            Some(SocketAddrV6::new(address, port, flow, scope).into())
        }
        _ => None,
    }
}
