//! The etcd that all hosts share, and the switch that they hang on.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::authority::Authority;
use crate::host::Host;
use crate::namespace::Namespace;
use crate::wait::wait_until;

/// Where the agents find etcd.
pub(crate) const ETCD: &str = "http://10.77.0.1:2379";

/// The usual network config: four subnets would do, 255 keep the random choice of two nodes apart.
pub(crate) const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// An etcd server and the virtual switch that all hosts hang on.
pub(crate) struct Store {
    /// Where etcd runs, which can be a gateway.
    pub(crate) namespace: Arc<Namespace>,
    /// The switch; the port of host `number` is `port` and 10 more than the number.
    pub(crate) switch: Namespace,
    data: TempDir,
    /// How many members the cluster has.
    size: u8,
    /// Those that run.
    members: BTreeMap<u8, Child>,
    /// What etcdctl is called with besides.
    pub(crate) user: Option<&'static str>,
    /// Whose certificates servers and clients have, if any.
    pub(crate) tls: Option<Authority>,
}

impl Store {
    /// Starts etcd and writes the network config.
    pub(crate) fn start(network: &str) -> Self {
        Self::start_cluster(network, 1, None)
    }

    /// The same with certificates on either side.
    pub(crate) fn start_with_tls(network: &str, authority: Authority) -> Self {
        Self::start_cluster(network, 1, Some(authority))
    }

    /// The same with a cluster of several members, at 10.77.0.1, 10.77.0.2 and so on.
    pub(crate) fn start_members(network: &str, size: u8) -> Self {
        Self::start_cluster(network, size, None)
    }

    fn start_cluster(network: &str, size: u8, tls: Option<Authority>) -> Self {
        let switch = Namespace::new();
        switch.ip("link add switch type bridge");
        switch.ip("link set switch up");
        let namespace = Namespace::new();
        // A new namespace has what the host has. Where a test makes this one a gateway, it is to be one.
        namespace.sysctl("net.ipv4.ip_forward", "1");
        namespace.connect("eth0", &switch, "port1");
        switch.ip("link set port1 master switch up");
        for member in 1..=size {
            namespace.ip(&format!("address add 10.77.0.{member}/24 dev eth0"));
        }
        namespace.ip("link set eth0 up");
        let data = TempDir::new().expect("a directory for etcd");
        let mut store = Self {
            namespace: Arc::new(namespace),
            switch,
            data,
            size,
            members: BTreeMap::new(),
            user: None,
            tls,
        };
        store.start_etcd();
        store.etcdctl(&["put", "/coreos.com/network/config", network]);
        store
    }

    /// Starts etcd on the data of the last run, and waits until it answers.
    pub(crate) fn start_etcd(&mut self) {
        for member in 1..=self.size {
            self.start_member(member);
        }
        self.wait_for_etcd();
    }

    /// Starts a member that does not run. Does not wait for it.
    pub(crate) fn start_member(&mut self, member: u8) {
        let log = fs::File::create(self.data.path().join(format!("log{member}")));
        let url = |member: u8, port: u16| format!("http://10.77.0.{member}:{port}");
        let client = |member: u8| format!("{}://10.77.0.{member}:2379", self.scheme());
        let cluster: Vec<_> = (1..=self.size)
            .map(|member| format!("member{member}={}", url(member, 2380)))
            .collect();
        let mut command = self.namespace.command("etcd");
        command
            .arg(format!("--name=member{member}"))
            .arg(format!("--listen-client-urls={}", client(member)))
            .args(self.tls.iter().flat_map(Authority::server_args))
            .args(
                self.tls
                    .iter()
                    .map(|authority| {
                        let ca = authority.path("ca.pem");
                        format!("--client-cert-auth=true --trusted-ca-file={}", ca.display())
                    })
                    .flat_map(|args| args.split(' ').map(str::to_owned).collect::<Vec<_>>()),
            )
            .arg(format!("--advertise-client-urls={}", client(member)))
            .arg(format!("--listen-peer-urls={}", url(member, 2380)))
            .arg(format!(
                "--initial-advertise-peer-urls={}",
                url(member, 2380)
            ))
            .arg(format!("--initial-cluster={}", cluster.join(",")))
            .arg("--data-dir")
            .arg(self.data.path().join(format!("data{member}")))
            .env("ETCD_UNSUPPORTED_ARCH", "")
            .stdout(Stdio::null())
            .stderr(log.expect("etcd's log"));
        self.members.insert(member, command.spawn().expect("etcd"));
    }

