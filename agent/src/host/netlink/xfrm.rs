//! IPsec's policies, over the kernel's `NETLINK_XFRM`: `ip xfrm policy`.
//!
//! Policies of peers have flannel's form, so that its policies and ours are the same: priority 0, one template with
//! reqid 11. While there is a tunnel, charon's are in their place (`host::ike`), and as good: what is set here is for when
//! there is neither. Those without a template are ours by their priorities. Policies with a mark or an interface ID, of sockets,
//! for single protocols or outside of the overlay networks are other programs', except those from a host to the networks.

mod encode;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{
    DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};

use super::message::{Request, Verb};
use super::socket::{Dump, Protocol, Socket};
use super::{Kernel, KernelError, Observed, Refused};
use crate::plan::state::{Change, Key, Object, Scope};

/// `NETLINK_XFRM` of linux/netlink.h.
pub(super) const NETLINK_XFRM: isize = 6;

/// `XFRMNLGRP_POLICY` of linux/xfrm.h: notifications about policies.
pub(super) const POLICY_GROUP: u32 = 4;

/// The priority of the policies that charon sets: the next after those of flannel's form, and before all others.
pub(crate) const CHARON_PRIORITY: u32 = 1;

/// `XFRM_MSG_…` of linux/xfrm.h.
const DELETE_STATE: u16 = 0x11;
const GET_STATE: u16 = 0x12;
const NEW_POLICY: u16 = 0x13;
const DELETE_POLICY: u16 = 0x14;
const GET_POLICY: u16 = 0x15;
const UPDATE_POLICY: u16 = 0x19;
const EXPIRE_POLICY: u16 = 0x1b;
const FLUSH_POLICIES: u16 = 0x1d;

/// A message of the kernel's XFRM: its type and its bytes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct XfrmMessage {
    pub(super) kind: u16,
    pub(super) payload: Vec<u8>,
}

impl std::fmt::Debug for XfrmMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, length) = (self.kind, self.payload.len());
        write!(f, "XFRM message {kind:#x} of {length} bytes")
    }
}

impl Protocol for XfrmMessage {
    const NUMBER: isize = NETLINK_XFRM;
}

impl NetlinkSerializable for XfrmMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for XfrmMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: header.message_type,
            payload: payload.to_vec(),
        })
    }
}

/// The client of the kernel's policies. Opens its socket on first use.
#[derive(Debug, Default)]
pub(super) struct Client(Option<Socket<XfrmMessage>>);

impl Client {
    fn socket(&mut self) -> Result<&mut Socket<XfrmMessage>, KernelError> {
        Ok(match self.0.take() {
            Some(socket) => self.0.insert(socket),
            None => self.0.insert(Socket::open()?),
        })
    }

    /// Our netlink port ID, once a socket is open.
    pub(super) fn port(&self) -> Option<u32> {
        self.0.as_ref().map(Socket::port)
    }

    /// Our policies for these networks; `None` in a kernel without XFRM.
    async fn list(
        &mut self,
        networks: &[IpNet],
    ) -> Result<Option<(Vec<(Key, Object)>, bool)>, KernelError> {
        let socket = match self.socket() {
            Err(error) if is_unsupported(&error) => return Ok(None),
            socket => socket?,
        };
        let request = XfrmMessage {
            kind: GET_POLICY,
            payload: Vec::new(),
        };
        let dump = socket.dump("policies of IPsec", request, |message| {
            encode::read(&message.payload, networks)
        });
        let dump = dump.await?;
        Ok(Some((dump.items, dump.complete)))
    }
}

/// Whether the kernel has no XFRM.
fn is_unsupported(error: &KernelError) -> bool {
    matches!(error, KernelError::Open(source)
        if source.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32))
}

impl Kernel {
    /// Adds our policies to what was observed.
    pub(super) async fn observe_policies(
        &mut self,
        scope: &Scope,
        observed: &mut Observed,
    ) -> Result<(), KernelError> {
        if let Some((policies, complete)) = self.xfrm.list(&scope.networks).await? {
            observed.complete &= complete;
            observed.state.extend(policies);
        }
        Ok(())
    }

