//! Packets in tunnels, which need a kernel with ESP.

mod rekey;
mod stream;

use super::wire::Wire;
use super::{Charon, SECRET, expected, host, network, pair, policies};
use crate::cluster::Store;
use crate::host::Host;
use crate::kernel::Flow;
use crate::wait::wait_until;

/// The algorithms of flannel's default, and one with a cipher and a check value apart.
const PROPOSALS: [&str; 2] = ["", r#","ESPProposal":"aes256-sha256-ecp384""#];

/// The containers reach each other with packets of just the size that `subnet.env` promises.
fn carry(one: &Host, two: &Host) {
    one.wait_reaches(two);
    let mtu: u32 = one.subnet_env("FLANNEL_MTU").parse().expect("a number");
    let target = two.container_address().into();
    assert!(one.reaches_address(target, mtu - 28), "{mtu}");
    assert!(!one.reaches_address(target, mtu - 27), "{mtu}");
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn carries_all_packets_and_none_is_seen_in_plain_text() {
    for proposal in PROPOSALS {
        let store = Store::start(&network(SECRET, proposal));
        let wire = Wire::tap(&store.switch);
        let (mut one, mut two) = (host(&store, 1), host(&store, 2));
        one.0.join();
        two.0.join();
        carry(&one.0, &two.0);
        carry(&two.0, &one.0);
        let seen = wire.end();
        assert!(seen.esp > 0, "{proposal}: {seen:?}");
        assert_eq!((seen.plain, seen.udp_encap), (0, 0), "{proposal}: {seen:?}");
    }
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn goes_in_udp_where_the_config_says_so() {
    let store = Store::start(&network(SECRET, r#","UDPEncap":true"#));
    let wire = Wire::tap(&store.switch);
    let (mut one, mut two) = (host(&store, 1), host(&store, 2));
    one.0.join();
    two.0.join();
    carry(&one.0, &two.0);
    assert_eq!(one.0.subnet_env("FLANNEL_MTU"), "1415");
    let seen = wire.end();
    assert!(seen.udp_encap > 0, "{seen:?}");
    assert_eq!((seen.plain, seen.esp), (0, 0), "{seen:?}");
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn connects_three_nodes_and_lets_one_go() {
    let store = Store::start(&network(SECRET, ""));
    let mut hosts = [1, 2, 3].map(|number| host(&store, number));
    for (host, _) in &mut hosts {
        host.join();
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        carry(&hosts[one].0, &hosts[other].0);
    }
    let [one, two, (mut three, on_three)] = hosts;
    let gone = three.address.to_string();
    three.kill_agent();
    drop(on_three);
    let key = format!("/coreos.com/network/subnets/{}", three.lease_key());
    store.etcdctl(&["del", &key]);
    for (host, charon) in [&one, &two] {
        wait_until("no association of the peer that went", || {
            !host.namespace.run("ip xfrm state").contains(&gone)
                && policies(host, &three).is_empty()
                && !charon.associations().contains(&gone)
        });
    }
    assert!(one.0.reaches(&two.0));
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn tunnels_that_are_lost_come_back() {
    let (_store, (one, mut on_one), (two, on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    let end = |charon: &Charon| {
        let name = charon.connections().pop().expect("a connection");
        charon.swanctl(&format!("--terminate --force --timeout 30 --ike {name}"));
    };
    end(&on_one);
    one.wait_reaches(&two);
    end(&on_two);
    one.wait_reaches(&two);
    // Nobody tells the other side.
    on_one.kill();
    on_one.restart(&one);
    one.wait_reaches(&two);
    on_one.wait_established(&two);
    two.wait_reaches(&one);
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn states_that_somebody_deletes_come_back() {
    let (_store, (one, _on_one), (two, _on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    for host in [&one, &two] {
        // Nobody tells charon.
        host.namespace.ip("xfrm state flush");
        one.wait_reaches(&two);
    }
}

/// Where the underlay's addresses are in the network, nothing blocks all of it: the peers' own policies have to stay.
#[test]
#[ignore = "needs a kernel with ESP"]
fn nothing_leaves_in_plain_text_after_a_tunnels_end_inside_the_site() {
    let range = r#""Network":"10.0.0.0/8","SubnetMin":"10.5.1.0","SubnetMax":"10.5.200.0""#;
    let config = format!(r#"{{{range},"Backend":{{"Type":"ipsec","PSK":"{SECRET}"}}}}"#);
    let (store, (mut one, on_one), (mut two, on_two)) = pair(&config);
    carry(&one, &two);
    one.kill_agent();
    two.kill_agent();
    let wire = Wire::tap(&store.switch);
    for charon in [&on_one, &on_two] {
        let name = charon.connections().pop().expect("a connection");
        charon.swanctl(&format!("--terminate --force --timeout 30 --ike {name}"));
    }
    assert_eq!(policies(&one, &two), expected(&one, &two));
    assert_eq!(policies(&two, &one), expected(&two, &one));
    assert!(!one.reaches(&two));
    let seen = wire.end();
    assert_eq!(seen.plain, 0, "{seen:?}");
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn stays_while_agents_are_killed_and_restarted() {
    let (_store, (mut one, _on_one), (two, _on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    let flow = Flow::start_every("0.005", &one, two.container_address());
    flow.wait_answered(50);
    one.kill_agent();
    flow.wait_answered(50);
    one.start_agent();
    one.wait_ready();
    flow.wait_answered(200);
    flow.finish();
}

#[test]
#[ignore = "needs a kernel with ESP"]
fn cleanup_removes_the_keys_of_a_charon_that_is_gone() {
    let (_store, (mut one, mut on_one), (two, _on_two)) = pair(&network(SECRET, ""));
    one.wait_reaches(&two);
    on_one.kill();
    assert_eq!(one.stop_agent(), Some(0));
    let states = || one.namespace.run("ip xfrm state");
    assert!(states().contains("reqid 11"), "{}", states());
    let output = one.selvage("cleanup").output().expect("selvage cleanup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(!states().contains("reqid 11"), "{}", states());
}
