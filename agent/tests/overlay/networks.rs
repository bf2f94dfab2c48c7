//! Several networks on one host: agents side by side in one network namespace.
//!
//! ```text
//!   node 1                                   node 2
//!   container  container blue                container  container blue
//!   docker0    br-blue                       docker0    br-blue
//!   flannel.1  flannel.2                     flannel.1  flannel.2
//!   eth0 10.77.0.11 ──────────── switch ──── eth0 10.77.0.12
//! ```
//!
//! Whatever is done to one network, a counted flow in the other loses no packet, and its kernel objects stay as they are.

mod apart;
mod flanneld;

use std::time::Duration;

use crate::cluster::Store;
use crate::host::Host;
use crate::kernel::{Flow, wait_for_plan};
use crate::wait::wait_until;

/// Which of a host's two networks is worked on; the other one is watched.
#[derive(Clone, Copy, PartialEq)]
enum Actor {
    Default,
    Blue,
}

/// What is there before the work begins, and whether it goes on.
struct Case {
    /// The backends of the default network and of blue.
    backends: [&'static str; 2],
    actor: Actor,
    firewall: &'static str,
    /// What the actor's backend is changed to.
    other_backend: &'static str,
}

fn network_config(second: u8, backend: &str) -> String {
    format!(r#"{{"Network":"10.{second}.0.0/16","Backend":{backend}}}"#)
}

/// A host in the default network and in blue; both agents look at everything each second.
fn host(store: &Store, number: u8, firewall: &str) -> [Host; 2] {
    let mut default = store.host(number);
    default.environment = vec![
        ("SELVAGE_RESYNC", "1".to_owned()),
        ("SELVAGE_FIREWALL_MODE", firewall.to_owned()),
    ];
    let blue = default.in_network("blue");
    [default, blue]
}

/// Writes the network config of the default network or of blue.
fn set(store: &Store, actor: Actor, config: &str) {
    let key = match actor {
        Actor::Default => "/coreos.com/network/config",
        Actor::Blue => "/coreos.com/network/blue/config",
    };
    store.etcdctl(&["put", key, config]);
}

/// All objects of the network 10.`second`.0.0/16 on a host, whatever made them: routes with their next hops, the device, the
/// rules.
fn objects(host: &Host, second: u8) -> String {
    let run = |line: &str| host.namespace.run(line);
    let routes = run(&format!("ip route show root 10.{second}.0.0/16"));
    let ids: Vec<&str> = routes
        .lines()
        .filter_map(|line| line.split_once("nhid ")?.1.split(' ').next())
        .collect();
    let hops = run("ip nexthop show");
    let hops = hops
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|id| ids.contains(&id)));
    let mut text = format!("{routes}{}\n", hops.collect::<Vec<_>>().join("\n"));
    let addresses = run("ip -o -4 address show");
    let device = addresses
        .lines()
        .filter(|line| line.contains(&format!(" 10.{second}.")))
        .filter_map(|line| line.split_whitespace().nth(1))
        .find(|device| device.starts_with("flannel"));
    if let Some(device) = device {
        for line in [
            "ip -d link show",
            "ip address show",
            "bridge fdb show",
            "ip neighbor show",
        ] {
            let permanent = if line.ends_with("neighbor show") {
                " nud permanent"
            } else {
                ""
            };
            text += &run(&format!("{line} dev {device}{permanent}"));
        }
    }
    // A chain of nobody's has no network in it.
    let rules = run("nft -s list ruleset");
    let of_network = rules
        .lines()
        .filter(|line| line.contains(&format!(" 10.{second}.")));
    text + &of_network.collect::<Vec<_>>().join("\n")
}

