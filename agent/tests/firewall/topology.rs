//! Three neighbours of the host under test, which routes between them:
//!
//! ```text
//!   container 10.5.72.2 ──┐                  ┌── elsewhere 10.5.99.2   (a container on another node)
//!    fd00:5:0:48::2       ├── host under ────┤    fd00:5:0:63::2
//!    (our subnet)         │    test          └── outside 192.0.2.2, 2001:db8::2
//! ```
//!
//! The host's own address in each of the networks ends in 1, its interfaces are called as the neighbours.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

use crate::host::sh;

/// How long the interfaces may take to come up.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const CONTAINER: &str = "10.5.72.2";
pub(crate) const ELSEWHERE: &str = "10.5.99.2";
pub(crate) const OUTSIDE: &str = "192.0.2.2";
pub(crate) const CONTAINER6: &str = "fd00:5:0:48::2";
pub(crate) const ELSEWHERE6: &str = "fd00:5:0:63::2";
pub(crate) const OUTSIDE6: &str = "2001:db8::2";

/// A network namespace beside the host's, which is gone when this is dropped.
pub(crate) struct Neighbour(File);

impl Neighbour {
    fn new(name: &str, v4: &str, v6: &str) -> Self {
        let neighbour = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                Self(File::open("/proc/thread-self/ns/net").unwrap())
            });
            inside.join().unwrap()
        });
        let path = format!("/proc/{}/fd/{}", process::id(), neighbour.0.as_raw_fd());
        sh(&format!(
            "ip link add {name} type veth peer name eth0 netns {path}
            ip address add {v4}.1/24 dev {name}
            ip address add {v6}::1/64 dev {name} nodad
            ip link set {name} up"
        ));
        neighbour.run(|| {
            set("ipv6/conf/eth0/accept_dad", "0");
            sh(&format!(
                "ip address add {v4}.2/24 dev eth0
                ip address add {v6}::2/64 dev eth0 nodad
                ip link set eth0 up
                ip route add default via {v4}.1
                ip route add default via {v6}::1"
            ))
        });
        neighbour
    }

    /// Runs `task` inside, on a thread of its own.
    fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                task()
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A socket inside; it stays inside whoever uses it.
    fn bind(&self, address: SocketAddr) -> UdpSocket {
        self.run(|| {
            for _ in 0..1000 {
                match UdpSocket::bind(address) {
                    // A child of another test holds the last socket until it has become its program.
                    Err(error) if error.kind() == ErrorKind::AddrInUse => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    bound => return bound.unwrap(),
                }
            }
            panic!("{address} stays in use");
        })
    }
}

/// Sets what `/proc/sys/net` has for this thread.
fn set(key: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

pub(crate) struct Topology {
    pub(crate) container: Neighbour,
    pub(crate) elsewhere: Neighbour,
    pub(crate) outside: Neighbour,
}

impl Topology {
    pub(crate) fn new() -> Self {
        set("ipv4/ip_forward", "1");
        set("ipv6/conf/all/forwarding", "1");
        set("ipv6/conf/default/accept_dad", "0");
        let net = Self {
            container: Neighbour::new("container", "10.5.72", "fd00:5:0:48"),
            elsewhere: Neighbour::new("elsewhere", "10.5.99", "fd00:5:0:63"),
            outside: Neighbour::new("outside", "192.0.2", "2001:db8"),
        };
        net.wait();
        net
    }

    /// Waits until everyone has found everyone: what is lost from then on was dropped on purpose.
    fn wait(&self) {
        let start = Instant::now();
        for (from, to, address) in [
            (&self.outside, &self.container, CONTAINER),
            (&self.container, &self.elsewhere, ELSEWHERE),
            (&self.elsewhere, &self.outside, OUTSIDE),
            (&self.outside, &self.container, CONTAINER6),
            (&self.container, &self.elsewhere, ELSEWHERE6),
            (&self.elsewhere, &self.outside, OUTSIDE6),
        ] {
            while exchange(from, to, address).is_none_or(|(_, replied)| !replied) {
                assert!(start.elapsed() < DEADLINE, "no way to {address}");
            }
        }
    }
}

/// The address that `to`, on port 7000, sees when `from` sends to it, and that a reply comes back; `None` when nothing
/// arrives.
pub(crate) fn seen_source(from: &Neighbour, to: &Neighbour, address: &str) -> Option<String> {
    let (source, replied) = exchange(from, to, address)?;
    assert!(replied, "no reply from {address} to {source}");
    Some(source)
}

/// The address that `to`, on port 7000, sees when `from` sends to it, and whether its reply came back.
fn exchange(from: &Neighbour, to: &Neighbour, address: &str) -> Option<(String, bool)> {
    let address: IpAddr = address.parse().unwrap();
    let target = SocketAddr::new(address, 7000);
    let any = |port| {
        let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        SocketAddr::new(any.parse().unwrap(), port)
    };
    let (server, client) = (to.bind(any(7000)), from.bind(any(0)));
    // A second is sent before giving up, for the sake of a busy machine.
    for wait in [100, 400] {
        client.send_to(b"?", target).unwrap();
        if let Some(source) = receive(&server, Duration::from_millis(wait)) {
            server.send_to(b"!", source).unwrap();
            let replier = receive(&client, Duration::from_secs(2));
            return Some((source.ip().to_string(), replier == Some(target)));
        }
    }
    None
}

/// Who sent what arrives within `time`.
fn receive(socket: &UdpSocket, time: Duration) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(time)).unwrap();
    loop {
        match socket.recv_from(&mut [0; 8]) {
            Ok((_, source)) => return Some(source),
            // A child of another test ended.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return None;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
