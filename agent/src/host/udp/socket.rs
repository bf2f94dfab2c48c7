//! The UDP socket: many packets per system call, in both directions.
//!
//! The kernel segments one call's bytes into datagrams of one size (`UDP_SEGMENT`, Linux 4.18) and returns several
//! datagrams as one (`UDP_GRO`, Linux 5.0); udp(7). Both are set on the socket, so that sending needs no control
//! messages. On older kernels every datagram is a separate call.

use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::sockopt::{
    RcvBuf, RcvBufForce, ReusePort, SndBuf, SndBufForce, UdpGroSegment, UdpGsoSegment,
};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recvmsg,
    setsockopt, socket,
};

use super::counters::Cells;

/// Socket buffer size in bytes: some milliseconds at 10 Gbit/s.
const BUFFER: usize = 4 << 20;
/// The longest payload of one call: 64 KiB less the outer IPv4 and UDP headers.
const MAX_PAYLOAD: usize = 65_507;
/// The most datagrams of one call: `UDP_MAX_SEGMENTS` before Linux 6.9.
const MAX_DATAGRAMS: usize = 64;
/// How long a worker waits for the underlay before it drops, in milliseconds.
const PATIENCE_MS: u8 = 10;

/// The socket of one worker, with the datagrams queued for one send.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    /// The socket's current `UDP_SEGMENT` size; 0 means off.
    cut_at: usize,
    /// Whether the kernel supports `UDP_SEGMENT`.
    can_cut: bool,
    batch: Batch,
    control: Vec<u8>,
}

/// Datagrams of one size to one peer; the last one may be shorter.
#[derive(Debug)]
struct Batch {
    bytes: Box<[u8]>,
    len: usize,
    count: usize,
    size: usize,
    to: SocketAddrV4,
}

/// The result of one receive call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Total bytes.
    pub(super) len: usize,
    /// Bytes of each datagram but the last, which may be shorter. At least 1.
    pub(super) size: usize,
    /// Who sent them.
    pub(super) from: Option<SocketAddrV4>,
}

impl Socket {
    /// Opens a socket on an address of this host; `shared` if several workers receive on it.
    pub(super) fn open(address: SocketAddrV4, shared: bool) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
        if shared {
            setsockopt(&fd, ReusePort, &true)?;
        }
        // The privileged options ignore net.core.rmem_max and wmem_max; without CAP_NET_ADMIN the plain ones are capped
        // at them.
        setsockopt(&fd, RcvBufForce, &BUFFER)
            .or_else(|_| setsockopt(&fd, RcvBuf, &BUFFER))
            .and_then(|()| setsockopt(&fd, SndBufForce, &BUFFER))
            .or_else(|_| setsockopt(&fd, SndBuf, &BUFFER))?;
        let can_cut = setsockopt(&fd, UdpGsoSegment, &0).is_ok();
        match setsockopt(&fd, UdpGroSegment, &true) {
            Ok(()) | Err(Errno::ENOPROTOOPT) => {}
            Err(error) => return Err(error.into()),
        }
        bind(fd.as_raw_fd(), &SockaddrIn::from(address))?;
        Ok(Self {
            socket: fd.into(),
            cut_at: 0,
            can_cut,
            batch: Batch {
                bytes: vec![0; MAX_PAYLOAD].into(),
                len: 0,
                count: 0,
                size: 0,
                to: address,
            },
            control: cmsg_space!(libc::c_int),
        })
    }

    /// Returns room for another datagram, which the caller must fill. Queued datagrams are sent first if the new one
    /// cannot join them.
    pub(super) fn datagram(&mut self, to: SocketAddrV4, len: usize, cells: &Cells) -> &mut [u8] {
        if !self.batch.takes(to, len) {
            self.flush(cells);
        }
        self.batch.add(to, len)
    }

    /// Sends the queued datagrams.
    pub(super) fn flush(&mut self, cells: &Cells) {
        let (count, len) = (self.batch.count, self.batch.len);
        if count == 0 {
            return;
        }
        let failed = match self.send_batch() {
            Ok(()) => (0, 0),
            // The kernel cannot segment: a datagram exceeds the path MTU, or the route is transformed (IPsec).
            // udp_send_skb() returns these errors.
            Err(Errno::EMSGSIZE | Errno::EINVAL | Errno::EIO) => self.send_singly(),
            Err(_) => (count, len),
        };
        cells.sent_packets.add(count - failed.0);
        cells.sent_bytes.add(len - failed.1);
        cells.send_failed.add(failed.0);
        self.batch.count = 0;
        self.batch.len = 0;
    }

    fn send_batch(&mut self) -> nix::Result<()> {
        let Batch {
            count, size, len, ..
        } = self.batch;
        // A single datagram may be any size up to the one set.
        let fits = if count > 1 {
            self.cut_at == size
        } else {
            self.cut_at == 0 || self.cut_at >= len
        };
        if !fits {
            self.cut_at(size)?;
        }
        send(&self.socket, &self.batch.bytes[..len], self.batch.to)
    }

    /// Sends the datagrams one by one; the kernel fragments those that do not fit. Returns the packets and bytes that
    /// could not be sent.
    fn send_singly(&mut self) -> (usize, usize) {
        if self.can_cut && self.cut_at(0).is_err() {
            self.can_cut = false;
        }
        let batch = &self.batch;
        batch.bytes[..batch.len]
            .chunks(batch.size)
            .filter(|datagram| send(&self.socket, datagram, batch.to).is_err())
            .fold((0, 0), |(count, len), datagram| {
                (count + 1, len + datagram.len())
            })
    }

    fn cut_at(&mut self, size: usize) -> nix::Result<()> {
        if !self.can_cut {
            return if self.batch.count > 1 {
                Err(Errno::EIO)
            } else {
                Ok(())
            };
        }
        let value = libc::c_int::try_from(size).map_err(|_| Errno::EINVAL)?;
        setsockopt(&self.socket, UdpGsoSegment, &value)?;
        self.cut_at = size;
        Ok(())
    }

    /// Receives one datagram or several of one size; `None` if none is waiting. `room` is at least 64 KiB.
    pub(super) fn receive(&mut self, room: &mut [u8]) -> io::Result<Option<Received>> {
        let mut parts = [IoSliceMut::new(room)];
        let received = recvmsg::<SockaddrIn>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut self.control),
            MsgFlags::MSG_DONTWAIT,
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let size = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        Ok(Some(Received {
            len: received.bytes,
            size: size.unwrap_or(received.bytes).max(1),
            from: received.address.map(SocketAddrV4::from),
        }))
    }
}

