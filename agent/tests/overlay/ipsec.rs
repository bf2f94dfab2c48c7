//! The ipsec backend between whole agents, each with a real charon of its host's: strongSwan's, as Debian has it.
//!
//! Policies and the negotiation by IKE need no more than a kernel with XFRM. Where there is no ESP, the nodes agree, and
//! the tunnel is then refused. The tests in `esp` need ESP: they are ignored by default, `make test-netns` runs them where
//! the kernel has it, and `make test-qemu` in the image's kernel.

mod charon;
mod esp;
mod wire;

use self::charon::Charon;
use self::wire::Wire;
use crate::backends::V4;
use crate::cluster::Store;
use crate::host::Host;
use crate::wait::wait_until;

/// The secrets of flannel's `dist/ipsec` and of its issue 1027.
const SECRET: &str = "4bc1e570ff249cce3cc8cef5e2f8625bac76c7b02532f8bde9747196eb15a742480e265bbc0c60c265a8fe4eb6380cd1";
const OTHER_SECRET: &str = "18bb8c151cf37225c276373a25857da26d34e13c1d258bc80872dc9a9b8569d3c22e9927c400dace1029ca4df76c90d4";

/// The config of a network with this secret, and more keys of the back end.
fn network(secret: &str, more: &str) -> String {
    format!(r#"{{{V4},"Backend":{{"Type":"ipsec","PSK":"{secret}"{more}}}}}"#)
}

/// A host of the store's, with a charon that is told by its agent.
fn host(store: &Store, number: u8) -> (Host, Charon) {
    let mut host = store.host(number);
    let charon = Charon::start(&host);
    let socket = charon.socket().display().to_string();
    host.arguments.push(format!("--ipsec-vici={socket}"));
    (host, charon)
}

/// Two hosts that have joined.
fn pair(config: &str) -> (Store, (Host, Charon), (Host, Charon)) {
    let store = Store::start(config);
    let (mut one, mut two) = (host(&store, 1), host(&store, 2));
    one.0.join();
    two.0.join();
    (store, one, two)
}

/// The subnet of a host, as the kernel prints it.
fn subnet(host: &Host) -> String {
    host.lease_key().replace('-', "/")
}

/// The policies between two hosts' subnets, by the first host's kernel.
fn policies(host: &Host, peer: &Host) -> Vec<String> {
    let text = host.namespace.run("ip xfrm policy");
    let text = text.replace("\n\t", " ");
    let (own, other) = (subnet(host), subnet(peer));
    let between = |line: &&str| {
        line.starts_with(&format!("src {own} dst {other} "))
            || line.starts_with(&format!("src {other} dst {own} "))
    };
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found: Vec<_> = text.lines().filter(between).map(squeeze).collect();
    found.sort();
    found
}

/// A policy as ours is, if it is charon's, which stands in its place while there is a tunnel.
fn as_ours(line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let mut kept = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| words[at]);
        match (before, *word) {
            (Some("priority"), "1") => kept.push("0"),
            (Some("spi"), _) | (_, "spi") => {}
            _ => kept.push(*word),
        }
    }
    kept.join(" ")
}

/// flannel's three policies.
fn expected(host: &Host, peer: &Host) -> Vec<String> {
    let (own, other) = (subnet(host), subnet(peer));
    let (here, there) = (host.address, peer.address);
    let policy = |from, to, direction, outer, end| {
        format!(
            "src {from} dst {to} dir {direction} priority 0 ptype main tmpl src {outer} dst {end} proto esp reqid 11 mode tunnel"
        )
    };
    let mut all = vec![
        policy(&own, &other, "out", here, there),
        policy(&other, &own, "in", there, here),
        policy(&other, &own, "fwd", there, here),
    ];
    all.sort();
    all
}

fn wait_for_policies(host: &Host, peer: &Host) {
    wait_until("the policies of a peer", || {
        let found = policies(host, peer);
        found
            .iter()
            .map(|line| as_ours(line))
            .eq(expected(host, peer))
    });
}

