//! Two hosts with a cable between them and the udp data plane on each.
//!
//! ```text
//!   ┌──────────── a ────────────┐               ┌──────────── b ────────────┐
//!   │ flannel0 10.5.1.0         │               │         10.5.2.0 flannel0 │
//!   │        up0 198.51.100.1/24 ───────────────── 198.51.100.2/24 up0      │
//!   └───────────────────────────┘               └───────────────────────────┘
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroUsize;

use ipnet::Ipv4Net;
use selvage::host::udp::{DataPlane, OpenError, Settings};

use crate::netns::NetNs;

/// flannel's port.
pub(crate) const PORT: u16 = 8285;
/// MTU of the cable less the outer headers.
pub(crate) const MTU: u32 = 1472;

/// A host in a network namespace of its own.
pub(crate) struct Host {
    pub(crate) ns: NetNs,
    n: u8,
}

impl Host {
    /// Address on the cable.
    pub(crate) fn underlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.n)
    }

    /// Where the data plane receives.
    pub(crate) fn endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.underlay(), PORT)
    }

    /// The subnet of the host's containers.
    pub(crate) fn subnet(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.overlay(), 24)
    }

    /// Address of the TUN device.
    pub(crate) fn overlay(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 5, self.n, 0)
    }

    /// Opens the data plane, and nothing else.
    pub(crate) fn try_open(&self, workers: usize) -> Result<DataPlane, OpenError> {
        let settings = Settings {
            name: "flannel0".parse().unwrap(),
            address: self.overlay(),
            mtu: MTU,
            bind: self.endpoint(),
            workers: NonZeroUsize::new(workers),
        };
        let _inside = self.ns.enter();
        DataPlane::open(&settings)
    }

    /// Opens the data plane and sets the device up as the backend does.
    pub(crate) fn open(&self, workers: usize) -> DataPlane {
        let plane = self.try_open(workers).unwrap();
        self.ns
            .ip(&format!("address add {}/32 dev flannel0", self.overlay()));
        self.ns.ip(&format!("link set flannel0 mtu {MTU} up"));
        self.ns.ip("route add 10.5.0.0/16 dev flannel0");
        plane
    }
}

/// A container behind a host, with the second address of the host's subnet; the first is the host's.
pub(crate) fn container(host: &Host) -> (NetNs, Ipv4Addr) {
    let ns = NetNs::new();
    let [a, b, c, _] = host.overlay().octets();
    host.ns.ip("link add pod type veth peer name eth0");
    host.ns.ip(&format!("link set eth0 netns {}", ns.path()));
    host.ns.ip(&format!("address add {a}.{b}.{c}.1/24 dev pod"));
    host.ns.ip(&format!("link set pod mtu {MTU} up"));
    host.ns.run("sysctl", "-qw net.ipv4.ip_forward=1");
    ns.ip(&format!("address add {a}.{b}.{c}.2/24 dev eth0"));
    ns.ip(&format!("link set eth0 mtu {MTU} up"));
    ns.ip(&format!("route add default via {a}.{b}.{c}.1"));
    (ns, Ipv4Addr::new(a, b, c, 2))
}

/// Two hosts with a cable between them, and nothing else yet.
pub(crate) fn two_hosts() -> (Host, Host) {
    let [a, b] = [1, 2].map(|n| Host {
        ns: NetNs::new(),
        n,
    });
    a.ns.ip("link add up0 type veth peer name cable");
    a.ns.ip(&format!("link set cable netns {}", b.ns.path()));
    b.ns.ip("link set cable name up0");
    for host in [&a, &b] {
        host.ns
            .ip(&format!("address add {}/24 dev up0", host.underlay()));
        host.ns.ip("link set up0 up");
    }
    (a, b)
}

/// Opens the data plane on both and makes them peers.
pub(crate) fn connect(a: &Host, b: &Host, workers: usize) -> (DataPlane, DataPlane) {
    let (on_a, on_b) = (a.open(workers), b.open(workers));
    on_a.insert(b.subnet(), b.endpoint());
    on_b.insert(a.subnet(), a.endpoint());
    (on_a, on_b)
}
