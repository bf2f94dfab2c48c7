//! The agent's answers on its control socket.

use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::overlay::Overlay;
use super::task::Task;
use super::{Agent, Tasks};
use crate::cluster::lease::LeaseStore;
use crate::telemetry::control::Question;
use crate::telemetry::docker_bridge;
use crate::telemetry::status::{
    self, Cause, Code, Docker, Health, Kernel, Peer, SCHEMA, State, Status, Store, TaskName,
};

impl<S: LeaseStore> Agent<'_, S> {
    /// Publishes the status until the loop runs.
    pub(super) fn report_joining(&self, cause: Cause) {
        let cause = cause.of(TaskName::Joining);
        let mut status = Status::joining(self.process.clone(), vec![cause]);
        status.store = self.describe_store();
        status.kernel.interval_seconds = self.settings.agent.resync.as_secs();
        status.files.subnet_file = self.settings.files.subnet_file.display().to_string();
        status.clock = self.clock.seen();
        self.health.set_sample(self.sample_joining(status.clone()));
        self.control.set_joining(Some(status));
    }

    pub(super) async fn answer(&self, question: Question, overlay: &mut Overlay, tasks: &Tasks) {
        // The client may have disconnected.
        match question {
            Question::Status(sender) if sender.is_closed() => (),
            Question::Peer(_, sender) if sender.is_closed() => (),
            Question::Status(sender) => {
                let peers = overlay.list_peers().await;
                let _ = sender.send(self.report(overlay, tasks, peers).await);
            }
            Question::Peer(asked, sender) => {
                let _ = sender.send(overlay.detail(asked).await);
            }
        }
    }

    /// The status, with the requested peers.
    pub(super) async fn report(
        &self,
        overlay: &mut Overlay,
        tasks: &Tasks,
        peers: Vec<Peer>,
    ) -> Status {
        let causes = self.troubles(tasks);
        let state = if causes.is_empty() {
            State::Ready
        } else {
            State::Degraded
        };
        let text = |task: &Task| task.trouble().map(|cause| cause.text.clone());
        let expiry = self.store.expiry();
        let left = expiry
            .expires
            .map(|at| at.saturating_duration_since(Instant::now()));
        let held = self.holds_lease(tasks);
        let store = self.describe_store();
        let lease = status::Lease {
            held,
            reservation: held && expiry.ttl.is_none() && !store.is_kubernetes(),
            ttl_seconds: expiry.ttl.map(|ttl| ttl.as_secs()),
            left_seconds: left.map(|left| left.as_secs()),
            trouble: text(&tasks.lease).or_else(|| text(&tasks.renewal)),
            ..overlay.lease()
        };
        Status {
            schema: SCHEMA,
            time: status::now(),
            agent: self.process.clone(),
            health: Health::new(state, causes),
            store,
            network: Some(overlay.network(text(&tasks.config))),
            lease: Some(lease),
            underlay: Some(overlay.underlay()),
            devices: overlay.devices().await,
            firewall: Some(overlay.firewall()),
            cloud: overlay.cloud_status(),
            kernel: Kernel {
                interval_seconds: self.settings.agent.resync.as_secs(),
                ..overlay.kernel()
            },
            files: overlay.files(),
            docker: self.docker.clone(),
            peers,
            clock: self.clock.seen(),
        }
    }

    /// Whether the store still has this node's lease.
    pub(super) fn holds_lease(&self, tasks: &Tasks) -> bool {
        tasks.lease.trouble().is_none() && self.lease.is_some()
    }

    fn describe_store(&self) -> Store {
        Store {
            server: self.server.clone(),
            trouble: self.store_trouble.as_ref().map(|cause| cause.text.clone()),
            history: self.history.clone(),
            ..Store::of_settings(&self.settings)
        }
    }

    /// Checks whether Docker uses the own subnet.
    pub(super) async fn look_at_docker(&mut self, overlay: &Overlay) {
        let network = overlay.network(None);
        let v4 = network.ipv4.map(IpNet::V4);
        let v6 = network.ipv6.map(IpNet::V6);
        let networks: Vec<_> = v4.into_iter().chain(v6).collect();
        let docker = docker_bridge::check(overlay.own().key, &networks).await;
        let (old, new) = (trouble(&self.docker), trouble(&docker));
        match new {
            Some(new) if old.as_ref() != Some(&new) => warn!("{}", new.text),
            None if old.is_some() => info!("Docker no longer uses another subnet than this node's"),
            _ => (),
        }
        self.docker = docker;
    }

    /// Checks whether the wall clock jumped.
    pub(super) fn look_at_clock(&mut self) {
        if let Some(seconds) = self.clock.check() {
            warn!(
                seconds,
                "the wall clock jumped, which affects certificate checks and log timestamps but not leases"
            );
        }
    }
}

/// Why Docker does not use the own subnet.
pub(super) fn trouble(docker: &Option<Docker>) -> Option<Cause> {
    let docker = docker.as_ref()?;
    let text = docker.trouble.as_deref()?;
    let cause = Cause::new(Code::DockerSubnet, text).about(&docker.bridge);
    Some(cause.of(TaskName::Docker))
}
