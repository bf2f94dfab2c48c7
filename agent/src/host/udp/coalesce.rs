//! Coalesces consecutive segments of one flow, so that the kernel's stack runs once for many packets.
//!
//! The rules are those of the kernel's own `inet_gro_receive()`, `tcp_gro_receive()` and `udp_gro_receive()`: packets
//! are coalesced only if the kernel would segment the result into exactly the same packets. Every checksum is verified
//! here: the kernel trusts a coalesced packet like its own and does not check again.

use std::io::IoSlice;

use super::packet::{MAX_PACKET, MIN_HEADER, Refused, TCP, UDP, View, receive};
use super::segment::{
    MAX_HEADERS, PSH, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, len16,
    seal_header, tcp_header_len,
};
use super::tun::{Gso, HEADER_LEN, VnetHeader};

/// The most segments in one packet: `UDP_MAX_SEGMENTS` before Linux 6.9, and enough to fill 64 KiB at an MTU of 1,500
/// bytes.
const MAX_SEGMENTS: usize = 64;

/// ACK, the flag that all segments of an established connection carry.
const ACK: u8 = 0x10;

/// Receives coalesced packets.
pub trait Sink {
    /// Writes one packet given in parts, the `virtio_net_hdr` first. Packets with the same `flow` must keep their order.
    fn write(&mut self, flow: u32, parts: &[IoSlice<'_>]);
}

/// Handles the payload of one datagram from the tunnel: all processing of untrusted bytes before they reach the kernel.
/// Returns the packet's length.
///
/// # Errors
///
/// Why the payload is dropped, and the payload. With [`Refused::TtlExceeded`] it is an intact packet.
pub fn deliver<'a>(
    payload: &'a mut [u8],
    mtu: usize,
    coalescer: &mut Coalescer<'a>,
    sink: &mut impl Sink,
) -> Result<usize, (Refused, &'a [u8])> {
    match receive(payload, mtu) {
        Ok(len) => {
            coalescer.push(View::of_parsed(payload), sink);
            Ok(len)
        }
        Err(refused) => Err((refused, payload)),
    }
}

/// The packet being coalesced. Everything pushed to it must outlive one batch.
#[derive(Debug)]
pub struct Coalescer<'a> {
    /// Whether the kernel accepts coalesced UDP datagrams.
    udp: bool,
    run: Option<Run<'a>>,
    /// The payloads, from index 1; index 0 is reserved for the headers.
    parts: [IoSlice<'a>; MAX_SEGMENTS + 1],
}

/// The segments so far.
#[derive(Debug)]
struct Run<'a> {
    first: Segment<'a>,
    count: usize,
    /// Payload bytes of all of them.
    payload: usize,
    /// Flags of the last one.
    flags: u8,
    /// Whether no segment may follow: after a short one, or one with PSH.
    closed: bool,
}

/// A packet that can be coalesced.
#[derive(Clone, Copy, Debug)]
struct Segment<'a> {
    packet: View<'a>,
    /// All headers, in bytes.
    headers: usize,
}

impl<'a> Coalescer<'a> {
    /// Starts a batch; `udp` if the kernel accepts coalesced UDP datagrams (Linux 6.2).
    pub fn new(udp: bool) -> Self {
        Self {
            udp,
            run: None,
            parts: [IoSlice::new(&[]); MAX_SEGMENTS + 1],
        }
    }

    /// Adds the next packet; if it does not fit the pending ones, those go to the sink first.
    fn push(&mut self, packet: View<'a>, sink: &mut impl Sink) {
        let Some(segment) = Segment::new(packet, self.udp) else {
            self.flush(sink);
            sink.write(
                packet.flow(),
                &[
                    IoSlice::new(&VnetHeader::default().to_bytes()),
                    IoSlice::new(packet.bytes()),
                ],
            );
            return;
        };
        if !self.run.as_ref().is_some_and(|run| run.takes(&segment)) {
            self.flush(sink);
        }
        let run = self.run.get_or_insert(Run {
            first: segment,
            count: 0,
            payload: 0,
            flags: 0,
            closed: false,
        });
        let payload = segment.payload();
        run.count += 1;
        run.payload += payload.len();
        run.flags = segment.flags();
        run.closed = run.flags & PSH != 0 || payload.len() < run.first.payload().len();
        self.parts[run.count] = IoSlice::new(payload);
    }

    /// Passes the pending packet to the sink.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        let Some(run) = self.run.take() else {
            return;
        };
        let flow = run.first.packet.flow();
        if run.count == 1 {
            sink.write(
                flow,
                &[
                    IoSlice::new(&VnetHeader::default().to_bytes()),
                    IoSlice::new(run.first.packet.bytes()),
                ],
            );
            return;
        }
        let mut headers = [0; HEADER_LEN + MAX_HEADERS];
        let len = run.write_headers(&mut headers);
        // A second array, because `self.parts` has the payloads' lifetime and the headers live only here.
        let mut parts = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
        parts[0] = IoSlice::new(&headers[..len]);
        let end = run.count + 1;
        parts[1..end].copy_from_slice(&self.parts[1..end]);
        sink.write(flow, &parts[..end]);
    }
}

