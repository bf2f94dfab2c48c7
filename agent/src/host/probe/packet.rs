//! The packets that are sent to peers and seen on devices: IPv4 (RFC 791), IPv6 (RFC 8200), and in them ICMP echoes
//! (RFC 792, RFC 4443 §4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use crate::host::udp::checksum::Sum;

/// Protocol numbers, in the packet as in `IPPROTO_…`.
pub(crate) const ICMP: u8 = 1;
pub(crate) const IPIP: u8 = 4;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
/// VXLAN 8 (RFC 7348 §5) + inner Ethernet 14 bytes.
const VXLAN_HEADERS: usize = 22;
const ICMP_HEADER: usize = 8;
/// What tells our echoes from others'.
const MARK: usize = 8;

/// The shortest echo that can be told from others, as a whole IP packet.
pub(crate) fn shortest(family_of: IpAddr) -> usize {
    header_len(family_of) + ICMP_HEADER + MARK
}

fn header_len(family_of: IpAddr) -> usize {
    match family_of {
        IpAddr::V4(_) => IPV4_HEADER,
        IpAddr::V6(_) => IPV6_HEADER,
    }
}

/// What an echo is recognised by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    /// The sender's identifier.
    pub(crate) id: u16,
    /// Which of its echoes.
    pub(crate) sequence: u16,
    /// Bytes that no other sender has.
    pub(crate) mark: [u8; MARK],
}

impl Tag {
    /// The echo request that goes to `to` in an IP packet of `len` bytes, or the least that is possible. The checksum of
    /// ICMPv6 is left to the kernel, which knows the addresses.
    pub(crate) fn request(self, to: IpAddr, len: usize) -> Vec<u8> {
        let len = len.max(shortest(to)) - header_len(to);
        let mut message = vec![0; len];
        message[0] = if to.is_ipv4() { 8 } else { 128 };
        message[4..6].copy_from_slice(&self.id.to_be_bytes());
        message[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        message[ICMP_HEADER..ICMP_HEADER + MARK].copy_from_slice(&self.mark);
        if to.is_ipv4() {
            let checksum = Sum::default().bytes(&message).checksum();
            message[2..4].copy_from_slice(&checksum);
        }
        message
    }

    /// The same as a whole IP packet, from an address that need not be the device's.
    pub(crate) fn packet(self, from: IpAddr, to: IpAddr) -> Option<Vec<u8>> {
        let mut message = self.request(to, 0);
        let len = u16::try_from(message.len()).ok()?;
        let mut packet = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = [0; IPV4_HEADER];
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(len + 20).to_be_bytes());
                header[8] = 64;
                header[9] = ICMP;
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let checksum = Sum::default().bytes(&header).checksum();
                header[10..12].copy_from_slice(&checksum);
                header.to_vec()
            }
            (IpAddr::V6(from_v6), IpAddr::V6(to_v6)) => {
                let mut header = [0; IPV6_HEADER];
                header[0] = 0x60;
                header[4..6].copy_from_slice(&len.to_be_bytes());
                header[6] = ICMPV6;
                header[7] = 64;
                header[8..24].copy_from_slice(&from_v6.octets());
                header[24..40].copy_from_slice(&to_v6.octets());
                let sum = pseudo_header(from, to, ICMPV6, message.len()).bytes(&message);
                message[2..4].copy_from_slice(&sum.checksum());
                header.to_vec()
            }
            _ => return None,
        };
        packet.extend(message);
        Some(packet)
    }

    /// The tag of an echo reply, if an ICMP message of the family is one.
    pub(crate) fn of_reply(message: &[u8], v4: bool) -> Option<Self> {
        let kind = if v4 { 0 } else { 129 };
        let header: &[u8; ICMP_HEADER] = message.first_chunk()?;
        let mark = message[ICMP_HEADER..].first_chunk()?;
        (header[..2] == [kind, 0]).then(|| Self {
            id: u16::from_be_bytes([header[4], header[5]]),
            sequence: u16::from_be_bytes([header[6], header[7]]),
            mark: *mark,
        })
    }
}

