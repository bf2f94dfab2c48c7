//! The end of a queue of packets (linux/netfilter/nfnetlink_queue.h), where a program such as kube-network-policies judges
//! each.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::namespace::Namespace;
use crate::pods::inside;

/// `NFNL_SUBSYS_QUEUE` with `NFQNL_MSG_PACKET`, `NFQNL_MSG_VERDICT`, `NFQNL_MSG_CONFIG`.
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = 3 << 8 | 1;
const CONFIG: u16 = 3 << 8 | 2;
/// `NLM_F_REQUEST`, and that with `NLM_F_ACK`.
const REQUEST: u16 = 1;
const REQUEST_WITH_ACK: u16 = 5;
/// `NFQA_CFG_CMD` with `NFQNL_CFG_CMD_BIND`; `NFQA_CFG_PARAMS` with 128 bytes of each packet and `NFQNL_COPY_PACKET`.
const BIND: (u16, [u8; 4]) = (1, [1, 0, 0, 0]);
const COPY: (u16, [u8; 5]) = (2, [0, 0, 0, 128, 2]);
/// `NFQA_PACKET_HDR`, `NFQA_VERDICT_HDR` and `NFQA_PAYLOAD`.
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const PAYLOAD: u16 = 10;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16 + 4;

/// How many packets were judged, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Judged {
    pub(crate) accepted: u32,
    pub(crate) dropped: u32,
}

/// A program at the end of a queue. It ends with this.
pub(crate) struct Queue {
    ended: Arc<AtomicBool>,
    judged: Arc<Mutex<Judged>>,
    worker: Option<JoinHandle<()>>,
}

impl Queue {
    /// Judges the packets of a namespace's queue by source and destination.
    pub(crate) fn open(
        namespace: &Namespace,
        number: u16,
        allows: impl Fn(IpAddr, IpAddr) -> bool + Send + 'static,
    ) -> Self {
        let socket = inside(namespace, || {
            let mut socket = Socket::new(NETLINK_NETFILTER).expect("a netlink socket");
            socket.bind(&SocketAddr::new(0, 0)).expect("its address");
            socket
        });
        for (kind, value) in [(BIND.0, &BIND.1[..]), (COPY.0, &COPY.1[..])] {
            let request = message(CONFIG, REQUEST_WITH_ACK, number, kind, value);
            send(&socket, &request);
            let (answer, _) = socket.recv_from_full().expect("an answer");
            let error = answer.get(16..20).expect("an error number");
            assert_eq!(error, [0; 4], "the kernel refuses the queue {number}");
        }
        socket.set_non_blocking(true).expect("a socket");
        let ended = Arc::new(AtomicBool::new(false));
        let judged = Arc::new(Mutex::new(Judged::default()));
        let (end, sum) = (Arc::clone(&ended), Arc::clone(&judged));
        let worker = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                match socket.recv_from_full() {
                    Ok((packet, _)) => {
                        let verdict = judge(&packet, &allows, &mut sum.lock().expect("a sum"));
                        if let Some((verdict, id)) = verdict {
                            let words = [verdict.to_be_bytes(), id].concat();
                            send(
                                &socket,
                                &message(VERDICT, REQUEST, number, VERDICT_HEADER, &words),
                            );
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => panic!("the queue: {error}"),
                }
            }
        });
        Self {
            ended,
            judged,
            worker: Some(worker),
        }
    }

    pub(crate) fn judged(&self) -> Judged {
        *self.judged.lock().expect("a sum")
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn send(socket: &Socket, request: &[u8]) {
    let kernel = SocketAddr::new(0, 0);
    socket.send_to(request, &kernel, 0).expect("the kernel");
}

/// A message with one attribute about a queue.
fn message(kind: u16, flags: u16, queue: u16, attribute: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a short value");
    let whole = HEADER + usize::from(length).next_multiple_of(4);
    let mut bytes = Vec::with_capacity(whole);
    bytes.extend(u32::try_from(whole).expect("a short message").to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    // Any family, version 0.
    bytes.extend([0, 0]);
    bytes.extend(queue.to_be_bytes());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(attribute.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(whole, 0);
    bytes
}

/// The verdict about a packet, and its number in the queue.
fn judge(
    message: &[u8],
    allows: &impl Fn(IpAddr, IpAddr) -> bool,
    judged: &mut Judged,
) -> Option<(u32, [u8; 4])> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    if kind != PACKET {
        return None;
    }
    let mut id = None;
    let mut addresses = None;
    let mut rest = message.get(HEADER..)?;
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = rest.get(4..length)?;
        match kind {
            PACKET_HEADER => id = value.first_chunk::<4>().copied(),
            // Source and destination of an IPv4 header (RFC 791 §3.1).
            PAYLOAD => addresses = value.get(12..20)?.first_chunk::<8>().copied(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    let [a, b, c, d, e, f, g, h] = addresses?;
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    let verdict = match allows(source.into(), destination.into()) {
        true => {
            judged.accepted += 1;
            ACCEPT
        }
        false => {
            judged.dropped += 1;
            DROP
        }
    };
    Some((verdict, id?))
}