#[test]
fn nodes_agree_by_ike_and_nothing_leaves_in_plain_text_before() {
    let store = Store::start(&network(SECRET, ""));
    let wire = Wire::tap(&store.switch);
    let (mut one, mut two) = (host(&store, 1), host(&store, 2));
    one.0.join();
    two.0.join();
    for ((host, charon), (peer, _)) in [(&one, &two), (&two, &one)] {
        wait_for_policies(host, peer);
        charon.wait_established(peer);
        assert_eq!(host.subnet_env("FLANNEL_MTU"), "1423");
    }
    // Without a tunnel, if the kernel has no ESP, and with one.
    one.0.reaches(&two.0);
    // To a subnet that nobody has.
    let nowhere = std::net::Ipv4Addr::new(10, 5, 255, 2).into();
    assert!(!one.0.reaches_address(nowhere, 56));
    let seen = wire.end();
    assert!(seen.ike > 0, "{seen:?}");
    assert_eq!(seen.plain, 0, "{seen:?}");
}

#[test]
fn what_the_host_itself_sends_to_a_peers_containers_stays_off_the_wire() {
    let store = Store::start(&network(SECRET, ""));
    let wire = Wire::tap(&store.switch);
    let (mut one, mut two) = (host(&store, 1), host(&store, 2));
    one.0.join();
    two.0.join();
    wait_for_policies(&one.0, &two.0);
    let (one, two) = (one.0, two.0);
    let pings = |target: &str| {
        let mut ping = one.namespace.command("ping");
        let from = one.address.to_string();
        ping.args(["-c1", "-W1", "-I", &from, target]);
        ping.output().expect("ping").status.success()
    };
    // The peer's bridge answers ARP on the underlay: without a policy the packet leaves.
    let gateway = |host: &Host| {
        let env = host.subnet_env("FLANNEL_SUBNET");
        env.split_once('/').expect("a prefix").0.to_owned()
    };
    assert!(!pings(&gateway(&two)));
    assert!(!pings("10.5.255.2"));
    // Its own containers and the underlay are not cut off.
    assert!(pings(&gateway(&one)));
    assert!(pings(&two.address.to_string()));
    assert_eq!(wire.end().plain, 0);
}

