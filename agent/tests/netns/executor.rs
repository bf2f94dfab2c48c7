//! The executor against the real kernel: adoption, repair, restart, and what is left alone.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use selvage::cluster::lease::Lease;
use selvage::host::executor::Executor;
use selvage::host::netlink::{ChangeError, Kernel};
use selvage::host::open::open;
use selvage::host::reconcile::Counts;
use selvage::plan::backend::{BackendConfig, Setup};
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::host::{Host, Notifications, attachment, block_on, network_config, peer, peers, subnet};
use crate::netns::NetNs;

mod devices;

fn mac_of(ns: &NetNs, link: &str) -> String {
    let shown = ns.ip(&format!("-o link show {link}"));
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    words.next().unwrap().to_owned()
}

/// What another flannel implementation leaves behind for the peers, in flannel's own order.
fn leave_as_flannel(host: &Host, peers: &[Lease]) {
    host.ns.ip("link add flannel.1 address c6:d2:32:6f:8f:44 mtu 1450 type vxlan id 1 dev up0 local 192.0.2.1 dstport 8472 nolearning");
    host.ns.ip("address add 10.0.0.0/32 dev flannel.1");
    host.ns.ip("link set flannel.1 up");
    for peer in peers {
        let subnet = peer.key.v4.unwrap();
        let gateway = subnet.network();
        let public_ip = peer.attrs.public_ip.unwrap();
        let [_, _, high, low] = public_ip.octets();
        let mac = format!("02:00:00:00:{high:02x}:{low:02x}");
        host.ns.ip(&format!(
            "neighbor add {gateway} lladdr {mac} dev flannel.1 nud permanent"
        ));
        host.ns.run(
            "bridge",
            &format!("fdb append {mac} dev flannel.1 dst {public_ip} self permanent",),
        );
        host.ns.ip(&format!(
            "route add {subnet} via {gateway} dev flannel.1 onlink",
        ));
    }
}

#[test]
fn a_start_programs_device_and_peers_and_a_restart_changes_nothing() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(2)).await;
        let report = agent.resync().await;
        assert_eq!(report.counts.created, 2 + 2 * 4);
        let device = host.ns.ip("-d link show flannel.1");
        for part in [
            "mtu 1450",
            "UP",
            "vxlan id 1 local 192.0.2.1 dev up0",
            "dstport 8472 nolearning",
            "noudpcsum",
        ] {
            assert!(device.contains(part), "no {part:?} in {device}");
        }
        assert!(
            host.ns
                .ip("address show flannel.1")
                .contains("inet 10.0.0.0/32")
        );
        let route = host.ns.ip("route show 10.0.1.0/24");
        for part in ["nhid", "via 10.0.1.0 dev flannel.1", "proto 83", "onlink"] {
            assert!(route.contains(part), "no {part:?} in {route}");
        }
        assert!(
            host.ns
                .ip("neighbor show dev flannel.1")
                .contains("10.0.1.0 lladdr 02:00:00:00:00:01 PERMANENT")
        );
        assert!(
            host.fdb()
                .contains("02:00:00:00:00:01 dst 198.18.0.1 self permanent"),
            "{}",
            host.fdb()
        );
        // What the host itself sends comes from the address that peers know.
        let sent = host.ns.ip("route get 10.0.1.9");
        assert!(sent.contains("src 10.0.0.0"), "{sent}");
        let accept_ra = std::fs::read_to_string("/proc/sys/net/ipv6/conf/flannel.1/accept_ra");
        assert_eq!(accept_ra.unwrap().trim(), "0");

        let notifications = Notifications::listen();
        let mac = mac_of(&host.ns, "flannel.1");
        let mut restarted = host.agent(&peers(2)).await;
        assert_eq!(restarted.resync().await.counts, Counts::default());
        assert_eq!(restarted.resync().await.counts, Counts::default());
        assert_eq!(
            notifications.count(),
            0,
            "a restart made the kernel change something"
        );
        assert_eq!(mac_of(&host.ns, "flannel.1"), mac);
    });
}

