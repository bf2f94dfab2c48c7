//! Several networks on one host: agents side by side in one network namespace.
//!
//! ```text
//!   node 1                                   node 2
//!   container  container blue                container  container blue
//!   docker0    br-blue                       docker0    br-blue
//!   flannel.1  flannel.2                     flannel.1  flannel.2
//!   eth0 10.77.0.11 ──────────── switch ──── eth0 10.77.0.12
//! ```
//!
//! Whatever is done to one network, a counted flow in the other loses no packet, and its kernel objects stay as they are.

use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::kernel::{Flow, wait_for_plan};
use crate::wait::{wait_for, wait_until};

/// For what happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Which of a host's two networks is worked on; the other one is watched.
#[derive(Clone, Copy, PartialEq)]
enum Actor {
    Default,
    Blue,
}

/// What is there before the work begins, and whether it goes on.
struct Case {
    /// The back ends of the default network and of blue.
    backends: [&'static str; 2],
    actor: Actor,
    firewall: &'static str,
    /// What the actor's back end is changed to.
    other_backend: &'static str,
}

fn network_config(second: u8, backend: &str) -> String {
    format!(r#"{{"Network":"10.{second}.0.0/16","Backend":{backend}}}"#)
}

/// A host in the default network and in blue; both agents look at everything each second.
fn host(store: &Store, number: u8, firewall: &str) -> [Host; 2] {
    let mut default = store.host(number);
    default.environment = vec![
        ("SELVAGE_RESYNC", "1".to_owned()),
        ("SELVAGE_FIREWALL_MODE", firewall.to_owned()),
    ];
    let blue = default.in_network("blue");
    [default, blue]
}

/// Writes the network config of the default network or of blue.
fn set(store: &Store, actor: Actor, config: &str) {
    let key = match actor {
        Actor::Default => "/coreos.com/network/config",
        Actor::Blue => "/coreos.com/network/blue/config",
    };
    store.etcdctl(&["put", key, config]);
}

/// All objects of the network 10.`second`.0.0/16 on a host, whatever made them: routes with their next hops, the device, the
/// rules.
fn objects(host: &Host, second: u8) -> String {
    let run = |line: &str| host.namespace.run(line);
    let routes = run(&format!("ip route show root 10.{second}.0.0/16"));
    let ids: Vec<&str> = routes
        .lines()
        .filter_map(|line| line.split_once("nhid ")?.1.split(' ').next())
        .collect();
    let hops = run("ip nexthop show");
    let hops = hops
        .lines()
        .filter(|line| line.split(' ').nth(1).is_some_and(|id| ids.contains(&id)));
    let mut text = format!("{routes}{}\n", hops.collect::<Vec<_>>().join("\n"));
    let addresses = run("ip -o -4 address show");
    let device = addresses
        .lines()
        .filter(|line| line.contains(&format!(" 10.{second}.")))
        .filter_map(|line| line.split_whitespace().nth(1))
        .find(|device| device.starts_with("flannel"));
    if let Some(device) = device {
        for line in [
            "ip -d link show",
            "ip address show",
            "bridge fdb show",
            "ip neighbor show",
        ] {
            let permanent = if line.ends_with("neighbor show") {
                " nud permanent"
            } else {
                ""
            };
            text += &run(&format!("{line} dev {device}{permanent}"));
        }
    }
    // A chain of nobody's has no network in it.
    let rules = run("nft -s list ruleset");
    let of_network = rules
        .lines()
        .filter(|line| line.contains(&format!(" 10.{second}.")));
    text + &of_network.collect::<Vec<_>>().join("\n")
}

/// Both networks on two hosts, then everything that can be done to one of them.
fn work(case: &Case) {
    let [default_config, blue_config] =
        [(5, case.backends[0]), (6, case.backends[1])].map(|(n, b)| network_config(n, b));
    let store = Store::start(&default_config);
    set(&store, Actor::Blue, &blue_config);
    let mut hosts = [1, 2].map(|number| host(&store, number, case.firewall));
    for host in hosts.iter_mut().flatten() {
        host.join();
    }
    let [one, two] = &hosts;
    for network in 0..2 {
        one[network].wait_reaches(&two[network]);
    }
    let (actor, watched, second) = match case.actor {
        Actor::Default => (0, 1, 6),
        Actor::Blue => (1, 0, 5),
    };
    let flow = Flow::start(&one[watched], two[watched].container_address());
    let before = [one, two].map(|host| objects(&host[watched], second));
    assert!(
        before.iter().all(|objects| objects.contains("proto 83")),
        "{before:?}"
    );
    let check = |hosts: &[[Host; 2]; 2], what: &str| {
        for (host, before) in hosts.iter().zip(&before) {
            let now = objects(&host[watched], second);
            assert_eq!(&now, before, "{what} changed the other network");
        }
    };

    // Some periods of comparing everything.
    std::thread::sleep(Duration::from_millis(2500));
    check(&hosts, "comparing");
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        host[actor].start_agent();
        host[actor].wait_ready();
    }
    check(&hosts, "a restart");
    for host in &mut hosts {
        host[actor].kill_agent();
        host[actor].start_agent();
        host[actor].wait_ready();
    }
    check(&hosts, "a crash");

    let config = match case.actor {
        Actor::Default => network_config(5, case.other_backend),
        Actor::Blue => network_config(6, case.other_backend),
    };
    let mtu = hosts[0][actor].subnet_env("FLANNEL_MTU");
    set(&store, case.actor, &config);
    for host in &hosts {
        wait_until("the other back end", || {
            host[actor].subnet_env("FLANNEL_MTU") != mtu
        });
    }
    let [one, two] = &hosts;
    one[actor].wait_reaches(&two[actor]);
    check(&hosts, "another back end");

    // Another network, for which the agents must be started anew.
    set(&store, case.actor, &network_config(7, case.backends[actor]));
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        host[actor].start_agent();
        host[actor].wait_ready();
        assert_eq!(host[actor].subnet_env("FLANNEL_NETWORK"), "10.7.0.0/16");
    }
    for host in &hosts {
        wait_for(SOON, "the routes to the other network", || {
            objects(&host[actor], 7).contains("proto 83").then_some(())
        });
        let former = objects(&host[actor], if actor == 0 { 5 } else { 6 });
        assert!(!former.contains("proto 83"), "{former}");
    }
    check(&hosts, "another network");

