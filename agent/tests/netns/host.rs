//! One host with an agent's core, without the agent: leases are made up, the kernel is real.
//!
//! ```text
//!   ┌─────────────────── namespace ────────────────────┐
//!   │ flannel.1 (10.0.0.0/8) ── up0 192.0.2.1/24 ─ up1 │    peers exist as leases only
//!   └──────────────────────────────────────────────────┘
//! ```

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use selvage::cluster::lease::{Lease, LeaseAttrs, SubnetKey};
use selvage::cluster::network_config::NetworkConfig;
use selvage::host::executor::Executor;
use selvage::host::open::open;
use selvage::host::reconcile::{Reconciler, Report};
use selvage::plan::backend::plan::Plan;
use selvage::plan::backend::{Backend, BackendConfig, Setup};
use selvage::plan::state::Delta;
use selvage::plan::underlay::{Attachment, Underlay};
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::netns::{Entered, NetNs};

/// Far more than any of these tests takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(240);

/// One host with an underlay.
pub(crate) struct Host {
    // Dropped in this order: the namespace is left before it goes.
    inside: Option<Entered>,
    pub(crate) ns: NetNs,
    pub(crate) state_dir: TempDir,
    pub(crate) underlay: Underlay,
}

impl Host {
    pub(crate) fn new() -> Self {
        let mut host = Self::bare();
        host.ns.ip("link add up0 type veth peer name up1");
        host.ns.ip("address add 192.0.2.1/24 dev up0");
        host.ns.ip("link set up0 up");
        host.ns.ip("link set up1 up");
        host.wait_for_carrier("UP");
        host.inside = Some(host.ns.enter());
        host.underlay.index = if_nametoindex("up0").unwrap();
        host
    }

    /// Waits until the kernel has told everybody that the underlay's carrier is there or not (`UP`, `LOWERLAYERDOWN`), for
    /// which it may take a second (`linkwatch_schedule_work()`).
    pub(crate) fn wait_for_carrier(&self, state: &str) {
        let state = format!(" state {state} ");
        let start = Instant::now();
        while !self.ns.ip("link show up0").contains(&state) {
            assert!(start.elapsed() < PATIENCE, "up0 does not get to{state}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A host that is not entered and has no device yet; the underlay's index is for the caller to fill in.
    pub(crate) fn bare() -> Self {
        Self {
            inside: None,
            ns: NetNs::new(),
            state_dir: tempfile::tempdir().unwrap(),
            underlay: Underlay {
                index: 0,
                name: "up0".parse().unwrap(),
                mtu: 1500,
                has_neighbors: true,
                v4: Some(attachment(Ipv4Addr::new(192, 0, 2, 1))),
                v6: None,
            },
        }
    }

    pub(crate) async fn open(&self, config: &str, executor: &mut Executor) -> Box<dyn Backend> {
        let config = network_config(config);
        let setup = Setup {
            config: &config,
            underlay: &self.underlay,
            state_dir: self.state_dir.path(),
            new_identity: false,
            printed: None,
        };
        let backend = BackendConfig::parse(&config).unwrap();
        open(&backend, setup, executor).await.unwrap()
    }

    /// An agent that has just started.
    pub(crate) async fn agent(&self, peers: &[Lease]) -> Agent {
        self.agent_of(0, peers).await
    }

    /// An agent that holds the lease of the subnet `n`.
    pub(crate) async fn agent_of(&self, n: u16, peers: &[Lease]) -> Agent {
        self.agent_configured(n, r#"{"Type":"vxlan"}"#, peers).await
    }

    /// An agent with its own network config.
    pub(crate) async fn agent_configured(&self, n: u16, config: &str, peers: &[Lease]) -> Agent {
        self.agent_with(Executor::open().unwrap(), n, config, peers)
            .await
    }

    pub(crate) async fn agent_with(
        &self,
        mut executor: Executor,
        n: u16,
        config: &str,
        peers: &[Lease],
    ) -> Agent {
        let backend: Arc<dyn Backend> = self.open(config, &mut executor).await.into();
        let peers = peers.iter().cloned().map(Arc::new);
        let plan = Plan::new(Arc::clone(&backend), &subnet(n), peers);
        let mut reconciler = Reconciler::new(executor, backend.scope());
        reconciler.set_desired(plan.state());
        Agent {
            backend,
            plan,
            reconciler,
        }
    }

    pub(crate) fn fdb(&self) -> String {
        self.ns.run("bridge", "fdb show dev flannel.1")
    }
}

pub(crate) struct Agent {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) plan: Plan,
    pub(crate) reconciler: Reconciler,
}

impl Agent {
    pub(crate) async fn resync(&mut self) -> Report {
        let report = self.reconciler.resync().await.unwrap();
        assert!(report.is_complete(), "{:?}", report.failures);
        report
    }

    pub(crate) async fn set_peer(&mut self, peer: &Lease) -> Report {
        let delta = self.plan.set_peer(&Arc::new(peer.clone()));
        self.update(delta).await
    }

    pub(crate) async fn update(&mut self, delta: Delta) -> Report {
        let report = self.reconciler.update(delta).await.unwrap();
        assert!(report.is_complete(), "{:?}", report.failures);
        report
    }
}

/// Everything that the kernel tells its listeners, counted.
pub(crate) struct Notifications(Socket);

impl Notifications {
    pub(crate) fn listen() -> Self {
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind(&SocketAddr::new(0, 0)).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        for group in [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Nexthop,
        ] {
            socket.add_membership(group as u32).unwrap();
        }
        socket.set_non_blocking(true).unwrap();
        Self(socket)
    }

    /// How many came since the last call. The kernel delivers them before it answers the request that caused them.
    pub(crate) fn count(&self) -> usize {
        let mut count = 0;
        loop {
            match self.0.recv_from_full() {
                Ok(_) => count += 1,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return count,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .expect("the test takes too long")
}

pub(crate) fn subnet(n: u16) -> SubnetKey {
    let [high, low] = n.to_be_bytes();
    let v4 = Ipv4Net::new(Ipv4Addr::new(10, high, low, 0), 24).unwrap();
    SubnetKey::new(Some(v4), None)
}

/// An address of a /24, public itself.
pub(crate) fn attachment(address: Ipv4Addr) -> Attachment<Ipv4Addr> {
    Attachment {
        address,
        prefix_len: 24,
        public: address,
    }
}

/// Peer `n` has the subnet 10.`n`.0/24, the MAC address 02:00:00:00:`n` and the public IP 198.18.`n`.
pub(crate) fn peer(n: u16) -> Lease {
    let [high, low] = n.to_be_bytes();
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:{high:02x}:{low:02x}"}}"#);
    Lease {
        key: subnet(n),
        attrs: LeaseAttrs {
            public_ip: Some(Ipv4Addr::new(198, 18, high, low)),
            public_ipv6: None,
            backend_type: "vxlan".into(),
            backend_data: Some(RawValue::from_string(data).unwrap()),
            backend_v6_data: None,
            owner: None,
        },
        created: u64::from(n),
    }
}

pub(crate) fn peers(count: u16) -> Vec<Lease> {
    (1..=count).map(peer).collect()
}

/// The network 10.0.0.0/8 with a backend.
pub(crate) fn network_config(backend: &str) -> NetworkConfig {
    let config = format!(r#"{{"Network":"10.0.0.0/8","Backend":{backend}}}"#);
    NetworkConfig::parse(&config).unwrap()
}
