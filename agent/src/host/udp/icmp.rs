//! ICMP errors, which tell a sender why its packet was dropped (RFC 792, RFC 1812 §4.3).

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use super::checksum::Sum;
use super::packet::{ICMP, MIN_HEADER, View, icmp_header};

/// Transport bytes quoted after the offending packet's IP header: the ports, which identify the flow (RFC 792).
const QUOTED: usize = 8;
const ICMP_HEADER: usize = 8;
/// The longest message.
pub(super) const MAX_MESSAGE: usize = MIN_HEADER + ICMP_HEADER + 60 + QUOTED;
/// As in flannel; far more than the number of hops.
const TTL: u8 = 8;
/// Precedence 6, internetwork control, for ICMP errors (RFC 1812 §4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

/// Rate limit of one worker: burst size, and messages per second.
const BURST: u32 = 50;
const PER_SECOND: u32 = 100;

/// Why a packet was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// No route to the destination: destination unreachable, network unreachable.
    NetUnreachable,
    /// TTL exceeded in transit.
    TimeExceeded,
}

/// A message ready to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    bytes: [u8; MAX_MESSAGE],
    len: usize,
    /// The sender of the offending packet.
    pub(super) to: Ipv4Addr,
}

impl Message {
    /// Builds the message about a packet, from the tunnel's own address; `None` if the packet must not be answered: an
    /// ICMP error, a later fragment, a source or destination that is no single host (RFC 1812 §4.3.2.7).
    pub(super) fn about(offender: View<'_>, reason: Reason, from: Ipv4Addr) -> Option<Self> {
        let to = offender.source();
        let destination = offender.destination();
        let many = |address: Ipv4Addr| address.is_multicast() || address.is_broadcast();
        let is_error =
            offender.protocol() == ICMP && !offender.payload().first().is_some_and(is_query);
        if is_error
            || offender.is_later_fragment()
            || many(destination)
            || many(to)
            || to.is_unspecified()
            || to.is_loopback()
        {
            return None;
        }
        let quoted =
            &offender.bytes()[..offender.header_len() + offender.payload().len().min(QUOTED)];
        let len = MIN_HEADER + ICMP_HEADER + quoted.len();
        let mut bytes = [0; MAX_MESSAGE];
        let (ip, rest) = bytes.split_at_mut(MIN_HEADER);
        ip.copy_from_slice(&icmp_header((from, to), len - MIN_HEADER, TTL, PRECEDENCE));
        let icmp = &mut rest[..ICMP_HEADER + quoted.len()];
        (icmp[0], icmp[1]) = match reason {
            Reason::NetUnreachable => (3, 0),
            Reason::TimeExceeded => (11, 0),
        };
        icmp[ICMP_HEADER..].copy_from_slice(quoted);
        let checksum = Sum::default().bytes(icmp).checksum();
        icmp[2..4].copy_from_slice(&checksum);
        Some(Self { bytes, len, to })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Whether an ICMP type is a query or reply and not an error: echo, timestamp, information, address mask. Unknown types
/// count as errors.
fn is_query(kind: &u8) -> bool {
    matches!(kind, 0 | 8 | 9 | 10 | 13..=18)
}

/// Sends messages to this host and its containers.
///
/// flannel writes them to its TUN device. They would arrive with one of this host's own addresses as source, which the
/// kernel drops as a martian (`__fib_validate_source()`) unless `accept_local` is set, which would allow every peer the
/// same. So they are sent through a raw socket, like the kernel's own errors.
#[derive(Debug)]
pub(super) struct Reporter(OwnedFd);

impl Reporter {
    /// Needs the capability `CAP_NET_RAW`.
    pub(super) fn open() -> nix::Result<Self> {
        // IPPROTO_RAW implies IP_HDRINCL: we write the IP header (raw(7)).
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw).map(Self)
    }

    pub(super) fn send(&self, message: &Message) -> nix::Result<()> {
        let [a, b, c, d] = message.to.octets();
        let to = SockaddrIn::new(a, b, c, d, 0);
        match sendto(
            self.0.as_raw_fd(),
            message.bytes(),
            &to,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Rate limit: a flood of undeliverable packets must not become a flood of messages (RFC 1812 §4.3.2.8).
#[derive(Debug)]
pub(super) struct Limiter {
    tokens: u32,
    since: Instant,
}

impl Limiter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            since: now,
        }
    }

    /// Whether another message may be sent now.
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        const STEP: Duration = Duration::from_millis(1000 / PER_SECOND as u64);
        let earned = now.saturating_duration_since(self.since).as_millis() / STEP.as_millis();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.tokens = (self.tokens + earned).min(BURST);
            self.since = now;
        }
        let admitted = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limiter_lets_a_burst_through_and_then_the_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted =
            |limiter: &mut Limiter, now, n| (0..n).filter(|_| limiter.admits(now)).count();
        assert_eq!(admitted(&mut limiter, start, 1000), 50);
        let later = start + Duration::from_millis(100);
        assert_eq!(admitted(&mut limiter, later, 1000), 10);
        assert_eq!(
            admitted(&mut limiter, later + Duration::from_millis(9), 10),
            0
        );
        let much_later = later + Duration::from_secs(3600);
        assert_eq!(admitted(&mut limiter, much_later, 1000), 50);
    }
}