/// An IP packet that is no fragment, as it was seen on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet; `None` for a part of one, and for what is no IP packet. IPv6 extension headers are taken for the
    /// protocol: what we look for has none.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER] = bytes.first_chunk()?;
                let start = usize::from(header[0] & 0xf) * 4;
                let end = usize::from(u16::from_be_bytes([header[2], header[3]]));
                // More Fragments, or a fragment offset.
                if start < IPV4_HEADER || header[6] & 0x3f != 0 || header[7] != 0 {
                    return None;
                }
                let [a, b, c, d] = [header[12], header[13], header[14], header[15]];
                let [e, f, g, h] = [header[16], header[17], header[18], header[19]];
                Some(Self {
                    source: Ipv4Addr::new(a, b, c, d).into(),
                    destination: Ipv4Addr::new(e, f, g, h).into(),
                    protocol: header[9],
                    payload: bytes.get(start..end)?,
                })
            }
            6 => {
                let header: &[u8; IPV6_HEADER] = bytes.first_chunk()?;
                let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
                let source: &[u8; 16] = header[8..].first_chunk()?;
                let destination: &[u8; 16] = header[24..].first_chunk()?;
                Some(Self {
                    source: Ipv6Addr::from(*source).into(),
                    destination: Ipv6Addr::from(*destination).into(),
                    protocol: header[6],
                    payload: bytes.get(IPV6_HEADER..IPV6_HEADER + len)?,
                })
            }
            _ => None,
        }
    }

    /// The tag, if this is an echo reply.
    pub(crate) fn reply(&self) -> Option<Tag> {
        match self.protocol {
            ICMP => Tag::of_reply(self.payload, true),
            ICMPV6 => Tag::of_reply(self.payload, false),
            _ => None,
        }
    }

    /// The destination port, if this is a UDP packet.
    pub(crate) fn udp_port(&self) -> Option<u16> {
        let header: &[u8; UDP_HEADER] = self.payload.first_chunk()?;
        (self.protocol == UDP).then(|| u16::from_be_bytes([header[2], header[3]]))
    }

    /// The packet inside, by whichever of the open encapsulations: IP in IP, IP in UDP, Ethernet in VXLAN.
    pub(crate) fn inner(&self) -> Option<Packet<'a>> {
        match self.protocol {
            IPIP => Self::read(self.payload),
            UDP => {
                let payload = self.payload.get(UDP_HEADER..)?;
                // A VXLAN header begins with 0x08, its one flag, or 0x88 with GBP: no IP version.
                let vxlan = payload.first()? & 0x7f == 0x08;
                let start = if vxlan { VXLAN_HEADERS } else { 0 };
                Self::read(payload.get(start..)?)
            }
            _ => None,
        }
    }

    /// Whether this may be a packet of WireGuard's: in UDP one of its four types, and three bytes that are reserved
    /// (section 5.4 of its paper).
    pub(crate) fn is_wireguard(&self) -> bool {
        let message = self.payload.get(UDP_HEADER..);
        let kind: Option<&[u8; 4]> = message.and_then(<[u8]>::first_chunk);
        self.protocol == UDP && matches!(kind, Some([1..=4, 0, 0, 0]))
    }

    /// Whether the TCP or UDP checksum is there and wrong. What the sender left to its device, and never crossed a wire
    /// since, has the sum of the pseudo-header alone (`CHECKSUM_PARTIAL` of linux/skbuff.h), which is right.
    pub(crate) fn is_corrupt(&self) -> bool {
        let at = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ => return false,
        };
        let Some(Ok(stored)) = self.payload.get(at..at + 2).map(<[u8; 2]>::try_from) else {
            return false;
        };
        // RFC 768: zero is none. IPv6 tunnels may go without as well (RFC 6935).
        if self.protocol == UDP && stored == [0, 0] {
            return false;
        }
        let sum = pseudo_header(
            self.source,
            self.destination,
            self.protocol,
            self.payload.len(),
        );
        sum.folded() != stored && !sum.bytes(self.payload).is_intact()
    }
}

/// The pseudo-header of a transport's checksum (RFC 768, RFC 8200 §8.1).
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> Sum {
    let add = |sum: Sum, address| match address {
        IpAddr::V4(address) => sum.bytes(&address.octets()),
        IpAddr::V6(address) => sum.bytes(&address.octets()),
    };
    // A packet has no more than 65,535 bytes.
    let len = u16::try_from(len).unwrap_or(u16::MAX);
    add(add(Sum::default(), from), to)
        .word(u16::from(protocol))
        .word(len)
}

