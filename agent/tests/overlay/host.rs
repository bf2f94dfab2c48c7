//! A container host: its agent, and what that has told and done.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tempfile::TempDir;

use crate::namespace::Namespace;
use crate::wait::{PATIENCE, wait_for, wait_until};

/// A container host: its namespace, its agent, and one container behind its bridge.
pub(crate) struct Host {
    pub(crate) namespace: Arc<Namespace>,
    /// The name of the network that its agent joins, if it has one.
    network: Option<&'static str>,
    /// The underlay address.
    pub(crate) address: Ipv4Addr,
    /// Where its agent finds etcd.
    pub(crate) etcd: String,
    /// What its agent's environment has besides.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// What its agent is called with besides.
    pub(crate) arguments: Vec<String>,
    /// What its agent and its commands see as `/run`, if not this machine's.
    pub(crate) run_directory: Option<PathBuf>,
    directory: TempDir,
    container: Option<Namespace>,
    agent: Option<Agent>,
}

/// The agent under test: the one that was built with the tests, unless `SELVAGE_BIN` names another. On another machine than
/// the one that they were built on there is only that.
fn program() -> String {
    std::env::var("SELVAGE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_selvage").to_owned())
}

/// A running agent and what it has told its service manager.
struct Agent {
    child: Child,
    notify: UnixDatagram,
    told: Vec<String>,
}

impl Agent {
    /// Takes in what the agent told since the last call.
    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.notify.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            self.told.extend(text.lines().map(str::to_owned));
        }
    }
}

impl Host {
    /// A host with the underlay address 10.77.0.`10 + number`, on the port `port` and 10 more than the number of a switch.
    pub(crate) fn on(switch: &Namespace, number: u8, endpoints: String) -> Self {
        let namespace = Namespace::new();
        let port = format!("port{}", 10 + number);
        namespace.connect("eth0", switch, &port);
        switch.ip(&format!("link set {port} master switch up"));
        let address = Ipv4Addr::new(10, 77, 0, 10 + number);
        namespace.ip(&format!("address add {address}/24 dev eth0"));
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(10 + number));
        namespace.ip(&format!("address add {v6}/64 dev eth0 nodad"));
        // A router asks for its neighbours from here; without, it forwards nothing.
        namespace.ip(&format!("address add fe80::{number}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.sysctl("net.ipv4.ip_forward", "1");
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1");
        Self::new(namespace, address, endpoints)
    }

    /// A host without an agent, in its namespace; `etcd` is where its agent will look for leases.
    pub(crate) fn new(namespace: Namespace, address: Ipv4Addr, etcd: String) -> Self {
        Self {
            namespace: Arc::new(namespace),
            network: None,
            address,
            etcd,
            directory: TempDir::new().expect("a directory for the host"),
            container: None,
            agent: None,
            environment: Vec::new(),
            arguments: Vec::new(),
            run_directory: None,
        }
    }

    /// The same host as the member of another network, with another agent and another container.
    pub(crate) fn in_network(&self, network: &'static str) -> Self {
        Self {
            namespace: Arc::clone(&self.namespace),
            network: Some(network),
            address: self.address,
            etcd: self.etcd.clone(),
            environment: self.environment.clone(),
            arguments: self.arguments.clone(),
            run_directory: self.run_directory.clone(),
            directory: TempDir::new().expect("a directory for the host"),
            container: None,
            agent: None,
        }
    }

    /// The command line `selvage VERB` with this host's files, inside its namespace.
    pub(crate) fn selvage(&self, verb: &str) -> Command {
        let program = program();
        let mut command = match &self.run_directory {
            None => self.namespace.command(&program),
            Some(run) => {
                let mut command = self.namespace.command("unshare");
                let set_up = "mount --bind \"$0\" /run; exec \"$@\"";
                command.args(["-m", "sh", "-ec", set_up]).arg(run);
                command.arg(&program);
                command
            }
        };
        command
            .arg(verb)
            // Every host of a test shares this machine's identity file; a real cluster's nodes do not.
            .env("SELVAGE_NODE_ID", self.node_id())
            .envs(self.environment.iter().cloned());
        if verb == "run" {
            command.args(self.flags());
            return command;
        }
        // Other commands have no flags for what they do not use, but all know --config.
        let flags = self.flags();
        let mut flags = flags.iter();
        while let Some(flag) = flags.next() {
            if flag == "--config" {
                command.arg(flag).args(flags.next());
                continue;
            }
            let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
            let name = name.trim_start_matches('-').replace('-', "_");
            command.env(format!("SELVAGE_{}", name.to_uppercase()), value);
        }
        command
    }

    /// What the agent is told: each flag in one word, but for `--config`.
    fn flags(&self) -> Vec<String> {
        let mut flags = vec![
            format!("--etcd-endpoints={}", self.etcd),
            "--iface=eth0".to_owned(),
            "--ip-masq=true".to_owned(),
            format!("--subnet-file={}", self.subnet_file().display()),
            format!("--state-dir={}", self.state_dir().display()),
            format!("--socket={}", self.socket().display()),
        ];
        flags.extend(self.network.map(|name| format!("--network={name}")));
        flags.extend(self.arguments.iter().cloned());
        flags
    }

    /// The agent's control socket.
    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("agent.sock")
    }

