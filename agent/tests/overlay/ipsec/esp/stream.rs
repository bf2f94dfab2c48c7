//! Numbered datagrams from one place of the overlay to another: what ping cannot tell, which direction lost one.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::namespace::Namespace;

/// Where they go.
const PORT: u16 = 4321;

/// The time between two.
const INTERVAL: Duration = Duration::from_millis(2);

/// A flow in one direction.
pub(super) struct Stream {
    ends: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<BTreeSet<u32>>,
}

impl Stream {
    /// Begins to send to an address of the other namespace.
    pub(super) fn start(from: &Namespace, to: &Namespace, target: Ipv4Addr) -> Self {
        let receiving = bind(to, target, PORT);
        let tenth = Duration::from_millis(100);
        receiving
            .set_read_timeout(Some(tenth))
            .expect("a limit of time");
        let sending = bind(from, Ipv4Addr::UNSPECIFIED, 0);
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let sender = std::thread::spawn(move || send(&sending, target, &ended));
        let sender_ended = Arc::clone(&ends);
        let receiver = std::thread::spawn(move || receive(&receiving, &sender_ended));
        Self {
            ends,
            sender,
            receiver,
        }
    }

    /// Ends, and returns how many came and which were lost, but for those that had no time to come.
    pub(super) fn finish(self) -> (usize, Vec<u32>) {
        /// Sent in the last fifth of a second.
        const LATE: u32 = 100;
        self.ends.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender");
        let received = self.receiver.join().expect("the receiver");
        let last = received.last().copied().unwrap_or_default();
        let judged = last.max(sent.saturating_sub(LATE));
        let lost = (0..judged).filter(|number| !received.contains(number));
        (received.len(), lost.collect())
    }
}

/// A socket in the namespace.
fn bind(namespace: &Namespace, address: Ipv4Addr, port: u16) -> UdpSocket {
    std::thread::scope(|scope| {
        let bind = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("to enter the namespace");
            UdpSocket::bind((address, port)).expect("a socket")
        });
        bind.join().expect("a socket")
    })
}

fn send(socket: &UdpSocket, target: Ipv4Addr, ended: &AtomicBool) -> u32 {
    let mut number = 0_u32;
    while !ended.load(Ordering::Relaxed) {
        // One that is refused is lost.
        let _ = socket.send_to(&number.to_be_bytes(), (target, PORT));
        number += 1;
        std::thread::sleep(INTERVAL);
    }
    number
}

/// Receives until nothing has come for a while after the sender's end.
fn receive(socket: &UdpSocket, ended: &AtomicBool) -> BTreeSet<u32> {
    let mut received = BTreeSet::new();
    let mut silence = 0;
    let mut bytes = [0; 4];
    // As long as a datagram may be held up.
    while silence < 20 {
        match socket.recv(&mut bytes) {
            Ok(_) => {
                received.insert(u32::from_be_bytes(bytes));
                silence = 0;
            }
            Err(_) => silence += u32::from(ended.load(Ordering::Relaxed)),
        }
    }
    received
}
