//! Containers with Debian's plugins: the delegate is the real bridge plugin, and the address from the real host-local.
//!
//! ```text
//!   host                                container
//!   cni0 10.1.17.1/24 ── veth1a2b ───── eth0 10.1.17.2/24
//!                                       default via 10.1.17.1
//! ```

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::host::{Answer, Host, run};
use crate::netns::NetNs;

const PLUGINS: &str = "/usr/lib/cni";

/// A host in a namespace, whose addresses are given out in a directory of the test's.
struct Node {
    host: Host,
    netns: NetNs,
    conf: Value,
}

impl Node {
    fn new(conf: Value) -> Self {
        assert!(
            fs::exists(format!("{PLUGINS}/bridge")).unwrap(),
            "the test needs Debian's containernetworking-plugins"
        );
        let mut host = Host::new();
        host.plugins = PLUGINS.into();
        Self {
            host,
            netns: NetNs::new(),
            conf,
        }
    }

    /// Calls the plugin on the host about a container's `eth0`.
    fn call(&self, command: &str, name: &str, container: &NetNs, more: Value) -> Answer {
        self.call_about(command, name, "eth0", container, more)
    }

    fn call_about(
        &self,
        command: &str,
        name: &str,
        interface: &str,
        container: &NetNs,
        more: Value,
    ) -> Answer {
        let mut conf = self.conf.clone();
        let (Value::Object(map), Value::Object(more)) = (&mut conf, more) else {
            panic!("more keys must be an object");
        };
        map.extend(more);
        map.insert("ipam".into(), json!({"dataDir": self.host.path("ipam")}));
        let process = self.host.plugin();
        let variables = [command, name, interface];
        self.run(process, variables, container, &self.host.conf(conf))
    }

    /// Runs a plugin on the host; the variables are the command, the container and the interface.
    fn run(
        &self,
        mut process: Command,
        [command, name, interface]: [&str; 3],
        container: &NetNs,
        conf: &str,
    ) -> Answer {
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", name)
            .env("CNI_IFNAME", interface)
            .env("CNI_NETNS", container.path())
            .env("CNI_PATH", &self.host.plugins);
        let _inside = self.netns.enter();
        run(process, conf)
    }

    /// The addresses that are given out, sorted.
    fn given_out(&self, network: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.host.path("ipam").join(network)) else {
            return Vec::new();
        };
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let names = entries.map(|entry| name(entry.unwrap()));
        let mut names: Vec<_> = names.filter(|n| n.starts_with(['1', 'f'])).collect();
        names.sort();
        names
    }

    /// The bridge's IPv4 addresses.
    fn bridge_addresses(&self) -> Vec<String> {
        let text = self.netns.ip("-o -4 address show dev cni0");
        let mut words = text.split_whitespace();
        std::iter::from_fn(|| {
            words.find(|word| *word == "inet")?;
            words.next().map(ToOwned::to_owned)
        })
        .collect()
    }
}

fn result(answer: &Answer) -> Value {
    serde_json::from_str(answer.result()).unwrap()
}

#[test]
fn container_gets_address_route_and_mtu_and_gives_them_back() {
    let node = Node::new(json!({
        "cniVersion": "1.0.0", "delegate": {"isDefaultGateway": true, "hairpinMode": true},
    }));
    let container = NetNs::new();
    let added = result(&node.call("ADD", "c1", &container, json!({})));
    assert_eq!(added["ips"][0]["address"], "10.1.17.2/24");
    assert_eq!(added["cniVersion"], "1.0.0");
    assert_eq!(node.given_out("net"), ["10.1.17.2"]);
    assert_eq!(node.bridge_addresses(), ["10.1.17.1/24"]);
    let link = container.ip("-o link show dev eth0");
    assert!(link.contains("mtu 1472"), "{link}");
    let routes = container.ip("route");
    assert!(
        routes.contains("default via 10.1.17.1 dev eth0"),
        "{routes}"
    );
    assert!(
        routes.contains("10.1.0.0/16 via 10.1.17.1 dev eth0"),
        "{routes}"
    );
    container.run("ping", "-c 1 -W 5 10.1.17.1");

    let known = json!({"prevResult": added});
    assert_eq!(
        node.call("CHECK", "c1", &container, known.clone()).result(),
        ""
    );
    container.ip("address del 10.1.17.2/24 dev eth0");
    let (code, message) = node.call("CHECK", "c1", &container, known.clone()).error();
    assert!(message.contains("10.1.17.2"), "{code} {message}");

    assert_eq!(node.call("DEL", "c1", &container, known).result(), "");
    assert_eq!(node.given_out("net"), [""; 0]);
    assert!(
        !container
            .output("ip", "link show dev eth0")
            .status
            .success()
    );
    assert_eq!(node.host.remembered(), [""; 0]);
}

