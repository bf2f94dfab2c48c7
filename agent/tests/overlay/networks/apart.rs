//! What keeps networks apart: who may have a device, a range of addresses and a name.

use std::process::Stdio;
use std::time::Duration;

use super::{Actor, VXLAN_1, VXLAN_2, VXLAN_3, host, network_config, set};
use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::wait::wait_until;

/// Waits until an agent says, while it waits, what for.
fn wait_refused(host: &mut Host, words: &str) {
    host.wait_told(words, |line| {
        line.starts_with("STATUS=waiting to join:") && line.contains(words)
    });
    assert!(!host.subnet_file().exists());
}

#[test]
fn networks_with_one_device_or_one_range_of_addresses_are_refused_in_words() {
    let store = Store::start(NETWORK);
    set(&store, Actor::Blue, &network_config(6, VXLAN_1));
    let [mut one, mut blue] = host(&store, 1, "nftables");
    one.start_agent();
    one.wait_ready();
    let before = one.overlay_objects();
    blue.start_agent();
    let id = one.agent_id();
    wait_refused(
        &mut blue,
        &format!(
            "the device flannel.1 is in use by another agent on this host (process {id}); give each network on a host its own VNI"
        ),
    );
    assert_eq!(one.overlay_objects(), before);
    assert!(
        !store
            .etcdctl(&[
                "get",
                "--prefix",
                "--keys-only",
                "/coreos.com/network/blue/"
            ])
            .contains("subnets")
    );

    // The device is the other's also while its agent does not run.
    assert_eq!(one.stop_agent(), Some(0));
    let stopped = one.overlay_objects();
    wait_refused(
        &mut blue,
        "the device flannel.1 exists and belongs to the default network, or to another program",
    );
    assert_eq!(one.overlay_objects(), stopped);
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.overlay_objects(), before);

    // A part of the other's addresses.
    set(
        &store,
        Actor::Blue,
        r#"{"Network":"10.5.128.0/17","SubnetLen":24,"Backend":{"Type":"vxlan","VNI":2}}"#,
    );
    let id = one.agent_id();
    wait_refused(
        &mut blue,
        &format!("10.5.128.0/17 overlaps 10.5.0.0/16 of another agent on this host (process {id})"),
    );
    assert_eq!(one.overlay_objects(), before);

    // What is set right counts.
    set(&store, Actor::Blue, &network_config(6, VXLAN_2));
    blue.wait_ready();
    let link = blue.namespace.ip("link show flannel.2");
    assert!(link.contains("alias selvage network blue"), "{link}");

    // The other way round: a device of a named network is not the default one's.
    one.stop_agent();
    blue.kill_agent();
    set(&store, Actor::Default, &network_config(5, VXLAN_2));
    one.start_agent();
    wait_until("the default network to wait", || {
        one.log()
            .contains("the device flannel.2 exists and belongs to the network blue")
    });
    assert!(
        blue.namespace
            .ip("address show flannel.2")
            .contains(" 10.6.")
    );
}