    /// Waits until every member that runs answers and has a leader.
    pub(crate) fn wait_for_etcd(&self) {
        let login = self.login().join(" ");
        let scheme = self.scheme();
        for member in self.members.keys() {
            wait_until("etcd to answer", || {
                self.namespace
                    .try_run(&format!(
                        "etcdctl --endpoints={scheme}://10.77.0.{member}:2379 --command-timeout=1s {login} endpoint health"
                    ))
                    .status
                    .success()
            });
        }
    }

    /// Kills etcd; its data stays.
    pub(crate) fn stop_etcd(&mut self) {
        for member in 1..=self.size {
            self.stop_member(member);
        }
    }

    /// Kills one member; its data stays.
    pub(crate) fn stop_member(&mut self, member: u8) {
        if let Some(mut etcd) = self.members.remove(&member) {
            let _ = etcd.kill();
            let _ = etcd.wait();
        }
    }

    /// Starts a way to etcd that holds back each message of a client for a second while there is a file `slow`, and each
    /// reply while there is one with the suffix `.replies`. It ends with the child that is returned.
    pub(crate) fn start_relay(&self, port: u16, slow: &std::path::Path) -> Child {
        const RELAY: &str = r#"
import os, socket, sys, threading, time
port, slow = int(sys.argv[1]), sys.argv[2]
def pump(source, sink, sign):
    try:
        while data := source.recv(65536):
            if os.path.exists(sign):
                time.sleep(1)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
server = socket.create_server(("10.77.0.1", port))
print("up", flush=True)
while True:
    client, _ = server.accept()
    etcd = socket.create_connection(("10.77.0.1", 2379))
    for way in [(client, etcd, slow), (etcd, client, slow + ".replies")]:
        threading.Thread(target=pump, args=way, daemon=True).start()
"#;
        let mut relay = self
            .namespace
            .command("python3")
            .args(["-c", RELAY, &port.to_string()])
            .arg(slow)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        let mut up = [0; 3];
        let output = relay.stdout.as_mut().expect("its output");
        std::io::Read::read_exact(output, &mut up).expect("the relay to come up");
        relay
    }

    /// Writes a backup of what etcd has.
    pub(crate) fn save(&self) {
        let backup = self.backup();
        self.etcdctl(&["snapshot", "save", &backup]);
    }