impl Batch {
    /// Whether a datagram can join the queued ones.
    fn takes(&self, to: SocketAddrV4, len: usize) -> bool {
        let closed = self.len < self.count * self.size;
        self.count == 0
            || (to == self.to
                && !closed
                && len <= self.size
                && self.count < MAX_DATAGRAMS
                && self.len + len <= MAX_PAYLOAD)
    }

    fn add(&mut self, to: SocketAddrV4, len: usize) -> &mut [u8] {
        if self.count == 0 {
            self.to = to;
            self.size = len;
        }
        let start = self.len;
        self.len += len;
        self.count += 1;
        &mut self.bytes[start..self.len]
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends one buffer. Waits a little if the underlay is full: the backlog then builds up in the TUN device's queue,
/// whose drops the senders can see.
fn send(socket: &UdpSocket, bytes: &[u8], to: SocketAddrV4) -> nix::Result<()> {
    let mut waited = false;
    loop {
        let error = match socket.send_to(bytes, to) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::Interrupted => {}
            ErrorKind::WouldBlock if !waited => {
                waited = true;
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PATIENCE_MS)?;
            }
            _ => return Err(Errno::from_raw(error.raw_os_error().unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use super::*;

    fn receiver() -> (UdpSocket, SocketAddrV4) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else {
            panic!("an IPv4 socket")
        };
        (socket, address)
    }

    #[test]
    fn every_peer_gets_its_own_datagrams_with_their_own_lengths() {
        let ((a, to_a), (b, to_b)) = (receiver(), receiver());
        let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let mut socket = Socket::open(local, false).unwrap();
        let cells = Cells::default();
        let sent = [
            (to_a, 100),
            (to_b, 100),
            (to_b, 100),
            (to_b, 40),
            (to_b, 100),
            (to_a, 40),
            (to_a, 200),
            (to_a, 200),
            (to_b, 250),
        ];
        for (n, (to, len)) in (0..).zip(sent) {
            socket.datagram(to, len, &cells).fill(n);
        }
        socket.flush(&cells);
        for (at, to) in [(&a, to_a), (&b, to_b)] {
            for (n, (_, len)) in (0..).zip(sent).filter(|(_, (other, _))| *other == to) {
                let mut got = [0xff; 300];
                assert_eq!(at.recv(&mut got).unwrap(), len);
                assert!(got[..len].iter().all(|&byte| byte == n));
            }
        }
        let mut counters = super::super::counters::Counters::default();
        counters.add(&cells);
        assert_eq!((counters.sent_packets, counters.sent_bytes), (9, 1130));
    }

    #[test]
    fn what_the_underlay_does_not_take_is_counted() {
        let local = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let mut socket = Socket::open(local, false).unwrap();
        let cells = Cells::default();
        // A socket bound to the loopback address cannot send to other hosts.
        let nowhere = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 9);
        for len in [100, 100, 30] {
            socket.datagram(nowhere, len, &cells).fill(0);
        }
        socket.flush(&cells);
        let mut counters = super::super::counters::Counters::default();
        counters.add(&cells);
        assert_eq!((counters.sent_packets, counters.send_failed), (0, 3));
        assert_eq!(counters.sent_bytes, 0);
    }
}
