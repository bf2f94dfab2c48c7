use std::io::IoSlice;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::checksum::Sum;
use super::coalesce::{Coalescer, Sink, deliver};
use super::icmp::{Message, Reason};
use super::packet::{ICMP, MAX_PACKET, Packet, Refused, TCP, UDP, View, receive};
use super::segment::{
    Contradiction, PSH, Segments, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, finish_checksum,
    seal_header,
};
use super::tun::{Gso, HEADER_LEN, VnetHeader};

const A: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 7);
const B: Ipv4Addr = Ipv4Addr::new(10, 5, 2, 9);
const ACK: u8 = 0x10;

/// An IPv4 packet with an intact header around a transport payload.
fn ip(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
    let mut packet = vec![
        0x45, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0,
    ];
    packet.extend(A.octets());
    packet.extend(B.octets());
    seal_header(&mut packet);
    packet.extend(transport);
    packet
}

fn tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x30, 0x39, 0x01, 0xbb];
    header.extend(sequence.to_be_bytes());
    header.extend(0x0102_0304_u32.to_be_bytes());
    header.extend([0x80, flags, 0x01, 0xf5, 0, 0, 0, 0]);
    // Timestamps, as nearly every segment has them.
    header.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    ip(TCP, &[&header, payload].concat())
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let header = [0x30, 0x39, 0x01, 0xbb, len[0], len[1], 0, 0];
    ip(UDP, &[&header[..], payload].concat())
}

fn checksum_at(packet: &[u8]) -> usize {
    20 + usize::from(if packet[9] == TCP {
        TCP_CHECKSUM
    } else {
        UDP_CHECKSUM
    })
}

/// A packet as the kernel passes it, with a partial checksum.
fn partial(mut packet: Vec<u8>) -> Vec<u8> {
    let at = checksum_at(&packet);
    packet[at..at + 2].fill(0);
    let len = u16::try_from(packet.len() - 20).unwrap();
    let sum = View::of_parsed(&packet).pseudo_header(len).folded();
    packet[at..at + 2].copy_from_slice(&sum);
    packet
}

fn finished(packet: Vec<u8>) -> Vec<u8> {
    let mut packet = partial(packet);
    let header = VnetHeader {
        checksum: Some((20, u16::try_from(checksum_at(&packet)).unwrap() - 20)),
        ..VnetHeader::default()
    };
    finish_checksum(Packet::parse(&mut packet).unwrap(), header)
        .unwrap()
        .to_vec()
}

/// Whether the checksums of a packet are right, computed independently of the code under test.
fn is_intact(packet: &[u8]) -> bool {
    let sum = |words: &[u8]| {
        words.chunks(2).fold(0_u32, |sum, pair| {
            let sum = sum + u32::from(pair[0]) * 256 + u32::from(*pair.get(1).unwrap_or(&0));
            (sum >> 16) + (sum & 0xffff)
        })
    };
    let len = u16::try_from(packet.len() - 20).unwrap().to_be_bytes();
    let pseudo = [&packet[12..20], &[0, packet[9]], &len, &packet[20..]].concat();
    usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len()
        && sum(&packet[..20]) == 0xffff
        && sum(&pseudo) == 0xffff
}

fn cut(packet: &[u8], gso: Gso) -> Result<Vec<Vec<u8>>, Contradiction> {
    let segments = Segments::new(View::of_parsed(packet), gso)?;
    let write = |index| {
        let mut segment = vec![0xee; segments.len(index)];
        segments.write(index, &mut segment);
        segment
    };
    Ok((0..segments.count()).map(write).collect())
}

/// Collects the packets for the TUN device.
#[derive(Default)]
struct Written(Vec<(VnetHeader, Vec<u8>)>);

impl Sink for Written {
    fn write(&mut self, flow: u32, parts: &[IoSlice<'_>]) {
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let (header, packet) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
        assert_eq!(flow, View::of_parsed(packet).flow());
        let header = VnetHeader::read(header).unwrap();
        self.0.push((header, packet.to_vec()));
    }
}

/// Runs payloads through the whole receive path.
fn delivered(payloads: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let mut payloads = payloads.to_vec();
    let mut written = Written::default();
    let mut coalescer = Coalescer::new(true);
    for payload in &mut payloads {
        let _ = deliver(payload, MAX_PACKET, &mut coalescer, &mut written);
    }
    coalescer.flush(&mut written);
    written.0
}

/// A packet after one more hop.
fn one_hop_further(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8] -= 1;
    seal_header(&mut packet[..20]);
    packet
}

