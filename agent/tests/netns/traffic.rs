//! Packets between two hosts while their overlay is taken over, restarted and changed: none may be lost.
//!
//! ```text
//!   ┌──────────── a ────────────┐               ┌──────────── b ────────────┐
//!   │ flannel.1 10.0.1.0        │               │        10.0.2.0 flannel.1 │
//!   │        up0 198.51.100.1/24 ───────────────── 198.51.100.2/24 up0      │
//!   └───────────────────────────┘               └───────────────────────────┘
//! ```

use std::process::{Child, Command, Stdio};

use nix::net::if_::if_nametoindex;
use selvage::cluster::lease::Lease;
use selvage::host::reconcile::Counts;
use serde_json::value::RawValue;

use crate::host::{Agent, Host, attachment, block_on, peer};

const FLANNEL_MAC: &str = "c6:d2:32:6f:8f:44";

/// Two hosts with a cable between them.
fn two_hosts() -> (Host, Host) {
    let (a, b) = (Host::bare(), Host::bare());
    a.ns.ip("link add up0 type veth peer name cable");
    a.ns.ip(&format!("link set cable netns {}", b.ns.path()));
    b.ns.ip("link set cable name up0");
    let at = |mut host: Host, address: &str| {
        host.ns.ip(&format!("address add {address}/24 dev up0"));
        host.ns.ip("link set up0 up");
        let _inside = host.ns.enter();
        host.underlay.index = if_nametoindex("up0").unwrap();
        host.underlay.v4 = Some(attachment(address.parse().unwrap()));
        host
    };
    (at(a, "198.51.100.1"), at(b, "198.51.100.2"))
}

/// The lease of a host as its agent publishes it.
fn lease_of(agent: &Agent, n: u16) -> Lease {
    Lease {
        attrs: agent.backend.lease_attrs(),
        ..peer(n)
    }
}

/// A thousand pings from `a` to `b`'s end of the overlay, 1 ms apart.
struct Flood(Child);

impl Flood {
    fn start(host: &Host) -> Self {
        let _inside = host.ns.enter();
        let child = Command::new("ping")
            .args("-q -c 1000 -i 0.001 -W 1 -I 10.0.1.0 10.0.2.0".split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn assert_no_loss(self, during: &str) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("1000 received, 0% packet loss"),
            "{during}: {text}"
        );
    }
}

/// What a flannel daemon leaves on host `a`, for the peer `b`.
fn leave_as_flannel(a: &Host, b_mac: &str) {
    for args in [
        &format!(
            "link add flannel.1 address {FLANNEL_MAC} mtu 1450 type vxlan id 1 dev up0 local 198.51.100.1 dstport 8472 nolearning"
        ),
        "address add 10.0.1.0/32 dev flannel.1",
        "link set flannel.1 up",
        &format!("neighbor add 10.0.2.0 lladdr {b_mac} dev flannel.1 nud permanent"),
        "route add 10.0.2.0/24 via 10.0.2.0 dev flannel.1 onlink",
    ] {
        a.ns.ip(args);
    }
    a.ns.run(
        "bridge",
        &format!("fdb add {b_mac} dev flannel.1 dst 198.51.100.2 self permanent"),
    );
}

#[test]
fn takeover_restart_and_changes_lose_no_packet() {
    let (a, b) = two_hosts();
    block_on(async {
        let mut a_lease = peer(1);
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{FLANNEL_MAC}"}}"#);
        a_lease.attrs.backend_data = Some(RawValue::from_string(data).unwrap());
        a_lease.attrs.public_ip = a.underlay.v4.map(|v4| v4.public);
        let mut on_b = {
            let _inside = b.ns.enter();
            b.agent_of(2, &[a_lease]).await
        };
        on_b.resync().await;
        let b_lease = lease_of(&on_b, 2);
        let b_data = b_lease.attrs.backend_data.as_ref().unwrap().get();
        let b_mac = b_data.rsplit('"').nth(1).unwrap().to_owned();
        leave_as_flannel(&a, &b_mac);

        let _inside = a.ns.enter();
        let flood = Flood::start(&a);
        let mut on_a = a.agent_of(1, std::slice::from_ref(&b_lease)).await;
        let taken_over = on_a.resync().await.counts;
        assert_eq!((taken_over.created, taken_over.changed), (1, 1));
        for _ in 0..3 {
            let mut restarted = a.agent_of(1, std::slice::from_ref(&b_lease)).await;
            assert_eq!(restarted.resync().await.counts, Counts::default());
        }
        // Other peers come and go.
        for n in 3..200 {
            on_a.set_peer(&peer(n)).await;
        }
        for n in 3..200 {
            let delta = on_a.plan.remove_peer(&peer(n).key);
            on_a.update(delta).await;
        }
        flood.assert_no_loss("takeover and restart");

        // B moves to direct routing in A's eyes and back: the route must always have a path.
        let flood = Flood::start(&a);
        for direct in [true, false] {
            let config = format!(r#"{{"Type":"vxlan","DirectRouting":{direct}}}"#);
            let mut changed = a
                .agent_configured(1, &config, std::slice::from_ref(&b_lease))
                .await;
            changed.resync().await;
            let routes = a.ns.ip("route show 10.0.2.0/24");
            assert_eq!(routes.contains("dev up0"), direct, "{routes}");
        }
        flood.assert_no_loss("change between direct and encapsulated");
    });
}

#[test]
fn a_new_mac_address_reaches_the_peer_at_once() {
    let (a, b) = two_hosts();
    block_on(async {
        let mut on_a = {
            let _inside = a.ns.enter();
            a.agent_of(1, &[]).await
        };
        let a_lease = lease_of(&on_a, 1);
        let _inside = b.ns.enter();
        let mut on_b = b.agent_of(2, std::slice::from_ref(&a_lease)).await;
        on_b.resync().await;
        let _inside = a.ns.enter();
        on_a.set_peer(&lease_of(&on_b, 2)).await;
        a.ns.run("ping", "-q -c 1 -W 2 -I 10.0.1.0 10.0.2.0");

        // The device and its identity are lost; the peer hears of the new one.
        let _inside = b.ns.enter();
        b.ns.ip("link del flannel.1");
        std::fs::remove_file(b.state_dir.path().join("flannel.1.mac")).unwrap();
        let mut reborn = b.agent_of(2, &[a_lease]).await;
        reborn.resync().await;
        let lease = lease_of(&reborn, 2);
        let _inside = a.ns.enter();
        assert_eq!(on_a.set_peer(&lease).await.counts.made(), 3);
        a.ns.run("ping", "-q -c 1 -W 2 -I 10.0.1.0 10.0.2.0");
    });
}