/// What a real flannel, or an agent without a name, made for the same network is taken over; what is another's is not.
#[test]
fn a_named_network_takes_its_own_device_over_and_gives_it_free() {
    let store = Store::start(NETWORK);
    set(&store, Actor::Blue, &network_config(6, VXLAN_2));
    let [_, mut blue] = host(&store, 1, "nftables");
    let ip = |blue: &Host, arguments: &str| blue.namespace.ip(arguments);
    for arguments in [
        "link add flannel.2 address c6:d2:32:6f:8f:01 mtu 1450 txqueuelen 0 type vxlan id 2 dev eth0 local 10.77.0.11 dstport 8472 nolearning noudpcsum",
        "address add 10.6.77.0/32 dev flannel.2",
        "link set flannel.2 up",
    ] {
        ip(&blue, arguments);
    }
    let index = |blue: &Host| {
        ip(blue, "-o link show flannel.2")
            .split(':')
            .next()
            .map(str::to_owned)
    };
    let before = index(&blue);
    blue.start_agent();
    blue.wait_ready();
    let link = ip(&blue, "link show flannel.2");
    assert_eq!(index(&blue), before);
    assert!(link.contains("c6:d2:32:6f:8f:01"), "{link}");
    assert!(link.contains("alias selvage network blue"), "{link}");

    // One that somebody removes comes back as this network's.
    ip(&blue, "link del flannel.2");
    wait_until("the device to be marked again", || {
        let link = blue.namespace.try_run("ip link show flannel.2").stdout;
        String::from_utf8_lossy(&link).contains("alias selvage network blue")
    });

    // What it does not need any more is free for others, while its agent goes on.
    set(&store, Actor::Blue, &network_config(6, VXLAN_3));
    wait_until("the other device", || {
        let all = ip(&blue, "-br link show");
        all.contains("flannel.3") && !all.contains("flannel.2")
    });
    store.etcdctl(&[
        "put",
        "/coreos.com/network/green/config",
        &network_config(7, VXLAN_2),
    ]);
    let mut green = blue.in_network("green");
    green.start_agent();
    green.wait_ready();
    let before = green.overlay_objects();
    assert!(before.contains("alias selvage network green"), "{before}");
    // Blue compares everything each second.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(green.overlay_objects(), before);
    blue.kill_agent();
    blue.start_agent();
    blue.wait_ready();
    assert_eq!(green.overlay_objects(), before);
    assert!(!blue.log().contains("WARN"), "{}", blue.log());
    // At most that blue was not quite done with the device.
    let green = green.log();
    let warnings = green.lines().filter(|line| line.contains("WARN"));
    for line in warnings {
        assert!(
            line.contains("waiting to join: failed to set up the backend: the device flannel.2"),
            "{line}"
        );
    }
}

/// Any user may take the name by which agents find each other.
#[test]
fn a_name_that_an_ordinary_user_took_keeps_nobody_out() {
    const SQUAT: &str = r#"use Socket; for (@ARGV) { socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die;
        bind($s, pack("S a*", AF_UNIX, "\0selvage/$_")) or die; listen($s, 1) or die; push @all, $s }
        print "taken\n"; close STDOUT; sleep 60"#;
    let store = Store::start(NETWORK);
    let [mut one, _] = host(&store, 1, "nftables");
    let mut squatter = one
        .namespace
        .command("setpriv")
        .args(["--reuid=65534", "--clear-groups", "perl", "-e", SQUAT])
        .args([
            "network/",
            "device/flannel.1",
            "overlay/10.5.0.0/16",
            "overlay/10.5.0.0/17",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv and perl");
    let mut said = String::new();
    let mut output = squatter.stdout.take().expect("its output");
    std::io::Read::read_to_string(&mut output, &mut said).expect("to be told");
    assert_eq!(said, "taken\n");
    one.start_agent();
    one.wait_ready();
    let id = squatter.id();
    let warning = format!(
        "ignoring the abstract socket selvage/device/flannel.1: process {id} holds it, but user 65534 is not trusted"
    );
    assert!(one.log().contains(&warning), "{}", one.log());
    let _ = squatter.kill();
    let _ = squatter.wait();
}

#[test]
fn two_agents_in_one_network_are_told_so() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    let green = ["green", "green"].map(|name| one.in_network(name));
    one.start_agent();
    one.wait_ready();
    store.etcdctl(&[
        "put",
        "/coreos.com/network/green/config",
        &network_config(6, VXLAN_2),
    ]);
    let [mut first, mut second] = green;
    first.start_agent();
    first.wait_ready();
    second.start_agent();
    let id = first.agent_id();
    wait_refused(
        &mut second,
        &format!("the network green already has an agent on this host (process {id})"),
    );
    // Nor may it be cleaned up from elsewhere.
    let before = first.overlay_objects();
    second.kill_agent();
    let output = second.selvage("cleanup").output().expect("selvage cleanup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("the network green already has an agent on this host"),
        "{stderr}"
    );
    assert_eq!(first.namespace.ip("route show"), routes_of(&before));
    assert_eq!(one.stop_agent(), Some(0));
}

/// The part of [`Host::overlay_objects`] that `ip route show` printed.
fn routes_of(objects: &str) -> String {
    let (_, rest) = objects.split_once("# ip route show\n").expect("the routes");
    rest.split_once("\n# ")
        .expect("more")
        .0
        .trim_end()
        .to_owned()
        + " \n"
}
