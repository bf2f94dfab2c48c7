//! What went through the data plane, and what did not and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters once for the workers and once for those who read them.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the data plane was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters of one worker; it is the only one that writes to them.
        #[derive(Debug, Default)]
        pub(super) struct Cells {
            $(pub(super) $name: Cell,)*
        }

        impl Counters {
            /// Adds the counts of one worker.
            pub(super) fn add(&mut self, cells: &Cells) {
                $(self.$name += cells.$name.0.load(Ordering::Relaxed);)*
            }
        }
    };
}

counters! {
    /// Packets sent to peers, as they are on the wire.
    sent_packets,
    /// Their bytes, without the outer headers.
    sent_bytes,
    /// Packets that peers sent and the kernel took.
    received_packets,
    /// Their bytes, without the outer headers.
    received_bytes,
    /// Packets from this host that are not IPv4 or that contradict what the kernel said of them; dropped.
    not_ipv4,
    /// Packets to an address that no peer has; dropped.
    no_route,
    /// Packets whose time to live ended here, in either direction; dropped.
    ttl_exceeded,
    /// Datagrams that are not an intact IPv4 packet; dropped.
    malformed,
    /// Packets from peers that are longer than the tunnel's MTU; dropped.
    oversize,
    /// Packets that the underlay did not take; dropped.
    send_failed,
    /// Packets that the TUN device did not take, nearly always because it is down; dropped.
    tun_failed,
    /// Datagrams from an address that no route leads to. They are **not** dropped: a peer behind NAT sends such, and so
    /// does one whose lease has not arrived yet. The wire format has no authentication, so that a drop would protect
    /// from nobody who can choose his source address.
    unknown_peer,
    /// ICMP errors sent.
    icmp_sent,
}

/// One counter of one worker.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    /// Counts up. There is one writer, so nothing can be lost between the load and the store, and no cache line is locked.
    pub(super) fn add(&self, n: usize) {
        let n = u64::try_from(n).unwrap_or(u64::MAX);
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }
}