#[test]
fn a_dead_flannels_state_is_adopted_without_recreating_anything() {
    let host = Host::new();
    leave_as_flannel(&host, &peers(3));
    let index = if_nametoindex("flannel.1").unwrap();
    block_on(async {
        // Peer 3 is gone: its leftovers are stale.
        let mut agent = host.agent(&peers(2)).await;
        let attrs = agent.backend.lease_attrs();
        assert_eq!(
            attrs.backend_data.unwrap().get(),
            r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#
        );
        let report = agent.resync().await;
        let expected = Counts {
            created: 2, // next hops
            changed: 2, // routes that use them
            removed: 3, // the stale peer's
            failed: 0,
        };
        assert_eq!(report.counts, expected);
        assert_eq!(if_nametoindex("flannel.1").unwrap(), index);
        let routes = host.ns.ip("route");
        assert!(!routes.contains("10.0.3.0"), "{routes}");
        assert_eq!(routes.matches("proto 83").count(), 2, "{routes}");
        assert!(!host.fdb().contains("198.18.0.3"));
        assert!(!host.ns.ip("neighbor").contains("10.0.3.0"));
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
    let kept = std::fs::read_to_string(host.state_dir.path().join("flannel.1.mac"));
    assert_eq!(kept.unwrap().trim(), "c6:d2:32:6f:8f:44");
}

#[test]
fn the_mac_survives_the_device() {
    let host = Host::new();
    block_on(async {
        host.agent(&[]).await.resync().await;
        let mac = mac_of(&host.ns, "flannel.1");
        host.ns.ip("link del flannel.1");
        host.agent(&[]).await.resync().await;
        assert_eq!(mac_of(&host.ns, "flannel.1"), mac);
    });
}

#[test]
fn a_thousand_peers_are_programmed_and_heal_after_the_device_is_deleted() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(1000)).await;
        let report = agent.resync().await;
        assert_eq!(report.counts.created, 2 + 4000);
        host.ns.ip("link del flannel.1");
        let report = agent.resync().await;
        assert_eq!(report.counts.created, 2 + 4000);
        assert_eq!(host.ns.ip("route show proto 83").lines().count(), 1000);
        assert_eq!(host.ns.ip("nexthop show proto 83").lines().count(), 1000);
        host.ns.ip("link set flannel.1 down");
        let report = agent.resync().await;
        let expected = Counts {
            created: 3000, // the kernel keeps the forwarding entries alone
            changed: 1,
            removed: 0,
            failed: 0,
        };
        assert_eq!(report.counts, expected);
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
}

