//! The route tables of a cloud provider: the provider is a server that plays EC2, and a router that obeys its tables.
//!
//! ```text
//!   node 1             node 2             node 3             provider 10.77.0.1
//!   container .2       container .2       container .2       API and metadata :8000
//!   docker0   .1       docker0   .1       docker0   .1       routes of rtb-main
//!   eth0 10.77.0.11    eth0 10.77.0.12    eth0 10.77.0.13    eth0, the default gateway
//!        └──────────────────┴──── switch ──────┴───────────────┘
//! ```

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::cluster::Store;
use crate::ec2::{Ec2, Entry};
use crate::host::Host;
use crate::kernel::Flow;
use crate::namespace::Namespace;
use crate::server::Double;
use crate::wait::wait_until;

const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
const AWS: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"aws-vpc"}}"#;

/// A provider with three instances, in the namespace of the gateway.
struct Provider {
    double: Arc<Double<Ec2>>,
    ends: Arc<AtomicBool>,
    router: Option<JoinHandle<()>>,
}

impl Provider {
    fn start(store: &Store, hosts: &mut [Host]) -> Self {
        let namespace = Arc::clone(&store.namespace);
        // One interface in and out.
        for device in ["all", "eth0"] {
            namespace.sysctl(&format!("net.ipv4.conf.{device}.send_redirects"), "0");
        }
        let addresses: Vec<_> = hosts.iter().map(|host| host.address).collect();
        let inside = Arc::clone(&namespace);
        let double = thread::spawn(move || {
            setns(inside.as_fd(), CloneFlags::CLONE_NEWNET).expect("the gateway's namespace");
            Double::start("10.77.0.1:8000", Ec2::new(&addresses))
        });
        let double = Arc::new(double.join().expect("the provider"));
        for host in hosts {
            host.namespace.ip("route add default via 10.77.0.1");
            let url = double.url();
            host.arguments.push(format!("--cloud-api-url={url}"));
            host.arguments.push(format!("--cloud-metadata-url={url}"));
        }
        let ends = Arc::new(AtomicBool::new(false));
        let router = {
            let (double, ends) = (Arc::clone(&double), Arc::clone(&ends));
            thread::spawn(move || route(&double, &namespace, &ends))
        };
        Self {
            double,
            ends,
            router: Some(router),
        }
    }

    fn hop(&self, host: &Host) -> Option<String> {
        let subnet = host.lease_key().replace('-', "/");
        self.double.state().hop("rtb-main", &subnet)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(router) = self.router.take() {
            let _ = router.join();
        }
    }
}

/// Keeps the gateway's routes like those of the main table, to interfaces without source/destination check.
fn route(double: &Double<Ec2>, namespace: &Namespace, ends: &AtomicBool) {
    let mut has: BTreeMap<String, String> = BTreeMap::new();
    while !ends.load(Ordering::Relaxed) {
        let wanted: BTreeMap<String, String> = {
            let state = double.state();
            let routes = state.tables.get("rtb-main").into_iter();
            let routes = routes.flat_map(|table| &table.routes);
            let instance = |route: &Entry| {
                let mut all = state.instances.iter();
                let found = all.find(|it| it.interface == route.hop && !it.is_checked)?;
                Some((route.destination.clone(), found.address.to_string()))
            };
            routes.filter_map(instance).collect()
        };
        for (destination, hop) in &wanted {
            if has.get(destination) != Some(hop) {
                namespace.ip(&format!("route replace {destination} via {hop}"));
            }
        }
        for gone in has
            .keys()
            .filter(|destination| !wanted.contains_key(*destination))
        {
            namespace.ip(&format!("route del {gone}"));
        }
        has = wanted;
        thread::sleep(Duration::from_millis(20));
    }
}

fn set_config(store: &Store, config: &str) {
    store.etcdctl(&["put", "/coreos.com/network/config", config]);
}

