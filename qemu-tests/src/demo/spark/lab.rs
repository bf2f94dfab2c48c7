//! Three hosts, an etcd beside them, and the switch that joins all four.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use ipnet::Ipv4Net;

use super::{
    namespace::Namespace,
    node::{Node, Traffic},
};
use crate::{child::Child, progress::Progress, wait};

/// Where etcd answers.
const ETCD: &str = "http://10.77.0.1:2379";
/// Where it would find other members, of which there are none.
const PEERS: &str = "http://10.77.0.1:2380";
const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// etcd and the agents start at once; a busy machine may not let them.
const DEADLINE: Duration = Duration::from_secs(60);

/// The hosts, and all that they need.
#[derive(Debug)]
pub(super) struct Lab {
    /// The hosts.
    pub nodes: Vec<Node>,
    etcd: Option<Child>,
    dir: PathBuf,
    etcd_namespace: Namespace,
    _switch: Namespace,
}

impl Lab {
    /// Joins three hosts and an etcd by a switch, with all their files below `dir`; no agent runs yet.
    ///
    /// # Errors
    /// When a namespace cannot be made, or etcd does not answer within a minute.
    pub(super) async fn start(dir: &Path, agent: &Path) -> Result<Self> {
        let switch = Namespace::new()?;
        switch.ip("link add switch type bridge")?;
        switch.ip("link set switch up")?;
        let etcd_namespace = Namespace::new()?;
        etcd_namespace.plug_in("eth0", &switch, "etcd")?;
        etcd_namespace.ip("address add 10.77.0.1/24 dev eth0")?;
        let nodes = (1..=3).map(|number| Node::new(number, &switch, dir, agent));
        let mut lab = Self {
            nodes: nodes.collect::<Result<_>>()?,
            etcd: None,
            dir: dir.to_owned(),
            etcd_namespace,
            _switch: switch,
        };
        lab.start_etcd()?;
        wait::until("etcd answers", DEADLINE, || async {
            lab.ctl(&["endpoint", "health"])
        })
        .await?;
        lab.ctl(&["put", "/coreos.com/network/config", NETWORK])?;
        Ok(lab)
    }

    /// Starts the agents, waits until each has all others as peers, and makes a pod on each host.
    ///
    /// # Errors
    /// When an agent is not ready within a minute, or a CNI plugin fails.
    pub(super) async fn join(&mut self, progress: &Progress) -> Result<()> {
        for node in &mut self.nodes {
            node.start_agent(ETCD)?;
        }
        self.wait_ready(progress).await?;
        self.nodes.iter_mut().try_for_each(Node::add_pod)
    }

    /// The hosts' subnets, in their order.
    ///
    /// # Errors
    /// When one has none.
    pub(super) fn subnets(&self) -> Result<Vec<Ipv4Net>> {
        self.nodes.iter().map(Node::subnet).collect()
    }

    /// What has gone through the hosts' devices so far, in the hosts' order.
    ///
    /// # Errors
    /// When a device is gone.
    pub(super) fn traffic(&self) -> Result<Vec<Traffic>> {
        self.nodes.iter().map(Node::traffic).collect()
    }

    /// Looks whether every agent is ready and has programmed all others.
    ///
    /// # Errors
    /// When one is not; the message has its reasons.
    pub(super) fn check_ready(&self) -> Result<()> {
        let peers = self.nodes.len() - 1;
        self.nodes
            .iter()
            .try_for_each(|node| node.check_ready(peers))
    }

    /// Waits until every agent is ready and has programmed all others.
    ///
    /// # Errors
    /// When one is not within a minute; the message has its reasons.
    async fn wait_ready(&self, progress: &Progress) -> Result<()> {
        wait::until("every agent is ready", DEADLINE, || async {
            let ready = self.check_ready();
            if let Err(error) = &ready {
                progress.tell("waiting", &format!("{error:#}"));
            }
            ready
        })
        .await
        .with_context(|| format!("the logs are in {}", self.dir.display()))
    }

    /// Kills the agent of a host.
    ///
    /// # Errors
    /// When there is no such host, or no agent on it.
    pub(super) fn kill_agent(&mut self, place: usize) -> Result<()> {
        self.node(place)?.kill_agent()
    }

    /// Starts the agent of a host again.
    ///
    /// # Errors
    /// When there is no such host, or it has no agent's binary any more.
    pub(super) fn start_agent(&mut self, place: usize) -> Result<()> {
        self.node(place)?.start_agent(ETCD)
    }

    fn node(&mut self, place: usize) -> Result<&mut Node> {
        let node = self.nodes.get_mut(place);
        node.with_context(|| format!("no host has the number {place}"))
    }

    /// Starts etcd on the data that it has left.
    ///
    /// # Errors
    /// When it is not installed.
    pub(super) fn start_etcd(&mut self) -> Result<()> {
        let path = self.dir.join("etcd.log");
        let log = append(&path)?;
        let mut command = self.etcd_namespace.command("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir.join("etcd"))
            .args(["--listen-client-urls", ETCD])
            .args(["--advertise-client-urls", ETCD])
            .args(["--listen-peer-urls", PEERS])
            .args(["--initial-advertise-peer-urls", PEERS])
            .args(["--initial-cluster", &format!("default={PEERS}")])
            .stdout(log.try_clone().context("failed to share a log file")?)
            .stderr(log);
        self.etcd = Some(Child::spawn("etcd (package etcd-server)", command)?);
        Ok(())
    }

    /// Kills etcd; its data stays.
    pub(super) fn kill_etcd(&mut self) {
        self.etcd = None;
    }

    /// Looks whether all that is meant to run does.
    ///
    /// # Errors
    /// When etcd or an agent has ended by itself.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        let etcd = self.etcd.as_mut().map(Child::exited).transpose()?.flatten();
        if let Some(status) = etcd {
            let log = self.dir.join("etcd.log");
            return Err(anyhow!("etcd ended: {status}; see {}", log.display()));
        }
        self.nodes.iter_mut().try_for_each(Node::check_alive)
    }

    fn ctl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.etcd_namespace.command("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", ETCD, "--command-timeout", "5s"])
            .args(arguments);
        let output = crate::child::die_with_parent(&mut command)
            .output()
            .context("failed to run etcdctl (package etcd-client)")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(anyhow!("etcdctl {}: {}", arguments.join(" "), said.trim()))
    }
}

/// A log file that goes on where it ended.
///
/// # Errors
/// When it cannot be opened.
pub(super) fn append(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("failed to open {}", path.display()))
}