fn payload(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), len)
}

proptest! {
    #[test]
    fn what_is_cut_is_intact_and_put_together_again(
        tcp_not_udp: bool,
        data in payload(1..9000),
        size in 1_u16..2000,
        sequence: u32,
        flags in prop_oneof![Just(ACK), Just(ACK | PSH)],
    ) {
        prop_assume!(data.len().div_ceil(usize::from(size)) <= 64 && data.len() > usize::from(size));
        let (whole, gso) = if tcp_not_udp {
            (partial(tcp(sequence, flags, &data)), Gso::Tcp(size))
        } else {
            (partial(udp(&data)), Gso::Udp(size))
        };
        let segments = cut(&whole, gso).unwrap();
        let headers = whole.len() - data.len();
        let mut joined = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            prop_assert!(is_intact(segment));
            prop_assert_eq!(usize::from(u16::from_be_bytes([segment[4], segment[5]])), 0x1234 + index);
            joined.extend_from_slice(&segment[headers..]);
        }
        prop_assert_eq!(&joined, &data);

        let together = delivered(&segments);
        prop_assert_eq!(together.len(), 1);
        prop_assert_eq!(together[0].0.gso, gso);
        prop_assert_eq!(&together[0].1, &one_hop_further(whole.clone()));
        let hop: Vec<_> = segments.into_iter().map(one_hop_further).collect();
        prop_assert_eq!(cut(&together[0].1, gso).unwrap(), hop);
    }

    #[test]
    fn nothing_is_lost_changed_or_reordered(
        kinds in prop::collection::vec((0_u8..5, 1_usize..40, any::<bool>()), 1..80),
    ) {
        // A stream with odd segments, gaps, other flows and damage in it.
        let mut sequence = 1_u32;
        let mut payloads = Vec::new();
        for (kind, len, push) in kinds {
            let data = vec![u8::try_from(len).unwrap(); len];
            let flags = if push { ACK | PSH } else { ACK };
            let mut packet = match kind {
                0 | 1 => finished(tcp(sequence, flags, &data)),
                2 => finished(tcp(sequence.wrapping_add(7), flags, &data)),
                3 => finished(udp(&data)),
                _ => {
                    let mut damaged = finished(tcp(sequence, flags, &data));
                    *damaged.last_mut().unwrap() ^= 1;
                    damaged
                }
            };
            sequence = sequence.wrapping_add(u32::try_from(len).unwrap());
            packet[4..6].copy_from_slice(&u16::try_from(payloads.len()).unwrap().to_be_bytes());
            seal_header(&mut packet[..20]);
            payloads.push(packet);
        }
        let written = delivered(&payloads);
        let again: Vec<_> = written.iter().flat_map(|(header, packet)| match header.gso {
            Gso::None => vec![packet.clone()],
            gso => cut(packet, gso).unwrap(),
        }).collect();
        prop_assert_eq!(again, payloads.into_iter().map(one_hop_further).collect::<Vec<_>>());
    }

    #[test]
    fn no_bytes_can_do_harm(mut noise in prop::collection::vec(payload(0..200), 0..20), valid in payload(0..100)) {
        let mut almost = finished(tcp(1, ACK, &valid));
        for (at, bytes) in noise.iter().enumerate() {
            if let Some(&byte) = bytes.first() {
                let at = (at * 7 + usize::from(byte)) % almost.len();
                almost[at] = byte;
            }
        }
        if almost.len() >= 20 {
            seal_header(&mut almost[..20]);
        }
        noise.push(almost.clone());
        let _ = delivered(&noise);
        // A contradictory `virtio_net_hdr` is refused.
        for gso in [Gso::Tcp(1), Gso::Udp(9), Gso::Tcp(u16::MAX)] {
            if Packet::parse(&mut almost.clone()).is_ok() {
                let _ = cut(&almost, gso);
            }
        }
    }

    #[test]
    fn a_header_says_what_was_written(flags in 0_u16..2, kind in 0_u8..3, words: (u16, u16, u16)) {
        let size = words.0.max(1);
        let header = VnetHeader {
            gso: [Gso::None, Gso::Tcp(size), Gso::Udp(size)][usize::from(kind)],
            checksum: (flags == 1).then_some((words.1, words.2)),
            header_len: 40,
        };
        prop_assert_eq!(VnetHeader::read(&header.to_bytes()), Some(header));
    }
}

