//! Segments a large packet from the kernel into the packets that go on the wire, with their checksums.
//!
//! As the kernel's `inet_gso_segment()`, `tcp_gso_segment()` and `__udp_gso_segment()`, for a peer without offloads.

use super::checksum::Sum;
use super::packet::{MAX_PACKET, Packet, TCP, UDP, View};
use super::tun::{Gso, VnetHeader};

/// The longest IPv4 and TCP headers together, in bytes.
pub(super) const MAX_HEADERS: usize = 60 + 60;

/// Offset of the flags in the TCP header (RFC 9293 §3.1), and the flags that only some segments may carry.
pub(super) const TCP_FLAGS: usize = 13;
pub(super) const FIN: u8 = 0x01;
pub(super) const PSH: u8 = 0x08;
pub(super) const CWR: u8 = 0x80;
/// Offsets of the checksum in the TCP and UDP headers.
pub(super) const TCP_CHECKSUM: u16 = 16;
pub(super) const UDP_CHECKSUM: u16 = 6;
/// Bytes of a TCP header without options, and of a UDP header.
pub(super) const TCP_HEADER: usize = 20;
pub(super) const UDP_HEADER: usize = 8;

/// The packet and its `virtio_net_hdr` contradict each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contradiction;

/// A packet to be segmented.
#[derive(Debug)]
pub(super) struct Segments<'a> {
    packet: View<'a>,
    transport: Transport,
    /// All headers, in bytes.
    headers: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Tcp,
    Udp,
}

impl<'a> Segments<'a> {
    /// Checks a packet that the kernel wants segmented.
    pub(super) fn new(packet: View<'a>, gso: Gso) -> Result<Self, Contradiction> {
        let (transport, protocol, size) = match gso {
            Gso::None => return Err(Contradiction),
            Gso::Tcp(size) => (Transport::Tcp, TCP, size),
            Gso::Udp(size) => (Transport::Udp, UDP, size),
        };
        let payload = packet.payload();
        let header = match transport {
            Transport::Tcp => tcp_header_len(payload).ok_or(Contradiction)?,
            Transport::Udp => UDP_HEADER,
        };
        if packet.protocol() != protocol
            || packet.is_fragment()
            || size == 0
            || payload.len() <= header
        {
            return Err(Contradiction);
        }
        Ok(Self {
            packet,
            transport,
            headers: packet.header_len() + header,
            size: usize::from(size),
        })
    }

    /// The number of segments.
    pub(super) fn count(&self) -> usize {
        self.payload().len().div_ceil(self.size)
    }

    /// The length of the packet for segment `index`.
    pub(super) fn len(&self, index: usize) -> usize {
        self.headers + self.part(index).len()
    }

    /// Writes the packet for segment `index` into exactly [`Self::len`] bytes.
    pub(super) fn write(&self, index: usize, to: &mut [u8]) {
        let part = self.part(index);
        let (headers, payload) = to.split_at_mut(self.headers);
        headers.copy_from_slice(&self.packet.bytes()[..self.headers]);
        payload.copy_from_slice(part);
        let (ip, transport) = headers.split_at_mut(self.packet.header_len());
        let total = len16(self.headers + part.len());
        let id = self.packet.identification().wrapping_add(len16(index));
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        seal_header(ip);
        let transport_len = len16(transport.len() + part.len());
        let at = match self.transport {
            Transport::Tcp => {
                self.write_tcp(index, transport);
                TCP_CHECKSUM
            }
            Transport::Udp => {
                transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
                UDP_CHECKSUM
            }
        };
        let at = usize::from(at);
        transport[at..at + 2].fill(0);
        // A TCP header is a multiple of four bytes long, so the payload begins at an even offset.
        let sum = self.packet.pseudo_header(transport_len);
        let checksum = sum.bytes(transport).bytes(payload).checksum();
        transport[at..at + 2].copy_from_slice(&match self.transport {
            Transport::Tcp => checksum,
            Transport::Udp => udp_checksum(checksum),
        });
    }

    fn write_tcp(&self, index: usize, tcp: &mut [u8]) {
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let offset = u32::try_from(index * self.size).unwrap_or_default();
        tcp[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
        if index > 0 {
            tcp[TCP_FLAGS] &= !CWR;
        }
        if index + 1 < self.count() {
            tcp[TCP_FLAGS] &= !(FIN | PSH);
        }
    }

    fn payload(&self) -> &'a [u8] {
        &self.packet.bytes()[self.headers..]
    }

    fn part(&self, index: usize) -> &'a [u8] {
        self.payload()
            .chunks(self.size)
            .nth(index)
            .unwrap_or_default()
    }
}

/// Completes the checksum that the kernel left to us in an unsegmented packet: over everything from its start to the
/// packet's end; its field already holds the pseudo-header's sum.
pub(super) fn finish_checksum(
    packet: Packet<'_>,
    header: VnetHeader,
) -> Result<&mut [u8], Contradiction> {
    let protocol = packet.view().protocol();
    let bytes = packet.into_bytes();
    let Some((start, offset)) = header.checksum else {
        return Ok(bytes);
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let covered = bytes.get_mut(start..).ok_or(Contradiction)?;
    let sum = Sum::default().bytes(covered).checksum();
    let field = covered.get_mut(offset..offset + 2).ok_or(Contradiction)?;
    field.copy_from_slice(&if protocol == UDP {
        udp_checksum(sum)
    } else {
        sum
    });
    Ok(bytes)
}

/// Recomputes the checksum of an IPv4 header.
pub(super) fn seal_header(ip: &mut [u8]) {
    ip[10..12].fill(0);
    let checksum = Sum::default().bytes(ip).checksum();
    ip[10..12].copy_from_slice(&checksum);
}

/// Length of the TCP header at the beginning of an IP payload, if the payload contains all of it.
pub(super) fn tcp_header_len(payload: &[u8]) -> Option<usize> {
    let len = usize::from(payload.get(12)? >> 4) * 4;
    (len >= TCP_HEADER && len <= payload.len()).then_some(len)
}

/// A length within one packet, which always fits 16 bits.
pub(super) fn len16(len: usize) -> u16 {
    debug_assert!(len <= MAX_PACKET, "no packet has {len} bytes");
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// In UDP a zero checksum means none, so a sum of zero is sent as 0xffff (RFC 768).
fn udp_checksum(sum: [u8; 2]) -> [u8; 2] {
    if sum == [0, 0] { [0xff, 0xff] } else { sum }
}
