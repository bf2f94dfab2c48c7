//! Pods as a runtime makes them: by our plugin with kube-flannel's configuration, Debian's bridge and host-local below
//! it, and portmap after it. And connections to them.
//!
//! ```text
//!   node                                 pod
//!   flannel.1 10.244.1.0
//!   cni0 10.244.1.1/24 ── veth1a2b ───── eth0 10.244.1.2/24, default via 10.244.1.1
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};
use selvage::base::net::Family;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::Host;
use crate::namespace::Namespace;
use crate::wait::{PATIENCE, wait_for};

/// Where Debian has the plugins of containernetworking.
const PLUGINS: &str = "/usr/lib/cni";
/// Where pods serve.
pub(crate) const PORT: u16 = 80;
/// A connection whose first packets are lost comes about after 1, 3, 7 or 15 s.
const COMES: Duration = Duration::from_secs(20);
/// In this time the first packet is sent twice.
const STAYS_AWAY: Duration = Duration::from_millis(2500);

/// A node with the plugins, whose agent runs.
pub(crate) struct Node {
    pub(crate) host: Host,
    directory: TempDir,
}

/// A pod, with an address of each family that the network has.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Pod {
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        let mut addresses = self.addresses.iter();
        let found = addresses.find(|address| Family::of(**address) == family);
        *found.expect("an address of the family")
    }

    /// Where it serves.
    pub(crate) fn socket(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.address(family), PORT)
    }
}

impl Node {
    /// With a default route, since the address of a Service is nowhere, and the filter of bridges that kube-proxy wants:
    /// a pod's answer to another on its bridge would not be translated back.
    pub(crate) fn new(host: Host) -> Self {
        let namespace = &host.namespace;
        namespace.ip("route add default via 10.77.0.1 dev eth0");
        namespace.ip("-6 route add default via fd77::1 dev eth0");
        for program in ["iptables", "ip6tables"] {
            namespace.sysctl(&format!("net.bridge.bridge-nf-call-{program}"), "1");
        }
        let directory = tempfile::tempdir().expect("a directory");
        symlink(
            env!("CARGO_BIN_EXE_selvage"),
            directory.path().join("flannel"),
        )
        .expect("the plugin");
        Self { host, directory }
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.host.namespace
    }

    /// The address on the underlay.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        let v4 = self.host.address;
        match family {
            Family::V4 => v4.into(),
            Family::V6 => underlay_v6(v4),
        }
    }

    pub(crate) fn subnet(&self, family: Family) -> IpNet {
        let key = match family {
            Family::V4 => "FLANNEL_SUBNET",
            Family::V6 => "FLANNEL_IPV6_SUBNET",
        };
        let gateway: IpNet = self.host.subnet_env(key).parse().expect("a subnet");
        gateway.trunc()
    }

    /// An address of the node's own subnet: 0 is the overlay device's, 1 the bridge's.
    pub(crate) fn own(&self, family: Family, number: u8) -> IpAddr {
        match self.subnet(family).addr() {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + u32::from(number)).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(number)).into(),
        }
    }

    /// Makes a pod.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        self.add(name, &[])
    }

    /// Makes a pod that is reached by a port of the node as well.
    pub(crate) fn pod_with_host_port(&self, name: &str, port: u16) -> Pod {
        let mapping = json!({"hostPort": port, "containerPort": PORT, "protocol": "tcp"});
        self.add(name, &[mapping])
    }

    /// The configuration is flannel's, `cni-conf.json` in its Documentation/kube-flannel.yml.
    fn add(&self, name: &str, port_mappings: &[Value]) -> Pod {
        let namespace = Namespace::new();
        let path = |name: &str| self.directory.path().join(name).display().to_string();
        let config = json!({
            "name": "cbr0", "cniVersion": "0.3.1", "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
            "subnetFile": self.host.subnet_file(), "dataDir": path("data"),
            "ipam": {"dataDir": path("ipam")},
        });
        let result = self.call(&path("flannel"), name, &namespace, &config);
        let config = json!({
            "name": "cbr0", "cniVersion": "0.3.1", "type": "portmap",
            "runtimeConfig": {"portMappings": port_mappings}, "prevResult": result,
        });
        let result = self.call(&format!("{PLUGINS}/portmap"), name, &namespace, &config);
        let addresses = result["ips"].as_array().expect("addresses").iter();
        let address = |ip: &Value| {
            let address = ip["address"].as_str().expect("an address");
            address.parse::<IpNet>().expect("an address").addr()
        };
        Pod {
            addresses: addresses.map(address).collect(),
            namespace,
        }
    }

    /// Has a plugin add a pod, and returns its result.
    fn call(&self, plugin: &str, name: &str, pod: &Namespace, config: &Value) -> Value {
        let pid = std::process::id();
        let namespace = format!("/proc/{pid}/fd/{}", pod.as_fd().as_raw_fd());
        let mut process = self
            .namespace()
            .command(plugin)
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", namespace)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{plugin} did not start: {error}"));
        let mut input = process.stdin.take().expect("its input");
        input
            .write_all(config.to_string().as_bytes())
            .expect("its configuration");
        drop(input);
        let output = process.wait_with_output().expect("its end");
        assert!(output.status.success(), "{plugin} failed: {output:?}");
        serde_json::from_slice(&output.stdout).expect("a result")
    }
}

/// The IPv6 address that goes with an address of the underlay, as each host has it.
pub(crate) fn underlay_v6(address: Ipv4Addr) -> IpAddr {
    let [_, _, _, last] = address.octets();
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last.into()).into()
}

/// Runs `task` in a namespace.
pub(crate) fn inside<T: Send>(namespace: &Namespace, task: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("the namespace");
            task()
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The address that `server` sees when `from` connects to `to`, such as a Service of it.
pub(crate) fn seen(from: &Namespace, to: SocketAddr, server: &Namespace) -> IpAddr {
    connect(from, to, server, COMES).unwrap_or_else(|| panic!("no way to {to}"))
}

/// Whether no connection comes about.
pub(crate) fn is_refused(from: &Namespace, to: SocketAddr, server: &Namespace) -> bool {
    connect(from, to, server, STAYS_AWAY).is_none()
}

fn connect(
    from: &Namespace,
    to: SocketAddr,
    server: &Namespace,
    patience: Duration,
) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let bind = || inside(server, || TcpListener::bind((any, PORT)));
    let listener = wait_for(PATIENCE, "the port", || match bind() {
        // A child of another test holds the last socket until it has become its program.
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        bound => Some(bound.expect("the port")),
    });
    let mut client = inside(from, || TcpStream::connect_timeout(&to, patience)).ok()?;
    // Nobody else serves.
    let (mut connection, source) = listener.accept().expect("a connection");
    connection.write_all(b"!").expect("an answer");
    client.set_read_timeout(Some(COMES)).expect("a time limit");
    client.read_exact(&mut [0]).expect("the answer");
    Some(source.ip())
}
