//! Throughput of the udp data plane between two network namespaces, beside the kernel's own VXLAN.
//!
//! One TCP stream, and small UDP packets as fast as one sender can. Every figure is a median of several turns, and the
//! ways take turns, since machines are noisy.

#![expect(
    clippy::unwrap_used,
    reason = "a measurement that cannot be made ends the program"
)]

#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../tests/udp/hosts.rs"]
mod hosts;
#[path = "../tests/netns/netns.rs"]
mod netns;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hosts::{Host, connect, two_hosts};

/// Turns of every measurement; an odd number, for the median.
const TURNS: usize = 5;
/// How long one turn is measured, after the stream has got up to speed.
const TURN: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(300);
/// Payload of the small packets, in bytes.
const SMALL: usize = 64;

/// How packets get from one host to the other.
#[derive(Clone, Copy)]
enum Way {
    Udp,
    Vxlan,
    Cable,
}

impl Way {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Udp, "udp"),
        (Self::Vxlan, "vxlan"),
        (Self::Cable, "no overlay"),
    ];

    /// Sets the way up, measures, and takes it away.
    fn measure(self, measure: impl Fn(&Host, &Host, Ipv4Addr) -> f64) -> f64 {
        let (a, b) = two_hosts();
        match self {
            Self::Udp => {
                let planes = connect(&a, &b, 0);
                let figure = measure(&a, &b, b.overlay());
                if std::env::var_os("COUNTERS").is_some() {
                    println!("a: {:?}\nb: {:?}", planes.0.counters(), planes.1.counters());
                }
                figure
            }
            Self::Vxlan => {
                for (host, other) in [(&a, &b), (&b, &a)] {
                    host.ns.ip(&format!(
                        "link add flannel.1 mtu 1450 type vxlan id 1 dev up0 local {} remote {} dstport 8472 nolearning",
                        host.underlay(),
                        other.underlay()
                    ));
                    host.ns
                        .ip(&format!("address add {}/16 dev flannel.1", host.overlay()));
                    host.ns.ip("link set flannel.1 up");
                }
                measure(&a, &b, b.overlay())
            }
            Self::Cable => measure(&a, &b, b.underlay()),
        }
    }
}

/// Gbit/s of one TCP stream.
fn stream(a: &Host, b: &Host, to: Ipv4Addr) -> f64 {
    let inside = b.ns.enter();
    let listener = TcpListener::bind((to, 0)).unwrap();
    drop(inside);
    let inside = a.ns.enter();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    drop(inside);
    let (mut receiver, _) = listener.accept().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let data = vec![0x5a; 128 << 10];
            while !stop.load(Ordering::Relaxed) {
                sender.write_all(&data).unwrap();
            }
            sender.shutdown(std::net::Shutdown::Both).unwrap();
        });
        let mut buffer = vec![0; 256 << 10];
        let mut receive = |time: Duration| {
            let start = Instant::now();
            let mut bytes = 0;
            while start.elapsed() < time {
                bytes += receiver.read(&mut buffer).unwrap();
            }
            bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
        };
        receive(WARM_UP);
        let figure = receive(TURN);
        stop.store(true, Ordering::Relaxed);
        while receiver.read(&mut buffer).is_ok_and(|len| len > 0) {}
        figure
    })
}

/// Small UDP packets that arrive in a second, in thousands.
fn packets(a: &Host, b: &Host, to: Ipv4Addr) -> f64 {
    let inside = b.ns.enter();
    let receiver = UdpSocket::bind((to, 0)).unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    drop(inside);
    let inside = a.ns.enter();
    let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    drop(inside);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = sender.send(&[0x5a; SMALL]);
            }
        });
        let mut buffer = [0; 2 * SMALL];
        let mut receive = |time: Duration| {
            let start = Instant::now();
            let mut count = 0;
            while start.elapsed() < time {
                count += u32::from(receiver.recv(&mut buffer).is_ok());
            }
            f64::from(count) / start.elapsed().as_secs_f64() / 1e3
        };
        receive(WARM_UP);
        let figure = receive(TURN);
        stop.store(true, Ordering::Relaxed);
        figure
    })
}

fn main() {
    println!("| way | one TCP stream, Gbit/s | packets of {SMALL} bytes, 1000/s |\n|---|---|---|");
    let mut figures = [const { (Vec::new(), Vec::new()) }; Way::ALL.len()];
    for _ in 0..TURNS {
        for ((way, _), figures) in Way::ALL.iter().zip(&mut figures) {
            figures.0.push(way.measure(stream));
            figures.1.push(way.measure(packets));
        }
    }
    for ((_, name), (streams, packets)) in Way::ALL.iter().zip(figures) {
        println!(
            "| {name} | {:.2} | {:.0} |",
            median(streams),
            median(packets)
        );
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
