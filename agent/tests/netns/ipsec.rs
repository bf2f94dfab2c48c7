//! The ipsec backend's policies and routes in a real kernel, without charon: what flannel left is taken over, what others
//! change is heard of and set right, and what goes leaves nothing.

use std::time::Duration;

use selvage::cluster::lease::Lease;
use selvage::host::netlink::Monitor;
use selvage::host::reconcile::Counts;

use crate::host::{Host, block_on, peer, subnet};

const CONFIG: &str = r#"{"Type":"ipsec","PSK":"4bc1e570ff249cce3cc8cef5e2f8625bac76c7b02532f8bde9747196eb15a742480e265bbc0c60c265a8fe4eb6380cd1"}"#;

/// Eight policies for no peer, and the route to the network.
const OWN: u64 = 9;

/// Three policies for a peer. Its connection is charon's, whom nobody tells here: it is asked for in each pass.
const FOR_PEER: u64 = 3;

fn ipsec_peer(n: u16) -> Lease {
    let mut lease = peer(n);
    lease.attrs.backend_type = "ipsec".to_owned();
    lease.attrs.backend_data = None;
    lease
}

/// The policies, one a line.
fn policies(host: &Host) -> Vec<String> {
    let text = host.ns.ip("xfrm policy").replace("\n\t", " ");
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<_> = text.lines().map(squeeze).collect();
    lines.sort();
    lines
}

#[test]
fn policies_follow_the_peers() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent_configured(0, CONFIG, &[]).await;
        assert_eq!(agent.resync().await.counts.created, OWN);
        let own = policies(&host);
        assert_eq!(own.len(), 8);
        agent.set_peer(&ipsec_peer(1)).await;
        let with_peer = policies(&host);
        assert_eq!(with_peer.len(), 11);
        assert!(
            with_peer
                .iter()
                .any(|line| line.starts_with("src 10.0.0.0/24 dst 10.0.1.0/24"))
        );
        // The peer gets another address.
        let mut moved = ipsec_peer(1);
        moved.attrs.public_ip = Some([198, 51, 100, 9].into());
        agent.set_peer(&moved).await;
        let text = policies(&host).concat();
        assert_eq!(policies(&host).len(), 11);
        assert!(
            text.contains("198.51.100.9") && !text.contains("198.18."),
            "{text}"
        );
        let delta = agent.plan.remove_peer(&subnet(1));
        agent.update(delta).await;
        assert_eq!(policies(&host), own);
        assert_eq!(agent.resync().await.counts, Counts::default());
        agent.reconciler.remove_all().await.unwrap();
        assert!(policies(&host).is_empty());
        assert_eq!(host.ns.ip("route show 10.0.0.0/8"), "");
    });
}

#[test]
fn what_flannel_or_an_earlier_run_left_is_taken_over() {
    let host = Host::new();
    // As `AddXFRMPolicy` of flannel's `handle_xfrm.go` makes them; the second peer is gone.
    for (theirs, public) in [("10.0.1.0/24", "198.18.0.1"), ("10.0.2.0/24", "198.18.0.2")] {
        for (direction, from, to, outer, end) in [
            ("out", "10.0.0.0/24", theirs, "192.0.2.1", public),
            ("in", theirs, "10.0.0.0/24", public, "192.0.2.1"),
            ("fwd", theirs, "10.0.0.0/24", public, "192.0.2.1"),
        ] {
            host.ns.ip(&format!(
                "xfrm policy add src {from} dst {to} dir {direction} tmpl src {outer} dst {end} proto esp reqid 11 mode tunnel"
            ));
        }
    }
    // The host had another address.
    let former = "src 192.0.2.77/32 dst 10.0.0.0/8 dir out action block priority 2147442207";
    host.ns.ip(&format!("xfrm policy add {former}"));
    let others = "src 198.51.100.0/24 dst 203.0.113.0/24 dir out";
    host.ns.ip(&format!(
        "xfrm policy add {others} tmpl src 192.0.2.1 dst 192.0.2.9 proto esp reqid 11 mode tunnel"
    ));
    block_on(async {
        let mut agent = host.agent_configured(0, CONFIG, &[ipsec_peer(1)]).await;
        let counts = agent.resync().await.counts;
        // The connection is no object of the kernel's.
        assert_eq!(
            (counts.created, counts.changed, counts.removed),
            (OWN + 1, 0, FOR_PEER + 1)
        );
        let text = policies(&host).concat();
        assert!(!text.contains("10.0.2.0/24"), "{text}");
        assert!(!text.contains("192.0.2.77"), "{text}");
        agent.reconciler.remove_all().await.unwrap();
        let left = policies(&host);
        assert_eq!(left.len(), 1);
        assert!(left[0].starts_with(others), "{left:?}");
    });
}

#[test]
fn the_monitor_hears_what_others_do_to_policies_and_not_what_we_do() {
    let host = Host::new();
    block_on(async {
        let mut agent = host.agent_configured(0, CONFIG, &[]).await;
        let mut monitor = Monitor::open(agent.reconciler.executor().kernel()).unwrap();
        agent.resync().await;
        let silence = Duration::from_millis(400);
        // It says that it has begun to listen.
        let watch = agent.reconciler.watch(&host.underlay);
        assert!(monitor.changed(&watch).await.objects);
        for n in 1..=20 {
            agent.set_peer(&ipsec_peer(n)).await;
        }
        let delta = agent.plan.remove_peer(&subnet(20));
        agent.update(delta).await;
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(heard.is_err(), "it heard our own changes: {heard:?}");
        let before = policies(&host);
        for args in [
            "xfrm policy del dir out src 10.0.0.0/24 dst 10.0.2.0/24",
            "xfrm policy update dir in src 10.0.3.0/24 dst 10.0.0.0/24 action block",
            "xfrm policy update dir out src 10.0.0.0/24 dst 10.0.3.0/24 priority 9 action allow",
            "xfrm policy flush",
        ] {
            host.ns.ip(args);
            let watch = agent.reconciler.watch(&host.underlay);
            assert!(monitor.changed(&watch).await.objects, "{args}");
            agent.resync().await;
            assert_eq!(policies(&host), before, "{args}");
        }
        // A policy of another program's, elsewhere.
        host.ns
            .ip("xfrm policy add src 198.51.100.0/24 dst 203.0.113.0/24 dir out");
        let watch = agent.reconciler.watch(&host.underlay);
        let heard = tokio::time::timeout(silence, monitor.changed(&watch)).await;
        assert!(heard.is_err(), "it heard what is none of ours: {heard:?}");
    });
}