    pub(crate) fn node_id(&self) -> String {
        let [_, _, _, last] = self.address.octets();
        format!("{last:032x}")
    }

    /// What survives a reboot of the agent's.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Gives the host another underlay address; which machine it is stays.
    pub(crate) fn move_to(&mut self, address: Ipv4Addr) {
        let id = ("SELVAGE_NODE_ID", self.node_id());
        if !self.environment.iter().any(|(name, _)| *name == id.0) {
            self.environment.push(id);
        }
        let former = std::mem::replace(&mut self.address, address);
        self.namespace
            .ip(&format!("address del {former}/24 dev eth0"));
        self.namespace
            .ip(&format!("address add {address}/24 dev eth0"));
    }

    /// Where the agent writes `subnet.env`.
    pub(crate) fn subnet_file(&self) -> PathBuf {
        self.directory.path().join("subnet.env")
    }

    /// Starts the agent without waiting for it.
    pub(crate) fn start_agent(&mut self) {
        let socket = self.directory.path().join("notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).expect("the notify socket");
        notify
            .set_nonblocking(true)
            .expect("a socket that does not block");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .expect("the agent's log");
        let child = self
            .selvage("run")
            .env("NOTIFY_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent");
        self.agent = Some(Agent {
            child,
            notify,
            told: Vec::new(),
        });
    }

    /// Starts the agent, waits until it is ready, and puts a container behind a bridge on its subnet.
    pub(crate) fn join(&mut self) {
        self.start_agent();
        self.wait_ready();
        self.start_container();
    }

    /// Waits for the agent's `READY=1`.
    pub(crate) fn wait_ready(&mut self) {
        self.wait_told("READY=1", |line| line == "READY=1");
    }

    /// Waits until the agent tells its service manager a line that fits.
    pub(crate) fn wait_told(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let log = self.directory.path().join("log");
        let agent = self.agent.as_mut().expect("a running agent");
        wait_for(PATIENCE, &format!("the agent to tell {what}"), || {
            agent.listen();
            if let Some(line) = agent.told.iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            if let Some(status) = agent.child.try_wait().expect("the agent's status") {
                panic!(
                    "the agent ended with {status}\n{}",
                    fs::read_to_string(&log).unwrap_or_default()
                );
            }
            None
        })
    }

    /// Waits until the last line that the agent told its service manager fits.
    pub(crate) fn wait_told_last(&mut self, what: &str, fits: impl Fn(&str) -> bool) {
        let agent = self.agent.as_mut().expect("a running agent");
        wait_until(&format!("the agent to tell {what}"), || {
            agent.listen();
            let status = |line: &&String| line.starts_with("STATUS=");
            agent
                .told
                .iter()
                .rfind(status)
                .is_some_and(|line| fits(line))
        });
    }

    /// Waits for the agent to end by itself and returns its exit status.
    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let agent = self.agent.as_mut().expect("a running agent");
        wait_for(PATIENCE, "the agent to end", || {
            agent.child.try_wait().expect("the agent's status")
        })
        .code()
    }

