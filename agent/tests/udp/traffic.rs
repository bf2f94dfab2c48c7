//! What hosts send each other arrives, whole and in order.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use selvage::host::udp::Counters;

use crate::hosts::{Host, MTU, connect, container, two_hosts};
use crate::netns::NetNs;

/// Far more than any of this takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes each way.
const BULK: usize = 50_000_000;

/// The same bytes on both sides, without a period that a lost segment could hide in.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A TCP connection from one namespace to an address in another.
fn tcp(from: &NetNs, to: &NetNs, address: Ipv4Addr) -> (TcpStream, TcpStream) {
    let inside = to.enter();
    let listener = TcpListener::bind((address, 0)).unwrap();
    drop(inside);
    let _inside = from.enter();
    let address = listener.local_addr().unwrap();
    let near = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    (near, far)
}

/// A UDP socket on a host's overlay address.
pub(crate) fn udp(on: &Host) -> UdpSocket {
    let _inside = on.ns.enter();
    let socket = UdpSocket::bind((on.overlay(), 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn send_noise(mut to: TcpStream, seed: u64, len: usize) {
    let mut noise = Noise(seed);
    let mut buffer = vec![0; 125_000];
    for _ in 0..len / buffer.len() {
        noise.fill(&mut buffer);
        to.write_all(&buffer).unwrap();
    }
}

fn expect_noise(mut from: TcpStream, seed: u64, len: usize) {
    let mut noise = Noise(seed);
    let (mut wanted, mut got) = (vec![0; 125_000], vec![0; 125_000]);
    for _ in 0..len / wanted.len() {
        noise.fill(&mut wanted);
        from.read_exact(&mut got).unwrap();
        assert!(wanted == got, "the stream is damaged");
    }
}

fn bulk(a: &Host, b: &Host) {
    bulk_of(a, b, BULK);
}

/// So many bytes each way at once.
pub(crate) fn bulk_of(a: &Host, b: &Host, len: usize) {
    exchange(tcp(&a.ns, &b.ns, b.overlay()), len);
}

fn exchange((near, far): (TcpStream, TcpStream), len: usize) {
    let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::scope(|scope| {
        scope.spawn(move || send_noise(near, 1, len));
        scope.spawn(move || send_noise(far_too, 2, len));
        scope.spawn(move || expect_noise(far, 1, len));
        scope.spawn(move || expect_noise(near_too, 2, len));
    });
}

/// Waits until the counters say so; they are written after the packet is.
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn bulk_data_arrives_whole_both_ways() {
    for workers in [1, 3] {
        let (a, b) = two_hosts();
        let (on_a, on_b) = connect(&a, &b, workers);
        bulk(&a, &b);
        let (sent, received) = (on_a.counters(), on_b.counters());
        assert!(sent.sent_bytes > 50_000_000, "{sent:?}");
        assert!(received.received_bytes > 50_000_000, "{received:?}");
        for counters in [sent, received] {
            let dropped = Counters {
                sent_packets: 0,
                sent_bytes: 0,
                received_packets: 0,
                received_bytes: 0,
                // The kernel's own IPv6 chatter on a new device.
                not_ipv4: 0,
                ..counters
            };
            assert_eq!(dropped, Counters::default());
        }
    }
}

/// What each of a device's queues has sent, in bytes: the counters of its queueing disciplines (tc(8)).
fn sent_by_queue(host: &Host) -> Vec<u64> {
    let output = host.ns.output("tc", "-s qdisc show dev flannel0");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut sent = Vec::new();
    // The root sums up the others.
    let mut is_queue = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("qdisc") => is_queue = words.any(|word| word == "parent"),
            Some("Sent") if is_queue => sent.push(words.next().unwrap().parse().unwrap()),
            _ => {}
        }
    }
    sent
}

#[test]
fn connections_to_one_peer_are_spread_over_the_workers() {
    const CONNECTIONS: usize = 16;
    let (a, b) = two_hosts();
    let (_on_a, _on_b) = connect(&a, &b, 3);
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|_| tcp(&a.ns, &b.ns, b.overlay()))
        .collect();
    thread::scope(|scope| {
        for connection in connections {
            scope.spawn(|| exchange(connection, BULK / CONNECTIONS / 125_000 * 125_000));
        }
    });
    for host in [&a, &b] {
        let sent = sent_by_queue(host);
        assert_eq!(sent.len(), 3, "{sent:?}");
        // That all 16 have one queue of three is less likely than this machine breaking.
        let busy = sent.iter().filter(|bytes| **bytes > 1_000_000).count();
        assert!(busy > 1, "{sent:?}");
    }
}