#[test]
fn one_peers_change_touches_only_that_peer() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(10)).await;
        agent.resync().await;
        let notifications = Notifications::listen();

        let mut moved = peer(4);
        moved.attrs.public_ip = Some(Ipv4Addr::new(198, 18, 99, 4));
        assert_eq!(agent.set_peer(&moved).await.counts.made(), 1);
        assert_eq!(notifications.count(), 1);
        assert!(host.fdb().contains("02:00:00:00:00:04 dst 198.18.99.4"));
        assert!(!host.fdb().contains("198.18.0.4 "));

        moved.attrs.backend_data =
            Some(RawValue::from_string(r#"{"vtepmac":"0A-00-00-00-00-04"}"#.into()).unwrap());
        assert_eq!(agent.set_peer(&moved).await.counts.made(), 3);
        assert!(host.fdb().contains("0a:00:00:00:00:04 dst 198.18.99.4"));
        assert!(!host.fdb().contains("02:00:00:00:00:04"));

        assert_eq!(agent.set_peer(&peer(11)).await.counts.created, 4);
        let delta = agent.plan.remove_peer(&subnet(11));
        assert_eq!(agent.update(delta).await.counts.removed, 4);
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
}

#[test]
fn what_flannel_left_of_another_backend_is_no_obstacle() {
    let host = Host::new();
    host.ns.ip("link add flannel.9 type bridge");
    host.ns.ip("link set flannel.9 up");
    let gone = [
        // Of its own subnet, by --ip-blackhole-route.
        "blackhole 10.0.1.0/24",
        // By host-gw, and by vxlan of another VNI.
        "10.0.2.0/24 via 192.0.2.77 dev up0",
        "10.0.3.0/24 via 10.0.3.0 dev flannel.9 onlink",
    ];
    let kept = [
        "blackhole 10.0.4.0/24 proto static",
        "10.0.5.0/24 via 192.0.2.77 dev up0 proto static",
    ];
    for route in gone.iter().chain(&kept) {
        host.ns.ip(&format!("route add {route}"));
    }
    block_on(async {
        let mut agent = host.agent(&peers(5)).await;
        let report = agent.reconciler.resync().await.unwrap();
        let shown = host.ns.ip("route show");
        for n in 1..=3 {
            let gateway = format!("10.0.{n}.0 dev flannel.1");
            assert!(shown.contains(&gateway), "{:?}\n{shown}", report.failures);
        }
        for route in gone {
            assert!(!shown.contains(route), "{route} is left:\n{shown}");
        }
        for route in kept {
            assert!(shown.contains(route), "{route} is gone:\n{shown}");
        }
        assert_eq!(report.failures.len(), kept.len(), "{:?}", report.failures);
    });
}

#[test]
fn a_subnet_that_was_the_hosts_own_is_a_peers_at_once() {
    let host = Host::new();
    block_on(async {
        drop(host.agent_of(1, &[]).await.resync().await);
        let mut agent = host.agent_of(2, &peers(1)).await;
        let report = agent.reconciler.resync().await.unwrap();
        assert_eq!(report.failures.len(), 0, "{:?}", report.failures);
        assert!(host.ns.ip("route show 10.0.1.0/24").contains("flannel.1"));
    });
}

#[test]
fn what_others_made_is_left_alone() {
    let host = Host::new();
    host.ns.ip("link add other type bridge");
    host.ns.ip("link set other up");
    host.ns.ip("route add 10.0.1.0/24 dev other");
    host.ns.ip("route add 10.0.2.0/24 dev other metric 100");
    host.ns.ip("nexthop add id 7 dev other");
    host.ns.ip("route add 10.0.77.0/24 dev other proto static");
    block_on(async {
        let mut agent = host.agent(&peers(2)).await;
        let report = agent.reconciler.resync().await.unwrap();
        let [failure] = report.failures.as_slice() else {
            panic!("{:?}", report.failures)
        };
        assert!(
            matches!(&failure.error, ChangeError::Conflict { existing } if existing.contains("10.0.1.0/24")),
            "{failure}"
        );
        assert!(host.ns.ip("route show 10.0.2.0/24").contains("flannel.1"));
        // What an administrator puts on the device beside the overlay stays, too.
        host.ns
            .ip("route add 172.31.0.0/16 via 10.0.2.0 dev flannel.1 onlink");
        host.ns.ip("address add 172.30.0.1/32 dev flannel.1");
        agent.reconciler.resync().await.unwrap();

        // A change of the peer in question must not clobber the other's route either.
        let mut moved = peer(1);
        moved.attrs.public_ip = Some([192, 0, 2, 200].into());
        let delta = agent.plan.set_peer(&Arc::new(moved.clone()));
        let report = agent.reconciler.update(delta).await.unwrap();
        assert_eq!(report.counts.changed, 1, "the forwarding entry");
        assert!(matches!(
            report.failures[0].error,
            ChangeError::Conflict { .. }
        ));
        assert!(host.ns.ip("route show 10.0.1.0/24").contains("dev other"));

        // The obstacle goes away.
        host.ns.ip("route del 10.0.1.0/24 dev other");
        assert_eq!(agent.resync().await.counts.created, 1);
        let before = host.ns.ip("route show dev other");
        assert!(host.ns.ip("route").contains("172.31.0.0/16"));
        assert!(host.ns.ip("address show flannel.1").contains("172.30.0.1"));

        let report = agent.reconciler.remove_all().await.unwrap();
        assert!(report.is_complete(), "{:?}", report.failures);
        assert_eq!(host.ns.ip("route show dev other"), before);
        assert!(host.ns.ip("nexthop").starts_with("id 7 "));
        assert_eq!(host.ns.ip("nexthop").lines().count(), 1);
        assert!(!host.ns.ip("link").contains("flannel.1"));
    });
}

#[test]
fn every_refusal_is_told_of_the_change_it_belongs_to() {
    let host = Host::new();
    let in_the_way = |n: u16| n.is_multiple_of(37);
    for n in (1..=500).filter(|&n| in_the_way(n)) {
        host.ns.ip(&format!("route add {} dev up0", subnet(n)));
    }
    block_on(async {
        let mut agent = host.agent(&peers(500)).await;
        let report = agent.reconciler.resync().await.unwrap();
        let told: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        let expected: Vec<String> = (1..=500)
            .filter(|&n| in_the_way(n))
            .map(|n| {
                let subnet = subnet(n).v4.unwrap();
                let gateway = subnet.network();
                format!(
                    "failed to add route {subnet} via {gateway} dev flannel.1 onlink: \
                     another program's route is in the way: {subnet} proto 3 dev up0"
                )
            })
            .collect();
        assert_eq!(told, expected);
        assert_eq!(report.counts.created, 2 + 4 * 500 - expected.len() as u64);
    });
}

#[test]
fn without_next_hop_objects_routes_carry_their_gateways() {
    let host = Host::new();
    block_on(async {
        let config = r#"{"Type":"vxlan"}"#;
        let executor = Executor::new(Kernel::open().unwrap().without_next_hops());
        let mut agent = host.agent_with(executor, 0, config, &peers(3)).await;
        assert_eq!(agent.resync().await.counts.created, 2 + 3 * 3);
        assert!(host.ns.ip("nexthop").is_empty());
        let route = host.ns.ip("route show 10.0.1.0/24");
        assert!(
            !route.contains("nhid") && route.contains("onlink"),
            "{route}"
        );
        assert_eq!(agent.resync().await.counts, Counts::default());
        let delta = agent.plan.remove_peer(&subnet(3));
        assert_eq!(agent.update(delta).await.counts.removed, 3);

        // The kernel is upgraded: the routes change over.
        let mut agent = host.agent(&peers(2)).await;
        let counts = agent.resync().await.counts;
        assert_eq!((counts.created, counts.changed), (2, 2));
        assert_eq!(host.ns.ip("route show proto 83").matches("nhid").count(), 2);
    });
}

/// On such kernels a route over the underlay is known by its destination.
#[test]
fn a_network_that_shrinks_leaves_no_route_behind() {
    let host = Host::new();
    block_on(async {
        let near = |n: u16, last: u8| {
            let mut peer = peer(n);
            peer.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, last));
            peer.attrs.backend_type = "host-gw".into();
            peer.attrs.backend_data = None;
            peer
        };
        let (stays, goes) = (near(1, 11), near(0x8001, 12));
        let executor = Executor::new(Kernel::open().unwrap().without_next_hops());
        let config = r#"{"Type":"host-gw"}"#;
        let mut agent = host.agent_with(executor, 0, config, &[stays, goes]).await;
        agent.resync().await;
        let routes = || host.ns.ip("route show proto 83");
        assert!(routes().contains("10.128.1.0/24"), "{}", routes());

        let mut scope = agent.backend.scope();
        scope.networks = vec!["10.0.0.0/9".parse().unwrap()];
        agent.plan.remove_peer(&subnet(0x8001));
        agent.reconciler.set_desired(agent.plan.state());
        agent.reconciler.set_scope(scope.clone());
        agent.resync().await;
        assert!(routes().contains("10.0.1.0/24"), "{}", routes());
        assert!(!routes().contains("10.128.1.0/24"), "{}", routes());
        // From then on what is there is somebody else's.
        agent.reconciler.set_networks(scope.networks);
        host.ns
            .ip("route add 10.128.1.0/24 via 192.0.2.12 proto 83");
        agent.resync().await;
        assert!(routes().contains("10.128.1.0/24"), "{}", routes());
    });
}

