//! A peer that knows nothing of offloads: one system call for each packet, as flannel's C proxy makes them.
//!
//! It stands on host `b`, with an ordinary UDP socket and an address of its own behind it.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::hosts::{Host, two_hosts};
use crate::netns::NetNs;
use crate::traffic::wait_for;

/// An echo server of one's own making behind flannel's wire format: it swaps the addresses of every packet and sends it
/// back, one by one. Swapping changes no checksum, so a wrong one comes back as it came.
struct PlainPeer {
    socket: UdpSocket,
}

impl PlainPeer {
    fn on(host: &Host) -> Self {
        let _inside = host.ns.enter();
        let socket = UdpSocket::bind(host.endpoint()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { socket }
    }

    /// Answers until told to stop; returns the lengths of what came.
    fn serve(&self, stop: &AtomicBool) -> Vec<usize> {
        let mut lens = Vec::new();
        let mut packet = [0; 2000];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.socket.recv_from(&mut packet) else {
                continue;
            };
            lens.push(len);
            let addresses: [u8; 8] = packet[12..20].try_into().unwrap();
            packet[12..16].copy_from_slice(&addresses[4..]);
            packet[16..20].copy_from_slice(&addresses[..4]);
            // The ports too, for UDP.
            if packet[9] == 17 {
                let ports: [u8; 4] = packet[20..24].try_into().unwrap();
                packet[20..22].copy_from_slice(&ports[2..]);
                packet[22..24].copy_from_slice(&ports[..2]);
            }
            self.socket.send_to(&packet[..len], from).unwrap();
        }
        lens
    }
}

#[test]
fn a_peer_without_offloads_gets_and_sends_single_intact_packets() {
    let (a, b) = two_hosts();
    let on_a = a.open(1);
    on_a.insert(b.subnet(), b.endpoint());
    let peer = PlainPeer::on(&b);
    let inside = a.ns.enter();
    let client = UdpSocket::bind((a.overlay(), 0)).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    client.connect((b.overlay(), 7)).unwrap();
    // The kernel leaves the cutting to the data plane.
    nix::sys::socket::setsockopt(&client, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
    drop(inside);
    let stop = AtomicBool::new(false);
    let lens = std::thread::scope(|scope| {
        let server = scope.spawn(|| peer.serve(&stop));
        let mut got = [0; 2000];
        for round in 0..20_u8 {
            let data: Vec<u8> = (0..20_300_u32)
                .map(|n| round ^ n.to_le_bytes()[0] ^ n.to_le_bytes()[1])
                .collect();
            client.send(&data).unwrap();
            for datagram in data.chunks(1000) {
                // A wrong checksum would have been dropped by our kernel.
                let len = client.recv(&mut got).unwrap();
                assert!(got[..len] == *datagram);
            }
        }
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap()
    });
    assert_eq!(lens.len(), 20 * 21);
    assert!(lens.iter().all(|len| [1028, 328].contains(len)), "{lens:?}");
}

/// A TCP stream from a host whose TUN device has no offloads at all and whose data plane is a loop of `read`, `sendto`,
/// `recvfrom` and `write`: Python is enough for that.
#[test]
fn bulk_data_to_and_from_a_plain_proxy() {
    const PROXY: &str = r"
import fcntl, os, select, socket, struct, sys
tun = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tun, 0x400454ca, struct.pack('16sH22x', b'flannel0', 0x1001))
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(('198.51.100.2', 8285))
sys.stdout.write('ready\n')
sys.stdout.flush()
while True:
    for fd in select.select([tun, sock], [], [])[0]:
        if fd is sock:
            os.write(tun, sock.recv(1472))
        else:
            sock.sendto(os.read(tun, 1472), ('198.51.100.1', 8285))
";
    let (a, b) = two_hosts();
    let on_a = a.open(1);
    on_a.insert(b.subnet(), b.endpoint());
    // It would forward the kernel's IPv6 chatter.
    b.ns.run("sysctl", "-qw net.ipv6.conf.all.disable_ipv6=1");
    let _proxy = Proxy::start(&b.ns, PROXY);
    b.ns.ip("address add 10.5.2.0/32 dev flannel0");
    b.ns.ip("link set flannel0 mtu 1472 up");
    b.ns.ip("route add 10.5.0.0/16 dev flannel0");
    a.ns.run("ping", "-q -c 1 -W 5 10.5.2.0");
    crate::traffic::bulk_of(&a, &b, 5_000_000);
    let counters = on_a.counters();
    assert_eq!(counters.malformed + counters.oversize, 0, "{counters:?}");
    wait_for("the packets are counted", || {
        on_a.counters().received_bytes > 5_000_000
    });
}

struct Proxy(std::process::Child);

impl Proxy {
    fn start(ns: &NetNs, script: &str) -> Self {
        use std::io::{BufRead, BufReader};
        let inside = ns.enter();
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(inside);
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