    /// Makes the next start of the only member begin with the backup. The cluster's ID stays as it was.
    pub(crate) fn restore(&self) {
        assert!(self.members.is_empty(), "etcd runs");
        let data = self.data.path().join("data1");
        fs::remove_dir_all(&data).expect("etcd's data");
        let restored = self
            .namespace
            .command("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["snapshot", "restore", &self.backup()])
            .args([
                "--name=member1",
                "--initial-cluster=member1=http://10.77.0.1:2380",
            ])
            .arg("--initial-advertise-peer-urls=http://10.77.0.1:2380")
            .arg("--data-dir")
            .arg(data)
            .output()
            .expect("etcdctl");
        assert!(restored.status.success(), "{restored:?}");
    }

    fn backup(&self) -> String {
        self.data.path().join("backup").display().to_string()
    }

    fn endpoints(&self) -> String {
        let urls: Vec<_> = (1..=self.size)
            .map(|member| format!("{}://10.77.0.{member}:2379", self.scheme()))
            .collect();
        urls.join(",")
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// What etcdctl is let in by.
    fn login(&self) -> Vec<String> {
        let user = self.user.iter().map(|user| format!("--user={user}"));
        let tls = self.tls.iter().flat_map(|authority| {
            [
                ("cacert", "ca.pem"),
                ("cert", "client.pem"),
                ("key", "client.key"),
            ]
            .map(|(option, file)| format!("--{option}={}", authority.path(file).display()))
        });
        user.chain(tls).collect()
    }

    /// Runs `etcdctl` beside the server and returns what it printed.
    pub(crate) fn etcdctl(&self, arguments: &[&str]) -> String {
        let output = self
            .namespace
            .command("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoints()])
            // Its own patience is that of somebody at a terminal.
            .args(["--dial-timeout=30s", "--command-timeout=60s"])
            .args(self.login())
            .args(arguments)
            .output()
            .expect("etcdctl");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "etcdctl {arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// Changes the password of an etcd user.
    pub(crate) fn set_password(&self, user: &str, password: &str) {
        let mut etcdctl = self
            .namespace
            .command("etcdctl")
            .args(["--endpoints", &self.endpoints()])
            .args(self.login())
            .args(["user", "passwd", user, "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("etcdctl");
        let mut stdin = etcdctl.stdin.take().expect("its input");
        std::io::Write::write_all(&mut stdin, format!("{password}\n").as_bytes())
            .expect("to write the password");
        drop(stdin);
        assert!(etcdctl.wait().expect("etcdctl").success());
    }

    /// All keys of the network with what etcd knows of them, or why it does not answer.
    fn keys_and_revisions(&self) -> String {
        let mut etcdctl = self.namespace.command("etcdctl");
        let output = etcdctl
            .args(["--endpoints", &self.endpoints(), "--command-timeout=5s"])
            .args(self.login())
            .args(["get", "--prefix", "--write-out=fields", "/coreos.com/"])
            .output();
        output.map_or_else(
            |error| format!("etcdctl did not start: {error}"),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// A lease key with all that etcd knows of it, its value, revisions and etcd lease.
    pub(crate) fn lease_in_fields(&self, key: &str) -> String {
        let key = format!("/coreos.com/network/subnets/{key}");
        let text = self.etcdctl(&["get", "--write-out=fields", &key]);
        let of_key = text.lines().skip_while(|line| !line.starts_with("\"Key\""));
        of_key.collect::<Vec<_>>().join("\n")
    }

    /// Writes a lease key without a TTL, as a reservation or a foreign node would.
    pub(crate) fn put_lease(&self, key: &str, value: &str) {
        self.etcdctl(&["put", &format!("/coreos.com/network/subnets/{key}"), value]);
    }

    /// The lease keys that exist, without the prefix.
    pub(crate) fn lease_keys(&self) -> Vec<String> {
        self.etcdctl(&[
            "get",
            "--prefix",
            "--keys-only",
            "/coreos.com/network/subnets",
        ])
        .lines()
        .filter_map(|line| line.rsplit_once('/').map(|(_, key)| key.to_owned()))
        .collect()
    }

    /// A host with the underlay address 10.77.0.`10 + number`, on the same switch.
    pub(crate) fn host(&self, number: u8) -> Host {
        Host::on(&self.switch, number, self.endpoints())
    }

    /// Cuts a host off from the switch, or joins it again.
    pub(crate) fn set_port(&self, number: u8, state: &str) {
        self.switch
            .ip(&format!("link set port{} {state}", 10 + number));
    }
}

/// A store and two hosts whose containers reach each other.
pub(crate) fn pair() -> (Store, Host, Host) {
    pair_in(NETWORK)
}

/// The same in another network.
pub(crate) fn pair_in(network: &str) -> (Store, Host, Host) {
    let store = Store::start(network);
    let [mut one, mut two] = [1, 2].map(|number| store.host(number));
    one.join();
    two.join();
    one.wait_reaches(&two);
    (store, one, two)
}

impl Drop for Store {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.members.is_empty() {
            eprintln!("--- the store\n{}", self.keys_and_revisions());
        }
        self.stop_etcd();
    }
}
