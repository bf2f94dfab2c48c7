//! One thread of the data plane: one queue of the TUN device, one socket.
//!
//! The per-packet path neither allocates nor locks. Route changes are detected by one atomic load per wake-up, and by
//! one for each packet that finds no route.

use std::io::{self, ErrorKind, IoSlice, PipeReader};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::coalesce::{Coalescer, Sink, deliver};
use super::counters::Cells;
use super::icmp::{Limiter, Message, Reason, Reporter};
use super::packet::{MAX_PACKET, Packet, Refused, View};
use super::segment::{Contradiction, Segments, finish_checksum};
use super::socket::Socket;
use super::tun::{Gso, HEADER_LEN, Queue, VnetHeader};
use super::{Shared, Tunnel};

/// Packets read from the TUN device before the socket's turn.
const TURN: usize = 64;
/// Receive buffer for one turn, in bytes.
const ARENA: usize = 4 * MAX_PACKET;

/// The state of one thread.
#[derive(Debug)]
pub(super) struct Worker {
    /// The queues of all workers, and this one's place among them.
    pub(super) queues: Arc<[Queue]>,
    pub(super) place: usize,
    pub(super) socket: Socket,
    pub(super) reporter: Reporter,
    /// Hangs up when the data plane is closed.
    pub(super) stop: PipeReader,
    pub(super) shared: Arc<Shared>,
    pub(super) cells: Arc<Cells>,
}

impl Worker {
    /// Moves packets until the data plane is closed or its device is removed.
    pub(super) fn run(self) {
        let shared = Arc::clone(&self.shared);
        if self.serve().is_err() {
            shared.failed.store(true, Ordering::Relaxed);
        }
    }

    fn serve(self) -> io::Result<()> {
        let mut table = Table::new(&self.shared);
        let mut outward = Outward {
            queue: &self.queues[self.place],
            queues: &self.queues,
            socket: self.socket,
            reporter: &self.reporter,
            limiter: Limiter::new(Instant::now()),
            cells: &self.cells,
        };
        let mut packet = vec![0; MAX_PACKET].into_boxed_slice();
        let mut arena = vec![0; ARENA].into_boxed_slice();
        loop {
            let ready = wait(&self.queues[self.place], &outward.socket, &self.stop)?;
            table.refresh();
            if ready.stop {
                return Ok(());
            }
            if ready.queue {
                outward.turn(&mut table, &mut packet)?;
            }
            if ready.socket {
                inward(&mut outward, &table.tunnel, &mut arena);
            }
            outward.socket.flush(&self.cells);
        }
    }
}

/// This thread's copy of the tunnel's routes.
struct Table<'a> {
    shared: &'a Shared,
    generation: u64,
    tunnel: Arc<Tunnel>,
}

impl<'a> Table<'a> {
    fn new(shared: &'a Shared) -> Self {
        // In this order: a change in between is seen as one.
        let generation = shared.generation.load(Ordering::Acquire);
        Self {
            shared,
            generation,
            tunnel: shared.current(),
        }
    }

    /// Takes the latest routes; returns whether they changed.
    fn refresh(&mut self) -> bool {
        let latest = self.shared.generation.load(Ordering::Acquire);
        let changed = latest != self.generation;
        if changed {
            self.generation = latest;
            self.tunnel = self.shared.current();
        }
        changed
    }
}

/// Which files are ready.
struct Ready {
    stop: bool,
    queue: bool,
    socket: bool,
}

fn wait(queue: &Queue, socket: &Socket, stop: &PipeReader) -> io::Result<Ready> {
    let mut fds = [
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        PollFd::new(queue.as_fd(), PollFlags::POLLIN),
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    Ok(Ready {
        stop: any(&fds[0]),
        queue: any(&fds[1]),
        socket: any(&fds[2]),
    })
}

/// From this host to the peers.
struct Outward<'a> {
    queue: &'a Queue,
    queues: &'a [Queue],
    socket: Socket,
    reporter: &'a Reporter,
    limiter: Limiter,
    cells: &'a Cells,
}

