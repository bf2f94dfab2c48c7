//! Requests to the kernel's WireGuard.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    AF_INET, AF_INET6, VERSION, WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE, WGALLOWEDIP_A_CIDR_MASK,
    WGALLOWEDIP_A_FAMILY, WGALLOWEDIP_A_IPADDR, WGDEVICE_A_FWMARK, WGDEVICE_A_IFINDEX,
    WGDEVICE_A_LISTEN_PORT, WGDEVICE_A_PEERS, WGDEVICE_A_PRIVATE_KEY, WGPEER_A_ALLOWEDIPS,
    WGPEER_A_ENDPOINT, WGPEER_A_FLAGS, WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL,
    WGPEER_A_PRESHARED_KEY, WGPEER_A_PUBLIC_KEY, WGPEER_F_REMOVE_ME, WGPEER_F_REPLACE_ALLOWEDIPS,
};
use crate::host::netlink::generic::{Attributes, GenericMessage};
use crate::plan::state::{Wireguard, WireguardPeer};
use crate::plan::wireguard_key::{LEN, PublicKey};

fn message(
    family: u16,
    command: u8,
    index: u32,
    fill: impl FnOnce(&mut Attributes),
) -> GenericMessage {
    let mut attributes = Attributes::default();
    attributes.put(WGDEVICE_A_IFINDEX, &index.to_ne_bytes());
    fill(&mut attributes);
    GenericMessage {
        family,
        command,
        version: VERSION,
        attributes,
    }
}

/// Requests a device with its peers.
pub(super) fn get_device(family: u16, index: u32) -> GenericMessage {
    message(family, WG_CMD_GET_DEVICE, index, |_| ())
}

/// Sets the options of a device that differ; `None` if none does. Setting the private key, even to the same value,
/// would end all sessions.
pub(super) fn set_device(
    family: u16,
    index: u32,
    was: &Wireguard,
    want: &Wireguard,
) -> Option<GenericMessage> {
    let set = |attributes: &mut Attributes| {
        if was.listen_port != want.listen_port {
            let port = want.listen_port.to_ne_bytes();
            attributes.put(WGDEVICE_A_LISTEN_PORT, &port);
        }
        if was.fwmark != want.fwmark {
            attributes.put(WGDEVICE_A_FWMARK, &want.fwmark.to_ne_bytes());
        }
        if was.private_key != want.private_key {
            // All zeros remove the key.
            let key = want.private_key.as_ref();
            let key = key.map_or(&[0; LEN], |key| key.expose());
            attributes.put(WGDEVICE_A_PRIVATE_KEY, key);
        }
    };
    (was != want).then(|| message(family, WG_CMD_SET_DEVICE, index, set))
}

/// Adds a peer, or changes what differs: an endpoint that works and prefixes that stay are not touched.
///
/// `WGPEER_F_UPDATE_ONLY` is not used: if another program removed the peer meanwhile, it must be added again.
pub(super) fn set_peer(
    family: u16,
    index: u32,
    key: &PublicKey,
    was: Option<&WireguardPeer>,
    want: &WireguardPeer,
) -> GenericMessage {
    peer(family, index, key, |peer| {
        // Replacing leaves the peer without prefixes for a moment, so do it only to remove one.
        let loses =
            was.is_some_and(|was| was.allowed.iter().any(|had| !want.allowed.contains(had)));
        if loses {
            peer.put(WGPEER_A_FLAGS, &WGPEER_F_REPLACE_ALLOWEDIPS.to_ne_bytes());
        }
        // If omitted, a new peer has none.
        let former_secret = was.and_then(|was| was.preshared_key.as_ref());
        if former_secret != want.preshared_key.as_ref() {
            let secret = want.preshared_key.as_ref();
            let secret = secret.map_or(&[0; LEN], |secret| secret.expose());
            peer.put(WGPEER_A_PRESHARED_KEY, secret);
        }
        if let Some(endpoint) = want.endpoint
            && !was.is_some_and(|was| was.leads_to(want))
        {
            peer.put(WGPEER_A_ENDPOINT, &socket_address(endpoint));
        }
        let seconds = want.keepalive.to_ne_bytes();
        peer.put(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &seconds);
        let kept = |net| !loses && was.is_some_and(|was| was.allowed.contains(net));
        peer.nest(WGPEER_A_ALLOWEDIPS, |list| {
            for net in want.allowed.iter().filter(|net| !kept(net)) {
                list.nest(0, |item| allowed_ip(item, *net));
            }
        });
    })
}

/// Starts a session with a peer that has none, without changing the peer.
///
/// Enabling the keepalive sends one at once (`set_peer()` of drivers/net/wireguard/netlink.c), which starts a
/// handshake. After an unanswered handshake the kernel waits five seconds before the next (`REKEY_TIMEOUT` in
/// `wg_packet_send_handshake_initiation()`), except for a new peer. Such a peer is therefore removed, with its queued
/// packets, and added again.
pub(super) fn start_handshake(
    family: u16,
    index: u32,
    key: &PublicKey,
    want: &WireguardPeer,
    unanswered: bool,
) -> Vec<GenericMessage> {
    let with_keepalive = |seconds| WireguardPeer {
        keepalive: seconds,
        ..want.clone()
    };
    let (off, on) = (with_keepalive(0), with_keepalive(want.keepalive.max(1)));
    let set = |was, want| set_peer(family, index, key, was, want);
    let mut messages = match unanswered {
        true => vec![delete_peer(family, index, key), set(None, &on)],
        false if want.keepalive == 0 => vec![set(Some(&off), &on)],
        false => vec![set(Some(want), &off), set(Some(&off), want)],
    };
    if want.keepalive == 0 {
        messages.push(set(Some(&on), &off));
    }
    messages
}

/// Removes a peer. A missing peer is no error.
pub(super) fn delete_peer(family: u16, index: u32, key: &PublicKey) -> GenericMessage {
    peer(family, index, key, |peer| {
        peer.put(WGPEER_A_FLAGS, &WGPEER_F_REMOVE_ME.to_ne_bytes());
    })
}

fn peer(
    family: u16,
    index: u32,
    key: &PublicKey,
    fill: impl FnOnce(&mut Attributes),
) -> GenericMessage {
    message(family, WG_CMD_SET_DEVICE, index, |device| {
        device.nest(WGDEVICE_A_PEERS, |peers| {
            peers.nest(0, |peer| {
                peer.put(WGPEER_A_PUBLIC_KEY, key.as_bytes());
                fill(peer);
            });
        });
    })
}

fn allowed_ip(item: &mut Attributes, net: IpNet) {
    let octets: &[u8] = match net.network() {
        IpAddr::V4(address) => &address.octets(),
        IpAddr::V6(address) => &address.octets(),
    };
    let family = match net {
        IpNet::V4(_) => AF_INET,
        IpNet::V6(_) => AF_INET6,
    };
    item.put(WGALLOWEDIP_A_FAMILY, &family.to_ne_bytes());
    item.put(WGALLOWEDIP_A_IPADDR, octets);
    item.put(WGALLOWEDIP_A_CIDR_MASK, &[net.prefix_len()]);
}

/// `struct sockaddr_in` or `struct sockaddr_in6` of netinet/in.h: the port and the address in network byte order.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    match address {
        SocketAddr::V4(address) => {
            bytes.extend(AF_INET.to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend(AF_INET6.to_ne_bytes());
            bytes.extend(address.port().to_be_bytes());
            bytes.extend(address.flowinfo().to_be_bytes());
            bytes.extend(address.ip().octets());
            bytes.extend(address.scope_id().to_ne_bytes());
        }
    }
    bytes
}