#[test]
fn every_version_of_the_specification_works_with_the_real_plugins() {
    // Debian 12's bridge plugin speaks up to 1.0.0.
    let node = Node::new(json!({}));
    let versions = [
        None,
        Some("0.1.0"),
        Some("0.2.0"),
        Some("0.3.0"),
        Some("0.3.1"),
        Some("0.4.0"),
        Some("1.0.0"),
    ];
    for version in versions {
        let container = NetNs::new();
        let keys = json!({"cniVersion": version, "name": "containers"});
        let added = result(&node.call("ADD", "pod", &container, keys.clone()));
        let (old, new) = (&added["ip4"]["ip"], &added["ips"][0]["address"]);
        let address = old.as_str().or(new.as_str()).unwrap();
        let (address, _) = address.split_once('/').unwrap();
        assert!(address.starts_with("10.1.17."), "{version:?}: {added}");
        container.run("ping", "-c 1 -W 5 10.1.17.1");
        assert_eq!(node.given_out("containers"), [address], "{version:?}");
        assert_eq!(node.call("DEL", "pod", &container, keys).result(), "");
        assert_eq!(node.given_out("containers"), [""; 0], "{version:?}");
    }
}

#[test]
fn container_gets_an_address_of_each_family() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let v6 = "FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:5::1/64\n";
    node.host
        .write("subnet.env", &[crate::host::SUBNET_ENV, v6].concat());
    let container = NetNs::new();
    let added = result(&node.call("ADD", "c1", &container, json!({})));
    assert_eq!(node.given_out("net"), ["10.1.17.2", "fd00:1:0:5::2"]);
    let routes = container.ip("-6 route");
    assert!(
        routes.contains("fd00:1::/48 via fd00:1:0:5::1 dev eth0"),
        "{routes}"
    );
    let known = json!({"prevResult": added});
    let check = || node.call("CHECK", "c1", &container, known.clone());
    assert_eq!(check().result(), "");
    container.ip("-6 route del fd00:1::/48");
    let (_, message) = check().error();
    assert!(message.contains("fd00:1::"), "{message}");
    assert_eq!(node.call("DEL", "c1", &container, json!({})).result(), "");
    assert_eq!(node.given_out("net"), [""; 0]);
}

#[test]
fn result_is_one_that_a_chained_plugin_takes() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let container = NetNs::new();
    let added = result(&node.call("ADD", "c1", &container, json!({})));
    let tuning = json!({
        "name": "net", "type": "tuning", "cniVersion": "1.0.0", "prevResult": added, "mtu": 1400,
    });
    let process = Command::new(format!("{PLUGINS}/tuning"));
    let variables = ["ADD", "c1", "eth0"];
    let answer = node.run(process, variables, &container, &tuning.to_string());
    assert_eq!(result(&answer)["ips"], added["ips"]);
    let link = container.ip("-o link show dev eth0");
    assert!(link.contains("mtu 1400"), "{link}");
}

#[test]
fn bridge_follows_a_new_subnet_once_no_container_uses_the_old_one() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let [old, new] = [NetNs::new(), NetNs::new()];
    result(&node.call("ADD", "old", &old, json!({})));
    let moved = crate::host::SUBNET_ENV.replace("10.1.17.1", "10.1.99.1");
    node.host.write("subnet.env", &moved);

    let (code, message) = node.call("ADD", "new", &new, json!({})).error();
    assert_eq!(code, 102, "{message}");
    assert!(
        message.starts_with("bridge cni0 still has the address 10.1.17.1/24 of an old subnet"),
        "{message}"
    );
    assert_eq!(
        node.bridge_addresses(),
        ["10.1.17.1/24"],
        "a container uses it"
    );
    old.run("ping", "-c 1 -W 5 10.1.17.1");
    assert_eq!(node.host.remembered(), ["old", "old:net:eth0"]);

    assert_eq!(node.call("DEL", "old", &old, json!({})).result(), "");
    let answer = node.call("ADD", "new", &new, json!({}));
    assert_eq!(result(&answer)["ips"][0]["address"], "10.1.99.2/24");
    assert!(
        answer
            .stderr
            .contains("removed the address 10.1.17.1/24 of an old subnet from cni0"),
        "{answer:?}"
    );
    assert_eq!(node.bridge_addresses(), ["10.1.99.1/24"]);
    new.run("ping", "-c 1 -W 5 10.1.99.1");
    // The second container finds nothing to do.
    let answer = node.call("ADD", "third", &old, json!({}));
    assert_eq!(result(&answer)["ips"][0]["address"], "10.1.99.3/24");
    assert!(!answer.stderr.contains("removed"), "{answer:?}");
}