/// The number by which a device names what is in its frames (`ETH_P_IP`, `ETH_P_IPV6`).
pub(crate) fn ether_type(family_of: IpAddr) -> libc::c_int {
    match family_of {
        IpAddr::V4(_) => libc::ETH_P_IP,
        IpAddr::V6(_) => libc::ETH_P_IPV6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: Tag = Tag {
        id: 0x1234,
        sequence: 7,
        mark: *b"selvage!",
    };

    fn addresses(v4: bool) -> (IpAddr, IpAddr) {
        let pair = if v4 {
            ("10.5.1.0", "10.77.0.12")
        } else {
            ("fd00:5::", "fd77::c")
        };
        (pair.0.parse().unwrap(), pair.1.parse().unwrap())
    }

    #[test]
    fn an_echo_is_as_long_as_asked_and_comes_back_with_its_tag() {
        for v4 in [true, false] {
            let (from, to) = addresses(v4);
            assert_eq!(TAG.request(to, 1450).len(), 1450 - header_len(to));
            assert_eq!(TAG.request(to, 0).len(), 16);
            let mut bytes = TAG.packet(from, to).unwrap();
            let packet = Packet::read(&bytes).unwrap();
            assert_eq!((packet.source, packet.destination), (from, to));
            assert_eq!(packet.reply(), None, "it is a request");
            let at = header_len(to);
            bytes[at] = if v4 { 0 } else { 129 };
            assert_eq!(Packet::read(&bytes).unwrap().reply(), Some(TAG));
        }
    }

    #[test]
    fn the_checksums_of_a_whole_packet_are_right() {
        let (from, to) = addresses(true);
        let bytes = TAG.packet(from, to).unwrap();
        assert!(Sum::default().bytes(&bytes[..20]).is_intact());
        assert!(Sum::default().bytes(&bytes[20..]).is_intact());
        let (from, to) = addresses(false);
        let bytes = TAG.packet(from, to).unwrap();
        let sum = pseudo_header(from, to, ICMPV6, bytes.len() - 40);
        assert!(sum.bytes(&bytes[40..]).is_intact());
    }

    /// An outer packet around `inner`, with `head` between.
    fn wrapped(protocol: u8, head: &[u8], inner: &[u8]) -> Vec<u8> {
        let len = u16::try_from(20 + head.len() + inner.len()).unwrap();
        let mut outer = vec![0x45, 0];
        outer.extend(len.to_be_bytes());
        outer.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 77, 0, 11, 10, 77, 0, 12]);
        outer.extend(head);
        outer.extend(inner);
        outer
    }

    #[test]
    fn the_packet_inside_is_found_in_every_open_encapsulation() {
        let (from, to) = addresses(true);
        let inner = TAG.packet(from, to).unwrap();
        let udp = [0xc0, 0, 0x21, 0x18, 0, 0, 0, 0];
        let vxlan: Vec<u8> = udp.into_iter().chain([8, 0, 0, 0, 0, 0, 1, 0]).collect();
        let vxlan: Vec<u8> = vxlan.into_iter().chain([0; 14]).collect();
        for outer in [
            wrapped(IPIP, &[], &inner),
            wrapped(UDP, &udp, &inner),
            wrapped(UDP, &vxlan, &inner),
        ] {
            let found = Packet::read(&outer).unwrap().inner().unwrap();
            assert_eq!((found.source, found.destination), (from, to));
        }
        let handshake = wrapped(UDP, &udp, &[1, 0, 0, 0, 7]);
        assert!(Packet::read(&handshake).unwrap().is_wireguard());
        let outer = wrapped(UDP, &vxlan, &inner);
        assert!(!Packet::read(&outer).unwrap().is_wireguard());
        assert_eq!(Packet::read(&outer).unwrap().udp_port(), Some(8472));
        // Neither a fragment nor half a packet is read.
        let mut fragment = outer.clone();
        fragment[6] = 0x20;
        assert_eq!(Packet::read(&fragment), None);
        assert_eq!(Packet::read(&outer[..outer.len() - 1]), None);
        assert_eq!(Packet::read(&[]), None);
    }

    #[test]
    fn only_a_wrong_checksum_is_corrupt() {
        let (from, to) = ("10.77.0.11".parse().unwrap(), "10.77.0.12".parse().unwrap());
        let udp = [0xc0, 0, 0x21, 0x18, 0, 12, 0, 0, b'd', b'a', b't', b'a'];
        let partial = pseudo_header(from, to, UDP, udp.len());
        let right = partial.bytes(&udp).checksum();
        let with = |checksum: [u8; 2]| {
            let mut udp = udp;
            udp[6..8].copy_from_slice(&checksum);
            let packet = wrapped(UDP, &udp, &[]);
            Packet::read(&packet).unwrap().is_corrupt()
        };
        assert!(!with([0, 0]), "none");
        assert!(!with(right), "right");
        assert!(!with(partial.folded()), "left to the device");
        assert!(with([right[0] ^ 1, right[1]]), "wrong");
    }
}