    let leases = |actor| {
        let below = if actor == 0 { "" } else { "/blue" };
        let prefix = format!("/coreos.com/network{below}/subnets/");
        let keys = store.etcdctl(&["get", "--prefix", "--keys-only", &prefix]);
        keys.lines().filter(|key| !key.is_empty()).count()
    };
    for host in &mut hosts {
        assert_eq!(host[actor].stop_agent(), Some(0));
        let before = [leases(actor), leases(watched)];
        let left = host[actor]
            .selvage("leave")
            .output()
            .expect("selvage leave");
        assert!(left.status.success(), "{left:?}");
        assert_eq!([leases(actor) + 1, leases(watched)], before);
        let output = host[actor]
            .selvage("cleanup")
            .output()
            .expect("selvage cleanup");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let left = objects(&host[actor], 7);
        assert!(
            !left.contains("proto 83") && !left.contains("10.7."),
            "{left}"
        );
    }
    check(&hosts, "cleanup");
    std::thread::sleep(Duration::from_millis(1500));
    check(&hosts, "what followed cleanup");
    flow.finish(500);
    let [one, two] = &hosts;
    assert!(one[watched].reaches(&two[watched]));
    for host in &hosts {
        let log = host[watched].log();
        assert!(!log.contains("WARN"), "{log}");
        // Once at the start, and then never again.
        assert_eq!(log.matches("firewall programmed").count(), 1, "{log}");
        if case.actor == Actor::Blue && case.backends[0].contains("vxlan") {
            wait_for_plan(&store, &host[watched], SOON);
        }
    }
}

