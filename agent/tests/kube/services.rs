//! Services beside our rules: what pods, nodes and others reach by them, and which source address arrives.
//!
//! ```text
//!  client 10.77.0.99 ─── switch ─┬─ n1 10.77.0.11 ── cni0 ─┬─ one, which is behind svc4
//!                                │                         └─ another
//!                                └─ n2 10.77.0.12 ── cni0 ─── remote, which is behind svc1, svc2 and svc3
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use selvage::base::net::Family;

use crate::fleet::{Fleet, VXLAN};
use crate::namespace::Namespace;
use crate::pods::{Node, PORT, Pod, is_refused, seen, underlay_v6};
use crate::proxy::{Mode, Outside, Service, counted};

const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}"#;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
/// Ports of nodes: with the policy Local, and with Cluster.
const LOCAL: u16 = 3001;
const CLUSTER: u16 = 3003;

/// Two nodes with their pods, and who is outside; all of it is tried in one family.
struct World {
    family: Family,
    fleet: Fleet,
    nodes: [Node; 2],
    one: Pod,
    another: Pod,
    remote: Pod,
    client: Namespace,
}

impl World {
    /// With our rules in a mode: `nftables` or `iptables`.
    fn new(config: &str, firewall: &str) -> Self {
        let family = match config == DUAL {
            true => Family::V6,
            false => Family::V4,
        };
        let fleet = Fleet::start(config);
        let nodes = [1, 2].map(|number| {
            let v4 = format!("10.244.{number}.0/24");
            let v6 = format!("fd00:10:244:{number}::/64");
            let cidrs = match family {
                Family::V4 => vec![v4.as_str()],
                Family::V6 => vec![v4.as_str(), v6.as_str()],
            };
            let mut host = fleet.host(number, &cidrs);
            host.arguments.push(format!("--firewall-mode={firewall}"));
            host.start_agent();
            host
        });
        let nodes = nodes.map(|mut host| {
            host.wait_ready();
            Node::new(host)
        });
        let client = Namespace::new();
        client.connect("eth0", &fleet.switch, "port99");
        fleet.switch.ip("link set port99 master switch up");
        client.ip(&format!("address add {CLIENT}/24 dev eth0"));
        let v6 = underlay_v6(CLIENT);
        client.ip(&format!("address add {v6}/64 dev eth0 nodad"));
        client.ip("link set eth0 up");
        let [near, far] = &nodes;
        let world = Self {
            family,
            one: near.pod("one"),
            another: near.pod("another"),
            remote: far.pod("remote"),
            fleet,
            nodes,
            client,
        };
        world.reaches_pods_directly();
        world
    }

