//! The udp backend's objects: some are the kernel's, some our data plane's, and all are kept alike.

use std::sync::Arc;
use std::time::Duration;

use selvage::cluster::lease::Lease;
use selvage::host::netlink::Kernel;
use selvage::host::reconcile::Counts;
use selvage::plan::underlay::Underlay;

use crate::host::{Agent, Host, Notifications, block_on, peer};

/// A peer without a type, as udp nodes are.
fn udp_peer(n: u16) -> Lease {
    let mut lease = peer(n);
    lease.attrs.backend_type.clear();
    lease.attrs.backend_data = None;
    lease
}

fn udp_peers(count: u16) -> Vec<Lease> {
    (1..=count).map(udp_peer).collect()
}

async fn agent(host: &Host, options: &str, peers: &[Lease]) -> Agent {
    let config = format!(r#"{{"Type":"udp"{options}}}"#);
    host.agent_configured(0, &config, peers).await
}

/// Takes over another underlay or another config, as the agent does while it runs.
fn turn(agent: &mut Agent, backend: Box<dyn selvage::plan::backend::Backend>, peers: &[Lease]) {
    let own = crate::host::subnet(0);
    let backend: Arc<dyn selvage::plan::backend::Backend> = backend.into();
    let peers = peers.iter().cloned().map(Arc::new);
    let plan = selvage::plan::backend::plan::Plan::new(Arc::clone(&backend), &own, peers);
    agent.plan = plan;
    agent.reconciler.set_scope(backend.scope());
    agent.reconciler.set_desired(agent.plan.state());
    agent.backend = backend;
}

fn listens_at(host: &Host, port: u16) -> bool {
    let sockets = host.ns.run("ss", "-Huln");
    sockets.contains(&format!("192.0.2.1:{port}"))
}

#[test]
fn a_peer_is_one_change_and_none_in_the_kernel() {
    let host = Host::new();
    block_on(async {
        let mut agent = agent(&host, "", &udp_peers(2)).await;
        assert_eq!(agent.resync().await.counts.created, 3 + 2);
        let device = host.ns.ip("-d link show flannel0");
        for part in ["mtu 1472", "UP", "tun type tun"] {
            assert!(device.contains(part), "{part} is not in {device}");
        }
        assert_eq!(host.ns.ip("-6 address show dev flannel0"), "");
        let route = host.ns.ip("route show dev flannel0");
        assert_eq!(route.trim(), "10.0.0.0/8 proto 83 scope link");
        assert_eq!(agent.resync().await.counts, Counts::default());
        host.ns.output("ping", "-c 1 -W 1 10.0.2.1");
        host.ns.output("ping", "-c 1 -W 1 10.0.9.1");
        // This host has no way to the peer itself. A packet is counted after it was answered.
        let counted = || {
            let counters = agent.reconciler.executor().data_plane_counters().unwrap();
            (counters.send_failed, counters.no_route) == (1, 1)
        };
        while !counted() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        let notifications = Notifications::listen();
        assert_eq!(agent.set_peer(&udp_peer(3)).await.counts.created, 1);
        let mut moved = udp_peer(3);
        moved.attrs.public_ip = Some([203, 0, 113, 3].into());
        assert_eq!(agent.set_peer(&moved).await.counts.changed, 1);
        let delta = agent.plan.remove_peer(&udp_peer(1).key);
        assert_eq!(agent.update(delta).await.counts.removed, 1);
        assert_eq!(notifications.count(), 0);
        assert_eq!(agent.resync().await.counts, Counts::default());
    });
}

#[test]
fn ten_thousand_peers_are_one_table() {
    let host = Host::new();
    block_on(async {
        let peers = udp_peers(10_000);
        let mut agent = agent(&host, "", &peers).await;
        let report = agent.resync().await;
        assert_eq!(report.counts.created, 3 + 10_000);
        println!("10,000 peers in {:?}", report.took);
        let report = agent.resync().await;
        assert_eq!(report.counts, Counts::default());
        println!("resync of 10,000 peers in {:?}", report.took);
        let report = agent.set_peer(&udp_peer(10_001)).await;
        assert_eq!(report.counts.created, 1);
        println!("one more peer in {:?}", report.took);
    });
}

#[test]
fn the_device_follows_underlay_and_config() {
    let host = Host::new();
    block_on(async {
        let peers = udp_peers(3);
        let mut agent = agent(&host, "", &peers).await;
        agent.resync().await;
        let index = host.ns.ip("-o link show flannel0");
        assert!(listens_at(&host, 8285));

        // Another MTU leaves the device and what is on it in place.
        let smaller = Underlay {
            mtu: 1400,
            ..host.underlay.clone()
        };
        let backend = agent.backend.over(&smaller);
        turn(&mut agent, backend, &peers);
        assert_eq!(agent.resync().await.counts.changed, 1);
        let now = host.ns.ip("-o link show flannel0");
        assert!(now.contains("mtu 1372"), "{now}");
        assert_eq!(now.split(':').next(), index.split(':').next());

        // Another port is another socket, so that all must be made anew.
        let backend = host
            .open(
                r#"{"Type":"udp","Port":4000}"#,
                agent.reconciler.executor_mut(),
            )
            .await;
        turn(&mut agent, backend, &peers);
        agent.resync().await;
        assert!(listens_at(&host, 4000) && !listens_at(&host, 8285));
        assert_eq!(agent.resync().await.counts, Counts::default());

        // Somebody removes the device, and the data plane with it.
        host.ns.ip("link del flannel0");
        assert_eq!(agent.resync().await.counts.created, 3 + 3);
        assert_eq!(agent.resync().await.counts, Counts::default());

        // Another backend: nothing of this one stays.
        let backend = host
            .open(r#"{"Type":"vxlan"}"#, agent.reconciler.executor_mut())
            .await;
        turn(&mut agent, backend, &[peer(1)]);
        agent.resync().await;
        assert!(!listens_at(&host, 4000));
        assert!(!host.ns.ip("-br link show").contains("flannel0"));
        assert!(host.ns.ip("-br link show").contains("flannel.1"));
    });
}

#[test]
fn a_device_of_that_name_that_is_not_ours_is_replaced() {
    let host = Host::new();
    host.ns.ip("tuntap add flannel0 mode tun");
    block_on(async {
        let mut agent = agent(&host, "", &udp_peers(1)).await;
        agent.resync().await;
        assert!(listens_at(&host, 8285));
        assert_eq!(agent.resync().await.counts, Counts::default());
        assert!(matches!(
            Kernel::open()
                .unwrap()
                .link(&"flannel0".parse().unwrap())
                .await,
            Ok(Some(selvage::plan::state::Object::OtherLink))
        ));
    });
}
