//! What goes over a device, before the packet filter has seen it when it comes in and after when it goes out; and packets
//! that are put onto a device as they are, past routes and packet filter: packet(7).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, bind,
    recvfrom, sendto, setsockopt, socket,
};
use tokio::io::unix::AsyncFd;

use crate::base::net::MacAddr;
use crate::host::probe::packet::{Packet, ether_type};
use crate::host::probe::watch;

/// Receive buffer in bytes, for packets that arrive while we are busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The longest packet, after the kernel put together what came in pieces.
const LONGEST: usize = 64 << 10;
/// How many packets are taken at once.
const DRAIN: usize = 64;

/// A device that is listened to.
#[derive(Debug)]
pub(super) struct Tap {
    socket: AsyncFd<OwnedFd>,
    index: libc::c_int,
}

/// How a packet went over the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Passage {
    /// Whether it left by the device, and did not come in.
    pub(super) outgoing: bool,
    /// The sender's address on the link, if it has any.
    pub(super) neighbor: Option<MacAddr>,
}

impl Tap {
    /// Begins to listen on the device of this index.
    ///
    /// # Errors
    /// There is no such device; `EPERM` without the capability `CAP_NET_RAW`.
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let index = libc::c_int::try_from(index).map_err(|_| Errno::ENODEV)?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        // Without protocol, so that nothing comes in before it is bound.
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        setsockopt(&fd, RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&fd, RcvBuf, &RECEIVE_BUFFER))?;
        let all = SockProtocol::EthAll as libc::c_int;
        bind(fd.as_raw_fd(), &address(index, all, None)?)?;
        Ok(Self {
            socket: watch(fd)?,
            index,
        })
    }

    /// Waits for packets, and hands over those that are there.
    pub(super) async fn listen(&self, mut take: impl FnMut(Passage, Packet<'_>)) {
        let Ok(mut ready) = self.socket.readable().await else {
            return;
        };
        let mut buffer = vec![0; LONGEST];
        for _ in 0..DRAIN {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut buffer) {
                Ok((len, from)) => {
                    let Some((passage, packet)) = from
                        .and_then(passage)
                        .zip(buffer.get(..len).and_then(Packet::read))
                    else {
                        continue;
                    };
                    take(passage, packet);
                }
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    break;
                }
                // The device went down; what comes when it is up again is heard.
                Err(_) => {}
            }
        }
    }

    /// Puts a whole IP packet onto the device, for a neighbor if the device has such.
    ///
    /// # Errors
    /// The device is down or full.
    pub(super) fn send(&self, bytes: &[u8], to: Option<MacAddr>) -> nix::Result<()> {
        let packet = Packet::read(bytes).ok_or(Errno::EINVAL)?;
        let protocol = u16::try_from(ether_type(packet.destination)).map_err(|_| Errno::EINVAL)?;
        let to = address(self.index, libc::c_int::from(protocol.to_be()), to)?;
        sendto(self.socket.as_raw_fd(), bytes, &to, MsgFlags::empty()).map(drop)
    }
}

/// Listens on several devices, of these indices, which may have some twice.
///
/// # Errors
/// As for [`Tap::open`].
pub(super) fn open_all(indices: impl IntoIterator<Item = u32>) -> io::Result<BTreeMap<u32, Tap>> {
    let indices: BTreeSet<u32> = indices.into_iter().collect();
    let open = |index| Ok((index, Tap::open(index)?));
    indices.into_iter().map(open).collect()
}

fn passage(from: LinkAddr) -> Option<Passage> {
    let mac = from.addr().map(MacAddr);
    let neighbor = mac.filter(|_| from.halen() == 6);
    match from.pkttype() {
        libc::PACKET_OUTGOING => Some(Passage {
            outgoing: true,
            neighbor: None,
        }),
        libc::PACKET_HOST => Some(Passage {
            outgoing: false,
            neighbor,
        }),
        // To others, or to all.
        _ => None,
    }
}

/// A `struct sockaddr_ll`; `protocol` is in network byte order.
fn address(
    index: libc::c_int,
    protocol: libc::c_int,
    mac: Option<MacAddr>,
) -> nix::Result<LinkAddr> {
    let mut octets = [0; 8];
    if let Some(MacAddr(mac)) = mac {
        octets[..6].copy_from_slice(&mac);
    }
    let raw = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).map_err(|_| Errno::EINVAL)?,
        sll_protocol: u16::try_from(protocol).map_err(|_| Errno::EINVAL)?,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: if mac.is_some() { 6 } else { 0 },
        sll_addr: octets,
    };
    let len = libc::socklen_t::try_from(size_of_val(&raw)).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is to a whole `sockaddr_ll` of the given length, whose family says so.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(len)) };
    address.ok_or(Errno::EINVAL)
}
