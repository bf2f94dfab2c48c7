//! Several daemons on one host, as flannel's documentation has it.

use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{VXLAN_1, VXLAN_2, network_config};
use crate::cluster::{NETWORK, Store};
use crate::host::Host;
use crate::wait::{look_until, wait_until};

/// A running flanneld.
struct Flanneld(Child);

impl Flanneld {
    fn start(host: &Host, directory: &TempDir, name: &str) -> Self {
        Self::start_with(host, directory, name, &["--ip-masq"])
    }

    fn start_with(host: &Host, directory: &TempDir, name: &str, more: &[&str]) -> Self {
        let program = directory.path().join("flanneld");
        let mut command: Command = host.namespace.command(program.to_str().expect("a path"));
        let child = command
            .args(["--etcd-endpoints", &host.etcd, "--iface=eth0"])
            .args(more)
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

/// A directory with the agent under flannel's name.
fn with_flanneld() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let name = directory.path().join("flanneld");
    symlink(env!("CARGO_BIN_EXE_selvage"), name).expect("a link");
    directory
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
    let directory = with_flanneld();
    let [a, b] = ["a", "b"].map(|name| Flanneld::start(&host, &directory, name));
    let text = |name: &str| {
        let path = directory.path().join(format!("{name}.env"));
        std::fs::read_to_string(path).unwrap_or_default()
    };
    wait_until("both networks", || {
        text("a").contains("FLANNEL_NETWORK=10.5.0.0/16")
            && text("b").contains("FLANNEL_NETWORK=10.6.0.0/16")
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
    // The files are written whatever becomes of the firewall.
    wait_until("the rules of both", || {
        let rules = host.namespace.run("iptables-save");
        rules.matches("-A FORWARD").count() == 2 && rules.matches("-A POSTROUTING").count() == 2
    });
    let before = host.overlay_objects();
    drop(a);
    let again = Flanneld::start(&host, &directory, "a");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(host.overlay_objects(), before);
    drop((again, b));
    assert_eq!(host.overlay_objects(), before);

    // Whichever is first now, each remembers what it is.
    let remove = |name: &str| std::fs::remove_file(directory.path().join(format!("{name}.env")));
    for name in ["b", "a"] {
        remove(name).expect("a subnet file");
    }
    let started: Vec<_> = ["b", "a"]
        .into_iter()
        .map(|name| {
            let flanneld = Flanneld::start(&host, &directory, name);
            wait_until("the network", || text(name).contains("FLANNEL_NETWORK"));
            flanneld
        })
        .collect();
    assert_eq!(names_of_chains(&host).len(), 4);
    drop(started);
}

/// The chains that flannel or an agent in its place has made.
fn names_of_chains(host: &Host) -> Vec<String> {
    let rules = host.namespace.run("iptables-save");
    let name = |line: &str| Some(line.strip_prefix(":FLANNEL")?.split(' ').next()?.to_owned());
    let mut names: Vec<_> = rules.lines().filter_map(name).collect();
    names.sort_unstable();
    names
}

/// A file and keys elsewhere are no second network: what a real flannel left is this one's own, and the other way round.
#[test]
fn a_single_flanneld_keeps_flannels_names_wherever_its_files_are() {
    let store = Store::start(NETWORK);
    store.etcdctl(&["put", "/a/config", &network_config(5, VXLAN_1)]);
    let host = store.host(1);
    let directory = with_flanneld();
    // What a flanneld with --ip-masq left, and its rules for a network that it was in before.
    for line in [
        "-t nat -N FLANNEL-POSTRTG",
        "-t nat -A FLANNEL-POSTRTG -s 10.9.0.0/16 -j MASQUERADE",
        "-t nat -A POSTROUTING -j FLANNEL-POSTRTG",
        "-N FLANNEL-FWD",
        "-A FLANNEL-FWD -s 10.9.0.0/16 -j ACCEPT",
        "-A FORWARD -j FLANNEL-FWD",
    ] {
        host.namespace.run(&format!("iptables {line}"));
    }
    let mut flanneld = Flanneld::start(&host, &directory, "a");
    let rules = || host.namespace.run("iptables-save");
    let jumps = || rules().matches("-j FLANNEL-").count();
    for more in [&["--ip-masq"][..], &[]] {
        drop(flanneld);
        flanneld = Flanneld::start_with(&host, &directory, "a", more);
        look_until("flannel's rules to be this network's", rules, |rules| {
            !rules.contains("10.9.0.0") && rules.contains("-A FLANNEL-FWD -s 10.5.0.0/16")
        });
        let expected = if more.is_empty() {
            &["-FWD"][..]
        } else {
            &["-FWD", "-POSTRTG"]
        };
        look_until(
            "the chains",
            || names_of_chains(&host),
            |names| names == expected,
        );
        assert_eq!(jumps(), 1 + more.len(), "{}", rules());
    }
}
