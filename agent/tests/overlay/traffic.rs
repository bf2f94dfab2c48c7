//! Packets between containers: that they arrive, unchanged, and go on arriving while the agent does not run.

use std::process::Stdio;
use std::time::Duration;

use crate::cluster::{NETWORK, Store, pair};
use crate::wait::{wait_for, wait_until};

#[test]
fn containers_on_three_hosts_reach_each_other() {
    let store = Store::start(NETWORK);
    let mut hosts = [1, 2, 3].map(|number| store.host(number));
    for host in &mut hosts {
        host.join();
    }
    for (one, other) in [(0, 1), (1, 2), (2, 0)] {
        hosts[one].wait_reaches(&hosts[other]);
    }
    assert_eq!(hosts[0].subnet_env("FLANNEL_MTU"), "1450");
    assert_eq!(hosts[0].subnet_env("FLANNEL_NETWORK"), "10.5.0.0/16");
    assert_eq!(store.lease_keys().len(), 3);
}

#[test]
fn host_reaches_a_remote_container_from_its_overlay_address() {
    let store = Store::start(NETWORK);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    let target = two.container_address();
    wait_until("the host to reach the remote container", || {
        one.namespace
            .try_run(&format!("ping -c 1 -W 1 -q {target}"))
            .status
            .success()
    });
}

#[test]
fn no_packet_is_lost_while_the_agent_is_killed_and_restarted() {
    let (_store, mut one, two) = pair();

    // Two milliseconds apart, so that a gap of a few is seen; the agent dies and comes back well inside them.
    let ping = one
        .container()
        .command("ping")
        .args(["-q", "-i", "0.002", "-c", "1000", "-W", "2"])
        .arg(two.container_address().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ping");
    std::thread::sleep(Duration::from_millis(500));
    one.kill_agent();
    std::thread::sleep(Duration::from_millis(500));
    one.start_agent();
    one.wait_ready();
    let output = ping.wait_with_output().expect("ping's output");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("1000 packets transmitted, 1000 received, 0% packet loss"),
        "{text}"
    );
}

#[test]
fn restarted_agent_changes_nothing_in_the_kernel() {
    let (_store, mut one, _two) = pair();
    let before = one.overlay_objects();
    one.kill_agent();

    // Every change of a link, an address, a route, a next hop, a neighbour or a rule prints a line.
    let monitor = |command: &str| {
        let mut words = command.split_whitespace();
        one.namespace
            .command(words.next().expect("a program"))
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a monitor")
    };
    let mut monitors = [
        monitor("ip monitor link address route nexthop"),
        monitor("bridge monitor fdb"),
        monitor("nft monitor"),
    ];
    std::thread::sleep(Duration::from_millis(300));
    one.start_agent();
    one.wait_ready();
    std::thread::sleep(Duration::from_secs(2));
    for monitor in &mut monitors {
        monitor.kill().expect("to end the monitor");
    }
    for monitor in monitors {
        let output = monitor.wait_with_output().expect("the monitor's output");
        let text = String::from_utf8_lossy(&output.stdout);
        let changes: Vec<_> = text
            .lines()
            // The bridge of the test ages and learns container addresses by itself.
            .filter(|line| !line.contains("docker0") && !line.contains("veth0"))
            .collect();
        assert!(changes.is_empty(), "the restart changed: {changes:#?}");
    }
    assert_eq!(one.overlay_objects(), before);
}

#[test]
fn stopped_agent_leaves_the_data_plane_and_ends_cleanly() {
    let (_store, mut one, two) = pair();
    assert_eq!(one.stop_agent(), Some(0));
    assert!(one.reaches(&two));
    assert!(two.reaches(&one));
}

#[test]
fn cleanup_leaves_the_namespace_as_it_was() {
    // What iptables adds to the ruleset, its own empty chains, nobody takes away again.
    let store = Store::start(
        r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#,
    );
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    let before = one.overlay_objects();
    let before_two = two.overlay_objects();
    for host in [&mut one, &mut two] {
        host.start_agent();
        host.wait_ready();
    }
    wait_until("the peers' routes", || {
        [&one, &two]
            .iter()
            .all(|host| host.namespace.ip("route show").contains("flannel.1"))
    });
    assert_eq!(one.stop_agent(), Some(0));
    assert_ne!(one.overlay_objects(), before);

    let output = one.selvage("cleanup").output().expect("selvage cleanup");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(one.overlay_objects(), before);
    assert!(!one.subnet_file().exists());
    // A second run finds nothing and says so without failing.
    assert!(
        one.selvage("cleanup")
            .status()
            .expect("selvage cleanup")
            .success()
    );

    // The kept MAC address went away with the state directory, and nobody reads what is said.
    assert_eq!(two.stop_agent(), Some(0));
    let state = two.subnet_file().with_file_name("state");
    std::fs::remove_dir_all(&state).expect("the state");
    std::fs::create_dir(&state).expect("the state directory");
    std::fs::write(state.join("machine-id"), "0123\n").expect("a kept id");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = two.selvage("cleanup").stdout(writer).output();
    let output = output.expect("selvage cleanup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("failed to print"), "{stderr}");
    assert_eq!(two.overlay_objects(), before_two);
    assert!(!two.subnet_file().exists());
    let left: Vec<_> = std::fs::read_dir(&state)
        .expect("the state directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn peer_that_leaves_is_removed_and_one_that_moves_is_followed() {
    let (store, one, mut two) = pair();

    // The peer's device gets another address: a node that was set up anew keeps its subnet, not its MAC.
    two.kill_agent();
    two.namespace.ip("link del flannel.1");
    std::fs::remove_dir_all(two.subnet_file().with_file_name("state")).expect("the peer's state");
    two.start_agent();
    two.wait_ready();
    one.wait_reaches(&two);

    two.kill_agent();
    store.etcdctl(&[
        "del",
        &format!("/coreos.com/network/subnets/{}", two.lease_key()),
    ]);
    let gone = wait_for(Duration::from_secs(10), "the peer's objects to go", || {
        let objects = one.overlay_objects();
        let subnet = two.lease_key().replace("-24", "");
        (!objects.contains(&subnet) && !objects.contains("10.77.0.12")).then_some(objects)
    });
    assert!(gone.contains("flannel.1"));
}
