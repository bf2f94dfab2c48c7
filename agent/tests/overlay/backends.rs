//! Every backend that each kernel has, in every family that it carries: containers reach each other with packets
//! of just the size that `subnet.env` promises, and a restarted agent changes nothing.

use std::fs;
use std::net::IpAddr;

use crate::cluster::Store;
use crate::host::Host;
use crate::wait::wait_until;

pub(crate) const V4: &str = r#""Network":"10.5.0.0/16""#;
pub(crate) const DUAL: &str =
    r#""Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;
pub(crate) const V6: &str = r#""EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48""#;

/// Two hosts on a network of the given families and backend, whose containers reach each other.
pub(crate) fn pair(families: &str, backend: &str) -> (Store, Host, Host) {
    let store = Store::start(&format!(r#"{{{families},"Backend":{backend}}}"#));
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    (store, one, two)
}

/// Joins, fills the MTU to the last byte and not one more, restarts, and joins a third host late.
pub(crate) fn carries(families: &str, backend: &str, mtu: u32) {
    let (store, mut one, two) = pair(families, backend);
    assert_eq!(one.subnet_env("FLANNEL_MTU"), mtu.to_string());
    for target in two.container_addresses() {
        // IPv4 header 20 or IPv6 header 40, and ICMP 8.
        let largest = mtu - if target.is_ipv4() { 28 } else { 48 };
        assert!(one.reaches_address(target, largest), "{target} {largest}");
        assert!(!one.reaches_address(target, largest + 1), "{target}");
    }
    let before = one.overlay_objects();
    one.kill_agent();
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.overlay_objects(), before);

    let mut three = store.host(3);
    three.join();
    one.wait_reaches(&three);
    three.wait_reaches(&two);
}

#[test]
fn vxlan_v4() {
    carries(V4, r#"{"Type":"vxlan"}"#, 1450);
}

#[test]
fn vxlan_dual_stack() {
    carries(DUAL, r#"{"Type":"vxlan"}"#, 1430);
}

#[test]
fn vxlan_v6() {
    carries(V6, r#"{"Type":"vxlan"}"#, 1430);
}

#[test]
fn vxlan_with_port_mtu_and_all_options() {
    let options = r#"{"Type":"vxlan","VNI":7,"Port":4789,"MTU":1400,"GBP":true,"Learning":true,"Checksum":true}"#;
    carries(DUAL, options, 1330);
}

#[test]
fn vxlan_direct_routing() {
    let backend = r#"{"Type":"vxlan","DirectRouting":true}"#;
    carries(DUAL, backend, 1430);
    let (_store, one, two) = pair(DUAL, backend);
    for target in two.container_addresses() {
        let route = one.namespace.run(&format!("ip route get {target}"));
        assert!(route.contains("dev eth0"), "{route}");
    }
}

#[test]
fn host_gw_v4() {
    carries(V4, r#"{"Type":"host-gw"}"#, 1500);
}

#[test]
fn host_gw_dual_stack() {
    carries(DUAL, r#"{"Type":"host-gw"}"#, 1500);
}

#[test]
fn host_gw_v6() {
    carries(V6, r#"{"Type":"host-gw"}"#, 1500);
}

#[test]
fn host_gw_takes_a_real_flannels_routes_over() {
    let store = Store::start(&format!(r#"{{{V4},"Backend":{{"Type":"host-gw"}}}}"#));
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    two.join();
    let subnet = two.lease_key().replace('-', "/");
    // As flannel leaves it, and as it would be had the subnet been another node's before.
    one.namespace
        .ip(&format!("route add {subnet} via 10.77.0.99 dev eth0"));
    one.join();
    one.wait_reaches(&two);
    let route = one.namespace.run(&format!("ip route show {subnet}"));
    assert_eq!(route.lines().count(), 1, "{route}");
    assert!(route.contains("via 10.77.0.12"), "{route}");
}

#[test]
fn udp_v4() {
    carries(V4, r#"{"Type":"udp"}"#, 1472);
}

#[test]
fn udp_is_what_a_config_without_a_backend_means_and_takes_a_port() {
    let store = Store::start(&format!("{{{V4}}}"));
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    let value = store.etcdctl(&[
        "get",
        "--print-value-only",
        &format!("/coreos.com/network/subnets/{}", one.lease_key()),
    ]);
    assert!(!value.contains("Backend"), "{value}");
    let ports = |host: &Host| host.namespace.run("ss -Huln");
    assert!(ports(&one).contains("10.77.0.11:8285"), "{}", ports(&one));
    assert!(
        one.namespace
            .run("ip route show 10.5.0.0/16")
            .contains("dev flannel0 proto 83 scope link")
    );

    let config = format!(r#"{{{V4},"Backend":{{"Type":"udp","Port":4000}}}}"#);
    store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    for host in [&mut one, &mut two] {
        host.stop_agent();
        host.start_agent();
        host.wait_ready();
    }
    assert!(ports(&one).contains("10.77.0.11:4000"), "{}", ports(&one));
    one.wait_reaches(&two);
    one.stop_agent();
    let links = one.namespace.run("ip -br link show");
    assert!(!links.contains("flannel0"), "{links}");
}

#[test]
fn udp_replaces_a_device_that_somebody_removed() {
    let (_store, one, two) = pair(V4, r#"{"Type":"udp"}"#);
    one.namespace.ip("link del flannel0");
    one.wait_reaches(&two);
    one.namespace.ip("link set flannel0 down");
    one.wait_reaches(&two);
    one.namespace.ip("link set flannel0 mtu 1000");
    wait_until("the MTU to be put right", || {
        one.namespace
            .run("ip link show flannel0")
            .contains("mtu 1472")
    });
}

#[test]
fn udp_waits_for_a_port_that_is_taken() {
    let store = Store::start(&format!(r#"{{{V4},"Backend":{{"Type":"udp"}}}}"#));
    let mut host = store.host(1);
    let hold = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('10.77.0.11', 8285)); time.sleep(60)";
    let mut holder = host.namespace.command("python3");
    let mut taken = holder.args(["-c", hold]).spawn().expect("python3");
    wait_until("the port to be taken", || {
        host.namespace.run("ss -Huln").contains(":8285")
    });
    host.start_agent();
    let reason = "failed to listen on UDP 10.77.0.11:8285";
    host.wait_told(reason, |line| line.contains(reason));
    taken.kill().expect("to kill the holder");
    taken.wait().expect("the holder's end");
    host.wait_ready();
}

/// flannel deletes the route of a peer that is gone by its gateway and device, and gives up where it leads to a next-hop
/// object. A former version made such, and a vxlan before does.
#[test]
fn host_gw_leaves_routes_that_flannel_can_delete() {
    let store = Store::start(&format!(r#"{{{DUAL},"Backend":{{"Type":"host-gw"}}}}"#));
    let lease = r#"{"PublicIP":"10.77.0.99","PublicIPv6":"fd77::99","BackendType":"host-gw"}"#;
    store.put_lease("10.5.7.0-24&fd00:5:0:7::-64", lease);
    let mut host = store.host(1);
    for line in [
        "nexthop add id 0x53000001 via 10.77.0.99 dev eth0 protocol 83",
        "nexthop add id 0x53000002 via fd77::99 dev eth0 protocol 83",
        "route add 10.5.7.0/24 nhid 0x53000001 protocol 83",
        "-6 route add fd00:5:0:7::/64 nhid 0x53000002 protocol 83",
    ] {
        host.namespace.ip(line);
    }
    host.start_agent();
    host.wait_ready();
    let hops = host.namespace.ip("nexthop show");
    assert_eq!(hops, "", "nobody uses them any more");
    host.stop_agent();
    for route in [
        "-4 route del 10.5.7.0/24 via 10.77.0.99 dev eth0",
        "-6 route del fd00:5:0:7::/64 via fd77::99 dev eth0",
    ] {
        host.namespace.ip(route);
    }
}

/// Without next-hop objects the routes bear no mark but the protocol's number and their destination.
#[test]
fn host_gw_leaves_no_route_of_a_network_that_shrank() {
    let config = |length: u8| {
        format!(
            r#"{{"Network":"10.4.0.0/{length}","SubnetLen":24,"Backend":{{"Type":"host-gw"}}}}"#
        )
    };
    let store = Store::start(&config(15));
    let lease = r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"host-gw"}"#;
    store.put_lease("10.5.7.0-24", lease);
    let mut host = store.host(1);
    store.etcdctl(&[
        "put",
        "/coreos.com/network/subnets/10.4.9.0-24",
        &lease.replace("99", &host.address.octets()[3].to_string()),
    ]);
    host.start_agent();
    host.wait_ready();
    assert_eq!(host.lease_key(), "10.4.9.0-24");
    let route = || host.namespace.ip("route show 10.5.7.0/24");
    assert!(route().contains("via 10.77.0.99"), "{}", route());
    store.etcdctl(&["put", "/coreos.com/network/config", &config(16)]);
    wait_until("the route to go", || route().is_empty());
}

/// flannel's default backend, in a network of both families.
#[test]
fn backends_of_ipv4_alone_carry_it_beside_ipv6() {
    // What is said without "Backend" is said with it.
    let store = Store::start(&format!("{{{DUAL}}}"));
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    let [subnet, subnet_v6] =
        ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"].map(|key| one.subnet_env(key));
    assert!(subnet.starts_with("10.5."), "{subnet}");
    assert!(subnet_v6.starts_with("fd00:"), "{subnet_v6}");
    let target = two.container_address().into();
    wait_until("the containers to meet over IPv4", || {
        one.reaches_address(target, 56)
    });
    let said = "this backend carries only IPv4";
    assert!(one.log().contains(said), "{}", one.log());
    let leases = store.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]);
    assert_eq!(leases.matches("\"PublicIPv6\":null").count(), 2, "{leases}");
}

#[test]
fn alloc_leases_a_subnet_and_programs_nothing() {
    for families in [V4, DUAL, V6] {
        let store = Store::start(&format!(r#"{{{families},"Backend":{{"Type":"alloc"}}}}"#));
        let mut host = store.host(1);
        host.start_agent();
        host.wait_ready();
        assert_eq!(host.subnet_env("FLANNEL_MTU"), "1500");
        assert_eq!(store.lease_keys().len(), 1);
        let routes = host.namespace.run("ip route show proto 83");
        assert_eq!(routes, "");
    }
}

#[test]
fn extension_runs_its_commands_and_undoes_what_it_did() {
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log").display().to_string();
    // A pipe and quotes: what flannel's samples need a shell for.
    let backend = format!(
        r#"{{"Type":"extension",
            "PreStartupCommand":"ip -4 -br address show eth0 | awk '{{print \"at\", $3}}'",
            "PostStartupCommand":"echo post $NETWORK $SUBNET $PUBLIC_IP >> {log}",
            "SubnetAddCommand":"read data; ip route replace $SUBNET via $PUBLIC_IP && echo add $SUBNET $PUBLIC_IP $data >> {log}",
            "SubnetRemoveCommand":"ip route del $SUBNET via $PUBLIC_IP; echo del $SUBNET >> {log}"}}"#
    );
    let (store, mut one, mut two) = pair(V4, &backend);
    let (ours, theirs) = (one.lease_key(), two.lease_key());
    let [subnet, peer] = [&ours, &theirs].map(|key| key.replace('-', "/"));
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    let value = store.etcdctl(&[
        "get",
        "--print-value-only",
        &format!("/coreos.com/network/subnets/{ours}"),
    ]);
    assert!(
        value.contains(r#""BackendType":"extension","BackendData":"at 10.77.0.11/24""#),
        "{value}"
    );
    for line in [
        format!("post 10.5.0.0/16 {subnet} 10.77.0.11"),
        format!("add {peer} 10.77.0.12 at 10.77.0.12/24"),
        format!("add {subnet} 10.77.0.11 at 10.77.0.11/24"),
    ] {
        assert!(logged().contains(&line), "{line} is not in\n{}", logged());
    }

    // The peer leaves while the agent does not run.
    two.kill_agent();
    one.kill_agent();
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{theirs}")]);
    one.start_agent();
    one.wait_ready();
    wait_until("the peer's route to be removed", || {
        logged().contains(&format!("del {peer}"))
            && !one.namespace.run("ip route show").contains(&peer)
    });
}

/// flannel's own samples: `add` fails where the work is done already, and the first command makes the device anew.
#[test]
fn extension_with_flannels_samples_survives_restarts_and_changed_configs() {
    let config = |more: &str| {
        format!(
            r#"{{{V4}{more},"Backend":{{"Type":"extension",
                "PreStartupCommand":"ip link del tunnel 2>/dev/null; ip link add tunnel type vxlan id 9 dstport 8999 dev eth0 && ip -br link show tunnel | awk '{{print $3}}'",
                "PostStartupCommand":"ip addr add ${{SUBNET%/*}}/32 dev tunnel && ip link set tunnel up",
                "SubnetAddCommand":"ip route add $SUBNET via $PUBLIC_IP",
                "SubnetRemoveCommand":"ip route del $SUBNET via $PUBLIC_IP"}}}}"#
        )
    };
    let store = Store::start(&config(""));
    let lease =
        r#"{"PublicIP":"10.77.0.99","PublicIPv6":null,"BackendType":"extension","BackendData":""}"#;
    store.put_lease("10.5.207.0-24", lease);
    let mut host = store.host(1);
    for _ in 0..2 {
        host.start_agent();
        host.wait_ready();
        host.kill_agent();
    }
    // A reboot while the peer leaves: there is nothing to undo.
    host.namespace.ip("route del 10.5.207.0/24");
    store.etcdctl(&["del", "/coreos.com/network/subnets/10.5.207.0-24"]);
    host.start_agent();
    host.wait_ready();
    store.put_lease("10.5.208.0-24", lease);
    wait_until("the other peer's route", || {
        host.namespace
            .run("ip route show")
            .contains("10.5.208.0/24")
    });
    assert!(!host.log().contains("failed to program"), "{}", host.log());

    // The device is not there for a moment.
    let show = |what: &str| {
        let shown = host.namespace.try_run(&format!("ip -o {what} show tunnel"));
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let index = || show("link").split(':').next().map(str::to_owned);
    let before = index();
    let put = |config: String| store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    put(config(r#","EnableNFTables":true"#));
    wait_until("the config to be applied", || {
        host.log().contains("the network config changed")
    });
    assert_eq!(index(), before, "what is no affair of the backend's");
    put(config("").replace("dstport 8999", "dstport 8998"));
    wait_until("the new device to be set up", || {
        index() != before && show("address").contains("/32")
    });
}

/// The remedy for a network config that has no place for the host's subnet is to restart the agent.
#[test]
fn a_restart_leaves_nothing_of_the_former_network() {
    let network = |network: &str, vni: u32| {
        format!(r#"{{"Network":"{network}","Backend":{{"Type":"vxlan","VNI":{vni}}}}}"#)
    };
    let store = Store::start(&network("10.5.0.0/16", 1));
    let mut host = store.host(1);
    let restart_in = |host: &mut Host, config: String| {
        host.kill_agent();
        store.etcdctl(&["put", "/coreos.com/network/config", &config]);
        host.start_agent();
        host.wait_ready();
    };
    host.start_agent();
    host.wait_ready();
    restart_in(&mut host, network("10.6.0.0/16", 1));
    let addresses = host.namespace.run("ip -4 address show flannel.1");
    assert!(addresses.contains("inet 10.6."), "{addresses}");
    assert!(!addresses.contains("inet 10.5."), "{addresses}");
    restart_in(&mut host, network("10.6.0.0/16", 2));
    let links = host.namespace.run("ip -br link show type vxlan");
    assert!(links.contains("flannel.2"), "{links}");
    assert!(!links.contains("flannel.1"), "{links}");
    restart_in(
        &mut host,
        r#"{"Network":"10.6.0.0/16","Backend":{"Type":"host-gw"}}"#.to_owned(),
    );
    assert_eq!(host.namespace.run("ip -br link show type vxlan"), "");
}

#[test]
fn mixed_families_meet_where_they_can() {
    // A node that came before IPv6 was switched on has an IPv4 lease still.
    let store = Store::start(&format!(r#"{{{V4},"Backend":{{"Type":"vxlan"}}}}"#));
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    let dual = format!(r#"{{{DUAL},"Backend":{{"Type":"vxlan"}}}}"#);
    store.etcdctl(&["put", "/coreos.com/network/config", &dual]);
    two.join();
    let target = IpAddr::V4(one.container_address());
    wait_until("the two to meet over IPv4", || {
        two.reaches_address(target, 56)
    });
    assert_eq!(two.container_addresses().len(), 2);
}

#[test]
fn blackhole_route_catches_what_no_bridge_takes() {
    let store = Store::start(&format!(r#"{{{DUAL},"Backend":{{"Type":"vxlan"}}}}"#));
    let mut host = store.host(1);
    let blackholes = |host: &Host| {
        [
            "ip route show type blackhole",
            "ip -6 route show type blackhole",
        ]
        .map(|line| host.namespace.run(line))
        .concat()
    };
    host.environment = vec![("SELVAGE_IP_BLACKHOLE_ROUTE", "true".to_owned())];
    host.start_agent();
    host.wait_ready();
    let shown = blackholes(&host);
    assert_eq!(shown.matches("proto 83").count(), 2, "{shown}");
    let address = host.container_addresses()[0];
    let refused = host.namespace.try_run(&format!("ip route get {address}"));
    assert!(!refused.status.success());
    // A bridge's own route is better.
    let gateway = host.subnet_env("FLANNEL_SUBNET");
    host.namespace.ip("link add docker0 type bridge");
    host.namespace.ip("link set docker0 up");
    host.namespace
        .ip(&format!("address add {gateway} dev docker0"));
    let route = host.namespace.run(&format!("ip route get {address}"));
    assert!(route.contains("dev docker0"), "{route}");

    host.stop_agent();
    host.environment.clear();
    host.start_agent();
    host.wait_ready();
    assert_eq!(blackholes(&host), "");
}