    /// Where the Service `svcNUMBER` is.
    fn service(&self, number: u8) -> SocketAddr {
        let address: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::new(172, 30, 0, 40 + number).into(),
            Family::V6 => {
                Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, (40 + number).into()).into()
            }
        };
        SocketAddr::new(address, PORT)
    }

    /// The Services of kube-proxy's own tests, with endpoints of ours.
    fn services(&self) -> [Service; 4] {
        let service = |number, name, hashes, outside, pod: &Pod| Service {
            name,
            hashes,
            address: self.service(number).ip(),
            outside,
            endpoint: pod.address(self.family),
        };
        let nothing = Outside::Nothing;
        let (another, remote) = (&self.another, &self.remote);
        let first = ["XPGD46QRK7WJZT7O", "ULMVA6XW"];
        let second = ["GNZBNJ2PO5MGZ6GT", "42NFTM6N"];
        let third = ["X27LE4BHSL4DOUIK", "4AT6LBPK"];
        let fourth = ["4SW47YFZTEDKD3PK", "LAUZTJTB"];
        [
            service(1, "ns1/svc1", first, nothing, remote),
            service(2, "ns2/svc2", second, Outside::Local(LOCAL), remote),
            service(3, "ns3/svc3", third, Outside::Cluster(CLUSTER), remote),
            service(4, "ns4/svc4", fourth, nothing, another),
        ]
    }

    /// A port of a node.
    fn node_port(&self, node: &Node, port: u16) -> SocketAddr {
        SocketAddr::new(node.address(self.family), port)
    }

    fn client_address(&self) -> IpAddr {
        match self.family {
            Family::V4 => CLIENT.into(),
            Family::V6 => underlay_v6(CLIENT),
        }
    }

    /// The address that packets of the first node's own have at the other node.
    fn overlay(&self) -> IpAddr {
        let near = &self.nodes[0];
        let links = near.namespace().ip("-o link show type vxlan");
        match links.is_empty() {
            true => near.address(self.family),
            false => near.own(self.family, 0),
        }
    }

    /// Pods and nodes, by the pods' addresses.
    fn reaches_pods_directly(&self) {
        let Self {
            one,
            another,
            remote,
            nodes: [near, far],
            ..
        } = self;
        let ip = |pod: &Pod| pod.address(self.family);
        let at = |from: &Namespace, pod: &Pod| seen(from, pod.socket(self.family), &pod.namespace);
        assert_eq!(at(&one.namespace, another), ip(one));
        assert_eq!(at(&one.namespace, remote), ip(one));
        assert_eq!(at(&remote.namespace, one), ip(remote));
        assert_eq!(at(near.namespace(), remote), self.overlay());
        assert_eq!(at(far.namespace(), remote), far.own(self.family, 1));
        // A pod's way out of the cluster.
        let client = SocketAddr::new(self.client_address(), PORT);
        let outside = seen(&one.namespace, client, &self.client);
        assert_eq!(outside, near.address(self.family));
    }

    fn reaches_services(&self) {
        let Self {
            one,
            another,
            remote,
            nodes: [near, far],
            client,
            ..
        } = self;
        let ip = |pod: &Pod| pod.address(self.family);
        let bridge = |node: &Node| node.own(self.family, 1);
        let at = |from: &Namespace, to: SocketAddr, pod: &Pod| seen(from, to, &pod.namespace);
        // A pod stays who it is: on its own node, and on another.
        assert_eq!(at(&one.namespace, self.service(4), another), ip(one));
        assert_eq!(at(&one.namespace, self.service(1), remote), ip(one));
        // A pod that reaches itself gets its answers from its bridge.
        assert_eq!(
            at(&another.namespace, self.service(4), another),
            bridge(near)
        );
        assert_eq!(at(&remote.namespace, self.service(1), remote), bridge(far));
        // The node, and so pods with its network.
        let overlay = self.overlay();
        assert_eq!(at(near.namespace(), self.service(1), remote), overlay);
        assert_eq!(at(near.namespace(), self.service(4), another), bridge(near));
        let [first, second] = [near, far].map(|node| self.node_port(node, CLUSTER));
        assert_eq!(at(near.namespace(), first, remote), overlay);
        // NodePort. Answers must come back by the node that was asked, but for the policy Local.
        assert_eq!(at(client, first, remote), overlay);
        assert_eq!(at(client, second, remote), bridge(far));
        assert_eq!(at(&one.namespace, first, remote), overlay);
        let [first, second] = [near, far].map(|node| self.node_port(node, LOCAL));
        assert_eq!(at(client, second, remote), self.client_address());
        assert!(is_refused(client, first, &remote.namespace));
    }

    /// What each node's rules of kube-proxy, and ours, have masqueraded so far.
    fn masqueraded(&self) -> [[u64; 2]; 2] {
        self.nodes.each_ref().map(|node| {
            ["KUBE-POSTROUTING", "FLANNEL-POSTRTG"]
                .map(|chain| counted(node.namespace(), self.family, chain, "MASQUERADE"))
        })
    }

    /// The agents start again where kube-proxy's rules are.
    fn restart_agents(&mut self) {
        for node in &mut self.nodes {
            node.host.kill_agent();
            node.host.start_agent();
        }
        for node in &mut self.nodes {
            node.host.wait_ready();
        }
    }
}

