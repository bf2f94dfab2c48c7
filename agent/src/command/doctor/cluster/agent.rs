//! Whether the agent runs, has joined, and has all it needs.

use std::fs::{self, File};
use std::future::ready;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::advice::{Advice, advise};
use super::{Check, Context, kernel};
use crate::base::logging::chain;
use crate::command::doctor::{Finding, Outcome, Severity};
use crate::settings::Settings;
use crate::telemetry::control;
use crate::telemetry::status::{State, Status};

const NAME: &str = "agent";

/// An agent that does not run, waits, or lacks something.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "an agent that does not run, does not answer, waits for something, or lacks something",
    run: |context| Box::pin(ready(check(context))),
};

/// For how long after its start an agent that says nothing more is just starting, in seconds.
const STARTING: u64 = 10;

/// Where systemctl(1) notes what is enabled.
const ENABLED: &str = "/etc/systemd/system";

/// The units that run an agent.
const UNITS: [&str; 2] = ["selvage.service", "flanneld.service"];

fn check(context: &Context<'_>) -> Outcome {
    let settings = context.settings;
    Ok(match &context.status {
        Ok(status) => {
            let mut findings = match status.health.state {
                State::Stopped => vec![stopped(settings)],
                State::Joining => joining(status, settings),
                State::Ready => Vec::new(),
                State::Degraded => degraded(status, settings),
            };
            findings.extend(unread_settings(status));
            findings
        }
        Err(control::Error::NotRunning { path, source }) => {
            vec![unheard(path, source, settings)]
        }
        Err(error @ control::Error::Unreadable(_)) => vec![finding(
            Severity::Warning,
            chain(error),
            Advice::new(
                "after an update the old agent goes on until it is restarted, which loses no packet",
                ["systemctl restart selvage"],
            ),
        )],
        Err(error) => vec![finding(
            Severity::Error,
            chain(error),
            Advice::new(
                "an agent that does not answer may not follow the cluster either; what it set up stays in place",
                [
                    "ask again; joining a large cluster may keep it busy for some seconds",
                    "journalctl -u selvage -n 50, then systemctl restart selvage: a restart loses no packet",
                ],
            ),
        )],
    })
}

/// Nothing answers on the control socket.
fn unheard(path: &Path, source: &io::Error, settings: &Settings) -> Finding {
    let socket = path.display();
    if source.kind() == io::ErrorKind::PermissionDenied {
        return finding(
            Severity::Warning,
            format!("the agent may not be asked: {socket}: {source}"),
            Advice::new(
                "whether it runs, and how it is, is not known",
                ["run the doctor as root"],
            ),
        );
    }
    if lock_is_held(&settings.files.state_dir) {
        let lock = settings.files.state_dir.join("lock");
        return finding(
            Severity::Warning,
            format!(
                "an agent runs (it holds {}), but none answers on {socket}",
                lock.display()
            ),
            Advice::new(
                "the overlay may be well, but nobody can ask; the agent was told another socket, or could not make it",
                [
                    "name the agent's: selvage doctor --socket FILE, or set files.socket in /etc/selvage/agent.toml for both",
                    "journalctl -u selvage | grep socket",
                ],
            ),
        );
    }
    stopped(settings)
}

/// No agent runs.
fn stopped(settings: &Settings) -> Finding {
    let expected = expectations(&settings.files.subnet_file, Path::new(ENABLED));
    if expected.is_empty() {
        return finding(
            Severity::Warning,
            "no agent runs on this host, and none is enabled".to_owned(),
            Advice::new(
                "containers of this host are not on the overlay",
                ["systemctl enable --now selvage.service"],
            ),
        );
    }
    finding(
        Severity::Error,
        format!("no agent runs, though {}", expected.join(" and ")),
        Advice::new(
            "what it set up stays in place, but this host hears of no new or moved peers, and its subnet is given to another when its lease ends",
            [
                "systemctl start selvage",
                "see why it ended: systemctl status selvage; journalctl -u selvage -n 50",
                "if this host is to leave the overlay: selvage leave, then selvage cleanup",
            ],
        ),
    )
}

/// What says that an agent should run.
fn expectations(subnet_file: &Path, enabled: &Path) -> Vec<String> {
    let file = subnet_file
        .exists()
        .then(|| format!("{} is there", subnet_file.display()));
    let unit = enabled_unit(enabled).map(|unit| format!("{} is enabled", unit.display()));
    unit.into_iter().chain(file).collect()
}

/// A unit of ours that some target or service wants.
fn enabled_unit(directory: &Path) -> Option<PathBuf> {
    let wants = fs::read_dir(directory).ok()?.flatten().filter(|entry| {
        let path = entry.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        matches!(kind, Some("wants" | "requires" | "upholds"))
    });
    wants
        .flat_map(|entry| UNITS.map(|unit| (entry.path().join(unit), unit)))
        .find(|(link, _)| link.symlink_metadata().is_ok())
        .map(|(_, unit)| PathBuf::from(unit))
}

