//! A host: a network namespace with an agent in it, and a pod that the CNI plugin has put behind its bridge.
//!
//! ```text
//!   ┌──────────────────── host ─────────────────────┐   ┌────────── pod ──────────┐
//!   │ eth0 10.77.0.11 ─ flannel.1 ─ cni0 10.5.34.1 ─┼───┼─ eth0 10.5.34.2         │
//!   └───────────────────────────────────────────────┘   └─────────────────────────┘
//! ```

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    ops::Sub,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use ipnet::Ipv4Net;
use selvage::telemetry::status::{Peer, PeerState, State, Status};
use serde_json::{Value, json};

use super::{
    lab::append,
    namespace::{Bytes, Namespace},
};
use crate::child::{self, Child};

/// Where Debian has the plugins that ours delegates to.
pub(super) const PLUGINS: &str = "/usr/lib/cni";
/// The overlay's device, as flannel calls it.
const OVERLAY: &str = "flannel.1";
/// The underlay's device.
const UNDERLAY: &str = "eth0";

/// A container host.
#[derive(Debug)]
pub(super) struct Node {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub address: Ipv4Addr,
    namespace: Namespace,
    pod: Option<Pod>,
    agent: Option<Child>,
    binary: PathBuf,
    dir: PathBuf,
}

/// A pod's network.
#[derive(Debug)]
pub(super) struct Pod {
    /// Its address in the host's subnet.
    pub address: Ipv4Addr,
    /// Where its processes run.
    pub namespace: Namespace,
}

/// What went through a host's devices, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Through the overlay's device.
    pub overlay: Bytes,
    /// Through the underlay's: the same in VXLAN, and what the agent and etcd say to each other.
    pub underlay: Bytes,
}

/// What came since `before`; a device that was made anew meanwhile counts from nothing.
impl Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let since = |now: Bytes, before: Bytes| Bytes {
            received: now.received.saturating_sub(before.received),
            sent: now.sent.saturating_sub(before.sent),
        };
        Self {
            overlay: since(self.overlay, before.overlay),
            underlay: since(self.underlay, before.underlay),
        }
    }
}

