//! The IPv4 header (RFC 791 §3.1), as far as a router reads it.
//!
//! ```text
//!  0                   1                   2                   3
//! |Version|  IHL  |Type of Service|          Total Length         |
//! |         Identification        |Flags|      Fragment Offset    |
//! |  Time to Live |    Protocol   |         Header Checksum       |
//! |                       Source Address                          |
//! |                    Destination Address                        |
//! ```

use std::net::Ipv4Addr;

use super::checksum::{Sum, update};
use super::segment::{len16, seal_header};

/// The header without options, in bytes. The data plane's limits depend on it.
pub(super) const MIN_HEADER: usize = 20;
/// The longest packet, in bytes: the total length has 16 bits.
pub(super) const MAX_PACKET: usize = 65_535;

/// Protocol numbers, in the packet as in `IPPROTO_…`.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Don't Fragment and More Fragments, in the byte that also holds the top of the fragment offset.
const DONT_FRAGMENT: u8 = 0x40;
const MORE_FRAGMENTS: u8 = 0x20;

/// Why a payload or a packet is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Not an IPv4 packet: wrong version, header length, total length or header checksum.
    Malformed,
    /// Longer than the MTU of the tunnel; truncating it, as flannel does, would only deliver garbage.
    Oversize,
    /// The TTL expired here.
    TtlExceeded,
}

/// An intact IPv4 packet: its header is whole, and it is exactly as long as its total length says.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Packet<'a>(&'a mut [u8]);

impl<'a> Packet<'a> {
    /// Parses the packet at the beginning of some bytes; ignores bytes after it. The header's checksum must be correct.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`].
    pub(super) fn parse(bytes: &'a mut [u8]) -> Result<Self, Refused> {
        let packet = View::read(bytes).ok_or(Refused::Malformed)?;
        let (total, header) = (packet.0.len(), &packet.0[..packet.header_len()]);
        if !Sum::default().bytes(header).is_intact() {
            return Err(Refused::Malformed);
        }
        Ok(Self(&mut bytes[..total]))
    }

    /// The whole packet, for writing a new checksum.
    pub(super) fn into_bytes(self) -> &'a mut [u8] {
        self.0
    }

    pub(super) fn view(&self) -> View<'_> {
        View(self.0)
    }

    /// Decrements the TTL, as every router does (RFC 1812 §5.3.1).
    ///
    /// # Errors
    ///
    /// [`Refused::TtlExceeded`] if it would reach zero; the packet is unchanged.
    pub(super) fn decrement_ttl(&mut self) -> Result<(), Refused> {
        let old = [self.0[8], self.0[9]];
        if old[0] <= 1 {
            return Err(Refused::TtlExceeded);
        }
        let new = [old[0] - 1, old[1]];
        let checksum = update([self.0[10], self.0[11]], old, new);
        self.0[8] = new[0];
        self.0[10..12].copy_from_slice(&checksum);
        Ok(())
    }
}

/// A read-only view of a whole IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a>(&'a [u8]);

impl<'a> View<'a> {
    /// Views the packet at the beginning of some bytes; ignores bytes after it. `None` if it is not IPv4, or its lengths
    /// contradict each other or the bytes. The header's checksum is not verified.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let header: &[u8; MIN_HEADER] = bytes.first_chunk()?;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let header_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_len < MIN_HEADER || total < header_len {
            return None;
        }
        bytes.get(..total).map(Self)
    }

    /// Views the packet at the beginning of bytes that have passed [`receive`] or [`Packet::parse`].
    pub(super) fn of_parsed(bytes: &'a [u8]) -> Self {
        let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        Self(&bytes[..total])
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Length of the header with its options, in bytes.
    pub(super) fn header_len(self) -> usize {
        usize::from(self.0[0] & 0xf) * 4
    }

    /// The bytes after the header.
    pub(crate) fn payload(self) -> &'a [u8] {
        &self.0[self.header_len()..]
    }

    pub(super) fn identification(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    pub(super) fn dont_fragment(self) -> bool {
        self.0[6] & DONT_FRAGMENT != 0
    }

    /// Whether this is a fragment other than the first, without the transport's header.
    pub(super) fn is_later_fragment(self) -> bool {
        u16::from_be_bytes([self.0[6] & 0x1f, self.0[7]]) != 0
    }

    /// Whether this is a fragment.
    pub(crate) fn is_fragment(self) -> bool {
        self.0[6] & MORE_FRAGMENTS != 0 || self.is_later_fragment()
    }

    pub(crate) fn protocol(self) -> u8 {
        self.0[9]
    }

    pub(crate) fn source(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[12], self.0[13], self.0[14], self.0[15])
    }

    pub(crate) fn destination(self) -> Ipv4Addr {
        Ipv4Addr::new(self.0[16], self.0[17], self.0[18], self.0[19])
    }

    /// A number that all packets of a connection have, in both directions: of addresses, protocol and ports. Fragments
    /// have one without ports.
    pub(super) fn flow(self) -> u32 {
        let word = |at: usize| {
            let bytes = self.0.get(at..at + 4).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
        };
        let has_ports = matches!(self.protocol(), TCP | UDP) && !self.is_fragment();
        let ports = if has_ports {
            word(self.header_len())
        } else {
            0
        };
        let ports = ports ^ ports.rotate_right(16);
        let mixed =
            (word(12) ^ word(16) ^ ports ^ u32::from(self.protocol())).wrapping_mul(0x9e37_79b9);
        mixed >> 16
    }

    /// The pseudo-header that TCP and UDP include in their checksum (RFC 9293 §3.1), for a transport of `len` bytes.
    pub(super) fn pseudo_header(self, len: u16) -> Sum {
        Sum::default()
            .bytes(&self.0[12..20])
            .word(u16::from(self.protocol()))
            .word(len)
    }
}

/// The header of an ICMP message of `len` bytes, with its checksum.
pub(crate) fn icmp_header(
    (from, to): (Ipv4Addr, Ipv4Addr),
    len: usize,
    ttl: u8,
    type_of_service: u8,
) -> [u8; MIN_HEADER] {
    let mut header = [0; MIN_HEADER];
    // Version 4, and five words of header.
    header[0] = 0x45;
    header[1] = type_of_service;
    header[2..4].copy_from_slice(&len16(MIN_HEADER + len).to_be_bytes());
    header[8] = ttl;
    header[9] = ICMP;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    seal_header(&mut header);
    header
}

/// Checks the payload of one datagram from the tunnel: exactly one IPv4 packet, no longer than `mtu` bytes; decrements
/// its TTL. Returns its length; ignores bytes after it.
///
/// # Errors
///
/// Why the payload is dropped. After [`Refused::TtlExceeded`] it still holds an intact packet.
pub fn receive(payload: &mut [u8], mtu: usize) -> Result<usize, Refused> {
    let mut packet = Packet::parse(payload)?;
    let len = packet.0.len();
    if len > mtu {
        return Err(Refused::Oversize);
    }
    packet.decrement_ttl()?;
    Ok(len)
}
