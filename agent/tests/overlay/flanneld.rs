//! The agent in flanneld's place: called so, with flanneld's flags and environment alone.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cluster::{ETCD, NETWORK, Store};
use crate::host::Host;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A running flanneld, in a host's namespace.
pub(crate) struct Flanneld {
    pub(crate) child: Child,
    pub(crate) directory: TempDir,
    notify: UnixDatagram,
}

impl Flanneld {
    /// Starts it, with some of its settings as flags and some as variables, like a unit with an options file. `interface`
    /// is the flag that tells which interface to use.
    fn start(host: &Host, interface: &str) -> Self {
        let directory = TempDir::new().expect("a directory");
        let program = directory.path().join("flanneld");
        symlink(env!("CARGO_BIN_EXE_selvage"), &program).expect("a link");
        let command = host.namespace.command(program.to_str().expect("a path"));
        Self::launch(directory, command, interface)
    }

    /// The same by another command, which passes its arguments on.
    pub(crate) fn launch(directory: TempDir, mut command: Command, interface: &str) -> Self {
        let path = |name: &str| directory.path().join(name);
        let notify = UnixDatagram::bind(path("notify")).expect("the notify socket");
        notify
            .set_nonblocking(true)
            .expect("a socket that does not block");
        let child = Self::configure(&mut command, &directory)
            .arg(interface)
            .env("SELVAGE_NODE_ID", "flanneld")
            .env("NOTIFY_SOCKET", path("notify"))
            .stdout(Stdio::null())
            .spawn()
            .expect("flanneld");
        Self {
            child,
            directory,
            notify,
        }
    }

    fn configure<'a>(command: &'a mut Command, directory: &TempDir) -> &'a mut Command {
        command
            .current_dir(directory.path())
            .args([
                "-healthz-port=8081",
                "--subnet-file",
                "run/subnet.env",
                "-v",
                "2",
            ])
            .env(
                "FLANNELD_ETCD_ENDPOINTS",
                format!("http://127.0.0.1:4001,{ETCD}"),
            )
            .env("FLANNELD_IP_MASQ", "true")
            .env("SELVAGE_STATE_DIR", directory.path().join("state"))
            .env("SELVAGE_SOCKET", directory.path().join("agent.sock"))
    }

    pub(crate) fn subnet_env(&self) -> String {
        let path = self.directory.path().join("run/subnet.env");
        std::fs::read_to_string(path).expect("subnet.env")
    }

    pub(crate) fn wait_ready(&self) {
        let mut told = String::new();
        let mut buffer = [0; 4096];
        wait_for(PATIENCE, "flanneld to be ready", || {
            while let Ok(length) = self.notify.recv(&mut buffer) {
                told.push_str(&String::from_utf8_lossy(&buffer[..length]));
                told.push('\n');
            }
            told.lines().any(|line| line == "READY=1").then_some(())
        });
    }

    /// Stops it as the service manager does, and returns its exit status.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("to signal flanneld");
        wait_for(PATIENCE, "flanneld to end", || {
            self.child.try_wait().expect("its status")
        })
        .code()
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks a health endpoint of the host, from inside its namespace.
fn ask(host: &Host, path: &str) -> (u16, String) {
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/8081 && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let mut command = host.namespace.command("timeout");
    let output = command.args(["60", "bash", "-c", &script]).output();
    let answer = output.expect("bash").stdout;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

#[test]
fn flanneld_joins_a_cluster_by_its_flags_and_variables() {
    let store = Store::start(NETWORK);
    let [one, mut two] = [1, 2].map(|number| store.host(number));
    two.join();
    let flanneld = Flanneld::start(&one, "-iface=eth0");
    flanneld.wait_ready();

    let text = flanneld.subnet_env();
    assert!(text.contains("FLANNEL_NETWORK=10.5.0.0/16\n"), "{text}");
    assert!(text.contains("FLANNEL_IPMASQ=true\n"), "{text}");
    let bridge = text
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .expect("a subnet");
    let key = bridge.replace(".1/", ".0-");
    assert!(store.lease_keys().contains(&key), "{key}");
    let peer = two.lease_key().replace('-', "/");
    let route = one.namespace.ip(&format!("route show {peer}"));
    assert!(route.contains("dev flannel.1"), "{route}");
    let subnet = key.replace('-', "/");
    wait_until("the other host to have a route here", || {
        let route = two.namespace.ip(&format!("route show {subnet}"));
        route.contains("dev flannel.1")
    });

    assert_eq!(
        ask(&one, "/healthz"),
        (200, "flanneld is running".to_owned())
    );
    assert_eq!(ask(&one, "/readyz"), (200, "flanneld is ready".to_owned()));
    let (status, metrics) = ask(&one, "/metrics");
    assert_eq!(status, 200);
    for line in ["selvage_ready 1\n", "selvage_peers 1\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert_eq!(flanneld.stop(), Some(0));
}

/// As flannel since 0.12: who names the address that peers shall use need not name the interface that has it.
#[test]
fn flanneld_uses_the_interface_that_has_the_public_address() {
    let store = Store::start(NETWORK);
    let host = store.host(1);
    // The default route is over another interface.
    host.namespace.ip("link add nat type bridge");
    host.namespace.ip("link set nat up");
    host.namespace.ip("address add 10.0.2.15/24 dev nat");
    host.namespace.ip("route add default via 10.0.2.2");
    let flanneld = Flanneld::start(&host, "--public-ip=10.77.0.11");
    flanneld.wait_ready();
    let link = host.namespace.ip("-d link show flannel.1");
    assert!(link.contains("local 10.77.0.11 dev eth0 "), "{link}");
    let leases = store.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]);
    assert!(leases.contains("\"PublicIP\":\"10.77.0.11\""), "{leases}");
    assert_eq!(flanneld.stop(), Some(0));
}
