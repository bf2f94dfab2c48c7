//! The wireguard backend with real devices and real packets, in each of its modes.
//!
//! ```text
//!   ┌──────────── a ────────────┐               ┌──────────── b ────────────┐
//!   │ flannel-wg 10.0.1.0       │               │       10.0.2.0 flannel-wg │
//!   │            fd00:0:0:1::   │               │   fd00:0:0:2::            │
//!   │        up0 198.51.100.1   ─────────────────   198.51.100.2 up0        │
//!   │            2001:db8::1    │               │   2001:db8::2             │
//!   └───────────────────────────┘               └───────────────────────────┘
//! ```
//!
//! They are ignored by default, since many a kernel has no WireGuard: `make test-netns` runs them where there is one, `make
//! test-qemu` in the image's kernel.

use std::net::Ipv6Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nix::net::if_::if_nametoindex;
use selvage::cluster::lease::{Lease, SubnetKey};
use selvage::cluster::network_config::NetworkConfig;
use selvage::host::executor::Executor;
use selvage::host::open::open;
use selvage::host::reconcile::{Counts, Reconciler};
use selvage::plan::backend::plan::Plan;
use selvage::plan::backend::{BackendConfig, Setup};
use selvage::plan::underlay::Attachment;
use selvage::plan::wireguard_key::{LEN, PrivateKey};
use serde_json::value::RawValue;
use tempfile::TempDir;

use crate::host::{Agent, Host, attachment, block_on, peer};

const DUAL: &str = r#""Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/48""#;
const V4: &str = r#""Network":"10.0.0.0/8""#;

/// Two hosts with a cable between them, of both families.
fn two_hosts() -> (Host, Host) {
    let (a, b) = (Host::bare(), Host::bare());
    a.ns.ip("link add up0 type veth peer name cable");
    a.ns.ip(&format!("link set cable netns {}", b.ns.path()));
    b.ns.ip("link set cable name up0");
    let at = |mut host: Host, n: u8| {
        host.ns.ip("link set up0 up");
        host.ns
            .ip(&format!("address add 198.51.100.{n}/24 dev up0"));
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into());
        host.ns.ip(&format!("address add {v6}/64 dev up0 nodad"));
        let _inside = host.ns.enter();
        host.underlay.index = if_nametoindex("up0").unwrap();
        host.underlay.v4 = Some(attachment([198, 51, 100, n].into()));
        host.underlay.v6 = Some(Attachment {
            address: v6,
            prefix_len: 64,
            public: v6,
        });
        host
    };
    (at(a, 1), at(b, 2))
}

/// The subnets of node `n`.
fn subnets(networks: &str, n: u8) -> SubnetKey {
    let v6 = format!("fd00:0:0:{n:x}::/64").parse().unwrap();
    SubnetKey::new(peer(n.into()).key.v4, (networks == DUAL).then_some(v6))
}