    /// The process id of the running agent.
    pub(crate) fn agent_id(&self) -> u32 {
        self.agent.as_ref().expect("a running agent").child.id()
    }

    /// Sends the agent a signal.
    pub(crate) fn signal_agent(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.agent_id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)
            .expect("to signal the agent");
    }

    /// All that the agent told its service manager so far.
    pub(crate) fn told(&mut self) -> Vec<String> {
        let agent = self.agent.as_mut().expect("a running agent");
        agent.listen();
        agent.told.clone()
    }

    /// Asks the agent over its control socket: the status and the body of the answer.
    pub(crate) fn ask(&self, path: &str) -> (u16, String) {
        let answer = self
            .try_ask(path, PATIENCE)
            .expect("an answer over the control socket");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let status = head.split(' ').nth(1).map(str::parse);
        (
            status.expect("a status").expect("a number"),
            body.to_owned(),
        )
    }

    fn try_ask(&self, path: &str, patience: Duration) -> std::io::Result<String> {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(patience))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Kills the agent outright; nothing of it runs afterwards.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.child.kill().expect("to kill the agent");
            agent.child.wait().expect("the agent's end");
        }
    }

    /// Asks the agent to stop, as the service manager does, and returns its exit status.
    pub(crate) fn stop_agent(&mut self) -> Option<i32> {
        self.signal_agent(nix::sys::signal::Signal::SIGTERM);
        let status = self.wait_exit();
        self.agent = None;
        status
    }

    /// What the agent has logged in this host's life.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The value of a key of `subnet.env`.
    pub(crate) fn subnet_env(&self, key: &str) -> String {
        let text = fs::read_to_string(self.subnet_file()).expect("subnet.env");
        let prefix = format!("{key}=");
        let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("{key} is not in subnet.env:\n{text}"))
            .to_owned()
    }

    /// The leased IPv4 subnet as its lease key writes it, for example `10.5.34.0-24`.
    pub(crate) fn lease_key(&self) -> String {
        let [a, b, c, _] = self.container_address().octets();
        format!("{a}.{b}.{c}.0-24")
    }

    /// The container's IPv4 address, whether or not there is a container: the second of the subnet.
    pub(crate) fn container_address(&self) -> Ipv4Addr {
        match self.container_addresses().first() {
            Some(IpAddr::V4(address)) => *address,
            other => panic!("no IPv4 address: {other:?}"),
        }
    }

    /// The bridge's addresses: the first of each of the subnets, IPv4 first.
    fn gateways(&self) -> Vec<IpNet> {
        let text = fs::read_to_string(self.subnet_file()).expect("subnet.env");
        ["FLANNEL_SUBNET=", "FLANNEL_IPV6_SUBNET="]
            .iter()
            .filter_map(|key| text.lines().find_map(|line| line.strip_prefix(key)))
            .map(|gateway| gateway.parse().expect("an address with its length"))
            .collect()
    }

    /// The container's addresses: the second of each of the subnets, IPv4 first.
    pub(crate) fn container_addresses(&self) -> Vec<IpAddr> {
        let next = |gateway: IpNet| match gateway.addr() {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + 1).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + 1).into(),
        };
        self.gateways().into_iter().map(next).collect()
    }

    /// The namespace of the host's container.
    pub(crate) fn container(&self) -> &Namespace {
        self.container.as_ref().expect("a container")
    }

    /// Puts the bridge and a new container on the subnet of now, as a restart of Docker does.
    pub(crate) fn restart_container(&mut self) {
        self.container = None;
        let _ = self.namespace.try_run("ip link del veth0");
        self.namespace.ip("link del docker0");
        self.start_container();
    }

    /// Does what Docker does with `subnet.env`: a bridge with the subnet's first address, a container with the second.
    pub(crate) fn start_container(&mut self) {
        let mtu = self.subnet_env("FLANNEL_MTU");
        let host = &self.namespace;
        let (bridge, port) = match self.network {
            None => ("docker0".to_owned(), "veth0".to_owned()),
            Some(name) => (format!("br-{name}"), format!("veth-{name}")),
        };
        host.ip(&format!("link add {bridge} type bridge"));
        host.ip(&format!("link set {bridge} up"));
        host.ip(&format!("address add fe80::1/64 dev {bridge} nodad"));
        let container = Namespace::new();
        container.connect("eth0", host, &port);
        host.ip(&format!("link set {port} mtu {mtu} master {bridge} up"));
        container.ip(&format!("link set eth0 mtu {mtu} up"));
        for (gateway, address) in self.gateways().into_iter().zip(self.container_addresses()) {
            let (length, nodad) = (gateway.prefix_len(), nodad(address));
            host.ip(&format!("address add {gateway} dev {bridge}{nodad}"));
            container.ip(&format!("address add {address}/{length} dev eth0{nodad}"));
            container.ip(&format!("route add default via {}", gateway.addr()));
        }
        self.container = Some(container);
    }

    /// Whether an echo request from this host's container to each address of another's is answered.
    pub(crate) fn reaches(&self, other: &Host) -> bool {
        let targets = other.container_addresses();
        !targets.is_empty()
            && targets
                .iter()
                .all(|target| self.reaches_address(*target, 56))
    }

    /// Whether an echo request of so many bytes that must not be fragmented, sent from this host's container, is answered.
    pub(crate) fn reaches_address(&self, target: IpAddr, size: u32) -> bool {
        self.container()
            .try_run(&format!("ping -M do -s {size} -c 1 -W 1 -q {target}"))
            .status
            .success()
    }

    /// Waits until the containers of both hosts reach each other.
    pub(crate) fn wait_reaches(&self, other: &Host) {
        wait_until("the containers to reach each other", || {
            self.reaches(other) && other.reaches(self)
        });
    }

    /// The kernel objects of the overlay on this host, in a form that two moments can be compared by.
    pub(crate) fn overlay_objects(&self) -> String {
        [
            "ip -d link show type vxlan",
            "ip address show type vxlan",
            "ip -d link show type wireguard",
            "ip address show type wireguard",
            "ip nexthop show",
            "ip route show",
            "ip -6 route show",
            "ip neighbor show nud permanent",
            "ip -6 neighbor show nud permanent",
            "bridge fdb show",
            "nft -s list ruleset",
        ]
        .map(|line| {
            let shown = self.namespace.run(line);
            // Link-local routes come with every device, in the order of the devices' making; multicast groups are joined
            // when the kernel gets to it.
            let is_kernels = |line: &str| {
                let mut starts = ["fe80::", "33:33:", "01:00:5e:"].iter();
                starts.any(|start| line.starts_with(start))
            };
            let kept = shown.lines().filter(|line| !is_kernels(line));
            format!("# {line}\n{}\n", kept.collect::<Vec<_>>().join("\n"))
        })
        .concat()
    }
}

/// An option for ip(8): no wait for somebody else with the same address.
fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- {}: what its agent logged\n{}",
                self.address,
                self.log()
            );
            eprintln!(
                "--- {}: the kernel\n{}",
                self.address,
                self.overlay_objects()
            );
            eprintln!(
                "--- {}: its agent's status\n{:?}",
                self.address,
                self.try_ask("/v1/status", Duration::from_secs(10))
            );
        }
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.child.kill();
            let _ = agent.child.wait();
        }
    }
}
