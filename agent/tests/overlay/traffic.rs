//! Packets between containers: that they arrive, unchanged, and go on arriving while the agent does not run.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

use crate::cluster::{NETWORK, Store, pair};
use crate::kernel::Flow;
use crate::namespace::Namespace;
use crate::wait::{PATIENCE, wait_for, wait_until};

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

    // Two milliseconds apart, so that a gap of a few is seen.
    let flow = Flow::start_every("0.002", &one, two.container_address());
    flow.wait_answered(100);
    one.kill_agent();
    flow.wait_answered(100);
    one.start_agent();
    one.wait_ready();
    flow.wait_answered(100);
    flow.finish();
}

/// A program that prints a line for every change of something.
struct Monitor {
    child: Child,
    /// A pipe that nobody reads would hold it up.
    output: NamedTempFile,
}

impl Monitor {
    fn start(namespace: &Namespace, command: &str) -> Self {
        let output = NamedTempFile::new().expect("a file for the monitor's output");
        let mut words = command.split_whitespace();
        let child = namespace
            .command(words.next().expect("a program"))
            .args(words)
            .stdout(Stdio::from(output.reopen().expect("the file")))
            .spawn()
            .expect("a monitor");
        Self { child, output }
    }

    fn printed(&self) -> String {
        fs::read_to_string(self.output.path()).expect("the monitor's output")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn restarted_agent_changes_nothing_in_the_kernel() {
    let (_store, mut one, _two) = pair();
    let before = one.overlay_objects();
    one.kill_agent();

    // Every change of a link, an address, a route, a next hop, a neighbour or a rule prints a line.
    let monitors = [
        "ip monitor link address route nexthop",
        "bridge monitor fdb",
        "nft monitor",
    ]
    .map(|command| Monitor::start(&one.namespace, command));
    // Changes of the test's own, which the monitors must show: that they listen already, and that they showed all before.
    let namespace = std::sync::Arc::clone(&one.namespace);
    let announce = |address: &str| {
        let (mac, table) = (
            format!("02:00:00:00:00:{address}"),
            format!("mark{address}"),
        );
        wait_until("the monitors to show a change", || {
            for command in [
                format!("ip route add 192.0.2.{address}/32 dev docker0"),
                format!("ip route del 192.0.2.{address}/32 dev docker0"),
                format!("bridge fdb add {mac} dev docker0 self local"),
                format!("bridge fdb del {mac} dev docker0 self local"),
                format!("nft add table inet {table}"),
                format!("nft delete table inet {table}"),
            ] {
                namespace.run(&command);
            }
            let seen = [format!("192.0.2.{address}"), mac.clone(), table.clone()];
            let mut pairs = monitors.iter().zip(&seen);
            pairs.all(|(monitor, seen)| monitor.printed().contains(seen))
        });
    };
    announce("11");
    one.start_agent();
    one.wait_ready();
    std::thread::sleep(Duration::from_secs(2));
    announce("22");
    for monitor in &monitors {
        let text = monitor.printed();
        // nft tells the end of each transaction, also of one without a change.
        let is_mark = |line: &str| line.contains("table inet mark");
        let mut former = "";
        let changes: Vec<_> = text
            .lines()
            .filter(|line| {
                let ends_mark = line.starts_with('#') && is_mark(former);
                former = line;
                !is_mark(line) && !ends_mark
            })
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
    assert!(stderr.contains("failed to write the output"), "{stderr}");
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
    let gone = wait_for(PATIENCE, "the peer's objects to go", || {
        let objects = one.overlay_objects();
        let subnet = two.lease_key().replace("-24", "");
        (!objects.contains(&subnet) && !objects.contains("10.77.0.12")).then_some(objects)
    });
    assert!(gone.contains("flannel.1"));
}
