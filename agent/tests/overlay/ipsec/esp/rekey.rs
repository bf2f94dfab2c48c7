//! New keys under traffic.

use std::time::Duration;

use super::super::charon::Renewed;
use super::super::{
    OTHER_SECRET, SECRET, flannel_node, host, network, numbers, pair, policies, subnet,
};
use super::stream::Stream;
use crate::cluster::Store;
use crate::host::Host;
use crate::kernel::Flow;
use crate::wait::wait_until;

/// Packets in a row that may be lost where a node takes the new keys before its peer has them, of one every five
/// milliseconds. A tunnel that was torn down would lose far more.
const GAP: usize = 100;

/// How often each kind of keys is renewed by each node.
const ROUNDS: usize = 2;

/// Traffic between two containers, in both directions.
struct Traffic {
    pings: [Flow; 2],
    streams: [Stream; 2],
}

impl Traffic {
    fn start(one: &Host, two: &Host) -> Self {
        let traffic = Self {
            pings: [(one, two), (two, one)]
                .map(|(from, to)| Flow::start_every("0.005", from, to.container_address())),
            streams: [(one, two), (two, one)].map(|(from, to)| {
                Stream::start(from.container(), to.container(), to.container_address())
            }),
        };
        traffic.wait(50);
        traffic
    }

    /// Waits for so many answers more.
    fn wait(&self, answers: usize) {
        self.pings
            .iter()
            .for_each(|flow| flow.wait_answered(answers));
    }

    /// Nothing was lost.
    fn finish(self) {
        let [there, back] = self.streams.map(Stream::finish);
        assert!(
            there.1.is_empty() && back.1.is_empty(),
            "datagrams lost: there {there:?}, back {back:?}"
        );
        assert!(
            there.0 > 100 && back.0 > 100,
            "there {there:?}, back {back:?}"
        );
        self.pings.into_iter().for_each(Flow::finish);
    }
}

/// The SPI that the policy for packets to the peer names.
fn spi(host: &Host, peer: &Host) -> Option<String> {
    let (own, other) = (subnet(host), subnet(peer));
    let policies = policies(host, peer);
    let there = format!("src {own} dst {other} dir out ");
    let policy = policies.iter().find(|line| line.starts_with(&there))?;
    let (_, rest) = policy.split_once(" spi ")?;
    rest.split(' ').next().map(str::to_owned)
}

/// Both nodes' policies name the peer's state.
fn wait_for_spis(one: &Host, two: &Host) {
    wait_until("policies that name states", || {
        [(one, two), (two, one)].iter().all(|(host, peer)| {
            let states = peer.namespace.run("ip xfrm state");
            spi(host, peer).is_some_and(|spi| states.contains(&format!("spi {spi} ")))
        })
    });
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn nothing_is_lost_when_keys_are_renewed() {
    let (_store, (one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    wait_for_spis(&one, &two);
    let traffic = Traffic::start(&one, &two);
    for _ in 0..ROUNDS {
        for charon in [&on_one, &on_two] {
            for what in [Renewed::Tunnel, Renewed::Association] {
                let before = [spi(&one, &two), spi(&two, &one)];
                charon.renew(what);
                if matches!(what, Renewed::Tunnel) {
                    wait_until("both nodes to use the new keys", || {
                        let now = [spi(&one, &two), spi(&two, &one)];
                        now.iter().zip(&before).all(|(now, before)| now != before)
                    });
                    wait_for_spis(&one, &two);
                }
                traffic.wait(50);
            }
        }
    }
    traffic.finish();
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn goes_on_while_the_secret_changes() {
    let (store, (one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    let flow = Flow::start_every("0.005", &one, two.container_address());
    flow.wait_answered(50);
    let config = network(OTHER_SECRET, "");
    store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    std::thread::sleep(Duration::from_secs(5));
    flow.wait_answered(300);
    flow.finish_losing(GAP);
    assert!(on_one.reconnects(&two) && on_two.reconnects(&one));
    one.wait_reaches(&two);
}

/// charon reauthenticates only an association with a tunnel, which a kernel without ESP never gets.
#[test]
#[ignore = "needs a kernel with ESP"]
fn a_secret_that_changed_while_the_agents_were_down_is_used_at_once() {
    let (store, (mut one, on_one), (mut two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    on_two.wait_established(&one);
    one.kill_agent();
    two.kill_agent();
    let config = network(OTHER_SECRET, "");
    store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    let before = numbers(&on_one);
    // The higher one first: the lower one would have it prove a secret that it does not know yet.
    for host in [&mut two, &mut one] {
        host.start_agent();
        host.wait_ready();
    }
    wait_until("an association by the new secret", || {
        let now = numbers(&on_one);
        !now.is_empty() && now.iter().all(|number| !before.contains(number))
    });
    assert!(on_one.said().contains("reauthenticating IKE_SA"));
    // The former one is not accepted any more.
    for charon in [&on_one, &on_two] {
        assert!(
            charon.said().contains("unloaded shared key"),
            "{}",
            charon.said()
        );
    }
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn connects_with_a_flannel_node_and_renews_keys() {
    let store = Store::start(&network(SECRET, ""));
    let (mut one, on_one) = host(&store, 1);
    one.join();
    let (flannel, on_flannel) = flannel_node(&store, &one);
    flannel.namespace.ip("link add docker0 type bridge");
    flannel.namespace.ip("link set docker0 up");
    flannel
        .namespace
        .ip("address add 10.5.200.1/24 dev docker0");
    flannel.namespace.ip("route add default dev eth0");
    let target = std::net::Ipv4Addr::new(10, 5, 200, 1).into();
    wait_until("an answer from flannel's bridge", || {
        one.reaches_address(target, 56)
    });
    // Where flannel's node answers, it takes the new keys at once; where it asks, ours waits for it.
    for (charon, gap) in [(&on_flannel, 0), (&on_one, GAP), (&on_flannel, 0)] {
        let flow = Flow::start_every("0.005", &one, std::net::Ipv4Addr::new(10, 5, 200, 1));
        flow.wait_answered(50);
        charon.renew(Renewed::Tunnel);
        flow.wait_answered(50);
        flow.finish_losing(gap);
    }
}