    /// Whether there are policies of ours for these networks, from an earlier run.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub(crate) async fn has_policies(&mut self, networks: &[IpNet]) -> Result<bool, KernelError> {
        let found = Client::default().list(networks).await?;
        Ok(found.is_some_and(|(policies, _)| !policies.is_empty()))
    }

    /// Makes changes of policies, and returns the result of each.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed; the next observation shows which changes were made.
    pub(crate) async fn set_policies(
        &mut self,
        changes: &[Change],
    ) -> Result<Vec<Result<(), Refused>>, KernelError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let socket = match self.xfrm.socket() {
            Err(error) if is_unsupported(&error) => {
                let refused = Refused {
                    errno: Errno::EPROTONOSUPPORT,
                    hint: Some("this kernel does not support IPsec".to_owned()),
                };
                return Ok(changes.iter().map(|_| Err(refused.clone())).collect());
            }
            socket => socket?,
        };
        let requests: Vec<_> = changes.iter().filter_map(request).collect();
        let outcomes = socket.batch(&requests).await?.into_iter();
        let gone = |(change, outcome): (&Change, Result<(), Refused>)| match (change, outcome) {
            // Another program was faster.
            (Change::Del { .. }, Err(refused)) if refused.errno == Errno::ENOENT => Ok(()),
            (_, outcome) => outcome,
        };
        Ok(changes.iter().zip(outcomes).map(gone).collect())
    }
}

impl Client {
    /// The states of tunnels.
    async fn states(&mut self) -> Result<Dump<encode::State>, KernelError> {
        let socket = match self.socket() {
            Err(error) if is_unsupported(&error) => {
                return Ok(Dump {
                    items: Vec::new(),
                    complete: true,
                });
            }
            socket => socket?,
        };
        let request = XfrmMessage {
            kind: GET_STATE,
            payload: Vec::new(),
        };
        let states = socket.dump("states of IPsec", request, |message| {
            encode::read_state(&message.payload)
        });
        states.await
    }
}

impl Kernel {
    /// The SPIs of all tunnels that have keys, of both directions; `None` if others' changes hindered the listing.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub(crate) async fn spis() -> Result<Option<BTreeSet<u32>>, KernelError> {
        let states = Client::default().states().await?;
        let keyed = states.items.iter().filter(|state| state.has_keys);
        let spis = keyed.map(|state| u32::from_be_bytes(state.spi)).collect();
        Ok(states.complete.then_some(spis))
    }

    /// Deletes the states of tunnels with these nodes. charon does so itself, unless it has ended.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub(crate) async fn delete_states(&mut self, peers: &[Ipv4Addr]) -> Result<(), KernelError> {
        if peers.is_empty() {
            return Ok(());
        }
        let mut states = self.xfrm.states().await?.items;
        states.retain(|state| peers.contains(&state.from) || peers.contains(&state.to));
        if states.is_empty() {
            return Ok(());
        }
        let delete = |state: encode::State| {
            let message = XfrmMessage {
                kind: DELETE_STATE,
                payload: encode::state_id(state),
            };
            Request::new(Verb::Plain, message)
        };
        let requests: Vec<_> = states.into_iter().map(delete).collect();
        // One that is gone already is no error.
        self.xfrm.socket()?.batch(&requests).await.map(drop)
    }
}

/// The request for a change of a policy.
fn request(change: &Change) -> Option<Request<XfrmMessage>> {
    let Key::Policy(direction, from, to) = change.key() else {
        return None;
    };
    let (kind, payload) = match change {
        // It also creates the policy, and replaces one of the same selector whatever its priority.
        Change::Set {
            object: Object::Policy(policy),
            ..
        } => (
            UPDATE_POLICY,
            encode::policy(*direction, *from, *to, *policy),
        ),
        Change::Set { .. } => return None,
        Change::Del { .. } => (DELETE_POLICY, encode::policy_id(*direction, *from, *to)),
    };
    Some(Request::new(Verb::Plain, XfrmMessage { kind, payload }))
}

/// What a notification says about our policies.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Nothing.
    None,
    /// One is now like this, or was replaced by another program's of the same selector.
    Set(Key, Option<Object>),
    /// One of them is, or may be, gone.
    Gone,
}

/// Judges a notification.
pub(super) fn judge(message: &XfrmMessage, networks: &[IpNet]) -> Notice {
    match message.kind {
        NEW_POLICY | UPDATE_POLICY => match encode::read_key(&message.payload, networks) {
            Some(key) => {
                let object = encode::read(&message.payload, networks);
                Notice::Set(key, object.map(|(_, object)| object))
            }
            None => Notice::None,
        },
        // These name the policy in various ways, and are rare.
        DELETE_POLICY | EXPIRE_POLICY | FLUSH_POLICIES => Notice::Gone,
        _ => Notice::None,
    }
}