/// Whether a process holds the agent's lock.
fn lock_is_held(state_dir: &Path) -> bool {
    let Ok(file) = File::open(state_dir.join("lock")) else {
        return false;
    };
    matches!(
        Flock::lock(file, FlockArg::LockSharedNonblock),
        Err((_, Errno::EWOULDBLOCK))
    )
}

/// What joining waits for.
fn joining(status: &Status, settings: &Settings) -> Vec<Finding> {
    let reasons = status.health.reasons.iter();
    let running = status.time.saturating_sub(status.agent.started_time);
    reasons
        .filter(|reason| !kernel::is_refusal(reason))
        .map(|reason| match reason.as_str() {
            "starting" => finding(
                if running < STARTING {
                    Severity::Warning
                } else {
                    Severity::Error
                },
                format!("the agent was started {running} s ago and has not joined yet"),
                Advice::new(
                    "it is asking the lease store and the kernel; what an earlier run set up stays in place",
                    ["ask again in a moment", "journalctl -u selvage -n 50"],
                ),
            ),
            reason => finding(
                Severity::Error,
                format!("this node has not joined the overlay: {reason}"),
                advise(reason, settings),
            ),
        })
        .collect()
}

/// What is wrong, but for what other checks tell.
fn degraded(status: &Status, settings: &Settings) -> Vec<Finding> {
    let lease = status
        .lease
        .as_ref()
        .and_then(|lease| lease.trouble.as_ref());
    let network = status.network.as_ref();
    let rejected = network.and_then(|network| network.rejected.as_ref());
    let docker = status.docker.as_ref();
    let docker = docker.and_then(|docker| docker.trouble.as_ref());
    let elsewhere = [lease, rejected, docker];
    let told_elsewhere =
        |reason: &String| kernel::is_refusal(reason) || elsewhere.contains(&Some(reason));
    let reasons = status.health.reasons.iter();
    reasons
        .filter(|reason| !told_elsewhere(reason))
        .map(|reason| {
            let is_store = status.store.trouble.as_ref() == Some(reason);
            let what = if is_store {
                format!("the lease store does not answer: {reason}")
            } else {
                reason.clone()
            };
            finding(Severity::Error, what, advise(reason, settings))
        })
        .collect()
}

/// Settings that were written and are not in use.
fn unread_settings(status: &Status) -> Vec<Finding> {
    let rejected = status.agent.settings_rejected.as_ref().map(|reason| {
        finding(
            Severity::Warning,
            reason.clone(),
            Advice::new(
                "the agent goes on with the settings that it had, but would not start with these",
                ["correct them, then: systemctl reload selvage"],
            ),
        )
    });
    let pending = &status.agent.settings_pending;
    let pending = (!pending.is_empty()).then(|| {
        finding(
            Severity::Warning,
            format!("changed settings wait for a restart: {}", pending.join(", ")),
            Advice::new(
                "they cannot change while the agent runs, because containers, peers or the kernel hang on them",
                ["systemctl restart selvage, which loses no packet"],
            ),
        )
    });
    rejected.into_iter().chain(pending).collect()
}

fn finding(severity: Severity, what: String, advice: Advice) -> Finding {
    Finding {
        check: NAME.to_owned(),
        severity,
        subject: None,
        what,
        why: advice.why,
        remedy: advice.remedy,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::telemetry::status::Agent;

    use super::*;

    #[test]
    fn an_agent_is_expected_where_something_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let (file, systemd) = (
            directory.path().join("subnet.env"),
            directory.path().join("s"),
        );
        assert!(expectations(&file, &systemd).is_empty());
        fs::create_dir_all(systemd.join("multi-user.target.wants")).unwrap();
        assert!(expectations(&file, &systemd).is_empty());
        // The link leads into the image, wherever that is mounted.
        let link = systemd.join("multi-user.target.wants/selvage.service");
        symlink("/usr/lib/systemd/system/selvage.service", link).unwrap();
        assert_eq!(
            expectations(&file, &systemd),
            ["selvage.service is enabled"]
        );
        fs::write(&file, "").unwrap();
        assert_eq!(expectations(&file, &systemd).len(), 2);
    }

    #[test]
    fn the_lock_tells_a_running_agent_from_a_stopped_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!lock_is_held(directory.path()));
        let lock = crate::base::lock::Lock::take(directory.path()).unwrap();
        assert!(lock_is_held(directory.path()));
        drop(lock);
        assert!(!lock_is_held(directory.path()));
    }

    #[test]
    fn settings_that_are_not_in_use_are_told() {
        let mut status = Status::joining(Agent::of_process("x", 0), Vec::new());
        assert!(unread_settings(&status).is_empty());
        status.agent.settings_rejected = Some("the settings were not reloaded: line 3".to_owned());
        status.agent.settings_pending = vec!["etcd.prefix".to_owned()];
        let [rejected, pending] = &unread_settings(&status)[..] else {
            panic!("not two findings")
        };
        assert!(rejected.what.contains("line 3") && rejected.remedy[0].contains("reload"));
        assert!(pending.what.contains("etcd.prefix") && pending.remedy[0].contains("restart"));
    }
}