#[test]
fn routes_are_known_by_their_next_hops_alone() {
    let host = Host::new();
    std::fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0").unwrap();
    block_on(async {
        host.agent(&peers(3)).await.resync().await;
        let mut restarted = host.agent(&peers(3)).await;
        assert_eq!(restarted.resync().await.counts, Counts::default());
    });
}

#[test]
fn numbers_of_next_hops_step_aside_for_other_programs() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(1)).await;
        agent.resync().await;
        let hop = host.ns.ip("nexthop show proto 83");
        let id = hop.split_whitespace().nth(1).unwrap().to_owned();
        let delta = agent.plan.remove_peer(&subnet(1));
        agent.update(delta).await;
        // Another program takes the number behind our back.
        host.ns.ip(&format!("nexthop add id {id} dev up0"));
        agent.set_peer(&peer(1)).await;
        assert!(
            host.ns
                .ip(&format!("nexthop show id {id}"))
                .contains("dev up0")
        );
        let route = host.ns.ip("route show 10.0.1.0/24");
        assert!(
            route.contains("dev flannel.1") && !route.contains(&format!("nhid {id} ")),
            "{route}"
        );
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
}

#[test]
fn direct_routing_uses_the_underlay_where_it_reaches() {
    let host = Host::new();
    block_on(async {
        let mut near = peer(1);
        near.attrs.public_ip = Some(Ipv4Addr::new(192, 0, 2, 11));
        let mut twin = peer(2);
        twin.attrs.public_ip = near.attrs.public_ip;
        let config = r#"{"Type":"vxlan","Directrouting":true}"#;
        let peers = [near, twin, peer(3)];
        // A flannel that did the same left its route: it leads where ours would, so it is taken over.
        host.ns.ip("route add 10.0.1.0/24 via 192.0.2.11");
        let mut agent = host.agent_configured(0, config, &peers).await;
        assert_eq!(agent.resync().await.counts.created, 2 + 1 + 2 + 4);
        let route = host.ns.ip("route show 10.0.1.0/24");
        assert!(route.contains("via 192.0.2.11 dev up0 proto 83"), "{route}");
        assert!(
            host.ns
                .ip("route show 10.0.3.0/24")
                .contains("dev flannel.1")
        );
        // Both share the next hop; the one that leaves must not take the other's along.
        let delta = agent.plan.remove_peer(&subnet(1));
        assert_eq!(agent.update(delta).await.counts.removed, 1);
        assert!(
            host.ns
                .ip("route show 10.0.2.0/24")
                .contains("via 192.0.2.11 dev up0")
        );
        assert_eq!(agent.resync().await.counts, Counts::default());
        assert!(agent.reconciler.remove_all().await.unwrap().is_complete());
        assert!(host.ns.ip("route show proto 83").is_empty());
        assert!(host.ns.ip("nexthop").is_empty());
    });
}

#[test]
fn the_state_directory_is_made_when_missing() {
    let mut host = Host::new();
    let missing = host.state_dir.path().join("a/b");
    host.state_dir = TempDir::with_prefix_in("x", host.state_dir.path()).unwrap();
    block_on(async {
        let config = network_config(r#"{"Type":"vxlan","VNI":7}"#);
        let setup = Setup {
            config: &config,
            underlay: &host.underlay,
            state_dir: &missing,
            new_identity: false,
            printed: None,
        };
        let backend = BackendConfig::parse(&config).unwrap();
        let mut executor = Executor::open().unwrap();
        open(&backend, setup, &mut executor).await.unwrap();
        assert!(Path::new(&missing).join("flannel.7.mac").exists());
    });
}
