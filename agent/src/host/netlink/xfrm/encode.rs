//! The structures of linux/xfrm.h, in the host's byte order unless said otherwise.
//!
//! ```text
//! xfrm_selector (56)              xfrm_userpolicy_info (168)     xfrm_user_tmpl (64)
//!   0 daddr (16)                    0 xfrm_selector                0 daddr (16)
//!  16 saddr (16)                   56 xfrm_lifetime_cfg (64)      16 spi (4)
//!  32 ports and masks (4 × 2)     120 xfrm_lifetime_cur (32)      20 proto (1, and 3 unused)
//!  40 family (2)                  152 priority (4)                24 family (2, and 2 unused)
//!  42 prefixlen_d, prefixlen_s    156 index (4)                   28 saddr (16)
//!  44 proto (1, and 3 unused)     160 dir, action, flags, share   44 reqid (4)
//!  48 ifindex (4)                 164 (4 unused)                  48 mode, share, optional, unused
//!  52 user (4)                                                    52 aalgos, ealgos, calgos (3 × 4)
//! ```
//!
//! `xfrm_userpolicy_id` (64) is a selector, an index of 4 bytes and a direction. Of `xfrm_usersa_info` (224) only these are
//! read, and the names of its attributes: daddr at 56, spi at 72, proto at 76, saddr at 80, reqid at 208, family at 212, mode at 214. `xfrm_usersa_id` (24) is
//! daddr (16), spi (4), family (2), proto and a byte unused.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::super::generic::{Attributes, attributes};
use super::CHARON_PRIORITY;
use crate::plan::state::{Direction, Key, Object, Policy};

const SELECTOR_LEN: usize = 56;
const POLICY_LEN: usize = 168;
const TEMPLATE_LEN: usize = 64;
const STATE_LEN: usize = 224;

/// `AF_INET` of sys/socket.h.
const AF_INET: u16 = 2;

/// `XFRMA_…` of linux/xfrm.h.
const XFRMA_ALG_CRYPT: u16 = 2;
const XFRMA_TMPL: u16 = 5;
const XFRMA_POLICY_TYPE: u16 = 16;
const XFRMA_ALG_AEAD: u16 = 18;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;

/// `XFRM_INF`: no limit.
const NO_LIMIT: [u8; 8] = [0xff; 8];

/// `XFRM_POLICY_ALLOW` and `XFRM_POLICY_BLOCK`.
const ALLOW: u8 = 0;
const BLOCK: u8 = 1;

/// `XFRM_MODE_TUNNEL`.
const TUNNEL: u8 = 1;

/// `IPPROTO_ESP`.
const ESP: u8 = 50;

/// flannel's reqid, which ties templates to the states that charon makes.
const REQID: u32 = 11;

/// Where the kernel looks first is where the number is lower. These are after every other program's.
const PASS_PRIORITY: u32 = 0x7ffe_5e1f;
const BLOCK_PRIORITY: u32 = 0x7fff_5e1f;

/// `dir` of a policy.
fn direction_number(direction: Direction) -> u8 {
    match direction {
        Direction::In => 0,
        Direction::Out => 1,
        Direction::Forward => 2,
    }
}

fn selector(from: Ipv4Net, to: Ipv4Net) -> [u8; SELECTOR_LEN] {
    let mut bytes = [0; SELECTOR_LEN];
    bytes[0..4].copy_from_slice(&to.network().octets());
    bytes[16..20].copy_from_slice(&from.network().octets());
    bytes[40..42].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[42] = to.prefix_len();
    bytes[43] = from.prefix_len();
    bytes
}

/// A `xfrm_userpolicy_id`: which policy to delete.
pub(super) fn policy_id(direction: Direction, from: Ipv4Net, to: Ipv4Net) -> Vec<u8> {
    let mut bytes = selector(from, to).to_vec();
    bytes.extend([0; 4]);
    bytes.extend([direction_number(direction), 0, 0, 0]);
    bytes
}

