//! Counters of the data plane: packets moved, and packets dropped by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters twice: for the workers and for readers.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the data plane was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters of one worker, which is their only writer.
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
    /// Packets from this host that are not IPv4 or contradict their `virtio_net_hdr`; dropped.
    not_ipv4,
    /// Packets to an address without a route; dropped.
    no_route,
    /// Packets whose TTL expired here, in either direction; dropped.
    ttl_exceeded,
    /// Datagrams that are not an intact IPv4 packet; dropped.
    malformed,
    /// Packets from peers that are longer than the tunnel's MTU; dropped.
    oversize,
    /// Packets that could not be sent to the underlay; dropped.
    send_failed,
    /// Packets that the TUN device refused, nearly always because it is down; dropped.
    tun_failed,
    /// Datagrams from an address that no route leads to. They are **not** dropped: a peer behind NAT sends them, and so
    /// does one whose lease has not arrived yet. The wire format has no authentication, so dropping them would not stop
    /// an attacker, who can spoof the source address.
    unknown_peer,
    /// ICMP errors sent.
    icmp_sent,
}

/// One counter of one worker.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    /// Increments the counter. There is one writer, so a load and a store suffice, without a locked instruction.
    pub(super) fn add(&self, n: usize) {
        let n = u64::try_from(n).unwrap_or(u64::MAX);
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }
}