const VXLAN_1: &str = r#"{"Type":"vxlan"}"#;
const VXLAN_2: &str = r#"{"Type":"vxlan","VNI":2}"#;
const VXLAN_3: &str = r#"{"Type":"vxlan","VNI":3,"MTU":1400}"#;
const HOST_GW: &str = r#"{"Type":"host-gw"}"#;

#[test]
fn vxlan_stays_whole_whatever_a_named_vxlan_does() {
    work(&Case {
        backends: [VXLAN_1, VXLAN_2],
        actor: Actor::Blue,
        firewall: "nftables",
        other_backend: VXLAN_3,
    });
}

#[test]
fn named_vxlan_stays_whole_whatever_the_default_vxlan_does() {
    work(&Case {
        backends: [VXLAN_1, VXLAN_2],
        actor: Actor::Default,
        firewall: "iptables",
        other_backend: HOST_GW,
    });
}

#[test]
fn vxlan_stays_whole_whatever_a_named_host_gw_does() {
    work(&Case {
        backends: [VXLAN_1, HOST_GW],
        actor: Actor::Blue,
        firewall: "iptables",
        other_backend: VXLAN_3,
    });
}

/// Both have next hops over the same device to the same addresses.
#[test]
fn host_gw_stays_whole_whatever_a_named_host_gw_does() {
    work(&Case {
        backends: [HOST_GW, HOST_GW],
        actor: Actor::Blue,
        firewall: "nftables",
        other_backend: VXLAN_2,
    });
}

#[test]
fn named_host_gw_stays_whole_whatever_the_default_host_gw_does() {
    work(&Case {
        backends: [HOST_GW, HOST_GW],
        actor: Actor::Default,
        firewall: "nftables",
        other_backend: VXLAN_2,
    });
}

