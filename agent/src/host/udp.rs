//! The data plane of the udp backend: moves packets between a TUN device and the peers, in this process.
//!
//! The wire format is flannel's: the payload of a datagram is exactly one IPv4 packet, with nothing before or after it.
//! Both ends decrement the TTL. There is no authentication.
//!
//! ```text
//!            ┌───────── worker, one thread for each queue ─────────┐
//!  kernel ──►│ TUN queue ─► route ─► TTL ─► cut into segments ─────│─► UDP socket ──► peer
//!  kernel ◄──│ a flow's queue ◄── put together ◄── TTL ◄── check ◄─│── UDP socket ◄── peer
//!            └─────────────────────────────────────────────────────┘
//! ```
//!
//! It is fast because the kernel's stack runs once for up to 64 packets on each side: the TUN device passes packets of
//! up to 64 KiB in both directions (virtio headers), and the socket sends and receives many datagrams per call. On the
//! wire there is still one datagram per packet, so a peer without these offloads, such as flannel, sees no difference.
//!
//! All datagrams of a peer have the same addresses and ports, so the kernel gives them to one socket, and one worker
//! receives them. It writes each flow to a queue chosen by addresses and ports, not to its own: the kernel sends a flow
//! through the queue that it was last received from (`tun_flow_update()`), so that all workers share the sending, even
//! where there is one peer.
//!
//! [`DataPlane`] is the handle. It is opened in the network namespace of the calling thread, and closing it removes the
//! device. Links, addresses and kernel routes are handled by [`crate::host::netlink`]; [`crate::host::executor`]
//! combines both.

pub(crate) mod checksum;
mod coalesce;
mod counters;
mod icmp;
pub(crate) mod packet;
mod routes;
mod segment;
mod socket;
#[cfg(test)]
mod tests;
mod tun;
mod worker;

use std::collections::BTreeMap;
use std::io::{self, PipeWriter};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use thiserror::Error;

pub use self::coalesce::{Coalescer, Sink, deliver};
use self::counters::Cells;
pub use self::counters::Counters;
pub(crate) use self::counters::Metric;
use self::icmp::Reporter;
pub use self::packet::{Refused, receive};
use self::routes::Routes;
use self::socket::Socket;
use self::tun::Queue;
use self::worker::Worker;
use crate::base::net::InterfaceName;

/// More threads do not help: each moves some Gbit/s.
const MAX_WORKERS: usize = 4;
/// A worker's stack in bytes; its buffers are on the heap.
const STACK: usize = 128 << 10;

/// The settings of a data plane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Name of the TUN device. It must not exist.
    pub name: InterfaceName,
    /// The device's own address: the source of ICMP errors.
    pub address: Ipv4Addr,
    /// MTU of the tunnel in bytes; longer packets from peers are dropped.
    pub mtu: u32,
    /// Where to receive: an address of this host and a UDP port; also the source of sent datagrams.
    pub bind: SocketAddrV4,
    /// Number of threads; by default the number of processors, at most four.
    pub workers: Option<NonZeroUsize>,
}

