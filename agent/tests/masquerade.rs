//! Which address a packet arrives with, for every rule of our table and real packets. Four namespaces, joined by the
//! host under test, which routes between them:
//!
//! ```text
//!   container 10.5.72.2 ──┐                  ┌── elsewhere 10.5.99.2   (a container on another node)
//!       (our subnet)      ├── host under ────┤
//!                         │    test          └── outside 192.0.2.2
//! ```
//!
//! The host's own address in each of the three networks ends in .1. Needs `nft` and `ip`, and root or `unshare -rn`.

#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{self, Command};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use selvage::firewall::nftables::{Nftables, Rules};

/// A network namespace, which is gone when this is dropped.
struct Namespace(File);

impl Namespace {
    /// `None` without the right to make one.
    fn new() -> Option<Self> {
        let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
            Err(Errno::EPERM) => None,
            made => {
                made.unwrap();
                Some(Self(File::open("/proc/thread-self/ns/net").unwrap()))
            }
        });
        thread.join().unwrap()
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

    fn ip(&self, arguments: &str) {
        self.run(|| {
            let output = Command::new("ip").args(arguments.split(' ')).output();
            let output = output.unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {arguments}: {stderr}");
        });
    }

    /// A socket inside; it stays inside whoever uses it.
    fn bind(&self, address: &str) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address).unwrap());
        let timeout = Some(Duration::from_secs(2));
        socket.set_read_timeout(timeout).unwrap();
        socket
    }
}

/// A namespace that reaches the others through `host`.
fn leaf(host: &Namespace, name: &str, network: &str, length: u8) -> Option<Namespace> {
    let leaf = Namespace::new()?;
    let path = format!("/proc/{}/fd/{}", process::id(), leaf.0.as_raw_fd());
    host.ip(&format!(
        "link add {name} type veth peer name eth0 netns {path}"
    ));
    host.ip(&format!("address add {network}.1/{length} dev {name}"));
    host.ip(&format!("link set {name} up"));
    leaf.ip(&format!("address add {network}.2/{length} dev eth0"));
    leaf.ip("link set eth0 up");
    leaf.ip(&format!("route add default via {network}.1"));
    Some(leaf)
}

struct Topology {
    host: Namespace,
    container: Namespace,
    elsewhere: Namespace,
    outside: Namespace,
}

impl Topology {
    fn new() -> Option<Self> {
        let host = Namespace::new()?;
        let container = leaf(&host, "container", "10.5.72", 24)?;
        let elsewhere = leaf(&host, "elsewhere", "10.5.99", 24)?;
        let outside = leaf(&host, "outside", "192.0.2", 24)?;
        host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        Some(Self {
            host,
            container,
            elsewhere,
            outside,
        })
    }

    fn apply(&self, rules: &Rules) {
        self.host.run(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(Nftables::new().apply(rules)).unwrap();
        });
    }
}

/// The address that `to`, on port 7000, sees when `from` sends to it, and that a reply comes back.
fn seen_source(from: &Namespace, to: &Namespace, address: &str) -> String {
    let server = to.bind("0.0.0.0:7000");
    let client = from.bind("0.0.0.0:0");
    let target: SocketAddr = format!("{address}:7000").parse().unwrap();
    client.send_to(b"?", target).unwrap();
    let mut buffer = [0; 8];
    let (_, source) = server.recv_from(&mut buffer).unwrap();
    server.send_to(b"!", source).unwrap();
    let (_, replier) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(replier, target);
    source.ip().to_string()
}

const CONTAINER: &str = "10.5.72.2";
const ELSEWHERE: &str = "10.5.99.2";
const OUTSIDE: &str = "192.0.2.2";

#[test]
fn source_address_is_kept_inside_the_overlay_and_replaced_where_replies_need_it() {
    let Some(net) = Topology::new() else {
        eprintln!("skipped: no right to make a network namespace; run as root");
        return;
    };
    let rules = Rules {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet: "10.5.72.0/24".parse().unwrap(),
        masquerade: true,
        forward: true,
        random_fully: true,
    };
    let (container, elsewhere, outside) = (&net.container, &net.elsewhere, &net.outside);

    assert_eq!(seen_source(container, outside, OUTSIDE), CONTAINER);
    net.apply(&rules);
    assert_eq!(seen_source(container, elsewhere, ELSEWHERE), CONTAINER);
    assert_eq!(seen_source(elsewhere, container, CONTAINER), ELSEWHERE);
    assert_eq!(seen_source(outside, container, CONTAINER), OUTSIDE);
    assert_eq!(seen_source(container, outside, OUTSIDE), "192.0.2.1");
    // flannel's own nftables rules leave this one as it is.
    assert_eq!(seen_source(outside, elsewhere, ELSEWHERE), "10.5.99.1");

    // What kube-proxy marked is its own to masquerade, whatever else the mark says.
    net.host.run(|| {
        let marks = "add table ip marks; \
            add chain ip marks early { type filter hook prerouting priority mangle; }; \
            add rule ip marks early ip daddr 192.0.2.2 meta mark set 0x4001";
        let status = Command::new("nft").arg(marks).status().unwrap();
        assert!(status.success());
    });
    assert_eq!(seen_source(container, outside, OUTSIDE), CONTAINER);

    net.apply(&Rules {
        masquerade: false,
        ..rules
    });
    assert_eq!(seen_source(outside, elsewhere, ELSEWHERE), OUTSIDE);
}