/// The agent of node `n`, which has just started with the key that is kept in `state_dir`. It must be inside its namespace
/// from here on.
async fn start(host: &Host, state_dir: &TempDir, n: u8, networks: &str, options: &str) -> Agent {
    let config = format!(r#"{{{networks},"Backend":{{"Type":"wireguard"{options}}}}}"#);
    let config = NetworkConfig::parse(&config).unwrap();
    let mut underlay = host.underlay.clone();
    underlay.v6 = underlay.v6.filter(|_| config.ipv6.is_some());
    let setup = Setup {
        config: &config,
        underlay: &underlay,
        state_dir: state_dir.path(),
        new_identity: false,
        printed: None,
    };
    let mut executor = Executor::open().unwrap();
    let backend = BackendConfig::parse(&config).unwrap();
    let backend = open(&backend, setup, &mut executor).await.unwrap();
    let backend: Arc<dyn selvage::plan::backend::Backend> = backend.into();
    let plan = Plan::new(Arc::clone(&backend), &subnets(networks, n), []);
    let mut reconciler = Reconciler::new(executor, backend.scope());
    reconciler.set_desired(plan.state());
    Agent {
        backend,
        plan,
        reconciler,
    }
}

/// Node `n`'s lease as its agent publishes it.
fn lease_of(agent: &Agent, networks: &str, n: u8) -> Lease {
    Lease {
        key: subnets(networks, n),
        attrs: agent.backend.lease_attrs(),
        created: n.into(),
    }
}

/// Both agents with each other as peer, programmed.
async fn connect((a, b): (&Host, &Host), networks: &str, options: [&str; 2]) -> (Agent, Agent) {
    let (mut on_a, mut on_b);
    {
        let _inside = a.ns.enter();
        on_a = start(a, &a.state_dir, 1, networks, options[0]).await;
    }
    {
        let _inside = b.ns.enter();
        on_b = start(b, &b.state_dir, 2, networks, options[1]).await;
        on_b.resync().await;
        on_b.set_peer(&lease_of(&on_a, networks, 1)).await;
    }
    let _inside = a.ns.enter();
    on_a.resync().await;
    on_a.set_peer(&lease_of(&on_b, networks, 2)).await;
    (on_a, on_b)
}

/// Whether a packet comes back within a few seconds.
fn reaches(host: &Host, from: &str, to: &str) -> bool {
    (0..5).any(|_| {
        let ping = host.ns.output("ping", &format!("-c 1 -W 1 -I {from} {to}"));
        ping.status.success()
    })
}

/// A made-up peer that does not answer.
fn silent(n: u16) -> Lease {
    let mut lease = peer(n);
    let mut bytes = [7; 32];
    bytes[4..6].copy_from_slice(&n.to_ne_bytes());
    let key = PrivateKey::new(bytes).public();
    let data = format!(r#"{{"PublicKey":"{key}","Port":51820}}"#);
    lease.attrs.backend_type = "wireguard".to_owned();
    lease.attrs.backend_data = Some(RawValue::from_string(data).unwrap());
    lease
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_start_programs_device_and_peers_and_a_restart_changes_nothing() {
    let host = Host::new();
    block_on(async {
        let psk = PrivateKey::new([5; LEN]).expose_text();
        let options = format!(r#","PSK":"{psk}","PersistentKeepaliveInterval":25"#);
        let peers: Vec<_> = (2..5).map(silent).collect();
        let begin = async || {
            let mut agent = start(&host, &host.state_dir, 1, V4, &options).await;
            let leases = peers.iter().cloned().map(Arc::new);
            agent.plan = Plan::new(Arc::clone(&agent.backend), &subnets(V4, 1), leases);
            agent.reconciler.set_desired(agent.plan.state());
            agent
        };
        let mut agent = begin().await;
        assert_eq!(agent.resync().await.counts.created, 3 + 3);
        let device = host.ns.ip("-d link show flannel-wg");
        for part in ["mtu 1420", "UP", "wireguard"] {
            assert!(device.contains(part), "no {part:?} in {device}");
        }
        let address = host.ns.ip("address show flannel-wg");
        assert!(address.contains("inet 10.0.1.0/32"), "{address}");
        let route = host.ns.ip("route show 10.0.0.0/8");
        assert_eq!(
            route.trim(),
            "10.0.0.0/8 dev flannel-wg proto 83 scope link"
        );

        assert_eq!(agent.resync().await.counts, Counts::default());
        let mut restarted = begin().await;
        assert_eq!(restarted.resync().await.counts, Counts::default());

        // What somebody changes is put right: a peer that is not in the plan goes.
        restarted.plan.remove_peer(&peers[0].key);
        restarted.reconciler.set_desired(restarted.plan.state());
        assert_eq!(restarted.resync().await.counts.removed, 1);
        host.ns.ip("link set flannel-wg down mtu 1300");
        let repaired = agent.resync().await.counts;
        // Device and peer; taking the device down took the route along.
        assert_eq!((repaired.created, repaired.changed), (2, 1));
        assert_eq!(agent.resync().await.counts, Counts::default());

        let counts = agent.reconciler.remove_all().await.unwrap().counts;
        assert_eq!((counts.removed, counts.failed), (1, 0), "all goes with it");
        assert!(
            !host
                .ns
                .output("ip", "link show flannel-wg")
                .status
                .success()
        );
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn packets_pass_in_every_mode_and_a_change_of_mode_leaves_nothing_behind() {
    let (a, b) = two_hosts();
    block_on(async {
        for mode in ["separate", "auto", "ipv4", "ipv6", "separate"] {
            let option = format!(r#","Mode":"{mode}""#);
            let _agents = connect((&a, &b), DUAL, [&option, &option]).await;
            for (from, to) in [("10.0.1.0", "10.0.2.0"), ("fd00:0:0:1::", "fd00:0:0:2::")] {
                assert!(reaches(&a, from, to), "mode {mode}: {to}");
                assert!(reaches(&b, to, from), "mode {mode}: {from}");
            }
            let second = a.ns.output("ip", "link show flannel-wg-v6").status;
            assert_eq!(second.success(), mode == "separate", "mode {mode}");
        }
        // The keys are those of the beginning; another secret on one side, and nothing passes.
        let psk = PrivateKey::new([5; LEN]).expose_text();
        let option = format!(r#","PSK":"{psk}""#);
        let _agents = connect((&a, &b), V4, [&option, &option]).await;
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"), "with a secret");
        let other = TempDir::new().unwrap();
        let _inside = b.ns.enter();
        let mut stranger = start(&b, &other, 2, V4, &option).await;
        stranger.resync().await;
        assert!(!reaches(&a, "10.0.1.0", "10.0.2.0"), "an unknown key");
    });
}

/// A thousand pings from `a` to `b`'s end of the overlay, 5 ms apart.
struct Flood(Child);

impl Flood {
    fn start(host: &Host) -> Self {
        let _inside = host.ns.enter();
        let child = Command::new("ping")
            .args("-q -c 1000 -i 0.005 -W 2 -I 10.0.1.0 10.0.2.0".split(' '))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn assert_no_loss(self, during: &str) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let all = "1000 packets transmitted, 1000 received, 0% packet loss";
        assert!(text.contains(all), "{during}: {text}");
    }
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn restarts_and_other_peers_lose_no_packet() {
    let (a, b) = two_hosts();
    block_on(async {
        let (mut on_a, on_b) = connect((&a, &b), V4, ["", ""]).await;
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"));
        let _inside = a.ns.enter();
        let flood = Flood::start(&a);
        for _ in 0..3 {
            let mut restarted = start(&a, &a.state_dir, 1, V4, "").await;
            restarted.plan.set_peer(&Arc::new(lease_of(&on_b, V4, 2)));
            restarted.reconciler.set_desired(restarted.plan.state());
            assert_eq!(restarted.resync().await.counts, Counts::default());
        }
        for n in 3..50 {
            let made = on_a.set_peer(&silent(n)).await.counts.made();
            assert_eq!(made, 1, "one peer, one change");
        }
        for n in 3..50 {
            let delta = on_a.plan.remove_peer(&silent(n).key);
            on_a.update(delta).await;
        }
        // Another keepalive and another port are changed in place.
        let options = r#","PersistentKeepaliveInterval":9"#;
        let mut changed = start(&a, &a.state_dir, 1, V4, options).await;
        changed.plan.set_peer(&Arc::new(lease_of(&on_b, V4, 2)));
        changed.reconciler.set_desired(changed.plan.state());
        assert_eq!(changed.resync().await.counts.changed, 1);
        flood.assert_no_loss("restarts, other peers, another keepalive");
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_node_with_a_new_key_is_reached_again_and_leaves_no_stale_peer() {
    let (a, b) = two_hosts();
    block_on(async {
        let (mut on_a, _) = connect((&a, &b), V4, ["", ""]).await;
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"));
        let reborn = TempDir::new().unwrap();
        let on_b = {
            let _inside = b.ns.enter();
            let mut on_b = start(&b, &reborn, 2, V4, "").await;
            // The device of the former life gets the new key.
            assert_eq!(on_b.resync().await.counts.changed, 1);
            on_b.set_peer(&lease_of(&on_a, V4, 1)).await;
            on_b
        };
        let _inside = a.ns.enter();
        let counts = on_a.set_peer(&lease_of(&on_b, V4, 2)).await.counts;
        assert_eq!((counts.created, counts.removed), (1, 1));
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"));
        assert_eq!(on_a.resync().await.counts, Counts::default());
    });
}

#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_peer_that_moved_is_left_where_it_is_while_it_answers() {
    let (a, b) = two_hosts();
    block_on(async {
        let (mut on_a, _on_b) = connect((&a, &b), V4, ["", ""]).await;
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"));
        // B goes on from another address, as behind a NAT that was restarted; its lease still has the first.
        b.ns.ip("address flush dev up0");
        b.ns.ip("address add 198.51.100.22/24 dev up0");
        assert!(reaches(&b, "10.0.2.0", "10.0.1.0"), "B tells where it is");
        let _inside = a.ns.enter();
        assert_eq!(on_a.resync().await.counts, Counts::default());
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"), "by the new address");
        // A lease with another address is believed.
        let mut moved = lease_of(&_on_b, V4, 2);
        moved.attrs.public_ip = Some([198, 51, 100, 23].into());
        assert_eq!(on_a.set_peer(&moved).await.counts.changed, 1);
        b.ns.ip("address add 198.51.100.23/24 dev up0");
        assert!(reaches(&a, "10.0.1.0", "10.0.2.0"), "by the published one");
    });
}

/// More than a message and more than a batch holds.
#[test]
#[ignore = "needs a kernel with WireGuard"]
fn a_thousand_peers_are_programmed_and_found_again() {
    const COUNT: u16 = 1000;
    let host = Host::new();
    block_on(async {
        let peers: Vec<_> = (2..2 + COUNT).map(silent).collect();
        let mut agent = start(&host, &host.state_dir, 1, V4, "").await;
        let leases = peers.iter().cloned().map(Arc::new);
        agent.plan = Plan::new(Arc::clone(&agent.backend), &subnets(V4, 1), leases);
        agent.reconciler.set_desired(agent.plan.state());
        let report = agent.resync().await;
        assert_eq!(report.counts.created, 3 + u64::from(COUNT));
        eprintln!("{COUNT} peers took {:?}", report.took);
        let report = agent.resync().await;
        assert_eq!(report.counts, Counts::default());
        eprintln!("finding nothing to do took {:?}", report.took);
        let mut one = silent(700);
        one.attrs.public_ip = Some([203, 0, 113, 7].into());
        assert_eq!(agent.set_peer(&one).await.counts.changed, 1);
    });
}
