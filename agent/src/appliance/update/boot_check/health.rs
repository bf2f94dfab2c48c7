//! Takes the health of this machine: the same checks before an update and after it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, warn};

use super::systemd::{self, Units};
use super::{reach, site};
use crate::appliance::systemd::Systemd;
use crate::appliance::update::state::Health;
use crate::base::http::{self, Trouble};
use crate::base::logging::chain;
use crate::settings::{self, Settings, SettingsFlags, Sources};
use crate::telemetry::control::{Client, Error};
use crate::telemetry::status::{Cause, Code, State, Status};

/// dockerd's API, and how long it may take to answer.
const DOCKER: &str = "run/docker.sock";
const DOCKER_PATIENCE: Duration = Duration::from_secs(10);

/// The units by which the agent and Docker are enabled.
const AGENT_UNIT: &str = "selvage.service";
const DOCKER_UNITS: [&str; 2] = ["docker.service", "docker.socket"];

impl Health {
    /// The health of this machine now. Takes up to 80 seconds if a site's check hangs, a second or two otherwise.
    pub async fn take(settings: &Settings) -> Self {
        super::health(settings, Path::new("/")).await
    }
}

/// What is looked at.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    settings: &'a Settings,
    root: PathBuf,
    systemd: Systemd,
}

impl<'a> Probe<'a> {
    /// A probe of a machine; `root` is where its files are.
    pub(super) fn new(settings: &'a Settings, root: &Path) -> Self {
        Self {
            settings,
            root: root.to_owned(),
            systemd: Systemd::of(root),
        }
    }

    /// The health without the site's checks. Whoever answered before is asked again, as the agent may not know them yet.
    pub(super) async fn look(&self, before: &Health) -> Health {
        let mut health = Health::default();
        match Units::look(&self.systemd).await {
            Ok(units) => {
                health.units_known = true;
                health.failed_units = units.failed;
                health.starting_units = units.starting;
            }
            Err(error) => debug!("systemd does not answer: {error}"),
        }
        let statuses = self.agents(&mut health).await;
        match reach::ask(&statuses, before).await {
            Ok(answers) => {
                health.peers_answering = answers.over;
                health.underlay_answering = answers.under;
            }
            Err(error) => warn!("no packets can be sent to peers: {error}"),
        }
        health.docker_ok = self.docker().await;
        health
    }

    /// Runs the site's checks.
    pub(super) async fn add_site_checks(&self, health: &mut Health) {
        let results = site::run(&self.root).await;
        health.checks_passed = results.passed;
        health.checks_failed = results.failed;
    }

    /// Asks the agents of all networks. All must be ready.
    async fn agents(&self, health: &mut Health) -> Vec<Status> {
        let mut statuses = Vec::new();
        // An agent that is started by hand alone is not there after a reboot.
        if self.is_enabled(&[AGENT_UNIT]).await {
            statuses.extend(agent(self.settings, health).await);
        }
        let units = systemd::agents_of_networks(&self.systemd).await;
        let units = units.unwrap_or_else(|error| {
            debug!("systemd does not answer: {error}");
            Vec::new()
        });
        for unit in units {
            if !self.is_enabled(&[&unit]).await {
                continue;
            }
            match self.settings_of(&unit) {
                Ok(settings) => statuses.extend(agent(&settings, health).await),
                Err(error) => {
                    let text = format!("{unit}: {}", chain(&error));
                    add(health, vec![Cause::new(Code::Unknown, text)]);
                }
            }
        }
        statuses
    }

    /// The settings of a further network, as its unit's agent has them.
    fn settings_of(&self, unit: &str) -> Result<Settings, settings::Error> {
        let name = unit
            .trim_start_matches("selvage@")
            .trim_end_matches(".service");
        let environment = [("SELVAGE_NETWORK".to_owned(), name.to_owned())];
        let sources = Sources {
            root: &self.root,
            config: None,
            environment: &environment.into_iter().collect(),
            flags: &SettingsFlags::default(),
        };
        settings::load_readable(sources).map(|(settings, _)| settings)
    }

    async fn docker(&self) -> Option<bool> {
        if !self.is_enabled(&DOCKER_UNITS).await {
            return None;
        }
        Some(answers(&self.root.join(DOCKER), DOCKER_PATIENCE).await)
    }

