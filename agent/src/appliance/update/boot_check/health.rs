//! Takes the health of this machine: the same checks before an update and after it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{debug, warn};

use super::systemd::{self, Units};
use super::{reach, site};
use crate::appliance::update::state::Health;
use crate::base::http::{self, Trouble};
use crate::base::logging::chain;
use crate::settings::Settings;
use crate::telemetry::control::{Client, Error};
use crate::telemetry::status::{Cause, Code, State, Status};

/// dockerd's API, and how long it may take to answer.
const DOCKER: &str = "run/docker.sock";
const DOCKER_PATIENCE: Duration = Duration::from_secs(10);

/// The units by which the agent and Docker are enabled.
const AGENT_UNITS: [&str; 1] = ["selvage.service"];
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
}

impl<'a> Probe<'a> {
    /// A probe of a machine; `root` is where its files are.
    pub(super) fn new(settings: &'a Settings, root: &Path) -> Self {
        Self {
            settings,
            root: root.to_owned(),
        }
    }

    /// The health without the site's checks. Whoever answered before is asked again, as the agent may not know them yet.
    pub(super) async fn look(&self, before: &Health) -> Health {
        let mut health = Health::default();
        match Units::look().await {
            Ok(units) => {
                health.units_known = true;
                health.failed_units = units.failed;
                health.starting_units = units.starting;
            }
            Err(error) => debug!("systemd does not answer: {error}"),
        }
        let status = self.agent(&mut health).await;
        match reach::ask(status.as_ref(), before).await {
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

    async fn agent(&self, health: &mut Health) -> Option<Status> {
        // An agent that is started by hand alone is not there after a reboot.
        if !is_enabled(&AGENT_UNITS).await {
            return None;
        }
        let answer = Client::new(&self.settings.files.socket).status().await;
        let (status, causes) = match answer {
            Ok(status) => {
                let causes = not_ready(&status, &self.settings.files.subnet_file);
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
        health.agent_ready = Some(causes.is_empty());
        health.causes = causes;
        status
    }

    async fn docker(&self) -> Option<bool> {
        if !is_enabled(&DOCKER_UNITS).await {
            return None;
        }
        Some(answers(&self.root.join(DOCKER), DOCKER_PATIENCE).await)
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

/// Whether one of the units is enabled. If systemd does not answer, it is assumed: then a check fails rather than being
/// left out.
async fn is_enabled(units: &[&str]) -> bool {
    match systemd::is_enabled(units).await {
        Ok(enabled) => enabled,
        Err(error) => {
            debug!("systemd does not answer: {error}");
            true
        }
    }
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