/// A `xfrm_userpolicy_info`, and its template if it has one.
pub(super) fn policy(direction: Direction, from: Ipv4Net, to: Ipv4Net, policy: Policy) -> Vec<u8> {
    let (priority, action) = match policy {
        Policy::Tunnel { .. } => (0, ALLOW),
        Policy::Pass => (PASS_PRIORITY, ALLOW),
        Policy::Block => (BLOCK_PRIORITY, BLOCK),
    };
    let mut bytes = vec![0; POLICY_LEN];
    bytes[..SELECTOR_LEN].copy_from_slice(&selector(from, to));
    // Soft and hard limits of bytes and packets; those of time are 0, which is none.
    for limit in bytes[56..88].chunks_exact_mut(8) {
        limit.copy_from_slice(&NO_LIMIT);
    }
    bytes[152..156].copy_from_slice(&u32::to_ne_bytes(priority));
    bytes[160] = direction_number(direction);
    bytes[161] = action;
    if let Policy::Tunnel { from, to } = policy {
        let mut template = Attributes::default();
        template.put(XFRMA_TMPL, &self::template(from, to));
        bytes.extend(template.as_bytes());
    }
    bytes
}

fn template(from: Ipv4Addr, to: Ipv4Addr) -> [u8; TEMPLATE_LEN] {
    let mut bytes = [0; TEMPLATE_LEN];
    bytes[0..4].copy_from_slice(&to.octets());
    bytes[20] = ESP;
    bytes[24..26].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[28..32].copy_from_slice(&from.octets());
    bytes[44..48].copy_from_slice(&REQID.to_ne_bytes());
    bytes[48] = TUNNEL;
    // Any algorithm.
    bytes[52..].fill(0xff);
    bytes
}

/// A state that charon has made for one of flannel's or our templates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct State {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    /// In network order, as the kernel has it.
    pub(super) spi: [u8; 4],
    /// Whether it has keys. One that has none stands for a negotiation, or for the wish for one.
    pub(super) has_keys: bool,
}

/// Reads a `xfrm_usersa_info`, if it is such a state.
pub(super) fn read_state(payload: &[u8]) -> Option<State> {
    let (fixed, rest) = payload.split_first_chunk::<STATE_LEN>()?;
    let reqid = u32::from_ne_bytes(*fixed[208..].first_chunk()?);
    let is_ours = reqid == REQID
        && (fixed[76], fixed[214]) == (ESP, TUNNEL)
        && fixed[212..214] == AF_INET.to_ne_bytes();
    Some(State {
        from: Ipv4Addr::from(*fixed[80..].first_chunk::<4>()?),
        to: Ipv4Addr::from(*fixed[56..].first_chunk::<4>()?),
        spi: *fixed[72..].first_chunk()?,
        has_keys: attributes(rest)
            .any(|(kind, _)| matches!(kind, XFRMA_ALG_CRYPT | XFRMA_ALG_AEAD)),
    })
    .filter(|_| is_ours)
}

/// A `xfrm_usersa_id`: which state to delete.
pub(super) fn state_id(state: State) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[0..4].copy_from_slice(&state.to.octets());
    bytes[16..20].copy_from_slice(&state.spi);
    bytes[20..22].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[22] = ESP;
    bytes
}

/// Reads a `xfrm_userpolicy_info` with attributes, if it is a policy of ours for these networks: [`Object::Odd`] if its
/// form is another.
pub(super) fn read(payload: &[u8], networks: &[IpNet]) -> Option<(Key, Object)> {
    let (key, object) = (read_key(payload, networks)?, read_object(payload)?);
    // From hosts, which are outside, we have no tunnels: those are other programs'.
    let is_ours = match &key {
        Key::Policy(_, from, _) if !is_inside(*from, networks) => {
            matches!(object, Object::Policy(Policy::Pass | Policy::Block))
        }
        _ => true,
    };
    is_ours.then_some((key, object))
}

