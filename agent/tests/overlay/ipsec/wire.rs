//! What passes the switch, told apart by what somebody who listens there can read.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::namespace::Namespace;

/// Packets, each counted once for each port of the switch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// ESP, without UDP.
    pub(super) esp: u64,
    /// UDP port 4500: ESP in UDP, and IKE behind a NAT.
    pub(super) udp_encap: u64,
    /// UDP port 500.
    pub(super) ike: u64,
    /// With an address of the overlay.
    pub(super) plain: u64,
}

/// A listener at all ports of the switch.
pub(super) struct Wire {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Wire {
    /// Begins to listen.
    pub(super) fn tap(switch: &Namespace) -> Self {
        let socket = std::thread::scope(|scope| {
            let open = scope.spawn(|| {
                setns(switch, CloneFlags::CLONE_NEWNET).expect("the switch's namespace");
                open()
            });
            open.join().expect("a packet socket")
        });
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = std::thread::spawn(move || listen(&socket, &ended));
        Self { ends, thread }
    }

    /// Ends, and returns what was seen.
    pub(super) fn end(self) -> Seen {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().expect("the listener")
    }
}

fn open() -> OwnedFd {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .expect("a packet socket");
    let tenth = TimeVal::milliseconds(100);
    setsockopt(&socket, sockopt::ReceiveTimeout, &tenth).expect("a limit of time");
    socket
}

fn listen(socket: &OwnedFd, ended: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut frame = [0; 2048];
    while !ended.load(Ordering::Relaxed) {
        if let Ok(length) = recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            seen.note(&frame[..length]);
        }
    }
    seen
}

impl Seen {
    /// Counts an Ethernet frame with IPv4 in it.
    fn note(&mut self, frame: &[u8]) {
        let Some((&[0x08, 0x00], packet)) = frame.get(12..).and_then(<[u8]>::split_first_chunk)
        else {
            return;
        };
        if packet.len() < 28 {
            return;
        }
        let address = |at: usize| {
            let bytes: [u8; 4] = packet[at..at + 4].try_into().expect("four bytes");
            Ipv4Addr::from(bytes)
        };
        let is_overlay = |address: Ipv4Addr| address.octets().starts_with(&[10, 5]);
        if is_overlay(address(12)) || is_overlay(address(16)) {
            self.plain += 1;
        }
        let port = u16::from_be_bytes([packet[22], packet[23]]);
        match (packet[9], port) {
            (50, _) => self.esp += 1,
            (17, 500) => self.ike += 1,
            (17, 4500) => self.udp_encap += 1,
            _ => {}
        }
    }
}