impl Outward<'_> {
    /// Reads packets from the TUN device. Fails only if the device was removed.
    fn turn(&mut self, table: &mut Table<'_>, packet: &mut [u8]) -> io::Result<()> {
        let mut header = [0; HEADER_LEN];
        for _ in 0..TURN {
            match self.queue.read(&mut header, packet) {
                Ok(len) => self.send(table, header, &mut packet[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends one packet from this host to the peer of its destination.
    fn send(&mut self, table: &mut Table<'_>, header: [u8; HEADER_LEN], bytes: &mut [u8]) {
        let parsed = VnetHeader::read(&header).zip(Packet::parse(bytes).ok());
        let Some((header, mut packet)) = parsed else {
            return self.cells.not_ipv4.add(1);
        };
        let destination = packet.view().destination();
        let mut peer = table.tunnel.routes.lookup(destination);
        // A new peer's first packet may follow its entry in the same turn.
        if peer.is_none() && table.refresh() {
            peer = table.tunnel.routes.lookup(destination);
        }
        let Some(peer) = peer else {
            self.cells.no_route.add(1);
            return self.report(&table.tunnel, packet.view(), Reason::NetUnreachable);
        };
        if packet.decrement_ttl().is_err() {
            self.cells.ttl_exceeded.add(1);
            return self.report(&table.tunnel, packet.view(), Reason::TimeExceeded);
        }
        if self.put(peer, header, packet).is_err() {
            self.cells.not_ipv4.add(1);
        }
    }

    /// Queues a packet for sending, segmented as needed.
    fn put(
        &mut self,
        peer: SocketAddrV4,
        header: VnetHeader,
        packet: Packet<'_>,
    ) -> Result<(), Contradiction> {
        if header.gso == Gso::None {
            let bytes = finish_checksum(packet, header)?;
            self.socket
                .datagram(peer, bytes.len(), self.cells)
                .copy_from_slice(bytes);
            return Ok(());
        }
        let segments = Segments::new(packet.view(), header.gso)?;
        for index in 0..segments.count() {
            let room = self.socket.datagram(peer, segments.len(index), self.cells);
            segments.write(index, room);
        }
        Ok(())
    }

    /// Sends an ICMP error to a sender on this host.
    fn report(&mut self, tunnel: &Tunnel, offender: View<'_>, reason: Reason) {
        if let Some(message) = self.message(tunnel, offender, reason)
            && self.reporter.send(&message).is_ok()
        {
            self.cells.icmp_sent.add(1);
        }
    }

    /// Sends an ICMP error to a sender behind a peer.
    fn report_to_peer(&mut self, tunnel: &Tunnel, offender: View<'_>, reason: Reason) {
        if let Some(peer) = tunnel.routes.lookup(offender.source())
            && let Some(message) = self.message(tunnel, offender, reason)
        {
            let bytes = message.bytes();
            self.socket
                .datagram(peer, bytes.len(), self.cells)
                .copy_from_slice(bytes);
            self.cells.icmp_sent.add(1);
        }
    }

    fn message(&mut self, tunnel: &Tunnel, offender: View<'_>, reason: Reason) -> Option<Message> {
        let message = Message::about(offender, reason, tunnel.address)?;
        self.limiter.admits(Instant::now()).then_some(message)
    }
}

/// Receives packets from the peers.
fn inward(outward: &mut Outward<'_>, tunnel: &Tunnel, arena: &mut [u8]) {
    let mut sink = ToQueue {
        queues: outward.queues,
        cells: outward.cells,
    };
    let mut coalescer = Coalescer::new(outward.queue.has_udp_segmentation());
    let mut rest = arena;
    // An error concerns one datagram; the next call handles the next one.
    while rest.len() >= MAX_PACKET
        && let Ok(Some(received)) = outward.socket.receive(rest)
    {
        let (datagrams, others) = rest.split_at_mut(received.len);
        rest = others;
        let count = received.len.div_ceil(received.size);
        if !received
            .from
            .is_some_and(|from| tunnel.routes.has_peer(*from.ip()))
        {
            outward.cells.unknown_peer.add(count);
        }
        // An empty datagram counts, too.
        if received.len == 0 {
            outward.cells.malformed.add(1);
        }
        for payload in datagrams.chunks_mut(received.size) {
            let cells = outward.cells;
            match deliver(payload, tunnel.mtu, &mut coalescer, &mut sink) {
                Ok(len) => {
                    cells.received_packets.add(1);
                    cells.received_bytes.add(len);
                }
                Err((Refused::Malformed, _)) => cells.malformed.add(1),
                Err((Refused::Oversize, _)) => cells.oversize.add(1),
                Err((Refused::TtlExceeded, packet)) => {
                    cells.ttl_exceeded.add(1);
                    let offender = View::of_parsed(packet);
                    outward.report_to_peer(tunnel, offender, Reason::TimeExceeded);
                }
            }
        }
    }
    coalescer.flush(&mut sink);
}

/// Writes packets to the TUN device.
struct ToQueue<'a> {
    queues: &'a [Queue],
    cells: &'a Cells,
}

impl Sink for ToQueue<'_> {
    fn write(&mut self, flow: u32, parts: &[IoSlice<'_>]) {
        let place = usize::try_from(flow).unwrap_or_default() % self.queues.len();
        if self.queues[place].write(parts).is_err() {
            self.cells.tun_failed.add(1);
        }
    }
}