#[test]
fn with_udp_encapsulation_the_mtu_is_smaller() {
    let (_store, (one, charon), (two, _on_two)) = pair(&network(SECRET, r#","UDPEncap":true"#));
    assert_eq!(one.subnet_env("FLANNEL_MTU"), "1415");
    charon.wait_established(&two);
    let loaded = charon.swanctl("--list-conns");
    assert!(loaded.contains(&subnet(&two)), "{loaded}");
}

#[test]
fn policies_that_somebody_deletes_come_back() {
    let (_store, (one, _on_one), (two, _on_two)) = pair(&network(SECRET, ""));
    wait_for_policies(&one, &two);
    let all = one.namespace.run("ip xfrm policy");
    let (own, other) = (subnet(&one), subnet(&two));
    for command in [
        format!("policy del dir out src {own} dst {other}"),
        format!("policy del dir fwd src {other} dst {own}"),
        // Another one of the same selector.
        format!("policy update dir out src {own} dst {other} priority 7 action allow"),
        format!(
            "policy update dir in src {other} dst {own} tmpl src 10.77.0.99 dst {} proto esp reqid 11 mode tunnel",
            one.address
        ),
        format!("policy del dir out src {own} dst 10.5.0.0/16"),
        "policy flush".to_owned(),
    ] {
        one.namespace.ip(&format!("xfrm {command}"));
        wait_until(&format!("what there was before {command}"), || {
            let now = one.namespace.run("ip xfrm policy");
            let sorted = |text: &str| {
                let text = text.replace("\n\t", " ");
                let mut lines: Vec<_> = text.lines().map(as_ours).collect();
                // charon's sockets have policies of their own.
                lines.retain(|line| {
                    !line.starts_with("src 0.0.0.0/0") && !line.starts_with("src ::/0")
                });
                lines.sort();
                lines
            };
            sorted(&now) == sorted(&all)
        });
    }
    // Another program's stay.
    let foreign = "src 198.51.100.0/24 dst 203.0.113.0/24";
    one.namespace
        .ip(&format!("xfrm policy add dir out {foreign} action block"));
    one.namespace
        .ip(&format!("xfrm policy del dir in src {other} dst {own}"));
    wait_for_policies(&one, &two);
    assert!(one.namespace.run("ip xfrm policy").contains(foreign));
}

#[test]
fn without_charon_the_agent_says_so_and_goes_on() {
    let store = Store::start(&network(SECRET, ""));
    let (mut one, mut on_one) = host(&store, 1);
    let (mut two, _on_two) = host(&store, 2);
    on_one.kill();
    two.join();
    one.join();
    one.wait_told_last("that charon does not answer", |line| {
        line.contains("does not answer at")
    });
    let (status, reasons) = one.ask("/readyz");
    assert_eq!(status, 503, "{reasons}");
    let status = one.ask("/v1/status").1;
    assert!(status.contains(r#""code":"ike-daemon""#), "{status}");
    // What the kernel needs is there meanwhile.
    wait_for_policies(&one, &two);
    on_one.restart(&one);
    on_one.wait_established(&two);
    wait_until("readiness", || one.ask("/readyz").0 == 200);
    assert!(one.agent_id() > 0);
}

#[test]
fn a_charon_that_is_killed_is_told_everything_again() {
    let (_store, (one, mut on_one), (two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    for _ in 0..2 {
        on_one.kill();
        on_one.restart(&one);
        on_one.wait_established(&two);
    }
    on_two.wait_established(&one);
    wait_until("readiness", || one.ask("/readyz").0 == 200);
}

/// The names and charon's numbers of the associations: `NAME: #7, ESTABLISHED, IKEv2, …`.
fn numbers(charon: &Charon) -> Vec<String> {
    let text = charon.associations();
    let lines = text.lines().filter(|line| line.contains("ESTABLISHED"));
    let numbers = lines.filter_map(|line| line.split_once(','));
    numbers.map(|(number, _)| number.to_owned()).collect()
}

#[test]
fn associations_outlive_a_restart_of_the_agent() {
    let (_store, (mut one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    on_two.wait_established(&one);
    let before = numbers(&on_one);
    assert_eq!(before.len(), 1, "{before:?}");
    for _ in 0..2 {
        let loads = |charon: &Charon| charon.said().matches("loaded IKE shared key").count();
        let told = loads(&on_one);
        one.kill_agent();
        one.start_agent();
        one.wait_ready();
        wait_until("an agent that told charon everything", || {
            loads(&on_one) > told
        });
        // Two passes more.
        std::thread::sleep(std::time::Duration::from_secs(5));
        assert_eq!(numbers(&on_one), before, "{}", on_one.said());
    }
}

#[test]
fn an_association_that_somebody_ends_is_made_again() {
    let (_store, (one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    for (charon, peer) in [(&on_one, &two), (&on_two, &one)] {
        charon.wait_established(peer);
        let before = charon.associations();
        let name = charon.connections().pop().expect("a connection");
        charon.swanctl(&format!("--terminate --force --timeout 30 --ike {name}"));
        wait_until("another association", || {
            let now = charon.associations();
            now != before && now.contains("ESTABLISHED")
        });
    }
}

#[test]
fn a_peer_that_goes_leaves_nothing() {
    let (store, (one, on_one), (mut two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    let other = subnet(&two);
    two.kill_agent();
    drop(on_two);
    let key = format!("/coreos.com/network/subnets/{}", two.lease_key());
    store.etcdctl(&["del", &key]);
    wait_until("the peer's objects to go", || {
        let objects = [
            one.namespace.run("ip xfrm policy"),
            one.namespace.run("ip xfrm state"),
            on_one.swanctl("--list-conns"),
            on_one.associations(),
        ];
        !objects.concat().contains(&other) && on_one.connections().is_empty()
    });
    let plain = one.namespace.run("ip xfrm policy");
    assert!(plain.contains("action block"), "{plain}");
}

#[test]
fn another_secret_reaches_a_running_network() {
    let (store, (_one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    let keys = store.lease_keys();
    let config = network(OTHER_SECRET, "");
    store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    // The node with the lower address has both prove that they have it.
    wait_until("the new secret in both charons", || {
        let loads = |charon: &Charon| charon.said().matches("loaded IKE shared key").count();
        loads(&on_one) >= 2
            && loads(&on_two) >= 2
            && on_one.said().contains("reauthenticating IKE_SA")
    });
    assert!(on_one.reconnects(&two));
    assert_eq!(store.lease_keys(), keys);
}

#[test]
fn a_node_with_another_secret_is_kept_out_and_named() {
    let (_store, (one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    // What its agent loaded gives way to another, as after a mistake in an administrator's file.
    on_two.load_secret(&two, &one, OTHER_SECRET);
    let name = on_one.connections().pop().expect("a connection");
    on_one.swanctl(&format!("--terminate --force --timeout 30 --ike {name}"));
    wait_until("the failure in the list of peers", || {
        let output = one.selvage("peers").output().expect("selvage peers");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("the nodes do not accept each other")
    });
}

#[test]
fn cleanup_and_a_change_of_the_backend_leave_nothing() {
    let (store, (mut one, on_one), (two, on_two)) = pair(&network(SECRET, ""));
    on_one.wait_established(&two);
    assert_eq!(one.stop_agent(), Some(0));
    // The stopped agent's tunnels stay.
    assert!(on_one.associations().contains("ESTABLISHED"));
    let output = one.selvage("cleanup").output().expect("selvage cleanup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let config = format!(r#"{{{V4},"Backend":{{"Type":"vxlan"}}}}"#);
    store.etcdctl(&["put", "/coreos.com/network/config", &config]);
    for (host, charon) in [(&one, &on_one), (&two, &on_two)] {
        wait_until("nothing of IPsec", || {
            !host.namespace.run("ip xfrm policy").contains("10.5.")
                && charon.connections().is_empty()
                && !charon.associations().contains("10.5.")
        });
    }
    let routes = two.namespace.run("ip route");
    assert!(!routes.contains("10.5.0.0/16 dev eth0"), "{routes}");
}

/// The subnet of the node that flannel set up.
const FLANNELS: &str = "10.5.200.0/24";

/// The second node, as flannel sets it up for a peer: what its `handle_charon.go` and `handle_xfrm.go` tell charon and
/// kernel, told by swanctl and ip, and its lease.
fn flannel_node(store: &Store, peer: &Host) -> (Host, Charon) {
    let (flannel, charon) = host(store, 2);
    charon.load_flannels(&flannel, FLANNELS, peer, &subnet(peer), SECRET);
    let lease = r#"{"PublicIP":"10.77.0.12","PublicIPv6":null,"BackendType":"ipsec"}"#;
    store.put_lease(&FLANNELS.replace('/', "-"), lease);
    (flannel, charon)
}

#[test]
fn a_flannel_node_is_a_peer() {
    let store = Store::start(&network(SECRET, ""));
    let (mut one, on_one) = host(&store, 1);
    one.join();
    let (flannel, on_flannel) = flannel_node(&store, &one);
    on_one.wait_established(&flannel);
    on_flannel.wait_established(&one);
    let policies = one.namespace.run("ip xfrm policy");
    assert!(policies.contains(&format!("dst {FLANNELS}")), "{policies}");
    if charon::has_esp() {
        let is_there = || on_flannel.associations().contains("INSTALLED");
        wait_until("a tunnel", is_there);
    }
}