#[test]
fn bulk_data_between_containers_is_forwarded_in_large_packets() {
    let (a, b) = two_hosts();
    let (on_a, on_b) = connect(&a, &b, 2);
    let (near, _) = container(&a);
    let (far, address) = container(&b);
    exchange(tcp(&near, &far, address), BULK);
    for counters in [on_a.counters(), on_b.counters()] {
        assert_eq!(counters.tun_failed + counters.malformed, 0, "{counters:?}");
    }
}

#[test]
fn bulk_data_crosses_a_cable_that_carries_single_frames() {
    let (a, b) = two_hosts();
    let _planes = connect(&a, &b, 1);
    for host in [&a, &b] {
        // The kernel cuts before the cable, so that every datagram arrives by itself, as from a network card.
        host.ns.ip("link set up0 gso_max_segs 1");
    }
    bulk(&a, &b);
}

#[test]
fn pings_of_every_size_up_to_the_mtu_and_beyond_arrive() {
    let (a, b) = two_hosts();
    let (on_a, on_b) = connect(&a, &b, 2);
    let to = b.overlay();
    // 28 bytes are ICMP's and IP's.
    for size in [0, 1, 56, 1443, 1444] {
        a.ns.run(
            "ping",
            &format!("-q -c 2 -i 0.01 -W 5 -M do -s {size} {to}"),
        );
    }
    let too_long =
        a.ns.output("ping", &format!("-c 1 -W 1 -M do -s 1445 {to}"));
    assert!(!too_long.status.success());
    // The kernel fragments what is longer; every fragment is a packet.
    for size in [1445, 4000, 65_000] {
        a.ns.run(
            "ping",
            &format!("-q -c 2 -i 0.01 -W 5 -M dont -s {size} {to}"),
        );
    }
    for counters in [on_a.counters(), on_b.counters()] {
        assert!(counters.sent_packets > 100, "{counters:?}");
        assert_eq!(counters.oversize + counters.malformed, 0, "{counters:?}");
        assert_eq!(
            counters.send_failed + counters.tun_failed,
            0,
            "{counters:?}"
        );
    }
}

#[test]
fn small_datagrams_keep_their_order_and_their_borders() {
    let (a, b) = two_hosts();
    let _planes = connect(&a, &b, 1);
    let (near, far) = (udp(&a), udp(&b));
    let to = far.local_addr().unwrap();
    let mut got = [0; 2000];
    for round in 0..200_u32 {
        // Runs of one size and changes of it: both are put together, none may be mixed.
        for n in 0..20_u32 {
            let len = if n < 12 { 100 } else { 40 + n } as usize;
            let mut data = vec![u8::try_from(n).unwrap(); len];
            data[..4].copy_from_slice(&round.to_be_bytes());
            near.send_to(&data, to).unwrap();
        }
        for n in 0..20_u32 {
            let (len, from) = far.recv_from(&mut got).unwrap();
            assert_eq!(from, near.local_addr().unwrap());
            assert_eq!(len, if n < 12 { 100 } else { 40 + n } as usize);
            assert_eq!(got[..4], round.to_be_bytes());
            assert!(got[4..len].iter().all(|&byte| u32::from(byte) == n));
        }
    }
}