/// Waits until an agent says, while it waits, what for.
fn wait_refused(host: &mut Host, words: &str) {
    host.wait_told(words, |line| {
        line.starts_with("STATUS=waiting for") && line.contains(words)
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
            "the device flannel.1, which another agent on this host has (process {id}); networks on one host need different VNIs"
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
    wait_refused(
        &mut blue,
        "the device flannel.1, which is there and belongs to the default network, or to another program",
    );
    assert_eq!(one.overlay_objects(), before);
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
        &format!(
            "10.5.128.0/17 overlaps 10.5.0.0/16, in which another agent on this host is (process {id})"
        ),
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
    wait_for(SOON, "the default network to wait", || {
        one.log()
            .contains("the device flannel.2, which is there and belongs to the network blue")
            .then_some(())
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
    wait_for(SOON, "the device to be marked again", || {
        let link = blue.namespace.try_run("ip link show flannel.2").stdout;
        let link = String::from_utf8_lossy(&link).into_owned();
        link.contains("alias selvage network blue").then_some(())
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
    assert!(!green.log().contains("WARN") && !blue.log().contains("WARN"));
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
        "process {id} of user 65534 has taken the name selvage/device/flannel.1; going on without it"
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
        &format!(
            "the network green, in which another agent on this host is already (process {id})"
        ),
    );
    // Nor may it be cleaned up from elsewhere.
    let before = first.overlay_objects();
    second.kill_agent();
    let output = second.selvage("cleanup").output().expect("selvage cleanup");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another agent on this host"), "{stderr}");
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

#[test]
fn udp_networks_have_devices_of_their_own() {
    let udp = |port: u16| format!(r#"{{"Type":"udp","Port":{port}}}"#);
    let store = Store::start(&network_config(5, &udp(8285)));
    set(&store, Actor::Blue, &network_config(6, &udp(8286)));
    let mut hosts = [1, 2].map(|number| host(&store, number, "nftables"));
    for host in hosts.iter_mut().flatten() {
        host.join();
    }
    let [one, two] = &mut hosts;
    for network in 0..2 {
        one[network].wait_reaches(&two[network]);
    }
    let show = |host: &Host| host.namespace.ip("route show proto 83");
    let routes = show(&one[0]);
    assert!(routes.contains("10.5.0.0/16 dev flannel0"), "{routes}");
    assert!(routes.contains("10.6.0.0/16 dev flannel1"), "{routes}");
    let flow = Flow::start(&one[1], two[1].container_address());
    for host in [&mut *one, &mut *two] {
        host[0].kill_agent();
        host[0].start_agent();
        host[0].wait_ready();
        host[0].stop_agent();
        assert!(
            host[0]
                .selvage("cleanup")
                .status()
                .expect("cleanup")
                .success()
        );
        let routes = show(&host[1]);
        assert_eq!(routes.trim(), "10.6.0.0/16 dev flannel1 scope link");
    }
    flow.finish(50);
}

/// `flanneld` twice, as flannel's documentation has it for several networks.
struct Flanneld(Child);

impl Flanneld {
    fn start(host: &Host, directory: &TempDir, name: &str) -> Self {
        let program = directory.path().join("flanneld");
        let mut command: Command = host.namespace.command(program.to_str().expect("a path"));
        let child = command
            .args(["--etcd-endpoints", &host.etcd, "--iface=eth0", "--ip-masq"])
            .arg(format!("-etcd-prefix=/{name}"))
            .arg("-subnet-file")
            .arg(directory.path().join(format!("{name}.env")))
            .env("SELVAGE_STATE_DIR", directory.path().join(name))
            .env(
                "SELVAGE_SOCKET",
                directory.path().join(format!("{name}.sock")),
            )
            .env("SELVAGE_NODE_ID", "flanneld")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("flanneld"))
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn flanneld_runs_twice_as_flannels_documentation_has_it() {
    let store = Store::start(NETWORK);
    for (prefix, second, backend) in [("/a", 5, VXLAN_1), ("/b", 6, VXLAN_2)] {
        let key = format!("{prefix}/config");
        store.etcdctl(&["put", &key, &network_config(second, backend)]);
        let ghost = format!(
            r#"{{"PublicIP":"10.77.0.40","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":{},"VtepMAC":"c6:d2:32:6f:8f:4{second}"}}}}"#,
            second - 4
        );
        let key = format!("{prefix}/subnets/10.{second}.240.0-24");
        store.etcdctl(&["put", &key, &ghost]);
    }
    let host = store.host(1);
    let directory = TempDir::new().expect("a directory");
    symlink(
        env!("CARGO_BIN_EXE_selvage"),
        directory.path().join("flanneld"),
    )
    .expect("a link");
    let [a, b] = ["a", "b"].map(|name| Flanneld::start(&host, &directory, name));
    let text = |name: &str| {
        let path = directory.path().join(format!("{name}.env"));
        std::fs::read_to_string(path).unwrap_or_default()
    };
    wait_for(SOON, "both networks", || {
        let both = text("a").contains("FLANNEL_NETWORK=10.5.0.0/16")
            && text("b").contains("FLANNEL_NETWORK=10.6.0.0/16");
        both.then_some(())
    });
    let routes = || host.namespace.ip("route show proto 83");
    for (subnet, device) in [
        ("10.5.240.0/24", "flannel.1"),
        ("10.6.240.0/24", "flannel.2"),
    ] {
        let route = host.namespace.ip(&format!("route show {subnet}"));
        assert!(route.contains(&format!("dev {device}")), "{route}");
    }
    assert_eq!(routes().lines().count(), 2, "{}", routes());
    let rules = host.namespace.run("iptables-save");
    assert_eq!(rules.matches("-A FORWARD").count(), 2, "{rules}");
    let before = host.overlay_objects();
    drop(a);
    let again = Flanneld::start(&host, &directory, "a");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.overlay_objects(), before);
    drop((again, b));
    assert_eq!(host.overlay_objects(), before);
}