    /// Whether one of the units is enabled. If systemd does not answer, it is assumed: then a check fails rather than being
    /// left out.
    async fn is_enabled(&self, units: &[&str]) -> bool {
        match systemd::is_enabled(&self.systemd, units).await {
            Ok(enabled) => enabled,
            Err(error) => {
                debug!("systemd does not answer: {error}");
                true
            }
        }
    }
}

/// Whether Docker's engine says on its socket that it is well.
async fn answers(socket: &Path, patience: Duration) -> bool {
    match http::get(socket, "/_ping", patience).await {
        Ok((status, _)) => status == 200,
        Err(Trouble::Connect(error) | Trouble::Exchange(error)) => {
            debug!("Docker does not answer: {error}");
            false
        }
    }
}

/// Asks an agent.
async fn agent(settings: &Settings, health: &mut Health) -> Option<Status> {
    let (status, mut causes) = match Client::new(&settings.files.socket).status().await {
        Ok(status) => {
            let causes = not_ready(&status, &settings.files.subnet_file);
            (Some(status), causes)
        }
        Err(error) => {
            let code = match error {
                Error::NotRunning { .. } => Code::NoAgent,
                Error::Silent { .. } | Error::Refused { .. } => Code::AgentSilent,
                Error::Unreadable(_) => Code::Unknown,
            };
            (None, vec![Cause::new(code, chain(&error))])
        }
    };
    if let Some(network) = &settings.agent.network {
        for cause in &mut causes {
            cause.text = format!("network {network}: {}", cause.text);
        }
    }
    add(health, causes);
    status
}

/// Adds what an agent said.
fn add(health: &mut Health, causes: Vec<Cause>) {
    let others = health.agent_ready.unwrap_or(true);
    health.agent_ready = Some(others && causes.is_empty());
    health.causes.extend(causes);
}

/// Why the agent is not ready: its own causes, or the part of its work that is not done. Empty if it is ready.
fn not_ready(status: &Status, subnet_file: &Path) -> Vec<Cause> {
    let causes = status.health.causes().into_owned();
    if status.health.state != State::Ready {
        return match causes.is_empty() {
            true => vec![Cause::new(Code::Starting, "it is starting")],
            false => causes,
        };
    }
    let mut causes = causes;
    if !status.lease.as_ref().is_some_and(|lease| lease.held) {
        causes.push(Cause::new(Code::LeaseLost, "it holds no lease"));
    }
    if !status.kernel.failures.is_empty() {
        causes.extend(status.kernel.causes().into_owned());
    }
    if !subnet_file.exists() {
        let text = format!("{} is not written", subnet_file.display());
        causes.push(Cause::new(Code::SubnetFile, text));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::samples;

    #[test]
    fn the_agent_is_ready_with_a_lease_a_kernel_as_planned_and_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("subnet.env");
        std::fs::write(&file, "").unwrap();
        let ready = samples::healthy();
        assert_eq!(codes_at(&ready, &file), []);

        let mut status = ready.clone();
        status.lease.as_mut().unwrap().held = false;
        assert_eq!(codes_at(&status, &file), [Code::LeaseLost]);
        let mut status = ready.clone();
        status.kernel.failures = vec!["a route".to_owned()];
        status.kernel.causes = vec![Cause::new(Code::KernelConflict, "a route")];
        assert_eq!(codes_at(&status, &file), [Code::KernelConflict]);
        let mut status = ready.clone();
        status.health.state = State::Joining;
        assert_eq!(codes_at(&status, &file), [Code::Starting]);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(codes_at(&ready, &file), [Code::SubnetFile]);
    }

    fn codes_at(status: &Status, file: &Path) -> Vec<Code> {
        let causes = not_ready(status, file);
        causes.iter().map(|cause| cause.code).collect()
    }

    #[tokio::test]
    async fn docker_is_well_if_it_answers_200() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        use tokio::net::UnixListener;

        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker.sock");
        assert!(!answers(&socket, DOCKER_PATIENCE).await, "nobody listens");
        let listener = UnixListener::bind(&socket).unwrap();
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK", true),
            (
                "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
                false,
            ),
        ] {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (found, ()) = tokio::join!(answers(&socket, DOCKER_PATIENCE), serve);
            assert_eq!(found, expected, "{answer:?}");
        }
        // systemd listens, but dockerd hangs while it starts.
        assert!(!answers(&socket, Duration::from_millis(50)).await);
    }
}