impl Node {
    /// Host `number` on a switch, at 10.77.0.`10 + number`, with its files below `dir`.
    ///
    /// # Errors
    /// When the namespace, the directory or the link to the plugin cannot be made.
    pub(super) fn new(number: u8, switch: &Namespace, dir: &Path, agent: &Path) -> Result<Self> {
        let name = format!("node{number}");
        let dir = dir.join(&name);
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("failed to create {}", bin.display()))?;
        std::os::unix::fs::symlink(agent, bin.join("flannel"))
            .with_context(|| format!("failed to link the CNI plugin in {}", bin.display()))?;
        let namespace = Namespace::new()?;
        namespace.plug_in(UNDERLAY, switch, &name)?;
        let address = Ipv4Addr::new(10, 77, 0, 10 + number);
        namespace.ip(&format!("address add {address}/24 dev {UNDERLAY}"))?;
        namespace.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Self {
            name,
            address,
            namespace,
            pod: None,
            agent: None,
            binary: agent.to_owned(),
            dir,
        })
    }

    /// Where the agent's log is.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    fn selvage(&self, verb: &str) -> Command {
        let mut command = self.namespace.command(&self.binary);
        let [_, _, _, last] = self.address.octets();
        command
            .arg(verb)
            // All hosts share this machine's identity file; those of a real cluster do not.
            .env("SELVAGE_NODE_ID", format!("{last:032x}"))
            .env("SELVAGE_SOCKET", self.dir.join("agent.sock"))
            .env("SELVAGE_SUBNET_FILE", self.dir.join("subnet.env"))
            .env("SELVAGE_STATE_DIR", self.dir.join("state"));
        command
    }

    /// Starts the agent; does not wait for it.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub(super) fn start_agent(&mut self, etcd: &str) -> Result<()> {
        let log = append(&self.log())?;
        let mut command = self.selvage("run");
        command
            .args(["--etcd-endpoints", etcd, "--iface", UNDERLAY, "--ip-masq"])
            .stdout(log.try_clone().context("failed to share a log file")?)
            .stderr(log);
        self.agent = Some(Child::spawn(format!("{}'s agent", self.name), command)?);
        Ok(())
    }

    /// Kills the agent outright, as a crash does.
    ///
    /// # Errors
    /// When none runs.
    pub(super) fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take();
        agent
            .map(drop)
            .with_context(|| format!("{} has no agent", self.name))
    }

    /// Looks whether the agent runs, if it is meant to.
    ///
    /// # Errors
    /// When it has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let ended = self
            .agent
            .as_mut()
            .map(Child::exited)
            .transpose()?
            .flatten();
        ended.map_or(Ok(()), |status| {
            let log = self.log();
            Err(anyhow!(
                "{}'s agent ended: {status}; see {}",
                self.name,
                log.display()
            ))
        })
    }

    /// What the agent says.
    fn status(&self) -> Result<Status> {
        let mut command = self.selvage("status");
        let output = child::die_with_parent(command.arg("--json"))
            .output()
            .context("failed to run `selvage status`")?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{}: no status: {}", self.name, said.trim())
        })
    }

    /// Looks whether the agent is ready, and has programmed so many peers.
    ///
    /// # Errors
    /// When not; the message has the agent's reasons.
    pub(super) fn check_ready(&self, peers: usize) -> Result<()> {
        let status = self.status()?;
        let programmed = |peer: &&Peer| peer.state == PeerState::Programmed;
        let there = status.peers.iter().filter(programmed).count();
        let name = &self.name;
        let reasons = status.health.reasons.join("; ");
        ensure!(status.health.state == State::Ready, "{name}: {reasons}");
        ensure!(there == peers, "{name} has {there} of {peers} peers");
        Ok(())
    }

    /// The subnet that the host has leased.
    ///
    /// # Errors
    /// When it has none, or its agent does not answer.
    pub(super) fn subnet(&self) -> Result<Ipv4Net> {
        let lease = self.status()?.lease.and_then(|lease| lease.subnet);
        lease.with_context(|| format!("{} has no lease", self.name))
    }

    /// Makes a pod, as a container runtime does: a namespace, and a call of the CNI plugin.
    ///
    /// # Errors
    /// When the plugin fails; the message has its words.
    pub(super) fn add_pod(&mut self) -> Result<()> {
        let namespace = Namespace::new()?;
        let said = self
            .call_plugin(&namespace)
            .with_context(|| format!("{}: failed to make a pod", self.name))?;
        let net = said["ips"][0]["address"]
            .as_str()
            .map(str::parse::<Ipv4Net>);
        let Some(Ok(net)) = net else {
            return Err(anyhow!("{}: a pod without IPv4 address: {said}", self.name));
        };
        let address = net.addr();
        self.pod = Some(Pod { address, namespace });
        Ok(())
    }

    fn call_plugin(&self, pod: &Namespace) -> Result<Value> {
        let config = json!({
            "name": "demo", "type": "flannel", "cniVersion": "1.0.0",
            "subnetFile": self.dir.join("subnet.env"), "dataDir": self.dir.join("cni"),
            "delegate": { "isDefaultGateway": true },
            "ipam": { "dataDir": self.dir.join("ipam") },
        });
        let mut command = self.namespace.command(self.dir.join("bin/flannel"));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", format!("{}-pod", self.name))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", pod.path())
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut plugin = child::die_with_parent(&mut command)
            .spawn()
            .context("failed to start the CNI plugin")?;
        let mut input = plugin.stdin.take().context("a plugin without input")?;
        // Whether it has read all of it is seen by what it answers.
        let _ = input.write_all(config.to_string().as_bytes());
        drop(input);
        let output = plugin
            .wait_with_output()
            .context("failed to wait for the CNI plugin")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "the CNI plugin: {}", said.trim());
        serde_json::from_str(&said).with_context(|| format!("the CNI plugin: {said}"))
    }

    /// The host's pod.
    ///
    /// # Errors
    /// When it has none yet.
    pub(super) fn pod(&self) -> Result<&Pod> {
        let pod = self.pod.as_ref();
        pod.with_context(|| format!("{} has no pod", self.name))
    }

    /// What has gone through the host's devices so far.
    ///
    /// # Errors
    /// When a device is gone.
    pub(super) fn traffic(&self) -> Result<Traffic> {
        let of = |device| {
            let bytes = self.namespace.bytes(device);
            bytes.with_context(|| self.name.clone())
        };
        Ok(Traffic {
            overlay: of(OVERLAY)?,
            underlay: of(UNDERLAY)?,
        })
    }
}
