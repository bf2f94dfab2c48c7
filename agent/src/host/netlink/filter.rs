//! A filter on the socket for notifications: what this process changed itself is not queued there.
//!
//! Of the notifications about ten thousand peers that the agent programs, three out of four name its port. They need not
//! be read, and do not push others out of the receive buffer.

use std::io;
use std::os::fd::AsFd;

use nix::sys::socket::setsockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// A classic BPF program that says how much of each datagram is kept (socket(7)).
    AttachFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog
);

/// Where `nlmsg_pid`, the port of whoever made a change, is in a notification (`struct nlmsghdr` of linux/netlink.h).
const PORT: u32 = 12;

/// Drops datagrams from this netlink port.
///
/// # Errors
///
/// The kernel has no socket filters, or no memory.
pub(super) fn drop_from(socket: &impl AsFd, port: u32) -> io::Result<()> {
    let instruction = |code: u32, if_not: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: 0,
        jf: if_not,
        k,
    };
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, PORT),
        // BPF loads numbers in network order; the field is in the machine's.
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, port.to_be()),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or_default(),
        filter: program.as_mut_ptr(),
    };
    Ok(setsockopt(socket, AttachFilter, &program)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// The kernel filters datagrams of all kinds of sockets alike.
    #[test]
    fn only_datagrams_of_others_are_kept() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        drop_from(&receiver, 0x0102_0304).unwrap();
        let ports = [0, 0x0102_0304, 0x0403_0201, 7, 0x0102_0304, u32::MAX];
        for port in ports {
            let mut header = [0; 16];
            header[12..].copy_from_slice(&u32::to_ne_bytes(port));
            sender.send(&header).unwrap();
        }
        let mut kept = Vec::new();
        let mut header = [0; 16];
        while receiver.recv(&mut header).is_ok() {
            kept.push(u32::from_ne_bytes(*header[12..].first_chunk().unwrap()));
        }
        assert_eq!(kept, [0, 0x0403_0201, 7, u32::MAX]);
    }
}