/// Failed to open the data plane.
#[derive(Debug, Error)]
pub enum OpenError {
    /// No device: the name is taken, or /dev/net/tun or `CAP_NET_ADMIN` is missing.
    #[error("failed to make the TUN device {name}")]
    Tun {
        /// The device's name.
        name: InterfaceName,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No socket: the address is not this host's, or the port is in use.
    #[error("failed to listen on UDP {address}")]
    Socket {
        /// Where.
        address: SocketAddrV4,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No raw socket: `CAP_NET_RAW` is missing.
    #[error("failed to open a raw socket for ICMP errors")]
    Raw(#[source] Errno),
    /// No thread, or no pipe to stop it.
    #[error("failed to start a thread of the udp data plane")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// The kernel's answer.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Raw(errno) => Some(*errno),
            Self::Tun { source, .. } | Self::Socket { source, .. } | Self::Thread(source) => {
                source.raw_os_error().map(Errno::from_raw)
            }
        }
    }
}

/// A running data plane. Dropping it stops the threads, closes the sockets and removes the device.
#[derive(Debug)]
pub struct DataPlane {
    name: InterfaceName,
    bind: SocketAddrV4,
    shared: Arc<Shared>,
    cells: Vec<Arc<Cells>>,
    /// The workers stop when this is closed.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

/// Shared by the workers and the handle.
#[derive(Debug)]
struct Shared {
    /// Replaced as a whole; a worker keeps its copy until it sees a new generation.
    tunnel: Mutex<Arc<Tunnel>>,
    generation: AtomicU64,
    /// Whether a worker has lost its device.
    failed: AtomicBool,
}

/// What a worker needs to know about the tunnel.
#[derive(Clone, Debug)]
struct Tunnel {
    address: Ipv4Addr,
    mtu: usize,
    routes: Routes,
}

impl DataPlane {
    /// Creates the TUN device and the sockets, and starts the workers. The device is down and has no address; the table
    /// has no routes. Needs `CAP_NET_ADMIN` and `CAP_NET_RAW`; later calls need neither.
    ///
    /// # Errors
    ///
    /// The error names the unavailable device or address.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let processors = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = settings.workers.map_or_else(processors, NonZeroUsize::get);
        let workers = workers.min(MAX_WORKERS);
        let tunnel = Tunnel {
            address: settings.address,
            mtu: bytes(settings.mtu),
            routes: Routes::default(),
        };
        let (stopped, stop) = io::pipe().map_err(OpenError::Thread)?;
        let mut plane = Self {
            name: settings.name.clone(),
            bind: settings.bind,
            shared: Arc::new(Shared {
                tunnel: Mutex::new(Arc::new(tunnel)),
                generation: AtomicU64::new(0),
                failed: AtomicBool::new(false),
            }),
            cells: Vec::new(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        // Open all queues and sockets before starting a worker: no packet may arrive at a socket whose worker then
        // fails to start.
        let several = workers > 1;
        let queues: Arc<[Queue]> = (0..workers)
            .map(|_| Queue::open(&settings.name, several))
            .collect::<Result<_, _>>()
            .map_err(|source| OpenError::Tun {
                name: settings.name.clone(),
                source,
            })?;
        let made: Vec<_> = (0..workers)
            .map(|place| plane.worker(settings, (&queues, place), &stopped))
            .collect::<Result<_, _>>()?;
        for (index, worker) in made.into_iter().enumerate() {
            plane.cells.push(Arc::clone(&worker.cells));
            let thread = thread::Builder::new()
                .name(format!("udp-{index}"))
                .stack_size(STACK)
                .spawn(move || worker.run())
                .map_err(OpenError::Thread)?;
            plane.threads.push(thread);
        }
        Ok(plane)
    }

    fn worker(
        &self,
        settings: &Settings,
        (queues, place): (&Arc<[Queue]>, usize),
        stop: &io::PipeReader,
    ) -> Result<Worker, OpenError> {
        let address = settings.bind;
        Ok(Worker {
            queues: Arc::clone(queues),
            place,
            socket: Socket::open(address, queues.len() > 1)
                .map_err(|source| OpenError::Socket { address, source })?,
            reporter: Reporter::open().map_err(OpenError::Raw)?,
            stop: stop.try_clone().map_err(OpenError::Thread)?,
            shared: Arc::clone(&self.shared),
            cells: Arc::default(),
        })
    }

    /// The TUN device.
    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// Where the data plane receives.
    pub fn bind(&self) -> SocketAddrV4 {
        self.bind
    }

    /// The device's own address, from the settings.
    pub fn address(&self) -> Ipv4Addr {
        self.shared.current().address
    }

    /// Whether all workers still have their device. Once the device was removed, for example by `ip link del`, only a
    /// new [`DataPlane`] helps.
    pub fn is_alive(&self) -> bool {
        !self.shared.failed.load(Ordering::Relaxed)
    }

    /// The subnets and their peers.
    pub fn routes(&self) -> BTreeMap<Ipv4Net, SocketAddrV4> {
        self.shared.current().routes.iter().collect()
    }

    /// Adds a route for a subnet to a peer. Idempotent.
    pub fn insert(&self, subnet: Ipv4Net, peer: SocketAddrV4) {
        self.update([(subnet, Some(peer))]);
    }

    /// Removes the route for a subnet.
    pub fn remove(&self, subnet: Ipv4Net) {
        self.update([(subnet, None)]);
    }

    /// Changes many routes at once; `None` removes. The workers use the old table until the new one is complete, so no
    /// packet is delayed. The table is copied, some 30 bytes per route.
    pub fn update(&self, changes: impl IntoIterator<Item = (Ipv4Net, Option<SocketAddrV4>)>) {
        self.shared.change(|tunnel| {
            for (subnet, peer) in changes {
                match peer {
                    Some(peer) => tunnel.routes.insert(subnet, peer),
                    None => tunnel.routes.remove(subnet),
                }
            }
        });
    }

    /// The tunnel's MTU in bytes.
    pub fn mtu(&self) -> u32 {
        u32::try_from(self.shared.current().mtu).unwrap_or(u32::MAX)
    }

    /// Sets the longest packet accepted from peers, in bytes. The device's own MTU is set by netlink.
    pub fn set_mtu(&self, mtu: u32) {
        self.shared.change(|tunnel| tunnel.mtu = bytes(mtu));
    }

    /// The sum of all workers' counters.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for cells in &self.cells {
            counters.add(cells);
        }
        counters
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // Ignored: a thread that panicked has closed its files as well.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn current(&self) -> Arc<Tunnel> {
        Arc::clone(&self.lock())
    }

    fn change(&self, change: impl FnOnce(&mut Tunnel)) {
        let mut tunnel = self.lock();
        change(Arc::make_mut(&mut tunnel));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Tunnel>> {
        // Poisoning is harmless: no code panics with the lock held and the tunnel half changed.
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Saturates only where `usize` has fewer than 32 bits, which Linux does not run on.
fn bytes(mtu: u32) -> usize {
    usize::try_from(mtu).unwrap_or(usize::MAX)
}