impl Run<'_> {
    /// Whether a segment directly follows the run.
    fn takes(&self, next: &Segment<'_>) -> bool {
        let payload = next.payload().len();
        !self.closed
            && self.count < MAX_SEGMENTS
            && payload <= self.first.payload().len()
            && self.first.headers + self.payload + payload <= MAX_PACKET
            && self.first.is_followed_by(next, self.count, self.payload)
    }

    /// Writes the `virtio_net_hdr` and the headers of the coalesced packet; returns their length.
    fn write_headers(&self, to: &mut [u8; HEADER_LEN + MAX_HEADERS]) -> usize {
        let first = &self.first;
        let (ip_len, len) = (first.packet.header_len(), HEADER_LEN + first.headers);
        let size = len16(first.payload().len());
        let (gso, offset) = match first.packet.protocol() {
            TCP => (Gso::Tcp(size), TCP_CHECKSUM),
            _ => (Gso::Udp(size), UDP_CHECKSUM),
        };
        let header = VnetHeader {
            gso,
            checksum: Some((len16(ip_len), offset)),
            header_len: len16(first.headers),
        };
        to[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        let headers = &mut to[HEADER_LEN..len];
        headers.copy_from_slice(&first.packet.bytes()[..first.headers]);
        let (ip, transport) = headers.split_at_mut(ip_len);
        let transport_len = len16(transport.len() + self.payload);
        ip[2..4].copy_from_slice(&len16(first.headers + self.payload).to_be_bytes());
        seal_header(ip);
        match gso {
            Gso::Tcp(_) => transport[TCP_FLAGS] = self.flags,
            _ => transport[4..6].copy_from_slice(&transport_len.to_be_bytes()),
        }
        let at = usize::from(offset);
        let sum = first.packet.pseudo_header(transport_len);
        transport[at..at + 2].copy_from_slice(&sum.folded());
        len
    }
}

impl<'a> Segment<'a> {
    /// Accepts a packet that can be coalesced at all: an unfragmented TCP segment of an established connection or UDP
    /// datagram, with payload and an intact checksum, without IP options.
    fn new(packet: View<'a>, udp: bool) -> Option<Self> {
        if packet.is_fragment() || packet.header_len() != MIN_HEADER {
            return None;
        }
        let payload = packet.payload();
        let header = match packet.protocol() {
            TCP => {
                let header = tcp_header_len(payload)?;
                if payload[TCP_FLAGS] & !PSH != ACK {
                    return None;
                }
                header
            }
            UDP if udp => {
                let fields: &[u8; UDP_HEADER] = payload.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([fields[4], fields[5]]));
                // A zero checksum cannot be coalesced: the kernel would compute one when segmenting.
                if len != payload.len() || fields[6..8] == [0, 0] {
                    return None;
                }
                UDP_HEADER
            }
            _ => return None,
        };
        let sum = packet.pseudo_header(len16(payload.len())).bytes(payload);
        (payload.len() > header && sum.is_intact()).then_some(Self {
            packet,
            headers: packet.header_len() + header,
        })
    }

    fn payload(&self) -> &'a [u8] {
        &self.packet.bytes()[self.headers..]
    }

    fn flags(&self) -> u8 {
        match self.packet.protocol() {
            TCP => self.packet.payload()[TCP_FLAGS],
            _ => 0,
        }
    }

    /// Whether a segment has the headers that number `count` of this run must have, with `payload` bytes before it.
    fn is_followed_by(&self, next: &Segment<'_>, count: usize, payload: usize) -> bool {
        let (a, b) = (self.packet.bytes(), next.packet.bytes());
        let (ip_a, ip_b) = (self.packet, next.packet);
        // Version, TOS; flags; TTL, protocol; addresses. The lengths and the checksum may differ.
        let same_ip = self.headers == next.headers
            && a[..2] == b[..2]
            && a[6..10] == b[6..10]
            && a[12..20] == b[12..20];
        // The kernel increments the IP ID per segment (`inet_gso_segment()`). With DF set the ID has no meaning (RFC
        // 6864 §4.1), and many hosts always send the same one.
        let counted = ip_a.identification().wrapping_add(len16(count));
        let next_id = ip_b.identification() == counted
            || (ip_a.dont_fragment() && ip_b.identification() == ip_a.identification());
        if !same_ip || !next_id {
            return false;
        }
        let (a, b) = (ip_a.payload(), ip_b.payload());
        if a[..4] != b[..4] {
            return false;
        }
        if ip_a.protocol() == UDP {
            return true;
        }
        // Acknowledgement and data offset; all flags but PSH, which the caller checks; window; urgent pointer and
        // options.
        let header = self.headers - ip_a.header_len();
        sequence(b) == sequence(a).wrapping_add(u32::try_from(payload).unwrap_or(u32::MAX))
            && a[8..TCP_FLAGS] == b[8..TCP_FLAGS]
            && a[14..16] == b[14..16]
            && a[18..header] == b[18..header]
            && header >= TCP_HEADER
    }
}

fn sequence(tcp: &[u8]) -> u32 {
    u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
}