/// Every way, with kube-proxy that comes after the agents, and with agents that come after it.
fn services_work(config: &str, firewall: &str, proxy: Mode) {
    let mut world = World::new(config, firewall);
    for node in &world.nodes {
        proxy.make(node, world.family, &world.services());
    }
    world.reaches_services();
    world.reaches_pods_directly();
    if proxy == Mode::Iptables {
        masqueraded_once(&world);
    }
    world.restart_agents();
    world.reaches_services();
    world.reaches_pods_directly();
}

/// A connection through a node to a pod of another is masqueraded there by kube-proxy, and nowhere else by anybody.
fn masqueraded_once(world: &World) {
    let [near, far] = world.masqueraded();
    let [first, second] = &world.nodes;
    let server = &world.remote.namespace;
    let through = world.node_port(first, CLUSTER);
    assert_eq!(seen(&world.client, through, server), world.overlay());
    assert_eq!(world.masqueraded(), [[near[0] + 1, near[1]], far]);
    // With the policy Local by nobody at all.
    seen(&world.client, world.node_port(second, LOCAL), server);
    assert_eq!(world.masqueraded(), [[near[0] + 1, near[1]], far]);
}

#[test]
fn kube_proxy_in_iptables_mode_beside_our_nftables() {
    services_work(VXLAN, "nftables", Mode::Iptables);
}

#[test]
fn kube_proxy_in_iptables_mode_beside_our_iptables() {
    services_work(VXLAN, "iptables", Mode::Iptables);
}

#[test]
fn kube_proxy_in_nftables_mode_beside_our_nftables() {
    services_work(VXLAN, "nftables", Mode::Nftables);
}

#[test]
fn kube_proxy_in_nftables_mode_beside_our_iptables() {
    services_work(VXLAN, "iptables", Mode::Nftables);
}

#[test]
fn services_without_encapsulation() {
    services_work(HOST_GW, "nftables", Mode::Iptables);
}

#[test]
fn ipv6_with_kube_proxy_in_iptables_mode_beside_our_nftables() {
    services_work(DUAL, "nftables", Mode::Iptables);
}

#[test]
fn ipv6_with_kube_proxy_in_nftables_mode_beside_our_iptables() {
    services_work(DUAL, "iptables", Mode::Nftables);
}

#[test]
fn ipvs_kube_proxy_beside_our_nftables() {
    services_work(VXLAN, "nftables", Mode::Ipvs);
}

#[test]
fn ipvs_kube_proxy_beside_our_iptables() {
    services_work(VXLAN, "iptables", Mode::Ipvs);
}

/// By the rules of containernetworking's portmap, which needs no kube-proxy.
#[test]
fn a_host_port_keeps_its_client() {
    for firewall in ["nftables", "iptables"] {
        let world = World::new(VXLAN, firewall);
        let [near, far] = &world.nodes;
        let pod = near.pod_with_host_port("with-port", 8080);
        let port = world.node_port(near, 8080);
        let at = |from: &Namespace| seen(from, port, &pod.namespace);
        assert_eq!(at(&world.client), world.client_address());
        assert_eq!(at(far.namespace()), far.address(world.family));
        // To the node a pod leaves the overlay. One that reaches itself gets its answers from its bridge.
        assert_eq!(at(&world.remote.namespace), far.address(world.family));
        assert_eq!(at(&pod.namespace), near.own(world.family, 1));
    }
}

/// Nobody answers for a Service's address then, and nothing else is missing.
#[test]
fn without_kube_proxy_pods_and_nodes_reach_each_other() {
    for firewall in ["nftables", "iptables"] {
        let world = World::new(VXLAN, firewall);
        let (client, server) = (&world.one.namespace, &world.remote.namespace);
        assert!(is_refused(client, world.service(1), server));
        world.fleet.wait_condition("n1", "False", "FlannelIsUp");
    }
}
