//! Counters of the data plane: packets moved, and packets dropped by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use self::Metric::{Alone, Dropped};

/// How a counter appears in the metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Metric {
    /// As a metric with this name and help.
    Alone(&'static str, &'static str),
    /// As dropped packets with this reason.
    Dropped(&'static str),
}

/// Defines the counters for the workers and for readers.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $metric:expr,)*) => {
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

            /// All counts, with how they appear in the metrics.
            pub(crate) fn all(&self) -> impl Iterator<Item = (Metric, u64)> + use<> {
                [$(($metric, self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Packets sent to peers, as they are on the wire.
    sent_packets: Alone(
        "selvage_udp_transmit_packets_total",
        "Packets that the udp backend sent to peers.",
    ),
    /// Their bytes, without the outer headers.
    sent_bytes: Alone(
        "selvage_udp_transmit_bytes_total",
        "Bytes that the udp backend sent to peers, without outer headers.",
    ),
    /// Packets that peers sent and the kernel took.
    received_packets: Alone(
        "selvage_udp_receive_packets_total",
        "Packets that the udp backend received from peers.",
    ),
    /// Their bytes, without the outer headers.
    received_bytes: Alone(
        "selvage_udp_receive_bytes_total",
        "Bytes that the udp backend received from peers, without outer headers.",
    ),
    /// Datagrams from an address that no route leads to. They are **not** dropped: a peer behind NAT sends them, and so
    /// does one whose lease has not arrived yet. The wire format has no authentication, so dropping them would not stop
    /// an attacker, who can spoof the source address.
    unknown_peer: Alone(
        "selvage_udp_unknown_peer_packets_total",
        "Packets that the udp backend received from addresses of no known peer; they are accepted.",
    ),
    /// ICMP errors sent.
    icmp_sent: Alone(
        "selvage_udp_icmp_errors_total",
        "ICMP errors that the udp backend sent.",
    ),
    /// Packets from this host that are not IPv4 or contradict their `virtio_net_hdr`.
    not_ipv4: Dropped("not-ipv4"),
    /// Packets to an address without a route.
    no_route: Dropped("no-route"),
    /// Packets whose TTL expired here, in either direction.
    ttl_exceeded: Dropped("ttl-exceeded"),
    /// Datagrams that are not an intact IPv4 packet.
    malformed: Dropped("malformed"),
    /// Packets from peers that are longer than the tunnel's MTU.
    oversize: Dropped("oversize"),
    /// Packets that could not be sent to the underlay.
    send_failed: Dropped("send-failed"),
    /// Packets that the TUN device refused, nearly always because it is down.
    tun_failed: Dropped("tun-failed"),
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