/// Both networks on two hosts, then everything that can be done to one of them.
fn work(case: &Case) {
    let [default_config, blue_config] =
        [(5, case.backends[0]), (6, case.backends[1])].map(|(n, b)| network_config(n, b));
    let store = Store::start(&default_config);
    set(&store, Actor::Blue, &blue_config);
    let mut hosts = [1, 2].map(|number| host(&store, number, case.firewall));
    for host in hosts.iter_mut().flatten() {
        host.join();
    }
    let [one, two] = &hosts;
    for network in 0..2 {
        one[network].wait_reaches(&two[network]);
    }
    let (actor, watched, second) = match case.actor {
        Actor::Default => (0, 1, 6),
        Actor::Blue => (1, 0, 5),
    };
    let flow = Flow::start(&one[watched], two[watched].container_address());
    let before = [one, two].map(|host| objects(&host[watched], second));
    assert!(
        before.iter().all(|objects| objects.contains("proto 83")),
        "{before:?}"
    );
    let check = |hosts: &[[Host; 2]; 2], what: &str| {
        for (host, before) in hosts.iter().zip(&before) {
            let now = objects(&host[watched], second);
            assert_eq!(&now, before, "{what} changed the other network");
        }
    };

    // Some periods of comparing everything.
    std::thread::sleep(Duration::from_millis(2500));
    check(&hosts, "comparing");
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        host[actor].start_agent();
        host[actor].wait_ready();
    }
    check(&hosts, "a restart");
    for host in &mut hosts {
        host[actor].kill_agent();
        host[actor].start_agent();
        host[actor].wait_ready();
    }
    check(&hosts, "a crash");

    let config = match case.actor {
        Actor::Default => network_config(5, case.other_backend),
        Actor::Blue => network_config(6, case.other_backend),
    };
    let mtu = hosts[0][actor].subnet_env("FLANNEL_MTU");
    set(&store, case.actor, &config);
    for host in &hosts {
        wait_until("the other backend", || {
            host[actor].subnet_env("FLANNEL_MTU") != mtu
        });
    }
    let [one, two] = &hosts;
    one[actor].wait_reaches(&two[actor]);
    check(&hosts, "another backend");

    // Another network, for which the agents must be started anew.
    set(&store, case.actor, &network_config(7, case.backends[actor]));
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        host[actor].start_agent();
        host[actor].wait_ready();
        assert_eq!(host[actor].subnet_env("FLANNEL_NETWORK"), "10.7.0.0/16");
    }
    for host in &hosts {
        wait_until("the routes to the other network", || {
            objects(&host[actor], 7).contains("proto 83")
        });
        let former = objects(&host[actor], if actor == 0 { 5 } else { 6 });
        assert!(!former.contains("proto 83"), "{former}");
    }
    check(&hosts, "another network");

    let leases = |actor| {
        let below = if actor == 0 { "" } else { "/blue" };
        let prefix = format!("/coreos.com/network{below}/subnets/");
        let keys = store.etcdctl(&["get", "--prefix", "--keys-only", &prefix]);
        keys.lines().filter(|key| !key.is_empty()).count()
    };
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        let before = [leases(actor), leases(watched)];
        let left = host[actor]
            .selvage("leave")
            .output()
            .expect("selvage leave");
        assert!(left.status.success(), "{left:?}");
        assert_eq!([leases(actor) + 1, leases(watched)], before);
        let output = host[actor]
            .selvage("cleanup")
            .output()
            .expect("selvage cleanup");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let left = objects(&host[actor], 7);
        assert!(
            !left.contains("proto 83") && !left.contains("10.7."),
            "{left}"
        );
    }
    check(&hosts, "cleanup");
    std::thread::sleep(Duration::from_millis(1500));
    check(&hosts, "what followed cleanup");
    flow.finish();
    let [one, two] = &hosts;
    assert!(one[watched].reaches(&two[watched]));
    for host in &hosts {
        let log = host[watched].log();
        assert!(!log.contains("WARN"), "{log}");
        // Once at the start, and then never again.
        assert_eq!(log.matches("firewall programmed").count(), 1, "{log}");
        if case.actor == Actor::Blue && case.backends[0].contains("vxlan") {
            wait_for_plan(&store, &host[watched]);
        }
    }
}

const VXLAN_1: &str = r#"{"Type":"vxlan"}"#;
const VXLAN_2: &str = r#"{"Type":"vxlan","VNI":2}"#;
const VXLAN_3: &str = r#"{"Type":"vxlan","VNI":3,"MTU":1400}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;

#[test]
fn vxlan_stays_whole_whatever_a_named_vxlan_does() {
    work(&Case {
        backends: [VXLAN_1, VXLAN_2],
        actor: Actor::Blue,
        firewall: "nftables",
        other_backend: VXLAN_3,
    });
}

#[test]
fn named_vxlan_stays_whole_whatever_the_default_vxlan_does() {
    work(&Case {
        backends: [VXLAN_1, VXLAN_2],
        actor: Actor::Default,
        firewall: "iptables",
        other_backend: HOST_GW,
    });
}

