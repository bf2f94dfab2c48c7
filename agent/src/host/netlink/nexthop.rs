//! Next-hop objects (`ip nexthop`, Linux 5.3): messages, and the IDs we assign.
//!
//! Thousands of routes with an inline gateway each cost O(n²), because the kernel's route hash omits the gateway
//! (`fib_info_hashfn()`); a route with a next-hop object is found at once.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |    family     |     scope     |   protocol    |    reserved   |
//! +---------------+---------------+---------------+---------------+
//! |                             flags                             |
//! +---------------------------------------------------------------+
//! |                        attributes NHA_…                       |
//! ```
//!
//! This is `struct nhmsg` of linux/nexthop.h.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, ErrorContext, Nla, NlaBuffer, NlasIterator, Parseable,
    emit_u32, parse_ip, parse_u32,
};
use rtnetlink::packet_route::AddressFamily;

use crate::base::net::InterfaceName;
use crate::base::network_name::{NetworkName, fnv1a};

const HEADER_LEN: usize = 8;
const NHA_ID: u16 = 1;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// `RTNH_F_ONLINK` of linux/rtnetlink.h: the gateway is on-link, whatever the routes say.
pub(super) const ONLINK: u32 = 4;

/// `RTM_NEWNEXTHOP`, `RTM_DELNEXTHOP` or `RTM_GETNEXTHOP`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct NextHopMessage {
    pub(super) family: AddressFamily,
    /// Only in replies.
    pub(super) scope: u8,
    /// Its route protocol number, which tells who made it.
    pub(super) protocol: u8,
    /// `RTNH_F_…`
    pub(super) flags: u32,
    pub(super) attributes: Vec<NextHopAttribute>,
}

/// The attributes of a plain next hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NextHopAttribute {
    /// The ID by which routes refer to it; 0 only in a request that lets the kernel choose.
    Id(u32),
    /// Index of the device.
    Oif(u32),
    Gateway(IpAddr),
    /// Anything else: groups, blackholes, encapsulations.
    Other(DefaultNla),
}

impl Nla for NextHopAttribute {
    fn value_len(&self) -> usize {
        match self {
            Self::Id(_) | Self::Oif(_) | Self::Gateway(IpAddr::V4(_)) => 4,
            Self::Gateway(IpAddr::V6(_)) => 16,
            Self::Other(other) => other.value_len(),
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Id(_) => NHA_ID,
            Self::Oif(_) => NHA_OIF,
            Self::Gateway(_) => NHA_GATEWAY,
            Self::Other(other) => other.kind(),
        }
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        match self {
            Self::Id(value) | Self::Oif(value) => {
                // Cannot fail: the buffer is `value_len()` long.
                let _ = emit_u32(buffer, *value);
            }
            Self::Gateway(IpAddr::V4(address)) => buffer.copy_from_slice(&address.octets()),
            Self::Gateway(IpAddr::V6(address)) => buffer.copy_from_slice(&address.octets()),
            Self::Other(other) => other.emit_value(buffer),
        }
    }
}

impl<'a, T: AsRef<[u8]> + ?Sized> Parseable<NlaBuffer<&'a T>> for NextHopAttribute {
    fn parse(buffer: &NlaBuffer<&'a T>) -> Result<Self, DecodeError> {
        let value = buffer.value();
        Ok(match buffer.kind() {
            NHA_ID => Self::Id(parse_u32(value).context("invalid NHA_ID")?),
            NHA_OIF => Self::Oif(parse_u32(value).context("invalid NHA_OIF")?),
            NHA_GATEWAY => Self::Gateway(parse_ip(value).context("invalid NHA_GATEWAY")?),
            _ => Self::Other(DefaultNla::parse(buffer)?),
        })
    }
}

impl Emitable for NextHopMessage {
    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        let (header, attributes) = buffer.split_at_mut(HEADER_LEN);
        header[..4].copy_from_slice(&[self.family.into(), self.scope, self.protocol, 0]);
        header[4..].copy_from_slice(&self.flags.to_ne_bytes());
        self.attributes.as_slice().emit(attributes);
    }
}

impl Parseable<[u8]> for NextHopMessage {
    fn parse(buffer: &[u8]) -> Result<Self, DecodeError> {
        let Some((&[family, scope, protocol, _, f0, f1, f2, f3], rest)) =
            buffer.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(DecodeError::invalid_buffer(
                "nhmsg",
                buffer.len(),
                HEADER_LEN,
            ));
        };
        let attributes = NlasIterator::new(rest)
            .map(|attribute| NextHopAttribute::parse(&attribute?))
            .collect::<Result<_, _>>()
            .context("failed to parse the attributes of a next hop")?;
        Ok(Self {
            family: family.into(),
            scope,
            protocol,
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            attributes,
        })
    }
}