#[test]
fn address_outside_the_overlay_is_left_to_the_bridge_plugin() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    node.netns.ip("link add cni0 type bridge");
    node.netns.ip("address add 192.168.7.1/24 dev cni0");
    let (_, message) = node.call("ADD", "c1", &NetNs::new(), json!({})).error();
    assert!(
        message.contains("already has an IP address different from 10.1.17.1/24"),
        "{message}"
    );
    assert_eq!(node.bridge_addresses(), ["192.168.7.1/24"]);
}

#[test]
fn two_flannel_networks_of_one_container_give_both_addresses_back() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let container = NetNs::new();
    let moved = crate::host::SUBNET_ENV.replace("10.1.17.1", "10.1.18.1");
    let other = json!({"name": "other", "delegate": {"bridge": "cni1"}});
    result(&node.call("ADD", "c1", &container, json!({})));
    node.host.write("subnet.env", &moved);
    let call = |command| node.call_about(command, "c1", "net1", &container, other.clone());
    result(&call("ADD"));
    assert_eq!(node.given_out("net"), ["10.1.17.2"]);
    assert_eq!(node.given_out("other"), ["10.1.18.2"]);
    assert_eq!(call("DEL").result(), "");
    assert_eq!(node.call("DEL", "c1", &container, json!({})).result(), "");
    assert_eq!(node.given_out("net"), [""; 0]);
    assert_eq!(node.given_out("other"), [""; 0]);
    assert_eq!(node.host.remembered(), [""; 0]);
}

#[test]
fn gc_frees_the_addresses_of_containers_that_vanished() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let [kept, gone, lost] = [NetNs::new(), NetNs::new(), NetNs::new()];
    result(&node.call("ADD", "kept", &kept, json!({})));
    result(&node.call("ADD", "gone", &gone, json!({})));
    result(&node.call("ADD", "lost", &lost, json!({})));
    drop((gone, lost));
    // As after a DEL of flannel's plugin that failed.
    for name in ["lost", "lost:net:eth0"] {
        node.host.remove(&format!("data/{name}"));
    }
    assert_eq!(
        node.given_out("net"),
        ["10.1.17.2", "10.1.17.3", "10.1.17.4"]
    );
    let list = json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}],
    });
    assert_eq!(node.call("GC", "", &kept, list).result(), "");
    assert_eq!(node.given_out("net"), ["10.1.17.2"]);
    kept.run("ping", "-c 1 -W 5 10.1.17.1");
    assert_eq!(node.host.remembered(), ["kept", "kept:net:eth0"]);
}

#[test]
fn containers_added_at_once_after_a_move_all_start() {
    const CONTAINERS: usize = 8;
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    let first = NetNs::new();
    result(&node.call("ADD", "first", &first, json!({})));
    assert_eq!(node.call("DEL", "first", &first, json!({})).result(), "");
    let moved = crate::host::SUBNET_ENV.replace("10.1.17.1", "10.1.99.1");
    node.host.write("subnet.env", &moved);

    let containers: [NetNs; CONTAINERS] = std::array::from_fn(|_| NetNs::new());
    let add = |index: usize, container| {
        let answer = node.call("ADD", &format!("c{index}"), container, json!({}));
        result(&answer);
    };
    std::thread::scope(|scope| {
        for (index, container) in containers.iter().enumerate() {
            scope.spawn(move || add(index, container));
        }
    });
    assert_eq!(node.given_out("net").len(), CONTAINERS);
    assert_eq!(node.bridge_addresses(), ["10.1.99.1/24"]);
    for container in &containers {
        container.run("ping", "-c 1 -W 5 10.1.99.1");
    }
}

#[test]
fn addresses_of_before_a_reboot_are_given_out_again() {
    let node = Node::new(json!({"cniVersion": "1.0.0"}));
    {
        let container = NetNs::new();
        for (name, interface) in [("c1", "eth0"), ("c1", "net1"), ("c2", "net2")] {
            result(&node.call_about("ADD", name, interface, &container, json!({})));
        }
    }
    assert_eq!(
        node.given_out("net"),
        ["10.1.17.2", "10.1.17.3", "10.1.17.4"]
    );
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    for name in node.host.remembered() {
        let file = fs::File::options()
            .write(true)
            .open(node.host.path("data").join(name));
        file.unwrap().set_modified(long_ago).unwrap();
    }
    node.host.write("data/.boot", "another\n");
    let container = NetNs::new();
    let added = result(&node.call("ADD", "c3", &container, json!({})));
    assert_eq!(node.given_out("net"), ["10.1.17.5"]);
    assert_eq!(added["ips"][0]["address"], "10.1.17.5/24");
    // The runtime comes to it at last.
    let gone = node.call("DEL", "c1", &container, json!({}));
    assert_eq!(gone.result(), "");
    assert_eq!(node.given_out("net"), ["10.1.17.5"]);
    assert_eq!(node.call("DEL", "c3", &container, json!({})).result(), "");
    assert_eq!(node.given_out("net"), [""; 0]);
}