/// Whether all of a prefix is inside the networks. The whole address space stands for an unknown network (`cleanup`), and
/// matches nothing.
fn is_inside(net: Ipv4Net, networks: &[IpNet]) -> bool {
    let mut networks = networks.iter().filter(|network| network.prefix_len() > 0);
    networks.any(|network| network.contains(&IpNet::V4(net)))
}

/// The key that a policy for these networks has, whoever made it: inside them, or from a host to them.
pub(super) fn read_key(payload: &[u8], networks: &[IpNet]) -> Option<Key> {
    let fixed = payload.first_chunk::<POLICY_LEN>()?;
    let direction = match fixed[160] {
        0 => Direction::In,
        1 => Direction::Out,
        2 => Direction::Forward,
        // A socket's.
        _ => return None,
    };
    let (from, to) = read_selector(fixed)?;
    // The host's address may have been another one.
    let may_be_hosts = direction == Direction::Out && from.prefix_len() == 32;
    let is_for_networks = is_inside(to, networks) && (may_be_hosts || is_inside(from, networks));
    is_for_networks.then_some(Key::Policy(direction, from, to))
}

/// What a policy does, if it is one of ours.
fn read_object(payload: &[u8]) -> Option<Object> {
    let (fixed, rest) = payload.split_first_chunk::<POLICY_LEN>()?;
    let mut templates = None;
    for (kind, value) in attributes(rest) {
        match kind {
            XFRMA_TMPL => templates = Some(value),
            // Of the ordinary type, `XFRM_POLICY_TYPE_MAIN`, if the first byte is 0.
            XFRMA_POLICY_TYPE if value.first() == Some(&0) => {}
            XFRMA_POLICY_TYPE | XFRMA_MARK | XFRMA_IF_ID => return None,
            _ => {}
        }
    }
    let priority = u32::from_ne_bytes(*fixed[152..].first_chunk()?);
    match (templates, priority, fixed[161]) {
        (Some(templates), priority, action) => read_template(templates, priority, action),
        (None, PASS_PRIORITY, ALLOW) => Some(Object::Policy(Policy::Pass)),
        (None, BLOCK_PRIORITY, BLOCK) => Some(Object::Policy(Policy::Block)),
        (None, PASS_PRIORITY | BLOCK_PRIORITY, _) => Some(Object::Odd),
        (None, ..) => None,
    }
}

/// Source and destination; `None` for a selector of other things.
fn read_selector(bytes: &[u8; POLICY_LEN]) -> Option<(Ipv4Net, Ipv4Net)> {
    let is_plain = bytes[32..40].iter().all(|byte| *byte == 0)
        && bytes[40..42] == AF_INET.to_ne_bytes()
        && bytes[44] == 0
        && bytes[48..52].iter().all(|byte| *byte == 0);
    if !is_plain {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*bytes[at..].first_chunk::<4>()?));
    let to = Ipv4Net::new(address(0)?, bytes[42]).ok()?.trunc();
    let from = Ipv4Net::new(address(16)?, bytes[43]).ok()?.trunc();
    Some((from, to))
}

/// A policy with templates: ours if there is one, with flannel's reqid. In the place of one of flannel's form there may be
/// charon's for the present tunnel, which the kernel takes for no other state than that of its SPI.
fn read_template(templates: &[u8], priority: u32, action: u8) -> Option<Object> {
    let template: &[u8; TEMPLATE_LEN] = templates.try_into().ok()?;
    let reqid = u32::from_ne_bytes(*template[44..].first_chunk()?);
    if reqid != REQID || template[20] != ESP {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*template[at..].first_chunk::<4>()?));
    let (from, to) = (address(28)?, address(0)?);
    // Share and the algorithms have no effect in the kernel, or ours allow more.
    let is_any_state = template[16..20] == [0; 4];
    let is_ours = template[24..26] == AF_INET.to_ne_bytes()
        && (template[48], template[50]) == (TUNNEL, 0)
        && action == ALLOW
        && (priority == CHARON_PRIORITY || (priority == 0 && is_any_state));
    Some(match is_ours {
        true => Object::Policy(Policy::Tunnel { from, to }),
        false => Object::Odd,
    })
}