#[test]
fn a_payload_is_exactly_one_packet() {
    let good = finished(udp(b"hello"));
    assert_eq!(receive(&mut good.clone(), 1472), Ok(good.len()));
    // Trailing bytes are ignored, as by the kernel.
    assert_eq!(
        receive(&mut [&good[..], &[9; 9]].concat(), 1472),
        Ok(good.len())
    );
    let mut seen = good.clone();
    receive(&mut seen, 1472).unwrap();
    assert_eq!(seen, one_hop_further(good.clone()));

    let damaged = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        if at < 20 && at != 10 {
            seal_header(&mut packet[..20]);
        }
        receive(&mut packet, 1472)
    };
    assert_eq!(damaged(0, 0x65), Err(Refused::Malformed), "version 6");
    assert_eq!(damaged(0, 0x44), Err(Refused::Malformed), "short header");
    assert_eq!(damaged(0, 0x4f), Err(Refused::Malformed), "long header");
    assert_eq!(damaged(2, 0x10), Err(Refused::Malformed), "too long");
    assert_eq!(damaged(3, 19), Err(Refused::Malformed), "too short");
    assert_eq!(damaged(10, !good[10]), Err(Refused::Malformed), "checksum");
    assert_eq!(receive(&mut [], 1472), Err(Refused::Malformed));
    assert_eq!(receive(&mut [0x45; 19], 1472), Err(Refused::Malformed));
    assert_eq!(damaged(8, 1), Err(Refused::TtlExceeded));
    assert_eq!(damaged(8, 0), Err(Refused::TtlExceeded));
    let len = good.len();
    assert_eq!(receive(&mut good.clone(), len), Ok(len));
    assert_eq!(receive(&mut good.clone(), len - 1), Err(Refused::Oversize));
}

#[test]
fn the_end_of_a_whole_marks_the_last_segment_alone() {
    const CWR_PSH_FIN: u8 = 0x80 | 0x08 | 0x01;
    let whole = partial(tcp(u32::MAX - 50, ACK | CWR_PSH_FIN, &[7; 250]));
    let segments = cut(&whole, Gso::Tcp(100)).unwrap();
    let flags: Vec<_> = segments.iter().map(|s| s[20 + TCP_FLAGS]).collect();
    assert_eq!(flags, [ACK | 0x80, ACK, ACK | 0x09]);
    let sequence = |s: &Vec<u8>| u32::from_be_bytes([s[24], s[25], s[26], s[27]]);
    let sequences: Vec<_> = segments.iter().map(sequence).collect();
    assert_eq!(sequences, [u32::MAX - 50, 49, 149]);
}

#[test]
fn a_contradiction_is_no_packet() {
    let udp = partial(udp(&[1; 100]));
    let tcp = partial(tcp(1, ACK, &[1; 100]));
    assert_eq!(cut(&udp, Gso::Tcp(10)), Err(Contradiction));
    assert_eq!(cut(&tcp, Gso::Udp(10)), Err(Contradiction));
    assert_eq!(cut(&tcp, Gso::None), Err(Contradiction));
    for (start, offset) in [(2000, 0), (20, 200), (u16::MAX, u16::MAX)] {
        let header = VnetHeader {
            checksum: Some((start, offset)),
            ..VnetHeader::default()
        };
        let mut packet = tcp.clone();
        let packet = Packet::parse(&mut packet).unwrap();
        assert_eq!(finish_checksum(packet, header), Err(Contradiction));
    }
    // We offer the kernel neither IPv6 segmentation nor fragmentation.
    for kind in [3, 4, 6] {
        let bytes = [0, kind, 0, 0, 1, 0, 0, 0, 0, 0];
        assert_eq!(VnetHeader::read(&bytes), None);
    }
}