#[test]
fn three_nodes_move_from_vxlan_to_the_route_table_and_back_without_a_lost_packet() {
    let store = Store::start(VXLAN);
    let mut hosts = [1, 2, 3].map(|number| store.host(number));
    let provider = Provider::start(&store, &mut hosts);
    // Lists show changes late.
    provider.double.state().lag = 2;
    for host in &mut hosts {
        host.join();
    }
    let pairs = [(0, 1), (1, 2), (2, 0)];
    for (one, other) in pairs {
        hosts[one].wait_reaches(&hosts[other]);
    }
    let flows =
        pairs.map(|(one, other)| Flow::start(&hosts[one], hosts[other].container_address()));
    for flow in &flows {
        flow.wait_answered(50);
    }

    set_config(&store, AWS);
    wait_until("vxlan's devices to go", || {
        hosts
            .iter()
            .all(|host| !host.namespace.ip("-br link show").contains("flannel.1"))
    });
    for host in &hosts {
        assert!(provider.hop(host).is_some(), "{}", host.address);
        let routes = host.namespace.ip("route show proto 83");
        assert_eq!(routes, "", "peers' subnets are routed by the provider");
    }
    for flow in &flows {
        flow.wait_answered(100);
    }

    set_config(&store, VXLAN);
    wait_until("the provider's routes to go", || {
        hosts.iter().all(|host| provider.hop(host).is_none())
    });
    for flow in flows {
        flow.wait_answered(100);
        flow.finish();
    }
    assert_eq!(provider.double.state().wrong, Vec::<String>::new());
}

#[test]
fn a_node_joins_once_its_subnet_is_routed_and_stays_while_the_provider_is_away() {
    let store = Store::start(AWS);
    let mut hosts = [1, 2].map(|number| store.host(number));
    let provider = Provider::start(&store, &mut hosts);
    let [one, two] = &mut hosts;
    provider.double.state().denied.insert("CreateRoute");
    one.start_agent();
    let reason = "give this instance's role the permission ec2:CreateRoute";
    one.wait_told(reason, |line| line.contains(reason));
    assert!(!one.told().iter().any(|line| line == "READY=1"));
    provider.double.state().denied.clear();
    one.wait_ready();
    one.start_container();
    two.join();
    one.wait_reaches(two);
    assert_eq!(one.subnet_env("FLANNEL_MTU"), "1500");
    assert!(one.reaches_address(two.container_address().into(), 1472));

    // The provider's API is away: what it routes it routes.
    provider.double.state().is_away = true;
    assert!(one.reaches(two));
    assert_eq!(one.ask("/v1/status").0, 200);
    let ready = one.selvage("status").output().expect("selvage status");
    assert_eq!(ready.status.code(), Some(0), "{ready:?}");

    // A restarted agent does not need it either.
    one.kill_agent();
    one.start_agent();
    one.wait_ready();
    assert!(one.reaches(two));

    // Somebody removed the route: the next look finds that.
    provider.double.state().is_away = false;
    let interface = provider.hop(one).expect("the route");
    let subnet = one.lease_key().replace('-', "/");
    for table in provider.double.state().tables.values_mut() {
        table.routes.retain(|route| route.destination != subnet);
    }
    one.kill_agent();
    one.start_agent();
    wait_until("the route to come back", || {
        provider.hop(one) == Some(interface.clone())
    });
    one.wait_ready();
    one.wait_reaches(two);
    let report = || {
        let mut doctor = one.selvage("doctor");
        let doctor = doctor.args(["--json", "--no-probes"]).output();
        let doctor = doctor.expect("selvage doctor");
        String::from_utf8_lossy(&doctor.stdout).into_owned()
    };
    // Until the change was read back it is a finding.
    wait_until("the doctor to find no fault with the routes", || {
        let report = report();
        let is_checked = report.contains("\"cloud-routes\"");
        is_checked && !report.contains("\"check\": \"cloud-routes\"")
    });
}

fn is_ready(host: &Host) -> bool {
    host.ask("/readyz").0 == 200
}

#[test]
fn a_backend_that_never_worked_does_not_outlast_its_config() {
    let store = Store::start(AWS);
    let mut hosts = [1, 2].map(|number| store.host(number));
    let provider = Provider::start(&store, &mut hosts);
    // Not EC2, as far as these hosts see.
    provider.double.state().is_away = true;
    let [one, two] = &mut hosts;
    one.start_agent();
    let reason = "failed to have the subnet routed";
    one.wait_told(reason, |line| line.contains(reason));

    // One agent is not on the overlay yet, the other one joins by vxlan.
    set_config(&store, VXLAN);
    one.wait_ready();
    one.start_container();
    two.join();
    one.wait_reaches(two);
    let flow = Flow::start(one, two.container_address());
    flow.wait_answered(20);

    // Both are, and move there and back.
    provider.double.state().is_away = false;
    provider.double.state().denied.insert("CreateRoute");
    set_config(&store, AWS);
    wait_until("the missing permission to be told", || {
        !is_ready(one) && !is_ready(two)
    });
    set_config(&store, VXLAN);
    wait_until("both to be ready", || is_ready(one) && is_ready(two));
    flow.wait_answered(50);
    flow.finish();
    one.wait_reaches(two);
    assert_eq!(provider.hop(one), None);
}