#[test]
fn vxlan_stays_whole_whatever_a_named_host_gw_does() {
    work(&Case {
        backends: [VXLAN_1, HOST_GW],
        actor: Actor::Blue,
        firewall: "iptables",
        other_backend: VXLAN_3,
    });
}

/// Both have next hops over the same device to the same addresses.
#[test]
fn host_gw_stays_whole_whatever_a_named_host_gw_does() {
    work(&Case {
        backends: [HOST_GW, HOST_GW],
        actor: Actor::Blue,
        firewall: "nftables",
        other_backend: VXLAN_2,
    });
}

#[test]
fn named_host_gw_stays_whole_whatever_the_default_host_gw_does() {
    work(&Case {
        backends: [HOST_GW, HOST_GW],
        actor: Actor::Default,
        firewall: "nftables",
        other_backend: VXLAN_2,
    });
}

#[test]
fn udp_networks_have_devices_of_their_own() {
    let udp = |port: u16| format!(r#"{{"Type":"udp","Port":{port}}}"#);
    let store = Store::start(&network_config(5, &udp(8285)));
    set(&store, Actor::Blue, &network_config(6, &udp(8286)));
    let mut hosts = [1, 2].map(|number| host(&store, number, "nftables"));
    for host in hosts.iter_mut().flatten() {
        host.join();
    }
    let [one, two] = &mut hosts;
    for network in 0..2 {
        one[network].wait_reaches(&two[network]);
    }
    let show = |host: &Host| host.namespace.ip("route show proto 83");
    let routes = show(&one[0]);
    assert!(routes.contains("10.5.0.0/16 dev flannel0"), "{routes}");
    assert!(routes.contains("10.6.0.0/16 dev flannel1"), "{routes}");
    let flow = Flow::start(&one[1], two[1].container_address());
    for host in [&mut *one, &mut *two] {
        host[0].kill_agent();
        host[0].start_agent();
        host[0].wait_ready();
        host[0].stop_agent();
        assert!(
            host[0]
                .selvage("cleanup")
                .status()
                .expect("cleanup")
                .success()
        );
        let routes = show(&host[1]);
        assert_eq!(routes.trim(), "10.6.0.0/16 dev flannel1 scope link");
    }
    flow.finish();
}

#[test]
fn networks_of_both_families_stay_apart() {
    let config = |second: u8, vni: u8| {
        format!(
            r#"{{"Network":"10.{second}.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:{second}::/48","Backend":{{"Type":"vxlan","VNI":{vni}}}}}"#
        )
    };
    let store = Store::start(&config(5, 1));
    set(&store, Actor::Blue, &config(6, 2));
    let mut hosts = [1, 2].map(|number| host(&store, number, "nftables"));
    for host in hosts.iter_mut().flatten() {
        host.environment
            .push(("SELVAGE_IP_BLACKHOLE_ROUTE", "true".to_owned()));
        host.join();
    }
    let [one, two] = &mut hosts;
    for network in 0..2 {
        one[network].wait_reaches(&two[network]);
    }
    let v6 = |host: &Host, second: u8| {
        let routes = host
            .namespace
            .ip(&format!("-6 route show root fd00:{second}::/48"));
        let device = host
            .namespace
            .ip(&format!("address show flannel-v6.{}", second - 4));
        routes + &device
    };
    for (actor, watched, second) in [(1, 0, 5), (0, 1, 6)] {
        let former = if second == 5 { 6 } else { 5 };
        let before = [objects(&one[watched], second), v6(&one[watched], second)];
        assert!(
            before.iter().all(|text| text.contains("blackhole")),
            "{before:?}"
        );
        one[actor].kill_agent();
        one[actor].start_agent();
        one[actor].wait_ready();
        one[actor].stop_agent();
        let status = one[actor].selvage("cleanup").status();
        assert!(status.expect("selvage cleanup").success());
        let after = [objects(&one[watched], second), v6(&one[watched], second)];
        assert_eq!(after, before);
        let left = one[actor]
            .namespace
            .ip(&format!("-6 route show root fd00:{former}::/48 proto 83"));
        assert_eq!(left, "");
        assert!(one[watched].reaches(&two[watched]));
        one[actor].start_agent();
        one[actor].wait_ready();
    }
}