/// The packet that answers another: addresses and ports change places.
fn answer(packet: &[u8]) -> Vec<u8> {
    let mut answer = packet.to_vec();
    for (at, len) in [(12, 4), (20, 2)] {
        let (first, second) = answer[at..at + 2 * len].split_at_mut(len);
        first.swap_with_slice(second);
    }
    answer
}

proptest! {
    #[test]
    fn a_connection_is_one_flow_both_ways(ports: [u8; 4], is_udp: bool, data in payload(0..50)) {
        let mut packet = if is_udp { udp(&data) } else { tcp(7, ACK, &data) };
        packet[20..24].copy_from_slice(&ports);
        let flow = View::of_parsed(&packet).flow();
        prop_assert_eq!(View::of_parsed(&answer(&packet)).flow(), flow);
        // Later packets have other contents, and the same flow.
        packet[24..].fill(9);
        packet[4..6].fill(9);
        prop_assert_eq!(View::of_parsed(&packet).flow(), flow);
    }

    #[test]
    fn no_bytes_are_mistaken_for_ports(data in payload(0..30), other in payload(4..30)) {
        // Fragments but the first have no ports, and neither have other protocols nor what is too short.
        let mut fragment = ip(UDP, &other);
        fragment[6..8].copy_from_slice(&[0, 9]);
        let mut first = fragment.clone();
        first[6..8].copy_from_slice(&[0x20, 0]);
        let flow = View::of_parsed(&fragment).flow();
        prop_assert_eq!(View::of_parsed(&first).flow(), flow);
        let (ping, pong) = (ip(ICMP, &data), ip(ICMP, &other));
        prop_assert_eq!(View::of_parsed(&ping).flow(), View::of_parsed(&pong).flow());
        let _ = View::of_parsed(&ip(TCP, &data)).flow();
    }
}

#[test]
fn flows_are_spread_over_the_queues() {
    for queues in 2..=4_u32 {
        let mut count = vec![0; 4];
        for port in 0..1000_u16 {
            let mut packet = tcp(1, ACK, &[]);
            // A client's ports, one after the other, to one server.
            packet[20..22].copy_from_slice(&(32_768 + port).to_be_bytes());
            count[(View::of_parsed(&packet).flow() % queues) as usize] += 1;
        }
        for share in &count[..queues as usize] {
            assert!(*share > 700 / queues, "{queues} queues: {count:?}");
        }
    }
}

#[test]
fn only_neighbours_are_put_together() {
    let first = finished(tcp(1, ACK, &[1; 100]));
    let next = |change: fn(&mut Vec<u8>)| {
        let mut next = tcp(101, ACK, &[1; 100]);
        next[5] += 1;
        change(&mut next);
        seal_header(&mut next[..20]);
        let payloads = [first.clone(), finished(next)];
        delivered(&payloads).len()
    };
    assert_eq!(next(|_| ()), 1);
    assert_eq!(next(|p| p[5] -= 1), 1, "one identification always");
    assert_eq!(next(|p| p[5] += 1), 2, "identification");
    assert_eq!(next(|p| p[1] = 1), 2, "type of service");
    assert_eq!(next(|p| p[6] = 0), 2, "don't fragment");
    assert_eq!(next(|p| p[8] = 9), 2, "time to live");
    assert_eq!(next(|p| p[15] += 1), 2, "source");
    assert_eq!(next(|p| p[21] += 1), 2, "port");
    assert_eq!(next(|p| p[27] += 1), 2, "sequence");
    assert_eq!(next(|p| p[31] += 1), 2, "acknowledgement");
    assert_eq!(next(|p| p[33] |= 1), 2, "the end");
    assert_eq!(next(|p| p[35] += 1), 2, "window");
    assert_eq!(next(|p| p[51] += 1), 2, "timestamp");
}