impl NextHopMessage {
    /// A message with only the ID, to delete a next hop.
    pub(super) fn by_id(id: u32) -> Self {
        Self {
            attributes: vec![NextHopAttribute::Id(id)],
            ..Self::default()
        }
    }

    /// The ID; 0 if there is none.
    pub(super) fn id(&self) -> u32 {
        self.find(|attribute| match attribute {
            NextHopAttribute::Id(id) => Some(*id),
            _ => None,
        })
        .unwrap_or(0)
    }

    /// Device and gateway, if it is a plain next hop.
    pub(super) fn path(&self) -> Option<(u32, IpAddr)> {
        if self
            .find(|a| matches!(a, NextHopAttribute::Other(_)).then_some(()))
            .is_some()
        {
            return None;
        }
        let link = self.find(|attribute| match attribute {
            NextHopAttribute::Oif(index) => Some(*index),
            _ => None,
        })?;
        let gateway = self.find(|attribute| match attribute {
            NextHopAttribute::Gateway(gateway) => Some(*gateway),
            _ => None,
        })?;
        Some((link, gateway))
    }

    fn find<T>(&self, which: impl Fn(&NextHopAttribute) -> Option<T>) -> Option<T> {
        self.attributes.iter().find_map(which)
    }
}

/// The IDs of our next hops, and those taken by others.
///
/// An ID is a hash of device and gateway, so that it is the same after a restart; if taken, the next free one is used.
/// The default network has the IDs 0x53000000 to 0x53ffffff, a named one a range selected by its name from 4096 above
/// 0x80000000: the kernel and routing daemons count up from 1. The kernel's next hops must be dumped before any use.
#[derive(Debug)]
pub(super) struct Ids {
    /// The bits that all our IDs share.
    base: u32,
    /// The bits that vary.
    mask: u32,
    /// By device and gateway. B-trees, since a hash table keeps up to half of its room free.
    ours: BTreeMap<InterfaceName, BTreeMap<IpAddr, u32>>,
    taken: HashSet<u32>,
}

impl Ids {
    /// The IDs of a network, none known to be in use yet.
    pub(super) fn of_network(network: Option<&NetworkName>) -> Self {
        let (base, mask) = match network {
            None => (0x5300_0000, 0x00ff_ffff),
            Some(name) => (0x8000_0000 | name.number() << 19, 0x0007_ffff),
        };
        Self {
            base,
            mask,
            ours: BTreeMap::new(),
            taken: HashSet::new(),
        }
    }

    /// Whether an ID belongs to this network.
    pub(super) fn is_own(&self, id: u32) -> bool {
        id & !self.mask == self.base
    }

    /// The ID of one of our next hops.
    pub(super) fn get(&self, link: &InterfaceName, gateway: IpAddr) -> Option<u32> {
        self.ours.get(link)?.get(&gateway).copied()
    }

    /// Records an existing next hop of ours. Returns `false` if there is another with the same path.
    pub(super) fn insert(&mut self, link: &InterfaceName, gateway: IpAddr, id: u32) -> bool {
        self.taken.insert(id);
        let of_link = match self.ours.get_mut(link) {
            Some(of_link) => of_link,
            None => self.ours.entry(link.clone()).or_default(),
        };
        *of_link.entry(gateway).or_insert(id) == id
    }

    /// Records an ID that another program uses.
    pub(super) fn reserve(&mut self, id: u32) {
        self.taken.insert(id);
    }

    /// The ID for a next hop: its current one, or a free one.
    pub(super) fn allocate(&mut self, link: &InterfaceName, gateway: IpAddr) -> u32 {
        if let Some(id) = self.get(link, gateway) {
            return id;
        }
        let mut offset = hash(link, gateway);
        // Half a million IDs or more for some ten thousand next hops at most: one is always free.
        let id = loop {
            let id = self.base | (offset & self.mask);
            if !self.taken.contains(&id) {
                break id;
            }
            offset = offset.wrapping_add(1);
        };
        self.insert(link, gateway, id);
        id
    }

    /// Forgets a next hop; its ID stays reserved if another program has it.
    pub(super) fn remove(&mut self, link: &InterfaceName, gateway: IpAddr, still_taken: bool) {
        let of_link = self.ours.get_mut(link);
        if let Some(id) = of_link.and_then(|of_link| of_link.remove(&gateway))
            && !still_taken
        {
            self.taken.remove(&id);
        }
    }

