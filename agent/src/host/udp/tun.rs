//! The TUN device: raw IP packets, with the kernel's offloads (linux/if_tun.h, linux/virtio_net.h).
//!
//! With `IFF_VNET_HDR` every packet is preceded by a `virtio_net_hdr`. With it the kernel passes one packet of up to 64
//! KiB for many on the wire, with partial checksums, and accepts the same from us.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use crate::base::net::InterfaceName;

/// Bytes of `struct virtio_net_hdr`, the kernel's default for TUN devices.
pub(super) const HEADER_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` holds only the pseudo-header.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`; Linux 6.2.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: the congestion window reduced flag belongs to the first segment alone.
const GSO_ECN: u8 = 0x80;

/// The decoded `virtio_net_hdr` of a packet. Its fields are in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct VnetHeader {
    /// How to segment the packet before sending.
    pub(super) gso: Gso,
    /// Where a partial checksum starts (`csum_start`), and the offset of its field from there (`csum_offset`).
    pub(super) checksum: Option<(u16, u16)>,
    /// Length of all headers; a hint.
    pub(super) header_len: u16,
}

/// How to segment a packet, with the payload bytes per segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Gso {
    /// Not at all.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp(u16),
    /// UDP over IPv4: datagrams of one size.
    Udp(u16),
}

impl VnetHeader {
    /// Reads a header; `None` if it uses a feature that we did not offer.
    pub(super) fn read(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match (bytes[1] & !GSO_ECN, word(4)) {
            (0, _) => Gso::None,
            (_, 0) => return None,
            (GSO_TCPV4, size) => Gso::Tcp(size),
            (GSO_UDP_L4, size) => Gso::Udp(size),
            _ => return None,
        };
        Some(Self {
            gso,
            checksum: (bytes[0] & NEEDS_CSUM != 0).then(|| (word(6), word(8))),
            header_len: word(2),
        })
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let (kind, size) = match self.gso {
            Gso::None => (0, 0),
            Gso::Tcp(size) => (GSO_TCPV4, size),
            Gso::Udp(size) => (GSO_UDP_L4, size),
        };
        let flags = if self.checksum.is_some() {
            NEEDS_CSUM
        } else {
            0
        };
        let (start, offset) = self.checksum.unwrap_or_default();
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [(2, self.header_len), (4, size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// One queue of a TUN device. The device goes away with its last queue.
#[derive(Debug)]
pub(super) struct Queue {
    file: File,
    /// Whether the kernel accepts coalesced UDP datagrams.
    udp_segmentation: bool,
}

impl Queue {
    /// Creates a TUN device, or another queue of one. Needs `CAP_NET_ADMIN`.
    pub(super) fn open(name: &InterfaceName, several: bool) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        system::attach(&file, name, several)?;
        let udp_segmentation = system::offload(&file)?;
        Ok(Self {
            file,
            udp_segmentation,
        })
    }

    pub(super) fn has_udp_segmentation(&self) -> bool {
        self.udp_segmentation
    }

    /// Reads one packet with its header.
    pub(super) fn read(
        &self,
        header: &mut [u8; HEADER_LEN],
        packet: &mut [u8],
    ) -> io::Result<usize> {
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(packet)];
        let len = (&self.file).read_vectored(&mut parts)?;
        Ok(len.saturating_sub(HEADER_LEN))
    }

    /// Writes one packet that begins with its header.
    pub(super) fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        (&self.file).write_vectored(parts).map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The two ioctls that a TUN device needs; no crate offers just these.
mod system {
    #![expect(
        unsafe_code,
        reason = "ioctl(2) has no safe form; both requests are described in linux/if_tun.h"
    )]

    use super::{AsRawFd, File, InterfaceName, io, libc};

    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tunsetoffload, libc::TUNSETOFFLOAD);

    /// Attaches an open file to the device with a name, creating it if needed (`TUNSETIFF`).
    pub(super) fn attach(file: &File, name: &InterfaceName, several: bool) -> io::Result<()> {
        let queues = if several { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IFNAMSIZ],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_flags: i16::from_ne_bytes(low_half(flags)),
            },
        };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: the file descriptor is open and `request` is a whole ifreq that lives through the call. An interface
        // name has at most 15 bytes, so that the array ends with a zero.
        unsafe { tunsetiff(file.as_raw_fd(), &request) }?;
        Ok(())
    }

    /// Enables checksum and segmentation offload (`TUNSETOFFLOAD`). Returns whether UDP is included.
    pub(super) fn offload(file: &File) -> io::Result<bool> {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
        // The kernel requires both UDP flags or none; IPv6 packets are dropped before segmentation.
        let both = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        if set_offload(file, both).is_ok() {
            return Ok(true);
        }
        // Linux before 6.2.
        set_offload(file, tcp).map(|()| false)
    }

    fn set_offload(file: &File, flags: libc::c_uint) -> io::Result<()> {
        let flags = libc::c_int::from_ne_bytes(flags.to_ne_bytes());
        // SAFETY: the file descriptor is open, and the argument is a number.
        unsafe { tunsetoffload(file.as_raw_fd(), flags) }?;
        Ok(())
    }

    fn low_half(flags: libc::c_int) -> [u8; 2] {
        let [.., a, b] = flags.to_be_bytes();
        u16::from_be_bytes([a, b]).to_ne_bytes()
    }
}