#[test]
fn datagrams_that_the_kernel_leaves_to_be_cut_arrive_one_by_one() {
    let (a, b) = two_hosts();
    let _planes = connect(&a, &b, 1);
    let (near, far) = (udp(&a), udp(&b));
    nix::sys::socket::setsockopt(&near, nix::sys::socket::sockopt::UdpGsoSegment, &700).unwrap();
    let mut data = vec![0; 700 * 40 + 123];
    Noise(3).fill(&mut data);
    near.send_to(&data, far.local_addr().unwrap()).unwrap();
    let mut got = vec![0; 2000];
    for datagram in data.chunks(700) {
        let len = far.recv(&mut got).unwrap();
        assert!(got[..len] == *datagram);
    }
}

#[test]
fn routes_change_under_load_and_no_packet_is_lost() {
    let (a, b) = two_hosts();
    let (on_a, _on_b) = connect(&a, &b, 2);
    let peer = |n: u32| {
        let subnet = format!("10.{}.{}.0/24", 100 + n / 256, n % 256);
        (subnet.parse().unwrap(), Some(b.endpoint()))
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            on_a.update((0..10_000).map(peer));
            let mut n = 0;
            while !done.load(Ordering::Relaxed) {
                let (subnet, peer) = peer(n % 10_000);
                on_a.remove(subnet);
                on_a.insert(subnet, peer.unwrap());
                n += 1;
            }
            assert!(n > 10, "there were only {n} changes");
        });
        let to = b.overlay();
        let report = a.ns.run("ping", &format!("-q -c 500 -i 0.002 -W 5 {to}"));
        done.store(true, Ordering::Relaxed);
        assert!(report.contains("500 received, 0% packet loss"), "{report}");
    });
    assert_eq!(on_a.routes().len(), 10_001);
    assert_eq!(on_a.routes()[&b.subnet()], b.endpoint());
    on_a.remove(b.subnet());
    let ping = format!("-c 1 -W 1 {}", b.overlay());
    wait_for("nothing arrives", || {
        !a.ns.output("ping", &ping).status.success()
    });
}

#[test]
fn a_smaller_underlay_mtu_costs_fragments_but_no_packets() {
    let (a, b) = two_hosts();
    let _planes = connect(&a, &b, 1);
    for host in [&a, &b] {
        host.ns.ip("link set up0 mtu 1300");
    }
    a.ns.run(
        "ping",
        &format!("-q -c 3 -i 0.01 -W 5 -M do -s 1444 {}", b.overlay()),
    );
    bulk_of(&a, &b, 5_000_000);
}

#[test]
fn the_device_goes_with_the_data_plane_and_comes_back() {
    let (a, b) = two_hosts();
    let (on_a, _on_b) = connect(&a, &b, 2);
    assert!(on_a.is_alive());
    assert!(
        a.ns.ip("link show flannel0")
            .contains(&format!("mtu {MTU}"))
    );
    drop(on_a);
    assert!(!a.ns.output("ip", "link show flannel0").status.success());
    let on_a = a.open(2);
    on_a.insert(b.subnet(), b.endpoint());
    a.ns.run("ping", &format!("-q -c 1 -W 5 {}", b.overlay()));
    // Somebody else removes it.
    a.ns.ip("link del flannel0");
    wait_for("the workers notice", || !on_a.is_alive());
    drop(on_a);
    let on_a = a.open(1);
    on_a.insert(b.subnet(), b.endpoint());
    a.ns.run("ping", &format!("-q -c 1 -W 5 {}", b.overlay()));
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let (a, _b) = two_hosts();
    let inside = a.ns.enter();
    let _taken = UdpSocket::bind(SocketAddr::from(a.endpoint())).unwrap();
    drop(inside);
    let error = a.try_open(2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to listen on UDP 198.51.100.1:8285"
    );
    assert!(!a.ns.output("ip", "link show flannel0").status.success());
}