    /// Forgets the next hops of a device, which the kernel drops when the device goes down or is removed.
    pub(super) fn remove_link(&mut self, link: &InterfaceName) {
        for id in self.ours.remove(link).unwrap_or_default().values() {
            self.taken.remove(id);
        }
    }
}

/// FNV-1a, 32 bits: the same on every build and machine, unlike the standard library's hashers.
fn hash(link: &InterfaceName, gateway: IpAddr) -> u32 {
    let link = link.as_str().as_bytes();
    match gateway {
        IpAddr::V4(gateway) => fnv1a(link.iter().chain(&gateway.octets())),
        IpAddr::V6(gateway) => fnv1a(link.iter().chain(&gateway.octets())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(gateway: IpAddr) -> NextHopMessage {
        NextHopMessage {
            family: AddressFamily::Inet,
            scope: 0,
            protocol: 83,
            flags: ONLINK,
            attributes: vec![
                NextHopAttribute::Id(0x5301_0203),
                NextHopAttribute::Oif(7),
                NextHopAttribute::Gateway(gateway),
            ],
        }
    }

    #[test]
    fn message_is_laid_out_as_struct_nhmsg() {
        let message = plain([10, 5, 1, 0].into());
        let mut bytes = vec![0xaa; message.buffer_len()];
        message.emit(&mut bytes);
        let mut expected = vec![2, 0, 83, 0];
        expected.extend(4u32.to_ne_bytes());
        for (kind, value) in [
            (1u16, 0x5301_0203u32.to_ne_bytes()),
            (5, 7u32.to_ne_bytes()),
            (6, [10, 5, 1, 0]),
        ] {
            expected.extend(8u16.to_ne_bytes());
            expected.extend(kind.to_ne_bytes());
            expected.extend(value);
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn message_round_trips() {
        for gateway in ["10.5.1.0", "2001:db8::1"] {
            let message = plain(gateway.parse().unwrap());
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let parsed = NextHopMessage::parse(bytes.as_slice()).unwrap();
            assert_eq!(parsed, message);
            assert_eq!(parsed.id(), 0x5301_0203);
            assert_eq!(parsed.path(), Some((7, gateway.parse().unwrap())));
        }
    }

    #[test]
    fn groups_have_no_path() {
        let mut group = plain([10, 5, 1, 0].into());
        let attribute = DefaultNla::new(2, vec![0; 8]);
        group.attributes.push(NextHopAttribute::Other(attribute));
        assert_eq!(group.path(), None);
    }

    #[test]
    fn numbers_survive_a_restart_and_step_aside() {
        let link: InterfaceName = "flannel.1".parse().unwrap();
        let gateway: IpAddr = [10, 5, 1, 0].into();
        let first = Ids::of_network(None).allocate(&link, gateway);
        assert_eq!(first, Ids::of_network(None).allocate(&link, gateway));
        assert_eq!(first >> 24, 0x53);
        let mut ids = Ids::of_network(None);
        ids.reserve(first);
        let second = ids.allocate(&link, gateway);
        assert_ne!(first, second, "another program has the number");
        assert_eq!(ids.allocate(&link, gateway), second);
        ids.remove_link(&link);
        assert_eq!(ids.get(&link, gateway), None);
        assert_eq!(
            ids.allocate(&link, gateway),
            second,
            "the number is still taken"
        );
    }

    #[test]
    fn ten_thousand_numbers_differ() {
        let link: InterfaceName = "flannel.1".parse().unwrap();
        let mut ids = Ids::of_network(None);
        let numbers: HashSet<u32> = (0..10_000u32)
            .map(|n| ids.allocate(&link, IpAddr::V4((0x0a00_0000 + (n << 8)).into())))
            .collect();
        assert_eq!(numbers.len(), 10_000);
    }

    #[test]
    fn networks_tell_their_numbers_apart() {
        let names = ["blue", "green"].map(|name| name.parse::<NetworkName>().unwrap());
        let networks = [None, Some(&names[0]), Some(&names[1])];
        let link: InterfaceName = "eth0".parse().unwrap();
        for network in networks {
            let mut ids = Ids::of_network(network);
            for n in 0..10_000u32 {
                let id = ids.allocate(&link, IpAddr::V4((0x0a00_0000 + n).into()));
                for other in networks {
                    assert_eq!(
                        Ids::of_network(other).is_own(id),
                        other == network,
                        "{id:#x}"
                    );
                }
            }
        }
        assert!(!Ids::of_network(None).is_own(7));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = NextHopMessage::parse(bytes.as_slice());
        }
    }
}
