//! WireGuard devices: `wg show` and `wg set`, over generic netlink.
//!
//! Each peer has its own message, and many messages go into one send, as with every other kernel object: so each has
//! its own result, and the 64 KiB limit of an attribute does not limit the number of peers. Peers are changed one by
//! one, never replaced as a set, which would end all sessions.
//!
//! The kernel sends no notifications about peers (as of 6.12), so other programs' changes are found by the next
//! observation.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::SystemTime;

use nix::errno::Errno;

use self::decode::Part;
use super::generic::{self, GenericMessage};
use super::message::{Request, Verb};
use super::socket::{Dump, Socket};
use super::{HandshakeRequest, KernelError, Refused};
use crate::plan::state::{Wireguard, WireguardPeer};
use crate::plan::wireguard_key::PublicKey;

/// `WG_GENL_NAME` and `WG_GENL_VERSION` of linux/wireguard.h.
const FAMILY: &str = "wireguard";
const VERSION: u8 = 1;
const WG_CMD_GET_DEVICE: u8 = 0;
const WG_CMD_SET_DEVICE: u8 = 1;

const WGDEVICE_A_IFINDEX: u16 = 1;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_FWMARK: u16 = 7;
const WGDEVICE_A_PEERS: u16 = 8;

const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL: u16 = 5;
const WGPEER_A_LAST_HANDSHAKE_TIME: u16 = 6;
const WGPEER_A_RX_BYTES: u16 = 7;
const WGPEER_A_TX_BYTES: u16 = 8;
const WGPEER_A_ALLOWEDIPS: u16 = 9;

const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;

const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;

/// `AF_INET` and `AF_INET6` of sys/socket.h, with the width of `sa_family_t`.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A WireGuard device with its peers.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub(super) options: Wireguard,
    pub(super) peers: Vec<(PublicKey, WireguardPeer)>,
}

/// A WireGuard peer's counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Session {
    /// Bytes received, including WireGuard's overhead.
    pub rx_bytes: u64,
    /// Bytes sent, likewise.
    pub tx_bytes: u64,
    /// Time of the last handshake in seconds since 1970; `None` for never.
    pub handshake: Option<u64>,
}

/// A change of a device's options or of one peer.
#[derive(Debug)]
pub(super) struct Change(Request<GenericMessage>);

/// The client of the kernel's WireGuard. Opens its socket on first use.
#[derive(Debug, Default)]
pub(super) struct Client {
    socket: Option<Socket<GenericMessage>>,
    /// The family's number; unknown until requested, and different after the module was reloaded.
    family: u16,
}

impl Client {
    /// Reads a device with all its peers, and whether that is complete.
    pub(super) async fn device(&mut self, index: u32) -> Result<(Device, bool), KernelError> {
        let Dump { items, complete } = self.parts(index).await?;
        Ok((decode::assemble(items), complete))
    }

    /// Reads the counters of each peer of a device.
    pub(super) async fn sessions(
        &mut self,
        index: u32,
    ) -> Result<HashMap<PublicKey, Session>, KernelError> {
        Ok(decode::sessions(self.parts(index).await?.items))
    }

    async fn parts(&mut self, index: u32) -> Result<Dump<Part>, KernelError> {
        let what = "WireGuard peers";
        if let Err(source) = self.resolve().await? {
            return Err(KernelError::Dump { what, source });
        }
        let request = encode::get_device(self.family, index);
        let now = SystemTime::now();
        let socket = self.socket()?;
        let dump = socket.dump(what, request, |message| Some(Part::read(&message, now)));
        dump.await
    }

    /// Sets a new device's options, or those of an old one that differ.
    pub(super) async fn set_device(
        &mut self,
        index: u32,
        was: &Wireguard,
        want: &Wireguard,
    ) -> Result<Result<(), Refused>, KernelError> {
        if let Err(refused) = self.resolve().await? {
            return Ok(Err(refused));
        }
        let Some(message) = encode::set_device(self.family, index, was, want) else {
            return Ok(Ok(()));
        };
        let change = Change(Request::new(Verb::Plain, message));
        let outcome = self.batch(vec![change]).await?.into_iter().next();
        Ok(outcome.unwrap_or(Ok(())))
    }

    /// Adds a peer, or changes what differs.
    pub(super) async fn set_peer(
        &mut self,
        index: u32,
        key: &PublicKey,
        was: Option<&WireguardPeer>,
        want: &WireguardPeer,
    ) -> Result<Result<Change, Refused>, KernelError> {
        let resolved = self.resolve_once().await?;
        let change = |()| {
            let message = encode::set_peer(self.family, index, key, was, want);
            Change(Request::new(Verb::Plain, message))
        };
        Ok(resolved.map(change))
    }

    /// Removes a peer. A missing peer is no error.
    pub(super) async fn delete_peer(
        &mut self,
        index: u32,
        key: &PublicKey,
    ) -> Result<Result<Change, Refused>, KernelError> {
        let resolved = self.resolve_once().await?;
        let change = |()| {
            let message = encode::delete_peer(self.family, index, key);
            Change(Request::new(Verb::Plain, message))
        };
        Ok(resolved.map(change))
    }

    /// The messages that start a session with a peer that was observed in the kernel.
    pub(super) fn start_handshake(&self, index: u32, request: &HandshakeRequest) -> Vec<Change> {
        let messages = encode::start_handshake(
            self.family,
            index,
            &request.peer,
            &request.want,
            request.unanswered,
        );
        let change = |message| Change(Request::new(Verb::Plain, message));
        messages.into_iter().map(change).collect()
    }

    /// Makes changes and returns the result of each.
    pub(super) async fn batch(
        &mut self,
        changes: Vec<Change>,
    ) -> Result<Vec<Result<(), Refused>>, KernelError> {
        let requests: Vec<_> = changes.into_iter().map(|Change(request)| request).collect();
        self.socket()?.batch(&requests).await
    }

    fn socket(&mut self) -> Result<&mut Socket<GenericMessage>, KernelError> {
        Ok(match self.socket.take() {
            Some(socket) => self.socket.insert(socket),
            None => self.socket.insert(Socket::open()?),
        })
    }

    async fn resolve_once(&mut self) -> Result<Result<(), Refused>, KernelError> {
        match self.family {
            0 => self.resolve().await,
            _ => Ok(Ok(())),
        }
    }

    /// Resolves the family's number, which loads the module if needed.
    async fn resolve(&mut self) -> Result<Result<(), Refused>, KernelError> {
        let answer = self.socket()?.get(generic::get_family(FAMILY)).await?;
        let missing = || Refused {
            errno: Errno::ENOENT,
            hint: Some("this kernel does not support WireGuard".to_owned()),
        };
        Ok(match answer {
            Ok(answer) => match answer.as_ref().and_then(generic::family_id) {
                Some(family) => {
                    self.family = family;
                    Ok(())
                }
                None => Err(missing()),
            },
            Err(refused) if refused.errno == Errno::ENOENT => Err(missing()),
            Err(refused) => Err(refused),
        })
    }
}
