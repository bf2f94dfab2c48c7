//! What the frames on the switch carry: which encapsulation a packet of the overlay travels in, and whether it can be
//! read by whoever looks.
//!
//! Test pings are filled with one byte, so that a frame which carries one in clear is known by a long run of it,
//! whatever is wrapped around.

use bytes::Bytes;

use super::is_group;

/// What test pings are filled with.
pub(crate) const MARK: u8 = 0xa5;
/// So many bytes of it in a row are no chance.
const MARK_RUN: usize = 32;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERNET_HEADER: usize = 14;
const IPV6_HEADER: usize = 40;
/// Protocol numbers registered with IANA.
const ICMP: u8 = 1;
const IPIP: u8 = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// etcd's client port: the lease store shares the underlay.
const ETCD: u16 = 2379;

/// Version of an Internet Protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// How a packet of the overlay crosses the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Carrier {
    /// As it is.
    Plain(Family),
    /// As the payload of an IPv4 packet.
    Ipip,
    /// In UDP to this port.
    Udp(Family, u16),
}

/// A frame that one machine sent to another one, for the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    /// How it carries what it carries; none: in a way that no backend uses.
    pub carrier: Option<Carrier>,
    /// Whether a marked ping can be read in it.
    pub marked: bool,
}

/// Looks at frames; those that the underlay needs for itself (broadcasts, neighbour discovery, etcd) are left out.
pub(crate) fn sights(frames: &[Bytes]) -> Vec<Sight> {
    frames.iter().filter_map(|frame| sight(frame)).collect()
}

fn sight(frame: &[u8]) -> Option<Sight> {
    let destination: [u8; 6] = frame.get(..6)?.try_into().ok()?;
    let ethertype = u16_at(frame, 12)?;
    let (family, protocol, payload) = match ethertype {
        ETHERTYPE_IPV4 => {
            let header = usize::from(frame.get(ETHERNET_HEADER)? & 0xf) * 4;
            let protocol = *frame.get(ETHERNET_HEADER + 9)?;
            (Family::V4, protocol, ETHERNET_HEADER + header)
        }
        ETHERTYPE_IPV6 => {
            let protocol = *frame.get(ETHERNET_HEADER + 6)?;
            (Family::V6, protocol, ETHERNET_HEADER + IPV6_HEADER)
        }
        _ => return None,
    };
    let ports = || Some((u16_at(frame, payload)?, u16_at(frame, payload + 2)?));
    let marked = is_marked(frame);
    let etcd = protocol == TCP && ports().is_some_and(|(from, to)| from == ETCD || to == ETCD);
    if is_group(destination) || etcd || (protocol == ICMPV6 && !marked) {
        return None;
    }
    let carrier = match protocol {
        ICMP | ICMPV6 | TCP => Some(Carrier::Plain(family)),
        IPIP => Some(Carrier::Ipip),
        UDP => ports().map(|(_, to)| Carrier::Udp(family, to)),
        _ => None,
    };
    Some(Sight { carrier, marked })
}

fn is_marked(frame: &[u8]) -> bool {
    frame
        .chunk_by(|a, b| a == b)
        .any(|run| run[0] == MARK && run.len() >= MARK_RUN)
}

fn u16_at(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNICAST: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 0x0b];

    fn ipv4(protocol: u8, payload: &[u8]) -> Bytes {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[9] = protocol;
        [&UNICAST[..], &[2; 6], &[8, 0], &header, payload]
            .concat()
            .into()
    }

    fn ipv6(protocol: u8, payload: &[u8]) -> Bytes {
        let mut header = [0; IPV6_HEADER];
        header[0] = 0x60;
        header[6] = protocol;
        [&UNICAST[..], &[2; 6], &[0x86, 0xdd], &header, payload]
            .concat()
            .into()
    }

    fn udp(to: u16, payload: &[u8]) -> Vec<u8> {
        [
            &[0xc0, 0, to.to_be_bytes()[0], to.to_be_bytes()[1]],
            &[0; 4][..],
            payload,
        ]
        .concat()
    }

    fn clear(carrier: Carrier) -> Vec<Sight> {
        vec![Sight {
            carrier: Some(carrier),
            marked: true,
        }]
    }

    #[test]
    fn a_marked_ping_is_seen_in_every_wrapping() {
        let ping = [MARK; 56];
        let cases = [
            (ipv4(ICMP, &ping), Carrier::Plain(Family::V4)),
            (ipv6(ICMPV6, &ping), Carrier::Plain(Family::V6)),
            (ipv4(IPIP, &ping), Carrier::Ipip),
            (ipv4(UDP, &udp(8472, &ping)), Carrier::Udp(Family::V4, 8472)),
            (ipv6(UDP, &udp(8472, &ping)), Carrier::Udp(Family::V6, 8472)),
        ];
        for (frame, carrier) in cases {
            assert_eq!(sights(&[frame]), clear(carrier));
        }
    }

    #[test]
    fn noise_is_not_marked() {
        let noise: Vec<u8> = (0..=255).chain([MARK; MARK_RUN - 1]).collect();
        let seen = sights(&[ipv4(UDP, &udp(51820, &noise))]);
        assert_eq!(
            seen,
            [Sight {
                carrier: Some(Carrier::Udp(Family::V4, 51820)),
                marked: false
            }]
        );
    }

    #[test]
    fn the_underlays_own_frames_are_left_out() {
        let etcd = [ETCD.to_be_bytes(), [0xc0, 0]].concat();
        let mut broadcast = ipv4(UDP, &udp(5355, &[])).to_vec();
        broadcast[0] = 0x33;
        let arp = [&UNICAST[..], &[2; 6], &[8, 6], &[0; 28]].concat();
        let frames = [
            ipv4(TCP, &etcd),
            broadcast.into(),
            arp.into(),
            ipv6(ICMPV6, &[136, 0]),
            Bytes::from_static(b"runt"),
        ];
        assert!(sights(&frames).is_empty());
    }

    #[test]
    fn what_no_backend_sends_is_nobodys_carrier() {
        let gre = sights(&[ipv4(47, &[MARK; 64])]);
        assert_eq!(
            gre,
            [Sight {
                carrier: None,
                marked: true
            }]
        );
    }
}
