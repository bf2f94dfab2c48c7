//! The kernel monitor: it hears what others change, and is deaf to ourselves.

use std::time::Duration;

use selvage::host::netlink::Monitor;
use selvage::host::reconcile::Counts;

use crate::host::{Host, block_on, peer, peers, subnet};

#[test]
fn the_monitor_hears_of_others_changes_and_not_of_our_own() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&[]).await;
        let mut monitor = Monitor::open(agent.reconciler.executor().kernel()).unwrap();
        agent.resync().await;
        for n in 1..=20 {
            agent.set_peer(&peer(n)).await;
        }
        let delta = agent.plan.remove_peer(&subnet(20));
        agent.update(delta).await;
        let silence = Duration::from_millis(400);
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(heard.is_err(), "it heard our own changes: {heard:?}");

        for (command, args) in [
            ("ip", "link set flannel.1 mtu 1300"),
            ("ip", "address del 10.0.0.0/32 dev flannel.1"),
            ("ip", "neighbor del 10.0.2.0 dev flannel.1"),
            ("bridge", "fdb del 02:00:00:00:00:03 dev flannel.1"),
            ("ip", "route del 10.0.4.0/24"),
            ("ip", "nexthop flush proto 83"),
            ("ip", "link set flannel.1 down"),
            ("ip", "link del flannel.1"),
        ] {
            host.ns.run(command, args);
            let watch = agent.reconciler.watch(&host.underlay);
            let heard = monitor.changed(&watch).await;
            assert!(heard.objects, "{command} {args}: {heard:?}");
            assert!(agent.resync().await.counts.made() > 0, "{command} {args}");
        }
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(heard.is_err(), "it heard our own repairs: {heard:?}");

        host.ns.ip("link set up0 mtu 1400");
        let watch = agent.reconciler.watch(&host.underlay);
        assert!(monitor.changed(&watch).await.underlay);
        host.ns
            .ip("neighbor add 192.0.2.77 lladdr 02:00:00:00:00:77 dev up0");
        host.ns.ip("link add other type bridge");
        host.ns.ip("link set other up");
        // A container's, as the CNI plugin ptp makes them.
        host.ns.ip("route add 10.0.0.7/32 dev other");
        host.ns.ip("route del 10.0.0.7/32 dev other");
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(
            heard.is_err(),
            "it heard what does not concern us: {heard:?}"
        );
    });
}

/// Where a peer is a gateway on the underlay's link, the kernel drops the route when the carrier is lost.
#[test]
fn a_carrier_that_is_back_is_news() {
    let host = Host::new();
    block_on(async {
        let agent = host.agent(&[]).await;
        let mut monitor = Monitor::open(agent.reconciler.executor().kernel()).unwrap();
        let silence = Duration::from_millis(400);
        host.ns.ip("link set up1 down");
        // Else the kernel might tell of both at once.
        host.wait_for_carrier("LOWERLAYERDOWN");
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(heard.is_err(), "{heard:?}");
        host.ns.ip("link set up1 up");
        let watch = agent.reconciler.watch(&host.underlay);
        assert!(monitor.changed(&watch).await.objects);
    });
}

#[test]
fn a_burst_of_our_own_changes_does_not_keep_us_busy() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&peers(5000)).await;
        let mut monitor = Monitor::open(agent.reconciler.executor().kernel()).unwrap();
        agent.resync().await;
        // The notifications of 20,000 changes may not fit the buffer: that is news, once.
        let mut observations = 0;
        loop {
            let watch = agent.reconciler.watch(&host.underlay);
            let quiet = Duration::from_millis(1500);
            let Ok(_) = tokio::time::timeout(quiet, monitor.changed(&watch)).await else {
                break;
            };
            observations += 1;
            assert_eq!(agent.resync().await.counts, Counts::default());
        }
        assert!(
            observations <= 2,
            "{observations} observations of our own changes"
        );
    });
}

#[test]
fn the_monitor_hears_of_the_underlays_addresses_and_of_default_routes() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent(&[]).await;
        let mut monitor = Monitor::open(agent.reconciler.executor().kernel()).unwrap();
        agent.resync().await;
        for change in [
            "address add 192.0.2.9/24 dev up0",
            "address add 2001:db8::9/64 dev up0 nodad",
            "address change 2001:db8::9/64 dev up0 preferred_lft 0 valid_lft 999",
            // As DHCP and router advertisements make them.
            "route add default via 192.0.2.254 metric 100",
            "-6 route add default via 2001:db8::1 dev up0 onlink metric 200",
            "-6 route del default",
            "route del default",
            "address del 192.0.2.9/24 dev up0",
        ] {
            host.ns.ip(change);
            let watch = agent.reconciler.watch(&host.underlay);
            assert!(monitor.changed(&watch).await.underlay, "{change}");
        }
        for change in [
            "address add fe80::9/64 dev up0",
            "address add 192.0.2.99/32 dev up1",
            "route add default via 192.0.2.254 table 77",
            "route add 203.0.113.0/24 via 192.0.2.254",
        ] {
            host.ns.ip(change);
        }
        let watch = agent.reconciler.watch(&host.underlay);
        let silence = Duration::from_millis(400);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(
            heard.is_err(),
            "it heard what does not concern us: {heard:?}"
        );
    });
}