#[test]
fn a_whole_packet_has_its_limits() {
    // More segments than the kernel accepts, and more bytes than fit a packet.
    for (size, count, wholes) in [(1, 130, vec![64, 64, 2]), (1400, 60, vec![46, 14])] {
        let payloads: Vec<_> = (0..count)
            .map(|n: u16| {
                let mut packet = tcp(u32::from(n) * size, ACK, &vec![7; size as usize]);
                packet[4..6].copy_from_slice(&n.to_be_bytes());
                seal_header(&mut packet[..20]);
                finished(packet)
            })
            .collect();
        let count = |(header, packet): &(VnetHeader, Vec<u8>)| match header.gso {
            Gso::None => 1,
            gso => cut(packet, gso).unwrap().len(),
        };
        let written: Vec<_> = delivered(&payloads).iter().map(count).collect();
        assert_eq!(written, wholes);
    }
}

#[test]
fn what_is_not_a_whole_datagram_with_a_checksum_stays_alone() {
    let alone = |change: fn(&mut Vec<u8>)| {
        let mut packet = finished(udp(&[1; 100]));
        change(&mut packet);
        seal_header(&mut packet[..20]);
        delivered(&[packet.clone(), packet]).len() == 2
    };
    assert!(!alone(|_| ()), "the same identification always");
    assert!(alone(|p| p[26..28].fill(0)), "no checksum");
    assert!(alone(|p| p[6] = 0x60), "a fragment");
    assert!(alone(|p| p[25] -= 1), "a length of its own");
    // The kernel never asks to segment a fragment.
    let mut fragment = partial(udp(&[1; 100]));
    fragment[6] = 0x20;
    assert_eq!(cut(&fragment, Gso::Udp(10)), Err(Contradiction));
}

#[test]
fn a_sum_of_zero_is_not_sent_as_no_checksum() {
    // What makes the sum of all words 0xffff is the checksum over the rest.
    let without = finished(udp(&[0, 0]));
    let payload = [without[26], without[27]];
    assert_eq!(finished(udp(&payload))[26..28], [0xff, 0xff]);
    let twice = partial(udp(&[payload, payload].concat()));
    let segments = cut(&twice, Gso::Udp(2)).unwrap();
    assert_eq!(segments[0][26..28], [0xff, 0xff]);
}

#[test]
fn a_message_quotes_the_offender() {
    let offender = finished(udp(&[1; 100]));
    let message = Message::about(
        View::of_parsed(&offender),
        Reason::NetUnreachable,
        Ipv4Addr::new(10, 5, 1, 0),
    )
    .unwrap();
    let bytes = message.bytes();
    let mut copy = bytes.to_vec();
    assert!(Packet::parse(&mut copy).is_ok());
    assert_eq!(bytes.len(), 20 + 8 + 28);
    assert_eq!(bytes[8..10], [8, ICMP]);
    assert_eq!(bytes[12..20], [10, 5, 1, 0, 10, 5, 1, 7]);
    assert_eq!(bytes[20..22], [3, 0]);
    assert!(Sum::default().bytes(&bytes[20..]).is_intact());
    assert_eq!(bytes[28..], offender[..28]);
    let message = Message::about(View::of_parsed(&offender), Reason::TimeExceeded, A).unwrap();
    assert_eq!(message.bytes()[20..22], [11, 0]);
}

#[test]
fn some_packets_are_never_answered() {
    let answered = |change: fn(&mut Vec<u8>)| {
        let mut packet = ip(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
        change(&mut packet);
        Message::about(View::of_parsed(&packet), Reason::TimeExceeded, A).is_some()
    };
    assert!(answered(|_| ()), "echo request");
    assert!(!answered(|p| p[20] = 3), "ICMP error");
    assert!(!answered(|p| p[20] = 11), "ICMP error");
    assert!(!answered(|p| p[20] = 255), "unknown ICMP");
    assert!(!answered(|p| p[7] = 1), "later fragment");
    assert!(answered(|p| p[6] = 0x20), "first fragment");
    assert!(!answered(|p| p[16] = 224), "multicast");
    assert!(!answered(|p| p[16..20].fill(255)), "broadcast");
    assert!(!answered(|p| p[12..16].fill(0)), "nobody");
    assert!(!answered(|p| p[12] = 127), "loopback");
}
